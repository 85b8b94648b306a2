"""Locks on files, where the system and the file system have them.

NFS without lockd, Lustre without ``-o flock`` and some FUSE file systems do not; nor does Windows have flock(2).
"""

from __future__ import annotations

import errno
import importlib
from contextlib import suppress
from typing import Any

__all__ = ["lock", "unlock"]

# What flock(2) reports on file systems without locks; 524 is Linux' own ENOTSUPP, which NFS leaks.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, 524)


def lock(descriptor: int, *, shared: bool = False) -> bool:
    """Lock an open file without waiting, against every other run or, ``shared``, against writers.

    Returns
    -------
    bool
        Whether it is locked; False if there are no locks here.

    Raises
    ------
    BlockingIOError
        If another run holds a lock that excludes this one.
    """
    try:
        fcntl: Any = importlib.import_module("fcntl")
    except ImportError:  # Windows
        return False
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True


def unlock(descriptor: int) -> None:
    """Release a lock now. Closing the file is not enough if the process has forked: the child has the lock, too."""
    with suppress(ImportError, OSError):
        fcntl: Any = importlib.import_module("fcntl")
        fcntl.flock(descriptor, fcntl.LOCK_UN)
