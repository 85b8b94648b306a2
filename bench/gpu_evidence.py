"""Collect evidence from a real GPU in less than five minutes: see GPU_EVIDENCE.md.

    python bench/gpu_evidence.py [--out DIR] [--wheels DIR] [--prepared DIR] [--stages A,B] [--seed N]
    python bench/gpu_evidence.py --prepare DIR      computes what --prepared takes; without a GPU
    python bench/gpu_evidence.py --dry-run          runs every stage on the CPU, in small

Each stage runs in a process of its own that has a limit of time, and writes ``DIR/NN-STAGE.json`` as it goes. So an
illegal access, a hang or a crash can spoil one stage, not more. This process does not import CUDA. After each stage,
all results so far are in ``DIR/gpu-NAME.json``. The exit code is 1 if there is no GPU or if anything failed. Missed
targets and skipped entries are reported, but are not failures.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gpu_record import CONTEXT_LOST, Record

Figures = dict[str, Any]

ROOT = Path(__file__).resolve().parents[1]
CHILD = Path(__file__).with_name("gpu_stages.py")
POLL_SECONDS = 0.05
# SIGINT and SIGTERM that have come. They are acted on between two looks at the processes: an exception in the middle of
# a launch would leave a process that nobody knows.
signals: list[int] = []
# After it is killed: a process that waits for the driver may not die.
DYING_SECONDS = 3.0
# The dry run shares a few cores and compiles for the CPU.
DRY_RUN_FACTOR = 6.0


class Stage(NamedTuple):
    """A stage and its limits.

    Parameters
    ----------
    name : str
    seconds : float
        Then it is killed.
    processes : int
        Each runs a part of it.
    last_step : float, seconds
        So long before it is killed, it begins no step any more, but finishes the one that it is in.
    """

    name: str
    seconds: float
    processes: int = 1
    last_step: float = 3.0


# The most precious first. The limits add up to less than 300 s with installing the wheels; a stage also has the time
# that earlier ones have not used.
WHEELS_SECONDS = 15.0
STAGES = (
    Stage("facts", 10),
    Stage("compile", 30),
    Stage("smoke", 15),
    Stage("kernels", 40),
    Stage("ncu", 30),
    Stage("labels", 15),
    Stage("host", 40, last_step=10.0),
    Stage("checks", 45, processes=4, last_step=5.0),
    Stage("sanitizers", 30),
    Stage("baselines", 25, last_step=10.0),
)


@dataclass
class Part:
    """One process of a stage, and the files of its results and its output."""

    command: list[str]
    record: Path
    log: Path
    process: subprocess.Popen[bytes] | None = None
    outcome: str = ""
    done_at_start: int = 0
    output: IO[bytes] | None = field(default=None, repr=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything, write the JSON files, print the table, and return the exit code."""
    options = parse(arguments)
    if options.prepare:
        return prepare(options.prepare, small=options.dry_run)
    try:
        stages = chosen(options.stages)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: signals.append(number))
    begin = time.time()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work:
        evidence = gather(options, stages, Path(work), begin)
    if evidence is None:
        return 1
    print(table(evidence))
    return 0 if evidence["ok"] else 1


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    lines = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(description=lines[0])
    parser.add_argument("--out", type=Path, default=Path("gpu-evidence"), help="folder to write (gpu-evidence)")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to use, for a machine without a network")
    parser.add_argument("--prepared", type=Path, help="folder that --prepare has written")
    parser.add_argument("--prepare", type=Path, metavar="DIR", help="compute tiles for --prepared, and stop")
    parser.add_argument("--stages", help=f"only these: {','.join(stage.name for stage in STAGES)}")
    parser.add_argument("--seed", type=int, help="of the random cells; by default another one each time")
    parser.add_argument("--dry-run", action="store_true", help="run every stage on the CPU, in small")
    return parser.parse_args(arguments)


def chosen(names: str | None) -> list[Stage]:
    """Return the stages to run; facts are always among them.

    Raises
    ------
    ValueError
        If there is no such stage.
    """
    wanted = [stage.name for stage in STAGES] if names is None else ["facts", *names.split(",")]
    known = {stage.name for stage in STAGES}
    for name in wanted:
        if name not in known:
            raise ValueError(f"--stages has {name!r}; it must be of {', '.join(stage.name for stage in STAGES)}")
    return [stage for stage in STAGES if stage.name in wanted]


