"""The shipped sample in every format, and real files of the formats."""

import importlib.util

import h5py
import numpy as np
import pytest
import tifffile
import zarr
from made.stores import FORMATS, NAMES, crop, shared, write_ome_zarr, write_spatialdata

import gpu_extract as gx
from gpu_extract import demo_data
from gpu_extract.errors import SourceError
from gpu_extract.sources import open_image, open_labels, open_slide, open_slides

# HT29 in all formats


def ht29_npy(folder, image, nucleus, cytosol):
    for name, array in (("image", image), ("nucleus", nucleus), ("cytosol", cytosol)):
        np.save(folder / f"{name}.npy", array)
    files = {name: folder / f"{name}.npy" for name in ("image", "nucleus", "cytosol")}
    return {**files, "channel_names": NAMES}


def ht29_ome_tiff(folder, image, nucleus, cytosol):
    path = folder / "all.ome.tif"
    metadata = {"axes": "CYX", "Channel": {"Name": [*NAMES, "nucleus", "cytosol"]}}
    everything = np.concatenate([image.astype(np.uint16), [nucleus, cytosol]])
    tifffile.imwrite(path, everything, tile=(128, 128), compression="zlib", photometric="minisblack", metadata=metadata)
    return {"image": f"{path}#c=0,1,2", "nucleus": f"{path}#c=3", "cytosol": f"{path}#c=4"}


def ht29_ome_zarr_04(folder, image, nucleus, cytosol):
    labels = {"nucleus": nucleus, "cytosol": cytosol}
    return {"image": write_ome_zarr(folder / "a.zarr", image, version="0.4", labels=labels)}


def ht29_ome_zarr_05(folder, image, nucleus, cytosol):
    labels = {"n": nucleus, "c": cytosol}
    path = write_ome_zarr(folder / "a.zarr", image, labels=labels, chunks=(64, 88), shards=(128, 176))
    return {"image": path, "nucleus": "n", "cytosol": "c"}


def ht29_spatialdata(folder, image, nucleus, cytosol):
    labels = {"seg_all_nucleus": nucleus, "seg_all_cytosol": cytosol}
    return {"image": write_spatialdata(folder / "project.zarr", image, labels)}


def ht29_hdf5(folder, image, nucleus, cytosol):
    path = folder / "a.h5"
    with h5py.File(path, "w") as h5:
        h5.create_dataset("raw/image", data=image, chunks=(1, 100, 70), compression="gzip")
        h5.create_dataset("nucleus", data=nucleus)
        h5.create_dataset("cytosol", data=cytosol, chunks=(7, 512), compression="lzf")
    planes = {"image": f"{path}:/raw/image", "nucleus": f"{path}:/nucleus", "cytosol": f"{path}:/cytosol"}
    return {**planes, "channel_names": NAMES}


@pytest.fixture(scope="module")
def ht29():
    demo = demo_data.paths()
    window = open_slide(demo.image, nucleus=demo.nucleus, cytosol=demo.cytosol).read((0, 0, 512, 512))
    return window.image, *window.labels


@pytest.mark.parametrize(
    "write", [ht29_npy, ht29_ome_tiff, ht29_ome_zarr_04, ht29_ome_zarr_05, ht29_spatialdata, ht29_hdf5]
)
def test_ht29_is_the_same_in_all_formats(tmp_path, ht29, write):
    given = write(tmp_path, *ht29)
    slide = open_slide(**given)
    assert slide.channel_names == NAMES
    assert slide.mask_names == ("nucleus", "cytosol")
    for box in ((0, 0, 512, 512), (100, 7, 301, 512)):
        window = slide.read(box)
        np.testing.assert_array_equal(window.image, crop(ht29[0], box))
        np.testing.assert_array_equal(window.labels, crop(np.stack(ht29[1:]), box))
    for ours, expected in zip(cells(**given), cells(ht29[0], nucleus=ht29[1], cytosol=ht29[2]), strict=True):
        np.testing.assert_array_equal(ours, expected)


def cells(image, **planes):
    """Return the ids, tiles and limits of all cells."""
    batches = list(gx.iter_cells(image, tile_size=32, device="cpu", **planes))
    return tuple(np.concatenate([getattr(b, name) for b in batches]) for name in ("ids", "images", "limits"))


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


