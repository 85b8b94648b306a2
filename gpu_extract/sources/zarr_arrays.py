"""Zarr arrays as stacks of planes, read by region with zarr."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import SourceError
from gpu_extract.sources.files import absolute_path, translated
from gpu_extract.sources.physical import ambiguous_pixel_size
from gpu_extract.sources.placement import Placement
from gpu_extract.sources.selectors import Location
from gpu_extract.sources.stacks import Indices, Stack, out_of_range, selector
from gpu_extract.sources.tiles import Box, TiledPlanes, tile_size
from gpu_extract.sources.zarr_checks import (
    Listing,
    StoredFiles,
    check_array,
    check_chunks,
    check_remote_chunks,
    stored_files,
)
from gpu_extract.sources.zarr_stores import array_at, array_axes, multiscale, zarr_element

__all__ = ["ZarrPlanes", "open_zarr"]


@dataclass(frozen=True, eq=False)
class ZarrPlanes(TiledPlanes):
    """The planes of an array in a Zarr store.

    Parameters
    ----------
    key, size, tile, dtype
        See `TiledPlanes`.
    location : Location
        Used in messages.
    array : zarr.Array
        In a `StrictStore`. It is pickled as the path of the store and the metadata of the array; no file stays open.
    listing : Listing or None
        Of its files; None if they are at a URL or in an archive.
    """

    location: Location
    array: Any
    listing: Listing | None = None

    def read_boxes(self, indices: Indices, boxes: Sequence[Box]) -> Iterator[NDArray[Any]]:
        """See `TiledPlanes.read_boxes`."""
        planes = tuple(selector(along) for along in indices)
        for y0, x0, y1, x1 in boxes:
            with translated(self.location, f"cannot be read at rows {y0} to {y1 - 1}, columns {x0} to {x1 - 1}"):
                pixels = np.asarray(self.array.oindex[(*planes, slice(y0, y1), slice(x0, x1))])
                yield pixels.reshape(-1, y1 - y0, x1 - x0)


@dataclass(frozen=True)
class _Element:
    """An array, and what the metadata of its group say of it; see `Multiscale`."""

    array: Any
    axes: str
    names: tuple[str, ...] = ()
    pixel_sizes: tuple[tuple[float, float], ...] = ()
    placements: tuple[Placement, ...] = ()
    levels: tuple[tuple[Placement, ...], ...] = ()


def open_zarr(location: Location) -> Stack:
    """Return the planes of an image or label in a Zarr store.

    Raises
    ------
    SourceError
        If the metadata show that it cannot be read, or are ambiguous.
    """
    with translated(location, "is a damaged Zarr store"):
        element = _element(location)
        array, axes = element.array, element.axes
        check_array(location, array)
        if len(axes) != array.ndim:
            raise SourceError(
                f"{location} is damaged: its metadata name the axes {axes}, and its shape is {array.shape}"
            )
        path, files, warnings = _stored(location, array)
    planes = ZarrPlanes(
        key=(path, array.path, files.stamp, location.selection.missing),
        size=array.shape[-2:],
        tile=tile_size(array.chunks),
        dtype=np.dtype(array.dtype).newbyteorder("="),
        location=location,
        array=array,
        listing=files.listing,
    )
    return Stack(
        location,
        axes[:-2],
        array.shape[:-2],
        element.names,
        planes,
        pixel_size=element.pixel_sizes[0] if element.pixel_sizes else None,
        warnings=(*warnings, *ambiguous_pixel_size(str(location), element.pixel_sizes)),
        placements=element.placements,
        levels=element.levels,
    )


def _element(location: Location) -> _Element:
    """Return the array at a location, of a multiscale that of the selected level."""
    node = zarr_element(location)
    found = multiscale(location, node)
    if found is None:
        return _Element(node, array_axes(location, node))
    level = location.selection.level or 0
    if level >= len(found.paths):
        raise out_of_range(location, "level", len(found.paths))
    array = array_at(location, node, found.paths[level])
    return _Element(
        array, found.axes, found.names, found.pixel_sizes[level], found.placements[level], levels=found.placements
    )


def _stored(location: Location, array: Any) -> tuple[str, StoredFiles, tuple[str, ...]]:
    """Return where an array is stored, its files, and a warning if chunks are absent."""
    if location.is_url:  # not every server lists its files
        return location.path, StoredFiles(frozenset(), uuid.uuid4().hex), check_remote_chunks(location, array)
    files = stored_files(location, array)
    warnings = check_chunks(location, array, files.chunks)
    if not warnings and location.selection.missing is None:
        array.store.strict = True  # a chunk that is absent when it is read was deleted meanwhile
    return absolute_path(location.path), files, warnings
