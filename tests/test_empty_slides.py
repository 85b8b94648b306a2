"""Slides without cells: empty fields of a screen, and files of 0 cells."""

import json

import anndata
import h5py
import numpy as np
import pytest
import tifffile
from made.slides import small_slide

import gpu_extract as gx
from gpu_extract.errors import InputError, LabelError
from gpu_extract.store import verify
from gpu_extract.store.codecs import CODECS

IMAGE, NUCLEUS, CYTOSOL = small_slide(1)
EMPTY = np.zeros_like(NUCLEUS)
NO_CELL = {"image": IMAGE, "nucleus": EMPTY, "cytosol": EMPTY}


def slides(*wells, empty=("A02",)):
    return [
        {"image": small_slide(n)[0], "nucleus": EMPTY, "cytosol": EMPTY, "well": well}
        if well in empty
        else dict(zip(("image", "nucleus", "cytosol"), small_slide(n), strict=True), well=well)
        for n, well in enumerate(wells)
    ]


@pytest.mark.parametrize("device", ["cpu", "reference"])
@pytest.mark.parametrize("layout", ["h5sc", "sparcspy"])
@pytest.mark.parametrize("wells", [("A01", "A02", "A03"), ("A02", "A01", "A03"), ("A01", "A03", "A02")])
def test_an_empty_slide_among_others_has_no_cell(tmp_path, wells, layout, device):
    given = slides(*wells)
    report = gx.extract_many(given, output=tmp_path / "a.h5", tile_size=24, layout=layout, device=device)
    name = f"slide_{wells.index('A02') + 1}" if wells.index("A02") else "slide"
    assert report.warnings[0] == f"1 slide has no cell: {name}"
    assert verify(report.path).n_cells == report.n_cells
    others = [each for each in given if each["well"] != "A02"]
    alone = gx.extract_many(others, output=tmp_path / "b.h5", tile_size=24, layout=layout, device=device)
    with gx.open_cells(report.path) as cells, gx.open_cells(alone.path) as expected:
        rows = np.arange(len(expected))
        np.testing.assert_array_equal(cells.ids, expected.ids)
        np.testing.assert_array_equal(cells.read(rows), expected.read(rows))
        assert list(cells.obs["well"]) == list(expected.obs["well"])


@pytest.mark.parametrize(
    "choices",
    [
        {"match": "overlap"},
        {"match": "overlap", "pieces": "largest"},
        {"on_mismatch": "keep"},
        {"border": "window"},
        {"quantile_scope": "dataset"},
        {"quantile_scope": "slide"},
        {"on_bad_slide": "skip"},
        {"n_cells": 3},
    ],
)
def test_empty_slides_are_planned_with_every_rule(choices):
    given = slides("A01", "A02", "A03", "A04", empty=("A02", "A04"))
    plan = gx.plan_many(given, tile_size=24, **choices)
    assert len(plan.slides) == 4
    assert set(plan.cells.slide.tolist()) <= {0, 2}
    assert "2 slides have no cell: slide_2, slide_4" in plan.warnings
    assert len(gx.plan_many([given[0], given[2]], tile_size=24, **choices).cells) == len(plan.cells)


@pytest.mark.parametrize("empty", ["nucleus", "cytosol"])
@pytest.mark.parametrize("match", ["id", "overlap"])
@pytest.mark.parametrize("on_mismatch", ["drop", "keep"])
def test_one_empty_plane_of_a_slide_among_others(empty, match, on_mismatch):
    given = [*slides("A01"), {"image": IMAGE, "nucleus": NUCLEUS, "cytosol": CYTOSOL} | {empty: EMPTY}]
    plan = gx.plan_many(given, tile_size=24, match=match, on_mismatch=on_mismatch)
    dropped = plan.cells.dropped
    n_seen = np.count_nonzero(plan.cells.slide == 1) + np.count_nonzero(dropped.slide == 1)
    assert n_seen == len(np.unique(CYTOSOL if empty == "nucleus" else NUCLEUS)) - 1
    assert (f"no {empty}" in dropped.counts()) == (on_mismatch == "drop")


