"""Progress of a run on stderr, for the command line."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gpu_extract.pipeline import Progress

__all__ = ["RecentRate", "progress_on_stderr"]

# Seconds between two lines in a log: often enough to show that the run is alive, without filling the disk.
LOG_INTERVAL = 10.0


@contextmanager
def progress_on_stderr(*, quiet: bool) -> Iterator[Progress]:
    """Yield a `Progress` that shows a bar on a terminal, and prints plain lines in a log.

    Both show the cells per second of the last seconds, and the remaining time at that rate. With ``quiet`` nothing is
    shown.
    """
    if quiet:
        yield lambda n_cells, total: None
    elif sys.stderr.isatty():
        with _bar() as progress:
            yield progress
    else:
        yield _log_lines()


@contextmanager
def _bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("extracting"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]} cells/s"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("extracting", total=None, rate="-")
        rate = RecentRate()

        def progress(n_cells: int, total: int) -> None:
            speed = rate.update(n_cells)
            bar.update(task, completed=n_cells, total=total, rate="-" if speed is None else f"{speed:,.0f}")

        yield progress


def _log_lines() -> Progress:
    rate = RecentRate()
    last = time.monotonic()

    def progress(n_cells: int, total: int) -> None:
        nonlocal last
        now, speed = time.monotonic(), rate.update(n_cells)
        if now - last < LOG_INTERVAL and n_cells < total:
            return
        last = now
        print(f"{n_cells:,} of {total:,} cells{_pace(total - n_cells, speed)}", file=sys.stderr)

    return progress


def _pace(n_remaining: int, speed: float | None) -> str:
    """Return the cells per second and the remaining time as text; empty while they are unknown."""
    return f", {speed:,.0f} cells/s, {n_remaining / speed:,.0f} s left" if speed else ""


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
        """Record the number of cells finished by now; return the rate, None before the second record."""
        now, marks = self._clock(), self._marks
        marks.append((now, n_cells))
        while len(marks) > 2 and marks[1][0] <= now - self._seconds:
            marks.popleft()
        elapsed = now - marks[0][0]
        return (n_cells - marks[0][1]) / elapsed if elapsed > 0 else None