def prepare(folder: Path, *, small: bool) -> int:
    """Compute the tiles for ``--prepared``."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    import gpu_smoke

    paths = gpu_smoke.prepare(folder, small=small)
    print(f"{len(paths)} files in {folder}, {sum(path.stat().st_size for path in paths) / 1e6:.1f} MB")
    return 0


def gather(options: argparse.Namespace, stages: Sequence[Stage], work: Path, begin: float) -> Figures | None:
    """Run the stages and return the evidence; None if there is no GPU, which is then said."""
    factor = DRY_RUN_FACTOR if options.dry_run else 1.0
    seed = int.from_bytes(os.urandom(4)) if options.seed is None else options.seed
    say(f"seed {seed}")
    environment = {**os.environ, "CUPY_CACHE_DIR": str(work / "cupy"), "PYTHONPATH": search_path(work)}
    run: Figures = {"date": dt.date.today().isoformat(), "seed": seed, "dry_run": options.dry_run, **checkout()}
    deadline = begin
    if options.wheels:
        deadline += WHEELS_SECONDS * factor
        run["wheels"] = install(options.wheels, work / "packages", deadline)
    results: dict[str, Figures] = {}
    for stage in stages:
        deadline += stage.seconds * factor
        say(f"{stage.name} ...")
        results[stage.name] = run_stage(stage, options, work, environment, seed, deadline)
        evidence = assemble({**run, "seconds": round(time.time() - begin, 1)}, results)
        path = options.out / f"gpu-{slug(evidence['facts'].get('gpu') or 'unknown')}.json"
        reason = why_no_gpu(results["facts"])
        if reason:
            say(f"no evidence without a GPU: {reason}")
            return None
        write(path, evidence)
    say(f"written to {path}")
    return evidence


def why_no_gpu(facts: Figures) -> str | None:
    """Return why the GPU could not be opened; None if it was."""
    opened = next((entry for entry in facts["entries"] if entry["name"] == "GPU"), None)
    if opened is None:
        return ", ".join(facts["outcomes"])
    return opened["error"] if failed(opened) else None


def search_path(work: Path) -> str:
    """Return the folders of Python modules: this checkout first, then the wheels."""
    return os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "bench", work / "packages")))


def install(wheels: Path, target: Path, deadline: float) -> Figures:
    """Unpack the wheels into a folder, where they change nothing on this machine; return what happened."""
    names = sorted({path.name.split("-")[0] for path in wheels.glob("*.whl")})
    if not names:
        return {"ok": False, "error": f"there are no wheels in {wheels}"}
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-compile", "--quiet"]
    command += ["--find-links", str(wheels), "--target", str(target), *names]
    start = time.time()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(deadline - start, 1))
    except subprocess.TimeoutExpired:
        return {"ok": False, "error": "not finished in time"}
    error = None if done.returncode == 0 else " ".join(done.stderr.splitlines()[-3:])
    return {"ok": error is None, "packages": names, "seconds": round(time.time() - start, 1), "error": error}


# One stage


def run_stage(
    stage: Stage, options: argparse.Namespace, work: Path, environment: dict[str, str], seed: int, deadline: float
) -> Figures:
    """Run the processes of a stage until they are done or the deadline (of `time.time`); return its results."""
    start = time.time()
    number = [each.name for each in STAGES].index(stage.name)
    earlier = sorted(str(path) for path in options.out.glob("[0-9][0-9]-*.json") if int(path.name[:2]) < number)
    parts = []
    for k in range(stage.processes):
        name = f"{number:02}-{stage.name}" + (f"-{k}" if stage.processes > 1 else "")
        record, log = options.out / f"{name}.json", options.out / f"{name}.log"
        record.unlink(missing_ok=True)
        log.unlink(missing_ok=True)
        command = [sys.executable, str(CHILD), stage.name, "--record", str(record), "--work", str(work)]
        command += ["--until", str(deadline - stage.last_step), "--seed", str(seed)]
        command += ["--part", str(k), str(stage.processes), *(["--shim"] if options.dry_run else [])]
        command += ["--prepared", str(options.prepared)] if options.prepared else []
        parts.append(Part([*command, "--known", *earlier], record, log))
    supervise(parts, environment, deadline)
    records = [Record(part.record) for part in parts]
    return {
        "seconds": round(time.time() - start, 1),
        "limit_seconds": stage.seconds,
        "outcomes": sorted({part.outcome for part in parts}),
        "deaths": [death for record in records for death in record.deaths],
        "entries": [entry for record in records for entry in record.entries],
    }


def supervise(parts: Sequence[Part], environment: dict[str, str], deadline: float) -> None:
    """Run processes until all have an outcome. After one that died, another continues with the steps that are left."""
    for part in parts:
        launch(part, environment)
    try:
        while any(not part.outcome for part in parts):
            if signals:
                sys.exit(128 + signals[0])
            for part in parts:
                if not part.outcome:
                    look_after(part, environment, deadline)
            time.sleep(POLL_SECONDS)
    finally:  # also if this process is interrupted
        for part in parts:
            if not part.outcome:
                kill(part)


def launch(part: Part, environment: dict[str, str]) -> None:
    """Start the process of a part, as the leader of a session that can be killed with all that it starts."""
    part.done_at_start = len(Record(part.record).done)
    part.output = part.log.open("ab")
    part.process = subprocess.Popen(
        part.command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=part.output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def look_after(part: Part, environment: dict[str, str], deadline: float) -> None:
    """Set the outcome of a part whose process has ended or whose time is over, or start a process that goes on."""
    assert part.process is not None
    code = part.process.poll()
    if code is None and time.time() < deadline:
        return
    if code is None:
        is_dead = kill(part)
        Record(part.record).note_death("killed at the limit of time")
        part.outcome = "killed at the limit of time" if is_dead else "at the limit of time; could not be killed"
        return
    kill(part)  # what it has started and left
    record = Record(part.record)
    if code == 0 and record.finished:
        part.outcome = "ok"
        return
    unclear = len(record.running) > 1 and not record.careful  # one at a time will show which step it was
    blamed = record.note_death(how_it_ended(code))
    progress = blamed or unclear or len(record.done) > part.done_at_start
    if progress and time.time() < deadline:
        launch(part, environment)
        return
    part.outcome = f"{how_it_ended(code)}: {last_line(part.log)}"


def kill(part: Part) -> bool:
    """Kill the process of a part and all that it has started; return whether it is dead."""
    assert part.process is not None
    for pid in session(part.process.pid):
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(pid, signal.SIGKILL)
    if part.output is not None:
        part.output.close()
    try:
        part.process.wait(DYING_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True


def session(leader: int) -> list[int]:
    """Return the processes of a session, in whatever group they are; the leader itself first."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            # After the name in parentheses: state, parent, group, session.
            if int(path.read_text(errors="replace").rpartition(")")[2].split()[3]) == leader:
                found.append(int(path.parent.name))
    return sorted(found, key=lambda pid: pid != leader)


