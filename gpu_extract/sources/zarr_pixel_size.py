"""Pixel size from the coordinate transformations of OME-Zarr and SpatialData."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gpu_extract.sources.units import pixel_size

__all__ = ["zarr_pixel_sizes"]


def zarr_pixel_sizes(image: Mapping[str, Any], dataset: Mapping[str, Any]) -> tuple[tuple[float, float], ...]:
    """Return the pixel sizes (y, x) of one level in um that are stated, each once; the first is the best.

    Parameters
    ----------
    image : mapping
        An entry of ``multiscales``. Its own scale applies to all levels. In SpatialData, a scale counts if the axes of
        its coordinate system have a unit of length, or the name of the coordinate system is one.
    dataset : mapping
        One of its ``datasets``.
    """
    level = _scale(dataset.get("coordinateTransformations", ()))
    whole = image.get("coordinateTransformations", ())
    found = []
    for each in whole:
        system = each.get("output")
        if isinstance(system, Mapping):
            for units in (_units(system.get("axes", ())), (system.get("name"),) * 2):
                found.append(_size(level, _scale([each]), units))
    of_axes = _scale(each for each in whole if "output" not in each)
    found.append(_size(level, of_axes, _units(image.get("axes", ()))))
    return tuple(dict.fromkeys(size for size in found if size is not None))


def _size(
    level: tuple[float, float] | None, factors: tuple[float, float] | None, units: tuple[Any, Any]
) -> tuple[float, float] | None:
    if level is None or factors is None:
        return None
    return pixel_size(level[0] * factors[0], level[1] * factors[1], *units)


def _units(axes: Sequence[Any]) -> tuple[Any, Any]:
    """Return the units of y and x, the last two axes."""
    y, x = (axis.get("unit") if isinstance(axis, Mapping) else None for axis in [None, None, *axes][-2:])
    return y, x


def _scale(transformations: Iterable[Mapping[str, Any]]) -> tuple[float, float] | None:
    """Return the combined factors (y, x) of transformations; None if any is not a scale or a translation."""
    y = x = 1.0
    for each in transformations:
        match each.get("type"):
            case "identity" | "translation":
                continue
            case "scale":
                y, x = y * float(each["scale"][-2]), x * float(each["scale"][-1])
            case "sequence":
                inner = _scale(each["transformations"])
                if inner is None:
                    return None
                y, x = y * inner[0], x * inner[1]
            case _:
                return None
    return y, x
