"""Reading cells back, by id and by row."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pandas as pd
import pytest
from made.cells import SCPORTRAIT_FILE, make_contents, make_images, make_slide, write

from gpu_extract import UnknownCellError
from gpu_extract.errors import InputError, OutputError
from gpu_extract.recipe import Recipe
from gpu_extract.store.codecs import CODECS
from gpu_extract.store.hdf5.layouts import LAYOUTS
from gpu_extract.store.reader import open_cells

IMAGES = "obsm/single_cell_images"
BIG = 2**63 + 5


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cells.h5sc"


@pytest.fixture
def two_slides(path):
    """Cells 1, 2, BIG of slide A and 2, 3 of slide B."""
    slides = (make_slide("A", {"well": "D03"}), make_slide("B", {"well": "D04"}))
    contents = make_contents(5, slides, n_dropped=2, ids=[1, 2, BIG, 2, 3])
    write(path, contents)
    return path, make_images(contents).images


@pytest.mark.parametrize("compression", CODECS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "uint8", "uint16"])
def test_tiles_are_read_back_unchanged(path, dtype, compression):
    contents = make_contents(50, recipe=Recipe(tile_size=5, output_dtype=dtype))
    images = make_images(contents).images
    write(path, contents, compression=compression)
    with open_cells(path) as cells:
        assert len(cells) == 50
        assert cells.dtype == dtype
        assert cells.tile_size == 5
        rows = [49, 0, 7, 7]
        np.testing.assert_array_equal(cells.read(rows), images[rows])
        np.testing.assert_array_equal(cells.read(np.arange(50)), images)
        np.testing.assert_array_equal(cells[12], images[2])
        for row, (cell_id, tile) in enumerate(cells):
            assert cell_id == row + 10
            np.testing.assert_array_equal(tile, images[row])
        assert cells.read([]).shape == (0, 4, 5, 5)


def test_names_and_tables(two_slides):
    path, _ = two_slides
    with open_cells(path) as cells:
        assert cells.planes == ("seg_all_nucleus", "seg_all_cytosol", "DNA", "tubulin")
        assert cells.mask_planes == cells.planes[:2]
        assert cells.channel_planes == cells.planes[2:]
        assert cells.ids.dtype == np.uint64
        assert cells.ids.tolist() == [1, 2, BIG, 2, 3]
        assert list(cells.obs["well"]) == ["D03", "D03", "D03", "D04", "D04"]
        assert list(cells.dropped["reason"]) == ["mask touches the slide's border"] * 2
        assert "5 cells of 4 planes, 6 x 6 float16" in repr(cells)


def test_info(two_slides):
    path, _ = two_slides
    with open_cells(path) as cells:
        info = cells.info
    assert info["compression"] == "gzip"
    assert info["normalization"] is True
    assert (info["normalization_range_lower"], info["normalization_range_upper"]) == (0.001, 0.999)
    assert info["dropped"] == {"mask touches the slide's border": 2}
    assert "A.tif" in info["sources"]
    assert "tile_size = 6" in info["recipe"]
    assert isinstance(info["version"], str)


def test_a_cell_is_read_by_its_id(two_slides):
    path, images = two_slides
    with open_cells(path) as cells:
        np.testing.assert_array_equal(cells[1], images[0])
        np.testing.assert_array_equal(cells[BIG], images[2])
        np.testing.assert_array_equal(cells[np.uint64(3)], images[4])
        np.testing.assert_array_equal(cells["A", 2], images[1])
        np.testing.assert_array_equal(cells["B", 2], images[3])
        assert 3 in cells
        assert ("B", 3) in cells
        assert ("A", 3) not in cells


@pytest.mark.parametrize(
    ("cell", "match"),
    [
        (2, r"id 2 is in 2 slides \(A, B\); name one, as in cells\['A', 2\]"),
        (0, r"no cell 0; ids run from 1 to 9223372036854775813, rows are read by cells.read"),
        (-1, "no cell -1"),
        (2**64, "no cell 18446744073709551616"),
        ("A", "no cell A"),
        (("C", 1), "no cell 1 of slide C"),
        (2**40, "no cell 1099511627776; it was dropped: mask touches"),
        (("A", 2**40), "it was dropped"),
    ],
)
def test_an_unknown_or_ambiguous_cell_is_an_error(two_slides, cell, match):
    path, _ = two_slides
    with open_cells(path) as cells:
        with pytest.raises(UnknownCellError, match=match) as error:
            cells[cell]
        assert isinstance(error.value, KeyError)
        assert isinstance(error.value, InputError)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("rows", [[-1], [0, 5], [0.5], [[0]], 0, ["a"], [True]])
def test_invalid_rows_are_refused(two_slides, rows):
    path, _ = two_slides
    with open_cells(path) as cells, pytest.raises(InputError, match=r"^rows? "):
        cells.read(rows)


@pytest.mark.parametrize(
    "kind", [list, lambda ids: np.array(ids, object), lambda ids: np.array(ids, np.uint64), pd.Series, pd.Index]
)
def test_cells_are_read_by_a_list_of_ids(two_slides, kind):
    path, images = two_slides
    with open_cells(path) as cells:
        np.testing.assert_array_equal(cells[kind([3, 1, BIG, 3])], images[[4, 0, 2, 4]])
        np.testing.assert_array_equal(cells[kind([1])], images[[0]])
        assert cells[kind([])].shape == (0, *images.shape[1:])


def test_cells_are_read_by_a_list_of_slides_and_ids(two_slides):
    path, images = two_slides
    with open_cells(path) as cells:
        np.testing.assert_array_equal(cells[[("B", 2), ("A", 2), np.uint64(1)]], images[[3, 1, 0]])
        np.testing.assert_array_equal(cells[cells.ids[[0, 4]]], images[[0, 4]])
        np.testing.assert_array_equal(cells.read(rows=[4, 0]), images[[4, 0]])


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ([1, 77], "has no cell 77; ids run from"),
        ([77, 1, 78, 77], r"has no cells 77, 78 \(2 in all\); ids run from"),
        (list(range(100, 110)), r"has no cells 100, 101, 102, ... \(10 in all\)"),
        ([2, 3], r"id 2 is in 2 slides \(A, B\); name one"),
        ([("C", 1)], "no cell 1 of slide C"),
        ([2**40, 1], "was dropped"),
        (["A"], "no cell A"),
        ([True], "no cell True"),
        ([0.5], "no cell 0.5"),
        (np.array([0.5]), "ids are of type float64"),
        (np.array([True, False]), "a mask of rows"),
        ([[1]], "lists within a list"),
        ((1, 2), r"read several cells with cells\[\[1, 2\]\]"),
        ((1, 2, 3), r"read several cells with cells\[\[1, 2, 3\]\]"),
    ],
)
def test_unknown_cells_of_a_list_are_named(two_slides, given, match):
    path, _ = two_slides
    with open_cells(path) as cells, pytest.raises(InputError, match=match) as error:
        cells[given]
    assert "\n" not in str(error.value)


def test_ids_of_many_slides_are_named_in_short(path):
    slides = [make_slide(f"A{n:03}") for n in range(100)]
    write(path, make_contents(200, slides, ids=[17, 18] * 100))
    with open_cells(path) as cells:
        with pytest.raises(
            UnknownCellError, match=r"id 17 is in 100 slides \(A000, A001, A002, \.\.\.\); name one, as"
        ):
            cells[17]
        with pytest.raises(UnknownCellError, match=r"several cells of each of 2 ids \(17, 18\); name their slides"):
            cells[[17, 18, 17]]
        assert cells[[("A003", 17)]].shape == (1, *cells["A003", 18].shape)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_repeated_ids_without_slides_are_read_by_row(path, layout):
    contents = make_contents(5, ids=[1, 2, 3, 2, 2])
    write(path, contents, layout=layout)
    if layout == "h5sc":
        with h5py.File(path, "r+") as file:
            del file["obs/slide"]
            file["obs"].attrs["column-order"] = ["scportrait_cell_id"]
    with (
        open_cells(path) as cells,
        pytest.raises(UnknownCellError, match=r"id 2 is in 3 rows \(1, 3, 4\); read one, as in cells.read\(rows=\[1\]"),
    ):
        cells[2]


def test_ids_given_as_rows_are_told_from_rows(two_slides):
    path, _ = two_slides
    with open_cells(path) as cells:
        with pytest.raises(InputError, match=r"rows are 0 to 4; read by id with cells\[\[id, ...\]\]"):
            cells.read(np.array([1, 10**9]))
        with pytest.raises(InputError, match=r"^rows are of type uint64, as ids are; read by id with cells\[ids\]"):
            cells.read(cells.ids[:2])
        with pytest.raises(InputError, match="row 77 is not in the file"):
            cells.read([1, 77])


def test_a_file_of_scportrait_is_read():
    if not SCPORTRAIT_FILE.exists():
        pytest.skip(f"{SCPORTRAIT_FILE} is not here")
    with open_cells(SCPORTRAIT_FILE) as cells, h5py.File(SCPORTRAIT_FILE) as file:
        np.testing.assert_array_equal(cells.read(range(0, 226, 5)), file[IMAGES][::5])
        np.testing.assert_array_equal(cells[int(cells.ids[3])], file[IMAGES][3])
        assert cells.planes == ("seg_all_nucleus", "seg_all_cytosol", "ch0", "ch1", "ch2")
        assert cells.info["compression"] == "lzf"
        assert len(cells.dropped) == 0
        with pytest.raises(UnknownCellError, match="no cell 3 of slide x"):
            cells["x", 3]


@pytest.mark.parametrize(
    "layout",
    [
        {"chunks": (1, 4, 6, 6), "compression": "gzip", "shuffle": True},
        {"chunks": (1, 4, 6, 6), "fletcher32": True},
        {"chunks": (2, 1, 6, 6), "compression": "gzip"},
        {"chunks": (1, 1, 6, 6), "compression": "lzf"},
        {},
    ],
)
def test_other_layouts_are_read_through_h5py(two_slides, layout):
    path, images = two_slides
    with h5py.File(path, "r+") as file:
        del file[IMAGES]
        file.create_dataset(IMAGES, data=images, **layout)
    with open_cells(path) as cells:
        np.testing.assert_array_equal(cells.read([4, 0]), images[[4, 0]])


def test_many_threads_read_one_file(path):
    contents = make_contents(500)
    images = make_images(contents).images
    write(path, contents)
    with open_cells(path) as cells, ThreadPoolExecutor(4) as workers:
        rows = [range(start, 500, 10) for start in range(10)]
        for some, tiles in zip(rows, workers.map(cells.read, rows), strict=True):
            np.testing.assert_array_equal(tiles, images[some])


def test_cells_pickle_as_their_path(two_slides):
    path, images = two_slides
    with open_cells(path) as cells, pickle.loads(pickle.dumps(cells)) as again:
        np.testing.assert_array_equal(again[1], images[0])


def test_a_closed_file_is_an_error(two_slides):
    path, _ = two_slides
    with open_cells(path) as cells:
        pass
    cells.close()
    for use in (lambda: cells.read([0]), lambda: cells.obs, lambda: cells.info, lambda: cells.dropped):
        with pytest.raises(OutputError, match="is closed"):
            use()


def test_other_files_are_refused(tmp_path):
    with pytest.raises(OutputError, match="does not exist"):
        open_cells(tmp_path / "missing.h5sc")
    with pytest.raises(OutputError, match="is a folder"):
        open_cells(tmp_path)
    (tmp_path / "text.h5sc").write_text("hello")
    with pytest.raises(OutputError, match="not a file of cells"):
        open_cells(tmp_path / "text.h5sc")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["data"] = [1, 2]
    with pytest.raises(OutputError, match="not a file of cells"):
        open_cells(tmp_path / "foreign.h5")


def test_tiles_behind_a_link_are_not_read(two_slides, tmp_path):
    path, _ = two_slides
    other = write(tmp_path / "other.h5sc", make_contents(5))
    with h5py.File(path, "r+") as file:
        del file[IMAGES]
        file[IMAGES] = h5py.ExternalLink(other, IMAGES)
    with pytest.raises(OutputError, match="in other files"):
        open_cells(path)


def test_tiles_in_other_files_are_not_read(two_slides, tmp_path):
    path, _ = two_slides
    with h5py.File(path, "r+") as file:
        del file[IMAGES]
        elsewhere = [(str(tmp_path / "secret"), 0, h5py.h5f.UNLIMITED)]
        file.create_dataset(IMAGES, (5, 4, 6, 6), "f2", external=elsewhere)
    with pytest.raises(OutputError, match="in other files"):
        open_cells(path)


def test_a_damaged_tile_is_named(two_slides):
    path, images = two_slides
    with h5py.File(path, "r+") as file:
        dataset = file[IMAGES].id
        _, chunk = dataset.read_direct_chunk((1, 0, 0, 0))
        dataset.write_direct_chunk((1, 0, 0, 0), chunk[:-4] + bytes(4))
    with open_cells(path) as cells:
        np.testing.assert_array_equal(cells.read([0]), images[:1])
        with pytest.raises(OutputError, match=r"row 1 \(cell 2\) is damaged"):
            cells.read([1])


def test_random_damage_raises_one_line_or_nothing(two_slides):
    path, _ = two_slides
    data, dice = path.read_bytes(), np.random.default_rng(0)
    for _ in range(40):
        broken = bytearray(data)
        for position in dice.integers(0, len(data), 3):
            broken[position] ^= 1 << int(dice.integers(8))
        path.write_bytes(broken)
        try:
            with open_cells(path) as cells:
                cells.read(range(5))
                _ = cells.obs, cells.info
        except OutputError as error:
            assert "\n" not in str(error)  # noqa: PT017


def modules_after(script, *arguments):
    """Return the top-level packages outside the standard library that a script loads in a fresh process."""
    ending = "new = {name.partition('.')[0] for name in set(sys.modules) - before}"
    lines = ["import sys", "before = set(sys.modules)", script, ending, "print(*new - sys.stdlib_module_names)"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", "\n".join(lines), *map(str, arguments)]
    return set(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split())


def test_importing_the_package_loads_nothing_else():
    assert modules_after("import gpu_extract") == {"gpu_extract"}


READ_TILES = """
import gpu_extract as gx
with gx.open_cells(sys.argv[1]) as cells:
    cells[12]
    cells.read([4, 0])
"""


@pytest.mark.parametrize("compression", CODECS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_reading_tiles_loads_no_tables_and_no_compiler(path, layout, compression):
    write(path, make_contents(5), layout=layout, compression=compression)
    loaded = modules_after(READ_TILES, path)
    assert {"gpu_extract", "h5py", "numpy"} <= loaded
    assert not loaded & {"anndata", "cupy", "dask", "numba", "pandas", "scipy", "tifffile", "zarr"}
