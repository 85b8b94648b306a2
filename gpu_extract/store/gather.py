"""Cells that come in the order in which the slide is read, as whole chunks of several cells."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from gpu_extract.model import CellImages
from gpu_extract.store.codecs import ChunkFormat

__all__ = ["gather"]


def gather(batches: Iterable[CellImages], format: ChunkFormat, n_total: int) -> Iterator[CellImages]:
    """The cells of each chunk, as soon as its last one has come; tiles are copied.

    Parameters
    ----------
    batches : iterable of CellImages
        Memory holds the chunks that are begun, so they should come one group of rows after the other, as those of
        `planning.batches` do.
    format : ChunkFormat
    n_total : int
        N, the cells of the file, whose last chunk may hold fewer cells than the others.
    """
    n_cells = format.shape[0]
    begun: dict[int, CellImages] = {}
    missing: dict[int, int] = {}
    for cells in batches:
        for i, row in enumerate(cells.rows.tolist()):
            chunk = row // n_cells
            if chunk not in begun:
                begun[chunk] = _blank(cells, np.arange(chunk * n_cells, min((chunk + 1) * n_cells, n_total)))
                missing[chunk] = len(begun[chunk])
            part, place = begun[chunk], row % n_cells
            part.ids[place], part.images[place], part.levels[place] = cells.ids[i], cells.images[i], cells.levels[i]
            missing[chunk] -= 1
            if not missing[chunk]:
                yield begun.pop(chunk)
    assert not begun


def _blank(like: CellImages, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> CellImages:
    """Room for the cells of these rows."""
    return CellImages(
        rows=rows,
        ids=np.empty(len(rows), np.uint64),
        images=np.empty((len(rows), *like.images.shape[1:]), like.images.dtype),
        levels=np.empty((len(rows), *like.levels.shape[1:]), like.levels.dtype),
    )
