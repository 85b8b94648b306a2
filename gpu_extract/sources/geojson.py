"""Outlines in GeoJSON (RFC 7946), as QuPath, StarDist, InstanSeg, Baysor and proseg export them.

Coordinates are (x, y) in pixels of the full resolution with the origin at the corner of the first pixel (QuPath's
manual, "Exporting annotations"). A QuPath cell is a Feature with a ``geometry``, the cell, and a ``nucleusGeometry``
(QuPathTypeAdapters.java); the first is its outline as cytosol, the second as nucleus, of one id. ``plane`` of a
geometry is its Z slice and time point.

A file may be a FeatureCollection, a list of Features, one Feature, or a GeometryCollection of cells (Baysor).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import LabelError
from gpu_extract.listing import listed
from gpu_extract.sources.files import translated
from gpu_extract.sources.outlines import EVERY, Outlines, OutlinesBuilder, Ring, are_unique, cell_ids, checked

__all__ = ["read_geojson"]

# What QuPath calls objects, since version 0.3 and before; a file that has cells has other things beside them.
CELLS = ("cell", "detection", "PathCellObject", "PathDetectionObject")
NO_CELLS = ("root", "tile", "tmaCore", "PathRootObject", "PathTileObject", "TMACoreObject")
# Where programs write the number of a cell: QuPath and others, then StarDist, spatialdata, Baysor and proseg.
ID_PROPERTIES = ("label", "cell_id", "cell", "id")
# A GeometryCollection may hold others; files nest them once at most.
MAX_DEPTH = 8

Json = dict[str, Any]
Parts = tuple[tuple[Ring, ...], ...]


@dataclass(frozen=True)
class Feature:
    """A Feature, and its place in the file, from 1."""

    number: int
    members: Json

    @property
    def properties(self) -> Json:
        """Its properties, empty if it has none."""
        found = self.members.get("properties")
        return found if isinstance(found, dict) else {}

    @property
    def kind(self) -> str:
        """What QuPath calls it, empty if nothing is said."""
        named = self.properties.get("objectType", self.properties.get("object_type"))
        return str(named or self.members.get("id", ""))


def read_geojson(content: bytes, subject: str, plane: str) -> Outlines:
    """Read the outlines of cells, or of their nuclei where ``plane`` is ``nucleus`` and the file has those.

    Ids are the whole numbers that the file has for its cells; if it has none, the place of each Feature in it, from 1.

    Raises
    ------
    SourceError, LabelError
    """
    with translated(subject, "is not JSON that can be read"):
        # The rings become arrays as they are parsed: lists of numbers would take ten times the memory of the text.
        parsed = json.loads(content, object_hook=_with_rings)
    every = [Feature(number, members) for number, members in enumerate(_features(parsed), 1)]
    if not every:
        raise LabelError(f"{subject} is JSON without outlines; give GeoJSON with Features that are polygons")
    chosen, warnings = _cells(every, subject)
    key = "geometry"
    if plane == "nucleus" and any(feature.members.get("nucleusGeometry") for feature in chosen):
        key = "nucleusGeometry"
    drawn = [(feature, _parts(feature, key, subject)) for feature in chosen]
    with_parts = [(feature, parts) for feature, parts in drawn if parts]
    warnings += _missing_warning(subject, key, len(drawn) - len(with_parts), len(drawn))
    # The same numbers for nuclei and cells: of all that are chosen, with a nucleus or not.
    planes = _planes([_geometry(feature, "geometry") for feature in chosen])
    ids, numbering = _ids(chosen, planes, subject)
    builder = OutlinesBuilder()
    for cell, plane_at, (_, parts) in zip(ids, planes, drawn, strict=True):
        if parts:
            builder.add(int(cell), parts, plane_at)
    numbers = np.array([feature.number for feature, _ in with_parts], np.int64)
    return checked(replace(builder.outlines(), warnings=(*warnings, *numbering)), subject, "feature", numbers)


def _with_rings(members: Json) -> Json:
    """Return a JSON object whose coordinates, if it is a polygon, are arrays."""
    members.pop("measurements", None)
    coordinates = members.get("coordinates")
    if isinstance(coordinates, list):
        polygons = {"Polygon": [coordinates], "MultiPolygon": coordinates}.get(str(members.get("type")), [])
        # What is no polygon stays a list, which `_parts` refuses: it knows which feature it is.
        with suppress(TypeError, ValueError, OverflowError):
            members["coordinates"] = tuple(tuple(map(_ring, polygon)) for polygon in polygons)
    return members


def _ring(points: Any) -> Ring:
    if not points:
        return np.zeros((0, 2))
    xy = np.array(points, np.float64)
    if xy.ndim != 2 or xy.shape[1] < 2:
        raise ValueError("a ring is a list of points (x, y)")
    return np.ascontiguousarray(xy[:, 1::-1])


def _features(parsed: Any) -> Iterator[Json]:
    """Yield the Features of a file in its order, those below others too, as QuPath nests them."""
    waiting = [parsed]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += reversed(value)
        elif not isinstance(value, dict):
            continue
        elif value.get("type") == "Feature":
            yield value
            properties = value.get("properties")
            if isinstance(properties, dict):
                waiting.append(properties.get("childObjects") or properties.get("children"))
        elif "features" in value:
            waiting.append(value["features"])
        elif isinstance(value.get("geometries"), list):
            waiting += reversed(value["geometries"])
        elif "coordinates" in value:
            # A geometry alone; Baysor writes the number of the cell beside its coordinates.
            yield {"geometry": value, "properties": {name: value[name] for name in ID_PROPERTIES if name in value}}


def _cells(features: Sequence[Feature], subject: str) -> tuple[list[Feature], tuple[str, ...]]:
    """Return the features that are cells, and a warning if others are left out."""
    cells = [feature for feature in features if feature.kind in CELLS]
    if not cells:
        cells = [feature for feature in features if feature.kind not in NO_CELLS]
    n_others = len(features) - len(cells)
    if not n_others:
        return cells, ()
    kinds = sorted({feature.kind or "without a type" for feature in features} - {feature.kind for feature in cells})
    return cells, (f"{subject}: left out {n_others} of {len(features)} objects, which are not cells: {listed(kinds)}",)


def _geometry(feature: Feature, key: str) -> Json:
    found = feature.members.get(key)
    return found if isinstance(found, dict) else {}


def _parts(feature: Feature, key: str, subject: str) -> Parts:
    """Return the polygons of a feature; none if it is a point or a line, or has no such geometry.

    Raises
    ------
    LabelError
        If its coordinates are none.
    """
    found: list[tuple[Ring, ...]] = []
    waiting = [(_geometry(feature, key), 0)]
    while waiting:
        geometry, depth = waiting.pop()
        coordinates = geometry.get("coordinates", ())
        if not isinstance(coordinates, tuple) or depth > MAX_DEPTH:
            raise LabelError(
                f"{subject}: the coordinates of feature {feature.number} are no points (x, y); export the file again"
            )
        found += coordinates
        below = geometry.get("geometries")
        if isinstance(below, list):
            waiting += [(each, depth + 1) for each in reversed(below) if isinstance(each, dict)]
    return tuple(found)


def _missing_warning(subject: str, key: str, n_missing: int, n_all: int) -> tuple[str, ...]:
    if not n_missing:
        return ()
    if key == "nucleusGeometry":
        return (f"{subject}: {n_missing} of {n_all} cells have no nucleusGeometry, and so no nucleus",)
    return (f"{subject}: {n_missing} of {n_all} features are points or lines, and are left out",)


def _ids(
    features: Sequence[Feature], planes: Sequence[tuple[int, int]], subject: str
) -> tuple[NDArray[np.uint64], tuple[str, ...]]:
    """Return the ids of cells, and a warning if these are not those of the file."""
    named: Mapping[str, list[Any]] = {
        "id": [feature.members.get("id") for feature in features],
        **{f"properties.{name}": [feature.properties.get(name) for feature in features] for name in ID_PROPERTIES},
    }
    repeated = ""
    for name, values in named.items():
        ids = cell_ids(values)
        if ids is not None and are_unique(ids, planes):
            return ids, ()
        repeated = repeated or ("" if ids is None else name)
    numbers = np.array([feature.number for feature in features], np.uint64)
    why = f"the numbers in {repeated} repeat" if repeated else "it has no numbers for them"
    return numbers, (f"{subject}: the ids of cells are their places in the file, from 1, since {why}",)


def _planes(geometries: Sequence[Json]) -> list[tuple[int, int]]:
    """Return the time point and the Z slice of each geometry, 0 where it does not say; `EVERY` if none does."""
    found = [geometry.get("plane") for geometry in geometries]
    if not any(isinstance(plane, dict) for plane in found):
        return [(EVERY, EVERY)] * len(found)
    return [(_index(plane, "t"), _index(plane, "z")) for plane in found]


def _index(plane: Any, axis: str) -> int:
    value = plane.get(axis, 0) if isinstance(plane, dict) else 0
    return value if isinstance(value, int) and 0 <= value < 1 << 31 else 0
