"""Outlines of cells drawn as a label plane.

A pixel belongs to a cell if its center lies inside the outline, by the even-odd rule over the rings of a part: inside
the outer ring and in no hole. A center exactly on an edge belongs to the polygon if the edge is on its left or its top
(the rule of Java 2D, which QuPath draws by, and of most rasterizers), so that polygons with a common edge leave no gap
and do not overlap. Where outlines overlap, a pixel belongs to the one that is last in the file.

All outlines are drawn once, into runs of pixels. A box is read by filling in its runs, so that its pixels do not depend
on how the slide is cut into boxes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import LabelError
from gpu_extract.parallel import parallel_map
from gpu_extract.sources.outlines import Outlines, ranges

__all__ = ["PolygonRaster", "draw"]

# Crossings of edges with rows of pixels that are held at a time; each takes about 60 bytes while they are sorted.
CHUNK = 1 << 20
# Five million cells of a hundred rows. Beyond that the file is no segmentation, and the runs would fill the memory.
MAX_CROSSINGS = 1 << 30


class Runs(NamedTuple):
    """Runs of pixels in the rows of a slide.

    Parameters
    ----------
    cells : (n,) int32
        Index of the cell.
    y : (n,) int32, pixels
    x0, x1 : (n,) int32, pixels
        The first pixel, and the one behind the last.
    """

    cells: NDArray[np.int32]
    y: NDArray[np.int32]
    x0: NDArray[np.int32]
    x1: NDArray[np.int32]

    def taken(self, chosen: NDArray[Any]) -> Runs:
        """Return some of them, by indices or by a mask."""
        return Runs._make(field[chosen] for field in self)


NO_RUNS = Runs(*(np.zeros(0, np.int32) for _ in Runs._fields))


@dataclass(frozen=True, eq=False)
class PolygonRaster:
    """A label plane (1, H, W) of outlines, held as the runs of pixels in its rows; made by `draw`.

    Parameters
    ----------
    shape : (1, H, W)
    ids : (n,) uint32 or uint64
        The id of each run, by rows and columns; the runs do not overlap.
    columns : (n, 2) int32
        The first pixel of each run, and the one behind its last.
    rows : (H + 1,) int64
        The first run of each row, then n.
    source : str
        See `Raster.source`.
    warnings : tuple of str
        What the user should know: about the file, overlaps, and outlines without a pixel in the image.
    """

    shape: tuple[int, int, int]
    ids: NDArray[Any]
    columns: NDArray[np.int32]
    rows: NDArray[np.int64]
    source: str
    warnings: tuple[str, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """See `Raster.dtype`."""
        return self.ids.dtype

    @property
    def names(self) -> tuple[str, ...]:
        """See `Raster.names`."""
        return ()

    def read(self, y0: int, x0: int, y1: int, x1: int) -> NDArray[Any]:
        """See `Raster.read`."""
        first, end = self.rows[y0], self.rows[y1]
        left, right = self.columns[first:end].T
        meets = (left < x1) & (right > x0)
        rows = np.repeat(np.arange(y1 - y0), np.diff(self.rows[y0 : y1 + 1]))[meets]
        offset = rows * (x1 - x0) - x0
        ids = self.ids[first:end][meets]
        # Background and runs take turns in the box, pixel after pixel.
        values = np.zeros(2 * len(ids) + 1, self.dtype)
        values[1::2] = ids
        ends = np.zeros(2 * len(ids) + 2, np.int64)
        ends[1:-1:2] = offset + np.maximum(left[meets], x0)
        ends[2:-1:2] = offset + np.minimum(right[meets], x1)
        ends[-1] = (y1 - y0) * (x1 - x0)
        return np.repeat(values, np.diff(ends)).reshape(1, y1 - y0, x1 - x0)


def draw(outlines: Outlines, size: tuple[int, int], subject: str, source: str) -> PolygonRaster:
    """Return the label plane of outlines.

    Parameters
    ----------
    outlines : Outlines
        In pixels of the image.
    size : (H, W)
        Of the image. What lies outside is cut off.
    subject : str
        What to call the outlines in messages.
    source : str

    Raises
    ------
    LabelError
        If no outline holds a pixel of the image, or there is far too much to draw.
    """
    drawn = _drawn(outlines, size, subject)
    n_drawn = np.bincount(drawn.cells, drawn.x1 - drawn.x0, len(outlines))
    runs, overlap = _disjoint(drawn, size[1], subject)
    n_visible = np.bincount(runs.cells, runs.x1 - runs.x0, len(outlines))
    n_hidden = int(np.count_nonzero((n_drawn > 0) & (n_visible == 0)))
    dtype = np.uint32 if outlines.ids.max(initial=0) < 1 << 32 else np.uint64
    return PolygonRaster(
        shape=(1, *size),
        ids=outlines.ids.astype(dtype)[runs.cells],
        columns=np.stack([runs.x0, runs.x1], axis=1),
        rows=np.searchsorted(runs.y, np.arange(size[0] + 1)),
        source=source,
        warnings=(
            *outlines.warnings,
            *_empty_warnings(outlines, size, subject, n_drawn),
            *_overlap_warnings(subject, overlap, n_hidden),
        ),
    )


class Edges(NamedTuple):
    """The edges of rings that cross the center of a row of pixels, from top to bottom.

    Parameters
    ----------
    parts : (n,) int64
        Index of the part, ascending.
    y, x : (n,) float64
        The upper end.
    dy, dx : (n,) float64
        From the upper end to the lower one.
    first, end : (n,) int64
        The first row whose center is crossed, and the row behind the last.
    """

    parts: NDArray[np.int64]
    y: NDArray[np.float64]
    x: NDArray[np.float64]
    dy: NDArray[np.float64]
    dx: NDArray[np.float64]
    first: NDArray[np.int64]
    end: NDArray[np.int64]

    def between(self, first: int, end: int) -> Edges:
        """Return the edges from one to the one before another, by their indices."""
        return Edges._make(field[first:end] for field in self)


class Overlap(NamedTuple):
    """How much outlines overlap: pixels that belong to several, and how many outlines have such pixels."""

    n_pixels: int
    n_cells: int


def _drawn(outlines: Outlines, size: tuple[int, int], subject: str) -> Runs:
    """Return the runs of all outlines, in no particular order; those of different outlines may overlap."""
    edges = _edges(outlines, size[0])
    n_crossings = np.bincount(edges.parts, edges.end - edges.first, len(outlines.parts) - 1).astype(np.int64)
    if n_crossings.sum() > MAX_CROSSINGS:
        raise LabelError(
            f"{subject}: its outlines cross {n_crossings.sum()} rows of pixels, and {MAX_CROSSINGS} are possible; "
            "check that they are outlines of cells, in pixels"
        )
    cell_of_part = np.repeat(np.arange(len(outlines), dtype=np.int32), np.diff(outlines.cells))
    first_edge = np.searchsorted(edges.parts, np.arange(len(outlines.parts)))
    chunks = [edges.between(first_edge[first], first_edge[end]) for first, end in _slices(n_crossings)]
    filled = parallel_map(partial(_filled, width=size[1], cell_of_part=cell_of_part), chunks)
    return Runs(*map(np.concatenate, zip(NO_RUNS, *filled, strict=True)))


def _edges(outlines: Outlines, height: int) -> Edges:
    vertices, rings = outlines.vertices, outlines.rings
    following = np.arange(1, len(vertices) + 1)
    following[rings[1:] - 1] = rings[:-1]  # no ring is empty here
    part_of_ring = np.repeat(np.arange(len(outlines.parts) - 1), np.diff(outlines.parts))
    parts = np.repeat(part_of_ring, np.diff(rings))
    start, stop = vertices, vertices[following]
    # From top to bottom, so that the crossings of an edge are the same for the polygons on both of its sides.
    down = start[:, :1] <= stop[:, :1]
    upper, lower = np.where(down, start, stop), np.where(down, stop, start)
    first = np.clip(np.ceil(upper[:, 0] - 0.5), 0, height).astype(np.int64)
    end = np.clip(np.ceil(lower[:, 0] - 0.5), 0, height).astype(np.int64)
    crosses = end > first
    upper, lower = upper[crosses], lower[crosses]
    dy, dx = (lower - upper).T
    return Edges(parts[crosses], upper[:, 0], upper[:, 1], dy, dx, first[crosses], end[crosses])


def _slices(sizes: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield items that follow each other (first, end) with a total size of `CHUNK` at most, or a single larger one."""
    ends = np.cumsum(sizes)
    first = 0
    while first < len(sizes):
        before = ends[first - 1] if first else 0
        end = max(int(np.searchsorted(ends, before + CHUNK, side="right")), first + 1)
        yield first, end
        first = end


