"""A slide is a value: its pickle is small, and copies of it read the same pixels, in this process and in another."""

import copy
import json
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import h5py
import numpy as np
import pytest
import tifffile
import zarr
from made.classic_files import write_segmentation, write_time_course
from made.slides import small_slide
from made.stores import write_ome_zarr, write_spatialdata

from gpu_extract.components import LargestComponents
from gpu_extract.errors import SourceError
from gpu_extract.matching import Relabeled
from gpu_extract.planning import make_plan
from gpu_extract.recipe import Recipe
from gpu_extract.sources import caches, open_image, open_slide, open_slides
from gpu_extract.sources.caches import OpenedCache, SegmentCache, WholeCache
from gpu_extract.sources.fingerprints import slide_fingerprint
from gpu_extract.sources.physical import rescaled

IMAGE, NUCLEUS, CYTOSOL = small_slide(5, size=(120, 150))
NUCLEUS[40:42] = CYTOSOL[40:42] = 0  # so that some labels are in two pieces
LABELS = {"nucleus": NUCLEUS, "cytosol": CYTOSOL}
BOX = (13, 5, 57, 70)
# Maximum size of a pickled slide without tables of segments: paths, names, metadata of arrays.
MAX_NBYTES = 20_000

TIFFS = {
    "raw": {},
    "raw strips": {"rowsperstrip": 16},
    "big-endian": {"byteorder": ">"},
    "strips": {"compression": "zlib", "rowsperstrip": 16},
    "tiles": {"compression": "lzw", "tile": (32, 48), "predictor": True},
    "samples": {"compression": "zlib", "tile": (32, 48), "photometric": "rgb", "planarconfig": "separate"},
    "jpeg": {"compression": "jpeg", "tile": (32, 48)},
    "ome": {"ome": True, "metadata": {"axes": "CYX"}, "compression": "zlib"},
    "stack": {"ome": True, "metadata": {"axes": "ZCYX"}, "compression": "zlib", "tile": (32, 48)},
}

# Makers of slides of files, by name. Each writes to the working directory, which is empty, and opens relative paths.
SLIDES = {}


def opens(maker):
    SLIDES[maker.__name__] = maker
    return maker


@opens
def npy():
    np.save("image.npy", IMAGE)
    np.save("nucleus.npy", np.asfortranarray(NUCLEUS))
    yield open_slide("image.npy", nucleus="nucleus.npy")
    yield open_slide("image.npy", nucleus="nucleus.npy", channels=[2, 0])


@opens
def npz():
    np.savez_compressed("a.npz", image=IMAGE, **LABELS)
    yield open_slide("a.npz", nucleus="a.npz", cytosol="a.npz")


@opens
def cellpose():
    np.save("image.npy", IMAGE)
    np.save("a_seg.npy", {"masks": NUCLEUS}, allow_pickle=True)
    yield open_slide("image.npy", nucleus="a_seg.npy")


@opens
def tiff():
    for name, choices in TIFFS.items():
        image = np.stack([IMAGE[:, ::-1], IMAGE]) if name == "stack" else IMAGE
        image = (image >> 8).astype(np.uint8) if name == "jpeg" else image
        tifffile.imwrite(f"{name}.tif", image, **{"photometric": "minisblack", **choices})
        tifffile.imwrite(f"{name} labels.tif", NUCLEUS, **choices if name in ("strips", "tiles") else {})
        yield open_slide(f"{name}.tif{'#z=1' if name == 'stack' else ''}", nucleus=f"{name} labels.tif")
    yield open_slide("stack.tif#z=max,c=2,0", nucleus="raw labels.tif")
    with tifffile.TiffWriter("mixed.tif") as writer:  # each page needs another decoder, or none
        for page, coding in zip(IMAGE, ({}, {"compression": "zlib"}, {"compression": "lzw"}), strict=True):
            writer.write(page, photometric="minisblack", **coding)
    yield open_slide("mixed.tif", nucleus="raw labels.tif")
    yield open_slide("mixed.tif#c=1,2", nucleus="raw labels.tif")


@opens
def files_of_one_channel():
    for index, channel in enumerate(IMAGE):
        tifffile.imwrite(f"{index}.tif", channel, compression="zlib" if index else None)
    np.save("nucleus.npy", NUCLEUS)
    yield open_slide(["0.tif", "1.tif", "2.tif"], nucleus="nucleus.npy")


@opens
def ome_zarr():
    for index, choices in enumerate(({"version": "0.4"}, {}, {"shards": (64, 96)})):
        write_ome_zarr(f"{index}.zarr", IMAGE, labels=LABELS, **choices)
        yield open_slide(f"{index}.zarr")
    yield open_slide("0.zarr#level=1,c=actin", cytosol="cytosol")
    write_ome_zarr("stack.zarr", np.stack([IMAGE[:, ::-1], IMAGE]), "zcyx", labels=LABELS)
    yield open_slide("stack.zarr#z=max")
    sparse = np.where(np.arange(150) < 60, NUCLEUS, 0)
    zarr.create_array("sparse.zarr", data=sparse, chunks=(40, 50), config={"write_empty_chunks": False})
    yield open_slide("0.zarr", nucleus="sparse.zarr#missing=fill")


@opens
def spatialdata():
    write_spatialdata("a.zarr", IMAGE, labels={"seg_all_nucleus": NUCLEUS})
    yield open_slide("a.zarr")


@opens
def hdf5():
    with h5py.File("a.h5", "w") as h5:
        h5.create_dataset("image", data=IMAGE, chunks=(2, 32, 48), compression="gzip")
        h5["labels"] = NUCLEUS
    yield open_slide("a.h5:/image", nucleus="a.h5:/labels")
    yield open_slide("a.h5:/image#c=2,0", nucleus="a.h5:/labels")


@opens
def classic():
    yield open_slide(write_segmentation("segmentation.h5"))
    yield from open_slides(write_time_course("input_segmentation.h5"))


@opens
def scaled():
    np.save("image.npy", IMAGE)
    tifffile.imwrite("nucleus.tif", NUCLEUS, compression="zlib")
    slide = replace(open_slide("image.npy", nucleus="nucleus.tif"), pixel_size=(1.0, 1.0))
    for scale in (1.7, 0.6):
        yield rescaled(slide, scale)


@opens
def planned():
    np.save("image.npy", IMAGE)
    for name, labels in LABELS.items():
        tifffile.imwrite(f"{name}.tif", labels, compression="zlib")
    slide = open_slide("image.npy", nucleus="nucleus.tif", cytosol="cytosol.tif")
    recipe = Recipe(tile_size=16, border="keep", match="overlap", pieces="largest")
    (planned,) = make_plan([slide], recipe).slides
    assert isinstance(planned.masks["nucleus"], Relabeled)
    assert isinstance(planned.masks["cytosol"], LargestComponents)
    yield planned


def of_arrays():
    """Yield slides of arrays that the user opened; their pickles may hold pixels."""
    array = pytest.importorskip("dask.array")
    xarray = pytest.importorskip("xarray")
    yield open_slide(IMAGE, nucleus=NUCLEUS, channels=[2, 0])
    yield open_slide(list(IMAGE), nucleus=NUCLEUS)
    yield open_slide(array.from_array(IMAGE, chunks=(1, 40, 50)), nucleus=array.from_array(NUCLEUS))
    yield open_slide(xarray.DataArray(IMAGE, dims=("c", "y", "x")), nucleus=xarray.DataArray(NUCLEUS))
    stored = zarr.create_array(os.path.abspath("user.zarr"), data=IMAGE, chunks=(1, 40, 50))
    yield open_slide(stored, nucleus=NUCLEUS)
    with h5py.File("user.h5", "w") as h5:
        h5["a/image"], h5["nucleus"] = IMAGE, NUCLEUS
    h5 = h5py.File("user.h5")
    yield open_slide(h5["a/image"], nucleus=h5["nucleus"], channels=[2, 0])


@pytest.fixture
def slides(tmp_path, monkeypatch, request):
    """Return the slides of a maker, opened by relative paths."""
    monkeypatch.chdir(tmp_path)
    return list(request.param())


makers = pytest.mark.parametrize("slides", [*SLIDES.values(), of_arrays], indirect=True)


def assert_same(found, expected):
    np.testing.assert_array_equal(found.image, expected.image, strict=True)
    for plane, labels in zip(found.labels, expected.labels, strict=True):
        np.testing.assert_array_equal(plane, labels, strict=True)


