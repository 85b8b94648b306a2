"""A file that a user gave: what it is, told by its first bytes, and access that warnings when it changes."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import GpuExtractError, SourceError
from gpu_extract.sources.maps import SHARED
from gpu_extract.sources.names import cleaned

__all__ = ["READABLE", "SourceFile", "file_description", "file_format", "translated"]

READABLE = "this version reads OME-Zarr, SpatialData, TIFF, OME-TIFF, HDF5, .npy and .npz"
MAGIC = {
    b"\x93NUMPY": "npy",
    b"PK\x03\x04": "npz",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"II+\0": "tiff",
    b"MM\0+": "tiff",
    b"\x89HDF\r\n\x1a\n": "hdf5",
}
# Formats that users are likely to have, called by their names rather than unknown.
PICTURE_MAGIC = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG"}
VENDOR_MAGIC = {b"ZISRAWFILE": "CZI", b"\xda\xce\xbe\x0a": "ND2", b"p\0\0\0": "LIF"}
# Bytes at the beginning that tell the format.
N_HEAD = 64


class SourceFile:
    """A regular file, and what it was given as.

    It is opened anew for each read: a run may have more slides than a process may have open files.

    Parameters
    ----------
    path : str
    plane : str, optional
        The label plane it holds; None if it holds an image.

    Raises
    ------
    SourceError
        If there is no such file, or it is not a regular one.
    """

    def __init__(self, path: str, plane: str | None) -> None:
        self.path = path
        self.plane = plane
        with translated(f"{self} cannot be opened"):
            status = self._status()
        if stat.S_ISDIR(status.st_mode):
            raise SourceError(f"{self} is a folder; {READABLE}: give a file or a Zarr store in it")
        if not stat.S_ISREG(status.st_mode):
            raise SourceError(f"{self} is not a regular file (a pipe or a device?); copy it to a file first")
        self.nbytes = status.st_size
        self._stamp = _stamp(status)

    def __str__(self) -> str:
        return f"image {self.path}" if self.plane is None else f"{self.plane} label plane {self.path}"

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The file opened for reading, as long as it is the one whose headers were checked.

        Raises
        ------
        SourceError
        """
        with translated(f"{self} cannot be opened"):
            self._check_unchanged()
            stream = open(self.path, "rb")  # noqa: SIM115 - closed by the with below; only opening is translated
        with stream:
            yield stream

    def mapped(
        self,
        dtype: np.dtype[Any],
        offset: int,
        shape: tuple[int, ...],
        order: Literal["C", "F"] = "C",
        *,
        nbytes: int,
    ) -> NDArray[Any]:
        """A part of the file as a read-only array, of which ``nbytes`` will be read, when they are touched.

        Raises
        ------
        SourceError
        """
        with translated(f"{self} cannot be read"):
            self._check_unchanged()
            pixels: NDArray[Any] = np.ndarray(
                shape, dtype, SHARED.map(self.path, hash(self._stamp), nbytes), offset, order=order
            )
            return pixels

    def _check_unchanged(self) -> None:
        if _stamp(self._status()) != self._stamp:
            raise SourceError(f"{self} has changed since it was opened; run again once it is written")

    def _status(self) -> os.stat_result:
        try:
            return os.stat(self.path)
        except FileNotFoundError as cause:
            raise SourceError(f"{self} does not exist; check the path") from cause


def file_format(file: SourceFile) -> str:
    """``npy``, ``npz``, ``tiff``, ``hdf5`` or else ``vendor``, by the file's first bytes and never by its name.

    Raises
    ------
    SourceError
        If it is empty, text, or a picture whose colours or losses no one should take for measurements.
    """
    head = _head(file)
    for magic, name in MAGIC.items():
        if head.startswith(magic):
            return name
    if not head or head.startswith(tuple(PICTURE_MAGIC)) or _is_text(head):
        raise SourceError(f"{file} {_description(head)}; {READABLE}: convert it to OME-TIFF")
    return "vendor"


def file_description(file: SourceFile) -> str:
    """What a file that is none of our formats is, to go on after its name."""
    return _description(_head(file))


@contextmanager
def translated(problem: str, remedy: str = "check the file, or export it again") -> Iterator[None]:
    """Whatever goes wrong inside becomes one line of `SourceError`.

    The libraries that parse files answer damage with exceptions of any kind, ZeroDivisionError among them.
    """
    try:
        yield
    except GpuExtractError:
        raise
    except Exception as cause:
        detail = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
        first_line = (detail.splitlines() or [type(cause).__name__])[0]
        raise SourceError(f"{problem}: {cleaned(first_line)[:200]}; {remedy}") from cause


def _description(head: bytes) -> str:
    if not head:
        return "is empty (0 bytes)"
    for magic, name in (PICTURE_MAGIC | VENDOR_MAGIC).items():
        if head.startswith(magic):
            return f"is a {name} file"
    if _is_text(head):
        return f"is a text file that begins with {head.decode('utf-8', 'ignore')[:40]!r}"
    return f"is of an unknown format (it begins with the bytes {head[:8].hex(' ')})"


def _is_text(head: bytes) -> bool:
    # The last character may be cut in two.
    text = head.decode("utf-8", "ignore")
    return len(text.encode()) > len(head) - 4 and all(c.isprintable() or c.isspace() for c in text)


def _head(file: SourceFile) -> bytes:
    with file.open() as stream:
        return stream.read(N_HEAD)


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns
