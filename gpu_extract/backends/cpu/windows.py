"""A window of a slide as the kernels read it: planes in flat memory, each row contiguous."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpu_extract.model import Window

__all__ = ["Pixels", "Plane", "pixels_of"]


class Plane(NamedTuple):
    """One channel or label plane: row y begins at ``data[start + y * stride]``.

    Parameters
    ----------
    data : (n,), any pixel type
    start, stride : int, pixels
    height, width : int, pixels
    """

    data: NDArray[Any]
    start: int
    stride: int
    height: int
    width: int


class Pixels(NamedTuple):
    """A window: its image and its label planes.

    Parameters
    ----------
    image : Plane
        The first channel.
    channel_stride : int, pixels
        From the start of a channel to that of the next one.
    labels : two of Plane, uint8 to uint64
        The label planes; the same one twice if there is only one.
    """

    image: Plane
    channel_stride: int
    labels: tuple[Plane, Plane]


def pixels_of(window: Window) -> Pixels:
    """Return a window as the kernels read it, without a copy where its memory can be read in place."""
    height, width = window.image.shape[1:]
    image = window.image.astype(np.float32) if window.image.dtype == np.float16 else window.image
    data, channel_stride, row_stride = flat(image)
    # Ids are not negative, so they have the same bits as unsigned integers; two planes share the wider type.
    itemsize = max(plane.dtype.itemsize for plane in window.labels)
    planes = []
    for plane in window.labels:
        ids, _, stride = flat(as_unsigned(plane, itemsize)[np.newaxis])
        planes.append(Plane(ids, 0, stride, height, width))
    return Pixels(Plane(data, 0, row_stride, height, width), channel_stride, (planes[0], planes[-1]))


def as_unsigned(labels: NDArray[Any], itemsize: int) -> NDArray[Any]:
    """Return labels, none of them negative, as unsigned integers of ``itemsize`` bytes; a view if the size matches."""
    if labels.dtype.itemsize == itemsize and labels.dtype.isnative:
        return labels.view(f"u{itemsize}")
    return labels.astype(f"u{itemsize}")


def flat(planes: NDArray[Any]) -> tuple[NDArray[Any], int, int]:
    """Return the memory of planes (P, h, w) from the first to the last pixel, (n,), and the plane and row strides.

    Rows that are not contiguous, and pixels that are not aligned to their own size, are copied. The memory is
    read-only, because numba compiles separate code for read-only and writable arrays.
    """
    strides = planes.strides
    is_whole = min(strides) >= 0 and not any(stride % planes.itemsize for stride in strides)
    if strides[2] != planes.itemsize or not is_whole or not planes.flags.aligned:
        planes = np.ascontiguousarray(planes)
    plane, row, _ = (stride // planes.itemsize for stride in planes.strides)
    P, h, w = planes.shape
    n = (P - 1) * plane + (h - 1) * row + w if planes.size else 0
    memory = np.lib.stride_tricks.as_strided(planes, (n,), (planes.itemsize,), writeable=False)
    return memory, plane, row
