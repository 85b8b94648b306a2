"""Arrays in NumPy's own files; nothing is ever unpickled here, since that runs code from the file."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import SourceError
from gpu_extract.sources.arrays import raster_shape, read_box
from gpu_extract.sources.files import SourceFile, translated
from gpu_extract.sources.names import cleaned

__all__ = ["NpyRaster", "NpzRaster", "holds_pickle", "read_header"]

IMAGE_MEMBERS = ("image", "arr_0")
LABEL_MEMBERS = ("labels", "masks", "arr_0")
# Deflate, the compression that NumPy writes, makes at most 1032 bytes of one (zlib's technical notes).
MAX_DEFLATE_RATIO = 1032


class NpyRaster:
    """An .npy file, (P, H, W) or (H, W), read through a memory map.

    Raises
    ------
    InputError, SourceError
    """

    names: tuple[str, ...] = ()

    def __init__(self, file: SourceFile) -> None:
        self._file = file
        with translated(f"{file} is a damaged .npy file"), file.open() as stream:
            self._shape, self._order, self._dtype = _header(stream, file)
            self._offset = stream.tell()
        self.shape = raster_shape(self._shape, str(file))
        _check_nbytes(str(file), self._shape, self._dtype, file.nbytes - self._offset)
        self.dtype = self._dtype.newbyteorder("=")
        self.source = file.path

    def read(self, y0: int, x0: int, y1: int, x1: int) -> NDArray[Any]:
        """See `Raster.read`."""
        nbytes = self.shape[0] * (y1 - y0) * (x1 - x0) * self._dtype.itemsize
        array = self._file.mapped(self._dtype, self._offset, self._shape, self._order, nbytes=nbytes)
        return read_box(array, y0, x0, y1, x1)


class NpzRaster:
    """One array of an .npz file, (P, H, W) or (H, W).

    It is loaded whole on the first read and kept: a compressed stream cannot be read by region.

    Raises
    ------
    InputError, SourceError
    """

    names: tuple[str, ...] = ()

    def __init__(self, file: SourceFile) -> None:
        self._file = file
        with self._archive() as archive:
            self._member = _member(archive, file)
            info = archive.getinfo(self._member)
            with archive.open(info) as member:
                shape, _, dtype = _header(member, file)
                nbytes = info.file_size - member.tell()
        subject = f"{file}, {cleaned(self._member)},"
        if info.file_size > MAX_DEFLATE_RATIO * file.nbytes:
            raise SourceError(
                f"{subject} claims {info.file_size} bytes, more than a file of {file.nbytes} bytes can hold; "
                "save it again with numpy.savez_compressed"
            )
        self.shape = raster_shape(shape, subject)
        _check_nbytes(subject, shape, dtype, nbytes)
        self.dtype = dtype.newbyteorder("=")
        self.source = file.path

    def read(self, y0: int, x0: int, y1: int, x1: int) -> NDArray[Any]:
        """See `Raster.read`."""
        return read_box(self._pixels, y0, x0, y1, x1)

    @cached_property
    def _pixels(self) -> NDArray[Any]:
        with self._archive() as archive, archive.open(self._member) as member:
            pixels: NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
            return pixels

    @contextmanager
    def _archive(self) -> Iterator[zipfile.ZipFile]:
        with (
            translated(f"{self._file} is a damaged .npz file"),
            self._file.open() as stream,
            zipfile.ZipFile(stream) as archive,
        ):
            yield archive


def read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], Literal["C", "F"], np.dtype[Any]]:
    """Shape, order and type of the array that begins where the stream is left."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(stream)
    return shape, "F" if is_fortran else "C", dtype


def holds_pickle(file: SourceFile) -> bool:
    """Whether an .npy file holds Python objects rather than numbers."""
    with translated(f"{file} is a damaged .npy file"), file.open() as stream:
        return bool(read_header(stream)[2].hasobject)


def _header(stream: IO[bytes], file: SourceFile) -> tuple[tuple[int, ...], Literal["C", "F"], np.dtype[Any]]:
    shape, order, dtype = read_header(stream)
    if dtype.hasobject:
        raise SourceError(
            f"{file} holds pickled Python objects, which are never loaded, since that can run any program; "
            "save the array alone with numpy.save, or give the masks as TIFF (cellpose: _cp_masks.tif)"
        )
    return shape, order, dtype


def _member(archive: zipfile.ZipFile, file: SourceFile) -> str:
    arrays = [name for name in archive.namelist() if name.endswith(".npy")]
    if len(arrays) == 1:
        return arrays[0]
    wanted = IMAGE_MEMBERS if file.plane is None else (file.plane, *LABEL_MEMBERS)
    for name in wanted:
        if f"{name}.npy" in arrays:
            return f"{name}.npy"
    if not arrays:
        raise SourceError(f"{file} is a zip archive without NumPy arrays; convert it to OME-TIFF or .npy")
    held = ", ".join(cleaned(name.removesuffix(".npy")) for name in arrays)
    raise SourceError(
        f"{file} holds the arrays {held}; which one is meant is not clear: "
        f"save only one, or name it {' or '.join(wanted)}"
    )


def _check_nbytes(subject: str, shape: tuple[int, ...], dtype: np.dtype[Any], held: int) -> None:
    claimed = math.prod(shape) * dtype.itemsize
    if claimed > held:
        raise SourceError(
            f"{subject} is truncated: its header claims {claimed} bytes of pixels and {held} are there; "
            "copy or export it again"
        )
