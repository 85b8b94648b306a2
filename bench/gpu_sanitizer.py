"""Run the kernels on a few cells under NVIDIA's compute-sanitizer, in processes of their own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TOOLS = ("memcheck", "racecheck")
# Where CUDA toolkits install it if it is not on PATH.
PLACES = (
    "/usr/local/cuda/bin/compute-sanitizer",
    "/usr/local/cuda/compute-sanitizer/compute-sanitizer",
    "/opt/cuda/bin/compute-sanitizer",
)
SUMMARY = re.compile(r"=+ ((?:ERROR|RACECHECK) SUMMARY: .*)")
# The exit code of the tools when they have found an error; the script itself never uses it.
FOUND = 86


def find_sanitizer() -> str | None:
    """Return the path of compute-sanitizer, or None."""
    roots = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    places = [shutil.which("compute-sanitizer"), *(f"{root}/bin/compute-sanitizer" for root in roots), *PLACES]
    return next((place for place in places if place and Path(place).is_file()), None)


def run_sanitizer(deadline: float, program: str | None = None) -> list[dict[str, Any]]:
    """Return the result of each tool; tools not finished at ``deadline`` (of `time.monotonic`) are skipped."""
    program = program or find_sanitizer()
    if program is None:
        reason = "compute-sanitizer is neither on PATH nor in the usual folders of the CUDA toolkit"
        return [{"name": tool, "skipped": reason} for tool in TOOLS]
    return [_run(program, tool, deadline) for tool in TOOLS]


def _run(program: str, tool: str, deadline: float) -> dict[str, Any]:
    script = Path(__file__).with_name("gpu_evidence.py")
    command = [program, "--tool", tool, "--error-exitcode", str(FOUND), sys.executable, str(script), "--sanitizer-case"]
    start = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(deadline - start, 1))
    except subprocess.TimeoutExpired:
        return {"name": tool, "skipped": "no time left"}
    text = done.stdout + done.stderr
    summaries = SUMMARY.findall(text)
    ok = done.returncode == 0 and bool(summaries)
    result = {"name": tool, "ok": ok, "lines": summaries, "seconds": round(time.monotonic() - start, 1)}
    return result if ok else {**result, "exit_code": done.returncode, "tail": text.splitlines()[-40:]}
