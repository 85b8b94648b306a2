"""The progress of a run on stderr: what happens, how much is done, and the remaining time."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from importlib.util import find_spec
from typing import Any, Protocol

from gpu_extract.messages import listening
from gpu_extract.pipeline import Progress

__all__ = ["RecentRate", "progress_on_stderr", "shown"]

# Seconds between two lines in a log: often enough to show that the run is alive, without filling the disk.
LOG_INTERVAL = 10.0
# A rate over a shorter time says nothing: the first batches are finished together.
MIN_SECONDS = 0.5
# Seconds after which a log shows what is going on.
TICK = 1.0


class Display(Protocol):
    """Shows the progress of one run."""

    def announce(self, phase: str, text: str) -> None:
        """Show what happens now; ``phase`` stays the same while ``text`` counts. Any thread may call it."""

    def update(self, n_done: int, total: int) -> None:
        """Show how many cells are done."""


@contextmanager
def progress_on_stderr(*, quiet: bool, doing: str = "extracting") -> Iterator[Progress]:
    """Show the phases announced within the block, and yield a `Progress` that shows the cells done.

    A terminal and a notebook get a bar, a log gets lines. Both show the cells per second of the last seconds, and the
    remaining time at that rate. With ``quiet`` nothing is shown.
    """
    if quiet:
        yield lambda n_done, total: None
        return
    with _display(doing) as display, listening(display.announce):
        yield display.update


def shown(progress: Progress | bool | None) -> AbstractContextManager[Progress]:
    """Return a context that yields the `Progress` of a ``progress`` parameter; True shows it on stderr."""
    return nullcontext(progress) if callable(progress) else progress_on_stderr(quiet=not progress)


def _display(doing: str) -> AbstractContextManager[Display]:
    if _is_terminal():
        return _terminal(doing)
    if "ipykernel" in sys.modules and find_spec("tqdm"):
        return _notebook(doing)
    return _log()


def _is_terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # none at all, as after 2>&-, a stand-in of a notebook, or a closed one
        return False


@contextmanager
def _terminal(doing: str) -> Iterator[Display]:
    """Show a bar of rich, and before the first cells are done the name of the phase beside a spinner."""
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[done]}"))
    bar = Bar(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True)
    with suppress(OSError):
        bar.start()
    try:
        yield _Terminal(doing, bar, bar.add_task("starting", total=None, done=""))
    finally:
        with suppress(OSError):  # the terminal may be gone
            bar.stop()


class _Terminal:
    def __init__(self, doing: str, bar: Any, task: Any) -> None:
        self._doing, self._bar, self._task, self._rate = doing, bar, task, RecentRate()

    def announce(self, phase: str, text: str) -> None:
        self._bar.update(self._task, description=text)

    def update(self, n_done: int, total: int) -> None:
        done = _counts(n_done, total, self._rate.update(n_done))
        self._bar.update(self._task, description=self._doing, completed=n_done, total=total, done=done)


@contextmanager
def _notebook(doing: str) -> Iterator[Display]:
    """Show a bar of tqdm, which notebooks draw."""
    from tqdm.auto import tqdm

    with tqdm(desc="starting", unit=" cells") as bar:
        yield _Notebook(doing, bar)


class _Notebook:
    def __init__(self, doing: str, bar: Any) -> None:
        self._doing, self._bar = doing, bar

    def announce(self, phase: str, text: str) -> None:
        self._bar.set_description(text)

    def update(self, n_done: int, total: int) -> None:
        if self._bar.total is None:
            self._bar.reset(total)  # so that its rate leaves out the phases before
        self._bar.set_description(self._doing, refresh=False)
        self._bar.update(n_done - self._bar.n)


@contextmanager
def _log() -> Iterator[Display]:
    """Print lines, which a thread does: a phase that lasts is shown even if nothing comes after it."""
    log, over = _Log(), threading.Event()

    def tick() -> None:
        while not over.wait(TICK):
            log.tick()

    thread = threading.Thread(target=tick, name="gpu-extract-progress", daemon=True)
    thread.start()
    try:
        yield log
    finally:
        over.set()
        thread.join()


class _Log:
    """Lines for a log: a phase once it lasts to the next `tick`, and counts every `LOG_INTERVAL` seconds.

    A short run has few lines, and one that fails at once has only the line of its error.
    """

    def __init__(self) -> None:
        self._rate, self._printed_at = RecentRate(), time.monotonic()
        self._now = self._printed = ("", "")  # phase and text

    def announce(self, phase: str, text: str) -> None:
        self._now = (phase, text)

    def update(self, n_done: int, total: int) -> None:
        self._now = ("cells", _counts(n_done, total, self._rate.update(n_done)))
        if n_done >= total:
            self._print()

    def tick(self) -> None:
        is_due = time.monotonic() - self._printed_at >= LOG_INTERVAL
        if self._now != self._printed and (self._now[0] != self._printed[0] or is_due):
            self._print()

    def _print(self) -> None:
        self._printed, self._printed_at = self._now, time.monotonic()
        # A full disk under the log, or `| head`, is no reason to stop a run; a closed stream raises ValueError.
        with suppress(OSError, ValueError, AttributeError):
            print(self._printed[1], file=sys.stderr, flush=True)


def _counts(n_done: int, total: int, speed: float | None) -> str:
    """Return the cells done as text; with the cells per second and the remaining time once they are known."""
    pace = f", {speed:,.0f} cells/s" if speed else ""
    left = f", {(total - n_done) / speed:,.0f} s left" if speed and n_done < total else ""
    return f"{n_done:,} of {total:,} cells{pace}{left}"


class RecentRate:
    """Cells per second over the last seconds.

    The first cells of a process arrive after the kernels have been compiled, so an average since the start would
    promise hours for a run of seconds.

    Parameters
    ----------
    seconds : float
        Length of the period.
    clock : callable
        Returns the time in seconds.
    """

    def __init__(self, seconds: float = 20.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._marks: deque[tuple[float, int]] = deque()

    def update(self, n_cells: int) -> float | None:
        """Record the number of cells finished by now; return the rate, None while it means nothing."""
        now, marks = self._clock(), self._marks
        marks.append((now, n_cells))
        while len(marks) > 2 and marks[1][0] <= now - self._seconds:
            marks.popleft()
        elapsed = now - marks[0][0]
        return (n_cells - marks[0][1]) / elapsed if elapsed >= MIN_SECONDS else None
