"""Measure reading cells one by one at random, in batches, and in order, from our file and from scPortrait's.

    python -m bench.read_back [--cells 2000] [--seconds 2] [--json FILE] [--folder DIR]

The same tiles are written by gpu_extract with each compression, and by h5py in the way of scPortrait 1.8: lzf, with one
chunk per plane. Our files are read with `open_cells`. scPortrait's file is read as its own torch dataset reads it
(``images[row]`` with h5py), and with `open_cells`. All data are in the page cache. The readers take turns, so that
noise affects all of them alike, and the best turn is reported.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from bench.machine import machine
from bench.writer import make_tiles, repeated, write
from gpu_extract import open_cells
from gpu_extract.store.codecs import CODECS

IMAGES = "obsm/single_cell_images"
N_BATCH = 256
TURNS = 5


def main() -> None:
    """Run, print one line per file and reader, and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each reader and access pattern")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--folder", type=Path, help="folder of the files; by default that for temporary files")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        readers = make_readers(Path(name), arguments.cells)
        results = measure(readers, arguments.cells, arguments.seconds)
    for name, result in results.items():
        times = ", ".join(f"{what} {value * 1e6:6.1f}" for what, value in result.items())
        print(f"{name:<22} {times} us per cell")
    if arguments.json:
        head = {"machine": machine(), "cells": arguments.cells}
        arguments.json.write_text(json.dumps({**head, "seconds_per_cell": results}, indent=1) + "\n")


def make_readers(folder: Path, n_cells: int) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Return functions that read some rows, by the name of the file and the reader."""
    plan, some = make_tiles()
    contents = repeated(plan, n_cells)
    readers = {}
    for compression in CODECS:
        path = folder / f"{compression}.h5sc"
        write(path, contents, some, compression, 2)
        readers[f"ours, {compression}"] = open_cells(path).read
    theirs = folder / "scportrait.h5sc"
    with h5py.File(folder / "none.h5sc") as ours, h5py.File(theirs, "w") as file:
        for name in ("obs", "uns", "var"):
            ours.copy(name, file)
        shape = ours[IMAGES].shape
        images = file.create_dataset(IMAGES, shape, "f2", chunks=(1, 1, *shape[2:]), compression="lzf")
        for row in range(n_cells):
            images[row] = ours[IMAGES][row]
    readers["scPortrait's, ours"] = open_cells(theirs).read
    images = h5py.File(theirs)[IMAGES]
    readers["scPortrait's, h5py"] = lambda rows: np.stack([images[row] for row in rows])
    return readers


def measure(readers: dict, n_cells: int, seconds: float) -> dict[str, dict[str, float]]:
    """Return the seconds per cell of each reader: one cell at random, a batch at random, and a batch in order."""
    rng = np.random.default_rng(0)
    ways = {
        "one at random": lambda: rng.integers(0, n_cells, 1),
        f"{N_BATCH} at random": lambda: rng.integers(0, n_cells, N_BATCH),
        f"{N_BATCH} in order": lambda: rng.integers(0, n_cells - N_BATCH) + np.arange(N_BATCH),
    }
    best: dict[str, dict[str, float]] = {name: {} for name in readers}
    for way, rows in ways.items():
        for _ in range(TURNS):
            for name, read in readers.items():
                taken = seconds_per_cell(read, rows, seconds / TURNS)
                best[name][way] = min(best[name].get(way, taken), taken)
    return best


def seconds_per_cell(read: Callable, rows: Callable, seconds: float) -> float:
    """Return the mean of as many calls as fit into the given time."""
    n, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        wanted = rows()
        read(wanted)
        n += len(wanted)
    return (time.perf_counter() - start) / n


if __name__ == "__main__":
    main()