def _filled(edges: Edges, width: int, cell_of_part: NDArray[np.int32]) -> Runs:
    """Return the runs inside the parts whose edges these are."""
    if not len(edges.parts):
        return NO_RUNS
    n_rows = edges.end - edges.first
    edge = np.repeat(np.arange(len(n_rows)), n_rows)
    row = ranges(edges.first, n_rows)
    # The product before the quotient: with coordinates of few digits, a center on an edge is found to be exactly there.
    x = edges.x[edge] + (row + 0.5 - edges.y[edge]) * edges.dx[edge] / edges.dy[edge]
    # The first pixel whose center is not left of the crossing. Inside are the pixels between the first and the second
    # crossing of a row, the third and the fourth, ...: the even-odd rule.
    column = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
    # A line is a row of a part. One number for line and column brings together by one sort what belongs together.
    starts = np.flatnonzero(np.diff(edges.parts, prepend=-1))
    top = np.minimum.reduceat(edges.first, starts)
    height = np.maximum.reduceat(edges.end, starts) - top
    shift = np.cumsum(height) - height - top  # from the row of a part to its line
    n_edges = np.diff(starts, append=len(edges.parts))
    keys = (np.repeat(shift, n_edges)[edge] + row) * (width + 1) + column
    keys.sort()
    line, x0 = np.divmod(keys[0::2], width + 1)
    x1 = keys[1::2] - line * (width + 1)
    kept = x1 > x0
    line, x0, x1 = line[kept], x0[kept], x1[kept]
    place = np.repeat(np.arange(len(starts)), height)[line]
    cells, y = cell_of_part[edges.parts[starts]][place], line - shift[place]
    return Runs(cells, y.astype(np.int32), x0.astype(np.int32), x1.astype(np.int32))


