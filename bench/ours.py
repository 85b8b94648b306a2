"""Call `gpu_extract.extract` several times in a process of its own; used by the other benchmarks.

    python -m bench.ours FOLDER KIND RECIPE BORDER THREADS REPEATS

Prints JSON: seconds of the import, seconds of each call (the first one also imports modules and loads the compiled
kernels), the stages of the last call, and the peak memory of the process.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TILE_SIZE = 128


def main() -> None:
    """Extract, and print the times and the memory."""
    folder, kind, recipe, border = Path(sys.argv[1]), *sys.argv[2:5]
    threads, repeats = map(int, sys.argv[5:7])
    start = time.perf_counter()
    from gpu_extract import extract

    import_seconds = time.perf_counter() - start
    planes = {name: folder / f"{name}.{kind}" for name in ("image", "nucleus", "cytosol")}
    output = folder / "ours.h5sc"
    seconds = []
    for _ in range(repeats + 1):
        output.unlink(missing_ok=True)  # the peers do not replace a file either
        os.sync()  # otherwise the call would wait for what others have left to write
        start = time.perf_counter()
        report = extract(
            **planes,
            output=output,
            recipe=recipe,
            border=border,
            tile_size=TILE_SIZE,
            device="cpu",
            threads=threads,
        )
        seconds.append(time.perf_counter() - start)
    figures = {
        "n_cells": report.n_cells,
        "import_seconds": import_seconds,
        "first_call_seconds": seconds[0],
        "call_seconds": seconds[1:],
        "plan_seconds": seconds[-1] - report.seconds,
        "stage_seconds": report.stage_seconds,
        "file_bytes_per_cell": output.stat().st_size / report.n_cells,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(figures))


def run(folder: Path, kind: str, recipe: str, border: str, threads: int, repeats: int) -> dict[str, Any]:
    """Run `main` in a new process and return what it prints."""
    arguments = [str(folder), kind, recipe, border, str(threads), str(repeats)]
    # Started by a shell that stays: the peak memory of a process includes what its parent held when it was started.
    done = subprocess.run(
        ["sh", "-c", '"$0" -m bench.ours "$@"; exit $?', sys.executable, *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


if __name__ == "__main__":
    main()
