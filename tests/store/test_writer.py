"""The store: files of cells that other programs can read."""

from __future__ import annotations

import io
import json
import struct
import time

import anndata
import h5py
import hdf5plugin  # noqa: F401  # lets h5py read lz4 and zstd
import numpy as np
import pytest
from made.cells import (
    SCPORTRAIT_FILE,
    S,
    fill,
    make_contents,
    make_format,
    make_images,
    make_slide,
    only_file,
    part,
    write,
)

from gpu_extract.errors import InputError, OutputError
from gpu_extract.recipe import Recipe
from gpu_extract.store import CellStore, check_output, encode, open_cells, verify
from gpu_extract.store.codecs import CODECS
from gpu_extract.store.hdf5.datasets import codec_of
from gpu_extract.store.hdf5.layouts import LAYOUTS, skeleton


def make_skeleton(contents, layout="h5sc"):
    return skeleton(contents, LAYOUTS[layout], make_format(contents, layout))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cells.h5sc"


RECIPES = {
    "float16": Recipe(tile_size=S),
    "float32": Recipe(tile_size=S, output_dtype="float32"),
    "uint8": Recipe(tile_size=S, output_dtype="uint8"),
    "uint16": Recipe(tile_size=S, normalization="none"),
}


@pytest.mark.parametrize("compression", CODECS)
@pytest.mark.parametrize("dtype", RECIPES)
def test_h5py_reads_every_tile_back(path, dtype, compression):
    contents = make_contents(30, recipe=RECIPES[dtype])
    images = make_images(contents)
    assert write(path, contents, images, compression=compression) == path
    with h5py.File(path) as file:
        dataset = file["obsm/single_cell_images"]
        assert dataset.dtype == dtype
        assert dataset.chunks == (None if compression == "none" else (1, *contents.program.tile_shape))
        assert codec_of(dataset).name == compression
        np.testing.assert_array_equal(dataset[:], images.images)
    assert only_file(path)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n_cells", [1, 2, 1025, 5000])
def test_any_number_of_cells(path, n_cells, layout):
    contents = make_contents(n_cells)
    images = make_images(contents)
    store = CellStore.create(path, contents, layout=layout)
    fill(store, images, batch=1500)  # more than one pwritev takes
    store.finish()
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file[LAYOUTS[layout].images][:], images.images)
        for i, name in enumerate(LAYOUTS[layout].limits):
            np.testing.assert_array_equal(file[name][:], images.limits[:, :, i])
    assert verify(path).n_cells == n_cells


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("compression", CODECS)
@pytest.mark.parametrize("n_cells", [1, 2, 7])
@pytest.mark.parametrize("size", [1, 2, 30, 45])
def test_hdf5_finds_chunks_of_any_size(path, size, n_cells, compression, layout):
    # HDF5 allocates space differently below 2 KiB, for a single chunk, and without a filter.
    contents = make_contents(n_cells, recipe=Recipe(tile_size=size, normalization="none"))
    images = make_images(contents)
    write(path, contents, images, compression=compression, layout=layout)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file[LAYOUTS[layout].images][:], images.images)


