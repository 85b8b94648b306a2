"""What is known of each label of a plane, from one pass over it: count, coordinate sums, box, border contact."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import LabelError
from gpu_extract.model import Raster, strips

__all__ = ["LabelStatistics", "Runs", "Statistics", "label_statistics", "label_strips", "merge", "runs"]

# Pixels of one strip of a label plane; its runs take about as much memory again.
STRIP_PIXELS = 4 << 20


class Runs(NamedTuple):
    """The runs of equal labels in the rows of a plane, background left out, in the order of pixels.

    Parameters
    ----------
    ids : (n,), the labels' type
    y, x : (n,) int64, pixels
        Their first pixel.
    lengths : (n,) int64, pixels
    """

    ids: NDArray[Any]
    y: NDArray[np.int64]
    x: NDArray[np.int64]
    lengths: NDArray[np.int64]


@dataclass(frozen=True)
class LabelStatistics:
    """What is known of each label of one plane, ids ascending.

    Parameters
    ----------
    ids : (n,) uint64
    counts : (n,) int64, pixels
    sums : (n, 2) int64, pixels
        Sums of the y and of the x coordinates.
    boxes : (n, 4) int64, pixels
    touches : (n,) bool
        Whether the label has a pixel on the first or last row or column of the slide.
    """

    ids: NDArray[np.uint64]
    counts: NDArray[np.int64]
    sums: NDArray[np.int64]
    boxes: NDArray[np.int64]
    touches: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ids)

    def centers(self) -> NDArray[np.int64]:
        """(n, 2) mean (y, x) of the pixels, divided in float64, rounded half to even."""
        return np.round(self.sums / self.counts[:, None]).astype(np.int64)


# `label_statistics`, or what gives the same on a device: of a label plane and what to call it in messages.
Statistics = Callable[[Raster, str], LabelStatistics]


def label_statistics(raster: Raster, where: str = "labels") -> LabelStatistics:
    """Count, coordinate sums, box and border contact of each label of a plane (1, H, W), 0 left out.

    Read a strip of rows at a time; the memory needed is a strip and the labels' statistics.

    Raises
    ------
    LabelError
        If a label is negative.
    """
    _, H, W = raster.shape
    negative, lowest = 0, 0
    parts = []
    for y0, labels in label_strips(raster):
        if labels.dtype.kind == "i" and labels.min() < 0:
            negative += int(np.count_nonzero(labels < 0))
            lowest = min(lowest, int(labels.min()))
        else:
            parts.append(_run_statistics(runs(labels, y0), (H, W)))
    if negative:
        raise LabelError(
            f"{where} hold {negative} negative pixels (lowest {lowest}); ids of cells must be 0 (background) or more"
        )
    return merge(parts)


def label_strips(raster: Raster) -> Iterator[tuple[int, NDArray[Any]]]:
    """A label plane from top to bottom in strips of rows (h, W), each with its first row."""
    for y0, strip in strips(raster, STRIP_PIXELS):
        yield y0, strip[0]


def runs(labels: NDArray[Any], y0: int = 0) -> Runs:
    """The runs of a strip of rows (h, W) that begins at row ``y0``."""
    starts = np.empty(labels.shape, bool)
    starts[:, 0] = True
    np.not_equal(labels[:, 1:], labels[:, :-1], out=starts[:, 1:])
    flat = np.flatnonzero(starts)
    lengths = np.diff(flat, append=labels.size)
    ids = labels.ravel()[flat]
    kept = ids != 0
    y, x = np.divmod(flat[kept], labels.shape[1])
    return Runs(ids[kept], y + y0, x, lengths[kept])


def _run_statistics(found: Runs, size: tuple[int, int]) -> LabelStatistics:
    """The statistics of the labels of some runs on a slide of size (H, W)."""
    ids, y, x, lengths = found
    H, W = size
    last_x = x + lengths - 1
    return merge(
        [
            LabelStatistics(
                ids=ids.astype(np.uint64),
                counts=lengths,
                # A run of n pixels from x has the x sum n x + n (n - 1) / 2.
                sums=np.stack([y * lengths, x * lengths + lengths * (lengths - 1) // 2], axis=1),
                boxes=np.stack([y, x, y + 1, last_x + 1], axis=1),
                touches=(y == 0) | (y == H - 1) | (x == 0) | (last_x == W - 1),
            )
        ]
    )


def merge(parts: list[LabelStatistics]) -> LabelStatistics:
    """The statistics of labels of which each may occur several times in the parts."""
    ids = np.concatenate([part.ids for part in parts])
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    starts = np.flatnonzero(np.diff(ids, prepend=ids[:1] + np.uint64(1)))

    def gathered(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(part, name) for part in parts])[order]

    if not len(ids):
        empty = np.zeros((0, 4), np.int64)
        return LabelStatistics(ids, empty[:, 0], empty[:, :2], empty, np.zeros(0, bool))
    boxes = gathered("boxes")
    low = np.minimum.reduceat(boxes[:, :2], starts, axis=0)
    high = np.maximum.reduceat(boxes[:, 2:], starts, axis=0)
    return LabelStatistics(
        ids=ids[starts],
        counts=np.add.reduceat(gathered("counts"), starts),
        sums=np.add.reduceat(gathered("sums"), starts, axis=0),
        boxes=np.concatenate([low, high], axis=1),
        touches=np.logical_or.reduceat(gathered("touches"), starts),
    )
