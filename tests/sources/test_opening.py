import gc
import os
import pickle
import struct
import subprocess
import sys
import threading
import zipfile
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from gpu_extract import demo_data
from gpu_extract.errors import GpuExtractError, InputError, LabelError, SourceError
from gpu_extract.sources import open_image, open_labels, open_slide
from gpu_extract.sources.caches import OpenedCache, SegmentCache, WholeCache
from gpu_extract.sources.names import cleaned, file_stem, unique_names

SHARED = Path(__file__).parents[3] / "shared"
IMAGE = np.arange(3 * 20 * 30, dtype=np.uint16).reshape(3, 20, 30)
LABELS = np.arange(20 * 30, dtype=np.uint32).reshape(20, 30)
BOX = (2, 3, 11, 29)


def crop(array, box=BOX):
    y0, x0, y1, x1 = box
    return array[..., y0:y1, x0:x1]


# Arrays


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", ">i2", "<f4", ">f8", "f2", ">u8"])
def test_arrays_are_read_by_region_in_native_byte_order(dtype):
    array = IMAGE.astype(dtype)
    raster = open_image(array)
    assert raster.shape == (3, 20, 30)
    assert raster.dtype == array.dtype.newbyteorder("=")
    assert raster.read(*BOX).dtype.isnative
    np.testing.assert_array_equal(raster.read(*BOX), crop(array))


def test_memory_arrays_are_not_copied():
    assert np.shares_memory(open_image(IMAGE).read(*BOX), IMAGE)
    assert np.shares_memory(open_labels(LABELS, "nucleus").read(*BOX), LABELS)


def test_lazy_arrays_are_read_by_region(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as h5:
        from_h5 = open_image(h5.create_dataset("image", data=IMAGE)).read(*BOX)
    from_zarr = open_image(zarr.array(IMAGE, chunks=(1, 8, 8))).read(*BOX)
    np.testing.assert_array_equal(from_h5, crop(IMAGE))
    np.testing.assert_array_equal(from_zarr, crop(IMAGE))


def test_only_the_box_is_read_from_a_lazy_array():
    class Lazy:
        shape, ndim, dtype = (3, 20, 30), 3, np.dtype("u2")
        asked = ()

        def __getitem__(self, key):
            self.asked = key
            return IMAGE[key]

    lazy = Lazy()
    open_image(lazy).read(*BOX)
    assert lazy.asked == (..., slice(2, 11), slice(3, 29))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3, 4, 5)), r"image array has shape \(2, 3, 4, 5\); it must be .* time point at a time"),
        (np.zeros(7), r"has shape \(7,\)"),
        (np.zeros((3, 0, 5)), "no pixels"),
        (12.5, "the image is of type float; give a path or an array"),
        ([[1, 2], [3, 4]], "of type list"),
        ([], "the list of images is empty"),
        (None, "of type NoneType"),
    ],
)
def test_other_objects_are_refused_as_images(array, message):
    with pytest.raises(InputError, match=message):
        open_image(array)


def test_unknown_dtypes_are_refused():
    class Foreign:
        shape, ndim, dtype = (4, 4), 2, "torch.bfloat16"

        def __getitem__(self, key): ...

    with pytest.raises(InputError, match=r"torch\.bfloat16; convert it"):
        open_image(Foreign())


# Files of NumPy


@pytest.mark.parametrize("array", [IMAGE, IMAGE.astype(">i2"), np.asfortranarray(IMAGE), IMAGE[:1]])
def test_npy_is_read_by_region(tmp_path, array):
    np.save(tmp_path / "image.npy", array)
    raster = open_image(tmp_path / "image.npy")
    pixels = raster.read(*BOX)
    np.testing.assert_array_equal(pixels, crop(array))
    assert raster.dtype == pixels.dtype == array.dtype.newbyteorder("=")
    assert raster.source == str(tmp_path / "image.npy")


def test_formats_are_detected_by_content(tmp_path):
    np.save(tmp_path / "x.npy", IMAGE)
    os.rename(tmp_path / "x.npy", tmp_path / "x.tif")
    np.testing.assert_array_equal(open_image(str(tmp_path / "x.tif")).read(*BOX), crop(IMAGE))


def test_npy_header_of_version_2(tmp_path):
    with open(tmp_path / "x.npy", "wb") as stream:
        np.lib.format.write_array(stream, IMAGE, version=(2, 0))
    np.testing.assert_array_equal(open_image(tmp_path / "x.npy").read(*BOX), crop(IMAGE))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    "arrays",
    [
        {"anything": IMAGE},
        {"image": IMAGE, "labels": LABELS, "nucleus": LABELS},
        {"arr_0": IMAGE, "other": LABELS},
    ],
)
def test_npz_image(tmp_path, save, arrays):
    save(tmp_path / "x.npz", **arrays)
    np.testing.assert_array_equal(open_image(tmp_path / "x.npz").read(*BOX), crop(IMAGE))


