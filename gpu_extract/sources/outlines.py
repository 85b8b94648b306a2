"""Outlines of cells, polygons with holes, as segmentation programs export them instead of a label plane.

Conventions: a vertex is (y, x). Pixel (y, x) covers [y, y + 1) x [x, x + 1), so its center is at (y + 0.5, x + 0.5).
This is the convention of QuPath and ImageJ (pixel (0, 0) lies between the points (0, 0) and (1, 1)) and of spatialdata.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import LabelError

__all__ = ["EVERY", "Outlines", "OutlinesBuilder", "are_unique", "cell_ids", "checked", "ranges", "starts_of", "taken"]

Unit = Literal["px", "um"]
Ring = NDArray[np.float64]  # (k, 2) vertices (y, x)

# No image is this wide; the row and column of such a vertex would not fit the arithmetic of drawing.
MAX_COORDINATE = 1e9
# In place of a time point or Z slice: the outline belongs to all of them.
EVERY = -1
# 10x Genomics: 8 letters a to p are the hexadecimal digits 0 to f of a 32-bit number, then the number of the data set.
XENIUM_ID = re.compile(r"([a-p]{8})-([1-9]\d{0,8})")
XENIUM_DIGITS = str.maketrans("abcdefghijklmnop", "0123456789abcdef")


@dataclass(frozen=True)
class Outlines:
    """The outlines of n cells: each has one or more parts, and each part one outer ring and any number of holes.

    The arrays are nested by offsets, as in GeoArrow and in `shapely.to_ragged_array`. A ring may repeat its first
    vertex at its end.

    Parameters
    ----------
    ids : (n,) uint64
        Not 0, and unique among the cells of a plane. A cell lies on top of those before it.
    vertices : (v, 2) float64
        (y, x), in `unit`.
    rings : (r + 1,) int64
        The first vertex of each ring, then v.
    parts : (p + 1,) int64
        The first ring of each part, then r. The first ring of a part is the outer one.
    cells : (n + 1,) int64
        The first part of each cell, then p.
    planes : (n, 2) int64
        The time point and the Z slice of each cell, from 0; `EVERY` if it belongs to all of them.
    unit : {"px", "um"}
        Pixels of the image, or micrometers from the corner of its first pixel.
    pixel_size : (y, x), um, optional
        Size of the pixel of the image that the outlines were drawn on, where a file beside them states it.
    warnings : tuple of str
        What the user should know about the file, one line each.
    """

    ids: NDArray[np.uint64]
    vertices: NDArray[np.float64]
    rings: NDArray[np.int64]
    parts: NDArray[np.int64]
    cells: NDArray[np.int64]
    planes: NDArray[np.int64]
    unit: Unit = "px"
    pixel_size: tuple[float, float] | None = None
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, chosen: NDArray[np.bool_]) -> Outlines:
        """Return the outlines of some cells, given by a mask (n,)."""
        cells, parts = taken(self.cells, np.flatnonzero(chosen))
        part_starts, rings = taken(self.parts, parts)
        ring_starts, vertices = taken(self.rings, rings)
        return replace(
            self,
            ids=self.ids[chosen],
            vertices=self.vertices[vertices],
            rings=ring_starts,
            parts=part_starts,
            cells=cells,
            planes=self.planes[chosen],
        )

    def transformed(self, matrix: NDArray[np.float64]) -> Outlines:
        """Return the outlines with the affine map ``matrix`` (3, 3) of homogeneous points (x, y, 1) applied."""
        x, y = self.vertices[:, 1], self.vertices[:, 0]
        columns = [row[0] * x + row[1] * y + row[2] for row in (matrix[1], matrix[0])]
        return replace(self, vertices=np.stack(columns, axis=1))

    def warning(self, *lines: str) -> Outlines:
        """Return the same outlines with more warnings."""
        return replace(self, warnings=(*self.warnings, *lines))

    def in_pixels(self, pixel_size: tuple[float, float]) -> Outlines:
        """Return outlines that are in micrometers in pixels of this size (y, x)."""
        return replace(self, vertices=self.vertices / np.array(pixel_size), unit="px")


class OutlinesBuilder:
    """A list of outlines that grows cell by cell.

    Outlines that are added with the same id and plane become parts of one cell, which keeps its first place.
    """

    def __init__(self) -> None:
        self._cells: dict[tuple[int, tuple[int, int]], list[Sequence[Ring]]] = {}

    def add(self, cell: int, parts: Iterable[Sequence[Ring]], plane: tuple[int, int] = (EVERY, EVERY)) -> None:
        """Add the parts of a cell, each a sequence of rings (k, 2) with the outer one first."""
        self._cells.setdefault((cell, plane), []).extend(parts)

    def outlines(self) -> Outlines:
        """Return all cells that were added."""
        parts = [part for cell in self._cells.values() for part in cell]
        rings = [ring for part in parts for ring in part]
        return Outlines(
            ids=np.array([cell for cell, _ in self._cells], np.uint64),
            vertices=np.concatenate([np.zeros((0, 2)), *rings]),
            rings=starts_of([len(ring) for ring in rings]),
            parts=starts_of([len(part) for part in parts]),
            cells=starts_of([len(cell) for cell in self._cells.values()]),
            planes=np.array([plane for _, plane in self._cells], np.int64).reshape(-1, 2),
        )


def checked(outlines: Outlines, subject: str, unit: str, numbers: NDArray[np.int64] | None = None) -> Outlines:
    """Return the outlines that can be drawn; those with fewer than three points are left out, with a warning.

    Parameters
    ----------
    outlines : Outlines
    subject : str
        What to call the file in messages.
    unit : str
        What the file calls one outline: feature, ROI, row, ...
    numbers : (n,) int64, optional
        The place of each cell in the file; by default they count from 1.

    Raises
    ------
    LabelError
        If a coordinate is not finite or too large, or nothing is left.
    """
    if numbers is None:
        numbers = np.arange(1, len(outlines) + 1)
    cell_of_part = np.repeat(np.arange(len(outlines)), np.diff(outlines.cells))
    part_of_ring = np.repeat(np.arange(len(cell_of_part)), np.diff(outlines.parts))
    bad = ~(np.abs(outlines.vertices) <= MAX_COORDINATE).all(axis=1)
    if bad.any():
        vertex = int(bad.argmax())
        ring = int(np.searchsorted(outlines.rings, vertex, side="right")) - 1
        y, x = outlines.vertices[vertex]
        raise LabelError(
            f"{subject}: {unit} {numbers[cell_of_part[part_of_ring[ring]]]} has a vertex at x = {x:g}, y = {y:g}; "
            f"coordinates must be finite, and at most {MAX_COORDINATE:g}: correct it or leave it out"
        )
    kept, n_lost, first = _without_degenerate(outlines, cell_of_part, part_of_ring)
    if not len(kept):
        raise LabelError(f"{subject} holds no outline with three or more points; give polygons")
    if not n_lost:
        return kept
    line = f"{subject}: {n_lost} of {len(outlines)} outlines have fewer than three points and are left out"
    return kept.warning(f"{line} (the first is {unit} {numbers[first]})")


def are_unique(ids: NDArray[np.uint64], planes: Sequence[tuple[int, int]] = ()) -> bool:
    """Whether every id occurs once, or once in each of the planes (t, z) if these are given."""
    each = zip(ids.tolist(), planes, strict=True) if planes else ids.tolist()
    return len(set(each)) == len(ids)


def cell_ids(names: Sequence[Any]) -> NDArray[np.uint64] | None:
    """Return the ids of cells from what a file calls them; None if these are no ids.

    Whole numbers from 1 on are ids as they are, as numbers or as text. A Xenium cell id such as ``ffkpbaba-1`` is
    ``dataset * 2**32 + letters``, with the letters a to p as the hexadecimal digits 0 to f.
    """
    found = np.zeros(len(names), np.uint64)
    for place, name in enumerate(names):
        number = _number(name)
        if number is None or not 0 < number < 1 << 64:
            return None
        found[place] = number
    return found


def taken(starts: NDArray[np.int64], chosen: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return some groups of a ragged array: their new offsets (m + 1,), and the indices of their elements.

    Parameters
    ----------
    starts : (n + 1,) int64
        The first element of each group, then the number of elements.
    chosen : (m,) int64
        Indices of groups.
    """
    counts = np.diff(starts)[chosen]
    return starts_of(counts), ranges(starts[chosen], counts)