def described(slide):
    """Return everything in a slide except pixels."""
    rasters = [slide.image, *slide.masks.values()]
    described = [(raster.shape, raster.dtype, raster.names, raster.source) for raster in rasters]
    return described, slide.mask_names, slide.name, slide.channel_names, slide.metadata, slide.warnings


def fresh_caches(monkeypatch):
    """Replace the caches by empty ones, as in another process."""
    for name, cache in {"SEGMENTS": SegmentCache(1 << 20), "WHOLE": WholeCache(), "OPENED": OpenedCache(9)}.items():
        monkeypatch.setattr(f"gpu_extract.sources.caches.{name}", cache)


@makers
def test_slides_are_the_same_in_another_process(slides, elsewhere):
    expected = [slide.read(BOX) for slide in slides]
    for window, known in zip(elsewhere(slides, BOX), expected, strict=True):
        assert_same(window, known)


@makers
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda slide: pickle.loads(pickle.dumps(slide))])
def test_copies_are_the_same(slides, copied, monkeypatch, tmp_path):
    expected = [slide.read(BOX) for slide in slides]
    copies = [copied(slide) for slide in slides]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for new in (False, True):
        if new:
            fresh_caches(monkeypatch)
        for slide, known, original in zip(copies, expected, slides, strict=True):
            assert_same(slide.read(BOX), known)
            assert described(slide) == described(original)


@makers
def test_several_threads_can_read_a_slide_at_once(slides, monkeypatch):
    expected = [slide.read(BOX) for slide in slides]
    fresh_caches(monkeypatch)
    with ThreadPoolExecutor(4) as workers:
        for slide, known in zip(slides, expected, strict=True):
            for window in workers.map(slide.read, [BOX] * 8):
                assert_same(window, known)


@pytest.mark.parametrize("slides", SLIDES.values(), indirect=True)
def test_pickled_slides_are_small_before_and_after_reading(slides):
    before = [pickle.dumps(slide) for slide in slides]
    for slide, pickled in zip(slides, before, strict=True):
        assert len(pickled) < MAX_NBYTES
        slide.read((0, 0, *slide.size))
        # Zarr's metadata cache their chunk grid.
        assert len(pickle.dumps(slide)) < len(pickled) + 500


def facts(slides):
    return [slide_fingerprint(slide) for slide in slides]


@makers
def test_fingerprints_are_values_and_the_same_for_copies(slides, monkeypatch, tmp_path):
    found = facts(slides)
    assert json.loads(json.dumps(found)) == found
    (tmp_path / "elsewhere").mkdir()
    copies = [copy.deepcopy(slide) for slide in slides]
    monkeypatch.chdir(tmp_path / "elsewhere")
    fresh_caches(monkeypatch)
    assert facts(copies) == found


@pytest.mark.parametrize("slides", SLIDES.values(), indirect=True)
def test_fingerprints_of_files_name_every_file(slides, tmp_path):
    named = {path for each in facts(slides) for raster in each.values() for path in raster}
    named -= {"shape", "dtype"}
    assert all(os.path.exists(path) for path in named)  # so that no pixels had to be sampled
    assert {path.name for path in tmp_path.iterdir()} == {os.path.normpath(path).split(os.sep)[0] for path in named}


@pytest.mark.parametrize("slides", [of_arrays], indirect=True)
def test_fingerprints_of_arrays_sample_pixels(slides):
    for each in facts(slides):
        assert all(raster.keys() == {"shape", "dtype", "sample"} for raster in each.values())
    assert (
        facts([open_slide(IMAGE + 1, nucleus=NUCLEUS)])[0]["image"]
        != facts([open_slide(IMAGE, nucleus=NUCLEUS)])[0]["image"]
    )


def test_a_chunk_of_zarr_that_was_written_again_changes_the_fingerprint(tmp_path):
    path = write_ome_zarr(tmp_path / "a.zarr", IMAGE, labels=LABELS)
    before = facts([open_slide(path)])[0]
    copied = shutil.copytree(path, tmp_path / "copy.zarr")  # times are copied, too
    (of_copy,) = (value for key, value in facts([open_slide(copied)])[0]["image"].items() if "copy" in key)
    assert of_copy in before["image"].values()
    zarr.open_array(path / "s0")[1, 50, 60] = 9
    after = facts([open_slide(path)])[0]
    changed = {key for key in before["image"] if before["image"][key] != after["image"][key]}
    (name,) = changed
    assert before["image"][name]["files"] == after["image"][name]["files"]
    assert before["nucleus"] == after["nucleus"]


