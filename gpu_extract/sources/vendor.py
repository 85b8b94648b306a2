"""Formats of microscope vendors (CZI, ND2, LIF), read through bioio where it is installed."""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import SourceError
from gpu_extract.model import Raster
from gpu_extract.sources.files import READABLE, SourceFile, file_description, translated
from gpu_extract.sources.names import cleaned
from gpu_extract.sources.selectors import Location
from gpu_extract.sources.stacks import Indices, Stack
from gpu_extract.sources.tiles import Box, TiledRaster, tile_size
from gpu_extract.sources.units import pixel_size

__all__ = ["open_vendor"]

# Without a handler Python prints bioio's warnings to stderr; what they come to is raised below.
logging.getLogger("bioio").addHandler(logging.NullHandler())

INSTALL = "pip install 'gpu-extract[vendor]' for ND2 and LIF, pip install bioio bioio-czi for CZI"
AXES = "TCZYX"


def open_vendor(file: SourceFile, location: Location) -> Stack:
    """The planes of a file that bioio reads: of its only image, or of the one selected by ``image=``.

    Raises
    ------
    SourceError
        If bioio is not installed or does not know the format, or the image has other axes than T, C, Z, Y and X.
    """
    location.selection.refuse(str(location), "level", "label", "missing")
    image = _bio_image(file)
    with translated(f"{file} cannot be opened by bioio"):
        _select_scene(location, image)
        others = [f"{axis} {n}" for axis, n in zip(image.dims.order, image.dims.shape, strict=True)
                  if axis not in AXES and n > 1]  # fmt: skip
        if others:
            raise SourceError(
                f"{file} has the axes {', '.join(others)} besides T, C, Z, Y and X, which are not read; "
                "convert it to OME-TIFF without them"
            )
        pixels = image.get_image_dask_data(AXES)
        names = tuple(str(name) for name in image.channel_names or ())
        sides = image.physical_pixel_sizes
    size = pixel_size(sides.Y, sides.X, "um", "um")
    return Stack(location, "tcz", pixels.shape[:3], names, partial(_raster, file, pixels), size)


def _bio_image(file: SourceFile) -> Any:
    try:
        bioio = importlib.import_module("bioio")
        unsupported = importlib.import_module("bioio_base.exceptions").UnsupportedFileFormatError
    except ImportError as cause:
        raise SourceError(
            f"{file} {file_description(file)}; {READABLE}, and vendors' formats by bioio ({INSTALL}): "
            "install that, or convert it to OME-TIFF"
        ) from cause
    with translated(f"{file} cannot be opened by bioio"):
        try:
            return bioio.BioImage(file.path)
        except unsupported as cause:
            raise SourceError(
                f"{file} {file_description(file)}, and no reader of bioio that is installed takes it ({INSTALL}): "
                "install one, or convert it to OME-TIFF"
            ) from cause


def _select_scene(location: Location, image: Any) -> None:
    scenes, wanted = tuple(image.scenes), location.selection.image
    listed = ", ".join(cleaned(str(scene)) for scene in scenes[:20]) + (", ..." if len(scenes) > 20 else "")
    if wanted is None:
        if len(scenes) > 1:
            raise SourceError(f"{location} holds the images {listed}; choose one: {location.path}#image=NAME")
        return
    if wanted not in scenes:
        raise SourceError(f"{location} does not exist: the file has no image {wanted!r}; there are {listed}")
    image.set_scene(wanted)


def _raster(file: SourceFile, pixels: Any, indices: Indices, names: tuple[str, ...], source: str) -> Raster:
    height, width = pixels.shape[-2:]
    chosen = pixels
    for axis, along in enumerate(indices):
        chosen = chosen[(*[slice(None)] * axis, list(along))]
    shape = (math.prod(chosen.shape[:3]), height, width)
    dtype = np.dtype(pixels.dtype).newbyteorder("=")
    return TiledRaster(partial(_read_boxes, file, chosen), tile_size(pixels.chunksize), shape, dtype, names, source)


def _read_boxes(file: SourceFile, pixels: Any, boxes: Sequence[Box]) -> Iterator[NDArray[Any]]:
    for y0, x0, y1, x1 in boxes:
        # The stream is opened only to warning that the file has changed.
        with translated(f"{file} cannot be read at rows {y0} to {y1 - 1}, columns {x0} to {x1 - 1}"), file.open():
            yield np.asarray(pixels[..., y0:y1, x0:x1]).reshape(-1, y1 - y0, x1 - x0)