@pytest.mark.parametrize("compression", ["gzip", "none"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_batches_are_written_in_any_order(path, layout, compression):
    contents = make_contents(300)
    images = make_images(contents)
    store = CellStore.create(path, contents, layout=layout, compression=compression)
    for start in (200, 0, 100):
        store.append(encode(part(images, start, start + 100), store.format))
    store.finish()
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file[LAYOUTS[layout].images][:], images.images)
        for i, name in enumerate(LAYOUTS[layout].limits):
            np.testing.assert_array_equal(file[name][:], images.limits[:, :, i])


def test_anndata_opens_it_with_every_table(path):
    slides = (make_slide("A", {"well": "D03", "time": "0 h"}), make_slide("B", {"well": "D04"}))
    contents = make_contents(4, slides, n_dropped=2, texts={"command": "gpu-extract run"})
    images = make_images(contents)
    write(path, contents, images)
    data = anndata.read_h5ad(path)

    assert list(data.obs_names) == ["0", "1", "2", "3"]
    assert data.obs["scportrait_cell_id"].dtype == np.uint64
    assert list(data.obs["slide"]) == ["A", "A", "B", "B"]
    assert list(data.obs["well"]) == ["D03", "D03", "D04", "D04"]
    assert list(data.obs["time"].isna()) == [False, False, True, True]
    assert data.obs.loc["2", "center_y":"truncated"].to_dict() == {
        **{"center_y": 102, "center_x": 202},
        **{"bbox_y0": 20, "bbox_x0": 21, "bbox_y1": 22, "bbox_x1": 23},
        **{"area_nucleus": 1002, "area_cytosol": 2002, "truncated": False},
    }
    assert data.obs["center_x"].dtype == data.obs["area_nucleus"].dtype == np.int64
    assert data.obs["truncated"].dtype == bool
    np.testing.assert_array_equal(data.obsm["spatial"], contents.cells.centers[:, ::-1])
    np.testing.assert_array_equal(data.obsm["single_cell_images"], images.images)
    assert list(data.var["channels"]) == ["seg_all_nucleus", "seg_all_cytosol", "DNA", "tubulin"]

    ours = data.uns["gpu_extract"]
    assert ours["command"] == "gpu-extract run"
    assert ours["dropped"].to_dict("list") == {
        "slide": ["A", "A"],
        "cell_id": [2**40, 2**40 + 1],
        "reason": ["mask touches the slide's border"] * 2,
    }
    assert json.loads(ours["sources"])[1] == {
        "slide": "B",
        "labels": {"well": "D04"},
        "image": "B.tif",
        "nucleus": "B.nucleus.tif",
        "cytosol": "B.cytosol.tif",
    }


def test_the_recipe_in_the_file_is_the_recipe(path, tmp_path):
    contents = make_contents(1, recipe=Recipe.preset("scportrait").replace(tile_size=S))
    write(path, contents)
    toml = tmp_path / "recipe.toml"
    toml.write_text(anndata.read_h5ad(path).uns["gpu_extract"]["recipe"])
    assert Recipe.from_toml(toml) == contents.program.recipe


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (Recipe(tile_size=S, quantiles=(0.01, 0.9)), (True, 0.01, 0.9)),
        (Recipe(tile_size=S, normalization="range", value_range=(3.0, 900.0)), (True, 3.0, 900.0)),
        (Recipe(tile_size=S, normalization="dtype"), (True, 0.0, 1.0)),
        (Recipe(tile_size=S, normalization="none"), (False, 0.0, 1.0)),
    ],
)
def test_normalization_is_stored_as_in_scportrait(path, recipe, expected):
    write(path, make_contents(1, recipe=recipe))
    with h5py.File(path) as file:
        attributes = file["obsm/single_cell_images"].attrs
        assert (attributes["normalization"], *attributes["normalization_range"]) == expected


def _shape_of(file):
    """Return the type of every object and attribute of a file, independent of the number of cells and names."""
    found = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = (item.dtype, item.ndim)
        for key, value in item.attrs.items():
            # Fixed-length strings are as long as the longest name.
            dtype = item.attrs.get_id(key).dtype
            found[f"{name}@{key}"] = (dtype.kind, np.ndim(value))

    visit("", file)
    file.visititems(visit)
    return found


def test_layout_is_that_of_scportrait(path):
    if not SCPORTRAIT_FILE.exists():
        pytest.skip(f"{SCPORTRAIT_FILE} is not here")
    write(path, make_contents(3, (make_slide(channels=("ch0", "ch1", "ch2")),)))
    with h5py.File(SCPORTRAIT_FILE) as theirs, h5py.File(path) as ours:
        expected, found = _shape_of(theirs), _shape_of(ours)
        assert expected.items() <= found.items()
        for name in ("channel_names", "channel_mapping"):
            key = "obsm/single_cell_images"
            np.testing.assert_array_equal(ours[key].attrs[name], theirs[key].attrs[name])


