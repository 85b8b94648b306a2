"""Compare files of cells by everything that HDF5 says of them."""

from __future__ import annotations

import h5py
import hdf5plugin  # noqa: F401 - HDF5 reads lz4 and zstd with it
import numpy as np


def logical_content(path):
    """Return all groups, datasets and attributes of an HDF5 file by name, as values that can be compared."""
    found = {}

    def visit(name, item):
        attributes = {key: _value(value) for key, value in item.attrs.items()}
        if isinstance(item, h5py.Dataset):
            kind = (item.shape, str(item.dtype), item.chunks, item.compression, item.maxshape)
            found[name] = (attributes, kind, _value(item[()]))
        else:
            found[name] = (attributes, sorted(item))

    with h5py.File(path, "r") as file:
        visit("/", file)
        file.visititems(visit)
    return found


def _value(value):
    array = np.asarray(value)
    return array.tolist() if array.dtype == object else (array.shape, array.tobytes())
