"""HDF5 datasets."""

import json
import pickle
import sys

import h5py
import numpy as np
import pytest
from made.stores import BOX, IMAGE, LABELS, crop

from gpu_extract.errors import GpuExtractError, InputError, LabelError, LibraryError, SourceError
from gpu_extract.sources import open_image, open_labels, open_slide, open_slides


@pytest.fixture
def h5_path(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as h5:
        h5.create_dataset("a/image", data=IMAGE, chunks=(2, 32, 48), compression="gzip", shuffle=True)
        h5.create_dataset("labels", data=LABELS.astype(">u8"))
        h5["soft"] = h5py.SoftLink("/a/image")
        h5["a/relative"] = h5py.SoftLink("image")
    return path


@pytest.mark.parametrize("inside", ["/a/image", "/soft", "/a/relative", "/a//image"])
def test_hdf5_datasets_are_read_by_path(h5_path, inside):
    raster = open_image(f"{h5_path}:{inside}")
    assert raster.source == f"{h5_path}:{inside}"
    np.testing.assert_array_equal(raster.read(*BOX), crop(IMAGE))
    for chosen in ([2, 0], [1], [1, 2]):
        planes = open_image(f"{h5_path}:{inside}#c={','.join(map(str, chosen))}")
        np.testing.assert_array_equal(planes.read(*BOX), crop(IMAGE[chosen]))


def test_a_file_with_one_dataset_needs_no_path(h5_path):
    labels = open_labels(f"{h5_path}:/labels", "nucleus").read(*BOX)
    assert labels.dtype == np.uint64
    np.testing.assert_array_equal(labels[0], crop(LABELS))
    with pytest.raises(SourceError, match=r"holds the datasets /a/image, /labels; choose one: .*a\.h5:/a/image"):
        open_image(h5_path)
    with h5py.File(h5_path, "a") as h5:
        del h5["labels"], h5["soft"]
        h5["table"] = np.zeros(9)
    np.testing.assert_array_equal(open_image(h5_path).read(*BOX), crop(IMAGE))


def test_a_changed_file_is_an_error(h5_path):
    raster = open_image(f"{h5_path}:/labels")
    with h5py.File(h5_path, "a") as h5:
        h5["more"] = IMAGE
    with pytest.raises(SourceError, match="has changed"):
        raster.read(*BOX)


def external_link(h5, folder):
    h5["x"] = h5py.ExternalLink(str(folder / "other.h5"), "/labels")


def link_through_an_external_one(h5, folder):
    h5["there"] = h5py.ExternalLink(str(folder / "other.h5"), "/")
    h5["x"] = h5py.SoftLink("/there/labels")


def external_storage(h5, folder):
    (folder / "raw").write_bytes(LABELS.tobytes())
    h5.create_dataset("x", LABELS.shape, LABELS.dtype, external=[(str(folder / "raw"), 0, LABELS.nbytes)])


def virtual(h5, folder):
    layout = h5py.VirtualLayout(LABELS.shape, LABELS.dtype)
    layout[...] = h5py.VirtualSource(str(folder / "missing.h5"), "labels", LABELS.shape)
    h5.create_virtual_dataset("x", layout)


def absent_chunks(h5, folder):
    h5.create_dataset("x", LABELS.shape, LABELS.dtype, chunks=(32, 48))[:32, :48] = LABELS[:32, :48]


def unknown_filter(h5, folder):
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_chunk((32, 48))
    settings.set_filter(32999, h5py.h5z.FLAG_OPTIONAL)
    h5py.h5d.create(h5.id, b"x", h5py.h5t.NATIVE_UINT32, h5py.h5s.create_simple((64, 96)), settings)


def test_filters_that_cannot_be_imported_are_no_damage(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "a.h5", "w") as h5:
        unknown_filter(h5, tmp_path)
    (tmp_path / "hdf5plugin.py").write_text("raise ImportError('libblosc.so is missing')")
    monkeypatch.delitem(sys.modules, "hdf5plugin", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(LibraryError, match=r"a\.h5.* cannot be read: hdf5plugin .*libblosc\.so is missing"):
        open_image(tmp_path / "a.h5")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (external_link, r"is a link to another file, .*other\.h5; give that file"),
        (link_through_an_external_one, r"is a link to another file, .*other\.h5; give that file"),
        (external_storage, "is stored in another file; other files are not opened"),
        (virtual, "is a virtual dataset, made of other datasets; other files are not opened"),
        (absent_chunks, "lacks 5 of its chunks, which would read as 0; .* #missing=fill"),
        (lambda h5, folder: h5.create_dataset("x", (10**6, 10**6), "u1"), "lacks 1000000000000 of its bytes"),
        (
            lambda h5, folder: h5.create_dataset("x", (10**6, 10**6), "u1", chunks=(10**5, 10**4 * 3)),
            "has chunks of 3000000000 bytes, and at most",
        ),
        (unknown_filter, "is compressed with HDF5 filter 32999, which is not installed; pip install hdf5plugin"),
        (lambda h5, folder: h5.create_group("x"), "is a group, not a dataset; it holds no dataset of pixels"),
        (lambda h5, folder: h5.create_dataset("x", data=np.zeros(5)), "is a dataset of shape .5,. and type float64"),
        (lambda h5, folder: h5.create_dataset("x", data=[["text"]]), "and type object; it must hold integers"),
        (lambda h5, folder: h5.create_dataset("x", data=IMAGE / 2), "holds 3 planes; give one plane"),
        (lambda h5, folder: h5.create_dataset("x", data=IMAGE * 1j), "type complex128; it must hold integers"),
        (
            lambda h5, folder: h5.create_dataset("x", data=np.zeros((2, 3, 64, 96))),
            r"shape \(2, 3, 64, 96\) .* name its",
        ),
        (lambda h5, folder: h5.create_dataset("y", data=IMAGE), "the file has no /x; it holds /y"),
        (lambda h5, folder: h5.update({"x": h5py.SoftLink("/x")}), "through more than 32 links"),
    ],
)
def test_datasets_that_are_refused(tmp_path, write, message):
    with h5py.File(tmp_path / "other.h5", "w") as h5:
        h5["labels"] = LABELS
    with h5py.File(tmp_path / "a.h5", "w") as h5:
        write(h5, tmp_path)
    with pytest.raises((SourceError, LabelError), match=message) as caught:
        open_labels(f"{tmp_path}/a.h5:/x", "nucleus")
    assert str(caught.value).startswith(f"nucleus label plane {tmp_path}/a.h5:/x ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", range(40))
