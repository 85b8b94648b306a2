"""Zarr, HDF5, cellpose's _seg.npy; selectors, label names and time points over all formats."""

import itertools
import json
import os
import pickle
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import zarr

from gpu_extract import demo_data
from gpu_extract.errors import GpuExtractError, InputError, LabelError, SourceError
from gpu_extract.sources import open_image, open_labels, open_slide, open_slides

FORMATS = Path(__file__).parents[2] / "shared" / "data" / "formats"
RNG = np.random.default_rng(3)
IMAGE = RNG.integers(1, 60000, (3, 70, 90), np.uint16)
LABELS = RNG.integers(1, 99, (70, 90), np.uint32)
BOX = (13, 5, 67, 90)
NAMES = ("DNA", "pH3", "actin")


def crop(array, box=BOX):
    y0, x0, y1, x1 = box
    return array[..., y0:y1, x0:x1]


def shared(name):
    if not (FORMATS / name).exists():
        pytest.skip(f"{FORMATS / name} is not there")
    return FORMATS / name


# Writers, each with its format's own library


def write_multiscale(group, levels, axes, *, names=(), version="0.5", **storage):
    """Arrays s0, s1, ... in a group, with the metadata of OME-Zarr."""
    datasets = []
    for index, level in enumerate(levels):
        given = {key: (1,) * (level.ndim - 2) + sides for key, sides in {"chunks": (32, 48), **storage}.items()}
        config = {"write_empty_chunks": True}
        group.create_array(f"s{index}", shape=level.shape, dtype=level.dtype, config=config, **given)[...] = level
        datasets.append({"path": f"s{index}"})
    metadata = {"multiscales": [{"axes": [{"name": axis} for axis in axes], "datasets": datasets}]}
    if names:
        metadata["omero"] = {"channels": [{"label": name} for name in names]}
    group.attrs.update({"ome": {"version": version, **metadata}} if version == "0.5" else metadata)


def write_ome_zarr(path, image=IMAGE, axes="cyx", *, version="0.5", labels=None, names=NAMES, **storage):
    """An image of two levels with labels of two levels."""
    root = zarr.create_group(path, zarr_format=3 if version == "0.5" else 2, overwrite=True)
    write_multiscale(root, [image, image[..., ::2, ::2]], axes, names=names, version=version, **storage)
    declared = {"labels": list(labels or {})}
    folder = root.create_group("labels", attributes={"ome": declared} if version == "0.5" else declared)
    for name, plane in (labels or {}).items():
        levels = [plane, plane[..., ::2, ::2]]
        write_multiscale(folder.create_group(name), levels, "tyx"[-plane.ndim :], version=version, **storage)
    return path


def write_spatialdata(path, image=IMAGE, labels=None, images=("input_image",)):
    root = zarr.create_group(path, overwrite=True)
    for name in images:
        write_multiscale(root.create_group(f"images/{name}"), [image], "cyx", names=NAMES)
    for name, plane in (labels or {}).items():
        write_multiscale(root.create_group(f"labels/{name}"), [plane], "yx")
    return path


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


# OME-Zarr


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["yx", "cyx", "zyx", "tyx", "tcyx", "czyx", "zcyx", "tczyx"])
def test_axes_in_any_subset(tmp_path, axes, version):
    sizes = {"t": 2, "c": 3, "z": 4, "y": 70, "x": 90}
    image = RNG.integers(1, 999, [sizes[axis] for axis in axes], np.uint16)
    path = write_ome_zarr(tmp_path / "a.zarr", image, axes, version=version)
    at = {"t": 1, "z": 2}
    chosen = ",".join(f"{axis}={at[axis]}" for axis in axes if axis in at)
    raster = open_image(f"{path}#{chosen}" if chosen else path)
    expected = image[tuple(at.get(axis, slice(None)) for axis in axes)]
    assert raster.names == (NAMES if "c" in axes else ())
    np.testing.assert_array_equal(raster.read(*BOX), crop(expected.reshape(-1, 70, 90)))


