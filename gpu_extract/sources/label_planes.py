"""Locate the label planes of a slide: given as paths or arrays, by name, or found in the image's store."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gpu_extract.errors import SourceError
from gpu_extract.listing import listed
from gpu_extract.sources.files import translated
from gpu_extract.sources.selectors import Location, Selection
from gpu_extract.sources.zips import is_zipped_zarr

__all__ = ["label_planes"]


def label_planes(images: Sequence[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the label planes of a slide by name, each a `Location` or an array.

    A path that does not exist is treated as the name of a label in the image's store. If no plane is given, labels with
    the usual names are used: ``seg_all_nucleus`` or ``nucleus``, ``seg_all_cytosol`` or ``cytosol``.

    Parameters
    ----------
    images : sequence of Location or array
    given : mapping of str to Location or array
        The label planes given by the user, by name.

    Raises
    ------
    SourceError
        If the store has no label with that name.
    """
    by_name = {plane: at for plane, at in given.items() if isinstance(at, Location) and not at.exists}
    store = _store(images) if by_name or not given else None
    if store is None:
        return dict(given)
    from gpu_extract.sources.zarr_stores import store_labels, usual_labels

    with translated(store, "is a damaged Zarr store"):
        names = store_labels(store)
    if not given:
        return {plane: _label(store, plane, name, Selection()) for plane, name in usual_labels(names).items()}
    from gpu_extract.sources.shapes import shape_names

    names += tuple(name for name in shape_names(store) if name not in names)
    planes = dict(given)
    for plane, label in by_name.items():
        if label.path not in names:
            there = f"its labels are {listed(names)}" if names else "it has no labels"
            raise SourceError(
                f"{plane} label plane {label.path} is neither a file nor the name of a label in {store.path}; {there}"
            )
        planes[plane] = _label(store, plane, label.path, label.selection)
    return planes


def _store(images: Sequence[Any]) -> Location | None:
    """Return the location of the store if the image is a single store, otherwise None."""
    location = images[0]
    if len(images) > 1 or not isinstance(location, Location):
        return None
    if not (location.is_url or os.path.isdir(location.path) or is_zipped_zarr(location.path)):
        return None
    from gpu_extract.sources.zarr_stores import store_location

    return store_location(location)


def _label(store: Location, plane: str, name: str, own: Selection) -> Location:
    """Return the location of a label in the store; selectors missing in ``own`` are those of the image."""
    of_image = store.selection
    selection = Selection(
        level=of_image.level if own.level is None else own.level,
        c=own.c,
        # A maximum projection of ids is meaningless, so it is not inherited from the image.
        z=own.z if own.z is not None or of_image.z == "max" else of_image.z,
        t=of_image.t if own.t is None else own.t,
        image=of_image.image,
        label=name,
        missing=own.missing or of_image.missing,
        unit=own.unit,
    )
    return replace(store, selection=selection, plane=plane)