def _disjoint(runs: Runs, width: int, subject: str) -> tuple[Runs, Overlap]:
    """Return runs that do not overlap, by row and column, the last cell on top; and how much the outlines overlap.

    Raises
    ------
    LabelError
        If they overlap so much that this would take hours.
    """
    start = runs.y * np.int64(width) + runs.x0  # in pixels of the slide, counted along its rows
    order = np.argsort(start)
    runs, start = runs.taken(order), start[order]
    stop = start + (runs.x1 - runs.x0)
    meets = np.zeros(len(start), bool)  # the runs that one further left reaches into
    meets[1:] = start[1:] < np.maximum.accumulate(stop)[:-1]
    if not meets.any():
        return runs, Overlap(0, 0)
    mixed = meets.copy()
    mixed[:-1] |= meets[1:]
    cells, start, stop, overlap = _resolved(runs.cells[mixed], start[mixed], stop[mixed], meets[mixed], subject)
    y, x0 = np.divmod(start, width)
    pieces = Runs(*(field.astype(np.int32) for field in (cells, y, x0, x0 + stop - start)))
    joined = Runs(*map(np.concatenate, zip(runs.taken(~mixed), pieces, strict=True)))
    return joined.taken(np.argsort(joined.y * np.int64(width) + joined.x0)), overlap


