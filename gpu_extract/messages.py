"""What the package says while it works: phases, such as "reading labels", and warnings.

Both go to the logger ``gpu_extract``, phases as INFO. Warnings are Python warnings, too. Whoever shows progress listens
to the phases by `listening`.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from gpu_extract.errors import ExtractionWarning

__all__ = ["Listener", "announce", "listening", "warn"]

log = logging.getLogger("gpu_extract")
# Without a handler, logging itself would print warnings to stderr, where Python's warnings are.
log.addHandler(logging.NullHandler())

PACKAGE = os.path.dirname(__file__) + os.sep

# Called with a phase's name, which stays the same while its text counts, and with its text.
Listener = Callable[[str, str], None]

# All runs of the process share them: a kernel is compiled for whichever thread needs it first.
_listeners: list[Listener] = []


def announce(phase: str, *values: object) -> None:
    """Say what happens from now on.

    Parameters
    ----------
    phase : str
        A format such as ``"reading labels of slide %d of %d"``.
    *values
        The values of the format.
    """
    log.info(phase, *values)
    for listener in tuple(_listeners):
        listener(phase, phase % values if values else phase)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call the listener with every phase that is announced within the block, in any thread."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def warn(lines: Iterable[str]) -> None:
    """Issue an `ExtractionWarning` for each line, at the place outside the package from which it was called."""
    depth, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PACKAGE):
        depth, frame = depth + 1, frame.f_back
    for line in lines:
        log.warning("%s", line)
        warnings.warn(line, ExtractionWarning, stacklevel=depth)
