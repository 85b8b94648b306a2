"""Rasters of arrays that the user has in memory or opened lazily, and of several rasters stacked as channels."""

from __future__ import annotations

from collections.abc import Sequence
from types import EllipsisType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import InputError
from gpu_extract.model import Raster
from gpu_extract.sources.files import translated
from gpu_extract.sources.placement import array_placements
from gpu_extract.sources.user_arrays import ArrangedArray, arranged, check_not_masked, picklable

__all__ = ["ArrayRaster", "StackedRaster", "raster_shape", "read_box"]

# A last axis this short, beside two axes this many times longer, holds channels and not columns.
MAX_LAST_CHANNELS = 16
TIMES_LONGER = 4


def raster_shape(shape: Sequence[int], subject: str, *, named: bool = False) -> tuple[int, int, int]:
    """Return (P, H, W) for an array of shape (P, H, W) or (H, W).

    Parameters
    ----------
    shape : sequence of int
    subject : str
        The array, in messages.
    named : bool
        Whether names of the axes say that they are in this order.

    Raises
    ------
    InputError
        If the array has another number of axes, no pixels, or looks like (H, W, channels).
    """
    if len(shape) not in (2, 3):
        raise InputError(
            f"{subject} has shape {tuple(shape)}; it must be (planes, H, W) or (H, W): "
            "give one field, Z slice or time point at a time"
        )
    if min(shape) < 1:
        raise InputError(f"{subject} has shape {tuple(shape)}, so it has no pixels; every side must be 1 or more")
    if len(shape) == 3 and not named and _is_channels_last(shape):
        remedy = "array[..., 0]" if shape[-1] == 1 else "numpy.moveaxis(array, -1, 0)"
        raise InputError(
            f"{subject} has shape {tuple(shape)}, which looks like (H, W, channels); it must be (planes, H, W): "
            f"give {remedy}"
        )
    planes, height, width = (1, *shape) if len(shape) == 2 else shape
    return int(planes), int(height), int(width)


def read_box(array: Any, y0: int, x0: int, y1: int, x1: int, channel: int | EllipsisType = Ellipsis) -> NDArray[Any]:
    """Return the pixels of a box, (P, y1 - y0, x1 - x0), in native byte order.

    Parameters
    ----------
    array : (P, H, W) or (H, W)
    y0, x0, y1, x1 : int, pixels
    channel : int, optional
        Read only this channel.
    """
    pixels = array[channel, y0:y1, x0:x1]
    check_not_masked(pixels, "array")
    box = np.asarray(pixels)
    box = box.astype(box.dtype.newbyteorder("="), copy=False)
    return box[np.newaxis] if box.ndim == 2 else box


class ArrayRaster:
    """A raster of the user's array, (P, H, W) or (H, W), which is read by slices and never copied whole.

    It pickles as the array does. A dataset of h5py cannot be pickled; a reference to it in its file is pickled instead.

    Parameters
    ----------
    array : array
    plane : str, optional
        Name of the label plane in the array; None if the array is an image.
    channels : tuple of int, optional
        Planes to read, in this order; all by default.

    Raises
    ------
    InputError
    """

    source = "array"

    def __init__(self, array: Any, plane: str | None, channels: tuple[int, ...] | None = None) -> None:
        subject = "image array" if plane is None else f"{plane} label array"
        placements = array_placements(array)
        array = arranged(array, subject)
        planes, height, width = raster_shape(array.shape, subject, named=isinstance(array, ArrangedArray))
        if array.ndim == 2:
            channels = None  # it has only one
        names = array.names if isinstance(array, ArrangedArray) else ()
        self._array = array
        self.placements = placements
        self._plane = plane
        self._channels = channels
        self.names = names if channels is None or not names else tuple(names[index] for index in channels)
        self.shape = (planes if channels is None else len(channels), height, width)
        try:
            self.dtype = np.dtype(array.dtype).newbyteorder("=")
        except TypeError as cause:
            raise InputError(
                f"{subject} is of type {array.dtype}; convert it to a NumPy array, for example with array.numpy()"
            ) from cause

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": picklable(self._array)}

    def read(self, y0: int, x0: int, y1: int, x1: int) -> NDArray[Any]:
        """See `Raster.read`.

        Raises
        ------
        InputError
            If a pixel is masked.
        SourceError
            If the array cannot be read, for example because its file was closed.
        """
        subject = "image array" if self._plane is None else f"{self._plane} label array"
        where = f"cannot be read at rows {y0} to {y1 - 1}, columns {x0} to {x1 - 1}"
        with translated(subject, where, "check the array, and that its file is open"):
            if self._channels is None:
                return read_box(self._array, y0, x0, y1, x1)
            # One channel at a time, because not every kind of array can be indexed with a list.
            return np.concatenate([read_box(self._array, y0, x0, y1, x1, channel) for channel in self._channels])

    def with_channels(self, indices: tuple[int, ...]) -> ArrayRaster:
        """Return the raster of some channels, in this order; the others are never read."""
        return ArrayRaster(self._array, self._plane, indices)


class StackedRaster:
    """Several rasters of one plane each, as the channels of one image.

    Parameters
    ----------
    channels : sequence of Raster, each (1, H, W)
    names : sequence of str
        Channel names; an empty string for a channel without a name.

    Raises
    ------
    InputError
        If a raster has several planes, or the rasters differ in size or type.
    """

    def __init__(self, channels: Sequence[Raster], names: Sequence[str]) -> None:
        first = channels[0]
        for channel in channels:
            _check_channel(channel, first)
        self._channels = tuple(channels)
        self.shape = (len(channels), *first.shape[1:])
        self.dtype = first.dtype
        self.names = tuple(names)
        self.source = ", ".join(channel.source for channel in channels)

    def read(self, y0: int, x0: int, y1: int, x1: int) -> NDArray[Any]:
        """See `Raster.read`."""
        return np.concatenate([channel.read(y0, x0, y1, x1) for channel in self._channels])


def _is_channels_last(shape: Sequence[int]) -> bool:
    """Return whether a shape looks like (H, W, C)."""
    rows, columns, last = shape
    return last <= MAX_LAST_CHANNELS <= rows and min(rows, columns) >= TIMES_LONGER * last


def _check_channel(channel: Raster, first: Raster) -> None:
    planes, height, width = channel.shape
    if planes != 1:
        raise InputError(
            f"image {channel.source} holds {planes} planes; "
            "if several images are given as the channels of a slide, each must hold one plane"
        )
    if (height, width) != first.shape[1:]:
        H, W = first.shape[1:]
        raise InputError(
            f"image {channel.source} is {height} x {width} pixels and {first.source} is {H} x {W} (H x W); "
            "the channels of a slide must be equal in size"
        )
    if channel.dtype != first.dtype:
        raise InputError(
            f"image {channel.source} has pixels of type {channel.dtype} and {first.source} of {first.dtype}; "
            "convert the channels of a slide to one type"
        )
