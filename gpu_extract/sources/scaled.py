"""A raster at another pixel size, made of the pixels of a box when the box is read.

An image and its resampled form cover the same field: both begin at the outer edge of the first pixel. Pixel i, whose
centre is i, covers [i - 1/2, i + 1/2]; with ``scale`` source pixels for a pixel, pixel j of the resampled raster is
centred at ``(j + 1/2) * scale - 1/2`` in the source and covers ``scale`` of its pixels. There is one for each centre
that lies in the source.
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

# Values of the source that are held at a time, as float64: a small box of a strongly shrunk image covers a large one.
MAX_VALUES = 1 << 22


@dataclass(frozen=True)
class Taps:
    """Which pixels of the source along one axis make some pixels, and how much each counts.

    Parameters
    ----------
    indices : (n, T) int64
    weights : (n, T) float64
    """

    indices: NDArray[np.int64]
    weights: NDArray[np.float64]

    @property
    def span(self) -> tuple[int, int]:
        """The part of the source that is needed."""
        return int(self.indices.min()), int(self.indices.max()) + 1


class _Resampled(ABC):
    """A raster at another pixel size; its kinds say what a block of pixels is made of.

    Parameters
    ----------
    raster : Raster, (P, H, W)
    scale : (y, x)
        Source pixels for each pixel; below 1 where it grows.
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
        """The pixels of a box whose source is small."""


class ScaledRaster(_Resampled):
    """An image resampled: by the mean over a pixel's area where it shrinks, linearly between pixels where it grows.

    The type is kept, integers are rounded half to even. The arithmetic is float64, in the same order for a pixel
    whatever the box is. NaN and infinite pixels spread to those that they are a part of.
    """

    def _block(self, y0: int, x0: int, y1: int, x1: int) -> NDArray[np.float64]:
        rows = _taps(y0, y1, self._scale[0], self.unscaled.shape[1])
        columns = _taps(x0, x1, self._scale[1], self.unscaled.shape[2])
        (top, bottom), (left, right) = rows.span, columns.span
        source = self.unscaled.read(top, left, bottom, right).astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            sums = _summed(source, rows, top, axis=1)
            sums = _summed(sums, columns, left, axis=2)
            sums /= np.outer(rows.weights.sum(axis=1), columns.weights.sum(axis=1))
        return np.rint(sums) if self.dtype.kind in "iu" else sums


class ScaledLabels(_Resampled):
    """A label plane (1, H, W) resampled: each pixel has the id of the source pixel in which its centre lies.

    A centre between two pixels takes the latter. An id whose pixels hold no centre is not there any more; the plane
    that has it is `unscaled`.
    """

    def _block(self, y0: int, x0: int, y1: int, x1: int) -> NDArray[Any]:
        y = _nearest(y0, y1, self._scale[0], self.unscaled.shape[1])
        x = _nearest(x0, x1, self._scale[1], self.unscaled.shape[2])
        source = self.unscaled.read(int(y[0]), int(x[0]), int(y[-1]) + 1, int(x[-1]) + 1)
        block: NDArray[Any] = source[:, (y - y[0])[:, None], x - x[0]]
        return block


def scaled_length(length: int, scale: float) -> int:
    """How many pixels there are where ``length`` were: one, or one for each centre that lies within."""
    return max(math.ceil(length / scale - 0.5), 1)


def _blocks(
    box: tuple[int, int, int, int], scale: tuple[float, float], n_planes: int
) -> Iterator[tuple[int, int, int, int]]:
    """The box in parts whose sources are small enough."""
    y0, x0, y1, x1 = box
    per_pixel = n_planes * max(scale[0], 1) * max(scale[1], 1)
    side = max(int(math.sqrt(MAX_VALUES / per_pixel)), 1)
    for top in range(y0, y1, side):
        for left in range(x0, x1, side):
            yield top, left, min(top + side, y1), min(left + side, x1)


def _taps(start: int, stop: int, scale: float, length: int) -> Taps:
    """What makes the pixels ``start`` to ``stop`` along an axis of ``length`` source pixels."""
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
        indices = np.minimum(edges, np.ceil(high) - 1)  # where the weight is 0, one that counts all the same
    return Taps(indices.astype(np.int64), weights)


def _summed(values: NDArray[np.float64], taps: Taps, first: int, axis: int) -> NDArray[np.float64]:
    """The weighted sums along an axis of values that begin at index ``first``, tap by tap."""
    shape = [1, 1, 1]
    shape[axis] = len(taps.weights)
    sums = np.zeros((*values.shape[:axis], len(taps.weights), *values.shape[axis + 1 :]))
    for tap in range(taps.weights.shape[1]):
        sums += values.take(taps.indices[:, tap] - first, axis) * taps.weights[:, tap].reshape(shape)
    return sums


def _nearest(start: int, stop: int, scale: float, length: int) -> NDArray[np.int64]:
    """The source pixels in which the centres lie."""
    at: NDArray[np.float64] = np.floor((np.arange(start, stop) + 0.5) * scale)
    return np.minimum(at, length - 1).astype(np.int64)
