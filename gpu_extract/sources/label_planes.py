"""Where the label planes of a slide are: given as paths or arrays, by name, or found beside the image."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from gpu_extract.errors import SourceError
from gpu_extract.model import MASK_NAMES
from gpu_extract.sources.files import translated
from gpu_extract.sources.selectors import Location, Selection, located

__all__ = ["label_planes"]


def label_planes(image: Any, nucleus: Any, cytosol: Any) -> dict[str, Any]:
    """The label planes of an image by their names; a label of the image's own store as its `Location`.

    A path at which nothing is is taken for the name of a label in the image's store. If neither plane is given,
    those of the usual names in it are found: ``seg_all_nucleus`` or ``nucleus``, ``seg_all_cytosol`` or ``cytosol``.

    Raises
    ------
    SourceError
        If the store has no label of that name.
    """
    given = {plane: at for plane, at in zip(MASK_NAMES, (nucleus, cytosol), strict=True) if at is not None}
    paths = {
        plane: located(os.fsdecode(at), plane) for plane, at in given.items() if isinstance(at, (str, os.PathLike))
    }
    by_name = {plane: label for plane, label in paths.items() if not label.exists}
    store = _store(image) if by_name or not given else None
    if store is None:
        return given
    from gpu_extract.sources.zarr_stores import store_labels, usual_labels

    with translated(f"{store} is a damaged Zarr store"):
        names = store_labels(store)
    if not given:
        return {plane: _label(store, located(name, plane)) for plane, name in usual_labels(names).items()}
    for plane, label in by_name.items():
        if label.path not in names:
            there = f"its labels are {', '.join(names)}" if names else "it has no labels"
            raise SourceError(
                f"{plane} label plane {label.path} is neither a file nor the name of a label in {store.path}; {there}"
            )
        given[plane] = _label(store, label)
    return given


def _store(image: Any) -> Location | None:
    if isinstance(image, (list, tuple)) and len(image) == 1:
        image = image[0]
    if not isinstance(image, (str, os.PathLike)):
        return None
    location = located(os.fsdecode(image), None)
    if not (location.is_url or os.path.isdir(location.path)):
        return None
    from gpu_extract.sources.zarr_stores import store_location

    return store_location(location)


def _label(store: Location, label: Location) -> Location:
    """The label in the store, selected like the image where the user says nothing else."""
    of_image, own = store.selection, label.selection
    selection = Selection(
        level=of_image.level if own.level is None else own.level,
        c=own.c,
        # A maximum of ids is none of them by right: it must be asked for where the labels are given.
        z=own.z if own.z is not None or of_image.z == "max" else of_image.z,
        t=of_image.t if own.t is None else own.t,
        image=of_image.image,
        label=label.path,
        missing=own.missing or of_image.missing,
    )
    return replace(store, selection=selection, plane=label.plane)