def how_it_ended(code: int) -> str:
    """Return what an exit code means."""
    if code == CONTEXT_LOST:
        return "CUDA's context was lost"
    if code < 0:
        return f"the process died of {signal.Signals(-code).name}"
    return f"the process ended with exit code {code}"


def last_line(log: Path) -> str:
    """Return the last line of a log, where Python names an exception."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1].strip() if lines else "it printed nothing"


# What is written


def assemble(run: Figures, results: dict[str, Figures]) -> Figures:
    """Return the contents of the JSON file: facts, hashes of the sources, the stages, and their outcome."""
    entries = [(name, entry) for name, stage in results.items() for entry in stage["entries"]]
    ends = [(name, end) for name, stage in results.items() for end in (*stage["outcomes"], *stage["deaths"])]
    broken = [f"{name}: {end}" for name, end in ends if end != "ok"]
    return {
        "ok": not broken and not any(failed(entry) for _, entry in entries),
        "failed": [*broken, *(f"{name}: {entry['name']}" for name, entry in entries if failed(entry))],
        "skipped": [f"{name}: {entry['name']}: {entry['skipped']}" for name, entry in entries if "skipped" in entry],
        "missed": [entry["name"] for _, entry in entries if any(t["met"] is False for t in entry.get("targets", ()))],
        "facts": gpu_facts(results),
        "run": run,
        "sources": sources(),
        "stages": results,
    }


def failed(entry: Figures) -> bool:
    """Return whether a check or a timing failed; timings that were measured have no ``ok``."""
    return entry.get("ok") is False


def gpu_facts(results: dict[str, Figures]) -> Figures:
    """Return the properties of the GPU; empty if they could not be read."""
    return next((entry for entry in results["facts"]["entries"] if "gpu" in entry), {})


def sources() -> Figures:
    """Return the SHA-256 of each file that determines what runs on the GPU: kernels and their Python launchers."""
    package = ROOT / "gpu_extract" / "backends"
    launchers = [*package.glob("cuda/*.py"), package / "program_tables.py"]
    kernels = [*(ROOT / "kernels").glob("*.cu"), *(ROOT / "kernels").glob("*.cuh")]
    return {
        "kernels": {path.name: digest(path) for path in sorted(kernels)},
        "launchers": {str(path.relative_to(package)): digest(path) for path in sorted(launchers)},
    }


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def checkout() -> Figures:
    """Return the commit, and whether files have changed since; None without git."""
    commit = output_of(["git", "-C", str(ROOT), "rev-parse", "HEAD"])
    changed = output_of(["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no"])
    return {"commit": commit, "changed_since": None if commit is None else bool(changed)}


def output_of(command: list[str]) -> str | None:
    """Return what a program prints, or None if it is missing, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def write(path: Path, evidence: Figures) -> None:
    """Write a JSON file that is complete at any time."""
    work = path.with_suffix(".part")
    work.write_text(json.dumps(evidence, indent=1) + "\n", encoding="utf-8")
    os.replace(work, path)


