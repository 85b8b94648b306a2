"""Outlines in ImageJ's ROI files (.roi), alone or as a set (.zip), as Fiji, cellpose and StarDist save them.

Coordinates are in pixels, and pixel (0, 0) lies between the points (0, 0) and (1, 1); a center exactly on an edge
belongs to the polygon if the edge is on its right or its top (ImageJ's PolygonFiller.java). An oval holds the centers
of which ``(dx / a)**2 + (dy / b)**2 <= 1`` is true (OvalRoi.java). The format is that of RoiDecoder.java, read by
roifile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import LabelError
from gpu_extract.sources.files import translated
from gpu_extract.sources.names import cleaned
from gpu_extract.sources.outlines import EVERY, Outlines, OutlinesBuilder, Ring, are_unique, cell_ids, checked

__all__ = ["read_rois"]

# What ImageJ adds to x, so that a center on the left edge is outside and one on the right edge is inside.
EDGE = 1e-8
# ImageJ stores sides as 16-bit numbers.
MAX_OVAL = 1 << 16
# Straight lines for a curve of a composite ROI; the curves are quarters of ovals.
N_LINES = 32
# Numbers behind each command of a path in java.awt.geom.PathIterator: move, line, quadratic and cubic curve, close.
N_NUMBERS = {0: 2, 1: 2, 2: 4, 3: 6, 4: 0}


def read_rois(members: Iterable[tuple[str, bytes]], subject: str) -> Outlines:
    """Read the outlines of a set of ROIs, each with the name of its file and its bytes.

    Ids are the names of the ROIs where these are different whole numbers, else their places in the set, from 1.

    Raises
    ------
    SourceError, LabelError
    """
    with translated(subject, "holds ImageJ ROIs that cannot be read"):
        from roifile import ImagejRoi
    places: list[int] = []
    names: list[str] = []
    drawn: list[tuple[list[Ring], tuple[int, int]]] = []
    n_other = n_splines = 0
    for place, (name, content) in enumerate(members, 1):
        with translated(f"{subject}: ROI {place} ({cleaned(name)})", "cannot be read"):
            roi = ImagejRoi.frombytes(content)
            rings = list(_rings(roi))
        if not rings:
            n_other += 1
            continue
        n_splines += bool(roi.options & 1)  # SPLINE_FIT of RoiDecoder.java
        places.append(place)
        names.append((roi.name or name).removesuffix(".roi").rpartition("/")[2])
        drawn.append((rings, _plane(roi)))
    if not drawn:
        raise LabelError(f"{subject} holds no ROI with an area; give polygons, rectangles, ovals or traced outlines")
    ids, warnings = _ids(names, [plane for _, plane in drawn], places, subject)
    if n_other:
        warnings += (f"{subject}: {n_other} of {place} ROIs are points, lines or texts, and are left out",)
    if n_splines:
        line = f"{n_splines} of {place} ROIs are fitted splines, and are drawn as polygons through their points"
        warnings += (f"{subject}: {line}",)
    builder = OutlinesBuilder()
    for cell, (rings, plane) in zip(ids, drawn, strict=True):
        builder.add(int(cell), [rings], plane)
    return checked(replace(builder.outlines(), warnings=warnings), subject, "ROI", np.array(places, np.int64))


def _rings(roi: Any) -> Iterator[Ring]:
    """Yield the rings of a ROI by the even-odd rule; none if it has no area."""
    kind = roi.roitype.name
    if roi.subtype.name in ("TEXT", "IMAGE", "ARROW"):
        return
    if roi.composite:
        yield from sorted(map(_shifted, _path(roi.multi_coordinates.tolist())), key=len, reverse=True)
    elif kind in ("POLYGON", "FREEHAND", "TRACED"):
        yield _shifted(roi.coordinates())
    elif kind in ("RECT", "OVAL"):
        x, y, width, height = (
            (roi.xd, roi.yd, roi.widthd, roi.heightd)
            if roi.subpixelrect
            else (roi.left, roi.top, roi.right - roi.left, roi.bottom - roi.top)
        )
        if kind == "OVAL":
            yield _oval(x, y, width, height)
        else:
            yield _shifted([(x, y), (x + width, y), (x + width, y + height), (x, y + height)])


def _shifted(xy: Any) -> Ring:
    points: Ring = np.array(xy, np.float64).reshape(-1, 2)[:, ::-1].copy()
    points[:, 1] += EDGE
    return points


def _oval(x: float, y: float, width: float, height: float) -> Ring:
    """Return the outline, along the edges of pixels, of the centers in an ellipse with this bounding box."""
    if not (0 < width < MAX_OVAL and 0 < height < MAX_OVAL):
        return np.zeros((0, 2))
    a, b = width / 2, height / 2
    rows = np.arange(np.floor(y), np.ceil(y + height))
    dy = rows + 0.5 - y - b
    half = a * np.sqrt(np.maximum(1 - (dy / b) ** 2, 0))

    def holds(column: NDArray[np.float64]) -> NDArray[np.bool_]:
        inside: NDArray[np.bool_] = (column + 0.5 - x - a) ** 2 / a**2 + dy**2 / b**2 <= 1
        return inside

    # The root is rounded: look at the pixels on both sides of it.
    left, right = np.ceil(x + a - half - 0.5), np.floor(x + a + half - 0.5)
    left = np.where(holds(left - 1), left - 1, np.where(holds(left), left, left + 1))
    right = np.where(holds(right + 1), right + 1, np.where(holds(right), right, right - 1)) + 1
    kept = right > left
    rows, left, right = rows[kept], left[kept], right[kept]
    down = np.stack([rows, right, rows + 1, right], axis=1).reshape(-1, 2)
    up = np.stack([rows + 1, left, rows, left], axis=1)[::-1].reshape(-1, 2)
    return np.concatenate([down, up])


def _path(numbers: Sequence[float]) -> Iterator[list[NDArray[np.float64]]]:
    """Yield the rings (x, y) of a composite ROI, curves as short lines.

    Raises
    ------
    ValueError
        If it is no path.
    """
    ring: list[Any] = []
    at = 0
    while at < len(numbers):
        command = int(numbers[at])
        if command not in N_NUMBERS or at + N_NUMBERS[command] >= len(numbers):
            raise ValueError(f"its path has the command {command}, or ends within one")
        points = np.array(numbers[at + 1 : at + 1 + N_NUMBERS[command]]).reshape(-1, 2)
        at += 1 + N_NUMBERS[command]
        if command == 0:
            if ring:
                yield ring
            ring = [points[0]]
        elif command != 4:
            if not ring:
                raise ValueError("its path does not begin with a point")
            ring += _curve(ring[-1], points)
    if ring:
        yield ring


def _curve(start: NDArray[np.float64], points: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Return the points behind ``start`` on a line or Bezier curve with these control points (de Casteljau)."""
    if len(points) == 1:
        return [points[0]]
    t = np.linspace(0, 1, N_LINES + 1)[1:, None]
    levels = [np.broadcast_to(point, (N_LINES, 2)) for point in (start, *points)]
    while len(levels) > 1:
        levels = [one * (1 - t) + other * t for one, other in pairwise(levels)]
    return list(levels[0])


def _plane(roi: Any) -> tuple[int, int]:
    """Return the time point and the Z slice of a ROI, `EVERY` where it has none.

    ImageJ counts them from 1. In a stack whose axes it does not know it counts slices only, as ``position``.
    """
    t, z = roi.t_position - 1, roi.z_position - 1
    if t < 0 and z < 0 and roi.c_position <= 0:
        z = roi.position - 1
    return max(t, EVERY), max(z, EVERY)


def _ids(
    names: list[str], planes: list[tuple[int, int]], places: list[int], subject: str
) -> tuple[NDArray[np.uint64], tuple[str, ...]]:
    """Return the ids of ROIs, and a warning if these are not their names."""
    ids = cell_ids(names)
    if ids is not None and are_unique(ids, planes):
        return ids, ()
    why = "their names are not different numbers"
    line = f"{subject}: the ids of cells are the places of their ROIs in the set, from 1, since {why}"
    return np.array(places, np.uint64), (line,)
