"""The planes of a TIFF as values: the position of their pixels in the file, and how they are decoded."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from tifffile import TiffFile, TiffPage

from gpu_extract.sources import caches
from gpu_extract.sources.files import SourceFile, translated

__all__ = ["CodedPlane", "RawPlanes", "joined", "opened_tiff"]


@dataclass(frozen=True)
class RawPlanes:
    """Uncompressed planes at equal distances in one file, which are read through a memory map.

    Parameters
    ----------
    file : SourceFile
    start : int, bytes
        Position of the first plane in the file.
    step : int, bytes
        Distance from the beginning of a plane to the beginning of the next; 0 for a single plane.
    pixel_step : int
        Distance between adjacent pixels of a plane, in pixels: the number of samples per pixel if they are interleaved.
    shape : (P, H, W)
    stored_dtype : numpy.dtype
        Pixel type in the byte order of the file.
    """

    file: SourceFile
    start: int
    step: int
    shape: tuple[int, int, int]
    stored_dtype: np.dtype[Any]
    pixel_step: int = 1

    @property
    def dtype(self) -> np.dtype[Any]:
        """Pixel type, in the machine's byte order."""
        return self.stored_dtype.newbyteorder("=")

    def mapped(self, box_pixels: int) -> NDArray[Any]:
        """Return a view of the pixels in the file, (P, H, W), in the byte order of the file.

        Parameters
        ----------
        box_pixels : int
            Number of pixels of each plane that are about to be read.
        """
        P, H, W = self.shape
        itemsize = self.stored_dtype.itemsize
        span = ((P - 1) * self.step // itemsize + (H * W - 1) * self.pixel_step + 1,)
        nbytes = P * box_pixels * self.pixel_step * itemsize
        pixels = self.file.mapped(self.stored_dtype, self.start, span, nbytes=nbytes)
        strides = self.step, W * self.pixel_step * itemsize, self.pixel_step * itemsize
        return np.lib.stride_tricks.as_strided(pixels, self.shape, strides, writeable=False)


@dataclass(frozen=True, eq=False)
class CodedPlane:
    """One plane whose strips or tiles must be decoded. Strips are tiles as wide as the image.

    Parameters
    ----------
    file : SourceFile
    page : int
        Index of its page in the file.
    directory : int, bytes
        Position of the directory (IFD) of its page in the file.
    coding : int, bytes
        Position of the directory of the first page with the same coding; all these pages share one decoder.
    is_tiled : bool
        Whether its segments are tiles rather than strips; used in messages.
    shape : (H, W)
    dtype : numpy.dtype
        Pixel type that the decoder returns.
    segment_shape : (height, width)
        Of its strips or tiles.
    first : int
        Number of its first strip or tile among those of the page.
    offsets, nbytes : (n,) int64, bytes
        Position and length of the strips or tiles of the page in the file.
    jpegtables : bytes, optional
    sample : int
        Index of its sample among the interleaved samples of a pixel.
    stored_dtype : numpy.dtype, optional
        Pixel type in the byte order of the file, if the pixels are not coded; a remote file is then read in strips.
    """

    file: SourceFile
    page: int
    directory: int
    coding: int
    is_tiled: bool
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    segment_shape: tuple[int, int]
    first: int
    offsets: NDArray[np.int64]
    nbytes: NDArray[np.int64]
    jpegtables: bytes | None
    sample: int = 0
    stored_dtype: np.dtype[Any] | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """The key of its strips and tiles in `caches`; interleaved samples share them."""
        return (*self.file.key, self.directory, self.first)

    @property
    def n_columns(self) -> int:
        """Number of strips or tiles in a row."""
        return -(-self.shape[1] // self.segment_shape[1])

    def segments(self, y0: int, x0: int, y1: int, x1: int) -> list[int]:
        """Return the indices, counted row by row, of the strips or tiles of the plane that a box touches."""
        (height, width), n_columns = self.segment_shape, self.n_columns
        rows = range(y0 // height, math.ceil(y1 / height))
        columns = range(x0 // width, math.ceil(x1 / width))
        return [row * n_columns + column for row in rows for column in columns]

    def decode(self, stream: BinaryIO, segment: int) -> NDArray[Any]:
        """Return the pixels of a strip or tile, (h, w, samples); it may reach beyond the plane. It is thread-safe.

        Raises
        ------
        SourceError
            If it is damaged.
        """
        number = self.first + segment
        kind = "tile" if self.is_tiled else "strip"
        with translated(self.file, f"cannot be decoded at page {self.page}, {kind} {number}"):
            data = self.file.read_at(stream, int(self.offsets[number]), int(self.nbytes[number]))
            if self.stored_dtype is not None:
                shape = (-1, self.shape[1], len(data) // self.stored_dtype.itemsize // math.prod(self._size(segment)))
                return np.frombuffer(data, self.stored_dtype).astype(self.dtype, copy=False).reshape(shape)
            decode = caches.OPENED.get((*self.file.key, self.coding), self._decoder)
            decoded = np.asarray(decode(data, number, jpegtables=self.jpegtables)[0])
            if decoded.dtype != self.dtype:
                raise TypeError(f"the pixels are {decoded.dtype} where the header says {self.dtype}")
            pixels: NDArray[Any] = decoded[0]
            return pixels

    def _size(self, segment: int) -> tuple[int, int]:
        """Return the size of an uncoded strip; the last one may be smaller."""
        height, width = self.segment_shape
        return min(height, self.shape[0] - segment * height), width

    def _decoder(self) -> Callable[..., Any]:
        """Return tifffile's function that decodes the segments; for JPEG, tifffile reads from the file to create it."""
        with opened_tiff(self.file) as tif:
            tif.filehandle.seek(self.coding)
            decode: Callable[..., Any] = TiffPage(tif, self.page).decode
            return decode

    def paste(self, segment: int, decoded: NDArray[Any], out: NDArray[Any], y0: int, x0: int) -> None:
        """Copy the part of a strip or tile (h, w, samples) in the box into `out`, whose first pixel is at (y0, x0)."""
        row, column = divmod(segment, self.n_columns)
        top, left = row * self.segment_shape[0] - y0, column * self.segment_shape[1] - x0
        inside = decoded[max(-top, 0) : out.shape[0] - top, max(-left, 0) : out.shape[1] - left, self.sample]
        top, left = max(top, 0), max(left, 0)
        # The last tiles are padded to full size in the file, but the box ends with the plane.
        out[top : top + inside.shape[0], left : left + inside.shape[1]] = inside


@contextmanager
def opened_tiff(file: SourceFile, **options: Any) -> Iterator[TiffFile]:
    """Open a TIFF with tifffile, from disk or through ranges of a remote file.

    Raises
    ------
    SourceError
    """
    if not file.is_remote:
        with TiffFile(file.absolute, **options) as tif:
            yield tif
        return
    with file.open() as stream, TiffFile(stream, name=os.path.basename(file.path), **options) as tif:
        yield tif


def joined(planes: Sequence[RawPlanes | CodedPlane]) -> RawPlanes | None:
    """Return single planes as one array in their file; None if that is not possible.

    They must be raw, and at equal distances in one file.
    """
    first = planes[0]
    if not isinstance(first, RawPlanes):
        return None
    starts = []
    for plane in planes:
        if not isinstance(plane, RawPlanes) or (plane.file, plane.pixel_step) != (first.file, first.pixel_step):
            return None
        starts.append(plane.start)
    steps = set(np.diff(starts).tolist()) or {0}
    step = steps.pop()
    if steps or step < 0 or step % first.stored_dtype.itemsize:
        return None
    return replace(first, step=step, shape=(len(planes), *first.shape[1:]))
