"""Open one path or array given by the user."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gpu_extract.errors import InputError, SourceError
from gpu_extract.sources.arrays import ArrayRaster
from gpu_extract.sources.cellpose import open_cellpose
from gpu_extract.sources.files import SourceFile, file_format
from gpu_extract.sources.numpy_files import holds_pickle, open_npy, open_npz
from gpu_extract.sources.selectors import Location
from gpu_extract.sources.stacks import Stack, raster_stack
from gpu_extract.sources.user_arrays import is_array, remedy_for
from gpu_extract.sources.zips import is_zipped_zarr

if TYPE_CHECKING:
    from gpu_extract.sources.outline_files import Canvas

__all__ = ["opened"]


def opened(given: Any, plane: str | None, canvas: Callable[[], Canvas] | None = None) -> ArrayRaster | Stack:
    """Return the planes of a file, or the raster of an array.

    Parameters
    ----------
    given : Location or array
        The user's input, parsed by `selectors.parse_input`.
    plane : str, optional
        Name of the label plane in it; None if it is an image.
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
    subject = "the image" if plane is None else f"the {plane} label plane"
    raise InputError(f"{subject} is of type {type(given).__name__}; {remedy_for(given)}")


def _open_location(location: Location, canvas: Callable[[], Canvas] | None) -> Stack:
    # The reader of a format is imported only when needed, because imports take time.
    from gpu_extract.sources.outline_files import open_outlines, outline_format
    from gpu_extract.sources.shapes import shapes_location

    if location.is_remote_tiff:
        from gpu_extract.sources.remote_files import RemoteFile
        from gpu_extract.sources.tiff import open_tiff

        return open_tiff(RemoteFile.at(location.path, location.plane), location)
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
    if kind == "npz" and is_zipped_zarr(location.path):
        return _open_folder(location)
    if location.inside and kind != "hdf5":
        raise SourceError(f"{file} is not HDF5, so it has no dataset {location.inside}; give the path without it")
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
        case "picture":
            from gpu_extract.sources.pictures import open_picture

            return open_picture(file, location)
        case "xml":
            from gpu_extract.sources.tiff import open_companion

            return open_companion(file, location)
        case _:
            from gpu_extract.sources.vendor import open_vendor

            return open_vendor(file, location)


def _open_folder(location: Location) -> Stack:
    from gpu_extract.sources.zarr_arrays import open_zarr
    from gpu_extract.sources.zarr_stores import store_location

    store = store_location(location)
    if store is None:
        raise SourceError(f"{location} is a folder but not a Zarr store; give a file or a store in it")
    return open_zarr(store)
