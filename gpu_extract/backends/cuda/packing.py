"""Tiles on a device without the zeros around what is in them, by ``kernels/pack.cu``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpu_extract.backends.cuda.device import Array, Device
from gpu_extract.backends.cuda.registry import PACK

__all__ = ["pack", "unpacked_index"]

# Enum Column of kernels/pack.cu.
N_COLUMNS = 5


def pack(device: Device, images: Array) -> tuple[Array, Array]:
    """Launch the packing of tiles (n, K, S, S).

    Returns
    -------
    values : (n * K * S * S,), the type of the images
        The pixels in the boxes of all planes; how many there are is in the index.
    index : (1 + n * K * 5,) int64
        See `unpacked_index`.
    """
    n, K, S, _ = images.shape
    bits = np.dtype(f"u{images.dtype.itemsize}")
    values = device.empty((n * K * S * S,), images.dtype)
    index = device.empty((1 + n * K * N_COLUMNS,), np.int64)
    device.to_device(np.zeros(1, np.int64), index[:1])
    arguments = images.view(bits), np.int32(n * K), np.int32(S), index[1:], index[:1].view(np.uint64), values.view(bits)
    device.launch(PACK[images.dtype.itemsize], n * K, arguments)
    return values, index


def unpacked_index(index: NDArray[np.int64], n: int) -> tuple[int, NDArray[np.int64], NDArray[np.int64]]:
    """Return from an index in host memory the number of values, and boxes (n, K, 4) and starts (n, K) of the planes."""
    columns = index[1:].reshape(n, -1, N_COLUMNS)
    return int(index[0]), columns[:, :, :4].copy(), columns[:, :, 4].copy()
