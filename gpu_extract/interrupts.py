"""The start of the command line, and what Ctrl-C and SIGTERM do to it.

Imports nothing that takes time, so that it can be set up first.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

__all__ = ["STARTED", "discard_stdout", "install", "raised"]

# The report of a run counts from here.
STARTED = time.perf_counter()

# Makes the cursor visible again, which a progress bar hides.
SHOW_CURSOR = b"\r\x1b[?25h"

# Whether the next signal raises KeyboardInterrupt.
_is_raised = False


def install() -> None:
    """Make SIGINT and SIGTERM end the process at once with one line on stderr and exit code 3, except in `raised`.

    Raising KeyboardInterrupt would not do: imports may swallow it or turn it into another exception. A signal that the
    parent ignores, as ``nohup`` and ``trap '' INT`` do, stays ignored.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def discard_stdout() -> None:
    """Discard what is still to be printed, after printing has failed; the interpreter would try again at its end."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


@contextmanager
def raised() -> Iterator[None]:
    """Let the first signal in the block raise KeyboardInterrupt; a second one ends the process at once."""
    global _is_raised
    _is_raised = True
    try:
        yield
    finally:
        _is_raised = False


def _stop(number: int, frame: FrameType | None) -> None:
    global _is_raised
    if _is_raised:
        _is_raised = False
        raise KeyboardInterrupt
    os.write(2, (SHOW_CURSOR if os.isatty(2) else b"") + b"gpu-extract: stopped\n")
    os._exit(3)
