"""Where the label planes of a slide are: given as paths or arrays, by name, or found beside the image."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gpu_extract.errors import SourceError
from gpu_extract.sources.files import translated
from gpu_extract.sources.selectors import Location, Selection

__all__ = ["label_planes"]


def label_planes(images: Sequence[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the label planes of a slide by their names, each a `Location` or an array.

    A location at which nothing is is taken for the name of a label in the image's store. If no plane is given, those
    of the usual names in it are found: ``seg_all_nucleus`` or ``nucleus``, ``seg_all_cytosol`` or ``cytosol``.

    Parameters
    ----------
    images : sequence of Location or array
    given : mapping of str to Location or array
        The label planes that the user gave, by name.

    Raises
    ------
    SourceError
        If the store has no label of that name.
    """
    by_name = {plane: at for plane, at in given.items() if isinstance(at, Location) and not at.exists}
    store = _store(images) if by_name or not given else None
    if store is None:
        return dict(given)
    from gpu_extract.sources.zarr_stores import store_labels, usual_labels

    with translated(f"{store} is a damaged Zarr store"):
        names = store_labels(store)
    if not given:
        return {plane: _label(store, plane, name, Selection()) for plane, name in usual_labels(names).items()}
    from gpu_extract.sources.shapes import shape_names

    names += tuple(name for name in shape_names(store) if name not in names)
    planes = dict(given)
    for plane, label in by_name.items():
        if label.path not in names:
            there = f"its labels are {', '.join(names)}" if names else "it has no labels"
            raise SourceError(
                f"{plane} label plane {label.path} is neither a file nor the name of a label in {store.path}; {there}"
            )
        planes[plane] = _label(store, plane, label.path, label.selection)
    return planes


def _store(images: Sequence[Any]) -> Location | None:
    """Return where the store of the only image is; None if the image is no store."""
    location = images[0]
    if len(images) > 1 or not isinstance(location, Location):
        return None
    if not (location.is_url or os.path.isdir(location.path)):
        return None
    from gpu_extract.sources.zarr_stores import store_location

    return store_location(location)


def _label(store: Location, plane: str, name: str, own: Selection) -> Location:
    """Return the location of a label in the store; where `own` selects nothing, what the image's location selects."""
    of_image = store.selection
    selection = Selection(
        level=of_image.level if own.level is None else own.level,
        c=own.c,
        # The maximum of ids means nothing: it must be asked for where the labels are given.
        z=own.z if own.z is not None or of_image.z == "max" else of_image.z,
        t=of_image.t if own.t is None else own.t,
        image=of_image.image,
        label=name,
        missing=own.missing or of_image.missing,
        unit=own.unit,
    )
    return replace(store, selection=selection, plane=plane)