@pytest.mark.parametrize(
    "arrays",
    [
        {"only": LABELS},
        {"cytosol": LABELS, "nucleus": LABELS + 1, "labels": LABELS + 2},
        {"labels": LABELS, "x": LABELS + 1},
        {"masks": LABELS, "image": IMAGE},
    ],
)
def test_npz_labels(tmp_path, arrays):
    np.savez(tmp_path / "x.npz", **arrays)
    np.testing.assert_array_equal(open_labels(tmp_path / "x.npz", "cytosol").read(*BOX)[0], crop(LABELS))


def test_npz_of_several_arrays_is_refused_by_their_names(tmp_path):
    np.savez(tmp_path / "x.npz", a=IMAGE, b=IMAGE)
    with pytest.raises(SourceError, match=r"holds the arrays a, b, .* name it image or arr_0"):
        open_image(tmp_path / "x.npz")
    with pytest.raises(SourceError, match="name it nucleus or labels or masks or arr_0"):
        open_labels(tmp_path / "x.npz", "nucleus")


def test_zip_without_arrays_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("readme.txt", "masks")
    with pytest.raises(SourceError, match="zip archive without NumPy arrays"):
        open_image(tmp_path / "x.npz")


def test_header_larger_than_the_file_is_refused(tmp_path):
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000), }"
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("image.npy", npy)
    with pytest.raises(SourceError, match=r"image\.npy, is truncated: its header claims 8000000000000 bytes"):
        open_image(tmp_path / "x.npz")
    (tmp_path / "x.npy").write_bytes(npy)
    with pytest.raises(SourceError, match="truncated: its header claims 8000000000000 bytes"):
        open_image(tmp_path / "x.npy")


def test_zip_bomb_is_refused(tmp_path):
    with (
        zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_LZMA) as archive,
        archive.open("a.npy", "w") as member,
    ):
        np.lib.format.write_array(member, np.zeros((3000, 4000), np.uint8))
    with pytest.raises(SourceError, match="claims 12000128 bytes, more than a file of"):
        open_image(tmp_path / "x.npz")


class Payload:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (self.trace,)


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_pickles_are_refused_and_never_run(tmp_path, name):
    trace = str(tmp_path / "trace")
    payload = np.array({"masks": Payload(trace)}, dtype=object)
    if name == "x.npy":
        np.save(tmp_path / name, payload, allow_pickle=True)
    else:
        np.savez(tmp_path / name, image=payload)
    with pytest.raises(SourceError, match=r"pickled Python objects.*_cp_masks\.tif"):
        open_image(tmp_path / name)
    assert not os.path.exists(trace)


@pytest.mark.parametrize("length", [0, 3, 6, 10, 60, 127, 128, 500, 1000])
@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_truncated_numpy_files_are_refused(tmp_path, name, length):
    np.save(tmp_path / "x.npy", IMAGE)
    np.savez_compressed(tmp_path / "x.npz", IMAGE)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: min(length, len(whole) - 1)])
    with pytest.raises(SourceError):
        open_image(tmp_path / name).read(*BOX)


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_raise_our_own_errors(tmp_path, name, seed):
    rng = np.random.default_rng(seed)
    np.save(tmp_path / "x.npy", IMAGE)
    np.savez_compressed(tmp_path / "x.npz", IMAGE)
    damaged = bytearray((tmp_path / name).read_bytes())
    for position in rng.integers(0, 200 if name == "x.npy" else len(damaged), 3):
        damaged[position] ^= 1 << rng.integers(8)
    (tmp_path / name).write_bytes(damaged)
    try:
        raster = open_image(tmp_path / name)
        raster.read(0, 0, *raster.shape[1:])
    except GpuExtractError as error:
        message = str(error)
        assert "\n" not in message


# Paths


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (
            b"version https://git-lfs.github.com/spec/v1",
            "is a text file that begins with 'version https://git-lfs",
        ),
        ("größe,ähnlich".encode() * 9, "is a text file"),
        (
            b"ZISRAWFILE" + bytes(100),
            r"is a CZI file; this version reads OME-Zarr, SpatialData, TIFF, .*, \.npz, PNG and JPEG",
        ),
        (b"\x00\x01\x02" + bytes(100), "of an unknown format .it begins with the bytes 00 01 02"),
        (pickle.dumps({"masks": LABELS}), "of an unknown format"),
    ],
)
def test_messages_name_other_formats(tmp_path, content, message):
    (tmp_path / "x.tif").write_bytes(content)
    with pytest.raises(SourceError, match=message) as caught:
        open_image(tmp_path / "x.tif")
    assert "convert it to OME-TIFF" in str(caught.value)


