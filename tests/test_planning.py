import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from made.slides import as_slide, small_slide
from skimage.measure import regionprops

from gpu_extract import InputError, LabelError, Recipe
from gpu_extract.labels import label_statistics
from gpu_extract.model import BatchSize
from gpu_extract.planning import CellSubset, batches, make_plan
from gpu_extract.sources import open_labels


def image_for(labels, channels=1):
    return np.zeros((channels, *labels.shape), np.uint16)


def plan_of(nucleus=None, cytosol=None, subset=None, **changes):
    plane = nucleus if nucleus is not None else cytosol
    slide = as_slide(image_for(plane), nucleus, cytosol)
    return make_plan([slide], Recipe(nuclear_channel=0, tile_size=8).replace(**changes), subset)


@pytest.mark.parametrize("strip", [1, 100, 1 << 22])
def test_statistics_equal_those_of_scikit_image(monkeypatch, strip):
    monkeypatch.setattr("gpu_extract.labels.STRIP_PIXELS", strip)
    _, plane, _ = small_slide(3)
    statistics = label_statistics(open_labels(plane, "nucleus"))
    regions = regionprops(plane)
    assert statistics.ids.tolist() == [region.label for region in regions]
    assert statistics.counts.tolist() == [region.area for region in regions]
    assert statistics.boxes.tolist() == [list(region.bbox) for region in regions]
    sums = np.array([region.coords.sum(axis=0) for region in regions])
    assert (statistics.sums == sums).all()
    edge = np.unique(np.concatenate([plane[0], plane[-1], plane[:, 0], plane[:, -1]]))
    assert (statistics.touches == np.isin(statistics.ids, edge)).all()


@given(
    arrays(
        np.uint64, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 1, 2**40, 2**64 - 1])
    )
)
@settings(deadline=None)
def test_statistics_of_any_plane_equal_a_count_of_its_pixels(labels):
    statistics = label_statistics(open_labels(labels, "nucleus"))
    ids = sorted({int(i) for i in labels.ravel()} - {0})
    assert statistics.ids.tolist() == ids
    for n, cell_id in enumerate(ids):
        y, x = np.nonzero(labels == cell_id)
        assert statistics.counts[n] == len(y)
        assert statistics.sums[n].tolist() == [y.sum(), x.sum()]
        assert statistics.boxes[n].tolist() == [y.min(), x.min(), y.max() + 1, x.max() + 1]
        H, W = labels.shape
        assert statistics.touches[n] == (y.min() == 0 or x.min() == 0 or y.max() == H - 1 or x.max() == W - 1)


def test_centers_are_rounded_half_to_even():
    labels = np.zeros((9, 9), np.uint8)
    labels[2, 2:4] = 1  # x 2.5 -> 2
    labels[5, 3:5] = 2  # x 3.5 -> 4
    labels[4:6, 6] = 3  # y 4.5 -> 4
    assert plan_of(labels).cells.centers.tolist() == [[2, 2], [5, 4], [4, 6]]


def test_a_label_with_several_components_is_one_cell():
    labels = np.zeros((9, 30), np.uint8)
    labels[2, 2], labels[6, 20] = 7, 7
    cells = plan_of(labels).cells
    assert cells.ids.tolist() == [7]
    assert cells.centers.tolist() == [[4, 11]]
    assert cells.boxes.tolist() == [[2, 2, 7, 21]]
    assert cells.truncated.tolist() == [True]


def test_the_largest_component_of_a_label_can_be_the_cell():
    labels = np.zeros((9, 30), np.uint8)
    labels[2, 2], labels[6, 20:22] = 7, 7
    plan = plan_of(labels, pieces="largest")
    assert plan.cells.boxes.tolist() == [[6, 20, 7, 22]]
    assert plan.cells.areas.tolist() == [[2]]
    assert plan.cells.truncated.tolist() == [False]
    assert plan.slides[0].read((0, 0, 9, 30)).labels[0].sum() == 14


@pytest.mark.parametrize("y", [0, 8])
def test_border_mask_drops_only_masks_that_touch_the_border(y):
    labels = np.zeros((9, 20), np.uint8)
    labels[y, 4], labels[1, 10], labels[7, 12] = 1, 2, 3
    cells = plan_of(labels).cells
    assert cells.ids.tolist() == [2, 3]
    assert cells.dropped.ids.tolist() == [1]
    assert cells.dropped.counts() == {"mask touches the slide's border": 1}


def test_border_mask_checks_every_mask():
    nucleus, cytosol = np.zeros((9, 9), np.uint8), np.zeros((9, 9), np.uint8)
    nucleus[3, 3], cytosol[3, :5] = 1, 1
    nucleus[6, 6], cytosol[6, 6] = 2, 2
    assert plan_of(nucleus, cytosol).cells.ids.tolist() == [2]
    assert plan_of(nucleus).cells.ids.tolist() == [1, 2]


def test_border_window_is_strict_on_both_sides():
    labels = np.zeros((20, 20), np.uint8)
    for n, position in enumerate([4, 5, 15, 16], 1):  # w = 4: 4 < c < 16
        labels[position, 10] = n
    cells = plan_of(labels, border="window").cells
    assert cells.ids.tolist() == [2, 3]
    assert cells.dropped.counts() == {"window leaves the slide": 2}


