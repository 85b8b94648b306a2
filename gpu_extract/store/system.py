"""Optional services of the operating system: preallocation of disk space, and trimming of the heap.

On systems without them these functions do nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os

__all__ = ["preallocate", "preallocate_beyond_end", "sync_data", "trim_beyond_end", "trim_heap"]

FALLOC_FL_KEEP_SIZE = 1


def preallocate(descriptor: int, nbytes: int) -> None:
    """Extend a file to ``nbytes`` and preallocate its disk space.

    Writes are then twice as fast, and a full disk is detected before the first cell.

    Raises
    ------
    OSError
        If there is not enough space.
    """
    if not hasattr(os, "posix_fallocate"):  # macOS
        os.ftruncate(descriptor, nbytes)
        return
    try:
        os.posix_fallocate(descriptor, 0, nbytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise


def preallocate_beyond_end(descriptor: int, start: int, nbytes: int) -> bool:
    """Preallocate disk space beyond the end of a file, without changing its size; writes are then twice as fast.

    Returns
    -------
    bool
        Whether the space was allocated. Otherwise a part of it may be; see `trim_beyond_end`.
    """
    with contextlib.suppress(OSError, TypeError, AttributeError):
        place = ctypes.c_long(start), ctypes.c_long(nbytes)
        allocated: bool = ctypes.CDLL(None).fallocate(descriptor, FALLOC_FL_KEEP_SIZE, *place) == 0
        return allocated
    return False


def sync_data(descriptor: int) -> None:
    """Make the data of a file durable, with as much of its metadata as reading needs."""
    sync = getattr(os, "fdatasync", os.fsync)  # macOS has fsync only
    sync(descriptor)


def trim_beyond_end(descriptor: int) -> None:
    """Release disk space beyond the end of a file."""
    os.ftruncate(descriptor, os.fstat(descriptor).st_size)


def trim_heap() -> None:
    """Return freed memory to the system; glibc keeps it otherwise."""
    with contextlib.suppress(OSError, TypeError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
