"""Collect evidence from a real GPU: its properties, all checks of the cuda backend, timings, and memory checkers.

    python bench/gpu_evidence.py [--json FILE] [--quick]

Runs from a checkout and takes at most five minutes. Writes one JSON file (by default
``bench/results/gpu-<name>.json``) and prints a short table. The exit code is 1 if there is no GPU or if anything
failed. Missed targets and skipped entries are reported, but do not count as failures.
"""

from __future__ import annotations

import argparse
import datetime as dt
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# For the slides and tolerances of the tests, and for the package itself if it is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.append(str(Path(__file__).resolve().parents[1]))

from gpu_checks import checks, run_checks, sanitizer_checks
from gpu_sanitizer import run_sanitizer
from gpu_timings import Bench, run_timings

from gpu_extract import backends
from gpu_extract.backends.cuda import backend as cuda
from gpu_extract.backends.cuda import source as cuda_source

Figures = dict[str, Any]

ROOT = Path(__file__).resolve().parents[1]
# Seconds from the start after which a section starts no new entry; the last section is stopped then.
DEADLINES = {"checks": 110.0, "timings": 225.0, "sanitizer": 285.0}
PACKAGES = ("numpy", "scipy", "h5py", "isal", "anndata", "gpu-extract")


class Gpu:
    """The first GPU, for the checks and timings.

    Attributes
    ----------
    libraries : Libraries
        CuPy and cupyx.scipy.ndimage.
    device : CudaDevice
        One stream, with CuPy's own memory pool; timings measure this stream.
    """

    def __init__(self) -> None:
        self.libraries = cuda.reference_libraries()
        self._cp = self.libraries.xp
        self._stream = self._cp.cuda.Stream()
        self.device = cuda.CudaDevice(0, self._cp.get_default_memory_pool(), self._stream)

    def open_stream(self) -> cuda.CudaDevice:
        """Open a new `Device` without a pool: each array is an allocation, so that a memory checker sees its bounds."""
        return cuda.CudaDevice(0, _NoPool(self._cp))

    def open_backend(self) -> backends.Backend:
        """Open the cuda backend as a user gets it."""
        return backends.choose("cuda")

    def upload(self, array: Any) -> Any:
        """Return a copy on the device; the transfer is complete when this returns."""
        copy = self.device.to_device(array)
        self.device.synchronize()
        return copy

    def to_host(self, array: Any) -> Any:
        """Return a copy in host memory."""
        return self._cp.asnumpy(array)

    def seconds(self, work: Callable[[], Any], repeats: int, warm_up: int = 1) -> list[float]:
        """Return how long each repeat took on the device, by events on its stream."""
        for _ in range(warm_up):
            with self._stream:
                work()
        self.device.synchronize()
        times = []
        for _ in range(repeats):
            start, end = self._cp.cuda.Event(), self._cp.cuda.Event()
            with self._stream:
                start.record(self._stream)
                work()
                end.record(self._stream)
            self.device.synchronize()
            times.append(self._cp.cuda.get_elapsed_time(start, end) / 1000)
        return times

    def free_nbytes(self) -> int:
        """Return the bytes of free device memory."""
        return int(self._cp.cuda.runtime.memGetInfo()[0])

    def release(self) -> None:
        """Free the memory that is kept in pools."""
        self._cp.get_default_memory_pool().free_all_blocks()
        self._cp.get_default_pinned_memory_pool().free_all_blocks()

    def kernel_facts(self, kernel: Any, shared_nbytes: int) -> Figures:
        """Return the resources of a compiled kernel, and how many of its blocks fit on a multiprocessor."""
        function = cuda.compiled(0, kernel, cuda.CudaDevice(0, self._cp.get_default_memory_pool()).shared_nbytes_limit)
        blocks = self._cp.cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor(
            function.kernel.ptr, kernel.threads, shared_nbytes
        )
        return {
            "registers": function.num_regs,
            "local_bytes": function.local_size_bytes,
            "static_shared_bytes": function.shared_size_bytes,
            "dynamic_shared_bytes": shared_nbytes,
            "blocks_per_multiprocessor": blocks,
        }

    def facts(self) -> Figures:
        """Return the properties of the GPU, and the versions of driver and libraries."""
        runtime = self._cp.cuda.runtime
        properties = runtime.getDeviceProperties(0)
        return {
            "name": properties["name"].decode(),
            "compute_capability": f"{properties['major']}.{properties['minor']}",
            "multiprocessors": properties["multiProcessorCount"],
            "memory_bytes": properties["totalGlobalMem"],
            "driver": first_line(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
            "driver_cuda": runtime.driverGetVersion(),
            "runtime_cuda": runtime.runtimeGetVersion(),
            "nvrtc": ".".join(map(str, self._cp.cuda.nvrtc.getVersion())),
            "cupy": self._cp.__version__,
        }


class _NoPool:
    """A replacement for `cupy.cuda.MemoryPool` that allocates directly."""

    def __init__(self, cp: Any) -> None:
        self._cp = cp

    def malloc(self, nbytes: int) -> Any:
        return self._cp.cuda.memory.MemoryPointer(self._cp.cuda.memory.Memory(nbytes), 0)


def main() -> int:
    """Run everything, write the JSON file, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="file to write; by default bench/results/gpu-<name>.json")
    parser.add_argument("--quick", action="store_true", help="fewer checks, and a slide of a quarter of the size")
    parser.add_argument("--start-up", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--sanitizer-case", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    reason = backends.why_not("cuda")
    if reason:
        print(f"no evidence without a GPU: {reason}", file=sys.stderr)
        return 1
    if arguments.start_up:
        print(json.dumps(start_up()))
        return 0
    if arguments.sanitizer_case:
        return report_failures(run_checks(Gpu(), sanitizer_checks(), deadline=float("inf")))
    gpu = Gpu()
    evidence = gather(gpu, quick=arguments.quick)
    path = arguments.json or ROOT / "bench" / "results" / f"gpu-{slug(evidence['facts']['gpu']['name'])}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(evidence, indent=1) + "\n", encoding="utf-8")
    print(table(evidence))
    return 0 if evidence["ok"] else 1


def gather(gpu: Any, *, quick: bool) -> Figures:
    """Run all sections, one after the other, each until its deadline, and return the evidence."""
    begin = time.monotonic()
    ends = {name: begin + seconds for name, seconds in DEADLINES.items()}
    print("checks ...", file=sys.stderr, flush=True)
    checked = run_checks(gpu, checks(quick=quick), ends["checks"])
    gpu.release()
    print("timings ...", file=sys.stderr, flush=True)
    try:
        bench = Bench(gpu, 4096, 2 if quick else 4)
    except Exception as error:  # keep the results of the checks
        timed, notes = [{"name": "the slide", "ok": False, "error": f"{type(error).__name__}: {error}"}], []
    else:
        timed, notes = run_timings(bench, ends["timings"]), [bench.about, *bench.notes]
    print("compute-sanitizer ...", file=sys.stderr, flush=True)
    sanitized = run_sanitizer(ends["sanitizer"])
    facts = {**facts_of_the_host(), "gpu": gpu.facts(), "quick": quick, "seconds": round(time.monotonic() - begin, 1)}
    return assemble(facts, {"checks": checked, "timings": timed, "sanitizer": sanitized}, notes)


def assemble(facts: Figures, sections: dict[str, list[Figures]], notes: list[str]) -> Figures:
    """Return the contents of the JSON file: facts, hashes of the sources, the sections, and their outcome."""
    entries = [entry for section in sections.values() for entry in section]
    return {
        "ok": not any(failed(entry) for entry in entries),
        "failed": [entry["name"] for entry in entries if failed(entry)],
        "skipped": [f"{entry['name']}: {entry['skipped']}" for entry in entries if "skipped" in entry],
        "missed": [entry["name"] for entry in entries if any(t["met"] is False for t in entry.get("targets", ()))],
        "notes": notes,
        "facts": facts,
        "sources": sources(),
        **sections,
    }


def failed(entry: Figures) -> bool:
    """Return whether a check or a timing failed; timings that were measured have no ``ok``."""
    return entry.get("ok") is False


def report_failures(results: list[Figures]) -> int:
    """Print the failures and return the exit code."""
    wrong = [result for result in results if failed(result)]
    for result in wrong:
        print(f"{result['name']}: {result['error']}", file=sys.stderr)
    return 1 if wrong else 0


def sources() -> Figures:
    """Return the SHA-256 of each file that determines what runs on the GPU: kernels and their Python launchers."""
    folder = Path(backends.__file__).parent
    launchers = sorted([*folder.glob("cuda/*.py"), folder / "program_tables.py"])
    hashes = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in launchers}
    return {"kernels": cuda_source.fingerprint(), "launchers": hashes}


def facts_of_the_host() -> Figures:
    """Return facts about the machine without its GPU: versions of packages, commit, date."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    commit = first_line(["git", "-C", str(ROOT), "rev-parse", "HEAD"])
    changed = first_line(["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no"])
    return {
        "date": dt.date.today().isoformat(),
        "commit": commit,
        "changed_since": None if commit is None else changed is not None,
        "python": platform.python_version(),
        "versions": versions,
        "cores": len(os.sched_getaffinity(0)),
    }


def first_line(command: list[str]) -> str | None:
    """Return the first line that a program prints, or None if it is missing, fails or prints nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else None


def slug(name: str) -> str:
    """Return the name of a GPU for a file name: ``NVIDIA H200`` becomes ``h200``."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().removeprefix("nvidia")).strip("-")


def start_up() -> Figures:
    """Return the seconds of the first and the second batch in this process, and separately those of the imports."""
    start = time.perf_counter()
    cuda.reference_libraries()
    imported = time.perf_counter()
    from gpu_checks import ht29

    task = ht29("standard", 128)
    ready = time.perf_counter()
    backend = backends.choose("cuda")
    backend.extract(*task, None)
    first = time.perf_counter()
    backend.extract(*task, None)
    second = time.perf_counter()
    return {
        "import_cupy_seconds": imported - start,
        "first_batch_seconds": first - ready,
        "second_batch_seconds": second - first,
    }


def table(evidence: Figures) -> str:
    """Return a summary of the evidence as text."""
    facts, gpu = evidence["facts"], evidence["facts"]["gpu"]
    lines = [f"{gpu['name']}, driver {gpu['driver']}, CuPy {gpu['cupy']}, {facts['seconds']} s"]
    lines += [f"note: {note}" for note in evidence["notes"]]
    for entry in evidence["timings"]:
        lines.append(f"{entry['name']:<34}{in_words(entry)}")
    for section in ("checks", "sanitizer"):
        results = evidence[section]
        n_ok, n_skipped = sum(r.get("ok", False) for r in results), sum("skipped" in r for r in results)
        lines.append(f"{section}: {n_ok} of {len(results)} passed, {n_skipped} skipped")
        lines += [f"  FAILED {r['name']}: {r.get('error') or r.get('lines')}" for r in results if failed(r)]
    lines.append("ok" if evidence["ok"] else f"FAILED: {', '.join(evidence['failed'])}")
    return "\n".join(lines)


def in_words(entry: Figures) -> str:
    """Return the main figures of a timing and its targets as text."""
    if "skipped" in entry:
        return f"skipped: {entry['skipped']}"
    if failed(entry):
        return f"FAILED: {entry['error']}"
    parts = []
    if "cells_per_s" in entry:
        parts.append(f"{entry['cells_per_s']:,.0f} cells/s")
    if "GB_per_s" in entry:
        parts.append(f"{entry['GB_per_s']:,.1f} GB/s")
    for target in entry["targets"]:
        verdict = {True: "met", False: "MISSED", None: "not measured"}[target["met"]]
        sign, limit = ("<=", target["at_most"]) if "at_most" in target else (">=", target["at_least"])
        value = "?" if target["measured"] is None else f"{target['measured']:,.3g}"
        parts.append(f"{target['figure']} {value} ({sign} {limit:,g} {verdict})")
    return "; ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
