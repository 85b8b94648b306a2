"""One plane of a TIFF: where its strips or tiles lie in the file, and how they become pixels."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from tifffile import TiffPage

from gpu_extract.sources.files import SourceFile, translated

__all__ = ["TiffPlane", "mapped_together"]


class TiffPlane:
    """One plane of a TIFF page, all of it or one of several that are stored one after the other.

    Parameters
    ----------
    file : SourceFile
    page : TiffPage
        One that passed `check_page` and `check_segments`.
    index : int
        Of the plane within the page.
    offsets, nbytes : (n,) int64, bytes
        Where the strips or tiles of the page lie in the file, and how long they are there.
    """

    def __init__(
        self,
        file: SourceFile,
        page: TiffPage,
        index: int,
        offsets: NDArray[np.int64],
        nbytes: NDArray[np.int64],
    ) -> None:
        self.file = file
        self.shape = (page.imagelength, page.imagewidth)
        self.dtype = np.dtype(page.dtype)
        self.is_raw: bool = page.is_final  # stored as the array itself, so that a memory map can read it
        self._page = page
        self._decode = page.decode  # built here: for JPEG, that takes a look into the file
        self._index = index
        # Strips are tiles as wide as the image.
        self._height, self._width = page.chunks
        self._columns = math.ceil(self.shape[1] / self._width)
        self._first = index * self._columns * math.ceil(self.shape[0] / self._height)
        self._offsets = offsets
        self._nbytes = nbytes

    @property
    def start(self) -> int:
        """Where in the file the pixels of a raw plane begin, in bytes."""
        return int(self._offsets[0]) + self._index * math.prod(self.shape) * self.dtype.itemsize

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """Pixel type in the byte order of the file."""
        return self.dtype.newbyteorder(self._page.parent.byteorder)

    def mapped(self, box_pixels: int) -> NDArray[Any]:
        """(H, W), the pixels of a raw plane in the file itself, of which so many will be read, in its byte order."""
        nbytes = box_pixels * self.dtype.itemsize
        return self.file.mapped(self.stored_dtype, self.start, self.shape, nbytes=nbytes)

    def segments(self, y0: int, x0: int, y1: int, x1: int) -> list[int]:
        """Which strips or tiles of the plane a box touches, counted row by row."""
        rows = range(y0 // self._height, math.ceil(y1 / self._height))
        columns = range(x0 // self._width, math.ceil(x1 / self._width))
        return [row * self._columns + column for row in rows for column in columns]

    def decode(self, stream: BinaryIO, segment: int) -> NDArray[Any]:
        """(h, w), the pixels of a strip or tile; a tile may reach beyond the plane. Several threads may do so.

        Raises
        ------
        SourceError
            If it is damaged.
        """
        number = self._first + segment
        kind = "tile" if self._page.is_tiled else "strip"
        with translated(f"{self.file} cannot be decoded at page {self._page.index}, {kind} {number}"):
            data = os.pread(stream.fileno(), int(self._nbytes[number]), int(self._offsets[number]))
            decoded = np.asarray(self._decode(data, number, jpegtables=self._page.jpegtables)[0])
            if decoded.dtype != self.dtype:
                raise TypeError(f"the pixels are {decoded.dtype} where the header says {self.dtype}")
            pixels: NDArray[Any] = decoded[0, :, :, 0]
            return pixels

    def paste(self, segment: int, decoded: NDArray[Any], out: NDArray[Any], y0: int, x0: int) -> None:
        """Write the part of a strip or tile that lies in the box `out`, whose first pixel is at (y0, x0)."""
        row, column = divmod(segment, self._columns)
        top, left = row * self._height - y0, column * self._width - x0
        inside = decoded[max(-top, 0) : out.shape[0] - top, max(-left, 0) : out.shape[1] - left]
        top, left = max(top, 0), max(left, 0)
        # The last tiles are padded to full size in the file; the box ends with the plane.
        out[top : top + inside.shape[0], left : left + inside.shape[1]] = inside


def mapped_together(planes: Sequence[TiffPlane], box_pixels: int) -> NDArray[Any] | None:
    """(P, H, W), the pixels of planes in the file itself, as of `TiffPlane.mapped`; None where no array spans them.

    They must be raw and lie in one file, each as far behind the one before.
    """
    first, itemsize = planes[0], planes[0].dtype.itemsize
    if not all(plane.is_raw and plane.file is first.file for plane in planes):
        return None
    starts = [plane.start for plane in planes]
    steps = set(np.diff(starts).tolist()) or {0}
    step = steps.pop()
    if steps or step < 0 or step % itemsize:
        return None
    H, W = first.shape
    span = ((starts[-1] - starts[0]) // itemsize + H * W,)
    nbytes = len(planes) * box_pixels * itemsize
    pixels = first.file.mapped(first.stored_dtype, first.start, span, nbytes=nbytes)
    return np.lib.stride_tricks.as_strided(pixels, (len(planes), H, W), (step, W * itemsize, itemsize), writeable=False)
