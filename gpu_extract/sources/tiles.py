"""Rasters of chunked arrays, read in tiles of whole chunks, so that successive boxes decode each chunk about once."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_extract.model import Raster
from gpu_extract.sources import caches
from gpu_extract.sources.stacks import Indices

__all__ = ["Box", "TiledPlanes", "TiledRaster", "tile_size"]

# Pixels. Each read through Zarr or HDF5 has a fixed cost, about the time to copy a square with this side.
MIN_TILE = 256

Box = tuple[int, int, int, int]  # y0, x0, y1, x1


@dataclass(frozen=True, eq=False)
class TiledPlanes(ABC):
    """All planes of a chunked array; see `stacks.Planes`. Subclasses define how boxes are read.

    Parameters
    ----------
    key : hashable
        The key of the pixels in `caches`.
    size : (H, W)
    tile : (height, width), pixels
        Size of the blocks that are read and cached.
    dtype : numpy.dtype, in the machine's byte order
    """

    key: Hashable
    size: tuple[int, int]
    tile: tuple[int, int]
    dtype: np.dtype[Any]

    @abstractmethod
    def read_boxes(self, indices: Indices, boxes: Sequence[Box]) -> Iterable[NDArray[Any]]:
        """Yield the pixels of each box of the given planes, (P, y1 - y0, x1 - x0).

        Raises
        ------
        SourceError
            If they cannot be read.
        """

    def raster(self, indices: Indices, names: tuple[str, ...], source: str) -> Raster:
        """See `stacks.Planes.raster`."""
        return TiledRaster(self, indices, names, source)


@dataclass(frozen=True, eq=False)
class TiledRaster:
    """Selected planes of a chunked array.

    Parameters
    ----------
    planes : TiledPlanes
    indices : tuple of tuple of int
        The selected indices along each axis.
    names : tuple of str, length P or 0
    source : str
    """

    planes: TiledPlanes
    indices: Indices
    names: tuple[str, ...]
    source: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """See `Raster.shape`."""
        return math.prod(map(len, self.indices)), *self.planes.size

    @property
    def dtype(self) -> np.dtype[Any]:
        """See `Raster.dtype`."""
        return self.planes.dtype

    def read(self, y0: int, x0: int, y1: int, x1: int) -> NDArray[Any]:
        """See `Raster.read`.

        Raises
        ------
        SourceError
            If the pixels cannot be read.
        """
        (height, width), (n_planes, H, W) = self.planes.tile, self.shape
        key = self.planes.key, self.indices
        boxes = {
            (key, top, left): (top, left, min(top + height, H), min(left + width, W))
            for top in range(y0 // height * height, y1, height)
            for left in range(x0 // width * width, x1, width)
        }
        pixels = np.empty((n_planes, y1 - y0, x1 - x0), self.dtype)
        tiles = caches.SEGMENTS.read(boxes, self._decode)
        for (top, left, _, _), tile in zip(boxes.values(), tiles, strict=True):
            inside = tile[:, max(y0 - top, 0) : y1 - top, max(x0 - left, 0) : x1 - left]
            y, x = max(top, y0) - y0, max(left, x0) - x0
            pixels[:, y : y + inside.shape[1], x : x + inside.shape[2]] = inside
        return pixels

    def _decode(self, boxes: Sequence[Box]) -> Iterator[NDArray[Any]]:
        for tile in self.planes.read_boxes(self.indices, boxes):
            yield np.ascontiguousarray(tile, self.dtype)


def tile_size(chunk: Sequence[int]) -> tuple[int, int]:
    """Return the (height, width) of tiles made of whole chunks of the given shape."""
    height, width = (side * math.ceil(MIN_TILE / side) for side in chunk[-2:])
    return height, width
