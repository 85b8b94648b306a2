"""Reading again what could not be read for a moment: a file server restarts, all file handles are in use."""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable
from typing import TypeVar

from gpu_extract.errors import SourceError
from gpu_extract.messages import announce

__all__ = ["read_patiently"]

Out = TypeVar("Out")

# Seconds before each further try; together less than Ctrl-C may take to stop a run.
PAUSES = (0.1, 0.4, 1.0)
PASSING = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "ESTALE", "EINTR", "EAGAIN", "EBUSY", "EMFILE", "ENFILE", "ENOMEM"),
        *("ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENOTCONN", "EREMOTEIO"),
    )
    if hasattr(errno, name)
)


def read_patiently(read: Callable[[], Out]) -> Out:
    """Return ``read()``, which is called again after a pause if it fails for a reason that may pass.

    Raises
    ------
    SourceError
        If it fails for another reason, or once too often.
    """
    for seconds in PAUSES:
        try:
            return read()
        except SourceError as error:
            if not _may_pass(error):
                raise
            announce("reading again in %g s: %s", seconds, error)
        time.sleep(seconds)
    return read()


def _may_pass(error: BaseException) -> bool:
    """Return whether an error of the operating system or the network that may pass is among the causes of an error."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, TimeoutError | ConnectionError):
            return True
        if isinstance(cause, OSError):
            # HDF5 has the number in its text only.
            in_text = re.search(r"errno = (\d+)", str(cause))
            if cause.errno in PASSING or (in_text is not None and int(in_text[1]) in PASSING):
                return True
        cause = cause.__cause__ or cause.__context__
    return False
