"""Measure each primitive of `gpu_extract.ops` alone: first call, steady state, and GB/s of the bytes it must move.

    python -m bench.primitives [--n-cells 512] [--size 128] [--repeats 7] [--json FILE]

The input is NumPy arrays. The ideal bytes of a primitive are its input read once and its output written once;
``share_of_copy`` is its speed divided by that of a plain copy in the same run. Each first call is made in a process of
its own, after the import.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.machine import machine
from gpu_extract import ops

Calls = dict[str, tuple[Callable[[], Any], int]]


def main() -> None:
    """Run, print one line per primitive, and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-cells", type=int, default=512)
    parser.add_argument("--size", type=int, default=128, help="side of a tile in pixels")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", help="only print the seconds of the first call of this primitive")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    arguments = parser.parse_args()
    if arguments.only:
        print(timed(calls(arguments.n_cells, arguments.size)[arguments.only][0]))
        return
    limits = machine()
    results = [
        measure(name, call, n_read, arguments, limits)
        for name, (call, n_read) in calls(arguments.n_cells, arguments.size).items()
    ]
    if arguments.json:
        head = {"machine": limits, "tiles": f"{arguments.n_cells} of {arguments.size} x {arguments.size}"}
        arguments.json.write_text(json.dumps({**head, "results": results}, indent=1) + "\n")


def calls(n: int, S: int) -> Calls:
    """Return a call of each primitive on typical tiles, and the bytes that it must read."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:S, :S] - S // 2
    radius = rng.uniform(0.15, 0.35, (n, 1, 1)) * S
    masks = ((y * y + x * x < radius**2) & (y * y + x * x > 9)).astype(np.uint8)  # rings, so that there are holes
    images = rng.integers(0, 4096, (n, S, S)).astype(np.uint16)
    soft = masks * np.float32(0.5)
    lower, upper = np.full(n, 10.0), np.full(n, 4000.0)
    result = {
        "fill_holes": lambda: ops.fill_holes(masks),
        "dilate, radius 2": lambda: ops.dilate(masks, 2),
        "dilate, radius 6": lambda: ops.dilate(masks, 6),
        "gaussian_blur, sigma 1": lambda: ops.gaussian_blur(masks, 1.0),
        "gaussian_blur, sigma 5": lambda: ops.gaussian_blur(masks, 5.0),
        "apply_mask": lambda: ops.apply_mask(images, soft),
        "normalize": lambda: ops.normalize(images, lower, upper),
    }
    read = dict.fromkeys(result, masks.nbytes) | {
        "apply_mask": images.nbytes + soft.nbytes,
        "normalize": images.nbytes,
    }
    return {name: (call, read[name]) for name, call in result.items()}


def measure(name: str, call: Callable[[], Any], n_read: int, arguments: Any, limits: dict[str, Any]) -> dict[str, Any]:
    """Return the results of one primitive."""
    options = ["--n-cells", str(arguments.n_cells), "--size", str(arguments.size)]
    first = subprocess.run(
        [sys.executable, "-m", "bench.primitives", "--only", name, *options],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    nbytes = n_read + call().nbytes
    seconds = statistics.median(timed(call) for _ in range(arguments.repeats))
    speed = nbytes / seconds / 1e9
    result = {
        "primitive": name,
        "first_call_seconds": float(first.stdout),
        "seconds": seconds,
        "gb_per_second": speed,
        "share_of_copy": speed / limits["memory_copy_gb_per_second"],
    }
    print(
        f"{name:<22} first call {result['first_call_seconds'] * 1e3:8.1f} ms, then {seconds * 1e3:8.1f} ms "
        f"for {arguments.n_cells} tiles: {speed:6.2f} GB/s of ideal bytes",
        flush=True,
    )
    return result


def timed(call: Callable[[], Any]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