def test_one_label_plane_and_names_of_any_length(path):
    name = "αTubulin, a name of more than fifteen characters"
    contents = make_contents(2, (make_slide(masks=("cytosol",), channels=(name,)),))
    write(path, contents)
    with h5py.File(path) as file:
        names = [text.decode() for text in file["obsm/single_cell_images"].attrs["channel_names"]]
        assert names == ["seg_all_cytosol", name]
        assert "area_nucleus" not in file["obs"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_input_same_bytes(tmp_path, layout):
    contents = make_contents(2000, n_dropped=3)
    start = int(time.time())
    one, two = (write(tmp_path / name, contents, layout=layout).read_bytes() for name in ("one.h5", "two.h5"))
    assert one == two
    # Both may have been written within the same second: there is no timestamp in the skeleton either.
    head = make_skeleton(contents, layout)
    assert not any(struct.pack("<I", second) in head for second in range(start, int(time.time()) + 1))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_skeleton_alone_is_an_hdf5_file(layout):
    contents = make_contents(2000)
    with h5py.File(io.BytesIO(make_skeleton(contents, layout))) as file:
        assert file[LAYOUTS[layout].images].shape == (2000, *contents.program.tile_shape)


@pytest.mark.parametrize("compression", ["blosc", "", "GZIP"])
def test_other_compressions_are_refused(path, compression):
    with pytest.raises(OutputError, match="must be one of gzip, lzf, lz4, zstd, none"):
        CellStore.create(path, make_contents(1), compression=compression)
    with pytest.raises(OutputError, match="must be one of gzip, lzf, lz4, zstd, none"):
        check_output(path, compression, overwrite=False)


@pytest.mark.parametrize("key", ["slide", "cell_id", "center_y", "area_nucleus", "_index", "a/b", "", ".."])
def test_metadata_that_cannot_be_a_column_is_refused(key):
    with pytest.raises(InputError, match="rename it"):
        make_contents(1, (make_slide(metadata={key: "x"}),))


@pytest.mark.parametrize("text", ["a\0b", "\udcff"])
def test_names_that_are_not_valid_text_are_refused(text):
    with pytest.raises(InputError, match="cannot be stored"):
        make_contents(1, (make_slide(channels=("DNA", text)),))


def test_paths_that_are_not_valid_text_are_stored(path):
    slide = make_slide()
    slide.image.source = "bad\udcff.tif"
    write(path, make_contents(1, (slide,)))
    sources = json.loads(anndata.read_h5ad(path).uns["gpu_extract"]["sources"])
    assert sources[0]["image"] == slide.image.source


def test_slides_of_one_file_have_the_same_planes_and_different_names():
    with pytest.raises(InputError, match="must have the same"):
        make_contents(2, (make_slide("A"), make_slide("B", channels=("DNA", "actin"))))
    with pytest.raises(InputError, match="must differ"):
        make_contents(2, (make_slide("A"), make_slide("A")))


@pytest.mark.parametrize("compression", list(CODECS))
@pytest.mark.parametrize("layout", ["h5sc", "sparcspy"])
@pytest.mark.parametrize("chunk_cells", [1, 16])
def test_a_file_may_have_no_cell(tmp_path, layout, compression, chunk_cells):
    contents = make_contents(0, (make_slide("A", {"well": "1"}), make_slide("B", {"well": "2"})), n_dropped=2)
    path = write(tmp_path / "a.h5", contents, layout=layout, compression=compression, chunk_cells=chunk_cells)
    assert only_file(path)
    assert verify(path).n_cells == 0
    with open_cells(path) as cells:
        assert cells.read([]).shape == (0, 4, 6, 6)
