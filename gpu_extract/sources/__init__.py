"""Anything a user has for a slide -> `Slide`, read lazily by region.

`files` tells what a file is, `names` makes names that can be stored, and there is one module per family of
formats: `arrays`, `numpy_files`, `tiff`. A file that cannot be extracted is refused when it is opened, from
its headers; damage that only its pixels can show, when they are read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from gpu_extract.errors import InputError
from gpu_extract.model import MASK_NAMES, Raster, Slide
from gpu_extract.sources.arrays import ArrayRaster, StackedRaster, is_array
from gpu_extract.sources.files import SourceFile, file_format
from gpu_extract.sources.names import cleaned, file_stem, unique_names
from gpu_extract.sources.numpy_files import NpyRaster, NpzRaster

__all__ = ["open_image", "open_labels", "open_slide"]


def open_slide(
    image: Any,
    *,
    nucleus: Any = None,
    cytosol: Any = None,
    channel_names: Sequence[str] | None = None,
    name: str | None = None,
) -> Slide:
    """The slide of an image and its label planes; no pixel is read yet.

    Parameters
    ----------
    image : array, path, or sequence of them
        See `open_image`.
    nucleus, cytosol : array or path, optional
        See `open_labels`; at least one is needed.
    channel_names : sequence of str, length C, optional
        Default: the names in the files, else ``ch0``, ``ch1``, ...
    name : str, optional
        Default: the (first) image's file name without its extension, else ``slide``.

    Raises
    ------
    InputError
        Or one of its kinds, `SourceError` and `LabelError`: with one line that says what to do.
    """
    if isinstance(channel_names, str):
        raise InputError(f"channel_names is the text {channel_names!r}; give a list with one name per channel")
    raster = open_image(image)
    planes = {"nucleus": nucleus, "cytosol": cytosol}
    masks = {plane: open_labels(labels, plane) for plane, labels in planes.items() if labels is not None}
    if channel_names is None:
        names = unique_names(raster.names, raster.shape[0])
    else:
        names = tuple(cleaned(channel) for channel in channel_names)
    return Slide(raster, masks, names, name=cleaned(name or _file_name(image) or "slide"))


def open_image(image: Any) -> Raster:
    """The (C, H, W) raster of an image.

    Parameters
    ----------
    image : array, path, or sequence of them
        (C, H, W) or (H, W): NumPy, Dask, Zarr or HDF5 arrays, or a path to .npy, .npz, TIFF or OME-TIFF. The
        items of a list or tuple are the channels, in that order, each of one plane.

    Raises
    ------
    InputError, SourceError
    """
    if not isinstance(image, (list, tuple)):
        return _open(image, plane=None)
    if not image:
        raise InputError("the list of images is empty; give one image, or one file per channel")
    channels = [_open(channel, plane=None) for channel in image]
    if len(channels) == 1:
        return channels[0]
    own_names = ["".join(raster.names) for raster in channels]  # of one plane, or StackedRaster refuses it
    return StackedRaster(channels, [name or _file_name(item) for name, item in zip(own_names, image, strict=True)])


def open_labels(labels: Any, plane: str) -> Raster:
    """The (1, H, W) raster of a label plane.

    Parameters
    ----------
    labels : array or path
        (H, W) or (1, H, W), the formats of `open_image`.
    plane : str
        ``nucleus`` or ``cytosol``; used in messages, and to choose an array of an .npz file.

    Raises
    ------
    InputError, SourceError, LabelError
    """
    assert plane in MASK_NAMES
    return _open(labels, plane=plane)


def _open(pixels: Any, *, plane: str | None) -> Raster:
    if isinstance(pixels, (str, os.PathLike)):
        return _open_file(SourceFile(os.fsdecode(pixels), plane))
    if is_array(pixels):
        return ArrayRaster(pixels, plane)
    raise InputError(
        f"{'the image' if plane is None else f'the {plane} label plane'} is of type {type(pixels).__name__}; "
        "give a path or an array (NumPy, Dask, Zarr, HDF5)"
    )


def _open_file(file: SourceFile) -> Raster:
    match file_format(file):
        case "npy":
            return NpyRaster(file)
        case "npz":
            return NpzRaster(file)
        case _:
            # Imported here, so that who gives arrays need not wait for tifffile.
            from gpu_extract.sources.tiff import open_tiff

            return open_tiff(file)


def _file_name(image: Any) -> str:
    first = image[0] if isinstance(image, (list, tuple)) else image
    return file_stem(os.fsdecode(first)) if isinstance(first, (str, os.PathLike)) else ""
