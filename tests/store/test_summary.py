"""What `Cells.summary` says of files of this package and of others."""

import json

import anndata
import h5py
import numpy as np
import pytest
from made.cells import make_contents, make_slide, write

from gpu_extract.recipe import Recipe
from gpu_extract.store.codecs import CODECS
from gpu_extract.store.hdf5.layouts import LAYOUTS
from gpu_extract.store.reader import open_cells

KEYS = {
    *("file", "nbytes", "layout", "is_own", "version", "n_cells", "planes", "tile_size", "dtype", "compression"),
    *("chunk_shape", "tiles_nbytes", "tiles_uncompressed_nbytes", "ids", "obs", "slides", "cells_per_slide"),
    *("dropped", "recipe", "warnings", "trusted", "more"),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cells.h5sc"


def summary(path):
    """The summary, which is the same as JSON."""
    with open_cells(path) as cells:
        found = cells.summary()
    assert json.loads(json.dumps(found)) == found
    assert set(found) == KEYS
    return found


def three_slides():
    return [make_slide("A", {"well": "A01", "dose": "0.5"}), make_slide("B"), make_slide("C")]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_slides_are_counted_with_those_that_are_empty(path, layout):
    contents = make_contents(7, three_slides(), n_dropped=4, ids=[1, 2, 3, 1, 2, 3, 4])
    contents.cells.slide[:] = [0, 0, 0, 2, 2, 2, 2]
    write(path, contents, layout=layout)
    found = summary(path)
    slides = found["slides"]
    assert [(slide["name"], slide["n_cells"], slide["n_dropped"]) for slide in slides] == [
        ("A", 3, 4),
        ("B", 0, 0),
        ("C", 4, 0),
    ]
    assert slides[0]["metadata"] == {"well": "A01", "dose": "0.5"}
    assert (slides[2]["image"], slides[2]["nucleus"]) == ("C.tif", "C.nucleus.tif")
    assert found["cells_per_slide"] == {"min": 0, "median": 3.0, "max": 4, "n_empty": 1}
    assert found["dropped"] == {"mask touches the slide's border": 4}
    assert found["ids"] == {
        "column": "scportrait_cell_id",
        "min": 1,
        "max": 4,
        "n_different": 4,
        "n_repeated": 3,
    }
    assert (found["layout"], found["is_own"], found["n_cells"]) == (layout, True, 7)
    assert found["version"]
    assert Recipe(tile_size=6).to_toml() == found["recipe"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_single_slide(path, layout):
    highest = 2**63 + 1 if layout == "h5sc" else 2**60
    write(path, make_contents(5, ids=[3, 4, 5, 6, highest]), layout=layout)
    found = summary(path)
    assert [(slide["name"], slide["n_cells"]) for slide in found["slides"]] == [("slide", 5)]
    assert found["ids"]["max"] == highest
    assert found["ids"]["n_repeated"] == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_cells(path, layout):
    write(path, make_contents(0, three_slides()), layout=layout)
    found = summary(path)
    assert [slide["n_cells"] for slide in found["slides"]] == [0, 0, 0]
    assert found["cells_per_slide"]["n_empty"] == 3
    assert (found["ids"]["min"], found["ids"]["max"], found["ids"]["n_different"]) == (None, None, 0)


def test_columns_have_their_types(path):
    write(path, make_contents(7, three_slides()))
    columns = summary(path)["obs"]
    assert columns["scportrait_cell_id"] == {"type": "uint64"}
    assert columns["slide"] == {"type": "category", "n_values": 3}
    assert columns["dose"] == {"type": "float64"}
    assert columns["truncated"] == {"type": "bool"}


def test_unique_ids_are_told_from_those_of_the_labels(path):
    write(path, make_contents(4, three_slides()[:2], ids=[1, 2, 1, 2], unique_ids=True))
    assert summary(path)["ids"] == {"column": "cell_id", "min": 1, "max": 2, "n_different": 2, "n_repeated": 2}


@pytest.mark.parametrize("compression", CODECS)
def test_tiles(path, compression):
    has_chunks = compression != "none"
    write(path, make_contents(20), compression=compression, **({"chunk_cells": 4} if has_chunks else {}))
    found = summary(path)
    assert [plane["kind"] for plane in found["planes"]] == ["mask", "mask", "channel", "channel"]
    assert (found["tile_size"], found["dtype"], found["compression"]) == (6, "float16", compression)
    assert found["chunk_shape"] == ([4, 4, 6, 6] if has_chunks else None)
    assert found["tiles_uncompressed_nbytes"] == 20 * 4 * 36 * 2
    assert 0 < found["tiles_nbytes"] < found["nbytes"] == path.stat().st_size


def test_what_the_run_said(path):
    texts = {"notices": "one\ntwo", "trusted": "ids: three", "command": "gpu-extract run"}
    write(path, make_contents(3, texts=texts))
    found = summary(path)
    assert (found["warnings"], found["trusted"]) == (["one", "two"], ["ids: three"])
    assert found["more"] == {
        "normalization": True,
        "normalization_range_lower": 0.001,
        "normalization_range_upper": 0.999,
        "command": "gpu-extract run",
    }


def test_a_time_course_with_names_of_its_own(path):
    slides = [make_slide(name, {"ID": f"tile_{name}"}) for name in "AB"]
    write(path, make_contents(6, slides), layout="sparcspy")
    assert [(slide["name"], slide["n_cells"]) for slide in summary(path)["slides"]] == [("tile_A", 3), ("tile_B", 3)]


def test_cells_of_slides_that_no_column_tells_apart(path):
    write(path, make_contents(6, three_slides()))
    with h5py.File(path, "r+") as file:
        del file["obs/slide"]
        file["obs"].attrs["column-order"] = ["scportrait_cell_id"]
    found = summary(path)
    assert [slide["n_cells"] for slide in found["slides"]] == [None, None, None]
    assert found["cells_per_slide"] is None


def test_a_file_of_another_program(path):
    write(path, make_contents(6))
    with h5py.File(path, "r+") as file:
        del file["uns/gpu_extract"]
        for column in ("slide", "region"):
            del file[f"obs/{column}"]
        file["obs"].attrs["column-order"] = ["scportrait_cell_id"]
    found = summary(path)
    assert (found["is_own"], found["version"], found["recipe"], found["slides"]) == (False, None, None, [])
    assert (found["warnings"], found["dropped"]) == ([], {})


def test_a_classic_file_of_sparcspy(path):
    with h5py.File(path, "w") as file:
        file["single_cell_data"] = np.zeros((3, 4, 6, 6), np.float32)
        file["single_cell_index"] = np.array([[0, 5], [1, 6], [2, 9]])
    found = summary(path)
    assert (found["layout"], found["is_own"], found["ids"]["max"]) == ("sparcspy", False, 9)
    assert [plane["name"] for plane in found["planes"]] == ["seg_all_nucleus", "seg_all_cytosol", "ch0", "ch1"]


def test_a_file_that_anndata_wrote_again(path):
    write(path, make_contents(7, three_slides()))
    anndata.read_h5ad(path)[:3].copy().write_h5ad(path.with_suffix(".h5ad"))
    found = summary(path.with_suffix(".h5ad"))
    assert (found["is_own"], found["n_cells"], found["compression"], found["chunk_shape"]) == (False, 3, "none", None)
    assert found["version"] == summary(path)["version"]
    assert [(slide["name"], slide["n_cells"]) for slide in found["slides"]] == [("A", 3), ("B", 0), ("C", 0)]
