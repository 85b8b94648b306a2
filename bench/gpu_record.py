"""`Record`: the results of a process of `gpu_evidence.py`, on disk after each step, and `run_steps`, which fills it."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

Figures = dict[str, Any]

# The exit code of a process that gave up because CUDA's context is lost; see `run_steps`.
CONTEXT_LOST = 75


class Step(NamedTuple):
    """A part of a stage with its name; ``run`` returns figures, or several entries that have names of their own."""

    name: str
    run: Callable[[], Figures | list[Figures]]


class Record:
    """The entries of one process, in a JSON file that is complete at any time.

    Parameters
    ----------
    path : Path
        Is read if it exists: then the process continues one that died.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self.entries: list[Figures] = found.get("entries", [])
        self.done: list[str] = found.get("done", [])  # names of finished steps
        self.running: list[str] = found.get("running", [])
        self.finished: bool = found.get("finished", False)  # all steps are done or skipped
        self.deaths: list[str] = found.get("deaths", [])  # what became of earlier processes, one line each
        self.lost: str | None = found.get("lost")  # the error after which the process gave up

    def begin(self, name: str) -> None:
        """Note that a step runs."""
        with self._lock:
            self.running.append(name)
            self._save()

    def end(self, name: str, entries: list[Figures]) -> None:
        """Add the entries of a step."""
        with self._lock:
            self.entries += entries
            self.done.append(name)
            if name in self.running:
                self.running.remove(name)
            self._save()

    def finish(self) -> None:
        """Note that the process has done all of its steps."""
        with self._lock:
            self.finished = True
            self._save()

    def lose(self, error: str) -> None:
        """Note the error after which nothing can run in this process."""
        with self._lock:
            self.lost = error
            self._save()

    def note_death(self, how: str) -> bool:
        """Blame the step that ran when the process died, if it is the only one; return whether one was blamed.

        If several ran, they stay to be done; the next process runs one at a time (see `careful`).
        """
        with self._lock:
            reason = f"{how}: {self.lost}" if self.lost else how
            suspects, self.running, self.lost = self.running, [], None
            self.deaths.append(f"{reason}; while running: {', '.join(suspects) or 'nothing'}")
            if len(suspects) == 1:
                self.entries.append({"name": suspects[0], "ok": False, "error": reason})
                self.done.append(suspects[0])
            self._save()
            return len(suspects) == 1

    @property
    def careful(self) -> bool:
        """Whether an earlier process died, so that steps run one at a time."""
        return bool(self.deaths)

    def _save(self) -> None:
        names = ("entries", "done", "running", "finished", "deaths", "lost")
        text = json.dumps({name: getattr(self, name) for name in names}, indent=1, default=_plain)
        work = self._path.with_suffix(".part")
        work.write_text(text + "\n", encoding="utf-8")
        os.replace(work, self._path)


def run_steps(
    record: Record,
    steps: Sequence[Step],
    until: float,
    *,
    threads: int = 1,
    is_lost: Callable[[], bool] = lambda: False,
) -> None:
    """Run the steps that the record does not have yet; those not begun at ``until`` (of `time.time`) are skipped.

    A step that raises has failed; the others go on. But if ``is_lost()`` then says that CUDA's context is lost, all
    others would fail, too: the process ends, and its steps remain in the record as running.
    """

    def run(step: Step) -> None:
        if time.time() > until:
            record.end(step.name, [{"name": step.name, "skipped": "no time left"}])
            return
        record.begin(step.name)
        start = time.perf_counter()
        try:
            found = step.run()
            entries = found if isinstance(found, list) else [{"name": step.name, "ok": True, **found}]
        except ModuleNotFoundError as error:
            entries = [{"name": step.name, "skipped": str(error)}]
        except Exception as error:  # whatever a GPU or a library raises; the next step may work
            if is_lost():
                record.lose(_line(error))
                os._exit(CONTEXT_LOST)  # from any thread, without the clean-up of a context that is gone
            entries = [{"name": step.name, "ok": False, "error": _line(error)}]
        if entries:
            entries[-1]["took_seconds"] = round(time.perf_counter() - start, 3)
        record.end(step.name, entries)

    left = [step for step in steps if step.name not in record.done]
    with ThreadPoolExecutor(1 if record.careful else threads) as workers:
        list(workers.map(run, left))
    record.finish()


def _line(error: Exception) -> str:
    """Return an error as one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:2000]


def _plain(value: Any) -> Any:
    """Return a NumPy number as Python's."""
    return value.item()