def test_damaged_files_raise_errors_of_this_package(h5_path, seed):
    rng = np.random.default_rng(seed)
    damaged = bytearray(h5_path.read_bytes())
    for position in rng.integers(8, len(damaged) if seed % 2 else 2000, 5):
        damaged[position] ^= 1 << rng.integers(8)
    h5_path.write_bytes(damaged[: len(damaged) - (seed % 4 == 0) * 500])
    try:
        raster = open_image(f"{h5_path}:/a/image")
        raster.read(0, 0, min(raster.shape[1], 200), min(raster.shape[2], 200))
    except GpuExtractError as error:
        message = str(error)
        assert "\n" not in message


# Axes


def write_axes(path, pixels, axes, tags=None, name="exported_data", **storage):
    """Write a dataset whose dimension labels are ``axes``, and whose axistags are ``tags``, as ilastik does."""
    with h5py.File(path, "a") as h5:
        dataset = h5.create_dataset(name, data=pixels, **storage)
        for index, axis in enumerate(axes or ()):
            dataset.dims[index].label = axis
        if tags is not None:
            dataset.attrs["axistags"] = json.dumps({"axes": [{"key": key, "typeFlags": 2} for key in tags]})
    return path


def arranged(pixels, axes):
    """Return an image (c, y, x) or labels (y, x) with other axes; those that it lacks have length 1."""
    own = "cyx"[-pixels.ndim :]
    full = pixels.reshape(*pixels.shape, *[1] * len(set(axes) - set(own)))
    names = own + "".join(sorted(set(axes) - set(own)))
    return full.transpose([names.index(axis) for axis in axes])


STORED = {"contiguous": {}, "chunked": {"chunks": True, "compression": "gzip"}}


@pytest.mark.parametrize("storage", STORED)
@pytest.mark.parametrize("stated", ["tags", "labels", "both"])
@pytest.mark.parametrize("axes", ["cyx", "cxy", "yxc", "xyc", "ycx", "tzyxc", "tczyx", "xyczt"])
def test_named_axes_are_obeyed(tmp_path, axes, stated, storage):
    labels, tags = axes if stated != "tags" else None, axes if stated != "labels" else None
    path = write_axes(tmp_path / "a.h5", arranged(IMAGE, axes), labels, tags, **STORED[storage])
    np.testing.assert_array_equal(open_image(path).read(*BOX), crop(IMAGE))
    np.testing.assert_array_equal(open_image(f"{path}#c=2,0").read(*BOX), crop(IMAGE[[2, 0]]))
    np.testing.assert_array_equal(open_labels(f"{path}#c=1", "nucleus").read(*BOX), crop(IMAGE[1:2]))
    copied = pickle.loads(pickle.dumps(open_image(f"{path}#c=2,0")))
    np.testing.assert_array_equal(copied.read(*BOX), crop(IMAGE[[2, 0]]))


@pytest.mark.parametrize("axes", ["yx", "xy", "yxc", "tzyxc", "txyzc"])
def test_named_axes_of_labels_are_obeyed(tmp_path, axes):
    path = write_axes(tmp_path / "a.h5", arranged(LABELS, axes), axes)
    raster = open_labels(path, "nucleus")
    assert raster.shape == (1, *LABELS.shape)
    np.testing.assert_array_equal(raster.read(*BOX)[0], crop(LABELS))


