"""Arrays that `gpu_extract.ops` takes for CuPy arrays."""

from types import SimpleNamespace

import numpy as np


class DeviceArray(np.ndarray):
    """An array that `gpu_extract.ops` takes for a CuPy array, because of its module."""

    __module__ = "cupy"
    device = SimpleNamespace(id=0)


def on_gpu(array):
    """Return a copy of an array as one that seems to be on a device."""
    return np.array(array, order="C").view(DeviceArray)
