"""HDF5 datasets."""

import h5py
import numpy as np
import pytest
from made.stores import BOX, IMAGE, LABELS, crop

from gpu_extract.errors import GpuExtractError, SourceError
from gpu_extract.sources import open_image, open_labels


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
        (lambda h5, folder: h5.create_dataset("x", data=IMAGE / 2), "type float64; it must hold integers"),
        (lambda h5, folder: h5.create_dataset("y", data=IMAGE), "the file has no /x; it holds /y"),
        (lambda h5, folder: h5.update({"x": h5py.SoftLink("/x")}), "through more than 32 links"),
    ],
)
def test_datasets_that_are_refused(tmp_path, write, message):
    with h5py.File(tmp_path / "other.h5", "w") as h5:
        h5["labels"] = LABELS
    with h5py.File(tmp_path / "a.h5", "w") as h5:
        write(h5, tmp_path)
    with pytest.raises(SourceError, match=message) as caught:
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
