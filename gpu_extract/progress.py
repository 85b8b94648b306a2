"""Progress of a run on stderr, for the command line."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gpu_extract.pipeline import Progress

__all__ = ["progress_on_stderr"]

# Seconds between two lines in a log: often enough to show that the run is alive, without filling the disk.
LOG_INTERVAL = 10.0


@contextmanager
def progress_on_stderr(*, quiet: bool) -> Iterator[Progress]:
    """Yield a `Progress` that shows a bar on a terminal, and prints plain lines in a log.

    Both show the cells per second and the remaining time. With ``quiet`` nothing is shown.
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
        rate = _rate()

        def progress(n_cells: int, total: int) -> None:
            bar.update(task, completed=n_cells, total=total, rate=f"{rate(n_cells):,.0f}")

        yield progress


def _log_lines() -> Progress:
    rate = _rate()
    last = time.monotonic()

    def progress(n_cells: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < LOG_INTERVAL and n_cells < total:
            return
        last, speed = now, rate(n_cells)
        remaining = (total - n_cells) / speed if speed else 0.0
        print(f"{n_cells:,} of {total:,} cells, {speed:,.0f} cells/s, {remaining:,.0f} s left", file=sys.stderr)

    return progress


def _rate() -> Callable[[int], float]:
    """Return a function that converts the number of finished cells to cells per second since this call."""
    start = time.monotonic()
    return lambda n_cells: n_cells / max(time.monotonic() - start, 1e-9)