# The inputs for each file of the folder. A new file must be added here.
OPENED = {
    "ht29.ome.tif": {"nucleus": "ht29_nucleus.tif", "cytosol": "ht29_cytosol.tif"},
    "ht29_nucleus.tif": {"nucleus": "ht29_nucleus.tif"},
    "ht29_cytosol.tif": {"cytosol": "ht29_cytosol.tif"},
    "ht29_v0.4.ome.zarr": {},
    "ht29_v0.5.ome.zarr": {},
    "ht29_spatialdata.zarr": {},
    "ht29_seg.npy": {"image": "ht29.ome.tif", "cytosol": "ht29_seg.npy"},
    "6001240_labels_v0.5.zarr": {
        "image": "6001240_labels_v0.5.zarr#z=100",
        "nucleus": "6001240_labels_v0.5.zarr#label=0,z=100,missing=fill",
    },
    "tubhiswt4D_sub.zarr": {"image": "tubhiswt4D_sub.zarr#z=1", "nucleus": "embryo"},
    "scratch-assay-labeled-10T-2Ch.ome.tiff": {
        "image": "scratch-assay-labeled-10T-2Ch.ome.tiff#c=H3342,oblique",
        "nucleus": "scratch-assay-labeled-10T-2Ch.ome.tiff#c=nuclei",
        "cytosol": "scratch-assay-labeled-10T-2Ch.ome.tiff#c=cyto",
    },
    "mosaic_test.czi": {},
}
LABEL_NAMES = ("embryo",)


def test_every_shared_file_is_listed():
    shared("README.md")
    assert {path.name for path in FORMATS.iterdir()} - {"README.md"} == set(OPENED)


@pytest.mark.filterwarnings("default")  # of bioio, where it is installed
@pytest.mark.parametrize("name", OPENED)
def test_every_shared_file_opens(name):
    given = {"image": name} | OPENED[name]
    paths = {key: at if at in LABEL_NAMES else f"{shared(at.split('#')[0]).parent}/{at}" for key, at in given.items()}
    if name.startswith("6001240"):  # its image is a level smaller than its labels
        image, labels = open_image(paths["image"]), open_labels(paths["nucleus"], "nucleus")
        assert image.read(0, 0, *image.shape[1:]).any()
        assert labels.read(0, 0, *labels.shape[1:]).any()
        return
    if name == "mosaic_test.czi":  # has no labels
        paths["nucleus"] = np.ones((624, 1756), np.uint8)
        if importlib.util.find_spec("bioio_czi") is None:
            with pytest.raises(SourceError, match=r"is a CZI file; .*pip install bioio bioio-czi.*: install that, or"):
                open_slides(**paths)
            return
    for slide in open_slides(**paths):
        window = slide.read((0, 0, *slide.size))
        assert window.image.any()
        assert all(labels.any() for labels in window.labels)


# Every id of a time course


def test_every_nucleus_of_the_time_lapse_is_kept_or_dropped_with_its_reason():
    """There are 48 frames, in which ids restart, with 650 nuclei."""
    folder = FORMATS.parent / "migration_timelapse"
    if not folder.exists():
        pytest.skip(f"{folder} is not there")
    image, nucleus = np.load(folder / "image.npy"), np.load(folder / "nucleus.npy")
    slides = [{"image": image[t], "nucleus": nucleus[t], "timepoint": t} for t in range(48)]
    seen, edges, outside = set(), set(), set()
    for t, plane in enumerate(nucleus):
        for cell_id in np.unique(plane[plane > 0]).tolist():
            y, x = np.nonzero(plane == cell_id)
            seen.add((t, cell_id))
            if y.min() == 0 or x.min() == 0 or y.max() == 129 or x.max() == 129:
                edges.add((t, cell_id))
            if not all(16 < np.round(along.mean()) < 130 - 16 for along in (y, x)):
                outside.add((t, cell_id))
    assert len(seen) == 650
    for border, gone, reason in (
        ("mask", edges, "mask touches the slide's border"),
        ("window", outside, "window leaves the slide"),
    ):
        planned = gx.plan_many(slides, tile_size=32, border=border)
        dropped = planned.cells.dropped
        assert len(planned.cells) + len(dropped) == 650
        assert set(zip(planned.cells.slide.tolist(), planned.cells.ids.tolist(), strict=True)) == seen - gone
        assert set(zip(dropped.slide.tolist(), dropped.ids.tolist(), strict=True)) == gone
        assert dropped.counts() == {reason: len(gone)}
        assert [dict(slide.metadata) for slide in planned.slides] == [{"timepoint": str(t)} for t in range(48)]