def test_messages_name_missing_files():
    with pytest.raises(SourceError, match=r"^image /no/such\.tif does not exist"):
        open_image("/no/such.tif")
    with pytest.raises(SourceError, match=r"^nucleus label plane /no/such\.tif does not exist"):
        open_labels("/no/such.tif", "nucleus")
    with pytest.raises(SourceError, match="cannot be opened"):
        open_image("nul\0character.tif")


def test_folders_and_pipes_are_refused(tmp_path):
    with pytest.raises(SourceError, match="is a folder"):
        open_image(tmp_path)
    (tmp_path / "zarr.json").write_text("{}")
    with pytest.raises(SourceError, match="is a Zarr group without an image"):
        open_image(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="not a regular file"):
        open_image(tmp_path / "pipe")


def test_changed_files_are_detected(tmp_path):
    np.save(tmp_path / "x.npy", IMAGE)
    raster = open_image(tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", IMAGE[:, :10])
    with pytest.raises(SourceError, match="has changed"):
        raster.read(*BOX)
    os.remove(tmp_path / "x.npy")
    with pytest.raises(SourceError, match="does not exist"):
        raster.read(*BOX)


# Several images; slides


def test_several_files_are_channels_in_order(tmp_path):
    paths = [tmp_path / f"{name}.npy" for name in ("b", "a", "c")]
    for path, channel in zip(paths, IMAGE, strict=True):
        np.save(path, channel)
    slide = open_slide(paths, nucleus=LABELS)
    np.testing.assert_array_equal(slide.image.read(*BOX), crop(IMAGE))
    assert slide.image.source == ", ".join(map(str, paths))
    assert slide.channel_names == ("b", "a", "c")
    assert slide.name == "b"


def test_several_arrays_and_one_path_in_a_list(tmp_path):
    np.testing.assert_array_equal(open_image(list(IMAGE)).read(*BOX), crop(IMAGE))
    assert open_slide(list(IMAGE), nucleus=LABELS).channel_names == ("ch0", "ch1", "ch2")
    np.save(tmp_path / "all.npy", IMAGE)
    assert open_image([tmp_path / "all.npy"]).shape == (3, 20, 30)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([IMAGE[0], IMAGE], "holds 3 planes; .* each must hold one"),
        ([IMAGE[0], IMAGE[0, :9]], "array is 9 x 30 pixels and array is 20 x 30"),
        ([IMAGE[0], IMAGE[0].astype("f4")], "of type float32 and array of uint16; convert"),
    ],
)
def test_channels_of_different_shape_or_type_are_refused(images, message):
    with pytest.raises(InputError, match=message):
        open_image(images)


def test_slide_of_arrays():
    slide = open_slide(IMAGE, nucleus=LABELS, cytosol=LABELS[np.newaxis])
    assert slide.name == "slide"
    assert slide.channel_names == ("ch0", "ch1", "ch2")
    assert slide.mask_names == ("nucleus", "cytosol")
    np.testing.assert_array_equal(slide.read(BOX).labels[1], crop(LABELS))


def test_given_names_are_used_and_cleaned():
    slide = open_slide(IMAGE, nucleus=LABELS, channel_names=["D\0NA", " p  H3", "µ"], name="a\0b")
    assert slide.channel_names == ("DNA", "p H3", "µ")
    assert slide.name == "ab"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"nucleus": LABELS, "channel_names": ["a", "b"]}, InputError, "2 channel names for an image of 3"),
        ({"nucleus": LABELS, "channel_names": "abc"}, InputError, "one name per channel"),
        ({}, LabelError, "no label plane was given"),
        ({"nucleus": LABELS[:5]}, LabelError, "must be equal"),
        ({"nucleus": LABELS > 4}, LabelError, "must be integers"),
        ({"nucleus": LABELS.astype(complex)}, LabelError, "must be integers"),
        ({"cytosol": [LABELS]}, InputError, "the cytosol label plane is of type list"),
    ],
)
def test_inconsistent_slides_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        open_slide(IMAGE, **arguments)


# Names


def test_names_are_made_unique_and_never_cut():
    long = "CD8 (a very long name that is not cut) " * 20
    assert unique_names(["DNA", "DNA", "DNA_2", "", long], 5) == (
        "DNA",
        "DNA_2",
        "DNA_2_2",
        "ch3",
        long.strip(),
    )
    assert unique_names(["one"], 2) == ("ch0", "ch1")
    assert unique_names(["ch1", ""], 2) == ("ch1", "ch1_2")


