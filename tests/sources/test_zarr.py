"""OME-Zarr, SpatialData and plain Zarr arrays."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import zarr
from made.stores import BOX, IMAGE, LABELS, NAMES, RNG, Payload, crop, write_ome_zarr, write_spatialdata

from gpu_extract.errors import LabelError, SourceError
from gpu_extract.sources import open_image, open_labels, open_slide


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["yx", "cyx", "zyx", "tyx", "tcyx", "czyx", "zcyx", "tczyx"])
def test_any_subset_of_axes_is_read(tmp_path, axes, version):
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
def test_maximum_projection_on_request(tmp_path, axes, channels):
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


def test_dimension_names_of_plain_arrays_are_obeyed(tmp_path):
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


def with_empty_corner(path, **storage):
    """Write labels whose first chunk is empty, and so not written by zarr; return them."""
    labels = LABELS.copy()
    labels[:32, :48] = 0
    zarr.create_array(path, data=labels, **storage)
    return labels


@pytest.mark.parametrize(
    ("storage", "n_absent", "n_chunks"),
    [
        ({"chunks": (32, 48)}, 1, 6),
        ({"chunks": (32, 48), "zarr_format": 2}, 1, 6),
        ({"chunks": (32, 48), "zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "/"}}, 1, 6),
        ({"chunks": (16, 24), "shards": (64, 96)}, 4, 20),
        ({"chunks": (16, 24), "shards": (32, 48)}, 4, 20),
    ],
)
def test_absent_chunks_have_the_fill_value(tmp_path, storage, n_absent, n_chunks):
    path = tmp_path / "a.zarr"
    labels = with_empty_corner(path, **storage)
    slide = open_slide(IMAGE, nucleus=path)
    np.testing.assert_array_equal(slide.read(BOX).labels[0], crop(labels))
    (warning,) = slide.warnings
    assert warning.startswith(
        f"nucleus label plane {path} lacks {n_absent} of its {n_chunks} chunks, which are read as 0"
    )
    assert open_slide(IMAGE, nucleus=f"{path}#missing=fill").warnings == ()
    with pytest.raises(SourceError, match=f"lacks {n_absent} of its {n_chunks} chunks, and #missing=error was given"):
        open_slide(IMAGE, nucleus=f"{path}#missing=error")


def test_a_fill_value_other_than_0_is_read(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", shape=(70, 90), chunks=(32, 48), dtype="u2", fill_value=7)[40:] = 9
    slide = open_slide(IMAGE, nucleus=tmp_path / "a.zarr")
    assert "lacks 2 of its 6 chunks, which are read as 7" in slide.warnings[0]
    np.testing.assert_array_equal(np.unique(slide.read((0, 0, 40, 90)).labels[0]), 7)


@pytest.mark.parametrize("storage", [{}, {"shards": (64, 96)}, {"zarr_format": 2}])
def test_an_array_without_any_chunk_is_an_error(tmp_path, storage):
    zarr.create_array(tmp_path / "a.zarr", shape=(70, 90), chunks=(32, 48), dtype="u2", **storage)
    with pytest.raises(SourceError, match=r"has none of its \d chunks; .*, if it is empty, add #missing=fill"):
        open_slide(IMAGE, nucleus=tmp_path / "a.zarr")
    assert not open_labels(f"{tmp_path}/a.zarr#missing=fill", "nucleus").read(*BOX).any()


def test_chunks_under_other_names_do_not_count(tmp_path):
    """A store copied with another separator of chunk names would read as empty."""
    with_empty_corner(tmp_path / "a.zarr", chunks=(32, 48), zarr_format=2)
    metadata = json.loads((tmp_path / "a.zarr" / ".zarray").read_text())
    (tmp_path / "a.zarr" / ".zarray").write_text(json.dumps(metadata | {"dimension_separator": "/"}))
    with pytest.raises(SourceError, match="has none of its 6 chunks"):
        open_slide(IMAGE, nucleus=tmp_path / "a.zarr")


def test_a_chunk_deleted_after_opening_is_an_error(tmp_path):
    path = write_ome_zarr(tmp_path / "a.zarr")
    raster = open_image(path)
    (path / "s0" / "c" / "1" / "0" / "1").unlink()
    with pytest.raises(SourceError, match="lacks the chunk s0/c/1/0/1; copy or export it again"):
        raster.read(*BOX)


def test_links_out_of_a_store_are_an_error(tmp_path):
    path = write_ome_zarr(tmp_path / "a.zarr")
    chunk = path / "s0" / "c" / "0" / "0" / "0"
    chunk.rename(tmp_path / "elsewhere")
    chunk.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match="a link to a target outside the store"):
        open_image(path)
    (path / "s0").rename(tmp_path / "moved")
    (path / "s0").symlink_to(tmp_path / "moved")
    with pytest.raises(SourceError, match="a link to a target outside the store"):
        open_image(path)


def edit_metadata(path, change):
    """Change the metadata of a group or array."""
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
        ("s0", change_chunks(1, 10**6, 10**6), "has chunks of 2000000000000 bytes, and at most"),
        ("s0", lambda metadata: metadata.update(shape=[3, 0, 90]), "no pixels"),
        ("s0", lambda metadata: metadata.update(data_type="nonsense"), "damaged Zarr store"),
        ("s0", lambda metadata: metadata.update(codecs=[{"name": "nonsense"}]), "a codec that is not installed"),
    ],
)
def test_damaged_stores_are_an_error(tmp_path, node, change, message):
    path = write_ome_zarr(tmp_path / "a.zarr")
    edit_metadata(path / node, change)
    with pytest.raises(SourceError, match=message) as caught:
        open_image(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"image {path} ")


def test_a_region_of_a_store_with_a_trillion_pixels_is_read(tmp_path):
    path = write_ome_zarr(tmp_path / "a.zarr")
    edit_metadata(path / "s0", lambda metadata: metadata.update(shape=[3, 10**6, 10**6]))
    with pytest.raises(SourceError, match=r"lacks \d* of its \d* chunks, and #missing=error was given"):
        open_image(f"{path}#missing=error")
    raster = open_image(path)
    assert raster.shape == (3, 10**6, 10**6)
    assert not raster.read(10**6 - 40, 10**6 - 30, 10**6, 10**6).any()
    np.testing.assert_array_equal(raster.read(*BOX), crop(IMAGE))


def test_pickled_objects_are_an_error_and_never_run(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", data=np.zeros((4, 4), np.uint8), zarr_format=2, compressors=None)
    metadata = json.loads((tmp_path / "a.zarr" / ".zarray").read_text())
    metadata.update(dtype="|O", filters=[{"id": "pickle", "protocol": 4}], fill_value=None)
    (tmp_path / "a.zarr" / ".zarray").write_text(json.dumps(metadata))
    (tmp_path / "a.zarr" / "0.0").write_bytes(pickle.dumps(Payload(str(tmp_path / "trace"))))
    with pytest.raises(SourceError):
        open_image(tmp_path / "a.zarr").read(0, 0, 4, 4)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("seed", range(20))
def test_damaged_chunks_raise_source_errors(tmp_path, seed):
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
    with pytest.raises(SourceError, match=r"has the labels cells, dots; choose one: .*#label=NAME"):
        open_labels(path, "nucleus")
    with pytest.raises(SourceError, match="has no label 'x'; there are cells, dots"):
        open_labels(f"{path}#label=x", "nucleus")


def test_labels_with_default_names_need_no_option(tmp_path):
    path = write_ome_zarr(tmp_path / "a.zarr", labels={"nucleus": LABELS, "other": LABELS + 1, "cytosol": LABELS + 2})
    np.testing.assert_array_equal(open_slide(path).read(BOX).labels, crop(np.stack([LABELS, LABELS + 2])))
    np.testing.assert_array_equal(open_slide([path]).read(BOX).labels, crop(np.stack([LABELS, LABELS + 2])))
    assert open_slide(path, nucleus="other").mask_names == ("nucleus",)
    np.testing.assert_array_equal(open_labels(path, "cytosol").read(*BOX)[0], crop(LABELS + 2))


def test_a_project_folder_stands_for_the_store_in_it(tmp_path):
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


def test_files_that_do_not_belong_to_zarr_are_ignored(tmp_path):
    path = write_spatialdata(tmp_path / "a.zarr", labels={"seg_all_nucleus": LABELS})
    for folder in (path, path / "images", path / "labels"):
        (folder / ".DS_Store").write_text("")
        (folder / "notes").mkdir()
    np.testing.assert_array_equal(open_slide(path).read(BOX).labels[0], crop(LABELS))


def test_a_missing_image_is_reported_before_its_labels():
    with pytest.raises(SourceError, match=r"^image /no/such\.zarr does not exist"):
        open_slide("/no/such.zarr", nucleus="cells")


def test_images_of_a_store_are_chosen_by_name(tmp_path):
    path = write_spatialdata(tmp_path / "a.zarr", labels={"n": LABELS}, images=("he", "if"))
    with pytest.raises(SourceError, match=r"has the images he, if; choose one: .*#image=NAME"):
        open_image(path)
    slide = open_slide(f"{path}#image=if,c=0,2", nucleus="n")
    assert slide.channel_names == ("DNA", "actin")
    np.testing.assert_array_equal(slide.read(BOX).image, crop(IMAGE[[0, 2]]))
    with pytest.raises(SourceError, match="has no image 'x'; there are he, if"):
        open_image(f"{path}#image=x")