def slug(name: str) -> str:
    """Return the name of a GPU for a file name: ``NVIDIA H200`` becomes ``h200``."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().removeprefix("nvidia")).strip("-")


def say(line: str) -> None:
    """Print how far the run is."""
    print(line, file=sys.stderr, flush=True)


def table(evidence: Figures) -> str:
    """Return a summary of the evidence as text."""
    facts = evidence["facts"]
    versions = f"CuPy {facts.get('cupy')}, cuCIM {facts.get('cucim')}"
    lines = [f"{facts.get('gpu')}, {versions}, {evidence['run']['seconds']} s"]
    for name, stage in evidence["stages"].items():
        entries = stage["entries"]
        n_failed, n_skipped = sum(map(failed, entries)), sum("skipped" in entry for entry in entries)
        count = f"{len(entries) - n_failed - n_skipped} done, {n_failed} failed, {n_skipped} skipped"
        lines.append(f"{name}: {', '.join(stage['outcomes'])}; {count}; {stage['seconds']} s")
        lines += [f"  died: {death}" for death in stage["deaths"]]
        lines += [f"  {entry['name']}: {in_words(entry)}" for entry in entries if in_words(entry)]
    lines.append("ok" if evidence["ok"] else f"FAILED: {', '.join(evidence['failed'])}")
    return "\n".join(lines)


def in_words(entry: Figures) -> str:
    """Return the main figures of an entry as text; empty for a check that passed."""
    if "skipped" in entry:
        return f"skipped: {entry['skipped']}"
    if failed(entry):
        return f"FAILED: {entry['error']}"
    parts = [entry["about"]] if "about" in entry else []
    if entry.get("cells_per_s"):
        parts.append(f"{entry['cells_per_s']:,.0f} cells/s")
    if entry.get("GB_per_s"):
        parts.append(f"{entry['GB_per_s']:,.1f} GB/s")
    if entry.get("warp_instructions"):
        parts.append(f"{entry['warp_instructions']:,.0f} warp instructions per cell")
    if entry.get("measured_by_predicted"):
        same = "" if entry["predicted"]["for_these_kernels"] else " (of other kernels)"
        parts.append(f"{entry['measured_by_predicted']:.3f} of the prediction{same}")
    for target in entry.get("targets", ()):
        verdict = {True: "met", False: "MISSED", None: "not measured"}[target["met"]]
        sign, limit = ("<=", target["at_most"]) if "at_most" in target else (">=", target["at_least"])
        value = "?" if target["measured"] is None else f"{target['measured']:,.3g}"
        parts.append(f"{target['figure']} {value} ({sign} {limit:,g} {verdict})")
    return "; ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
