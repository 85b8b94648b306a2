"""What the user of the command line sees while a run goes on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gpu_extract.pipeline import Progress

__all__ = ["progress_on_stderr"]

# In a log a line this often, in seconds, tells that the run is alive without filling the disk.
LOG_INTERVAL = 10.0


@contextmanager
def progress_on_stderr(*, quiet: bool) -> Iterator[Progress]:
    """A `Progress`: a bar with cells per second and time left on a terminal, plain lines in a log."""
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
        left = (total - n_cells) / speed if speed else 0.0
        print(f"{n_cells:,} of {total:,} cells, {speed:,.0f} cells/s, {left:,.0f} s left", file=sys.stderr)

    return progress


def _rate() -> Callable[[int], float]:
    """A function from cells done to cells per second since it was made."""
    start = time.monotonic()
    return lambda n_cells: n_cells / max(time.monotonic() - start, 1e-9)
