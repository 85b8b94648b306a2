"""Arrays in NumPy's file formats. Nothing is unpickled here, since that can run code from the file."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import SourceError
from gpu_extract.listing import listed
from gpu_extract.sources import caches
from gpu_extract.sources.arrays import raster_shape, read_box
from gpu_extract.sources.files import SourceFile, translated
from gpu_extract.sources.names import cleaned

__all__ = ["NpyRaster", "NpzRaster", "holds_pickle", "open_npy", "open_npz", "read_header"]

IMAGE_MEMBERS = ("image", "arr_0")
LABEL_MEMBERS = ("labels", "masks", "arr_0")
# Deflate, the compression that NumPy uses, decodes one byte to at most 1032 (zlib's technical notes).
MAX_DEFLATE_RATIO = 1032


class Header(NamedTuple):
    """The header of an .npy file, which describes the array that follows it."""

    shape: tuple[int, ...]
    order: Literal["C", "F"]
    dtype: np.dtype[Any]


@dataclass(frozen=True, eq=False)
class NpyRaster:
    """An .npy file, (P, H, W) or (H, W), read through a memory map.

    Parameters
    ----------
    file : SourceFile
    header : Header
    offset : int, bytes
        Position of the first pixel in the file.
    shape : (P, H, W)
    """

    file: SourceFile
    header: Header
    offset: int
    shape: tuple[int, int, int]
    names: tuple[str, ...] = ()

    @property
    def dtype(self) -> np.dtype[Any]:
        """See `Raster.dtype`."""
        return self.header.dtype.newbyteorder("=")

    @property
    def source(self) -> str:
        """See `Raster.source`."""
        return self.file.path

    def read(self, y0: int, x0: int, y1: int, x1: int) -> NDArray[Any]:
        """See `Raster.read`."""
        shape, order, dtype = self.header
        nbytes = self.shape[0] * (y1 - y0) * (x1 - x0) * dtype.itemsize
        array = self.file.mapped(dtype, self.offset, shape, order, nbytes=nbytes)
        return read_box(array, y0, x0, y1, x1)


@dataclass(frozen=True, eq=False)
class NpzRaster:
    """One array of an .npz file, (P, H, W) or (H, W).

    It is loaded whole on the first read and cached in `caches.WHOLE`: a compressed stream cannot be read by region.

    Parameters
    ----------
    file : SourceFile
    member : str
        Name of the array's file in the archive.
    shape : (P, H, W)
    dtype : numpy.dtype, in the machine's byte order
    """

    file: SourceFile
    member: str
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    names: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """See `Raster.source`."""
        return self.file.path

    def read(self, y0: int, x0: int, y1: int, x1: int) -> NDArray[Any]:
        """See `Raster.read`."""
        return read_box(caches.WHOLE.read(self, (self.file.key, self.member), self._load), y0, x0, y1, x1)

    def _load(self) -> NDArray[Any]:
        with _archive(self.file) as archive, archive.open(self.member) as member:
            pixels: NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
            return pixels


def open_npy(file: SourceFile) -> NpyRaster:
    """Return the raster of an .npy file.

    Raises
    ------
    InputError, SourceError
    """
    with translated(file, "is a damaged .npy file"), file.open() as stream:
        header = _header(stream, file)
        offset = stream.tell()
    shape = raster_shape(header.shape, str(file))
    _check_nbytes(str(file), header, file.nbytes - offset)
    return NpyRaster(file, header, offset, shape)


def open_npz(file: SourceFile) -> NpzRaster:
    """Return the raster of an array in an .npz file: the only one, or the one with a usual name.

    Raises
    ------
    InputError, SourceError
    """
    with _archive(file) as archive:
        name = _member(archive, file)
        info = archive.getinfo(name)
        with archive.open(info) as member:
            header = _header(member, file)
            nbytes = info.file_size - member.tell()
    subject = f"{file}, {cleaned(name)},"
    if info.file_size > MAX_DEFLATE_RATIO * file.nbytes:
        raise SourceError(
            f"{subject} claims {info.file_size} bytes, more than a file of {file.nbytes} bytes can hold; "
            "save it again with numpy.savez_compressed"
        )
    shape = raster_shape(header.shape, subject)
    _check_nbytes(subject, header, nbytes)
    return NpzRaster(file, name, shape, header.dtype.newbyteorder("="))


def read_header(stream: IO[bytes]) -> Header:
    """Return the header of the array that begins at the position of the stream."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(stream)
    return Header(shape, "F" if is_fortran else "C", dtype)


def holds_pickle(file: SourceFile) -> bool:
    """Return whether an .npy file holds Python objects rather than numbers."""
    with translated(file, "is a damaged .npy file"), file.open() as stream:
        return bool(read_header(stream).dtype.hasobject)


def _header(stream: IO[bytes], file: SourceFile) -> Header:
    header = read_header(stream)
    if header.dtype.hasobject:
        raise SourceError(
            f"{file} holds pickled Python objects, which are never loaded, since that can run any code; "
            "save the array alone with numpy.save, or give the masks as TIFF (cellpose: _cp_masks.tif)"
        )
    return header


@contextmanager
def _archive(file: SourceFile) -> Iterator[zipfile.ZipFile]:
    with (
        translated(file, "is a damaged .npz file"),
        file.open() as stream,
        zipfile.ZipFile(stream) as archive,
    ):
        yield archive


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
    held = listed([cleaned(name.removesuffix(".npy")) for name in arrays])
    raise SourceError(
        f"{file} holds the arrays {held}, and it is not clear which one to read: "
        f"save only one, or name it {' or '.join(wanted)}"
    )


def _check_nbytes(subject: str, header: Header, held: int) -> None:
    claimed = math.prod(header.shape) * header.dtype.itemsize
    if claimed > held:
        raise SourceError(
            f"{subject} is truncated: its header claims {claimed} bytes of pixels, but the file has {held}; "
            "copy or export it again"
        )