def test_a_file_that_changes_while_it_is_compared_is_an_error(tmp_path):
    np.save(tmp_path / "image.npy", IMAGE)
    slide = open_slide(tmp_path / "image.npy", nucleus=NUCLEUS)
    os.utime(tmp_path / "image.npy", (1, 1))
    with pytest.raises(SourceError, match="has changed since it was opened"):
        slide_fingerprint(slide)


def test_a_dataset_of_h5py_pickles_as_a_reference(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with h5py.File("user.h5", "w") as h5:
        h5["image"] = IMAGE
    with h5py.File("user.h5") as h5:
        pickled = pickle.dumps(open_image(h5["image"]))
    assert len(pickled) < 1000
    raster = pickle.loads(pickled)
    np.testing.assert_array_equal(raster.read(0, 0, 120, 150), IMAGE)
    os.remove("user.h5")
    with pytest.raises(SourceError, match=r"array /.*user\.h5:/image cannot be read"):
        raster.read(0, 0, 1, 1)
    with h5py.File.in_memory() as h5, pytest.raises(TypeError, match="h5py objects cannot be pickled"):
        pickle.dumps(open_image(h5.create_dataset("image", data=IMAGE)))


def test_tables_take_16_bytes_per_strip_or_tile(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((2, 1024, 1024), np.uint8), tile=(16, 16), compression="zlib")
    n_tiles = 2 * 64 * 64
    assert 0 < len(pickle.dumps(open_image(tmp_path / "a.tif"))) - 16 * n_tiles < MAX_NBYTES


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.tif", "a.h5"])
def test_copies_notice_that_a_file_has_changed(tmp_path, name, monkeypatch):
    def write(image):
        match name:
            case "a.npy":
                np.save(tmp_path / name, image)
            case "a.npz":
                np.savez_compressed(tmp_path / name, image)
            case "a.tif":
                tifffile.imwrite(tmp_path / name, image, compression="zlib", photometric="minisblack")
            case _:
                with h5py.File(tmp_path / name, "w") as h5:
                    h5["image"] = image

    write(IMAGE)
    pickled = pickle.dumps(open_image(tmp_path / name))
    write(IMAGE[:, :, :100])
    with pytest.raises(SourceError, match="has changed since it was opened"):
        pickle.loads(pickled).read(0, 0, 10, 10)
    np.testing.assert_array_equal(open_image(tmp_path / name).read(0, 0, 9, 9), IMAGE[:, :9, :9])


@pytest.mark.parametrize("name", ["a.tif", "a.h5", "a.zarr"])
def test_copies_share_decoded_pixels(tmp_path, name, monkeypatch):
    fresh_caches(monkeypatch)
    match name:
        case "a.tif":
            tifffile.imwrite(tmp_path / name, IMAGE, compression="zlib", photometric="minisblack")
        case "a.h5":
            with h5py.File(tmp_path / name, "w") as h5:
                h5["image"] = IMAGE
        case _:
            write_ome_zarr(tmp_path / name, IMAGE)
    raster = open_image(tmp_path / name)
    raster.read(0, 0, 120, 150)
    n_decoded = caches.SEGMENTS.nbytes
    for same in (pickle.loads(pickle.dumps(raster)), copy.deepcopy(raster), open_image(tmp_path / name)):
        np.testing.assert_array_equal(same.read(0, 0, 120, 150), IMAGE)
        assert caches.SEGMENTS.nbytes == n_decoded


def test_a_zarr_array_that_was_rewritten_is_decoded_again(tmp_path):
    path = write_ome_zarr(tmp_path / "a.zarr", IMAGE)
    array = zarr.open_array(path / "s0")
    for value in (1, 2, 3):
        array[1, 50, 60] = value  # changes a chunk but no metadata
        assert open_image(path).read(50, 60, 51, 61)[1] == value