def starts_of(counts: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the offsets (n + 1,) of groups of these sizes: the first element of each, then their number."""
    return np.concatenate([[0], np.cumsum(np.asarray(counts, np.int64))]).astype(np.int64)


def ranges(first: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers ``first[i], first[i] + 1, ...``, ``counts[i]`` of them, for each i."""
    before = np.cumsum(counts) - counts
    numbers: NDArray[np.int64] = np.repeat(first - before, counts)
    numbers += np.arange(len(numbers))
    return numbers


def _number(name: Any) -> int | None:
    if isinstance(name, bytes):
        name = name.decode("utf-8", "replace")
    if isinstance(name, str):
        xenium = XENIUM_ID.fullmatch(name)
        if xenium:
            return (int(xenium[2]) << 32) + int(xenium[1].translate(XENIUM_DIGITS), 16)
        return int(name) if re.fullmatch(r"\d{1,20}", name, re.ASCII) else None
    if isinstance(name, bool | np.bool_):
        return None
    if isinstance(name, float | np.floating):
        return int(name) if float(name).is_integer() else None
    return int(name) if isinstance(name, int | np.integer) else None


def _without_degenerate(
    outlines: Outlines, cell_of_part: NDArray[np.int64], part_of_ring: NDArray[np.int64]
) -> tuple[Outlines, int, int]:
    """Return the outlines without rings of fewer than three points, how many cells are lost, and the first of them.

    A part without its outer ring is left out, and a cell without any part.
    """
    n_points = np.diff(outlines.rings)
    filled = n_points > 0
    closed = np.zeros(len(n_points), bool)
    first, last = outlines.rings[:-1][filled], outlines.rings[1:][filled] - 1
    closed[filled] = (outlines.vertices[first] == outlines.vertices[last]).all(axis=1)
    ring_kept = n_points - closed >= 3
    part_kept = np.zeros(len(cell_of_part), bool)
    outer = outlines.parts[:-1]
    has_rings = np.diff(outlines.parts) > 0
    part_kept[has_rings] = ring_kept[outer[has_rings]]
    ring_kept &= part_kept[part_of_ring]
    n_parts = np.bincount(cell_of_part[part_kept], minlength=len(outlines))
    cell_kept = n_parts > 0
    if ring_kept.all() and part_kept.all() and cell_kept.all():
        return outlines, 0, 0
    ring_starts, vertices = taken(outlines.rings, np.flatnonzero(ring_kept))
    n_rings = np.bincount(part_of_ring[ring_kept], minlength=len(cell_of_part))
    kept = replace(
        outlines,
        ids=outlines.ids[cell_kept],
        vertices=outlines.vertices[vertices],
        rings=ring_starts,
        parts=starts_of(n_rings[part_kept]),
        cells=starts_of(n_parts[cell_kept]),
        planes=outlines.planes[cell_kept],
    )
    lost = np.flatnonzero(~cell_kept)
    return kept, len(lost), int(lost[0]) if len(lost) else 0