def _resolved(
    cells: NDArray[np.int32], start: NDArray[np.int64], stop: NDArray[np.int64], meets: NDArray[np.bool_], subject: str
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64], Overlap]:
    """Return the pieces (cell, start, stop) of overlapping runs that are seen, and how much they overlap.

    Parameters
    ----------
    cells, start, stop : (n,)
        Runs by their starts.
    meets : (n,) bool
        Whether a run overlaps one further left; where it does not, a group begins that overlaps no other.
    """
    # Between two neighboring ends a run covers all pixels or none.
    ends = np.sort(np.concatenate([start, stop]))
    ends = ends[np.diff(ends, prepend=-1) > 0]  # np.unique takes five times as long
    first = np.searchsorted(ends, start)
    n_covered = np.searchsorted(ends, stop) - first
    if n_covered.sum() > MAX_CROSSINGS:
        raise LabelError(
            f"{subject}: too many of its outlines lie on top of each other; give those of one plane of cells"
        )
    top, bottom = np.full(len(ends), -1, np.int32), np.full(len(ends), np.iinfo(np.int32).max, np.int32)
    overlapping = np.zeros(int(cells.max()) + 1, bool)
    groups = np.append(np.flatnonzero(~meets), len(meets))
    for first_group, end_group in _slices(np.add.reduceat(n_covered, groups[:-1])):
        lower, upper = groups[first_group], groups[end_group]
        by_cell = lower + np.argsort(cells[lower:upper])
        covered = ranges(first[by_cell], n_covered[by_cell])
        cell = np.repeat(cells[by_cell], n_covered[by_cell])
        top[covered] = cell  # of several values for one place, NumPy keeps the last
        bottom[covered[::-1]] = cell[::-1]
        overlapping[cell[top[covered] != bottom[covered]]] = True
    seen, shared = top[:-1] >= 0, top[:-1] > bottom[:-1]
    n_pixels = int(np.diff(ends)[shared].sum())
    return top[:-1][seen], ends[:-1][seen], ends[1:][seen], Overlap(n_pixels, int(overlapping.sum()))


def _empty_warnings(outlines: Outlines, size: tuple[int, int], subject: str, n_drawn: NDArray[Any]) -> Iterator[str]:
    """Yield a line for the outlines outside the image, and one for those that are too small to hold a pixel.

    Raises
    ------
    LabelError
        If that are all outlines.
    """
    n, (H, W) = len(outlines), size
    empty = n_drawn == 0
    if not empty.any():
        return
    low, high = _boxes(outlines)
    outside = empty & ((low >= size) | (high <= 0)).any(axis=1)
    if empty.all():
        (y0, x0), (y1, x1) = low.min(axis=0), high.max(axis=0)
        raise LabelError(
            f"{subject}: none of its {n} outlines holds a pixel of the image of {H} x {W} pixels (H x W); they lie at "
            f"y = {y0:g} to {y1:g}, x = {x0:g} to {x1:g} in its pixels: check which image they belong to, and the unit"
        )
    if outside.any():
        yield f"{subject}: {outside.sum()} of {n} outlines lie outside the image of {H} x {W} pixels (H x W)"
    if (empty & ~outside).any():
        yield f"{subject}: {(empty & ~outside).sum()} of {n} outlines hold no pixel's center"


def _overlap_warnings(subject: str, overlap: Overlap, n_hidden: int) -> Iterator[str]:
    if overlap.n_cells:
        hidden = f"; {n_hidden} of them are covered completely and missing" if n_hidden else ""
        yield (
            f"{subject}: {overlap.n_cells} outlines overlap, in {overlap.n_pixels} pixels; "
            f"these belong to the outline that is later in the file{hidden}"
        )


def _boxes(outlines: Outlines) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the corners (n, 2) of each outline's bounding box, the lower and the upper one."""
    starts = outlines.rings[outlines.parts[outlines.cells[:-1]]]
    return np.minimum.reduceat(outlines.vertices, starts), np.maximum.reduceat(outlines.vertices, starts)
