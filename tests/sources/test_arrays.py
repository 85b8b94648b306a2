"""Arrays of NumPy, Dask, xarray, SciPy and h5py, and what is given instead of an array."""

import pickle
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import scipy.sparse
import zarr
from made.stores import BOX, IMAGE, LABELS, NAMES, crop

import gpu_extract as gx
from gpu_extract.errors import InputError, LabelError, SourceError
from gpu_extract.sources import open_image, open_labels, open_slide


def test_dask():
    lazy = pytest.importorskip("dask.array").from_array(IMAGE, chunks=32)
    np.testing.assert_array_equal(open_image(lazy).read(*BOX), crop(IMAGE))


# Named axes


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


@pytest.mark.parametrize(
    "dims", [("y", "x", "channel"), ("Y", "X", "C"), ("height", "width", "band"), ("row", "col", "wavelength")]
)
def test_usual_names_of_axes_are_known(dims):
    xarray = pytest.importorskip("xarray")
    last = xarray.DataArray(np.moveaxis(IMAGE, 0, -1), dims=dims, coords={dims[2]: list(NAMES)})
    slide = open_slide(last, nucleus=LABELS, channels=["actin", "DNA"])
    assert slide.channel_names == ("actin", "DNA")
    np.testing.assert_array_equal(slide.read(BOX).image, crop(IMAGE[[2, 0]]))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(slide)).read(BOX).image, crop(IMAGE[[2, 0]]))


def test_axes_of_length_1_are_left_out():
    xarray = pytest.importorskip("xarray")
    five = xarray.DataArray(IMAGE[None, :, None], dims=("T", "C", "Z", "Y", "X"))
    labels = xarray.DataArray(LABELS[None, ..., None], dims=("time", "y", "x", "sample"))
    slide = open_slide(five, nucleus=labels)
    np.testing.assert_array_equal(slide.read(BOX).image, crop(IMAGE))
    np.testing.assert_array_equal(slide.read(BOX).labels[0], crop(LABELS))


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        (("time", "y", "x"), r"has the axis time; choose one of it first: array\.isel\(time=0\)"),
        (("slice", "y", "x"), r"has the axis slice; choose one of it first: array\.isel\(slice=0\)"),
        (("cell", "y", "x"), r"has the axes cell \(3\), y \(70\), x \(90\), of which cell is unknown"),
        (("c", "lat", "lon"), "of which lat, lon is unknown"),
        (("x", "y", "row"), "two of which are y"),
        (("z", "c", "x"), "it must have y and x"),
    ],
)
def test_axes_that_cannot_be_read_are_refused(dims, message):
    xarray = pytest.importorskip("xarray")
    with pytest.raises(InputError, match=message) as caught:
        open_image(xarray.DataArray(IMAGE, dims=dims))
    assert "\n" not in str(caught.value)


def test_axes_of_zarr_and_h5py_arrays(tmp_path):
    last = np.moveaxis(IMAGE, 0, -1)
    stored = zarr.create_array(tmp_path / "a.zarr", data=last, chunks=(40, 50, 3), dimension_names=["y", "x", "c"])
    np.testing.assert_array_equal(open_image(stored).read(*BOX), crop(IMAGE))
    old = zarr.create_array(tmp_path / "b.zarr", data=LABELS.T, chunks=(40, 50), zarr_format=2)
    old.attrs["_ARRAY_DIMENSIONS"] = ["x", "y"]
    np.testing.assert_array_equal(open_labels(old, "nucleus").read(*BOX)[0], crop(LABELS))
    with h5py.File(tmp_path / "a.h5", "w") as h5:
        dataset = h5.create_dataset("image", data=last)
        for index, name in enumerate("yxc"):
            dataset.dims[index].label = name
        raster = open_image(dataset)
        np.testing.assert_array_equal(raster.read(*BOX), crop(IMAGE))
        h5.flush()
        copied = pickle.dumps(raster)
    np.testing.assert_array_equal(pickle.loads(copied).read(*BOX), crop(IMAGE))


def test_axes_of_netcdf_and_vigra_arrays():
    class Named(np.ndarray):
        pass

    of_netcdf = IMAGE.transpose(1, 2, 0).view(Named)
    of_netcdf.dimensions = ("y", "x", "band")
    np.testing.assert_array_equal(open_image(of_netcdf).read(*BOX), crop(IMAGE))
    of_vigra = IMAGE.transpose(2, 1, 0).view(Named)
    of_vigra.axistags = [SimpleNamespace(key=key) for key in "xyc"]
    np.testing.assert_array_equal(open_image(of_vigra).read(*BOX), crop(IMAGE))


# Channels last


@pytest.mark.parametrize("n_channels", [2, 3, 4, 16])
def test_channels_last_is_recognized(n_channels, tmp_path):
    array = np.zeros((70, 90, n_channels), np.uint8)
    message = rf"has shape \(70, 90, {n_channels}\), which looks like \(H, W, channels\); .* numpy\.moveaxis\(array, -1"
    with pytest.raises(InputError, match=message):
        open_image(array)
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(InputError, match=message):
        open_image(tmp_path / "a.npy")
    with pytest.raises(InputError, match=r"nucleus label array .*give array\[\.\.\., 0\]"):
        open_labels(array[..., :1], "nucleus")


def test_many_channels_last_are_recognized_by_the_labels():
    with pytest.raises(LabelError, match=r"the image looks like \(H, W, channels\): give numpy\.moveaxis"):
        open_slide(np.zeros((70, 90, 40), np.uint8), nucleus=LABELS)


