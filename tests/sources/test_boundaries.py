"""Boundaries of Xenium and MERSCOPE, and GeoParquet, as label planes."""

import gzip
import json
import sys

import numpy as np
import pandas as pd
import pytest
import tifffile
from made.outlines import HOLE, SQUARE, drawn_exactly, shifted, wkb, wkb_point, write_geoparquet

import gpu_extract as gx
from gpu_extract.errors import LabelError, LibraryError, SourceError
from gpu_extract.sources import open_slide
from gpu_extract.sources.wkb import wkb_parts

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

SIZE = (12, 14)
IMAGE = np.ones((2, *SIZE), np.uint16)
PIXEL = 0.25  # um; exact, so that corners stay on corners
LETTERS = (
    "{}: the letters a to p are hexadecimal digits 0 to f, to which 2**32 times the number behind the dash is added"
)
INNER = [(4, 4), (4, 7), (7, 7), (7, 4)]


def opened(path, plane="cytosol", **given):
    slide = open_slide(IMAGE, **{plane: path}, **given)
    subject = f"{plane} label plane {path}: "
    return slide.read((0, 0, *SIZE)).labels[0], [line.removeprefix(subject) for line in slide.warnings]


# Xenium


def vertices(*cells):
    """A table of boundaries, each (cell_id, label_id, ring in pixels)."""
    rows = [(name, x * PIXEL, y * PIXEL, label) for name, label, ring in cells for y, x in [*ring, ring[0]]]
    return pd.DataFrame(rows, columns=["cell_id", "vertex_x", "vertex_y", "label_id"])


