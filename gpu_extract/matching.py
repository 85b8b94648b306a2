"""Pairing of nuclei with cytosols by overlap, and the nucleus plane in which pairs share an id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gpu_extract.labels import LabelStatistics, label_strips
from gpu_extract.model import Raster

__all__ = ["Overlaps", "Pairing", "Relabeled", "find_overlaps", "pair_nuclei"]


@dataclass(frozen=True)
class Overlaps:
    """All pairs of a nucleus and a cytosol that share pixels, sorted by nucleus, then cytosol.

    Parameters
    ----------
    nuclei, cytosols : (n,) uint64
    counts : (n,) int64, pixels
        Number of shared pixels.
    """

    nuclei: NDArray[np.uint64]
    cytosols: NDArray[np.uint64]
    counts: NDArray[np.int64]

    def holders(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Return the nuclei that overlap a cytosol, ascending, and for each the cytosol that it overlaps most.

        Ties go to the lower cytosol id.
        """
        order = np.lexsort((self.cytosols, -self.counts, self.nuclei))
        nuclei, first = np.unique(self.nuclei[order], return_index=True)
        return nuclei, self.cytosols[order][first]


@dataclass(frozen=True)
class Pairing:
    """The assignment of nuclei to cytosols.

    Parameters
    ----------
    nuclei : (n,) uint64, ascending
        All ids of the nucleus plane.
    becomes : (n,) uint64
        New id of each nucleus: that of its cytosol; 0 if its cell has a larger nucleus; an unused id if it overlaps
        no cytosol.
    cells : (m,) uint64, ascending
        The cytosols with a nucleus, and the unused ids given to nuclei.
    largest : (m,) uint64
        Id of the largest nucleus of each cell.
    counts : (m,) int64
        Number of nuclei of each cell.
    """

    nuclei: NDArray[np.uint64]
    becomes: NDArray[np.uint64]
    cells: NDArray[np.uint64]
    largest: NDArray[np.uint64]
    counts: NDArray[np.int64]

    def of(self, cells: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return the id of each cell's largest nucleus and its number of nuclei, (n, 2); 0 and 0 if it has none."""
        found = np.zeros((len(cells), 2), np.uint64)
        _, at, of_cells = np.intersect1d(cells, self.cells, assume_unique=True, return_indices=True)
        found[at, 0], found[at, 1] = self.largest[of_cells], self.counts[of_cells]
        return found


def find_overlaps(nucleus: Raster, cytosol: Raster) -> Overlaps:
    """Return the overlaps of two label planes (1, H, W) without negative labels, read in strips of rows."""
    parts = []
    for (_, nuclei), (_, cytosols) in zip(label_strips(nucleus), label_strips(cytosol), strict=True):
        starts_run = np.ones(nuclei.shape, bool)
        starts_run[:, 1:] = (nuclei[:, 1:] != nuclei[:, :-1]) | (cytosols[:, 1:] != cytosols[:, :-1])
        flat = np.flatnonzero(starts_run)
        lengths = np.diff(flat, append=nuclei.size)
        pairs = [plane.ravel()[flat].astype(np.uint64) for plane in (nuclei, cytosols)]
        both = (pairs[0] != 0) & (pairs[1] != 0)
        parts.append(_sum_pairs(pairs[0][both], pairs[1][both], lengths[both]))
    return _sum_pairs(
        np.concatenate([part.nuclei for part in parts]),
        np.concatenate([part.cytosols for part in parts]),
        np.concatenate([part.counts for part in parts]),
    )


def _sum_pairs(nuclei: NDArray[np.uint64], cytosols: NDArray[np.uint64], counts: NDArray[np.int64]) -> Overlaps:
    """Return the overlaps, summed over pairs that occur several times."""
    order = np.lexsort((cytosols, nuclei))
    nuclei, cytosols, counts = nuclei[order], cytosols[order], counts[order]
    if not len(order):
        return Overlaps(nuclei, cytosols, counts)
    is_first = np.ones(len(order), bool)
    is_first[1:] = (nuclei[1:] != nuclei[:-1]) | (cytosols[1:] != cytosols[:-1])
    first = np.flatnonzero(is_first)
    return Overlaps(nuclei[first], cytosols[first], np.add.reduceat(counts, first))


def pair_nuclei(
    nuclei: LabelStatistics, cytosols: LabelStatistics, overlaps: Overlaps, several: Literal["largest", "all"]
) -> Pairing:
    """Assign each nucleus to the cytosol that it overlaps most.

    Parameters
    ----------
    nuclei, cytosols : LabelStatistics
        Statistics of the two planes.
    overlaps : Overlaps
    several : {"largest", "all"}
        Nuclei kept in a cell with several: the one with the most pixels (ties: the lower id), or all as one nucleus.
    """
    held, holders = overlaps.holders()
    is_held = np.isin(nuclei.ids, held, assume_unique=True)
    becomes = np.empty(len(nuclei), np.uint64)
    becomes[is_held] = holders
    becomes[~is_held] = _unused_ids(cytosols.ids, int(np.count_nonzero(~is_held)))
    order = np.lexsort((nuclei.ids, -nuclei.counts, becomes))
    cells, first, counts = np.unique(becomes[order], return_index=True, return_counts=True)
    largest = order[first]
    if several == "largest":
        becomes[np.setdiff1d(np.arange(len(nuclei)), largest)] = 0
    return Pairing(nuclei.ids, becomes, cells, nuclei.ids[largest], counts)


def _unused_ids(ids: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """Return ``n`` ids that are not in ``ids``, ascending: after the last one, or in gaps if that would overflow."""
    last = int(ids[-1]) if len(ids) else 0
    if last + n < 2**64:
        return np.arange(last + 1, last + n + 1, dtype=np.uint64)
    return np.setdiff1d(np.arange(1, len(ids) + n + 1, dtype=np.uint64), ids)[:n]


class Relabeled:
    """A label plane (1, H, W) with its ids replaced; see `Raster`.

    Parameters
    ----------
    raster : Raster
    ids : (n,) uint64, ascending
        All ids of the plane except 0.
    becomes : (n,) uint64
        Their replacements.
    """

    def __init__(self, raster: Raster, ids: NDArray[np.uint64], becomes: NDArray[np.uint64]) -> None:
        self._raster = raster
        self.dtype = np.dtype(np.uint32 if int(becomes.max(initial=0)) < 2**32 else np.uint64)
        self._ids = np.concatenate([np.zeros(1, np.uint64), ids])
        self._becomes = np.concatenate([np.zeros(1, np.uint64), becomes]).astype(self.dtype)
        self.shape, self.names, self.source = raster.shape, raster.names, raster.source

    def read(self, y0: int, x0: int, y1: int, x1: int) -> NDArray[Any]:
        """See `Raster.read`."""
        labels = self._raster.read(y0, x0, y1, x1)
        # One lookup per run of equal labels; runs are about twenty pixels long.
        flat = labels.ravel()
        starts = np.flatnonzero(np.concatenate([np.ones(1, bool), flat[1:] != flat[:-1]]))
        ids = self._becomes[np.searchsorted(self._ids, flat[starts].astype(np.uint64))]
        return np.repeat(ids, np.diff(starts, append=flat.size)).reshape(labels.shape)