@pytest.mark.parametrize("shape", [(3, 70, 90), (40, 70, 90), (3, 5, 4), (200, 64, 64), (17, 17, 5), (5, 70, 1)])
def test_channels_first_is_not_mistaken(shape):
    assert open_image(np.zeros(shape, np.uint8)).shape == shape


# Masked and sparse arrays


def masked(pixels):
    return np.ma.masked_array(pixels, mask=np.broadcast_to(LABELS % 7 == 0, pixels.shape))


def test_masked_arrays_are_refused():
    with pytest.raises(InputError, match=r"nucleus label array is masked at \d+ pixels, .*; give array\.filled\(0\)"):
        open_labels(masked(LABELS), "nucleus")
    with pytest.raises(InputError, match="image array is masked"):
        gx.plan(masked(IMAGE), nucleus=LABELS)
    nothing = np.ma.masked_array(LABELS, mask=np.zeros(LABELS.shape, bool))
    for labels in (np.ma.masked_array(LABELS), nothing):
        np.testing.assert_array_equal(open_labels(labels, "nucleus").read(*BOX)[0], crop(LABELS))


def test_masks_that_appear_when_pixels_are_read_are_refused():
    class Variable:  # as of netCDF4
        shape, dtype, ndim, dimensions = LABELS.shape, LABELS.dtype, 2, ("x", "y")

        def __getitem__(self, key):
            return masked(LABELS)[key]

    for dimensions in (("y", "x"), None):
        Variable.dimensions = dimensions
        with pytest.raises(InputError, match="array is masked at"):
            open_labels(Variable(), "nucleus").read(0, 0, 70, 90)


def test_masked_dask_arrays_are_refused():
    array = pytest.importorskip("dask.array")
    lazy = array.ma.masked_equal(array.from_array(LABELS), LABELS[20, 20])
    with pytest.raises(InputError, match=r"masked Dask array; give dask\.array\.ma\.filled\(array, 0\)"):
        open_labels(lazy, "nucleus")


@pytest.mark.parametrize("kind", ["csr_array", "coo_array", "csc_matrix", "lil_array"])
def test_sparse_labels_are_read(kind):
    sparse = getattr(scipy.sparse, kind)(np.where(LABELS % 5 == 0, LABELS, 0))
    raster = open_labels(sparse, "nucleus")
    np.testing.assert_array_equal(raster.read(*BOX)[0], crop(np.where(LABELS % 5 == 0, LABELS, 0)))
    assert raster.dtype == LABELS.dtype
    assert raster.shape == (1, 70, 90)


def test_sparse_arrays_of_pydata_are_read():
    sparse = pytest.importorskip("sparse")
    for dense in (LABELS, IMAGE):
        np.testing.assert_array_equal(
            open_image(sparse.COO.from_numpy(dense)).read(*BOX), crop(dense).reshape(-1, 54, 85)
        )


# Not arrays


def test_arrays_of_unknown_chunks_are_refused():
    lazy = pytest.importorskip("dask.array").from_array(LABELS, chunks=40)
    with pytest.raises(InputError, match=r"chunks of unknown size; call array\.compute_chunk_sizes\(\) first"):
        open_labels(lazy[lazy[:, 0] > 0], "nucleus")


def test_closed_files_are_one_line(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as h5:
        h5["image"] = IMAGE
        closed = h5["image"]
        raster = open_image(closed)
    with pytest.raises(InputError, match="image array belongs to a file that is closed; keep the file open, or give"):
        open_image(closed)
    with pytest.raises(SourceError, match=r"image array cannot be read at rows 0 to 8, .*check the array") as caught:
        raster.read(0, 0, 9, 9)
    assert "\n" not in str(caught.value)


def test_errors_of_an_array_become_one_line():
    class Broken:
        shape, dtype, ndim = IMAGE.shape, IMAGE.dtype, 3

        def __getitem__(self, key):
            raise RuntimeError("store closed\nhere")

    with pytest.raises(SourceError, match="image array cannot be read at rows 0 to 8, columns 0 to 8: store closed;"):
        open_image(Broken()).read(0, 0, 9, 9)


class DataFrame:
    pass


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([[[0, 1], [1, 0]]], r"is of type list; give numpy\.array"),
        (((0, 1), (1, 0)), r"is of type tuple; give numpy\.array"),
        (memoryview(b"abc"), r"is of type memoryview; give numpy\.asarray"),
        (DataFrame(), r"is of type DataFrame; give its values: table\.to_numpy\(\)"),
        (7, "is of type int; give a path or an array"),
        (["a.tif"], "is of type list; give one path or one array, without a list around it"),
        ([LABELS, LABELS], "is of type list; give one path or one array, without a list around it"),
    ],
)
def test_other_objects_are_one_line(given, message):
    with pytest.raises(InputError, match=message) as caught:
        open_labels(given, "nucleus")
    assert "\n" not in str(caught.value)


def test_tensors_and_arrays_on_a_gpu_are_one_line():
    class Tensor:
        shape, ndim, dtype = (70, 90), 2, "torch.uint8"

        def __getitem__(self, key):
            raise AssertionError

    with pytest.raises(InputError, match=r"is of type torch\.uint8; convert it to a NumPy array, .*array\.numpy\(\)"):
        open_labels(Tensor(), "nucleus")
    Tensor.__cuda_array_interface__ = {}
    with pytest.raises(InputError, match="is on a GPU; give it in host memory"):
        open_labels(Tensor(), "nucleus")
