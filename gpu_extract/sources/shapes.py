"""Shapes of SpatialData stores: GeoParquet in ``shapes/NAME/shapes.parquet``, and where it lies on an image.

Shapes and images are both placed in coordinate systems by transformations in their attributes (spatialdata's "design
doc"; OME-NGFF 0.4 and 0.5 with spatialdata's extensions). A point of a shape goes to the coordinate system that it has
in common with the image, then back to the image's pixels. Pixel (0, 0) lies between the points (0, 0) and (1, 1).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import SourceError
from gpu_extract.listing import listed
from gpu_extract.sources.files import translated
from gpu_extract.sources.names import cleaned
from gpu_extract.sources.selectors import Location, Selection

__all__ = ["shape_names", "shapes_location", "shapes_to_pixels"]

SHAPES_FILE = "shapes.parquet"
METADATA = ("zarr.json", ".zattrs")
MAX_METADATA = 64 << 20

Matrix = NDArray[np.float64]  # (3, 3), of homogeneous points (x, y, 1)


def shape_names(store: Location) -> tuple[str, ...]:
    """Return the names of the shapes in a local store that are stored as Parquet."""
    folder = os.path.join(store.path, "shapes")
    if store.is_url or not os.path.isdir(folder):
        return ()
    with os.scandir(folder) as entries:
        return tuple(sorted(each.name for each in entries if os.path.isfile(os.path.join(each.path, SHAPES_FILE))))


def shapes_location(location: Location) -> Location | None:
    """Return the Parquet file of the shapes that a store's location means; None if it means something else.

    That is the path of the shapes themselves, or ``#label=NAME`` where the store has shapes and no label of that name.
    """
    if location.is_url or location.plane is None:
        return None
    name = location.selection.label
    if name is None:
        folder = location.path
    elif name in shape_names(location) and not os.path.isdir(os.path.join(location.path, "labels", name)):
        folder = os.path.join(location.path, "shapes", name)
    else:
        return None
    path = os.path.join(folder, SHAPES_FILE)
    # What is selected of the image, for labels that are given by name, has no meaning for shapes.
    selection = Selection(unit=location.selection.unit)
    return replace(location, path=path, selection=selection) if os.path.isfile(path) else None


def shapes_to_pixels(location: Location, image: Location | None) -> tuple[Matrix, tuple[str, ...]] | None:
    """Return the map from the points (x, y, 1) of shapes to pixels of the image, and warnings.

    An image that is not placed itself, since it is no part of a SpatialData store, is taken for the coordinate system.

    Parameters
    ----------
    location : Location
        Of a file of outlines. If these are not shapes with transformations, None is returned.
    image : Location, optional
        Of the image; None for an array.

    Raises
    ------
    SourceError
        If the transformations are damaged, or have no coordinate system in common.
    """
    folder = os.path.dirname(os.path.abspath(location.path))
    if os.path.basename(location.path) != SHAPES_FILE:
        return None
    attributes = _attributes(folder)
    if attributes is None:
        return None
    with translated(location, "has damaged transformations"):
        systems = _systems(attributes.get("coordinateTransformations", []), None)
        placed = {} if image is None else _image_systems(image)
    common = [name for name in systems if name in placed or not placed]
    name = "global" if "global" in common else next(iter(common), None)
    if name is None or (len(common) > 1 and not placed and name != "global"):
        raise SourceError(
            f"{location} is in the coordinate systems {_listed(systems)} and the image in {_listed(placed)}; "
            "one must be the same: set the transformation with spatialdata"
        )
    if not placed:
        line = f"the image is not in its store, and is taken for its coordinate system {cleaned(name)}"
        return systems[name], (f"{location}: {line}",)
    return np.linalg.inv(placed[name]) @ systems[name], ()


def _image_systems(image: Location) -> dict[str, Matrix]:
    """Return the maps from the pixels of the level of an image that is read to its coordinate systems."""
    if image.is_url or not os.path.isdir(image.path):
        return {}
    from gpu_extract.sources.zarr_stores import store_location, zarr_element

    store = store_location(image)
    if store is None:
        return {}
    attributes = zarr_element(store).attrs.asdict()
    ome = attributes.get("ome")
    found = (ome if isinstance(ome, dict) else attributes).get("multiscales") or []
    if not found:
        return {}
    axes = [str(each["name"]) if isinstance(each, dict) else str(each) for each in found[0].get("axes", [])]
    dataset = found[0]["datasets"][image.selection.level or 0]
    level = _product(dataset.get("coordinateTransformations", []), axes)
    systems = _systems(found[0].get("coordinateTransformations", []), axes)
    return {name: matrix @ level for name, matrix in systems.items()}


def _attributes(folder: str) -> dict[str, Any] | None:
    for name in METADATA:
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            with translated(path, "is damaged"), open(path, "rb") as stream:
                parsed = json.loads(stream.read(MAX_METADATA))
                attributes: dict[str, Any] = parsed.get("attributes", {}) if name == "zarr.json" else parsed
                return attributes
    return None


def _systems(transformations: Sequence[Any], axes: Sequence[str] | None) -> dict[str, Matrix]:
    """Return the map to each coordinate system that transformations lead to; ``global`` if they name none."""
    systems: dict[str, Matrix] = {}
    for each in transformations:
        output = each.get("output")
        name = output.get("name", "global") if isinstance(output, dict) else str(output or "global")
        systems[name] = _matrix(each, _axes_of(each, axes)) @ systems.get(name, np.eye(3))
    return systems or {"global": np.eye(3)}


def _product(transformations: Sequence[Any], axes: Sequence[str]) -> Matrix:
    matrix: Matrix = np.eye(3)
    for each in transformations:
        matrix = _matrix(each, _axes_of(each, axes)) @ matrix
    return matrix


def _axes_of(transformation: Any, axes: Sequence[str] | None, side: str = "input") -> list[str]:
    """Return the names of the axes on a side of a transformation; by default those of the element, or (x, y)."""
    system = transformation.get(side)
    named = system.get("axes") if isinstance(system, dict) else None
    return [str(axis["name"]) for axis in named] if named else list(axes or ("x", "y"))


def _matrix(transformation: Any, axes: Sequence[str]) -> Matrix:
    """Return a transformation of some axes as the map of (x, y, 1).

    Raises
    ------
    ValueError
        If it is of another kind, or mixes x and y with other axes.
    """
    kind = str(transformation["type"])
    at = [axes.index("x"), axes.index("y")]
    matrix: Matrix = np.eye(3)
    if kind == "scale":
        matrix[[0, 1], [0, 1]] = np.array(transformation["scale"], np.float64)[at]
    elif kind == "translation":
        matrix[:2, 2] = np.array(transformation["translation"], np.float64)[at]
    elif kind == "affine":
        full = np.array(transformation["affine"], np.float64)
        rows = [_axes_of(transformation, axes, "output").index(axis) for axis in "xy"]
        others = [column for column in range(len(axes)) if column not in at]
        if full[rows][:, others].any():
            raise ValueError("an affine transformation mixes x and y with other axes")
        matrix[:2] = full[rows][:, [*at, len(axes)]]
    elif kind == "sequence":
        steps = transformation["transformations"]
        for step in steps:
            matrix = _matrix(step, _axes_of(step, axes)) @ matrix
    elif kind != "identity":
        raise ValueError(f"a transformation of the kind {cleaned(kind)} is not read")
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-12:
        raise ValueError("a transformation cannot be inverted")
    return matrix


def _listed(names: Any) -> str:
    return listed([cleaned(str(name)) for name in names]) or "none"
