"""The stages of `gpu_evidence.py`, each in a process of its own, which writes its results as it goes.

    python bench/gpu_stages.py STAGE --record FILE.json --work DIR [--until T] [--seed N] [--shim] ...

``--shim`` runs everything on the CPU, in small.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# The package of this checkout, and the slides and tolerances of the tests, whatever is installed.
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import gpu_baselines  # noqa: E402
import gpu_checks  # noqa: E402
import gpu_smoke  # noqa: E402
import gpu_timings  # noqa: E402
import gpu_tools  # noqa: E402
import machine  # noqa: E402
import numpy as np  # noqa: E402
import synthetic  # noqa: E402
from gpu_predictions import counted_cells, predicted  # noqa: E402
from gpu_record import Record, Step, run_steps  # noqa: E402
from gpu_timings import LARGE_SPACING, SMALL, SPACING, Bench, Launches, RecordingDevice, Size  # noqa: E402

from gpu_extract.backends.cuda.registry import ADD_LABELS, Kernel, all_kernels, extract_kernel  # noqa: E402

Figures = dict[str, Any]

PACKAGES = ("numpy", "scipy", "numba", "h5py", "isal", "anndata", "scikit-image", "tifffile", "torch")
# Threads of a process of checks: each reference takes one core, and streams that interfere with each other are found.
CHECK_THREADS = 4
# The cells of the profile whose instructions were also counted without a GPU.
COUNTED = "counted cells"


@dataclass(frozen=True)
class Run:
    """What a stage needs.

    Parameters
    ----------
    work : Path
        A folder for what stages share: slides, and the figures of earlier stages.
    until : float
        Of `time.time`; later, no step begins.
    part : (int, int)
        Which part of the steps, of how many.
    """

    work: Path
    until: float = float("inf")
    seed: int = 0
    shim: bool = False
    prepared: Path | None = None
    part: tuple[int, int] = (0, 1)
    known: tuple[Figures, ...] = ()

    @cached_property
    def gpu(self) -> Any:
        """The GPU, or its stand-in."""
        return open_gpu(shim=self.shim)

    @property
    def size(self) -> Size:
        """The size of the bench."""
        return SMALL if self.shim else Size()

    def bench(self, spacing: int = SPACING, size: Size | None = None) -> Bench:
        """Return the bench with cells that far apart."""
        size = size or self.size
        base = base_slide(self.work, size.base_size, spacing)
        return Bench(self.gpu, base, size, self.seed, self.known)

    def is_lost(self) -> bool:
        """Return whether this process has opened the GPU and nothing can run on it any more."""
        return "gpu" in self.__dict__ and bool(self.gpu.is_broken())

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of this script in another process."""
        shim = ["--shim"] if self.shim else []
        return [sys.executable, __file__, *arguments, "--work", str(self.work), "--seed", str(self.seed), *shim]


def open_gpu(*, shim: bool) -> Any:
    """Return the first GPU, or the CPU in its place."""
    if shim:
        from cuda_on_cpu.evidence import ShimEvidence

        return ShimEvidence()
    from gpu_device import Gpu

    return Gpu()


def base_slide(work: Path, size: int, spacing: int) -> synthetic.Slide:
    """Return the synthetic slide that is repeated; the first stage makes it, later ones read it."""
    path = work / f"slide-{size}-{spacing}.npz"
    if path.exists():
        with np.load(path) as file:
            return synthetic.Slide(*(file[name] for name in synthetic.Slide._fields))
    slide = synthetic.make_slide(size, spacing)
    part = path.with_suffix(".part.npz")
    np.savez(part, **slide._asdict())
    os.replace(part, path)
    return slide


# The stages


def facts(run: Run) -> list[Step]:
    """Facts of the GPU and of the host."""
    return [
        Step("GPU", lambda: {"device": run.gpu.name}),
        Step("properties", lambda: run.gpu.facts()),
        Step("nvidia-smi", lambda: run.gpu.smi()),
        Step("host", host_facts),
    ]


