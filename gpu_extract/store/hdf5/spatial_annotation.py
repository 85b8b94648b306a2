"""Annotation of cells for spatialdata and squidpy: the label element of each cell, and its label.

``uns["spatialdata_attrs"]`` names the columns of ``obs`` that hold them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu_extract.model import Slide

if TYPE_CHECKING:
    from gpu_extract.store.contents import Contents

__all__ = ["region_columns", "spatialdata_attrs"]

REGION = "region"
# The label element of a SpatialData store, as the source of a raster names it.
ELEMENT = re.compile(r"#(?:[^#]*,)?label=([^,#]+)[^#]*$|\.zarr/labels/([^/#]+)(?:/[^/#]*)*(?:#.*)?$")


def region_columns(contents: Contents) -> dict[str, tuple[str, ...]]:
    """Return the name of the column of regions in ``obs``, and the region of each slide.

    Empty if the slides' metadata have a ``region``; the column ``slide`` then takes its place.
    """
    return {} if REGION in contents.metadata_names else {REGION: _regions(contents.slides)}


def spatialdata_attrs(contents: Contents) -> dict[str, Any]:
    """Return ``uns["spatialdata_attrs"]``; empty if there is no cell."""
    columns = region_columns(contents) or {"slide": tuple(slide.name for slide in contents.slides)}
    ((key, regions),) = columns.items()
    # spatialdata does not accept a region without cells.
    used = [regions[i] for i in np.unique(contents.cells.slide)]
    if not used:
        return {}
    return {
        # anndata reads a list as an array. TableModel.parse accepts it, TableModel.validate accepts only a string.
        "region": used[0] if len(used) == 1 else np.array(used, object),
        "region_key": key,
        "instance_key": contents.label_column,
    }


def _regions(slides: Sequence[Slide]) -> tuple[str, ...]:
    """Return the names of the slides' label elements; the names of the slides if those are not unique."""
    names = tuple(_element(slide) or slide.name for slide in slides)
    return names if len(set(names)) == len(names) else tuple(slide.name for slide in slides)


def _element(slide: Slide) -> str | None:
    """Return the name of the label element with the cells' ids: the cytosol's, or else the nucleus's."""
    found = ELEMENT.search(list(slide.masks.values())[-1].source)
    name = found and (found[1] or found[2])
    return name if name and name.isprintable() else None