@given(st.lists(st.text(max_size=5), max_size=8))
def test_unique_names_can_be_stored(names):
    unique = unique_names(names, len(names))
    assert len(set(unique)) == len(names)
    assert all(name and "\0" not in name and name.encode() for name in unique)


@pytest.mark.parametrize(
    ("path", "stem"),
    [
        ("/a/b/slide.ome.tif", "slide"),
        ("slide.OME.TIFF", "slide"),
        ("well_1.5um.tif", "well_1.5um"),
        ("slide", "slide"),
        (".npy", ".npy"),
        ("a\udce9.tif", "a?"),
        ("\0.tif", ""),
    ],
)
def test_file_stem(path, stem):
    assert file_stem(path) == stem


def test_cleaned_keeps_letters_of_all_alphabets():
    assert cleaned("α-tubulin\x1b[31m 細胞\n") == "α-tubulin[31m 細胞"


# Caches


def same(keys):
    """Return the argument of `SegmentCache.read` for a `decode` that takes the keys themselves."""
    return {key: key for key in keys}


def test_cache_evicts_the_least_recently_used():
    decoded = []

    def decode(keys):
        decoded.extend(keys)
        return [np.zeros(10, np.uint8) for _ in keys]

    cache = SegmentCache(30)
    cache.read(same([1, 2, 3]), decode)
    cache.read(same([1]), decode)
    cache.read(same([4]), decode)  # evicts 2
    assert cache.nbytes == 30
    cache.read(same([1, 3, 4]), decode)
    assert decoded == [1, 2, 3, 4]
    cache.read(same([2]), decode)
    assert decoded == [1, 2, 3, 4, 2]


def test_cache_keeps_a_single_read_that_exceeds_its_size():
    cache = SegmentCache(5)
    read = cache.read(same(range(4)), lambda keys: [np.full(10, key, np.uint8) for key in keys])
    assert [segment[0] for segment in read] == [0, 1, 2, 3]
    assert cache.nbytes == 40
    cache.read(same([1, 2, 3]), lambda keys: pytest.fail("decoded again"))
    assert cache.nbytes == 30
    cache.read(same([9]), lambda keys: [np.zeros(1, np.uint8)])
    assert cache.nbytes == 1


def test_cache_counts_bytes_under_threads():
    cache = SegmentCache(100)

    def sweep():
        for first in range(200):
            keys = range(first, first + 5)
            found = cache.read(same(keys), lambda missing: [np.full(7, key % 251, np.uint8) for key in missing])
            assert [segment[0] for segment in found] == [key % 251 for key in keys]

    threads = [threading.Thread(target=sweep) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.nbytes == 98


def test_whole_arrays_are_shared_and_kept_while_a_reader_exists():
    class Reader: ...

    loads = []

    def load():
        loads.append(1)
        return np.arange(3)

    cache, first, second = WholeCache(), Reader(), Reader()
    assert cache.read(first, "a", load) is cache.read(second, "a", load)
    del first
    gc.collect()
    cache.read(second, "a", load)
    assert (len(cache), len(loads)) == (1, 1)
    del second
    gc.collect()
    assert len(cache) == 0
    cache.read(Reader(), "a", load)
    assert len(loads) == 2


def test_evicted_objects_are_created_again():
    cache, made = OpenedCache(2), []

    def make(key):
        made.append(key)
        return key.upper()

    assert [cache.get(key, partial(make, key)) for key in "abacb"] == list("ABACB")
    assert made == list("abcb")
    assert len(cache) == 2


# Package


def test_import_does_not_load_format_libraries():
    code = "import sys, gpu_extract.sources; sys.exit(not sys.modules.keys().isdisjoint({'h5py', 'tifffile', 'zarr'}))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_demo_slide():
    demo = demo_data.paths()
    slide = open_slide(demo.image, nucleus=demo.nucleus, cytosol=demo.cytosol)
    window = slide.read((0, 0, 512, 512))
    assert slide.channel_names == ("DNA", "pH3", "actin")
    assert window.image.shape == (3, 512, 512)
    assert window.image.dtype == np.uint8
    for labels in window.labels:
        assert labels.dtype == np.uint16
        np.testing.assert_array_equal(np.unique(labels), np.arange(317))


def test_demo_slide_is_the_original():
    folder = SHARED / "data" / "ht29_cellprofiler"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there to compare with")
    demo = demo_data.paths()
    window = open_slide(demo.image, nucleus=demo.nucleus, cytosol=demo.cytosol).read((0, 0, 512, 512))
    np.testing.assert_array_equal(window.image, np.load(folder / "image.npy"))
    np.testing.assert_array_equal(window.labels[0], np.load(folder / "nucleus.npy"))
    np.testing.assert_array_equal(window.labels[1], np.load(folder / "cytosol.npy"))