@pytest.mark.parametrize("axes", ["czyx", "zcyx"])
@pytest.mark.parametrize("channels", ["", ",c=0", ",c=2,0"])
def test_maximum_projection_is_made_when_asked_for(tmp_path, axes, channels):
    image = RNG.integers(1, 999, (3, 3, 70, 90), np.uint16)
    path = write_ome_zarr(tmp_path / "a.zarr", image, axes)
    chosen = {"": [0, 1, 2], ",c=0": [0], ",c=2,0": [2, 0]}[channels]
    raster = open_image(f"{path}#z=max{channels}")
    assert raster.names == tuple(NAMES[c] for c in chosen)
    assert raster.source == f"{path}#{channels[1:]}{',' if channels else ''}z=max"
    np.testing.assert_array_equal(raster.read(*BOX), crop(image.max(axis=axes.index("z"))[chosen]))
    np.testing.assert_array_equal(open_image(raster.source).read(*BOX), raster.read(*BOX))


@pytest.mark.parametrize("shards", [{}, {"shards": (64, 96)}])
@pytest.mark.parametrize("dtype", ["u1", "<u2", ">i2", "f4"])
def test_levels_shards_and_types(tmp_path, shards, dtype):
    image = IMAGE.astype(dtype)
    path = write_ome_zarr(tmp_path / "a.zarr", image, labels={"cells": LABELS}, **shards)
    raster = open_image(path)
    assert raster.dtype == raster.read(*BOX).dtype == image.dtype.newbyteorder("=")
    np.testing.assert_array_equal(raster.read(*BOX), crop(image))
    slide = open_slide(f"{path}#level=1", nucleus="cells")
    assert slide.masks["nucleus"].source == f"{path}#level=1,label=cells"
    np.testing.assert_array_equal(slide.read((3, 4, 30, 45)).labels[0], LABELS[::2, ::2][3:30, 4:45])


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("image", [IMAGE, IMAGE[0]])
def test_plain_zarr_arrays(tmp_path, image, zarr_format):
    zarr.create_array(tmp_path / "a.zarr", data=image, zarr_format=zarr_format, chunks=(16,) * image.ndim)
    np.testing.assert_array_equal(open_image(tmp_path / "a.zarr").read(*BOX), crop(image.reshape(-1, 70, 90)))
    np.testing.assert_array_equal(open_image(f"{tmp_path}/a.zarr#c=0").read(*BOX), crop(image.reshape(-1, 70, 90)[:1]))


def test_plain_zarr_arrays_may_name_their_axes(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", data=IMAGE, dimension_names=("z", "y", "x"))
    with pytest.raises(SourceError, match="has 3 Z slices"):
        open_image(tmp_path / "a.zarr")
    np.testing.assert_array_equal(open_image(f"{tmp_path}/a.zarr#z=1").read(*BOX), crop(IMAGE[1:2]))


def test_a_sweep_reads_each_chunk_once(tmp_path, monkeypatch):
    path = write_ome_zarr(tmp_path / "a.zarr", np.ones((1, 600, 700), np.uint8), chunks=(128, 128))
    raster = open_image(path)
    read = []
    original = zarr.storage.LocalStore.get

    async def get(store, key, *arguments, **options):
        read.append(key)
        return await original(store, key, *arguments, **options)

    monkeypatch.setattr(zarr.storage.LocalStore, "get", get)
    for y in range(0, 560, 40):
        for x in range(0, 640, 60):
            assert raster.read(y, x, y + 40, x + 60).all()
    chunks = [key for key in read if "/c/" in key]
    assert len(chunks) == len(set(chunks)) == 30


def test_absent_chunks_are_refused_unless_they_are_meant(tmp_path):
    labels = LABELS.copy()
    labels[:32, :48] = 0
    zarr.create_array(tmp_path / "a.zarr", data=labels, chunks=(32, 48))  # zarr leaves out what is empty
    with pytest.raises(SourceError, match=r"lacks 1 of its chunks, which would read as 0; .* add #missing=fill"):
        open_labels(tmp_path / "a.zarr", "nucleus")
    filled = open_labels(f"{tmp_path}/a.zarr#missing=fill", "nucleus")
    np.testing.assert_array_equal(filled.read(*BOX)[0], crop(labels))


def test_absent_chunks_in_shards_are_refused(tmp_path):
    labels = LABELS.copy()
    labels[:32, :48] = 0
    zarr.create_array(tmp_path / "a.zarr", data=labels, chunks=(16, 24), shards=(64, 96))
    with pytest.raises(SourceError, match="lacks 4 of its chunks"):
        open_labels(tmp_path / "a.zarr", "nucleus")


def test_chunks_that_vanish_are_noticed(tmp_path):
    path = write_ome_zarr(tmp_path / "a.zarr")
    raster = open_image(path)
    (path / "s0" / "c" / "1" / "0" / "1").unlink()
    with pytest.raises(SourceError, match="lacks the chunk s0/c/1/0/1, which would read as a blank"):
        raster.read(*BOX)


def test_links_that_lead_out_of_a_store_are_refused(tmp_path):
    path = write_ome_zarr(tmp_path / "a.zarr")
    chunk = path / "s0" / "c" / "0" / "0" / "0"
    chunk.rename(tmp_path / "elsewhere")
    chunk.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match="a link that leads out of the store"):
        open_image(path)
    (path / "s0").rename(tmp_path / "moved")
    (path / "s0").symlink_to(tmp_path / "moved")
    with pytest.raises(SourceError, match="a link that leads out of the store"):
        open_image(path)


