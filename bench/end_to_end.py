"""Files on disk to a finished gzip .h5sc, as a user runs it: cells per second and peak memory.

    python bench/end_to_end.py [--size 4096] [--recipe standard ...] [--repeats 3] [--json FILE]

A slide of three uint16 channels and two label planes is made in a temporary folder as uncompressed TIFFs, and
``gpu-extract run --device cpu`` is called on it as a program of its own, so that start-up counts and its peak
memory can be told. The first, unreported run fills numba's cache.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path


def main() -> None:
    """Run, print a line per recipe, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=4096, help="side of the slide in pixels")
    parser.add_argument("--recipe", nargs="+", default=["standard", "scportrait", "sparcspy"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In a process of its own: a child's peak memory counts what its parent held when it was started.
        maker = Path(__file__).with_name("synthetic.py")
        subprocess.run([sys.executable, str(maker), name, str(arguments.size)], check=True)
        results = [measure(folder, recipe, arguments.repeats) for recipe in arguments.recipe]
    if arguments.json:
        head = {"machine": machine(), "slide": f"{arguments.size} x {arguments.size} x 3 uint16, tile 128"}
        arguments.json.write_text(json.dumps({**head, "results": results}, indent=1) + "\n")


def measure(folder: Path, recipe: str, repeats: int) -> dict[str, object]:
    """The median run of a recipe: seconds of the whole program, cells per second, file size, peak memory."""
    output = folder / "cells.h5sc"
    command = [
        *(str(Path(sys.executable).parent / "gpu-extract"), "run", str(folder / "image.tif")),
        *("--nucleus", str(folder / "nucleus.tif"), "--cytosol", str(folder / "cytosol.tif")),
        *("-o", str(output), "--recipe", recipe, "--device", "cpu", "--overwrite", "--quiet"),
    ]
    seconds, peaks = [], []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            told = process.stdout.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        seconds.append(time.perf_counter() - start)
        peaks.append(usage.ru_maxrss / 1024)
    n_cells = int(told.split(" cells, ")[0].split()[-1].replace(",", ""))
    median = statistics.median(seconds[1:])
    result = {
        "recipe": recipe,
        "n_cells": n_cells,
        "seconds": seconds[1:],
        "cells_per_second": n_cells / median,
        "file_bytes_per_cell": output.stat().st_size / n_cells,
        "peak_memory_mb": max(peaks),
    }
    print(
        f"{recipe:<11} {n_cells} cells in {median:.2f} s (median of {repeats}): {n_cells / median:,.0f} cells/s, "
        f"{output.stat().st_size / n_cells / 1024:.1f} KiB a cell, peak memory {max(peaks):,.0f} MB"
    )
    return result


def processor() -> str:
    """The processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def machine() -> dict[str, object]:
    """What the figures were taken on."""
    packages = ("gpu-extract", "numpy", "numba", "h5py", "isal")
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in packages},
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip(),
    }


if __name__ == "__main__":
    main()
