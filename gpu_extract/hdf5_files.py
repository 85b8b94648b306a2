"""Opening HDF5 files that are only read, on file systems with and without locks."""

from __future__ import annotations

import errno
import os

import h5py

__all__ = ["open_to_read"]


def open_to_read(path: str | os.PathLike[str]) -> h5py.File:
    """Open an HDF5 file for reading, without its lock where the file system has none.

    The default is tried first, because HDF5 refuses to open a file twice with different locking in one process.

    Raises
    ------
    BlockingIOError
        If another program has the file open for writing.
    OSError
        If it cannot be opened.
    """
    try:
        return h5py.File(path, "r")
    except OSError as error:
        text = str(error)
        if "unable to lock file" not in text:
            raise
        if os.strerror(errno.EAGAIN) in text:
            raise BlockingIOError(
                errno.EAGAIN, "it is open for writing in another program; close it there, or read a copy"
            ) from error
    return h5py.File(path, "r", locking=False)