def test_the_warning_names_ten_slides_and_those_of_which_all_cells_were_dropped():
    wells = [f"B{n:02}" for n in range(14)]
    given = slides(*wells, empty=wells[1:])
    given[13] |= {"nucleus": EMPTY, "cytosol": CYTOSOL}
    (warning,) = gx.plan_many(given, tile_size=24).warnings
    assert warning.startswith("13 slides have no cell: slide_2, slide_3, ")
    assert warning.endswith("slide_11, ...")
    n = len(np.unique(CYTOSOL)) - 1
    assert gx.plan_many([given[0], given[13]], tile_size=24).warnings == (
        f"1 slide has no cell: slide_2 (all {n} dropped)",
    )
    # Cells that were not asked for are no reason to warn.
    cell_id = int(gx.plan_many(given[:1], tile_size=24).cells.ids[0])
    is_other = {name: np.not_equal(plane, cell_id) for name, plane in (("nucleus", NUCLEUS), ("cytosol", CYTOSOL))}
    other = {"image": IMAGE, "nucleus": NUCLEUS * is_other["nucleus"], "cytosol": CYTOSOL * is_other["cytosol"]}
    assert gx.plan_many([given[0] | {"well": "x"}, other], tile_size=24, ids=[cell_id]).warnings == ()


def test_no_cell_at_all_is_an_error():
    message = r"nucleus labels array are empty: every pixel is 0 \(background\); segment .* use --allow-empty"
    with pytest.raises(LabelError, match=message):
        gx.plan(**NO_CELL)
    with pytest.raises(LabelError, match="cytosol labels array are empty"):
        gx.plan(IMAGE, nucleus=NUCLEUS, cytosol=EMPTY)
    with pytest.raises(LabelError, match=r"as are those of all 2 slides; segment the image first"):
        gx.plan_many([NO_CELL, NO_CELL])
    with pytest.raises(InputError, match=r"no cell is left to extract; all \d+ were dropped .*\(allow_empty=True\)"):
        gx.plan(IMAGE, nucleus=NUCLEUS, tile_size=200, border="window")


@pytest.mark.parametrize("compression", list(CODECS))
@pytest.mark.parametrize("chunk_cells", [1, 16])
@pytest.mark.parametrize("layout", ["h5sc", "sparcspy"])
@pytest.mark.parametrize("given", [[NO_CELL], [NO_CELL | {"well": "A"}, NO_CELL | {"well": "B"}]])
def test_a_file_without_cells(tmp_path, given, layout, chunk_cells, compression):
    choices = {"layout": layout, "chunk_cells": chunk_cells, "compression": compression, "tile_size": 24}
    report = gx.extract_many(given, output=tmp_path / "a.h5", allow_empty=True, device="cpu", **choices)
    assert report.n_cells == 0
    assert report.warnings[0].startswith("1 slide has no cell" if len(given) == 1 else "2 slides have no cell")
    assert verify(report.path).n_cells == 0
    with gx.open_cells(report.path) as cells:
        assert len(cells) == len(cells.obs) == 0
        assert cells.read([]).shape == (0, 5, 24, 24)
        assert "nucleus" in cells.planes[0]
    name = "obsm/single_cell_images" if layout == "h5sc" else "single_cell_data"
    with h5py.File(report.path) as h5:
        assert h5[name].shape == (0, 5, 24, 24)
        assert h5[name][:].size == 0
    if layout == "h5sc":
        data = anndata.read_h5ad(report.path)
        assert data.shape == (0, 5)
        assert data.obsm["single_cell_images"].shape == (0, 5, 24, 24)


def test_nothing_left_makes_a_file_of_dropped_cells(tmp_path):
    report = gx.extract(
        IMAGE, nucleus=NUCLEUS, output=tmp_path / "a.h5sc", tile_size=200, border="window", allow_empty=True
    )
    n = len(np.unique(NUCLEUS)) - 1
    assert (report.n_cells, report.dropped) == (0, {"window leaves the slide": n})
    assert list(gx.iter_cells(**NO_CELL, allow_empty=True)) == []


def test_commands_with_no_cell(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("image.tif", IMAGE, photometric="minisblack")
    tifffile.imwrite("empty.tif", EMPTY)
    slide = ["image.tif", "--nucleus", "empty.tif"]
    code, out, err = call("run", *slide, "-o", "a.h5sc")
    assert (code, out, err.count("\n"), "--allow-empty" in err) == (1, "", 1, True)
    code, out, err = call("run", *slide, "-o", "a.h5sc", "--allow-empty")
    assert (code, "a.h5sc: 0 cells" in out) == (0, True)
    code, out, err = call("plan", *slide, "--allow-empty")
    assert (code, out.startswith("0 cells of one slide"), "1 slide has no cell: image" in err) == (0, True, True)
    code, out, _ = call("plan", *slide, "--allow-empty", "--json")
    assert (code, json.loads(out)["n_cells"]) == (0, 0)
    code, out, _ = call("info", "a.h5sc")
    assert (code, "0 cells" in out) == (0, True)
    code, out, _ = call("verify", "a.h5sc")
    assert (code, "0 cells" in out) == (0, True)
    code, out, err = call("gallery", "a.h5sc", "-o", "a.png")
    assert (code, err.count("\n"), "no cell" in err) == (1, 1, True)
