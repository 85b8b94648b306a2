"""Measure the writer alone, from memory: MB of raw tiles per second for each compression, next to the disk's speed.

    python -m bench.writer [--cells 12000] [--threads 2] [--repeats 3] [--json FILE] [--folder DIR]

The tiles are those of a synthetic slide (`synthetic`), extracted by the cpu backend with recipe ``scportrait`` at tile
128, and repeated until there are enough. As in a run, they are encoded by as many threads as the machine has cores and
appended to a file, which is then finished and renamed. ``encode`` is the time of a single thread without any file. The
disk's own speed is measured for each compression, with a file of the same size that is written in blocks of 8 MiB and
synced.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagecodecs
import numpy as np

from bench.machine import machine
from bench.synthetic import make_slide
from gpu_extract.backends import choose
from gpu_extract.cpus import default_threads
from gpu_extract.model import CellImages, CellTable, DroppedCells
from gpu_extract.parallel import in_order
from gpu_extract.planning import Plan, batches, make_plan
from gpu_extract.recipe import Recipe
from gpu_extract.sources import open_slide
from gpu_extract.store import CellStore, Contents, encode
from gpu_extract.store.codecs import CODECS

# Cells per call of `encode`, as in a run.
BATCH = 8
# Bytes per write of the plain file that measures the disk.
DISK_BLOCK = 8 << 20


def main() -> None:
    """Run, print one line per compression, and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=12000)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--folder", type=Path, help="folder of the files; by default that for temporary files")
    arguments = parser.parse_args()
    plan, some = make_tiles()
    lzf = sum(len(imagecodecs.lzf_encode(plane)) for tile in some.images for plane in tile) / len(some) / 1024
    raw = some.images[0].nbytes / 1024
    print(f"{arguments.cells} cells of {raw:.0f} KiB; scPortrait's lzf: {lzf:.1f} KiB per cell")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        results = [measure(Path(name), plan, some, compression, arguments) for compression in CODECS]
    if arguments.json:
        head = {"machine": machine(), "cells": arguments.cells, "threads": arguments.threads, "lzf_kib_per_cell": lzf}
        arguments.json.write_text(json.dumps({**head, "results": results}, indent=1) + "\n")


def make_tiles() -> tuple[Plan, CellImages]:
    """Return a plan, and all of its tiles."""
    slide = make_slide(2048)
    recipe = Recipe.preset("scportrait").replace(tile_size=128)
    plan = make_plan([open_slide(slide.image, nucleus=slide.nucleus, cytosol=slide.cytosol)], recipe)
    backend = choose("cpu")
    parts = [
        backend.extract(plan.slides[0].read(batch.box), batch, plan.program, None)
        for batch in batches(plan, backend.batch_size)
    ]
    images, limits = (np.concatenate([getattr(part, name) for part in parts]) for name in ("images", "limits"))
    return plan, CellImages(np.arange(len(images)), plan.cells.ids, images, limits)


def repeated(plan: Plan, n_cells: int) -> Contents:
    """Return the contents of a file with the given number of cells."""
    n = np.arange(n_cells)
    cells = CellTable(
        slide=n * 0,
        ids=(n + 1).astype(np.uint64),
        centers=np.zeros((n_cells, 2), np.int64),
        boxes=np.zeros((n_cells, 4), np.int64),
        areas=np.zeros((n_cells, plan.cells.areas.shape[1]), np.int64),
        truncated=n < 0,
        dropped=DroppedCells(n[:0], n[:0].astype(np.uint64), np.array([], np.uint8)),
    )
    return Contents(cells, plan.slides, plan.program)


def measure(
    folder: Path, plan: Plan, some: CellImages, compression: str, arguments: argparse.Namespace
) -> dict[str, object]:
    """Return the best of some repetitions, and the speed of the disk.

    On a machine with other work, processor time is more reliable than elapsed time.
    """
    contents, path = repeated(plan, arguments.cells), folder / "cells.h5sc"
    runs = [write(path, contents, some, compression, arguments.threads) for _ in range(arguments.repeats)]
    nbytes, raw = path.stat().st_size, arguments.cells * some.images[0].nbytes
    disk = max(disk_speed(folder / "disk", nbytes) for _ in range(arguments.repeats))
    seconds = min(run[0] for run in runs)
    result = {
        "compression": compression,
        "seconds": [run[0] for run in runs],
        "cpu_us_per_cell": min(run[1] for run in runs) / arguments.cells * 1e6,
        "raw_mb_per_second": raw / seconds / 1e6,
        "cells_per_second": arguments.cells / seconds,
        "kib_per_cell": nbytes / arguments.cells / 1024,
        "encode_us_per_cell": encode_seconds(some, contents, compression) * 1e6,
        "written_mb_per_second": nbytes / seconds / 1e6,
        "disk_mb_per_second": disk / 1e6,
    }
    shown = {name: value for name, value in result.items() if isinstance(value, float)}
    print(
        "{c:<5} {raw_mb_per_second:7,.0f} MB/s of raw tiles, {cells_per_second:7,.0f} cells/s; cpu "
        "{cpu_us_per_cell:5.1f}, encoding {encode_us_per_cell:5.1f} us per cell, {kib_per_cell:6.1f} KiB; written "
        "{written_mb_per_second:5,.0f} MB/s, disk {disk_mb_per_second:5,.0f}".format(c=compression, **shown)
    )
    return result


def write(path: Path, contents: Contents, some: CellImages, compression: str, threads: int) -> tuple[float, float]:
    """Write a file; return the seconds from the first cell to the finished file, and the processor seconds."""
    store = CellStore.create(path, contents, compression=compression, overwrite=True)

    def encoded(start: int) -> object:
        rows = np.arange(start, min(start + BATCH, len(contents.cells)))
        source = rows % len(some)
        if source[-1] < source[0]:
            source = np.arange(len(rows))
        part = slice(source[0], source[-1] + 1)
        return encode(CellImages(rows, contents.cells.ids[rows], some.images[part], some.limits[part]), store.format)

    start, processor = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as workers:
        tasks = range(0, len(contents.cells), BATCH)
        for chunks in in_order(workers, encoded, tasks, ahead=4 * threads):
            store.append(chunks)
    store.finish()
    return time.perf_counter() - start, time.process_time() - processor


def encode_seconds(some: CellImages, contents: Contents, compression: str) -> float:
    """Return the seconds per cell of one thread that only encodes; the shortest of ten passes."""
    from gpu_extract.store.hdf5.layouts import LAYOUTS

    format = LAYOUTS["h5sc"].format(contents, compression)
    few = CellImages(some.rows[:200], some.ids[:200], some.images[:200], some.limits[:200])
    passes = []
    for _ in range(10):
        start = time.perf_counter()
        encode(few, format)
        passes.append((time.perf_counter() - start) / len(few))
    return min(passes)


def disk_speed(path: Path, nbytes: int) -> float:
    """Return the bytes per second of writing and syncing a plain file of the given size."""
    block = np.random.default_rng(0).bytes(min(DISK_BLOCK, nbytes))
    start = time.perf_counter()
    with open(path, "wb", buffering=0) as file:
        for _ in range(max(nbytes // DISK_BLOCK, 1)):
            file.write(block)
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    path.unlink()
    return nbytes / seconds


if __name__ == "__main__":
    main()
