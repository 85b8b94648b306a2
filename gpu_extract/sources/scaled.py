"""Rasters resampled to another pixel size; each box is resampled when it is read.

A raster and its resampled version cover the same field: both start at the outer edge of the first pixel. Pixel i has
its center at i and covers [i - 1/2, i + 1/2]. With ``scale`` source pixels per pixel, pixel j of the resampled raster
has its center at ``(j + 1/2) * scale - 1/2`` in the source and covers ``scale`` source pixels. Every pixel whose center
is inside the source exists.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_extract.model import Raster

__all__ = ["ScaledLabels", "ScaledRaster", "scaled_length"]

# Source values in memory at a time, as float64: a small box of a strongly downsampled image covers a large source box.
MAX_VALUES = 1 << 22


@dataclass(frozen=True)
class Taps:
    """Indices and weights of the source pixels that contribute to each pixel along one axis.

    Parameters
    ----------
    indices : (n, T) int64
    weights : (n, T) float64
    """

    indices: NDArray[np.int64]
    weights: NDArray[np.float64]

    @property
    def span(self) -> tuple[int, int]:
        """First and last + 1 of the source pixels that are needed."""
        return int(self.indices.min()), int(self.indices.max()) + 1


class _Resampled(ABC):
    """A raster at another pixel size. Subclasses define how a block of pixels is resampled.

    Parameters
    ----------
    raster : Raster, (P, H, W)
    scale : (y, x)
        Source pixels per pixel; less than 1 for upsampling.
    """

    def __init__(self, raster: Raster, scale: tuple[float, float]) -> None:
        self.unscaled = raster
        self._scale = scale
        planes, height, width = raster.shape
        self.shape = (planes, scaled_length(height, scale[0]), scaled_length(width, scale[1]))
        self.dtype = raster.dtype
        self.names = raster.names
        self.source = raster.source

    def read(self, y0: int, x0: int, y1: int, x1: int) -> NDArray[Any]:
        """See `Raster.read`."""
        pixels = np.empty((self.shape[0], y1 - y0, x1 - x0), self.dtype)
        for top, left, bottom, right in _blocks((y0, x0, y1, x1), self._scale, self.shape[0]):
            pixels[:, top - y0 : bottom - y0, left - x0 : right - x0] = self._block(top, left, bottom, right)
        return pixels

    @abstractmethod
    def _block(self, y0: int, x0: int, y1: int, x1: int) -> NDArray[Any]:
        """Return the pixels of a box with a small source box."""


class ScaledRaster(_Resampled):
    """An image resampled by averaging over the area of a pixel (downsampling) or linear interpolation (upsampling).

    The type is kept; integers are rounded half to even. The arithmetic is float64, and the order of operations for a
    pixel does not depend on the box. NaN and infinite pixels spread to every pixel that they contribute to.
    """

    def _block(self, y0: int, x0: int, y1: int, x1: int) -> NDArray[np.float64]:
        rows = _taps(y0, y1, self._scale[0], self.unscaled.shape[1])
        columns = _taps(x0, x1, self._scale[1], self.unscaled.shape[2])
        (top, bottom), (left, right) = rows.span, columns.span
        source = self.unscaled.read(top, left, bottom, right).astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            sums = _weighted_sums(source, rows, top, axis=1)
            sums = _weighted_sums(sums, columns, left, axis=2)
            sums /= np.outer(rows.weights.sum(axis=1), columns.weights.sum(axis=1))
        return np.rint(sums) if self.dtype.kind in "iu" else sums


class ScaledLabels(_Resampled):
    """A label plane (1, H, W) resampled: each pixel gets the id of the source pixel that contains its center.

    A center on the edge between two pixels belongs to the second. An id is lost if none of its pixels contains a
    center; `unscaled` is the plane that still has it.
    """

    def _block(self, y0: int, x0: int, y1: int, x1: int) -> NDArray[Any]:
        y = _nearest(y0, y1, self._scale[0], self.unscaled.shape[1])
        x = _nearest(x0, x1, self._scale[1], self.unscaled.shape[2])
        source = self.unscaled.read(int(y[0]), int(x[0]), int(y[-1]) + 1, int(x[-1]) + 1)
        block: NDArray[Any] = source[:, (y - y[0])[:, None], x - x[0]]
        return block


def scaled_length(length: int, scale: float) -> int:
    """Return the number of pixels, at least 1, that ``length`` source pixels become."""
    return max(math.ceil(length / scale - 0.5), 1)


def _blocks(
    box: tuple[int, int, int, int], scale: tuple[float, float], n_planes: int
) -> Iterator[tuple[int, int, int, int]]:
    """Yield blocks of the box, each with a source box of at most `MAX_VALUES` values."""
    y0, x0, y1, x1 = box
    per_pixel = n_planes * max(scale[0], 1) * max(scale[1], 1)
    side = max(int(math.sqrt(MAX_VALUES / per_pixel)), 1)
    for top in range(y0, y1, side):
        for left in range(x0, x1, side):
            yield top, left, min(top + side, y1), min(left + side, x1)


def _taps(start: int, stop: int, scale: float, length: int) -> Taps:
    """Return the taps of the pixels ``start`` to ``stop`` along an axis of ``length`` source pixels."""
    at = np.arange(start, stop, dtype=np.float64)[:, None]
    if scale < 1:
        x = np.clip((at + 0.5) * scale - 0.5, 0, length - 1)
        first = np.floor(x)
        indices = np.concatenate([first, np.ceil(x)], axis=1)
        weights = np.concatenate([1 - (x - first), x - first], axis=1)
    else:
        low, high = at * scale, np.minimum((at + 1) * scale, length)
        n_taps = int(scale) if scale == int(scale) else math.ceil(scale) + 1
        edges = np.floor(low) + np.arange(n_taps)
        weights = np.maximum(np.minimum(edges + 1, high) - np.maximum(edges, low), 0)
        indices = np.minimum(edges, np.ceil(high) - 1)  # a tap of weight 0 needs a valid index too
    return Taps(indices.astype(np.int64), weights)


def _weighted_sums(values: NDArray[np.float64], taps: Taps, first: int, axis: int) -> NDArray[np.float64]:
    """Return the weighted sums along an axis, tap by tap; ``values`` starts at source index ``first``."""
    shape = [1, 1, 1]
    shape[axis] = len(taps.weights)
    sums = np.zeros((*values.shape[:axis], len(taps.weights), *values.shape[axis + 1 :]))
    for tap in range(taps.weights.shape[1]):
        sums += values.take(taps.indices[:, tap] - first, axis) * taps.weights[:, tap].reshape(shape)
    return sums


def _nearest(start: int, stop: int, scale: float, length: int) -> NDArray[np.int64]:
    """Return the source pixels that contain the centers."""
    at: NDArray[np.float64] = np.floor((np.arange(start, stop) + 0.5) * scale)
    return np.minimum(at, length - 1).astype(np.int64)
