"""Arrays of dask and xarray."""

import numpy as np
import pytest
from made.stores import BOX, IMAGE, LABELS, NAMES, crop

from gpu_extract.errors import InputError
from gpu_extract.sources import open_image, open_slide


def test_dask():
    lazy = pytest.importorskip("dask.array").from_array(IMAGE, chunks=32)
    np.testing.assert_array_equal(open_image(lazy).read(*BOX), crop(IMAGE))


def test_xarray():
    xarray = pytest.importorskip("xarray")
    channels_last = xarray.DataArray(np.moveaxis(IMAGE, 0, -1), dims=("y", "x", "c"), coords={"c": list(NAMES)})
    slide = open_slide(channels_last, nucleus=xarray.DataArray(LABELS.T, dims=("x", "y")))
    assert slide.channel_names == NAMES
    np.testing.assert_array_equal(slide.read(BOX).image, crop(IMAGE))
    np.testing.assert_array_equal(slide.read(BOX).labels[0], crop(LABELS))
    np.testing.assert_array_equal(open_image(xarray.DataArray(IMAGE)).read(*BOX), crop(IMAGE))
    with pytest.raises(InputError, match=r"image array has the axis z; choose one of it first: array\.isel\(z=0\)"):
        open_image(xarray.DataArray(IMAGE, dims=("z", "y", "x")))