def edited(path, change):
    """A store with the metadata of its group or array changed."""
    metadata = json.loads((path / "zarr.json").read_text())
    change(metadata)
    (path / "zarr.json").write_text(json.dumps(metadata))


def change_path(value):
    return lambda metadata: metadata["attributes"]["ome"]["multiscales"][0]["datasets"][0].update(path=value)


def change_axes(*names):
    return lambda metadata: metadata["attributes"]["ome"]["multiscales"][0].update(axes=[{"name": n} for n in names])


def change_chunks(*sides):
    return lambda metadata: metadata["chunk_grid"]["configuration"].update(chunk_shape=sides)


@pytest.mark.parametrize(
    ("node", "change", "message"),
    [
        ("", change_path("../../secret"), "is damaged: its metadata name the array '../../secret'"),
        ("", change_path("/etc"), "name the array '/etc'"),
        ("", change_path("nowhere"), "name the array 'nowhere'"),
        ("", change_axes("c", "x", "y"), "has the axes c, x, y; they must be some of t, c, z and then y, x"),
        ("", change_axes("q", "y", "x"), "has the axes q, y, x"),
        ("", change_axes("z", "c", "y", "x"), "is damaged: its metadata name the axes zcyx"),
        ("", lambda metadata: metadata["attributes"]["ome"].update(multiscales=[7]), "damaged OME-Zarr metadata"),
        ("", lambda metadata: metadata["attributes"].clear(), "without an image|choose one"),
        (
            "s0",
            lambda metadata: metadata.update(shape=[3, 10**6, 10**6]),
            "lacks .* of its chunks, which would read as 0",
        ),
        ("s0", change_chunks(1, 10**6, 10**6), "has chunks of 2000000000000 bytes, and at most"),
        ("s0", lambda metadata: metadata.update(shape=[3, 0, 90]), "no pixels"),
        ("s0", lambda metadata: metadata.update(data_type="nonsense"), "damaged Zarr store"),
        ("s0", lambda metadata: metadata.update(codecs=[{"name": "nonsense"}]), "damaged Zarr store"),
    ],
)
def test_damaged_stores_are_refused(tmp_path, node, change, message):
    path = write_ome_zarr(tmp_path / "a.zarr")
    edited(path / node, change)
    with pytest.raises(SourceError, match=message) as caught:
        open_image(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"image {path} ")


