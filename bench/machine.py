"""Describe the machine of a benchmark, and measure the speed of its memory and disk."""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

NBYTES = 256 << 20


def machine() -> dict[str, object]:
    """Return processor, cores, memory and disk speed, versions, and commit."""
    packages = ("gpu-extract", "numpy", "numba", "h5py", "isal")
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_copy_gb_per_second": memory_copy() / 1e9,
        "disk_write_gb_per_second": disk_write() / 1e9,
        "python": platform.python_version(),
        "versions": {package: version(package) for package in packages},
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip(),
    }


def processor() -> str:
    """Return the name of the processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def memory_copy(nbytes: int = NBYTES) -> float:
    """Return the bytes read and written per second when one core copies memory, the best of five."""
    source = np.ones(nbytes, np.uint8)
    target = np.zeros_like(source)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - start)
    return 2 * nbytes / min(seconds)


def disk_write(nbytes: int = NBYTES) -> float:
    """Return the bytes per second written to a temporary file and synced, the best of three."""
    data = np.random.default_rng(0).bytes(nbytes)
    seconds = []
    for _ in range(3):
        with tempfile.TemporaryFile() as file:
            start = time.perf_counter()
            file.write(data)
            file.flush()
            os.fdatasync(file.fileno())
            seconds.append(time.perf_counter() - start)
    return nbytes / min(seconds)