def test_border_keep_drops_nothing():
    labels = np.zeros((5, 5), np.uint8)
    labels[0, 0], labels[4, 4] = 1, 2
    assert plan_of(labels, border="keep").cells.ids.tolist() == [1, 2]


def mismatched():
    nucleus, cytosol = np.zeros((12, 12), np.uint16), np.zeros((12, 12), np.uint16)
    nucleus[3, 3], cytosol[2:5, 2:5] = 1, 1
    nucleus[7, 7] = 2
    cytosol[9, 3] = 3
    return nucleus, cytosol


def test_ids_in_only_one_plane_are_dropped_with_a_reason():
    dropped = plan_of(*mismatched()).cells.dropped
    assert dict(zip(dropped.ids.tolist(), dropped.reasons().tolist(), strict=True)) == {
        2: "no cytosol",
        3: "no nucleus",
    }


def test_ids_in_only_one_plane_can_be_kept_or_refused():
    cells = plan_of(*mismatched(), on_mismatch="keep").cells
    assert cells.ids.tolist() == [1, 2, 3]
    assert cells.areas.tolist() == [[1, 9], [1, 0], [0, 1]]
    assert cells.centers.tolist() == [[3, 3], [7, 7], [9, 3]]
    cells = plan_of(*mismatched(), on_mismatch="keep_nuclei").cells
    assert (cells.ids.tolist(), cells.dropped.counts()) == ([1, 2], {"no nucleus": 1})
    with pytest.raises(LabelError, match="1 cells have no nucleus"):
        plan_of(*mismatched(), on_mismatch="error")


def test_every_id_is_kept_or_dropped_once():
    _, nucleus, cytosol = small_slide(4)
    for border in ("mask", "window", "keep"):
        cells = plan_of(nucleus, cytosol, CellSubset(n_cells=2, seed=1), border=border, tile_size=20).cells
        seen = np.union1d(nucleus[nucleus > 0], cytosol[cytosol > 0])
        assert sorted([*cells.ids, *cells.dropped.ids]) == seen.tolist()
        assert len(cells) == 2
        assert "not selected" in cells.dropped.counts()


def test_subsets_by_ids_and_at_random():
    labels = np.zeros((9, 40), np.uint8)
    labels[4, 2:38:2] = np.arange(1, 19)
    assert plan_of(labels, subset=CellSubset(ids=np.array([9, 3], np.uint64))).cells.ids.tolist() == [3, 9]
    draws = [plan_of(labels, subset=CellSubset(n_cells=5, seed=s)).cells.ids.tolist() for s in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert len(draws[0]) == 5
    with pytest.raises(InputError, match=r"2 of 3 ids asked for are not in the labels: 77, 99"):
        plan_of(labels, subset=CellSubset(ids=np.array([3, 77, 99], np.uint64)))
    with pytest.raises(InputError, match="50 cells were asked for; there are 18 to choose from"):
        plan_of(labels, subset=CellSubset(n_cells=50))


def test_no_cell_left_is_an_error_with_the_reasons():
    labels = np.zeros((5, 5), np.uint8)
    labels[0, 0] = 1
    with pytest.raises(InputError, match=r"all 1 were dropped \(mask touches the slide's border: 1\)"):
        plan_of(labels)


def test_every_cell_fits_into_a_fitting_tile_size():
    _, nucleus, cytosol = small_slide(5)
    size = plan_of(nucleus, cytosol, border="keep").fitting_tile_size(1.0)
    assert not plan_of(nucleus, cytosol, border="keep", tile_size=size).cells.truncated.any()
    assert plan_of(nucleus, cytosol, border="keep", tile_size=size - 2).cells.truncated.any()


@pytest.mark.parametrize(("max_cells", "nbytes"), [(64, 32 << 20), (3, 32 << 20), (64, 4000), (64, 1)])
@pytest.mark.parametrize("size", [7, 16, 300])
def test_batches_partition_the_rows_and_windows_contain_the_tiles(max_cells, nbytes, size):
    slides = [as_slide(*small_slide(seed)) for seed in (6, 7)]
    plan = make_plan(slides, Recipe(tile_size=size, border="keep"))
    rows = []
    for batch in batches(plan, BatchSize(max_cells, nbytes)):
        y0, x0, y1, x1 = batch.box
        H, W = slides[batch.slide].size
        on_slide = np.concatenate([np.maximum(batch.corners, 0), np.minimum(batch.corners + size, (H, W))], axis=1)
        assert (on_slide[:, :2] >= (y0, x0)).all()
        assert (on_slide[:, 2:] <= (y1, x1)).all()
        assert 1 <= len(batch) <= max_cells
        assert (np.diff(batch.rows) > 0).all()
        assert (plan.cells.slide[batch.rows] == batch.slide).all()
        assert (plan.cells.ids[batch.rows] == batch.ids).all()
        rows += batch.rows.tolist()
    assert sorted(rows) == list(range(len(plan.cells)))


def test_rows_are_sorted_by_slide_and_id():
    plan = make_plan([as_slide(*small_slide(seed)) for seed in (8, 9)], Recipe(tile_size=9, border="keep"))
    keys = list(zip(plan.cells.slide.tolist(), plan.cells.ids.tolist(), strict=True))
    assert keys == sorted(keys)
    assert set(plan.cells.slide.tolist()) == {0, 1}
