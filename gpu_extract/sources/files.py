"""Files given by the user: detection of the format, and access that fails if a file has changed."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import GpuExtractError, LibraryError, SourceError
from gpu_extract.libraries import library_error
from gpu_extract.sources import caches
from gpu_extract.sources.names import cleaned

__all__ = [
    "READABLE",
    "SourceFile",
    "Stamp",
    "absolute_path",
    "file_description",
    "file_format",
    "stamp_of",
    "translated",
]

READABLE = "this version reads OME-Zarr, SpatialData, TIFF, OME-TIFF, HDF5, .npy, .npz, PNG and JPEG"
MAGIC = {
    b"\x93NUMPY": "npy",
    b"PK\x03\x04": "npz",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"II+\0": "tiff",
    b"MM\0+": "tiff",
    b"\x89HDF\r\n\x1a\n": "hdf5",
}
PICTURE_MAGIC = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG"}
OME_MAGIC = (b"<?xml", b"\xef\xbb\xbf<?xml", b"<OME")  # perhaps the companion file of an OME-TIFF
# Other common formats, for messages.
VENDOR_MAGIC = {b"ZISRAWFILE": "CZI", b"\xda\xce\xbe\x0a": "ND2", b"p\0\0\0": "LIF"}
# Errors of the operating system that say nothing about the contents of a file. EINVAL does: a damaged offset.
OF_SYSTEM = {
    getattr(errno, name, None)
    for name in ("EACCES", "EAGAIN", "EIO", "EMFILE", "ENFILE", "ENOENT", "ENOMEM", "EPERM", "ESTALE", "ETIMEDOUT")
} - {None}
# Number of bytes at the beginning of a file by which the format is detected.
N_HEAD = 64

Stamp = tuple[int, int, int]  # inode, bytes, modification time in ns; differs once a file is written again


@dataclass(frozen=True)
class SourceFile:
    """A regular file, with the state that it had when it was opened first.

    It is opened again for each read: a run may have more slides than a process may have open files.

    Parameters
    ----------
    path : str
        As the user gave it.
    plane : str or None
        Name of the label plane it holds; None if it holds an image.
    absolute : str
        Absolute path, so that it can be opened from any working directory.
    nbytes : int
    stamp : Stamp
    """

    path: str
    plane: str | None
    absolute: str
    nbytes: int
    stamp: Stamp

    @classmethod
    def at(cls, path: str, plane: str | None) -> SourceFile:
        """Return the file at a path.

        Raises
        ------
        SourceError
            If there is no such file, or it is not a regular file.
        """
        subject = _subject(path, plane)
        with translated(subject, "cannot be opened"):
            absolute = absolute_path(path)
            status = _status(absolute, subject)
        if stat.S_ISDIR(status.st_mode):
            raise SourceError(f"{subject} is a folder; {READABLE}: give a file or a Zarr store in it")
        if not stat.S_ISREG(status.st_mode):
            raise SourceError(f"{subject} is not a regular file (a pipe or a device?); copy it to a file first")
        return cls(path, plane, absolute, status.st_size, stamp_of(status))

    def __str__(self) -> str:
        return _subject(self.path, self.plane)

    @property
    def key(self) -> tuple[str, Stamp]:
        """The key of its content in `caches`."""
        return self.absolute, self.stamp

    @property
    def is_remote(self) -> bool:
        """Whether it is read over a network, so that it cannot be mapped into memory."""
        return False

    def read_at(self, stream: BinaryIO, offset: int, nbytes: int) -> bytes:
        """Return bytes of the opened file at a position; it is thread-safe."""
        return os.pread(stream.fileno(), nbytes, offset)

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open the file for reading.

        Raises
        ------
        SourceError
            If it cannot be opened, or has changed since its headers were checked.
        """
        with translated(self, "cannot be opened"):
            self._check_unchanged()
            stream = open(self.absolute, "rb")  # noqa: SIM115 - closed by the `with` below; only errors of opening are translated
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
        """Return a part of the file as a read-only memory map, of which ``nbytes`` are about to be read.

        Raises
        ------
        SourceError
        """
        with translated(self, "cannot be read"):
            self._check_unchanged()
            whole = caches.MAPS.map(self.absolute, self.stamp, nbytes)
            pixels: NDArray[Any] = np.ndarray(shape, dtype, whole, offset, order=order)
            return pixels

    def _check_unchanged(self) -> None:
        if stamp_of(_status(self.absolute, self)) != self.stamp:
            raise SourceError(f"{self} has changed since it was opened; run again once it is written")


