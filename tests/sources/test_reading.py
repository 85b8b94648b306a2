"""Uncompressed pixels are read through memory maps; others are decoded by several threads."""

import threading

import numpy as np
import pytest
import tifffile
from made.slides import small_slide

from gpu_extract.parallel import parallel_map
from gpu_extract.sources import caches, open_image
from gpu_extract.sources.caches import MapCache
from gpu_extract.sources.tiff_plane import CodedPlane


@pytest.fixture
def cache(monkeypatch):
    fresh = MapCache(max_nbytes=1000, max_files=2)
    monkeypatch.setattr("gpu_extract.sources.caches.MAPS", fresh)
    return fresh


def write(path, image):
    if path.suffix == ".npy":
        np.save(path, image)
    elif path.name == "pages.tif":
        with tifffile.TiffWriter(path) as file:  # one page per plane, each with its tags before it
            for plane in image:
                file.write(plane, contiguous=False, description="x" * 1001)
    elif path.name == "uneven.tif":
        with tifffile.TiffWriter(path) as file:
            for n, plane in enumerate(image):
                file.write(plane, contiguous=False, description="x" * (1001 * n * n))
    else:
        tifffile.imwrite(path, image, photometric="minisblack", byteorder=">" if path.name == "big.tif" else "<")


@pytest.mark.parametrize("name", ["a.npy", "one.tif", "pages.tif", "uneven.tif", "big.tif"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_raw_pixels_equal_the_array(tmp_path, name, dtype):
    image = small_slide(1, dtype=dtype)[0]
    write(tmp_path / name, image)
    raster = open_image(str(tmp_path / name))
    for box in ((0, 0, 90, 110), (7, 3, 8, 110), (20, 30, 50, 31)):
        y0, x0, y1, x1 = box
        found = raster.read(*box)
        assert found.dtype == image.dtype
        assert (found == image[:, y0:y1, x0:x1]).all()


@pytest.mark.parametrize("name", ["a.npy", "one.tif"])
def test_windows_of_raw_files_are_views_of_one_map(tmp_path, cache, name):
    write(tmp_path / name, small_slide(1)[0])
    raster = open_image(str(tmp_path / name))
    first, second = raster.read(0, 0, 5, 5), raster.read(5, 5, 9, 9)
    whole = raster.read(0, 0, 90, 110)
    assert np.shares_memory(first, whole)
    assert np.shares_memory(second, whole)
    assert not whole.flags.writeable


def test_maps_are_evicted_and_views_remain_valid(tmp_path, cache):
    images = [small_slide(seed)[0] for seed in range(4)]
    rasters = []
    for n, image in enumerate(images):
        np.save(tmp_path / f"{n}.npy", image)
        rasters.append(open_image(str(tmp_path / f"{n}.npy")))
    views = [raster.read(0, 0, 2, 2) for raster in rasters]
    assert len(cache) == 2
    rasters[0].read(0, 0, 90, 110)
    assert len(cache) == 0
    for view, image in zip(views, images, strict=True):
        assert (view == image[:, :2, :2]).all()


def test_a_replaced_file_is_mapped_again(tmp_path):
    for seed in (1, 2):
        image = small_slide(seed)[0]
        (tmp_path / "a.npy").unlink(missing_ok=True)
        np.save(tmp_path / "a.npy", image)
        assert (open_image(str(tmp_path / "a.npy")).read(0, 0, 90, 110) == image).all()
    assert caches.MAPS.nbytes <= 128 << 20


def test_parallel_map_keeps_the_order_and_runs_in_parallel(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    both = threading.Barrier(2)

    def meet(n):
        both.wait(timeout=60)  # passes only if two calls run at the same time
        return -n

    assert list(parallel_map(meet, range(6))) == [0, -1, -2, -3, -4, -5]
    assert list(parallel_map(abs, [])) == []

    def fail(n):
        if n == 3:
            raise ValueError("three")
        return n

    results = parallel_map(fail, range(6))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)


def test_compressed_tiles_are_decoded_by_several_threads(tmp_path, monkeypatch):
    image = small_slide(3, size=(200, 230))[0]
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="minisblack", tile=(64, 64), compression="zlib")
    names, original = set(), CodedPlane.decode

    def decode(plane, stream, segment):
        names.add(threading.current_thread().name.rpartition("_")[0])
        return original(plane, stream, segment)

    monkeypatch.setattr(CodedPlane, "decode", decode)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    assert (open_image(str(tmp_path / "a.tif")).read(0, 0, 200, 230) == image).all()
    assert names == {"gpu-extract-decode"}
