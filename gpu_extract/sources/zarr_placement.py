"""Placement by the coordinate transformations of OME-Zarr and SpatialData."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_extract.listing import listed
from gpu_extract.sources.placement import IMPLICIT, Placement
from gpu_extract.sources.units import um_per_unit

__all__ = ["zarr_placements"]

# Offsets of a pyramid level this close, in pixels of the level, follow from the averaging of pixels.
SAME_OFFSET = 0.01

Transformation = Mapping[str, Any]


@dataclass(frozen=True)
class _Affine:
    """A map from pixel indices to coordinates; ``matrix`` is (len(axes), n + 1) for n axes of the array."""

    axes: tuple[str, ...]
    matrix: NDArray[np.float64]


class _NotAffineError(ValueError):
    """A transformation that is not affine, or not known."""


def zarr_placements(image: Mapping[str, Any], axes: Sequence[str], level: int) -> tuple[Placement, ...]:
    """Return the placements of a level, one per coordinate system; empty if no transformation is stated.

    Parameters
    ----------
    image : mapping
        An entry of ``multiscales``. Transformations with an ``output``, as in SpatialData, each lead to a coordinate
        system of that name. Without any, the level is in the implicit coordinate system of OME-Zarr.
    axes : sequence of str
        Names of the axes of the arrays, ending with y and x.
    level : int
    """
    of_level = image["datasets"][level].get("coordinateTransformations") or ()
    whole = image.get("coordinateTransformations") or ()
    named = [each for each in whole if "output" in each]
    if not of_level and not whole:
        return ()
    common = [*of_level, *(each for each in whole if "output" not in each)]
    start = image["datasets"][0].get("coordinateTransformations") or ()
    first = [*start, *(each for each in whole if "output" not in each)]
    if not named:
        um = _um(image.get("axes", ()))
        return (_placement(IMPLICIT, axes, common, first, um),)
    return tuple(_placement(_system(each), axes, [*common, each], [*first, each], None) for each in named)


def _placement(
    system: str,
    axes: Sequence[str],
    of_level: Sequence[Transformation],
    of_first: Sequence[Transformation],
    um: tuple[float, float] | None,
) -> Placement:
    """Return the placement after transformations of a level; ``of_first`` are those of the largest level."""
    try:
        composed = _composed(axes, of_level)
        matrix, full = _in_plane(composed), _in_plane(_composed(axes, of_first))
    except _NotAffineError as cause:
        return Placement(system=system, other=str(cause))
    # Some writers state the centers of averaged pixels, others the corner that all levels share.
    half = (matrix[:, :2].sum(axis=1) - full[:, :2].sum(axis=1)) / 2
    if np.abs(matrix[:, 2] - full[:, 2] - half).max() <= SAME_OFFSET * np.abs(matrix[:, :2]).max():
        matrix[:, 2] = full[:, 2]
    (yy, yx, y), (xy, xx, x) = matrix.tolist()
    # Level 0 at scale 1 without a unit is what writers state who were not given a pixel size.
    default = um is None and system == IMPLICIT and np.array_equal(full, [[1, 0, 0], [0, 1, 0]])
    return Placement((yy, xx), (y, x), (yx, xy), system, um, stated=not default, z=_along_z(axes, composed))


def _composed(axes: Sequence[str], transformations: Iterable[Transformation]) -> _Affine:
    """Return the map of transformations that are applied one after the other."""
    at = _Affine(tuple(axes), np.eye(len(axes), len(axes) + 1))
    for each in transformations:
        at = _applied(at, each)
    return at


def _applied(at: _Affine, transformation: Transformation) -> _Affine:
    """Return a map followed by a transformation."""
    kind = transformation.get("type")
    at = _reordered(at, _axis_names(transformation.get("input"), at.axes))
    axes, n = at.axes, len(at.axes)
    matrix = at.matrix.copy()
    match kind:
        case "identity":
            pass
        case "scale" if "scale" in transformation:
            matrix *= _vector(transformation["scale"], n, 1.0)[:, None]
        case "translation" if "translation" in transformation:
            matrix[:, -1] += _vector(transformation["translation"], n, 0.0)
        case "affine" | "rotation" if kind in transformation:
            axes = _axis_names(transformation.get("output"), axes)
            matrix = _multiplied(_rows(transformation[kind], len(axes), n), matrix)
        case "mapAxis":
            axes, matrix = _mapped(transformation, at)
        case "sequence":
            inner = _Affine(axes, matrix)
            for each in transformation["transformations"]:
                inner = _applied(inner, each)
            axes, matrix = inner.axes, inner.matrix
        case _:
            raise _NotAffineError(f"placed by a transformation of type {kind!r}, which is not read")
    return _Affine(axes, matrix)


def _reordered(at: _Affine, axes: tuple[str, ...]) -> _Affine:
    """Return a map with its axes in another order."""
    if axes == at.axes or set(axes) != set(at.axes):
        return at
    return _Affine(axes, at.matrix[[at.axes.index(axis) for axis in axes]])


def _mapped(transformation: Transformation, at: _Affine) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Return axes and matrix after ``mapAxis``: output axis -> input axis by name, or a permutation of indices."""
    given = transformation.get("mapAxis")
    axes = _axis_names(transformation.get("output"), at.axes)
    if isinstance(given, Mapping) and set(given.values()) <= set(at.axes):
        # SpatialData names only the axes that change.
        sources = {axis: given.get(axis, axis) for axis in axes}
        if set(sources.values()) <= set(at.axes):
            return axes, at.matrix[[at.axes.index(sources[axis]) for axis in axes]]
    elif isinstance(given, Sequence) and sorted(given) == list(range(len(at.axes))):
        return axes, at.matrix[list(given)]
    raise _NotAffineError("placed by a mapAxis transformation of other axes than its own")


