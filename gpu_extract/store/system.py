"""What the system does if it is asked to, and Python has no call for; where it cannot, nothing happens."""

from __future__ import annotations

import contextlib
import ctypes
import os

__all__ = ["give_back_memory", "give_back_room", "take_room"]

FALLOC_FL_KEEP_SIZE = 1


def take_room(descriptor: int, start: int, nbytes: int) -> bool:
    """Take room on the disk for a file beyond its end, which is then written to in half the time; whether it is there.

    The file stays as long as it is.
    """
    with contextlib.suppress(OSError, TypeError, AttributeError):
        place = ctypes.c_long(start), ctypes.c_long(nbytes)
        if ctypes.CDLL(None).fallocate(descriptor, FALLOC_FL_KEEP_SIZE, *place) == 0:
            return True
        give_back_room(descriptor)  # a part of it may have been there
    return False


def give_back_room(descriptor: int) -> None:
    """Give back room beyond a file's end."""
    os.ftruncate(descriptor, os.fstat(descriptor).st_size)


def give_back_memory() -> None:
    """Give freed memory back to the system; glibc keeps it."""
    with contextlib.suppress(OSError, TypeError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
