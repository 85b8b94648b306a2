"""Nothing that is read is ever written over."""

from __future__ import annotations

import os
from collections.abc import Iterable

from gpu_extract.errors import OutputError

__all__ = ["REMAINS", "check_not_read"]

# The suffixes of the files next to an output during a run. --overwrite removes those of an unfinished run.
REMAINS = (".partial", ".journal")


def check_not_read(output: str | os.PathLike[str], read: Iterable[str | os.PathLike[str]]) -> None:
    """Check that an output, or a file next to it during the run, is none of the files that are read.

    Links are followed, and hard links are recognized.

    Parameters
    ----------
    output : path
    read : iterable of path
        Files, folders and URLs.

    Raises
    ------
    OutputError
        If it is.
    """
    written = [os.fspath(output), *(os.fspath(output) + suffix for suffix in REMAINS)]
    for path in read:
        for target in written:
            if _is_same(os.fspath(path), target):
                what = "is" if target == written[0] else f"would write {target}, which is"
                raise OutputError(f"output {written[0]} {what} one of the inputs; choose another name")


def _is_same(path: str, other: str) -> bool:
    if os.path.realpath(path) == os.path.realpath(other):
        return True
    try:
        return os.path.samefile(path, other)
    except OSError:  # one of them does not exist
        return False
