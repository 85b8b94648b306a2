"""The shipped sample in every format, and the real files that come with the formats."""

import h5py
import numpy as np
import pytest
import tifffile
import zarr
from stores import FORMATS, NAMES, crop, shared, write_ome_zarr, write_spatialdata

from gpu_extract import demo_data
from gpu_extract.errors import SourceError
from gpu_extract.sources import open_image, open_labels, open_slide, open_slides

# HT29, the same in all formats


def ht29_npy(folder, image, nucleus, cytosol):
    for name, array in (("image", image), ("nucleus", nucleus), ("cytosol", cytosol)):
        np.save(folder / f"{name}.npy", array)
    return open_slide(
        folder / "image.npy",
        nucleus=folder / "nucleus.npy",
        cytosol=folder / "cytosol.npy",
        channel_names=NAMES,
    )


def ht29_ome_tiff(folder, image, nucleus, cytosol):
    path = folder / "all.ome.tif"
    metadata = {"axes": "CYX", "Channel": {"Name": [*NAMES, "nucleus", "cytosol"]}}
    everything = np.concatenate([image.astype(np.uint16), [nucleus, cytosol]])
    tifffile.imwrite(path, everything, tile=(128, 128), compression="zlib", photometric="minisblack", metadata=metadata)
    return open_slide(f"{path}#c=0,1,2", nucleus=f"{path}#c=3", cytosol=f"{path}#c=4")


def ht29_ome_zarr_04(folder, image, nucleus, cytosol):
    labels = {"nucleus": nucleus, "cytosol": cytosol}
    return open_slide(write_ome_zarr(folder / "a.zarr", image, version="0.4", labels=labels))


def ht29_ome_zarr_05(folder, image, nucleus, cytosol):
    labels = {"n": nucleus, "c": cytosol}
    path = write_ome_zarr(folder / "a.zarr", image, labels=labels, chunks=(64, 88), shards=(128, 176))
    return open_slide(path, nucleus="n", cytosol="c")


def ht29_spatialdata(folder, image, nucleus, cytosol):
    labels = {"seg_all_nucleus": nucleus, "seg_all_cytosol": cytosol}
    return open_slide(write_spatialdata(folder / "project.zarr", image, labels))


def ht29_hdf5(folder, image, nucleus, cytosol):
    path = folder / "a.h5"
    with h5py.File(path, "w") as h5:
        h5.create_dataset("raw/image", data=image, chunks=(1, 100, 70), compression="gzip")
        h5.create_dataset("nucleus", data=nucleus)
        h5.create_dataset("cytosol", data=cytosol, chunks=(7, 512), compression="lzf")
    return open_slide(f"{path}:/raw/image", nucleus=f"{path}:/nucleus", cytosol=f"{path}:/cytosol", channel_names=NAMES)


@pytest.fixture(scope="module")
def ht29():
    demo = demo_data.paths()
    window = open_slide(demo.image, nucleus=demo.nucleus, cytosol=demo.cytosol).read((0, 0, 512, 512))
    return window.image, *window.labels


@pytest.mark.parametrize(
    "write", [ht29_npy, ht29_ome_tiff, ht29_ome_zarr_04, ht29_ome_zarr_05, ht29_spatialdata, ht29_hdf5]
)
def test_ht29_is_the_same_in_all_formats(tmp_path, ht29, write):
    slide = write(tmp_path, *ht29)
    assert slide.channel_names == NAMES
    assert slide.mask_names == ("nucleus", "cytosol")
    for box in ((0, 0, 512, 512), (100, 7, 301, 512)):
        window = slide.read(box)
        np.testing.assert_array_equal(window.image, crop(ht29[0], box))
        np.testing.assert_array_equal(window.labels, crop(np.stack(ht29[1:]), box))


# Real files


@pytest.mark.parametrize("name", ["ht29_v0.4.ome.zarr", "ht29_v0.5.ome.zarr", "ht29_spatialdata.zarr"])
def test_shared_ht29(ht29, name):
    slide = open_slide(shared(name))
    assert slide.channel_names == NAMES
    window = slide.read((0, 0, 512, 512))
    np.testing.assert_array_equal(window.image, ht29[0])
    np.testing.assert_array_equal(window.labels, np.stack(ht29[1:]))


def test_shared_cellpose(ht29):
    labels = open_labels(shared("ht29_seg.npy"), "cytosol").read(0, 0, 512, 512)
    np.testing.assert_array_equal(labels[0], ht29[2])


@pytest.mark.parametrize(
    ("name", "shape", "names", "level", "index"),
    [
        ("6001240_labels_v0.5.zarr#z=100", (2, 68, 67), ("LaminB1", "Dapi"), "2", np.s_[:, 100]),
        ("6001240_labels_v0.5.zarr#label=0,z=100,missing=fill", (1, 275, 271), (), "labels/0/0", np.s_[:, 100]),
        ("tubhiswt4D_sub.zarr#t=2,z=1", (1, 512, 512), ("channel_0",), "0", np.s_[2, :, 1]),
        ("tubhiswt4D_sub.zarr#t=2,z=1,label=embryo", (1, 512, 512), (), "labels/embryo/0", np.s_[2:3, 1]),
    ],
)
def test_shared_ome_zarr(name, shape, names, level, index):
    path = shared(name.split("#")[0])
    raster = open_image(FORMATS / name)
    assert raster.shape == shape
    assert raster.names == names
    expected = zarr.open_group(path, mode="r")[level][index]
    np.testing.assert_array_equal(raster.read(0, 0, *shape[1:]), expected)


def test_shared_time_series():
    path = shared("scratch-assay-labeled-10T-2Ch.ome.tiff")
    slides = open_slides(f"{path}#c=0,1", nucleus=f"{path}#c=2", cytosol=f"{path}#c=3")
    pixels = tifffile.imread(path)
    assert len(slides) == 10
    assert slides[3].channel_names == ("H3342", "oblique")
    window = slides[3].read((10, 20, 200, 300))
    np.testing.assert_array_equal(window.image, pixels[:2, 3, 10:200, 20:300])
    np.testing.assert_array_equal(window.labels, pixels[2:, 3, 10:200, 20:300])


def test_shared_czi_is_refused_by_name():
    with pytest.raises(SourceError, match=r"is a CZI file; .* convert it to OME-TIFF"):
        open_image(shared("mosaic_test.czi"))
