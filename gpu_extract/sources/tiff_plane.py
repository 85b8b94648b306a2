"""The planes of a TIFF as values: where their pixels lie in the file, and how they are decoded."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from tifffile import TiffFile, TiffPage

from gpu_extract.sources import caches
from gpu_extract.sources.files import SourceFile, translated

__all__ = ["CodedPlane", "RawPlanes", "joined"]


@dataclass(frozen=True)
class RawPlanes:
    """Planes that are stored as arrays, at equal distances in one file, so that a memory map can read them.

    Parameters
    ----------
    file : SourceFile
    start : int, bytes
        Where the first one begins in the file.
    step : int, bytes
        From the beginning of a plane to that of the next; 0 for a single plane.
    shape : (P, H, W)
    stored_dtype : numpy.dtype
        Pixel type in the byte order of the file.
    """

    file: SourceFile
    start: int
    step: int
    shape: tuple[int, int, int]
    stored_dtype: np.dtype[Any]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Pixel type, in the machine's byte order."""
        return self.stored_dtype.newbyteorder("=")

    def mapped(self, box_pixels: int) -> NDArray[Any]:
        """Return the pixels in the file itself, (P, H, W), in its byte order.

        Parameters
        ----------
        box_pixels : int
            How many pixels of each plane are about to be read.
        """
        P, H, W = self.shape
        itemsize = self.stored_dtype.itemsize
        span = ((P - 1) * self.step // itemsize + H * W,)
        pixels = self.file.mapped(self.stored_dtype, self.start, span, nbytes=P * box_pixels * itemsize)
        strides = self.step, W * itemsize, itemsize
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
        Where the directory of its page (IFD) begins in the file.
    coding : int, bytes
        Where that of the first page begins that is coded in the same way, so that one decoder serves all of them.
    is_tiled : bool
        Whether its segments are tiles rather than strips, for messages.
    shape : (H, W)
    dtype : numpy.dtype
        Pixel type that the decoder gives.
    segment_shape : (height, width)
        Of its strips or tiles.
    first : int
        Number of its first strip or tile among those of the page.
    offsets, nbytes : (n,) int64, bytes
        Where the strips or tiles of the page lie in the file, and how long they are there.
    jpegtables : bytes, optional
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

    @property
    def key(self) -> tuple[Any, ...]:
        """What `caches` know its pixels by."""
        return (*self.file.key, self.directory, self.first)

    @property
    def n_columns(self) -> int:
        """How many strips or tiles lie side by side."""
        return -(-self.shape[1] // self.segment_shape[1])

    def segments(self, y0: int, x0: int, y1: int, x1: int) -> list[int]:
        """Return which strips or tiles of the plane a box touches, counted row by row."""
        (height, width), n_columns = self.segment_shape, self.n_columns
        rows = range(y0 // height, math.ceil(y1 / height))
        columns = range(x0 // width, math.ceil(x1 / width))
        return [row * n_columns + column for row in rows for column in columns]

    def decode(self, stream: BinaryIO, segment: int) -> NDArray[Any]:
        """Return the pixels of a strip or tile, (h, w); a tile may reach beyond the plane. Several threads may do so.

        Raises
        ------
        SourceError
            If it is damaged.
        """
        number = self.first + segment
        kind = "tile" if self.is_tiled else "strip"
        with translated(f"{self.file} cannot be decoded at page {self.page}, {kind} {number}"):
            decode = caches.OPENED.get((*self.file.key, self.coding), self._decoder)
            data = os.pread(stream.fileno(), int(self.nbytes[number]), int(self.offsets[number]))
            decoded = np.asarray(decode(data, number, jpegtables=self.jpegtables)[0])
            if decoded.dtype != self.dtype:
                raise TypeError(f"the pixels are {decoded.dtype} where the header says {self.dtype}")
            pixels: NDArray[Any] = decoded[0, :, :, 0]
            return pixels

    def _decoder(self) -> Callable[..., Any]:
        """Return the function of tifffile that decodes the segments; for JPEG, making it takes a look into the file."""
        with TiffFile(self.file.absolute) as tif:
            tif.filehandle.seek(self.coding)
            decode: Callable[..., Any] = TiffPage(tif, self.page).decode
            return decode

    def paste(self, segment: int, decoded: NDArray[Any], out: NDArray[Any], y0: int, x0: int) -> None:
        """Write the part of a strip or tile that lies in the box `out`, whose first pixel is at (y0, x0)."""
        row, column = divmod(segment, self.n_columns)
        top, left = row * self.segment_shape[0] - y0, column * self.segment_shape[1] - x0
        inside = decoded[max(-top, 0) : out.shape[0] - top, max(-left, 0) : out.shape[1] - left]
        top, left = max(top, 0), max(left, 0)
        # The last tiles are padded to full size in the file; the box ends with the plane.
        out[top : top + inside.shape[0], left : left + inside.shape[1]] = inside


def joined(planes: Sequence[RawPlanes | CodedPlane]) -> RawPlanes | None:
    """Return single planes as one array in their file; None where no array spans them.

    They must be raw and lie in one file, each as far behind the one before.
    """
    first = planes[0]
    if not isinstance(first, RawPlanes):
        return None
    starts = []
    for plane in planes:
        if not isinstance(plane, RawPlanes) or plane.file != first.file:
            return None
        starts.append(plane.start)
    steps = set(np.diff(starts).tolist()) or {0}
    step = steps.pop()
    if steps or step < 0 or step % first.stored_dtype.itemsize:
        return None
    return RawPlanes(first.file, first.start, step, (len(planes), *first.shape[1:]), first.stored_dtype)
