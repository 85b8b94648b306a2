"""Outlines drawn as a label plane."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made.outlines import HOLE, SQUARE, drawn_exactly, outlines, shifted
from skimage.draw import polygon2mask

from gpu_extract.errors import LabelError
from gpu_extract.sources import polygons
from gpu_extract.sources.outlines import cell_ids, checked
from gpu_extract.sources.polygons import draw

SIZE = (12, 14)


def raster(*cells, size=SIZE):
    return draw(checked(outlines(*cells), "cells", "feature"), size, "cells", "cells.geojson")


def plane(*cells, size=SIZE):
    return raster(*cells, size=size).read(0, 0, *size)[0]


# What is inside


def test_pixels_whose_center_is_inside():
    found = raster([[SQUARE]])
    assert (found.shape, found.dtype, found.source, found.warnings) == ((1, *SIZE), np.uint32, "cells.geojson", ())
    expected = np.zeros(SIZE, int)
    expected[2:8, 2:8] = 1
    np.testing.assert_array_equal(found.read(0, 0, *SIZE)[0], expected)


@pytest.mark.parametrize(
    ("shift", "rows"),
    [(0.49, slice(2, 8)), (0.5, slice(2, 8)), (0.51, slice(3, 9)), (-0.5, slice(1, 7)), (-0.49, slice(2, 8))],
)
def test_a_center_on_the_top_or_left_edge_is_inside_and_one_on_the_others_is_not(shift, rows):
    expected = np.zeros(SIZE, int)
    expected[rows, rows] = 1
    np.testing.assert_array_equal(plane([[np.array(SQUARE) + shift]]), expected)


def test_holes_and_a_cell_in_a_hole():
    expected = np.zeros(SIZE, int)
    expected[2:8, 2:8] = 1
    expected[4:6, 4:6] = 0
    np.testing.assert_array_equal(plane([[SQUARE, HOLE]]), expected)
    expected[4:6, 4:6] = 2
    both = raster([[SQUARE, HOLE]], [[HOLE]])
    np.testing.assert_array_equal(both.read(0, 0, *SIZE)[0], expected)
    assert both.warnings == ()


def test_an_island_in_a_hole_is_a_part_of_its_own():
    ring = [(4.5, 4.5), (4.5, 5.6), (5.6, 5.6), (5.6, 4.5)]
    found = plane([[SQUARE, HOLE], [ring]])
    assert found[4:6, 4:6].tolist() == [[1, 1], [1, 1]]


def test_parts_of_one_cell_that_overlap_are_one_and_no_overlap():
    found = raster([[SQUARE], [HOLE]])
    assert (found.read(0, 0, *SIZE)[0] == 1).sum() == 36
    assert found.warnings == ()


def test_a_ring_that_crosses_itself_follows_the_even_odd_rule():
    bow_tie = [(0, 0), (0, 8), (8, 0), (8, 8)]
    found = plane([[bow_tie]], size=(8, 8))
    np.testing.assert_array_equal(found, drawn_exactly([[[bow_tie]]], (8, 8)))
    assert found[1].tolist() == [0, 1, 1, 1, 1, 1, 0, 0]
    twice_around = [*SQUARE, *SQUARE]
    assert not drawn_exactly([[[twice_around]]], SIZE).any()
    with pytest.raises(LabelError, match="none of its 1 outlines holds a pixel"):
        plane([[twice_around]])


def test_polygons_with_a_common_edge_leave_no_gap_and_do_not_overlap():
    rng = np.random.default_rng(1)
    for _ in range(20):
        edge = np.stack([np.linspace(0, 40, 9), 20 + rng.integers(-20, 20, 9) / 4], axis=1)
        left, right = [(0, 0), *edge, (40, 0)], [(0, 40), *edge, (40, 40)]
        both = raster([[left]], [[right]], size=(40, 40))
        assert both.read(0, 0, 40, 40).all()
        assert both.warnings == ()


def test_a_polygon_as_skimage_draws_it():
    rng = np.random.default_rng(2)
    for _ in range(30):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 11))
        ring = 20 + rng.uniform(3, 25, 11)[:, None] * np.stack([np.sin(angles), np.cos(angles)], axis=1)
        expected = polygon2mask((40, 44), ring - 0.5)  # there the centers are whole numbers
        np.testing.assert_array_equal(plane([[ring]], size=(40, 44)), expected)


points = st.tuples(*[st.integers(-12, 60).map(lambda quarters: quarters / 4)] * 2)
rings = st.lists(points, min_size=3, max_size=8, unique=True)
parts = st.lists(rings, min_size=1, max_size=3)
cells = st.lists(st.lists(parts, min_size=1, max_size=2), min_size=1, max_size=6)


@given(cells=cells, box=st.tuples(*[st.integers(0, 12)] * 2, *[st.integers(0, 14)] * 2))
@settings(deadline=None, max_examples=300)
def test_every_polygon_is_drawn_exactly_and_in_every_box(cells, box):
    expected = drawn_exactly(cells, SIZE)
    if not expected.any():
        return
    found = raster(*cells)
    np.testing.assert_array_equal(found.read(0, 0, *SIZE)[0], expected)
    (y0, y1), (x0, x1) = sorted(box[:2]), sorted(box[2:])
    np.testing.assert_array_equal(found.read(y0, x0, y1, x1)[0], expected[y0:y1, x0:x1])


@given(cells=cells)
@settings(deadline=None, max_examples=50)
def test_it_does_not_matter_how_many_are_drawn_at_a_time(cells):
    expected = drawn_exactly(cells, SIZE)
    if expected.any():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(polygons, "CHUNK", 5)
            np.testing.assert_array_equal(plane(*cells), expected)


def test_ids_above_32_bits_and_pickled():
    made = outlines([[SQUARE]], [[np.array(SQUARE) + 4]])
    made.ids[:] = 7, 1 << 40
    found = pickle.loads(pickle.dumps(draw(made, SIZE, "cells", "cells.geojson")))
    assert found.dtype == np.uint64
    pixels = found.read(1, 1, 12, 13)[0]
    assert pixels.flags.c_contiguous
    assert np.unique(pixels).tolist() == [0, 7, 1 << 40]


# What the user should know


def test_the_later_outline_is_on_top_and_overlaps_are_counted():
    found = raster([[SQUARE]], [[shifted(SQUARE, 4, 0)]], [[shifted(SQUARE, 0, 8)]])
    pixels = found.read(0, 0, *SIZE)[0]
    assert pixels[5:9, 3].tolist() == [1, 2, 2, 2]
    assert found.warnings == (
        "cells: 2 outlines overlap, in 12 pixels; these belong to the outline that is later in the file",
    )


def test_a_pixel_of_three_outlines_counts_once():
    found = raster([[SQUARE]], [[HOLE]], [[HOLE]], [[SQUARE]])
    assert (found.read(0, 0, *SIZE)[0] == 4).sum() == 36
    assert found.warnings == (
        "cells: 4 outlines overlap, in 36 pixels; these belong to the outline that is later in the file; "
        "3 of them are covered completely and missing",
    )


@given(cells=cells)
@settings(deadline=None, max_examples=100)
def test_overlaps_are_those_of_the_single_planes(cells):
    single = [drawn_exactly([cell], SIZE) > 0 for cell in cells]
    count = np.sum(single, axis=0)
    if not count.any():
        return
    lines = [line for line in raster(*cells).warnings if "overlap" in line]
    n_cells = sum((mask & (count > 1)).any() for mask in single)
    assert [line.split(";")[0] for line in lines] == (
        [f"cells: {n_cells} outlines overlap, in {(count > 1).sum()} pixels"] if n_cells else []
    )


def test_outlines_beyond_the_image_are_cut_off():
    for shift in ((-5, 0), (0, -5), (7, 0), (0, 9), (-5, -5), (7, 9)):
        ring = np.array(SQUARE) + shift
        np.testing.assert_array_equal(plane([[ring]]), drawn_exactly([[[ring]]], SIZE))
    assert plane([[[(-1e9, -1e9), (-1e9, 1e9), (1e9, 1e9), (1e9, -1e9)]]]).all()


def test_outlines_outside_the_image_and_those_without_a_center():
    found = raster([[SQUARE]], [[np.array(SQUARE) + 50]], [[np.array(SQUARE) - 8]], [[np.array(SQUARE) / 20 + 9.55]])
    assert found.warnings == (
        "cells: 2 of 4 outlines lie outside the image of 12 x 14 pixels (H x W)",
        "cells: 1 of 4 outlines hold no pixel's center",
    )


def test_all_outlines_outside_the_image():
    with pytest.raises(LabelError, match=r"none of its 1 outlines .* y = 102 to 108, x = 102 to 108 .* and the unit"):
        raster([[np.array(SQUARE) + 100]])


def test_no_outlines_are_an_empty_plane():
    none = outlines([[SQUARE]]).part(np.zeros(1, bool))
    found = draw(none, SIZE, "cells", "cells.geojson")
    assert not found.read(0, 0, *SIZE).any()
    assert found.warnings == ()


def test_more_rows_than_cells_can_have(monkeypatch):
    monkeypatch.setattr(polygons, "MAX_CROSSINGS", 11)
    with pytest.raises(LabelError, match="its outlines cross 12 rows of pixels, and 11 are possible"):
        raster([[SQUARE]])


def test_more_overlaps_than_cells_can_have(monkeypatch):
    stairs = [[[shifted(SQUARE, 0, step)]] for step in range(4)]  # 48 crossings, 96 pieces
    monkeypatch.setattr(polygons, "MAX_CROSSINGS", 96)
    assert raster(*stairs).warnings
    monkeypatch.setattr(polygons, "MAX_CROSSINGS", 95)
    with pytest.raises(LabelError, match="too many of its outlines lie on top of each other"):
        raster(*stairs)


# Before they are drawn


def test_rings_of_fewer_than_three_points_are_left_out():
    line = [(1, 1), (5, 5)]
    made = outlines([[line]], [[SQUARE, line], [line, HOLE]], [[[]]], [[[(1, 1), (5, 5), (1, 1)]]], [[HOLE]])
    found = checked(made, "cells", "feature")
    assert found.ids.tolist() == [2, 5]
    assert found.warnings == (
        "cells: 3 of 5 outlines have fewer than three points and are left out (the first is feature 1)",
    )
    expected = np.where(drawn_exactly([[[SQUARE]], [[HOLE]]], SIZE) == 1, 2, 0)
    expected[4:6, 4:6] = 5
    np.testing.assert_array_equal(draw(found, SIZE, "cells", "c").read(0, 0, *SIZE)[0], expected)


def test_none_has_three_points():
    with pytest.raises(LabelError, match="cells holds no outline with three or more points; give polygons"):
        checked(outlines([[[(1, 1), (5, 5)]]]), "cells", "feature")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2e9])
def test_coordinates_that_are_none(value):
    bad = [[SQUARE, [(1, 1), (2, value), (3, 1)]]]
    with pytest.raises(LabelError, match=r"cells: ROI 9 has a vertex at x = \S+, y = 2; coordinates must be finite"):
        checked(outlines([[SQUARE]], bad), "cells", "ROI", np.array([4, 9]))


def test_some_of_the_outlines():
    made = outlines([[SQUARE, HOLE]], [[HOLE]], [[SQUARE], [HOLE, HOLE]])
    found = made.part(np.array([True, False, True]))
    assert found.ids.tolist() == [1, 3]
    assert found.cells.tolist() == [0, 1, 3]
    assert found.parts.tolist() == [0, 2, 3, 5]
    assert found.rings.tolist() == [0, 4, 8, 12, 16, 20]
    np.testing.assert_array_equal(found.vertices, np.concatenate([SQUARE, HOLE, SQUARE, HOLE, HOLE]))


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        ([3, "12", b"7", 5.0, np.uint64(1 << 63)], [3, 12, 7, 5, 1 << 63]),
        (["aaaaaaab-1", "ffkpbabb-2"], [(1 << 32) + 1, (2 << 32) + 1437536273]),
        ([0], None),
        ([-1], None),
        ([1.5], None),
        (["a"], None),
        ([None], None),
        ([True], None),
        (["1" * 21], None),
        ([1 << 64], None),
        (["99999999999999999999"], None),
    ],
)
def test_what_is_an_id(names, ids):
    found = cell_ids(names)
    assert found is None if ids is None else found.tolist() == ids
