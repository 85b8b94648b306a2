"""What the system is asked for besides reading and writing: room on the disk, and to take memory back.

Where it cannot, it does nothing, and all works without.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os

__all__ = ["preallocate", "preallocate_beyond_end", "trim_beyond_end", "trim_heap"]

FALLOC_FL_KEEP_SIZE = 1


def preallocate(descriptor: int, nbytes: int) -> None:
    """Take the room on the disk at once: twice as fast to write to, and a full disk is known before the first cell."""
    try:
        os.posix_fallocate(descriptor, 0, nbytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise


def preallocate_beyond_end(descriptor: int, start: int, nbytes: int) -> bool:
    """Take room on the disk for a file beyond its end, which is then written to in half the time; whether it is there.

    The file stays as long as it is.
    """
    with contextlib.suppress(OSError, TypeError, AttributeError):
        place = ctypes.c_long(start), ctypes.c_long(nbytes)
        if ctypes.CDLL(None).fallocate(descriptor, FALLOC_FL_KEEP_SIZE, *place) == 0:
            return True
        trim_beyond_end(descriptor)  # a part of it may have been there
    return False


def trim_beyond_end(descriptor: int) -> None:
    """Give back room beyond a file's end."""
    os.ftruncate(descriptor, os.fstat(descriptor).st_size)


def trim_heap() -> None:
    """Give freed memory back to the system; glibc keeps it."""
    with contextlib.suppress(OSError, TypeError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