def test_objects_in_zarr_are_refused_and_never_run(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", data=np.zeros((4, 4), np.uint8), zarr_format=2, compressors=None)
    metadata = json.loads((tmp_path / "a.zarr" / ".zarray").read_text())
    metadata.update(dtype="|O", filters=[{"id": "pickle", "protocol": 4}], fill_value=None)
    (tmp_path / "a.zarr" / ".zarray").write_text(json.dumps(metadata))
    (tmp_path / "a.zarr" / "0.0").write_bytes(pickle.dumps(Payload(str(tmp_path / "trace"))))
    with pytest.raises(SourceError):
        open_image(tmp_path / "a.zarr").read(0, 0, 4, 4)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("seed", range(20))
def test_damaged_chunks_give_our_own_errors(tmp_path, seed):
    rng = np.random.default_rng(seed)
    path = write_ome_zarr(tmp_path / "a.zarr", version=("0.4", "0.5")[seed % 2])
    raster = open_image(path)
    for chunk in [file for file in (path / "s0").rglob("*") if file.is_file() and not file.name.startswith((".", "z"))]:
        chunk.write_bytes(rng.bytes(rng.integers(0, 99)))
    with pytest.raises(SourceError, match="cannot be read at rows 0 to 69, columns 0 to 89") as caught:
        raster.read(0, 0, 70, 90)
    assert "\n" not in str(caught.value)


# Labels by name, and SpatialData


def test_labels_are_found_by_name(tmp_path):
    labels = {"cells": LABELS, "dots": LABELS + 1}
    path = write_ome_zarr(tmp_path / "a.zarr", labels=labels)
    slide = open_slide(path, nucleus="dots", cytosol="cells")
    np.testing.assert_array_equal(slide.read(BOX).labels, crop(np.stack([LABELS + 1, LABELS])))
    assert slide.masks["nucleus"].source == f"{path}#label=dots"
    assert open_slide(path, nucleus=Path("dots")).masks["nucleus"].source == f"{path}#label=dots"
    np.testing.assert_array_equal(open_labels(f"{path}#label=dots", "cytosol").read(*BOX)[0], crop(LABELS + 1))
    with pytest.raises(
        SourceError, match=r"nucleus label plane dot is neither a file nor .*; its labels are cells, dots"
    ):
        open_slide(path, nucleus="dot")
    with pytest.raises(LabelError, match="no label plane was given"):
        open_slide(path)
    with pytest.raises(SourceError, match=r"holds the labels cells, dots; choose one: .*#label=NAME"):
        open_labels(path, "nucleus")
    with pytest.raises(SourceError, match="has no label 'x'; there are cells, dots"):
        open_labels(f"{path}#label=x", "nucleus")


def test_labels_of_usual_names_need_no_option(tmp_path):
    path = write_ome_zarr(tmp_path / "a.zarr", labels={"nucleus": LABELS, "other": LABELS + 1, "cytosol": LABELS + 2})
    np.testing.assert_array_equal(open_slide(path).read(BOX).labels, crop(np.stack([LABELS, LABELS + 2])))
    np.testing.assert_array_equal(open_slide([path]).read(BOX).labels, crop(np.stack([LABELS, LABELS + 2])))
    assert open_slide(path, nucleus="other").mask_names == ("nucleus",)
    np.testing.assert_array_equal(open_labels(path, "cytosol").read(*BOX)[0], crop(LABELS + 2))


def test_a_project_folder_is_the_store_in_it(tmp_path):
    (tmp_path / "project" / "logs").mkdir(parents=True)
    labels = {"seg_all_nucleus": LABELS, "seg_all_cytosol": LABELS + 1}
    store = write_spatialdata(tmp_path / "project" / "scportrait.sdata", labels=labels, images=("input_image", "he"))
    slide = open_slide(tmp_path / "project")
    assert slide.image.source == str(store)
    assert slide.channel_names == NAMES
    np.testing.assert_array_equal(slide.read(BOX).labels, crop(np.stack([LABELS, LABELS + 1])))
    write_spatialdata(tmp_path / "project" / "second.zarr")
    with pytest.raises(SourceError, match=r"is a folder of 2 Zarr stores: scportrait\.sdata, second\.zarr; give one"):
        open_slide(tmp_path / "project")


def test_files_that_are_no_part_of_zarr_do_no_harm(tmp_path):
    path = write_spatialdata(tmp_path / "a.zarr", labels={"seg_all_nucleus": LABELS})
    for folder in (path, path / "images", path / "labels"):
        (folder / ".DS_Store").write_text("")
        (folder / "notes").mkdir()
    np.testing.assert_array_equal(open_slide(path).read(BOX).labels[0], crop(LABELS))


def test_an_image_that_is_not_there_is_named_before_its_labels():
    with pytest.raises(SourceError, match=r"^image /no/such\.zarr does not exist"):
        open_slide("/no/such.zarr", nucleus="cells")


def test_images_of_a_store_are_chosen_by_name(tmp_path):
    path = write_spatialdata(tmp_path / "a.zarr", labels={"n": LABELS}, images=("he", "if"))
    with pytest.raises(SourceError, match=r"holds the images he, if; choose one: .*#image=NAME"):
        open_image(path)
    slide = open_slide(f"{path}#image=if,c=0,2", nucleus="n")
    assert slide.channel_names == ("DNA", "actin")
    np.testing.assert_array_equal(slide.read(BOX).image, crop(IMAGE[[0, 2]]))
    with pytest.raises(SourceError, match="has no image 'x'; there are he, if"):
        open_image(f"{path}#image=x")


# URLs


@pytest.fixture
def served(tmp_path):
    """A folder on a local HTTP server without listings that drops every tenth request, and its address."""
    pytest.importorskip("fsspec")
    pytest.importorskip("aiohttp")

    class Handler(SimpleHTTPRequestHandler):
        n_requests = itertools.count(1)

        def __init__(self, *arguments):
            super().__init__(*arguments, directory=tmp_path)

        def do_GET(self):
            if next(self.n_requests) % 10 == 0:
                self.close_connection = True
            else:
                super().do_GET()

        def list_directory(self, path):
            self.send_error(404)

        def log_message(self, *_): ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield tmp_path, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr_over_http(served, version):
    folder, url = served
    write_ome_zarr(folder / "a.zarr", version=version, labels={"cells": LABELS}, chunks=(16, 16))
    slide = open_slide(f"{url}/a.zarr#c=0,2", nucleus="cells")
    assert (slide.name, slide.channel_names) == ("a", ("DNA", "actin"))
    assert slide.masks["nucleus"].source == f"{url}/a.zarr#label=cells"
    window = slide.read(BOX)
    np.testing.assert_array_equal(window.image, crop(IMAGE[[0, 2]]))
    np.testing.assert_array_equal(window.labels[0], crop(LABELS))


def test_absent_chunks_over_http(served):
    folder, url = served
    labels = LABELS.copy()
    labels[:32, :48] = 0
    zarr.create_array(folder / "a.zarr", data=labels, chunks=(32, 48))
    raster = open_labels(f"{url}/a.zarr", "nucleus")
    with pytest.raises(SourceError, match=r"lacks the chunk c/0/0, .* add #missing=fill"):
        raster.read(*BOX)
    filled = open_labels(f"{url}/a.zarr#missing=fill", "nucleus")
    np.testing.assert_array_equal(filled.read(*BOX)[0], crop(labels))


def test_spatialdata_over_http(served):
    folder, url = served
    write_spatialdata(folder / "a.zarr", labels={"seg_all_nucleus": LABELS})
    with pytest.warns(UserWarning, match="Consolidated metadata"):
        zarr.consolidate_metadata(folder / "a.zarr", zarr_format=3)
    np.testing.assert_array_equal(open_slide(f"{url}/a.zarr").read(BOX).image, crop(IMAGE))


@pytest.mark.parametrize("address", ["{url}/nothing.zarr", "http://127.0.0.1:1/a.zarr", "nonsense://a.zarr"])
def test_addresses_that_lead_nowhere(served, address):
    address = address.format(url=served[1])
    with pytest.raises(SourceError, match=r"cannot be opened as Zarr: .*; check the address") as caught:
        open_image(address)
    assert str(caught.value).startswith(f"image {address} ")
    assert "\n" not in str(caught.value)


# HDF5


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


def test_hdf5_with_one_dataset_needs_no_path(h5_path):
    labels = open_labels(f"{h5_path}:/labels", "nucleus").read(*BOX)
    assert labels.dtype == np.uint64
    np.testing.assert_array_equal(labels[0], crop(LABELS))
    with pytest.raises(SourceError, match=r"holds the datasets /a/image, /labels; choose one: .*a\.h5:/a/image"):
        open_image(h5_path)
    with h5py.File(h5_path, "a") as h5:
        del h5["labels"], h5["soft"]
        h5["table"] = np.zeros(9)
    np.testing.assert_array_equal(open_image(h5_path).read(*BOX), crop(IMAGE))


def test_hdf5_that_changes_is_noticed(h5_path):
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
        (external_storage, "is stored in another file, which is not followed"),
        (virtual, "is a virtual dataset, put together of others, which is not followed"),
        (absent_chunks, "lacks 5 of its chunks, which would read as 0; .* #missing=fill"),
        (lambda h5, folder: h5.create_dataset("x", (10**6, 10**6), "u1"), "lacks 1000000000000 of its bytes"),
        (
            lambda h5, folder: h5.create_dataset("x", (10**6, 10**6), "u1", chunks=(10**5, 10**4 * 3)),
            "has chunks of 3000000000 bytes, and at most",
        ),
        (unknown_filter, "is compressed with HDF5 filter 32999, which is not there; pip install hdf5plugin"),
        (lambda h5, folder: h5.create_group("x"), "is a group, not a dataset; it holds none of pixels"),
        (lambda h5, folder: h5.create_dataset("x", data=np.zeros(5)), "is a dataset of shape .5,. and type float64"),
        (lambda h5, folder: h5.create_dataset("x", data=[["text"]]), "and type object; it must hold integers"),
        (lambda h5, folder: h5.create_dataset("x", data=IMAGE / 2), "type float64; it must hold integers"),
        (lambda h5, folder: h5.create_dataset("y", data=IMAGE), "the file has no /x; it holds /y"),
        (lambda h5, folder: h5.update({"x": h5py.SoftLink("/x")}), "through more than 32 links"),
    ],
)
def test_hdf5_that_is_refused(tmp_path, write, message):
    with h5py.File(tmp_path / "other.h5", "w") as h5:
        h5["labels"] = LABELS
    with h5py.File(tmp_path / "a.h5", "w") as h5:
        write(h5, tmp_path)
    with pytest.raises(SourceError, match=message) as caught:
        open_labels(f"{tmp_path}/a.h5:/x", "nucleus")
    assert str(caught.value).startswith(f"nucleus label plane {tmp_path}/a.h5:/x ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", range(40))
