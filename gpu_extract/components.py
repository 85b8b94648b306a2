"""Connected components of labels: the labels with several, and a plane that keeps the largest one of each.

Components are 8-connected, as in ``skimage.measure.label`` with ``connectivity=2``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_extract.labels import Runs, label_strips, runs
from gpu_extract.model import Raster

__all__ = ["Components", "LargestComponents", "find_components"]


@dataclass(frozen=True)
class Components:
    """The labels of a plane with several connected components.

    Parameters
    ----------
    ids : (n,) uint64, ascending
    counts : (n,) int64
        Number of components of each label, at least 2.
    lesser : Runs
        The runs of all components except the largest of each label. Ties go to the first in row-major order.
    """

    ids: NDArray[np.uint64]
    counts: NDArray[np.int64]
    lesser: Runs

    def __len__(self) -> int:
        return len(self.ids)


def find_components(raster: Raster) -> Components:
    """Find the labels with several components in a plane (1, H, W) without negative labels.

    The plane is read in strips of rows. Memory use is about 100 bytes per run of equal labels in a row.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    parts = [runs(labels, y0) for y0, labels in label_strips(raster)]
    all_runs = Runs(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    n = len(all_runs.ids)
    ids, label = np.unique(all_runs.ids, return_inverse=True)
    above, below = _touching(all_runs, label, raster.shape[2])
    graph = coo_array((np.ones(len(above), np.int8), (above, below)), shape=(n, n))
    n_components, component = connected_components(graph, directed=False)
    area = np.bincount(component, all_runs.lengths, n_components).astype(np.int64)
    first, of_label = np.full(n_components, n), np.empty(n_components, np.int64)
    np.minimum.at(first, component, np.arange(n))
    of_label[component] = label
    order = np.lexsort((first, -area, of_label))  # by label, the component to keep first
    kept = np.zeros(n_components, bool)
    kept[order[np.flatnonzero(np.diff(of_label[order], prepend=-1))]] = True
    counts = np.bincount(of_label, minlength=len(ids))
    lesser = ~kept[component]
    return Components(
        ids[counts > 1].astype(np.uint64), counts[counts > 1], Runs(*(column[lesser] for column in all_runs))
    )


def _touching(all_runs: Runs, label: NDArray[np.int64], width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices of all pairs of runs of one label that touch in consecutive rows, corners included.

    Runs sorted by label, row and column have ascending keys, so the runs of the next row that a run touches are
    consecutive.
    """
    order = np.lexsort((all_runs.x, all_runs.y, label))
    y, x = all_runs.y[order], all_runs.x[order]
    last = x + all_runs.lengths[order] - 1
    row = (label[order] * (int(all_runs.y.max(initial=0)) + 2) + y) * (width + 2)
    start = np.searchsorted(row + last, row + (width + 2) + x - 1, side="left")
    stop = np.searchsorted(row + x, row + (width + 2) + last + 1, side="right")
    n_below = np.maximum(stop - start, 0)
    above = np.repeat(np.arange(len(order)), n_below)
    below = np.arange(n_below.sum()) - np.repeat(np.cumsum(n_below) - n_below, n_below) + start[above]
    return order[above], order[below]


class LargestComponents:
    """A label plane (1, H, W) with only the largest component of each label; see `Raster`.

    Parameters
    ----------
    raster : Raster
    components : Components
        The components of that raster.
    """

    def __init__(self, raster: Raster, components: Components) -> None:
        self._raster, self._lesser = raster, components.lesser
        self.shape, self.dtype = raster.shape, raster.dtype
        self.names, self.source = raster.names, raster.source

    def read(self, y0: int, x0: int, y1: int, x1: int) -> NDArray[Any]:
        """See `Raster.read`."""
        labels = np.array(self._raster.read(y0, x0, y1, x1))
        _, y, x, lengths = self._lesser
        rows = slice(*np.searchsorted(y, (y0, y1)))
        starts, stops = np.maximum(x[rows] - x0, 0), np.minimum(x[rows] + lengths[rows], x1) - x0
        for row, start, stop in zip((y[rows] - y0).tolist(), starts.tolist(), stops.tolist(), strict=True):
            labels[0, row, start : max(start, stop)] = 0
        return labels
