"""Several slides as one dataset, from a table."""

import anndata
import numpy as np
import pandas as pd
import pytest
import tifffile
from made.slides import small_slide

import gpu_extract as gx
from gpu_extract import SlideInput
from gpu_extract.sources.slide_table import as_slide_input, read_slide_table


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Write three slides with the same file names and their table, and change to another working directory."""
    data = tmp_path / "data"
    for n, folder in enumerate(("A1", "A2", "B1")):
        (data / folder).mkdir(parents=True)
        image, nucleus, cytosol = small_slide(n)
        for c, channel in enumerate(image):
            tifffile.imwrite(data / folder / f"ch{c}.tif", channel)
        tifffile.imwrite(data / folder / "nuclei.tif", nucleus)
        tifffile.imwrite(data / folder / "cells.tif", cytosol)
    rows = ["image,nucleus,cytosol,well,dose"]
    rows += [
        f"{f}/ch0.tif; {f}/ch1.tif; {f}/ch2.tif,{f}/nuclei.tif,{f}/cells.tif,{f},{dose}"
        for f, dose in (("A1", "0 nM"), ("A2", "10 nM"), ("B1", ""))
    ]
    (data / "table.csv").write_text("\n".join(rows) + "\n\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return data / "table.csv"


def test_a_table_becomes_one_dataset(table):
    report = gx.extract_many(read_slide_table(table), output="cells.h5sc", tile_size=24)
    obs = anndata.read_h5ad(report.path).obs
    assert list(obs["slide"].cat.categories) == ["ch0", "ch0_2", "ch0_3"]
    assert set(zip(obs["slide"], obs["well"], strict=True)) == {("ch0", "A1"), ("ch0_2", "A2"), ("ch0_3", "B1")}
    assert set(obs["dose"].dropna()) == {"0 nM", "10 nM"}
    assert set(obs["slide"][obs["dose"].isna()]) == {"ch0_3"}
    keys = list(zip(obs["slide"].cat.codes, obs["scportrait_cell_id"], strict=True))
    assert keys == sorted(keys)
    with gx.open_cells(report.path) as cells:
        for n in range(3):
            one = gx.extract(*small_slide(n)[:1], nucleus=small_slide(n)[1], cytosol=small_slide(n)[2],
                             output=f"{n}.h5sc", tile_size=24)  # fmt: skip
            with gx.open_cells(one.path) as alone:
                rows = np.flatnonzero(obs["slide"].cat.codes == n)
                assert (cells.read(rows) == alone.read(range(len(alone)))).all()
        assert cells[("ch0_2", int(cells.ids[rows[0]]))].shape == (5, 24, 24)


def test_the_command_line_takes_a_table(table, call):
    code, out, _ = call("run", "--slides", table, "-o", "cells.h5sc", "--size", 24)
    assert code == 0
    code, planned, _ = call("plan", "--slides", table, "--size", 24)
    assert (code, "cells of 3 slides" in planned) == (0, True)
    assert out.split()[1] == planned.split()[0]
    code, _, err = call("run", "image.tif", "--slides", table, "-o", "x.h5sc")
    assert (code, "were both given" in err) == (1, True)


def test_ids_and_n_cells_are_over_all_slides(table):
    slides = read_slide_table(table)
    plan = gx.plan_many(slides, tile_size=24, n_cells=5, seed=1)
    assert len(plan.cells) == 5
    cell_id = int(plan.cells.ids[0])
    plan = gx.plan_many(slides, tile_size=24, ids=[cell_id])
    assert set(plan.cells.ids.tolist()) == {cell_id}
    with pytest.raises(gx.InputError, match="1 of 1 ids asked for are not in the labels: 999"):
        gx.plan_many(slides, tile_size=24, ids=[999])


def test_a_bad_slide_stops_the_run_before_a_pixel_is_read(table):
    tifffile.imwrite(table.parent / "A2" / "nuclei.tif", np.zeros((90, 110), np.uint16))
    with pytest.raises(gx.LabelError, match=r"A2/nuclei\.tif are empty"):
        gx.extract_many(read_slide_table(table), output="cells.h5sc", tile_size=24)


@pytest.mark.parametrize("fault", ["missing", "empty"])
def test_a_bad_slide_can_be_skipped_with_a_warning(table, fault):
    path = table.parent / "A2" / "nuclei.tif"
    path.unlink()
    if fault == "empty":
        tifffile.imwrite(path, np.zeros((90, 110), np.uint16))
    report = gx.extract_many(read_slide_table(table), output="cells.h5sc", tile_size=24, on_bad_slide="skip")
    assert report.warnings[0].startswith("skipped")
    assert "A2" in report.warnings[0]
    data = anndata.read_h5ad(report.path)
    assert set(data.obs["well"]) == {"A1", "B1"}
    assert "A2" in data.uns["gpu_extract"]["notices"]


def test_slides_may_be_mappings_with_metadata():
    slides = [
        {"image": image, "nucleus": nucleus, "cytosol": cytosol, "timepoint": n}
        for n, (image, nucleus, cytosol) in enumerate(map(small_slide, range(2)))
    ]
    plan = gx.plan_many(slides, tile_size=24)
    assert [dict(slide.metadata) for slide in plan.slides] == [{"timepoint": "0"}, {"timepoint": "1"}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": small_slide(1)[0].astype(np.float32)}, "has pixels of type float32 and slide"),
        ({"image": small_slide(1)[0][:2]}, "has channels ch0, ch1 and slide"),
        ({"cytosol": None}, "has label planes nucleus and slide"),
    ],
)
def test_slides_must_have_the_same_planes_and_type(change, message):
    slides = [dict(zip(("image", "nucleus", "cytosol"), small_slide(n), strict=True)) for n in range(2)]
    slides[1].update(change)
    with pytest.raises(gx.InputError, match=message):
        gx.plan_many(slides, tile_size=24)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no slide"),
        ("image,nucleus\n", "has no slide"),
        ("picture,nucleus\na,b\n", "it needs image, and nucleus or cytosol"),
        ("image,well\na,b\n", "it needs image, and nucleus or cytosol"),
        ("image,nucleus,well,well\na,b,c,d\n", "each must have a different name"),
        ("image,nucleus\na,b,c\n", "row 2 has 3 cells for 2 columns"),
        ("image,nucleus\n,b\n", "row 2 has no image"),
        ('image,nucleus\n"a,b\n', "is not a CSV table"),
    ],
)
def test_an_invalid_table_is_an_error_of_one_line(tmp_path, text, message):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(gx.InputError, match=message) as caught:
        read_slide_table(path)
    assert "\n" not in str(caught.value)


def test_invalid_slides_are_errors():
    with pytest.raises(gx.InputError, match="no image"):
        gx.plan_many([{"nucleus": 1}])
    with pytest.raises(gx.InputError, match="there is no slide"):
        gx.plan_many([])
    with pytest.raises(gx.InputError, match="must be 'stop' or 'skip'"):
        gx.plan_many([SlideInput(1)], on_bad_slide="hide")
    with pytest.raises(gx.InputError, match="cannot be read"):
        read_slide_table("missing.csv")


def test_metadata_given_in_python_are_texts_and_may_be_missing():
    given = {"well": "01", "dose": 0.5, "day": 3, 7: True, "time": None, "depth": float("nan"), "drug": "nan"}
    expected = {"well": "01", "dose": "0.5", "day": "3", "7": "True", "time": "", "depth": "", "drug": "nan"}
    assert SlideInput("image.tif", "nucleus.tif", metadata=given).metadata == expected
    assert as_slide_input({"image": "image.tif", "nucleus": "nucleus.tif", **given}).metadata == expected
    frame = pd.DataFrame({"image": ["a.tif", "b.tif"], "dose": [0.5, None], "n": pd.array([1, None], "Int64")})
    rows = [as_slide_input(row).metadata for row in frame.to_dict("records")]
    assert rows == [{"dose": "0.5", "n": "1"}, {"dose": "", "n": ""}]