def test_damaged_hdf5_gives_our_own_errors(h5_path, seed):
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


# cellpose


class Payload:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (self.trace,)


def cellpose_content(masks):
    flows = [np.zeros((5, 5, 3), np.float32), [None, 2.5]]
    return {"masks": masks, "flows": flows, "filename": "a.tif", "ismanual": np.zeros(3, bool), "est": np.float32(3)}


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u4", "i8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_cellpose_masks_are_a_label_plane(tmp_path, dtype, order):
    masks = np.asarray(LABELS, dtype, order=order)
    np.save(tmp_path / "a_seg.npy", cellpose_content(masks), allow_pickle=True)
    raster = open_labels(tmp_path / "a_seg.npy", "nucleus")
    assert raster.dtype == masks.dtype.newbyteorder("=")
    np.testing.assert_array_equal(raster.read(*BOX)[0], crop(masks))


@pytest.mark.parametrize("protocol", range(2, 6))
def test_a_payload_in_a_seg_npy_is_never_run(tmp_path, protocol):
    header = b"\x93NUMPY\x01\x00\x3a\x00{'descr': '|O', 'fortran_order': False, 'shape': (), }    \n"
    content = np.array(cellpose_content(Payload(str(tmp_path / "trace"))), object)
    (tmp_path / "a_seg.npy").write_bytes(header[:8] + len(header[10:]).to_bytes(2, "little") + header[10:])
    with open(tmp_path / "a_seg.npy", "ab") as stream:
        pickle.dump(content, stream, protocol)
    with pytest.raises(SourceError, match=r"it asks for .*; give the masks as TIFF \(cellpose: _cp_masks\.tif\)"):
        open_labels(tmp_path / "a_seg.npy", "nucleus")
    assert not (tmp_path / "trace").exists()


