"""Measure extraction from files on disk to a finished gzip .h5sc: cells per second, stages, and peak memory.

    python -m bench.end_to_end [--sizes 1024 4096 ...] [--recipe standard ...] [--repeats 5] [--threads N] [--json FILE]

A slide with three uint16 channels and two label planes is written to a temporary folder as uncompressed TIFFs. Each
recipe runs in a process of its own: first one call of `gpu_extract.extract`, which also imports modules and loads the
compiled kernels, then ``repeats`` calls, of which the median is reported. ``whole_program_seconds`` is the time of
``gpu-extract run`` in a shell. ``share_of_limit`` compares each stage with the machine's limit: the least number of
bytes that it must move, at the speed of a plain copy, or of the disk, in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import ours
from bench.machine import machine

# Bytes of a tile: two masks and three channels of 128 x 128 float16.
TILE_NBYTES = 5 * ours.TILE_SIZE**2 * 2


def main() -> None:
    """Run, print one line per slide and recipe, and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096], help="sides of the slides in pixels")
    parser.add_argument("--recipe", nargs="+", default=["standard", "scportrait", "sparcspy"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="write the results to this file")
    arguments = parser.parse_args()
    limits = machine()
    results = []
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as name:
            subprocess.run([sys.executable, "-m", "bench.synthetic", name, str(size)], check=True)
            for recipe in arguments.recipe:
                results.append(measure(Path(name), size, recipe, arguments.threads, arguments.repeats, limits))
    if arguments.json:
        head = {"machine": limits, "threads": arguments.threads, "slides": "S x S x 3 uint16, tile 128"}
        arguments.json.write_text(json.dumps({**head, "results": results}, indent=1) + "\n")


def measure(folder: Path, size: int, recipe: str, threads: int, repeats: int, limits: dict[str, Any]) -> dict[str, Any]:
    """Return the results of a recipe on a slide."""
    border = "mask" if recipe == "standard" else "window"
    figures = ours.run(folder, "tif", recipe, border, threads, repeats)
    median, n_cells = statistics.median(figures["call_seconds"]), figures["n_cells"]
    result = {
        "size": size,
        "recipe": recipe,
        "cells_per_second": n_cells / median,
        "whole_program_seconds": whole_program(folder, recipe, threads),
        **figures,
        "share_of_limit": shares_of_limit(size, figures, threads, limits),
    }
    stages = ", ".join(f"{name} {seconds:.2f}" for name, seconds in figures["stage_seconds"].items())
    print(
        f"{size} {recipe:<11} {n_cells} cells in {median:.2f} s: {n_cells / median:,.0f} cells/s; "
        f"first call {figures['first_call_seconds']:.1f} s, whole program {result['whole_program_seconds']:.1f} s; "
        f"plan {figures['plan_seconds']:.2f}, {stages} s; {figures['file_bytes_per_cell'] / 1024:.1f} KiB per cell, "
        f"peak memory {figures['peak_memory_mb']:,.0f} MB",
        flush=True,
    )
    return result


def whole_program(folder: Path, recipe: str, threads: int) -> float:
    """Return the seconds of ``gpu-extract run``, the faster of two runs."""
    command = [
        *(str(Path(sys.executable).parent / "gpu-extract"), "run", str(folder / "image.tif")),
        *("--nucleus", str(folder / "nucleus.tif"), "--cytosol", str(folder / "cytosol.tif")),
        *("-o", str(folder / "program.h5sc"), "--recipe", recipe, "--size", str(ours.TILE_SIZE)),
        *("--threads", str(threads), "--device", "cpu", "--overwrite", "--quiet"),
    ]
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def shares_of_limit(size: int, figures: dict[str, Any], threads: int, limits: dict[str, Any]) -> dict[str, float]:
    """Return for each stage the shortest possible time divided by the measured time.

    The shortest possible time is that of the bytes that the stage must at least move, at the machine's own speed. Plan
    and read must read the slide once; compute must write the tiles; encode must read them; write must write the file to
    disk. Measured times are summed over threads, so each thread is compared with the copy speed of one core.
    """
    n_cells, seconds = figures["n_cells"], figures["stage_seconds"] | {"plan": figures["plan_seconds"]}
    memory, disk = limits["memory_copy_gb_per_second"] * 1e9, limits["disk_write_gb_per_second"] * 1e9
    least = {
        "plan": size * size * 2 * 4 / memory,
        "read": size * size * (3 * 2 + 2 * 4) / memory,
        "compute": n_cells * TILE_NBYTES / memory,
        "encode": n_cells * TILE_NBYTES / memory,
        "write": n_cells * figures["file_bytes_per_cell"] / disk,
    }
    return {name: least[name] / seconds[name] for name in least if seconds.get(name)}


if __name__ == "__main__":
    main()
