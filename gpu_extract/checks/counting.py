"""How many components a label has, by an examination of a few windows of bounded size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpu_extract.model import Raster

__all__ = ["Box", "ComponentCount", "broken_share", "count_components", "count_gaps", "n_read"]

# A label whose box has no more pixels is read whole.
WHOLE_PIXELS = 1 << 20
# Side of the windows in which the ends of a larger one are read, pixels; larger than most cells.
PROBE_SIDE = 512
# A component smaller than this part of the largest is a speck, which says nothing of how many cells there are.
SPECK = 1 / 8
# An estimate needs at least this part of the label's pixels in the windows to be of components that lie within them.
WITHIN = 0.25
# The distances between so many components at most are taken.
N_COMPARED = 300
# Side of the window in which the gaps of a large label are counted, and the size of the smallest gap, pixels.
MIDDLE_SIDE, GAP_PIXELS = 1024, 10
# A plane is sampled in so many windows along each axis, of so many pixels a side.
GRID_WINDOWS, GRID_SIDE = 4, 64

Box = tuple[int, int, int, int]  # y0, x0, y1, x1


@dataclass(frozen=True)
class ComponentCount:
    """The components (8-connected) of a label.

    Parameters
    ----------
    n : int
        How many there are, without specks; an estimate where the label was not read whole.
    n_apart : int
        Groups of components, specks included, whose distance is larger than ``reach`` and than the largest one.
    """

    n: int
    n_apart: int


@dataclass(frozen=True)
class _Components:
    """The components of a label in a window: areas, boxes on the slide, and which are not cut off by the window."""

    areas: NDArray[np.int64]
    boxes: NDArray[np.int64]
    within: NDArray[np.bool_]

    def subset(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> _Components:
        """Return some of them, by a mask or by indices."""
        return _Components(self.areas[rows], self.boxes[rows], self.within[rows])

    @property
    def sides(self) -> NDArray[np.int64]:
        """The longer side of each box, pixels."""
        sides: NDArray[np.int64] = np.maximum(self.boxes[:, 2] - self.boxes[:, 0], self.boxes[:, 3] - self.boxes[:, 1])
        return sides


def count_components(raster: Raster, cell_id: int, box: Box, count: int, reach: float) -> ComponentCount:
    """Count the components of a label.

    Parameters
    ----------
    raster : Raster, (1, H, W)
    cell_id, box, count
        What `LabelStatistics` says of the label.
    reach : float, pixels
        Components that are no farther apart can be one cell's.
    """
    if _area(box) > WHOLE_PIXELS:
        ends = [_components(raster.read(*end)[0] == cell_id, end, box) for end in _ends(raster, cell_id, box)]
        return _estimate(ends, box, count)
    mask = raster.read(*box)[0] == cell_id
    if _is_one(mask):
        return ComponentCount(1, 1)
    found = _components(mask, box, box)
    return ComponentCount(int(np.count_nonzero(found.areas >= SPECK * found.areas.max())), _n_apart(found, reach))


def n_read(box: Box) -> int:
    """Return about how many pixels `count_components` reads."""
    return min(_area(box), 2 * PROBE_SIDE**2)


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _is_one(mask: NDArray[np.bool_]) -> bool:
    """Return whether a mask (h, w) surely is one component: one run in each row, each touching the next.

    Most cells are, and so do not need SciPy, whose import takes longer than all checks.
    """
    ends = np.diff(mask, axis=1, prepend=False, append=False)
    if np.any(np.count_nonzero(ends, axis=1) != 2):
        return False
    first, stop = np.nonzero(ends)[1].reshape(-1, 2).T
    return bool(np.all((first[1:] <= stop[:-1]) & (stop[1:] >= first[:-1])))


def _ends(raster: Raster, cell_id: int, box: Box) -> list[Box]:
    """Return windows within the box of a label that hold its first and its last row."""
    y0, x0, y1, x1 = box
    windows = []
    for row, top in ((y0, y0), (y1 - 1, max(y1 - PROBE_SIDE, y0))):
        x = x0 + int(np.argmax(raster.read(row, x0, row + 1, x1)[0, 0] == cell_id))
        left = min(max(x - PROBE_SIDE // 2, x0), max(x1 - PROBE_SIDE, x0))
        windows.append((top, left, min(top + PROBE_SIDE, y1), min(left + PROBE_SIDE, x1)))
    return windows


def _components(mask: NDArray[np.bool_], window: Box, box: Box) -> _Components:
    """Find the components of a label's mask in a window of its box."""
    from scipy import ndimage

    labels, n = ndimage.label(mask, np.ones((3, 3), int))
    areas = np.bincount(labels.ravel(), minlength=n + 1)[1:]
    slices = ndimage.find_objects(labels)
    boxes = np.array([[y.start, x.start, y.stop, x.stop] for y, x in slices], np.int64).reshape(n, 4)
    boxes += np.array(window[:2] * 2)
    cuts = np.array(window) != np.array(box)
    return _Components(areas, boxes, ~np.any((boxes == np.array(window)) & cuts, axis=1))