def test_masks_that_older_versions_of_numpy_wrote(tmp_path):
    np.save(tmp_path / "new_seg.npy", cellpose_content(LABELS), allow_pickle=True)
    whole = (tmp_path / "new_seg.npy").read_bytes()
    header = whole[: whole.index(b"\n") + 1]
    content = pickle.dumps(np.load(tmp_path / "new_seg.npy", allow_pickle=True), 3)
    content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    (tmp_path / "old_seg.npy").write_bytes(header + content)
    np.testing.assert_array_equal(open_labels(tmp_path / "old_seg.npy", "nucleus").read(*BOX)[0], crop(LABELS))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"outlines": LABELS}, "a pickle without masks"),
        ([1, 2], "a pickle without masks"),
        ({"masks": "none"}, "a pickle without masks"),
        ({"masks": np.array([{}, {}])}, "the masks are of type O8"),
        ({"masks": LABELS[0]}, r"has shape \(90,\)"),
        ({"masks": np.stack([LABELS, LABELS])}, "holds 2 planes; give one plane"),
        ({"masks": LABELS, "path": Path("a")}, "it asks for pathlib"),
    ],
)
def test_pickles_that_are_not_cellpose(tmp_path, content, message):
    np.save(tmp_path / "a_seg.npy", np.array(content, object), allow_pickle=True)
    with pytest.raises(InputError, match=message) as caught:
        open_labels(tmp_path / "a_seg.npy", "nucleus")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", range(40))