def host_facts() -> Figures:
    """Return processor, cores, memory, and versions."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "processor": machine.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "free_memory_bytes": gpu_timings.free_host_nbytes(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": versions,
    }


def compile_kernels(run: Run) -> list[Step]:
    """Compile all kernels in parallel, into the cache that the later stages use."""
    on_host = Step("kernels of the host", partial(compile_on_host, run))
    if run.shim:
        some = (extract_kernel(np.dtype(np.uint16), np.dtype(np.float16)), ADD_LABELS["uint32"])
        return [on_host, *(Step(kernel.expression, partial(compile_here, run.gpu, kernel)) for kernel in some)]
    kernels = all_kernels()
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    pool = ProcessPoolExecutor(min(len(kernels), len(os.sched_getaffinity(0))), context)
    futures = {kernel: pool.submit(compile_in_worker, kernel) for kernel in kernels}
    return [on_host, *(Step(kernel.expression, future.result) for kernel, future in futures.items())]


def compile_on_host(run: Run) -> Figures:
    """Compile the numba kernels that encode files and judge the pipeline, which takes up to 30 s, into their cache."""
    start = time.perf_counter()
    code, text = gpu_tools.run_for(run.command("--case", "host-kernels"), run.until - time.time())
    if code is None:
        return {"skipped": "not finished in time; later stages compile them"}
    if code:
        raise RuntimeError(" ".join(text.splitlines()[-1:]))
    return {"compile_seconds": round(time.perf_counter() - start, 2)}


def compile_in_worker(kernel: Kernel) -> Figures:
    """Compile a kernel in a process of the pool, which keeps its CUDA context."""
    if not _WORKER:
        _WORKER.append(open_gpu(shim=False))
    return compile_here(_WORKER[0], kernel)


_WORKER: list[Any] = []


def compile_here(gpu: Any, kernel: Kernel) -> Figures:
    """Compile a kernel; return its resources and the time."""
    start = time.perf_counter()
    gpu.compile(kernel)
    seconds = time.perf_counter() - start
    return {"compile_seconds": round(seconds, 2), **gpu.kernel_facts(kernel, 0)}


def smoke(run: Run) -> list[Step]:
    """Compare a few cells of each recipe with tiles that were computed beforehand."""
    return gpu_smoke.smoke_steps(run.gpu, run.prepared, small=run.shim)


def kernels(run: Run) -> list[Step]:
    """Time copies and kernels."""
    return gpu_timings.kernel_steps(run.bench(), lambda: run.bench(LARGE_SPACING))


def profile(run: Run) -> list[Step]:
    """Run the launches of each recipe under ncu, and compare the instructions with those counted without a GPU."""
    command = run.command("--case", "profile")
    program = None if run.shim else gpu_tools.find("ncu")

    def measured() -> list[Figures]:
        if program is None:
            raise ModuleNotFoundError("ncu is neither on PATH nor in the usual folders of the CUDA toolkit")
        launches = gpu_tools.profile(program, command, run.work / "ncu.log", run.until - time.time())
        cases = json.loads((run.work / "profile-case.json").read_text(encoding="utf-8"))
        return profile_entries(launches, cases)

    return [Step("ncu", partial(without_tool, command) if run.shim else measured)]


def profile_entries(launches: Sequence[Figures], cases: Sequence[Figures]) -> list[Figures]:
    """Return the launches with their recipes, and instructions per cell, predicted beside measured."""
    entries, left = [], list(launches)
    for case in cases:
        own, left = left[: len(case["kernels"])], left[len(case["kernels"]) :]
        executed = [launch["metrics"][gpu_tools.INSTRUCTIONS] for launch in own]
        if len(own) < len(case["kernels"]):
            raise ValueError(f"ncu saw {len(launches)} launches, not those of {cases}")
        figures = {"warp_instructions": sum(executed) / case["n_cells"]}
        if case["cells"] == COUNTED:
            figures["predicted"] = predicted(case["preset"])
        if figures.get("predicted"):
            counted = figures["predicted"]["warp_instructions"]
            figures["measured_by_predicted"] = figures["warp_instructions"] / counted
        entries.append(
            {"name": f"ncu, {case['preset']}, {case['cells']}", "ok": True, **case, **figures, "launches": own}
        )
    return entries


def label_statistics(run: Run) -> list[Step]:
    """Time label statistics."""
    return gpu_timings.label_steps(run.bench())


def host(run: Run) -> list[Step]:
    """Time the pipeline, and what limits it on this host."""
    nbytes = (1 << 22) if run.shim else machine.NBYTES

    def speeds() -> Figures:
        disk = {"folder": tempfile.gettempdir(), "disk_write_GB_per_s": machine.disk_write(nbytes) / 1e9}
        return {"memory_copy_GB_per_s": machine.memory_copy(nbytes) / 1e9, **disk}

    return [Step("memory and disk", speeds), *gpu_timings.host_steps(run.bench())]


def checks(run: Run) -> list[Step]:
    """Compare everything with the CPU."""
    wanted = gpu_checks.few_checks() if run.shim else gpu_checks.checks(run.seed)
    k, n = run.part
    return [Step(check.name, partial(check.run, run.gpu)) for check in wanted[k::n]]


def sanitizers(run: Run) -> list[Step]:
    """Run a few cells under each tool of compute-sanitizer, all at the same time."""
    command = run.command("--case", "sanitizer")
    if run.shim:
        return [Step("without a tool", partial(without_tool, command))]
    program = gpu_tools.find("compute-sanitizer")

    def sanitize(tool: str) -> Figures:
        if program is None:
            raise ModuleNotFoundError("compute-sanitizer is neither on PATH nor in the usual folders of the toolkit")
        return gpu_tools.sanitize(program, tool, command, run.until - time.time())

    return [Step(tool, partial(sanitize, tool)) for tool in gpu_tools.SANITIZERS]


def without_tool(command: Sequence[str]) -> Figures:
    """Run a case as it runs under a tool, but without it."""
    code, text = gpu_tools.run_for(command, float("inf"))
    if code:
        raise RuntimeError(" ".join(text.splitlines()[-3:]))
    return {"without_tool": True}


def baselines(run: Run) -> list[Step]:
    """Time what the fused kernel is compared with."""
    return gpu_baselines.baseline_steps(run.bench())


STAGES: dict[str, tuple[Callable[[Run], list[Step]], int]] = {
    "facts": (facts, 1),
    "compile": (compile_kernels, 64),
    "smoke": (smoke, 1),
    "kernels": (kernels, 1),
    "ncu": (profile, 1),
    "labels": (label_statistics, 1),
    "host": (host, 1),
    "checks": (checks, CHECK_THREADS),
    "sanitizers": (sanitizers, len(gpu_tools.SANITIZERS)),
    "baselines": (baselines, 1),
}


# What runs under a tool, and what is timed as a new process


def sanitizer_case(run: Run) -> int:
    """Run the checks for the sanitizers one by one; return the exit code."""
    wanted = gpu_checks.few_checks()[:2] if run.shim else gpu_checks.sanitizer_checks()
    failures = 0
    for check in wanted:
        try:
            check.run(run.gpu)
        except Exception as error:  # the tool shall see the other checks, too
            failures += 1
            print(f"{check.name}: {type(error).__name__}: {error}", file=sys.stderr)
    return min(failures, 1)


def profile_case(run: Run) -> int:
    """Launch the kernels of each recipe for the cells that were counted, and for all cells of a slide."""
    bench = run.bench(size=run.size._replace(repeats=1))
    cases = []

    def note(preset: str, cells: str, n_cells: int, device: RecordingDevice) -> None:
        kernels = [kernel.expression for kernel, _ in device.launched]
        cases.append({"preset": preset, "cells": cells, "n_cells": n_cells, "kernels": kernels})

    for preset in gpu_timings.PRESETS:
        device = RecordingDevice(run.gpu.open_stream(), multiprocessors=1)
        window, batch, program = gpu_smoke.task(preset, 31, small=True) if run.shim else counted_cells(preset)
        gpu_checks.extract_on(device, window, batch, program)
        note(preset, COUNTED, len(batch), device)
    for preset in gpu_timings.PRESETS:
        device = RecordingDevice(run.gpu.device)
        Launches(bench, bench.program(preset)).run(device)
        run.gpu.device.synchronize()
        note(preset, "all cells", len(bench.ids), device)
    (run.work / "profile-case.json").write_text(json.dumps(cases), encoding="utf-8")
    return 0


def start_up(run: Run) -> int:
    """Print the seconds of the first and the second batch in this process, and separately those of the imports."""
    start = time.perf_counter()
    gpu = run.gpu
    imported = time.perf_counter()
    task = gpu_checks.ht29("standard", 31 if run.shim else 128)
    ready = time.perf_counter()
    backend = gpu.open_backend()
    backend.extract(*task, None)
    first = time.perf_counter()
    backend.extract(*task, None)
    second = time.perf_counter()
    figures = {
        "import_cupy_seconds": imported - start,
        "first_batch_seconds": first - ready,
        "second_batch_seconds": second - first,
    }
    print(json.dumps(figures))
    return 0


def host_kernels(run: Run) -> int:
    """Compile the kernels of the host, or load them."""
    from gpu_extract.backends.cpu.deflate import deflate
    from gpu_extract.backends.cpu.warm import warm

    deflate(np.zeros((2, 5, 16, 16), np.float16))
    if not run.shim:
        warm("uint16", "uint32")
    return 0


CASES = {
    "sanitizer": sanitizer_case,
    "profile": profile_case,
    "start-up": start_up,
    "host-kernels": host_kernels,
}


def main() -> int:
    """Run a stage or a case, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", nargs="?", choices=STAGES)
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--known", type=Path, nargs="*", default=[], help="records of earlier stages")
    parser.add_argument("--prepared", type=Path)
    parser.add_argument("--until", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", type=int, nargs=2, default=(0, 1))
    parser.add_argument("--shim", action="store_true")
    options = parser.parse_args()
    known = tuple(entry for path in options.known if path.exists() for entry in Record(path).entries)
    run = Run(options.work, options.until, options.seed, options.shim, options.prepared, tuple(options.part), known)
    if options.case:
        return CASES[options.case](run)
    steps, threads = STAGES[options.stage]
    record = Record(options.record)
    run_steps(record, steps(run), run.until, threads=threads, is_lost=run.is_lost)
    return 0


if __name__ == "__main__":
    sys.exit(main())