def _estimate(windows: list[_Components], box: Box, count: int) -> ComponentCount:
    """Estimate the number of components of a large label from those at its ends and from its area."""
    found = _Components(
        np.concatenate([window.areas for window in windows]),
        np.concatenate([window.boxes for window in windows]),
        np.concatenate([window.within for window in windows]),
    )
    within = found.subset(found.within)
    if within.areas.sum() < WITHIN * found.areas.sum():
        return ComponentCount(1, 1)  # so large that the windows cut it off
    large = within.subset(within.areas >= SPECK * within.areas.max())
    n = max(round(count / float(np.median(large.areas))), 1)
    is_apart = max(box[2] - box[0], box[3] - box[1]) > 3 * large.sides.max()
    return ComponentCount(n, n if is_apart else 1)


def _n_apart(found: _Components, reach: float) -> int:
    """Count the groups of components that no gap within reach joins; of the largest ones, if there are many."""
    if len(found.areas) > N_COMPARED:
        found = found.subset(np.argpartition(found.areas, -N_COMPARED)[-N_COMPARED:])
    near = max(reach, float(found.sides[np.argmax(found.areas)]))
    low, high = found.boxes[:, :2], found.boxes[:, 2:]
    joined = np.maximum(low[:, None] - high, low - high[:, None]).max(axis=2) <= near
    ungrouped, n = np.ones(len(joined), bool), 0
    while ungrouped.any():
        group = np.arange(len(joined)) == np.argmax(ungrouped)
        while np.count_nonzero(group) < np.count_nonzero(larger := joined[group].any(axis=0)):
            group = larger
        ungrouped &= ~group
        n += 1
    return n


def count_gaps(raster: Raster, cell_id: int, box: Box) -> tuple[int, int]:
    """Count the regions (4-connected) of other pixels in the box of a label, or in the middle of a large box.

    A cell that fills its box leaves about four, in the corners; between the cells of a mask there are many.

    Returns
    -------
    n, n_enclosed : int
        All regions, and those that the label surrounds.
    """
    from scipy import ndimage

    y0, x0, y1, x1 = box
    y, x = max((y0 + y1 - MIDDLE_SIDE) // 2, y0), max((x0 + x1 - MIDDLE_SIDE) // 2, x0)
    others = raster.read(y, x, min(y + MIDDLE_SIDE, y1), min(x + MIDDLE_SIDE, x1))[0] != cell_id
    regions, _ = ndimage.label(others)
    large = np.bincount(regions.ravel()) >= GAP_PIXELS
    large[0] = False
    n = int(np.count_nonzero(large))
    large[np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]])] = False
    return n, int(np.count_nonzero(large))


def broken_share(raster: Raster, plane: int = 0) -> float:
    """Return the share of horizontal neighbours, both not 0, that differ, in some windows of a plane.

    It is small in a plane of cells, which are many pixels wide, and large in an image. NaN where few pixels have such
    a neighbour.
    """
    _, H, W = raster.shape
    n_pixels = n_neighbours = n_different = 0
    for y in _grid(H):
        for x in _grid(W):
            pixels = raster.read(y, x, min(y + GRID_SIDE, H), min(x + GRID_SIDE, W))[plane]
            both = (pixels[:, 1:] != 0) & (pixels[:, :-1] != 0)
            n_pixels += int(np.count_nonzero(pixels))
            n_neighbours += int(np.count_nonzero(both))
            n_different += int(np.count_nonzero(both & (pixels[:, 1:] != pixels[:, :-1])))
    return n_different / n_neighbours if n_neighbours > n_pixels / 3 else math.nan


def _grid(length: int) -> list[int]:
    """Return where the windows of a grid begin along an axis."""
    return sorted({int(start) for start in np.linspace(0, max(length - GRID_SIDE, 0), GRID_WINDOWS)})