def stamp_of(status: os.stat_result) -> Stamp:
    """Return the stamp of a file from its status."""
    return status.st_ino, status.st_size, status.st_mtime_ns


def absolute_path(path: str) -> str:
    """Return an absolute path; ``..`` is kept, since its meaning depends on symbolic links."""
    return path if os.path.isabs(path) else os.path.join(os.getcwd(), path)


def file_format(file: SourceFile) -> str:
    """Return the format of a file, by its first bytes, not its name.

    It is ``npy``, ``npz``, ``tiff``, ``hdf5``, ``picture`` (PNG, JPEG), ``xml``, or else ``vendor``.

    Raises
    ------
    SourceError
        If it is empty or a text file.
    """
    head = _head(file)
    for magic, name in MAGIC.items():
        if head.startswith(magic):
            return name
    if head.startswith(tuple(PICTURE_MAGIC)):
        return "picture"
    if head.startswith(OME_MAGIC) and file.path.lower().endswith((".ome", ".xml")):
        return "xml"
    if not head or _is_text(head):
        raise SourceError(f"{file} {_description(head)}; {READABLE}: convert it to OME-TIFF")
    return "vendor"


def file_description(file: SourceFile) -> str:
    """Return what a file of another format is, as the end of a sentence that begins with the file's name."""
    return _description(_head(file))


@contextmanager
def translated(subject: object, problem: str, remedy: str = "check the file, or export it again") -> Iterator[None]:
    """Translate any exception raised inside into an error of one line.

    On damaged files the libraries that parse them raise exceptions of any kind, including ZeroDivisionError.

    Parameters
    ----------
    subject : object
        What is read; its text begins the message.
    problem : str
        What is wrong with it if an exception is raised, for example ``is a damaged TIFF``.
    remedy : str

    Raises
    ------
    SourceError
    LibraryError
        If a library is missing or cannot be imported, which says nothing about the file.
    """
    try:
        yield
    except GpuExtractError:
        raise
    except Exception as cause:
        unusable = library_error(cause)
        if unusable is not None:
            raise LibraryError(f"{subject} cannot be read: {unusable}") from cause
        problem, remedy = _not_of_file(cause) or (problem, remedy)
        detail = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
        first_line = (detail.splitlines() or [type(cause).__name__])[0]
        text = f"{subject} {problem}: {cleaned(first_line)[:200]}"
        raise SourceError(f"{text}; {remedy}" if remedy else text) from cause


def _not_of_file(cause: Exception) -> tuple[str, str] | None:
    """Return problem and remedy of an exception that does not mean that the file is damaged."""
    if isinstance(cause, MemoryError):
        return "cannot be read: not enough memory", "free some, or check the file if it cannot be that large"
    if isinstance(cause, OSError) and cause.errno in OF_SYSTEM:
        return "cannot be read", ""
    if isinstance(cause, NotImplementedError):
        return "uses something that the library for it does not support", "save it with zstd or gzip"
    if type(cause).__name__ == "UnknownCodecError":  # of zarr and of numcodecs
        return "is compressed with a codec that is not installed", "install its package, or save it with zstd or gzip"
    return None


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
    # The last character may be incomplete.
    text = head.decode("utf-8", "ignore")
    return len(text.encode()) > len(head) - 4 and all(c.isprintable() or c.isspace() for c in text)


def _head(file: SourceFile) -> bytes:
    with file.open() as stream:
        return stream.read(N_HEAD)


def _subject(path: str, plane: str | None) -> str:
    return f"image {path}" if plane is None else f"{plane} label plane {path}"


def _status(path: str, subject: object) -> os.stat_result:
    try:
        return os.stat(path)
    except FileNotFoundError as cause:
        raise SourceError(f"{subject} does not exist; check the path") from cause