def test_damaged_seg_npy_gives_our_own_errors(tmp_path, seed):
    rng = np.random.default_rng(seed)
    np.save(tmp_path / "a_seg.npy", cellpose_content(LABELS.astype("u1")), allow_pickle=True)
    damaged = bytearray((tmp_path / "a_seg.npy").read_bytes())
    for position in rng.integers(0, 600, 4):
        damaged[position] ^= 1 << rng.integers(8)
    (tmp_path / "a_seg.npy").write_bytes(damaged)
    try:
        open_labels(tmp_path / "a_seg.npy", "nucleus").read(*BOX)
    except GpuExtractError as error:
        message = str(error)
        assert "\n" not in message


# Selectors


@pytest.fixture
def stack_path(tmp_path):
    stack = RNG.integers(0, 999, (2, 3, 4, 70, 90), np.uint16)
    path = tmp_path / "stack.ome.tif"
    metadata = {"axes": "TCZYX", "Channel": {"Name": list(NAMES)}}
    tifffile.imwrite(path, stack, metadata=metadata, photometric="minisblack", compression="zlib")
    return path, stack


def test_planes_of_a_tiff(stack_path):
    path, stack = stack_path
    raster = open_image(f"{path}#t=1,z=2,c=2,0")
    assert raster.names == ("actin", "DNA")
    assert raster.source == f"{path}#c=2,0,z=2,t=1"
    np.testing.assert_array_equal(raster.read(*BOX), crop(stack[1, [2, 0], 2]))
    np.testing.assert_array_equal(open_image(f"{path}#z=max,t=0").read(*BOX), crop(stack[0].max(axis=1)))


