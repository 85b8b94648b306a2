"""NVIDIA's compute-sanitizer and ncu (Nsight Compute): where they are, how they are called, and what they print."""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

Figures = dict[str, Any]

SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")
# Where CUDA toolkits install programs that are not on PATH.
PLACES = {
    "compute-sanitizer": ("bin/compute-sanitizer", "compute-sanitizer/compute-sanitizer"),
    "ncu": ("bin/ncu", "nsight-compute/ncu", "nsight-compute-*/ncu"),
}
SUMMARY = re.compile(r"=+ ((?:ERROR|RACECHECK) SUMMARY: .*)")
# The exit code of the sanitizers when they have found an error; our own scripts never use it.
FOUND = 86
# Sections of ncu: instructions, issue and pipes, reasons of stalls, L1, L2 and DRAM, occupancy.
SECTIONS = (
    "SpeedOfLight",
    "ComputeWorkloadAnalysis",
    "InstructionStats",
    "SchedulerStats",
    "WarpStateStats",
    "MemoryWorkloadAnalysis",
    "Occupancy",
    "LaunchStats",
)
INSTRUCTIONS = "smsp__inst_executed.sum"
METRICS = (INSTRUCTIONS, "gpu__time_duration.sum", "sm__cycles_elapsed.max", "dram__bytes.sum")


def find(program: str) -> str | None:
    """Return the path of a program of the CUDA toolkit, or None."""
    on_path = shutil.which(program)
    if on_path:
        return on_path
    roots = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    for root in (*roots, "/usr/local/cuda", "/opt/cuda", "/opt/nvidia"):
        for place in PLACES[program]:
            found = sorted(path for path in Path(root).glob(place) if path.is_file())
            if found:
                return str(found[-1])
    return None


def run_for(command: Sequence[str], seconds: float) -> tuple[int | None, str]:
    """Run a program and return its exit code and output; after ``seconds`` it is killed, and the code is None."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    # What it starts is in its group, and killed with it. The group is in the session that `gpu_evidence` kills.
    with subprocess.Popen(command, process_group=0, text=True, errors="replace", **pipes) as process:
        try:
            text, _ = process.communicate(timeout=None if seconds == float("inf") else max(seconds, 0))
            return process.returncode, text
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            text, _ = process.communicate()
            return None, text


def sanitize(program: str, tool: str, command: Sequence[str], seconds: float) -> Figures:
    """Run a command under a tool of compute-sanitizer and return what it found."""
    # The errors of the API are CuPy's attempts, such as asking for the attributes of host memory.
    options = ["--tool", tool, "--report-api-errors", "no", "--error-exitcode", str(FOUND)]
    code, text = run_for([program, *options, *command], seconds)
    if code is None:
        return {"skipped": f"not finished after {seconds:.0f} s", "tail": text.splitlines()[-60:]}
    summaries = SUMMARY.findall(text)
    if code == 0 and summaries:
        return {"ok": True, "lines": summaries}
    error = f"exit code {code}, {'; '.join(summaries) or 'no summary'}"
    return {"ok": False, "error": error, "tail": text.splitlines()[-60:]}


def profile(program: str, command: Sequence[str], log: Path, seconds: float) -> list[Figures]:
    """Run a command under ncu and return the metrics of each launch of an extraction kernel, in order.

    Raises
    ------
    RuntimeError
        If ncu fails, also when it is asked for a few metrics only; the message is its own.
    """
    sections = [option for section in SECTIONS for option in ("--section", section)]
    failures = []
    for wanted in (sections, []):  # a section that this ncu does not know fails all of them
        options = ["--csv", "--page", "raw", "--print-units", "base", "--clock-control", "none"]
        options += ["--kernel-name", "regex:extract", "--metrics", ",".join(METRICS), *wanted]
        call = [program, *options, "--log-file", str(log), *command]
        code, output = run_for(call, seconds / 2)
        if code is None:
            failures.append(f"not finished after {seconds / 2:.0f} s")
            continue
        text = log.read_text(encoding="utf-8") if log.exists() else ""
        launches = launches_of(text)
        if launches:
            return launches
        errors = [line for line in (text + output).splitlines() if "ERROR" in line or "Error:" in line]
        failures.append(f"exit code {code}: {' '.join(errors[-3:])}")
    raise RuntimeError(f"ncu failed: {'; '.join(failures)}")


def launches_of(text: str) -> list[Figures]:
    """Return the rows of ncu's CSV: the name of the kernel and all metrics that are numbers."""
    lines = text.splitlines()
    start = next((n for n, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return []
    rows = list(csv.DictReader(io.StringIO("\n".join(line for line in lines[start:] if line.startswith('"')))))
    launches = []
    for row in rows:
        if not (row.get("ID") or "").isdigit():  # the row of units
            continue
        metrics = {name: _number(value) for name, value in row.items() if name and "__" in name}
        numbers = {name: value for name, value in metrics.items() if value is not None}
        launches.append({"kernel": row.get("Kernel Name", ""), "metrics": numbers})
    return launches


def _number(text: str | None) -> float | None:
    try:
        return float((text or "").replace(",", ""))
    except ValueError:
        return None
