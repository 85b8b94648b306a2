"""Statistics of each label of a plane from one pass over it: count, coordinate sums, box, border contact."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import LabelError
from gpu_extract.model import Raster, strips

__all__ = ["LabelStatistics", "Runs", "Statistics", "label_statistics", "label_strips", "merge", "runs"]

# Pixels per strip of a label plane. Its runs take about the same memory again.
STRIP_PIXELS = 4 << 20


class Runs(NamedTuple):
    """The runs of equal labels in the rows of a plane, without the background, in the order of pixels.

    Parameters
    ----------
    ids : (n,), dtype of the labels
    y, x : (n,) int64, pixels
        First pixel of each run.
    lengths : (n,) int64, pixels
    """

    ids: NDArray[Any]
    y: NDArray[np.int64]
    x: NDArray[np.int64]
    lengths: NDArray[np.int64]


@dataclass(frozen=True)
class LabelStatistics:
    """Statistics of each label of one plane, sorted by id.

    Parameters
    ----------
    ids : (n,) uint64
    counts : (n,) int64, pixels
    sums : (n, 2) int64, pixels
        Sums of the y and x coordinates.
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
        """Return the mean (y, x) of each label's pixels, (n, 2), divided in float64 and rounded half to even."""
        return np.round(self.sums / self.counts[:, None]).astype(np.int64)


# `label_statistics`, or its equivalent on a device. Arguments: the label plane and its name in messages.
Statistics = Callable[[Raster, str], LabelStatistics]


def label_statistics(raster: Raster, where: str = "labels") -> LabelStatistics:
    """Return the statistics of each label of a plane (1, H, W); 0 is background.

    The plane is read in strips of rows. Memory use is one strip and the statistics.

    Parameters
    ----------
    raster : Raster
    where : str
        Name of the plane in messages.

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
    """Read a label plane from top to bottom in strips of rows (h, W), each with its first row."""
    for y0, strip in strips(raster, STRIP_PIXELS):
        yield y0, strip[0]


def runs(labels: NDArray[Any], y0: int = 0) -> Runs:
    """Return the runs of a strip of rows (h, W) that starts at row ``y0``."""
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
    """Return the statistics of the labels in these runs of a slide of size (H, W)."""
    ids, y, x, lengths = found
    H, W = size
    last_x = x + lengths - 1
    return merge(
        [
            LabelStatistics(
                ids=ids.astype(np.uint64),
                counts=lengths,
                # The x coordinates of a run of n pixels from x sum to n x + n (n - 1) / 2.
                sums=np.stack([y * lengths, x * lengths + lengths * (lengths - 1) // 2], axis=1),
                boxes=np.stack([y, x, y + 1, last_x + 1], axis=1),
                touches=(y == 0) | (y == H - 1) | (x == 0) | (last_x == W - 1),
            )
        ]
    )


def merge(parts: list[LabelStatistics]) -> LabelStatistics:
    """Merge statistics in which a label may occur several times."""
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