def test_levels_of_a_tiff(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as writer:
        storage = {"tile": (32, 48), "photometric": "minisblack"}
        writer.write(IMAGE, subifds=1, metadata={"axes": "CYX"}, **storage)
        writer.write(IMAGE[:, ::2, ::2], subfiletype=1, **storage)
    np.testing.assert_array_equal(open_image(f"{tmp_path}/a.ome.tif#level=0").read(*BOX), crop(IMAGE))
    half = open_image(f"{tmp_path}/a.ome.tif#level=1,c=1").read(0, 0, 35, 45)
    np.testing.assert_array_equal(half, IMAGE[1:2, ::2, ::2])
    with pytest.raises(SourceError, match="level= can be 0 to 1"):
        open_image(f"{tmp_path}/a.ome.tif#level=2")


def test_channels_of_npy(tmp_path):
    np.save(tmp_path / "a.npy", IMAGE)
    np.testing.assert_array_equal(open_image(f"{tmp_path}/a.npy#c=2,0").read(*BOX), crop(IMAGE[[2, 0]]))
    np.testing.assert_array_equal(open_labels(f"{tmp_path}/a.npy#c=1", "nucleus").read(*BOX), crop(IMAGE[1:2]))
    with pytest.raises(LabelError, match=r"holds 3 planes; .* add #c=0 to #c=2"):
        open_labels(tmp_path / "a.npy", "nucleus")


def test_a_file_whose_name_holds_a_number_sign_is_that_file(tmp_path):
    np.save(tmp_path / "a.npy", IMAGE)
    np.save(tmp_path / "a.npy#c=0.npy", IMAGE + 1)
    os.rename(tmp_path / "a.npy#c=0.npy", tmp_path / "a.npy#c=0")
    np.testing.assert_array_equal(open_image(f"{tmp_path}/a.npy#c=0").read(*BOX), crop(IMAGE + 1))
    np.testing.assert_array_equal(open_image(f"{tmp_path}/a.npy#c=0#c=1").read(*BOX), crop(IMAGE[1:2] + 1))
    with pytest.raises(SourceError, match=r"well #3\.npy does not exist"):
        open_image(f"{tmp_path}/well #3.npy")


@pytest.mark.parametrize(
    ("selectors", "message"),
    [
        ("q=1", "the selector 'q' is unknown; there are level, c, z, t, image, label, missing"),
        ("t=0,t=1", "t= is there twice"),
        ("c=0,0", "c= takes different channel numbers from 0, as in c=0,2"),
        ("c=DNA", "c=DNA is not possible"),
        ("c=", "c= is not possible"),
        ("z=min", "z= takes a number from 0, or max"),
        ("t=-1", "t=-1 is not possible; t= takes a number from 0"),
        ("t=max", "t=max is not possible"),
        ("level=1.5", "level= takes a number from 0"),
        ("missing=zero", "missing= takes fill"),
        ("image=", "image= takes a name"),
        ("t=2,z=0", "does not exist: t= can be 0 to 1 in this file"),
        ("t=0,z=4", "z= can be 0 to 3"),
        ("t=0,z=0,c=0,3", "c= can be 0 to 2"),
        ("t=0,z=0,level=1", "level= can be only 0"),
        ("t=0,z=0,image=a", "has nothing that image= could select"),
        ("t=0", "has 4 Z slices; add #z=0 to #z=3 to its path for one, or #z=max for their maximum projection"),
        ("z=0", "has 2 time points; add #t=0 to #t=1 to its path for one, or make each a slide"),
    ],
)
def test_selectors_that_are_refused(stack_path, selectors, message):
    with pytest.raises(InputError, match=message) as caught:
        open_image(f"{stack_path[0]}#{selectors}")
    assert "\n" not in str(caught.value)


# Time points


def time_series(tmp_path, kind):
    image = RNG.integers(1, 999, (3, 2, 70, 90), np.uint16)
    labels = RNG.integers(1, 99, (3, 70, 90), np.uint16)
    if kind == "zarr":
        return image, labels, write_ome_zarr(tmp_path / "movie.zarr", image, "tcyx", labels={"n": labels}), "n"
    path = tmp_path / "movie.ome.tif"
    both = np.concatenate([image, labels[:, np.newaxis]], axis=1)
    tifffile.imwrite(path, both, metadata={"axes": "TCYX"}, photometric="minisblack", compression="zlib")
    return image, labels, f"{path}#c=0,1", f"{path}#c=2"


@pytest.mark.parametrize("kind", ["zarr", "tiff"])
def test_time_points_become_slides(tmp_path, kind):
    image, labels, path, nucleus = time_series(tmp_path, kind)
    slides = open_slides(path, nucleus=nucleus)
    assert [slide.name for slide in slides] == ["movie_t0", "movie_t1", "movie_t2"]
    assert [slide.labels for slide in slides] == [{"timepoint": "0"}, {"timepoint": "1"}, {"timepoint": "2"}]
    for t, slide in enumerate(slides):
        window = slide.read(BOX)
        np.testing.assert_array_equal(window.image, crop(image[t]))
        np.testing.assert_array_equal(window.labels[0], crop(labels[t]))
    with pytest.raises(SourceError, match=r"has 3 time points; add #t=0 to #t=2"):
        open_slide(path, nucleus=nucleus)


def test_one_time_point_is_the_slide_itself(tmp_path):
    image, labels, path, _ = time_series(tmp_path, "zarr")
    (slide,) = open_slides(f"{path}#t=1", nucleus="n", name="frame", channel_names=["a", "b"])
    assert (slide.name, slide.labels, slide.channel_names) == ("frame", {}, ("a", "b"))
    np.testing.assert_array_equal(slide.read(BOX).labels[0], crop(labels[1]))
    (slide,) = open_slides(list(image[0]), cytosol=labels[0])
    assert slide.name == "slide"


def test_time_points_of_several_channel_files(tmp_path):
    paths = [tmp_path / "dna.tif", tmp_path / "actin.tif"]
    for path in paths:
        tifffile.imwrite(path, IMAGE, imagej=True, metadata={"axes": "TYX"})
    slides = open_slides(paths, nucleus=paths[0])
    assert slides[2].channel_names == ("dna", "actin")
    np.testing.assert_array_equal(slides[2].read(BOX).image, crop(np.stack([IMAGE[2], IMAGE[2]])))


def test_labels_must_have_the_time_points_of_the_image(tmp_path):
    path = write_ome_zarr(tmp_path / "a.zarr", IMAGE, "tyx", labels={"two": np.stack([LABELS, LABELS])})
    with pytest.raises(InputError, match=r"must be equal in number, and are: image .*a\.zarr 3, .*label=two 2$"):
        open_slides(path, nucleus="two")
    with pytest.raises(InputError, match=r"image .*a\.zarr 3, array 1$"):
        open_slides(path, nucleus=LABELS)


# Arrays of dask and xarray


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
