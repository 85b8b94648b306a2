"""Reading cells back: at random one by one, in batches, and in order; from our file and from one as scPortrait writes.

    python -m bench.read_back [--cells 2000] [--seconds 2] [--json FILE] [--folder DIR]

The same tiles are written by us, in each compression, and by h5py as scPortrait 1.8 does it: lzf, a chunk a plane. Ours
are read by `open_cells`. scPortrait's file is read as its own torch dataset reads it, ``images[row]`` by h5py, and by
`open_cells`. Everything is in the page cache. Ways are measured in turn, and the best of the turns is told: what is
compared has then met the same noise.
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
    """Run, print a line per file, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each way of reading")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--folder", type=Path, help="where to write; the folder for temporary files by default")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        readers = make_readers(Path(name), arguments.cells)
        results = measure(readers, arguments.cells, arguments.seconds)
    for name, result in results.items():
        print(f"{name:<22} " + ", ".join(f"{what} {value * 1e6:6.1f}" for what, value in result.items()) + " us a cell")
    if arguments.json:
        head = {"machine": machine(), "cells": arguments.cells}
        arguments.json.write_text(json.dumps({**head, "seconds_per_cell": results}, indent=1) + "\n")


def make_readers(folder: Path, n_cells: int) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """What reads some rows, by the name of the file and its reader."""
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
    """Seconds a cell of each reader: one cell at random, a batch at random, and a batch in order."""
    dice = np.random.default_rng(0)
    ways = {
        "one at random": lambda: dice.integers(0, n_cells, 1),
        f"{N_BATCH} at random": lambda: dice.integers(0, n_cells, N_BATCH),
        f"{N_BATCH} in order": lambda: dice.integers(0, n_cells - N_BATCH) + np.arange(N_BATCH),
    }
    best: dict[str, dict[str, float]] = {name: {} for name in readers}
    for way, rows in ways.items():
        for _ in range(TURNS):
            for name, read in readers.items():
                taken = seconds_per_cell(read, rows, seconds / TURNS)
                best[name][way] = min(best[name].get(way, taken), taken)
    return best


def seconds_per_cell(read: Callable, rows: Callable, seconds: float) -> float:
    """The mean of as many calls as there is time for."""
    n, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        wanted = rows()
        read(wanted)
        n += len(wanted)
    return (time.perf_counter() - start) / n


if __name__ == "__main__":
    main()