def test_z_and_t_are_selected(tmp_path):
    movie = np.random.default_rng(0).integers(0, 999, (3, 4, 30, 40, 2), np.uint16)  # t, z, y, x, c
    path = write_axes(tmp_path / "a.h5", movie, None, "tzyxc", chunks=(1, 2, 16, 16, 2))
    expected = movie[2, 1].transpose(2, 0, 1)
    np.testing.assert_array_equal(open_image(f"{path}#t=2,z=1").read(3, 5, 20, 33), expected[:, 3:20, 5:33])
    highest = movie[1].max(axis=0)[..., 1]
    np.testing.assert_array_equal(open_image(f"{path}#t=1,z=max,c=1").read(0, 0, 30, 40)[0], highest)
    slides = open_slides(f"{path}#z=3", nucleus=f"{path}#z=3,c=0")
    assert [dict(slide.metadata) for slide in slides] == [{"timepoint": str(t)} for t in range(3)]
    np.testing.assert_array_equal(slides[2].read((0, 0, 30, 40)).image, movie[2, 3].transpose(2, 0, 1))
    with pytest.raises(SourceError, match="has 4 Z slices; add #z=0 to #z=3"):
        open_image(f"{path}#t=0")
    stack = write_axes(tmp_path / "stack.h5", IMAGE, "zyx")
    with pytest.raises(SourceError, match="has 3 Z slices"):
        open_image(stack)


def test_only_some_datasets_name_their_axes(tmp_path):
    path = write_axes(tmp_path / "a.h5", LABELS.T, "xy", name="labels")
    write_axes(path, IMAGE, None, name="image")
    np.testing.assert_array_equal(open_image(f"{path}:/image").read(*BOX), crop(IMAGE))
    np.testing.assert_array_equal(open_labels(f"{path}:/labels", "nucleus").read(*BOX)[0], crop(LABELS))
    slide = open_slide(f"{path}#image=image", nucleus=f"{path}#label=labels")
    np.testing.assert_array_equal(slide.read(BOX).labels[0], crop(LABELS))
    with pytest.raises(SourceError, match="has no dataset of that name; it holds /image, /labels"):
        open_labels(f"{path}#label=cells", "nucleus")


def test_scales_of_netcdf4_name_axes(tmp_path):
    with h5py.File(tmp_path / "a.nc", "w") as h5:
        h5["image"] = np.moveaxis(IMAGE, 0, -1)
        for index, (name, n) in enumerate(zip(("y", "x", "channel"), (70, 90, 3), strict=True)):
            h5[name] = np.arange(n)
            h5[name].make_scale(name)
            h5["image"].dims[index].attach_scale(h5[name])
    np.testing.assert_array_equal(open_image(tmp_path / "a.nc").read(*BOX), crop(IMAGE))


def test_label_planes_are_chosen_by_name(tmp_path):
    planes = np.stack([LABELS + index for index in range(30)])
    path = write_axes(tmp_path / "a.h5", planes, "cyx")
    names = [f"segmentation {index}" for index in range(30)]
    with h5py.File(path, "a") as h5:
        h5["names"] = np.array(names, object)
        h5["names"].make_scale("names")
        h5["exported_data"].dims[0].attach_scale(h5["names"])
    labels = open_labels(f"{path}#c=segmentation 7", "nucleus")
    np.testing.assert_array_equal(labels.read(*BOX)[0], crop(LABELS + 7))
    message = r"holds 30 planes; .* add #c=NAME to its path, with one of segmentation 0, .*segmentation 19, \.\.\. \(30"
    with pytest.raises(LabelError, match=message):
        open_labels(path, "nucleus")


@pytest.mark.parametrize(
    ("axes", "tags", "message"),
    [
        ("cyx", "cxy", "has the axes c, x, y by its axistags and c, y, x by its dimension labels; correct one of them"),
        ("eyx", None, r"has the axes e \(3\), y \(70\), x \(90\), of which e is unknown; known are t, z, c, y and x"),
        ("czx", None, "it must have y and x"),
        ("yyx", None, "two of which are y"),
        (None, "yx", r"\(its axistags\) names the axes y, x and has 3"),
        (["", "x", "y"], None, r"has the axes without a name \(3\), x \(70\), y \(90\); name all of them"),
    ],
)
def test_axes_that_cannot_be_read_are_refused(tmp_path, axes, tags, message):
    path = write_axes(tmp_path / "a.h5", IMAGE, axes, tags)
    with pytest.raises(SourceError, match=message) as caught:
        open_image(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"axes": 3}', '{"axes": [{}]}', "\ufffd"])
def test_damaged_axistags_are_refused(tmp_path, text):
    path = write_axes(tmp_path / "a.h5", IMAGE, None)
    with h5py.File(path, "a") as h5:
        h5["exported_data"].attrs["axistags"] = text
    with pytest.raises(SourceError, match="has axistags that cannot be read; correct or remove"):
        open_image(path)


def test_partial_names_that_agree_are_accepted(tmp_path):
    path = write_axes(tmp_path / "a.h5", IMAGE, ["", "y", "x"])
    np.testing.assert_array_equal(open_image(path).read(*BOX), crop(IMAGE))


def test_channels_last_without_names_is_refused(tmp_path):
    path = write_axes(tmp_path / "a.h5", np.moveaxis(IMAGE, 0, -1), None)
    with pytest.raises(InputError, match=r"looks like \(H, W, channels\)"):
        open_image(path)
