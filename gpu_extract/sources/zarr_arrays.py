"""Zarr arrays as stacks of planes, read by region through zarr itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import SourceError
from gpu_extract.model import Raster
from gpu_extract.sources.files import translated
from gpu_extract.sources.selectors import Location
from gpu_extract.sources.stacks import Indices, Stack, out_of_range, selector
from gpu_extract.sources.tiles import Box, TiledRaster, tile_size
from gpu_extract.sources.zarr_checks import check_array, check_chunks
from gpu_extract.sources.zarr_stores import array_at, array_axes, multiscale, zarr_element

__all__ = ["open_zarr"]


def open_zarr(location: Location) -> Stack:
    """The planes of an image or label in a Zarr store.

    Raises
    ------
    SourceError
        If its metadata show that it cannot be read, or not without a guess.
    """
    with translated(f"{location} is a damaged Zarr store"):
        element = zarr_element(location)
        found = multiscale(location, element)
        if found is None:
            array, axes, size = element, array_axes(location, element), None
        else:
            level = location.selection.level or 0
            if level >= len(found.paths):
                raise out_of_range(location, "level", len(found.paths))
            array, axes = array_at(location, element, found.paths[level]), found.axes
            size = found.pixel_sizes[level]
        check_array(location, array)
        if len(axes) != array.ndim:
            raise SourceError(
                f"{location} is damaged: its metadata name the axes {axes}, and its shape is {array.shape}"
            )
        check_chunks(location, array)
    names = () if found is None else found.names
    return Stack(location, axes[:-2], array.shape[:-2], names, partial(_raster, location, array), size)


def _raster(location: Location, array: Any, indices: Indices, names: tuple[str, ...], source: str) -> Raster:
    planes = tuple(selector(along) for along in indices)
    n_planes = math.prod(map(len, indices))
    height, width = array.shape[-2:]
    dtype = np.dtype(array.dtype).newbyteorder("=")
    read_boxes = partial(_read_boxes, location, array, planes)
    return TiledRaster(read_boxes, tile_size(array.chunks), (n_planes, height, width), dtype, names, source)


def _read_boxes(
    location: Location, array: Any, planes: tuple[slice | list[int], ...], boxes: Sequence[Box]
) -> Iterator[NDArray[Any]]:
    for y0, x0, y1, x1 in boxes:
        with translated(f"{location} cannot be read at rows {y0} to {y1 - 1}, columns {x0} to {x1 - 1}"):
            pixels = np.asarray(array.oindex[(*planes, slice(y0, y1), slice(x0, x1))])
            yield pixels.reshape(-1, y1 - y0, x1 - x0)
