"""Rasters of chunked arrays: read tile by tile, so that a chunk is decoded about once while boxes sweep over it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_extract.sources.segments import SHARED, SegmentCache

__all__ = ["TiledRaster", "tile_size"]

# Each read through Zarr or HDF5 has a fixed cost, about that of copying this many pixels a side.
MIN_TILE = 256

Box = tuple[int, int, int, int]  # y0, x0, y1, x1
Key = tuple["TiledRaster", int, int]  # (raster, row, column)


class TiledRaster:
    """Planes that can be read by tiles.

    Parameters
    ----------
    read_boxes : callable
        The pixels of boxes (y0, x0, y1, x1), each (P, y1 - y0, x1 - x0), one after the other.
    tile : (height, width), pixels
    shape : (P, H, W)
    dtype : numpy.dtype, in the machine's byte order
    names : tuple of str, length P or 0
    source : str
    cache : SegmentCache
        Where tiles are kept between reads.
    """

    def __init__(
        self,
        read_boxes: Callable[[Sequence[Box]], Iterable[NDArray[Any]]],
        tile: tuple[int, int],
        shape: tuple[int, int, int],
        dtype: np.dtype[Any],
        names: tuple[str, ...],
        source: str,
        cache: SegmentCache[Key] = SHARED,
    ) -> None:
        self._read_boxes = read_boxes
        self._tile = tile
        self._cache = cache
        self.shape = shape
        self.dtype = dtype
        self.names = names
        self.source = source

    def read(self, y0: int, x0: int, y1: int, x1: int) -> NDArray[Any]:
        """See `Raster.read`.

        Raises
        ------
        SourceError
            If the pixels cannot be read.
        """
        height, width = self._tile
        rows = range(y0 // height, math.ceil(y1 / height))
        columns = range(x0 // width, math.ceil(x1 / width))
        keys: list[Key] = [(self, row, column) for row in rows for column in columns]
        pixels = np.empty((self.shape[0], y1 - y0, x1 - x0), self.dtype)
        for key, tile in self._cache.read(keys, self._decode).items():
            top, left, _, _ = self._box(key)
            inside = tile[:, max(y0 - top, 0) : y1 - top, max(x0 - left, 0) : x1 - left]
            y, x = max(top, y0) - y0, max(left, x0) - x0
            pixels[:, y : y + inside.shape[1], x : x + inside.shape[2]] = inside
        return pixels

    def _decode(self, keys: Sequence[Key]) -> Iterator[NDArray[Any]]:
        for tile in self._read_boxes([self._box(key) for key in keys]):
            yield np.ascontiguousarray(tile, self.dtype)

    def _box(self, key: Key) -> Box:
        _, row, column = key
        height, width = self._tile
        y0, x0 = row * height, column * width
        return y0, x0, min(y0 + height, self.shape[1]), min(x0 + width, self.shape[2])


def tile_size(chunk: Sequence[int]) -> tuple[int, int]:
    """(height, width) of tiles made of whole chunks that end with (height, width)."""
    height, width = (side * math.ceil(MIN_TILE / side) for side in chunk[-2:])
    return height, width
