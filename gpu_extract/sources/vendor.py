"""Formats of microscope vendors (CZI, ND2, LIF), read through bioio where it is installed."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import SourceError
from gpu_extract.listing import listed
from gpu_extract.sources import caches
from gpu_extract.sources.files import READABLE, SourceFile, file_description, translated
from gpu_extract.sources.names import cleaned
from gpu_extract.sources.selectors import Location
from gpu_extract.sources.stacks import Indices, Stack
from gpu_extract.sources.tiles import Box, TiledPlanes, tile_size
from gpu_extract.sources.units import pixel_size

__all__ = ["VendorPlanes", "open_vendor"]

# Without a handler Python prints bioio's warnings to stderr; errors are raised below.
logging.getLogger("bioio").addHandler(logging.NullHandler())

INSTALL = "pip install bioio bioio-nd2 bioio-lif for ND2 and LIF, pip install bioio bioio-czi for CZI"
AXES = "TCZYX"


@dataclass(frozen=True, eq=False)
class VendorPlanes(TiledPlanes):
    """The planes of an image read by bioio, along T, C and Z. Another process opens the file again.

    Parameters
    ----------
    key, size, tile, dtype
        See `TiledPlanes`.
    file : SourceFile
    scene : str or None
        Name of the image in the file; None for the only one.
    """

    file: SourceFile
    scene: str | None

    def read_boxes(self, indices: Indices, boxes: Sequence[Box]) -> Iterator[NDArray[Any]]:
        """See `TiledPlanes.read_boxes`."""
        for y0, x0, y1, x1 in boxes:
            # Opening the stream checks that the file has not changed.
            with (
                translated(self.file, f"cannot be read at rows {y0} to {y1 - 1}, columns {x0} to {x1 - 1}"),
                self.file.open(),
            ):
                pixels = caches.OPENED.get((self.key, indices), partial(self._chosen, indices))
                yield np.asarray(pixels[..., y0:y1, x0:x1]).reshape(-1, y1 - y0, x1 - x0)

    def _chosen(self, indices: Indices) -> Any:
        """Return the dask array of some planes, (T, C, Z, Y, X)."""
        pixels = caches.OPENED.get(self.key, self._open)
        for axis, along in enumerate(indices):
            pixels = pixels[(*[slice(None)] * axis, list(along))]
        return pixels

    def _open(self) -> Any:
        """Return the dask array of all planes, (T, C, Z, Y, X)."""
        image = _bio_image(self.file)
        if self.scene is not None:
            image.set_scene(self.scene)
        return image.get_image_dask_data(AXES)


def open_vendor(file: SourceFile, location: Location) -> Stack:
    """Return the planes of a file read by bioio: of its only image, or of the one selected by ``image=``.

    Raises
    ------
    SourceError
        If bioio is not installed or does not know the format, or the image has axes other than T, C, Z, Y and X.
    """
    location.selection.refuse(str(location), "level", "label", "missing")
    image, scene = _bio_image(file), location.selection.image
    with translated(file, "cannot be opened by bioio"):
        _select_scene(location, image)
        others = [f"{axis} {n}" for axis, n in zip(image.dims.order, image.dims.shape, strict=True)
                  if axis not in AXES and n > 1]  # fmt: skip
        if others:
            raise SourceError(
                f"{file} has the axes {listed(others)} besides T, C, Z, Y and X; convert it to OME-TIFF without them"
            )
        key = (*file.key, scene)
        pixels = caches.OPENED.get(key, partial(image.get_image_dask_data, AXES))
        names = tuple(str(name) for name in image.channel_names or ())
        sides = image.physical_pixel_sizes
    dtype = np.dtype(pixels.dtype).newbyteorder("=")
    planes = VendorPlanes(key, pixels.shape[-2:], tile_size(pixels.chunksize), dtype, file, scene)
    return Stack(location, "tcz", pixels.shape[:3], names, planes, pixel_size(sides.Y, sides.X, "um", "um"))


def _bio_image(file: SourceFile) -> Any:
    with translated(file, "cannot be opened by bioio"):
        try:
            bioio = importlib.import_module("bioio")
        except ModuleNotFoundError as cause:
            if cause.name != "bioio":
                raise
            raise SourceError(
                f"{file} {file_description(file)}; {READABLE}, and vendors' formats by bioio ({INSTALL}): "
                "install that, or convert it to OME-TIFF"
            ) from cause
        unsupported = importlib.import_module("bioio_base.exceptions").UnsupportedFileFormatError
        try:
            return bioio.BioImage(file.absolute)
        except unsupported as cause:
            raise SourceError(
                f"{file} {file_description(file)}, and no installed reader of bioio supports it ({INSTALL}): "
                "install one, or convert it to OME-TIFF"
            ) from cause


def _select_scene(location: Location, image: Any) -> None:
    scenes, wanted = tuple(image.scenes), location.selection.image
    there = listed([cleaned(str(scene)) for scene in scenes])
    if wanted is None:
        if len(scenes) > 1:
            raise SourceError(f"{location} holds the images {there}; choose one: {location.path}#image=NAME")
        return
    if wanted not in scenes:
        raise SourceError(f"{location} does not exist: the file has no image {wanted!r}; there are {there}")
    image.set_scene(wanted)
