"""One thing that a user gave, a path or an array, opened."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gpu_extract.errors import InputError, SourceError
from gpu_extract.sources.arrays import ArrayRaster, is_array
from gpu_extract.sources.cellpose import open_cellpose
from gpu_extract.sources.files import SourceFile, file_format
from gpu_extract.sources.numpy_files import holds_pickle, open_npy, open_npz
from gpu_extract.sources.selectors import Location
from gpu_extract.sources.stacks import Stack, raster_stack

if TYPE_CHECKING:
    from gpu_extract.sources.outline_files import Canvas

__all__ = ["opened"]


def opened(given: Any, plane: str | None, canvas: Callable[[], Canvas] | None = None) -> ArrayRaster | Stack:
    """Return the planes of a file, or the raster of an array.

    Parameters
    ----------
    given : Location or array
        What `selectors.parse_input` made of what the user gave.
    plane : str, optional
        The label plane that it holds; None if it holds an image.
    canvas : callable, optional
        Returns the image over which a label plane is drawn, if it is a file of outlines.

    Raises
    ------
    InputError, SourceError, LabelError
    """
    if isinstance(given, Location):
        return _open_location(given, canvas)
    if is_array(given):
        return ArrayRaster(given, plane)
    raise InputError(
        f"{'the image' if plane is None else f'the {plane} label plane'} is of type {type(given).__name__}; "
        "give a path or an array (NumPy, Dask, Zarr, HDF5, xarray)"
    )


def _open_location(location: Location, canvas: Callable[[], Canvas] | None) -> Stack:
    # What reads each format is imported where it is needed, so that who gives arrays need not wait for it.
    from gpu_extract.sources.outline_files import open_outlines, outline_format
    from gpu_extract.sources.shapes import shapes_location

    location = shapes_location(location) or location
    if location.is_url or os.path.isdir(location.path):
        location.selection.refuse(str(location), "unit")
        return _open_folder(location)
    file = SourceFile.at(location.path, location.plane)
    outlines = outline_format(file)
    if outlines is not None:
        return open_outlines(file, location, outlines, canvas)
    location.selection.refuse(str(location), "unit")
    kind = file_format(file)
    if location.inside and kind != "hdf5":
        raise SourceError(f"{file} is not HDF5, and so has nothing at {location.inside}; leave that out")
    match kind:
        case "npy" if location.plane is not None and holds_pickle(file):
            return raster_stack(open_cellpose(file), location)
        case "npy":
            return raster_stack(open_npy(file), location)
        case "npz":
            return raster_stack(open_npz(file), location)
        case "hdf5":
            from gpu_extract.sources.hdf5 import open_hdf5

            return open_hdf5(file, location)
        case "tiff":
            from gpu_extract.sources.tiff import open_tiff

            return open_tiff(file, location)
        case _:
            from gpu_extract.sources.vendor import open_vendor

            return open_vendor(file, location)


def _open_folder(location: Location) -> Stack:
    from gpu_extract.sources.zarr_arrays import open_zarr
    from gpu_extract.sources.zarr_stores import store_location

    store = store_location(location)
    if store is None:
        raise SourceError(f"{location} is a folder and no Zarr store; give a file or a store in it")
    return open_zarr(store)