def _multiplied(rows: NDArray[np.float64], matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    product: NDArray[np.float64] = rows[:, :-1] @ matrix
    product[:, -1] += rows[:, -1]
    return product


def _rows(given: Sequence[Sequence[float]], n_out: int, n_in: int) -> NDArray[np.float64]:
    """Return the matrix (n_out, n_in + 1) of an affine map, or of a rotation, which has no column for the offset."""
    rows = np.array(given, np.float64)
    if rows.shape == (n_out, n_in):
        rows = np.column_stack([rows, np.zeros(n_out)])
    if rows.shape == (n_out + 1, n_in + 1):
        rows = rows[:-1]
    if rows.shape != (n_out, n_in + 1):
        raise _NotAffineError(f"placed by an affine transformation of shape {rows.shape}, for {n_in} axes")
    return rows


def _in_plane(at: _Affine) -> NDArray[np.float64]:
    """Return the rows y and x of a map, with the columns y, x and offset; y and x are the last axes of the array."""
    if not {"y", "x"} <= set(at.axes):
        raise _NotAffineError(f"in a coordinate system with the axes {listed(at.axes)}, which are not y and x")
    rows = at.matrix[[at.axes.index("y"), at.axes.index("x")]]
    if rows[:, :-3].any():
        raise _NotAffineError("placed by a transformation that mixes y or x with other axes")
    return rows[:, -3:].copy()


def _along_z(axes: Sequence[str], at: _Affine) -> tuple[float, float] | None:
    """Return scale and offset along z; None without the axis."""
    if "z" not in axes or "z" not in at.axes:
        return None
    row = at.matrix[at.axes.index("z")]
    return float(row[axes.index("z")]), float(row[-1])


def _vector(given: Sequence[float], n: int, fill: float) -> NDArray[np.float64]:
    """Return the numbers for the last axes, with ``fill`` for axes without a number."""
    numbers = np.array(given, np.float64).ravel()[-n:]
    return np.concatenate([np.full(n - len(numbers), fill), numbers])


def _axis_names(system: Any, default: tuple[str, ...]) -> tuple[str, ...]:
    """Return the axes of a coordinate system, given as SpatialData does; ``default`` if it does not name them."""
    axes = system.get("axes") if isinstance(system, Mapping) else None
    return tuple(str(axis["name"] if isinstance(axis, Mapping) else axis) for axis in axes) if axes else default


def _system(transformation: Transformation) -> str:
    """Return the name of the coordinate system that a transformation leads to."""
    output = transformation["output"]
    return str(output.get("name", "unnamed") if isinstance(output, Mapping) else output)


def _um(axes: Sequence[Any]) -> tuple[float, float] | None:
    """Return um per unit of y and x, the last two axes; None if unknown."""
    y, x = (axis.get("unit") if isinstance(axis, Mapping) else None for axis in [None, None, *axes][-2:])
    found = um_per_unit(y), um_per_unit(x)
    return None if found[0] is None or found[1] is None else (found[0], found[1])
