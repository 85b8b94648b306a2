"""Label planes of floating-point numbers."""

import pickle

import h5py
import numpy as np
import pytest
import tifffile
from made.slides import small_slide

import gpu_extract as gx
from gpu_extract.errors import LabelError
from gpu_extract.sources import open_labels, open_slide

IMAGE, NUCLEUS, CYTOSOL = small_slide(3)
TYPES = ["float16", "float32", "float64", ">f4"]


def cells(**planes):
    batches = list(gx.iter_cells(IMAGE, tile_size=24, device="cpu", **planes))
    return [np.concatenate([getattr(batch, name) for batch in batches]) for name in ("ids", "images", "limits")]


@pytest.mark.parametrize("dtype", TYPES)
def test_whole_numbers_are_read_as_integers(dtype):
    found = cells(nucleus=NUCLEUS.astype(dtype), cytosol=CYTOSOL.astype(dtype))
    for ours, expected in zip(found, cells(nucleus=NUCLEUS, cytosol=CYTOSOL), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_files_of_whole_numbers(tmp_path):
    tifffile.imwrite(tmp_path / "imagej.tif", NUCLEUS.astype(np.float32), imagej=True)
    tifffile.imwrite(tmp_path / "coded.tif", NUCLEUS.astype(np.float64), compression="zlib", tile=(32, 32))
    np.save(tmp_path / "a.npy", NUCLEUS.astype(np.float64))
    np.savez_compressed(tmp_path / "a.npz", labels=NUCLEUS.astype(np.float64))
    with h5py.File(tmp_path / "a.h5", "w") as h5:
        h5["labels"] = NUCLEUS.astype(np.float32)
    for path in tmp_path.iterdir():
        raster = open_labels(path, "nucleus")
        assert raster.dtype.kind == "i"
        np.testing.assert_array_equal(raster.read(0, 0, 90, 110)[0], NUCLEUS)
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(raster)).read(5, 6, 70, 80)[0], NUCLEUS[5:70, 6:80])
    with h5py.File(tmp_path / "a.h5", "a") as h5:  # integers are preferred, so that an image of floats is no label
        h5["cells"] = CYTOSOL
    np.testing.assert_array_equal(open_labels(tmp_path / "a.h5", "nucleus").read(0, 0, 90, 110)[0], CYTOSOL)


@pytest.mark.parametrize(
    ("dtype", "value", "message"),
    [
        (
            "float32",
            3.5,
            "are of type float32 and hold 3.5 at y 40, x 7, which is not a whole number; save them as int",
        ),
        ("float64", np.nan, "hold nan at y 40, x 7, which is not a whole number"),
        ("float32", np.inf, "hold inf at y 40, x 7, which is not"),
        ("float32", -np.inf, "hold -inf at y 40, x 7, which is not"),
        ("float16", 2048, "hold 2048 at y 40, x 7, which may have been rounded, .* float16 is exact only below 2,048"),
        ("float32", 2**24, "hold 16777216 at y 40, x 7, which may have been rounded"),
        ("float32", 1e30, r"hold 1\.00000002e\+30 at y 40, x 7, which may have been rounded"),
        ("float64", 2**53, "may have been rounded, because float64 is exact only below 9,007,199,254,740,992"),
        ("float64", 1e-300, "hold 1e-300 at y 40, x 7, which is not a whole number"),
        ("float32", -3, "hold 1 negative pixels"),
    ],
)
def test_the_first_pixel_that_is_not_exact_is_named(dtype, value, message):
    labels = np.zeros((90, 110), dtype)
    labels[10:20, 10:20] = 5
    labels[40, 7] = value
    if value != -3:
        labels[40, 9] = labels[41, 0] = value
    with pytest.raises(LabelError, match=message) as caught:
        gx.plan(IMAGE, nucleus=labels)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("dtype", "value"), [("float16", 2047), ("float32", 2**24 - 1), ("float64", 2**53 - 1)])
def test_the_largest_exact_ids_are_kept(dtype, value):
    labels = np.zeros((90, 110), dtype)
    labels[40:50, 40:50] = value
    assert gx.plan(IMAGE, nucleus=labels, tile_size=24).cells.ids.tolist() == [value]


def test_slides_of_floats_pickle():
    slide = open_slide(IMAGE, nucleus=NUCLEUS.astype(np.float32))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(slide)).read((0, 0, 90, 110)).labels[0], NUCLEUS)


def test_masked_pixels_that_xarray_made_nan_are_refused():
    array = pytest.importorskip("dask.array")
    xarray = pytest.importorskip("xarray")
    lazy = array.ma.masked_equal(array.from_array(NUCLEUS), NUCLEUS.max())
    with pytest.raises(LabelError, match=r"hold nan at y \d+, x \d+, which is not a whole number"):
        open_labels(xarray.DataArray(lazy, dims=("y", "x")), "nucleus").read(0, 0, 90, 110)
