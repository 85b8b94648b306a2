"""Check launches in a child process: by thread orders, ThreadSanitizer, or AddressSanitizer with UBSan."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cuda_on_cpu.building import build_kernels, build_runtime
from cuda_on_cpu.launcher import CpuModule

__all__ = ["Launch", "run_checked"]

SANITIZERS = {"orders": None, "thread": "libtsan.so", "address": "libasan.so"}
OPTIONS = {
    "TSAN_OPTIONS": "halt_on_error=1:exitcode=66",
    "ASAN_OPTIONS": "detect_leaks=0:exitcode=66",
    "UBSAN_OPTIONS": "print_stacktrace=1:exitcode=66",
}
CHILD = "import sys; from cuda_on_cpu.checked import check_job; check_job(sys.argv[1])"


@dataclass(frozen=True)
class Launch:
    """One call of a kernel. Launches that share an array also share it in the child process."""

    name: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    args: tuple
    shared_mem: int = 0


def run_checked(
    source: str, names: Sequence[str], launches: Sequence[Launch], check: str, *, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run launches in a child process and return the completed process; the arrays of this process do not change.

    The exit code is 0 if no error was found; otherwise stderr explains the error. Kernels that crash, or are still
    running after `timeout` seconds (exit code 124), do not affect the test process.

    `check` is "orders" (the results must not depend on the order of threads), "thread" (races between threads of a
    block, reported with both lines) or "address" (accesses outside of arrays, undefined behaviour).
    """
    library = SANITIZERS[check]
    kind = check if library else None
    build_runtime(kind)  # in this process, so that the compiler runs without the sanitizer
    build_kernels(source, tuple(names), kind, fuse=True)
    tests = str(Path(__file__).parent.parent)
    environment = {**os.environ, **OPTIONS}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (tests, os.environ.get("PYTHONPATH"))))
    if library:
        environment["LD_PRELOAD"] = _preload(library)
    with tempfile.NamedTemporaryFile(suffix=".pickle") as job:
        pickle.dump((source, tuple(names), list(launches), kind), job)
        job.flush()
        command = [sys.executable, "-c", CHILD, job.name]
        done = _run(command, environment, timeout)
        if "unexpected memory mapping" in done.stderr:  # gcc 12's sanitizer with 32 bits of address randomization
            done = _run(["setarch", "-R", *command], environment, timeout)
    return done


def _run(command: list[str], environment: dict[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"still running after {timeout} seconds")


def _preload(library: str) -> str:
    # Preload libstdc++, too: the sanitizer looks up its exceptions at startup.
    queries = ("gcc", f"-print-file-name={library}"), ("gcc", "-print-file-name=libstdc++.so")
    paths = (subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() for command in queries)
    return ":".join(str(Path(path).resolve()) for path in paths)


def check_job(path: str) -> None:
    """Run the launches of a job; called in the child process."""
    with open(path, "rb") as job:
        source, names, launches, kind = pickle.load(job)
    module = CpuModule(source, names, sanitize=kind)
    first = _run_launches(module, launches)
    if kind:
        return
    for order, seed in (("reverse", 1), ("shuffled", 1), ("shuffled", 2)):
        module.config(order=order, seed=seed)
        for number, (one, other) in enumerate(zip(first, _run_launches(module, launches), strict=True)):
            if one.tobytes() != other.tobytes():
                sys.exit(f"array {number} differs between thread orders forward and {order}")


def _run_launches(module: CpuModule, launches: Sequence[Launch]) -> list[np.ndarray]:
    """Run launches on copies of their arrays and return the copies in order of appearance."""
    # Unpickled arrays can be parts of larger objects; copies are separate allocations, whose ends the sanitizer checks.
    copies: dict[int, np.ndarray] = {}
    for launch in launches:
        args = [
            copies.setdefault(id(value), value.copy()) if isinstance(value, np.ndarray) else value
            for value in launch.args
        ]
        kernel = module.get_function(launch.name)
        kernel.max_dynamic_shared_size_bytes = max(launch.shared_mem, kernel.max_dynamic_shared_size_bytes)
        kernel(launch.grid, launch.block, args, launch.shared_mem)
    return list(copies.values())
