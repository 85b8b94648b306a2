"""Make pixels, and write them in the formats of stores, for tests."""

import os

import numpy as np
import pytest
import zarr

from made.slides import SHARED

FORMATS = SHARED / "data" / "formats"
RNG = np.random.default_rng(3)
IMAGE = RNG.integers(1, 60000, (3, 70, 90), np.uint16)
LABELS = RNG.integers(1, 99, (70, 90), np.uint32)
BOX = (13, 5, 67, 90)
NAMES = ("DNA", "pH3", "actin")


def crop(array, box=BOX):
    """Return the pixels of a box."""
    y0, x0, y1, x1 = box
    return array[..., y0:y1, x0:x1]


def shared(name):
    """Return the path of a file of the team's data; skip the test if it is not there."""
    if not (FORMATS / name).exists():
        pytest.skip(f"{FORMATS / name} is not there")
    return FORMATS / name


# Writers; each uses the library of its format


def write_multiscale(group, levels, axes, *, names=(), version="0.5", **storage):
    """Write arrays s0, s1, ... into a group, with the metadata of OME-Zarr."""
    datasets = []
    for index, level in enumerate(levels):
        given = {key: (1,) * (level.ndim - 2) + sides for key, sides in {"chunks": (32, 48), **storage}.items()}
        config = {"write_empty_chunks": True}
        group.create_array(f"s{index}", shape=level.shape, dtype=level.dtype, config=config, **given)[...] = level
        datasets.append({"path": f"s{index}"})
    metadata = {"multiscales": [{"axes": [{"name": axis} for axis in axes], "datasets": datasets}]}
    if names:
        metadata["omero"] = {"channels": [{"label": name} for name in names]}
    group.attrs.update({"ome": {"version": version, **metadata}} if version == "0.5" else metadata)


def write_ome_zarr(path, image=IMAGE, axes="cyx", *, version="0.5", labels=None, names=NAMES, **storage):
    """Write an image with two levels, and labels with two levels."""
    root = zarr.create_group(path, zarr_format=3 if version == "0.5" else 2, overwrite=True)
    write_multiscale(root, [image, image[..., ::2, ::2]], axes, names=names, version=version, **storage)
    declared = {"labels": list(labels or {})}
    folder = root.create_group("labels", attributes={"ome": declared} if version == "0.5" else declared)
    for name, plane in (labels or {}).items():
        levels = [plane, plane[..., ::2, ::2]]
        write_multiscale(folder.create_group(name), levels, "tyx"[-plane.ndim :], version=version, **storage)
    return path


def write_spatialdata(path, image=IMAGE, labels=None, images=("input_image",)):
    """Write a SpatialData store."""
    root = zarr.create_group(path, overwrite=True)
    for name in images:
        write_multiscale(root.create_group(f"images/{name}"), [image], "cyx", names=NAMES)
    for name, plane in (labels or {}).items():
        write_multiscale(root.create_group(f"labels/{name}"), [plane], "yx")
    return path


class Payload:
    """A pickle that makes a folder when it is loaded: a trace that a reader unpickled the file."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (self.trace,)