def write_xenium(folder, name, table, *, settings=True):
    if settings:
        (folder / "experiment.xenium").write_text(json.dumps({"major_version": 4, "pixel_size": PIXEL}))
    table = table.astype({"vertex_x": np.float32, "vertex_y": np.float32})
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pandas(table, preserve_index=False), folder / name)
    else:
        text = table.to_csv(index=False).encode()
        (folder / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return folder / name


@pytest.mark.parametrize("name", ["cell_boundaries.parquet", "cell_boundaries.csv.gz", "cell_boundaries.csv"])
def test_xenium_cells(tmp_path, name):
    table = vertices(("aaaaaaah-1", 1, SQUARE), ("ffkpbaba-2", 2, shifted(SQUARE, 0, 6)))
    found, warnings = opened(write_xenium(tmp_path, name, table))
    ids = [(1 << 32) + 7, (2 << 32) + 1437536272]
    assert found.dtype == np.uint64
    expected = drawn_exactly([[[SQUARE]], [[shifted(SQUARE, 0, 6)]]], SIZE)
    np.testing.assert_array_equal(found, np.array([0, *ids], np.uint64)[expected])
    assert warnings == [f"cell_id aaaaaaah-1 has the id {LETTERS.format(ids[0])}"]


def test_a_xenium_cell_with_two_nuclei_keeps_its_id(tmp_path):
    cells = write_xenium(tmp_path, "cell_boundaries.parquet", vertices(("aaaaaaab-1", 9, SQUARE)))
    left, right = [(3, 3), (3, 5), (7, 5), (7, 3)], [(3, 5), (3, 7), (7, 7), (7, 5)]
    table = vertices(("aaaaaaab-1", 3, left), ("aaaaaaab-1", 4, right))
    nuclei = write_xenium(tmp_path, "nucleus_boundaries.parquet", table)
    plan = gx.plan(IMAGE, nucleus=nuclei, cytosol=cells, tile_size=8, border="keep")
    assert plan.cells.ids.tolist() == [(1 << 32) + 1]
    assert plan.cells.areas.tolist() == [[16, 36]]


def test_rings_that_do_not_follow_each_other(tmp_path):
    other = shifted(HOLE, 0, 6)
    table = vertices((5, 1, HOLE), (3, 1, other), (5, 2, shifted(HOLE, 4, 0)), (3, 2, shifted(HOLE, 4, 6)))
    found, warnings = opened(write_xenium(tmp_path, "cell_boundaries.parquet", table))
    expected = drawn_exactly([[[HOLE], [shifted(HOLE, 4, 0)]], [[other], [shifted(HOLE, 4, 6)]]], SIZE)
    np.testing.assert_array_equal(found, np.array([0, 5, 3])[expected])
    assert warnings == []


@pytest.mark.parametrize("kind", [pa.binary(), pa.dictionary(pa.int32(), pa.string()), pa.large_string()])
def test_types_of_xenium_ids(tmp_path, kind):
    table = pa.Table.from_pandas(vertices(("12", 1, SQUARE), ("3", 2, shifted(SQUARE, 0, 6))), preserve_index=False)
    path = tmp_path / "cell_boundaries.parquet"
    names = table["cell_id"].cast(pa.string())
    column = names.dictionary_encode() if pa.types.is_dictionary(kind) else names.cast(kind)
    pq.write_table(table.set_column(0, "cell_id", column).drop(["label_id"]), path, row_group_size=4)
    found, warnings = opened(path, pixel_size=(PIXEL, PIXEL))
    assert found[3, [3, 9]].tolist() == [12, 3]
    assert warnings == []


def test_xenium_ids_of_another_kind_are_places(tmp_path):
    table = vertices(("CR1-1", 5, SQUARE), ("CR1-7", 6, shifted(SQUARE, 0, 6)))
    found, warnings = opened(write_xenium(tmp_path, "cell_boundaries.parquet", table))
    assert found[3, [3, 9]].tolist() == [1, 2]
    line = "the ids of cells are their places in the file, from 1, since its cell_id are no numbers (as CR1-1)"
    assert warnings == [line]


def test_the_size_of_a_xenium_pixel(tmp_path):
    table = vertices((5, 1, np.array(SQUARE) * 2))
    path = write_xenium(tmp_path, "cell_boundaries.parquet", table)
    assert (opened(path)[0] == 5).sum() == 8 * 10  # cut off
    found, warnings = opened(path, pixel_size=(2 * PIXEL, 2 * PIXEL))  # a lower level, as it could be
    np.testing.assert_array_equal(found, 5 * drawn_exactly([[[SQUARE]]], SIZE))
    assert warnings == []
    line = "its outlines are drawn with pixels of 0.3 x 0.3 um (y, x), the size of the image's, "
    assert opened(path, pixel_size=(0.3, 0.3))[1] == [line + "and the settings beside it state 0.25 um"]
    (tmp_path / "experiment.xenium").unlink()
    with pytest.raises(LabelError, match=r"is in um, and the pixel size .* not known; give --pixel-size in um"):
        opened(path)
    np.testing.assert_array_equal(opened(path, pixel_size=(0.5, 0.5))[0], found)
    (tmp_path / "experiment.xenium").write_text("{}")
    with pytest.raises(SourceError, match=r"experiment.xenium is damaged: 'pixel_size'"):
        opened(path)


def test_xenium_vertices_that_are_none(tmp_path):
    table = vertices((5, 1, SQUARE), (7, 2, HOLE))
    table.loc[6, "vertex_x"] = np.nan
    for name in ("cell_boundaries.parquet", "cell_boundaries.csv"):
        with pytest.raises(LabelError, match="cell 2 has a vertex at x = nan"):
            opened(write_xenium(tmp_path, name, table))
    table = vertices((5, 1, SQUARE), (None, 2, HOLE))
    for name in ("cell_boundaries.parquet", "cell_boundaries.csv"):
        with pytest.raises(SourceError, match="5 rows have no cell_id"):
            opened(write_xenium(tmp_path, name, table))
        with pytest.raises(LabelError, match="has no row; give the boundaries of cells"):
            opened(write_xenium(tmp_path, name, table.iloc[:0]))


def test_a_table_that_is_damaged(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("cell_id,vertex_x,vertex_y\n1,2,x\n")
    with pytest.raises(SourceError, match="is not a table that can be read: could not convert string to float"):
        opened(path)
    path.write_text("cell_id,vertex_x\n1,2\n")
    with pytest.raises(SourceError, match="is not a table that can be read: 'vertex_y'"):
        opened(path)


# MERSCOPE


def write_merscope(folder, rows, *, transform=True):
    """A region's boundaries, rows of (EntityID, ZIndex, geometry in um)."""
    (folder / "images").mkdir(exist_ok=True)
    if transform:
        # Pixels are 0.5 um, and the mosaic begins at x = -10 um, y = 4 um.
        (folder / "images" / "micron_to_mosaic_pixel_transform.csv").write_text("2.0 0.0 20.0\n0.0 2.0 -8.0\n0 0 1\n")
    ids, slices, geometries = zip(*rows, strict=True)
    table = {"ID": range(len(ids)), "EntityID": ids, "ZIndex": slices, "Geometry": geometries}
    pq.write_table(pa.table(table), folder / "cell_boundaries.parquet")
    return folder / "cell_boundaries.parquet"


def in_um(*rings):
    return wkb([np.add(np.array(ring) / 2, (4, -10)) for ring in rings])


def test_merscope_cells_are_where_the_mosaic_has_them(tmp_path):
    ids = (1148301000001100001, 1148301000001100002)
    geometries = in_um(SQUARE, HOLE), in_um(shifted(SQUARE, 0, 6))
    rows = [(ids[cell], z, geometries[cell]) for z in range(7) for cell in (0, 1)]
    found, warnings = opened(write_merscope(tmp_path, rows))
    expected = drawn_exactly([[[SQUARE, HOLE]], [[shifted(SQUARE, 0, 6)]]], SIZE)
    np.testing.assert_array_equal(found, np.array([0, *ids], np.uint64)[expected])
    assert warnings == []


def test_merscope_slices_that_differ(tmp_path):
    rows = [(5, 0, in_um(SQUARE)), (5, 3, in_um(INNER)), (6, 3, in_um(shifted(SQUARE, 0, 6)))]
    path = write_merscope(tmp_path, rows)
    with pytest.raises(SourceError, match="has 4 Z slices; add #z=0 to #z=3"):
        opened(path)
    np.testing.assert_array_equal(opened(f"{path}#z=0")[0], 5 * drawn_exactly([[[SQUARE]]], SIZE))
    assert np.unique(opened(f"{path}#z=3")[0]).tolist() == [0, 5, 6]


def test_merscope_without_its_transform(tmp_path):
    path = write_merscope(tmp_path, [(5, 0, in_um(SQUARE))], transform=False)
    with pytest.raises(
        LabelError, match=r"its map to pixels, micron_to_mosaic_pixel_transform.csv, is neither beside it"
    ):
        opened(path)
    (tmp_path / "images" / "micron_to_mosaic_pixel_transform.csv").write_text("1 0 0\n0 0 0\n0 0 1")
    with pytest.raises(SourceError, match=r"transform.csv is damaged: its map cannot be inverted"):
        opened(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((0, 0, in_um(SQUARE)), "has an EntityID that is no whole number from 1"),
        ((5, -1, in_um(SQUARE)), "has a ZIndex that is no whole number from 0"),
        ((5, 0, in_um(SQUARE)[:40]), "row 1: its geometry is cut off; export the file again"),
        ((5, 0, b""), "row 1: its geometry is no well-known binary"),
        ((5, 0, None), "holds no outline with three or more points"),
    ],
)
def test_damaged_merscope_rows(tmp_path, row, message):
    with pytest.raises(LabelError, match=message):
        opened(write_merscope(tmp_path, [row]))


# GeoParquet


def test_geoparquet(tmp_path):
    geometries = [wkb([SQUARE, HOLE]), wkb_point(1, 1), wkb([HOLE], [shifted(HOLE, 5, 4)], order=">"), None]
    path = write_geoparquet(tmp_path / "a.parquet", [7, 8, 9, 10], geometries)
    found, warnings = opened(path)
    expected = drawn_exactly([[[SQUARE, HOLE]], [[HOLE], [shifted(HOLE, 5, 4)]]], SIZE)
    np.testing.assert_array_equal(found, np.array([0, 7, 9])[expected])
    assert warnings == ["2 of 4 rows are points or lines, and are left out"]
    path = write_geoparquet(tmp_path / "b.parquet", ["a", "b"], [wkb_point(1, 1), wkb([SQUARE])], geometry="shape")
    found, warnings = opened(path)
    assert np.unique(found).tolist() == [0, 2]
    line = "the ids of cells are their rows in the file, from 1, since its index has no different whole numbers from 1"
    assert warnings[1:] == [line]
    assert opened(f"{path}#unit=um", pixel_size=(2, 2))[0].sum() == 2 * 9


def test_points_are_no_outlines(tmp_path):
    path = write_geoparquet(tmp_path / "a.parquet", [1], [wkb_point(1, 1)])
    with pytest.raises(LabelError, match="holds no polygons; points and circles are no outlines of cells"):
        opened(path)


def test_other_parquet_files(tmp_path):
    pq.write_table(pa.table({"a": [1], "b": [2]}), tmp_path / "a.parquet")
    with pytest.raises(LabelError, match=r"has the columns a, b; outlines are cell_id, vertex_x, vertex_y \(Xenium\)"):
        opened(tmp_path / "a.parquet")
    path = write_geoparquet(tmp_path / "b.parquet", [1], [b"x"], encoding="polygon")
    with pytest.raises(LabelError, match=r"or a geometry as WKB \(GeoParquet\)"):
        opened(path)
    (tmp_path / "c.parquet").write_bytes(b"PAR1" + b"x" * 100)
    with pytest.raises(SourceError, match="is a damaged Parquet file"):
        opened(tmp_path / "c.parquet")
    with pytest.raises(SourceError, match=r"^image .* holds outlines \(Parquet\), not pixels"):
        open_slide(tmp_path / "a.parquet", nucleus=tmp_path / "a.parquet")


def test_without_pyarrow(tmp_path, monkeypatch):
    path = write_geoparquet(tmp_path / "a.parquet", [1], [wkb([SQUARE])])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(
        LibraryError, match=r"a.parquet cannot be read: pyarrow .* cannot be imported .*pip install .*pyarrow"
    ):
        opened(path)


# Well-known binary


@pytest.mark.parametrize("form", [{"z": True}, {"z": True, "iso": True}, {"order": ">"}, {"order": ">", "z": True}])
def test_forms_of_well_known_binary(form):
    ((outer, hole),) = wkb_parts(wkb([SQUARE, HOLE], **form))
    np.testing.assert_array_equal(outer[:-1], SQUARE)
    np.testing.assert_array_equal(hole[:-1], HOLE)


def test_extended_well_known_binary():
    plain = wkb([SQUARE])
    extended = plain[:1] + b"\x03\0\0\x20" + b"\xe6\x10\0\0" + plain[5:]
    np.testing.assert_array_equal(wkb_parts(extended)[0][0][:-1], SQUARE)
    collection = b"\1\7\0\0\0\2\0\0\0" + plain + wkb([HOLE], [SQUARE])
    assert [len(rings) for rings in wkb_parts(collection)] == [1, 1, 1]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\2" + wkb([SQUARE])[1:],
        b"\1\3\0\0\0\xff\xff\xff\xff",  # four billion rings
        b"\1\3\0\0\0\1\0\0\0\xff\xff\xff\xff",
        b"\1\6\0\0\0\xff\xff\xff\xff",
        wkb([SQUARE])[:-1],
        b"\1\7\0\0\0\1\0\0\0" * 50,
    ],
)
def test_damaged_well_known_binary(data):
    with pytest.raises(ValueError, match="its geometr"):
        wkb_parts(data)


def test_every_cut_of_well_known_binary():
    whole = wkb([SQUARE, HOLE], [HOLE])
    for end in range(len(whole)):
        with pytest.raises(ValueError, match="its geometry"):
            wkb_parts(whole[:end])


def test_run_takes_the_pixel_size_from_the_command_line(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("image.tif", np.ones((2, 60, 60), np.uint16), photometric="minisblack")
    write_xenium(tmp_path, "cells.parquet", vertices((5, 1, np.array(SQUARE) + 20)), settings=False)
    arguments = ("run", "image.tif", "--cytosol", "cells.parquet", "--size", 16, "-o", "a.h5sc", "--quiet")
    code, _, errors = call(*arguments)
    assert code == 1
    assert errors.splitlines()[-1] == (
        "gpu-extract: cytosol label plane cells.parquet is in um, and the pixel size of the image is not known; "
        "give --pixel-size in um (pixel_size=)"
    )
    code, _, errors = call(*arguments, "--pixel-size", PIXEL)
    assert code == 0, errors
    assert gx.open_cells("a.h5sc")[5][0].sum() == 36
