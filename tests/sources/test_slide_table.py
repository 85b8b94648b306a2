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
    tifffile.imwrite(table.parent / "A2" / "nuclei.tif", np.full((90, 110), -1, np.int16))
    with pytest.raises(gx.LabelError, match=r"A2/nuclei\.tif hold 9900 negative pixels"):
        gx.extract_many(read_slide_table(table), output="cells.h5sc", tile_size=24)


@pytest.mark.parametrize("fault", ["missing", "negative"])
def test_a_bad_slide_can_be_skipped_with_a_warning(table, fault):
    path = table.parent / "A2" / "nuclei.tif"
    path.unlink()
    if fault == "negative":
        tifffile.imwrite(path, np.full((90, 110), -1, np.int16))
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
        ("image,nucleus\na,b,c\n", "row 2 has 3 cells for 2 columns$"),
        (
            "image;nucleus\n\n;;\na;b\n\na;b;c\n",
            r'row 6 has 3 cells for 2 columns; put .* quotes, as in "dna.tif;actin',
        ),
        ("sep=;\nimage;nucleus\na;b\n;b\n", "row 3 has no image"),
        ("image,,nucleus\na,,b\na,x,b\n", "row 3 has 'x' in a column without a name"),
        ("Image,nucleus,image\na,b,c\n", "each must have a different name"),
        ("image;nucleus;pixel_size\na;b;1.234,5\n", "row 2 has the pixel_size '1.234,5'; it must be a number"),
        ('image,nucleus,note\na,b,"two\nlines"\n,b,\n', "row 3 has no image"),
        ("image,nucleus\na,b\n \t, \n,b\n", "row 4 has no image"),
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


def test_a_file_that_is_missing_is_named_with_its_row(tmp_path, call, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image, nucleus, _ = small_slide(0)
    tifffile.imwrite("a.tif", image, photometric="minisblack")
    tifffile.imwrite("n.tif", nucleus)
    (tmp_path / "table.csv").write_text("image;nucleus\na.tif;n.tif\n\nb.tif;n.tif\n")
    code, out, err = call("run", "--slides", "table.csv", "-o", "cells.h5sc")
    assert (code, out, err) == (
        1, "", "gpu-extract: slides table.csv: row 4: image b.tif does not exist; check the path\n"
    )  # fmt: skip
    with pytest.raises(gx.SourceError, match=r"row 4: image .*b\.tif does not exist"):
        gx.plan_many(read_slide_table(tmp_path / "table.csv"))


# As Excel and other programs write tables

TABLE = """image,nucleus,cytosol,pixel_size,Well,dose
a.tif,a_n.tif,,0.65,A1,0.5
"b.tif;c.tif",b_n.tif,b_c.tif,,Wéll 2,1 µM
"""
SLIDES = [
    ("a.tif", "a_n.tif", None, 0.65, {"Well": "A1", "dose": "0.5"}),
    (["b.tif", "c.tif"], "b_n.tif", "b_c.tif", None, {"Well": "Wéll 2", "dose": "1 µM"}),
]


def read(path):
    """Return the slides of a table, with paths relative to its folder."""

    def relative(given):
        if isinstance(given, list):
            return [relative(each) for each in given]
        return None if given is None else str(given.relative_to(path.parent))

    return [
        (relative(each.image), relative(each.nucleus), relative(each.cytosol), each.pixel_size, dict(each.metadata))
        for each in read_slide_table(path)
    ]


FORMS = {
    "as it is": TABLE,
    "semicolons": TABLE.replace(",", ";"),
    "semicolons and decimal commas": TABLE.replace(",", ";").replace("0.65", "0,65"),
    "quoted decimal comma": TABLE.replace("0.65", '"0,65"'),
    "tabs": TABLE.replace(",", "\t"),
    "sep": "sep=;\n" + TABLE.replace(",", ";"),
    "quoted sep": '"sep=,",,\n' + TABLE,
    "another sep": "sep=|\n" + TABLE.replace(",", "|"),
    "trailing commas": TABLE.replace("\n", ",,\n"),
    "empty column": TABLE.replace(",cyto", ",,cyto").replace("a_n.tif,", "a_n.tif,,").replace("b_n.tif,", "b_n.tif,,"),
    "empty rows": TABLE.replace("\n", "\n\n,,,,,\n \n"),
    "capitals": TABLE.replace("image", "Image").replace("nucleus", "NUCLEUS").replace("pixel_size", "Pixel Size"),
    "spaces": TABLE.replace(",", " , ").replace('" ,', '",'),
    "quotes": "\n".join(",".join(f'"{cell.strip(chr(34))}"' for cell in row.split(",")) for row in TABLE.splitlines()),
    "Windows": TABLE.replace("\n", "\r\n"),
    "old Macintosh": TABLE.replace("\n", "\r"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "cp1252"])
def test_tables_are_read_as_programs_write_them(tmp_path, form, encoding):
    text = FORMS[form]
    content = text.encode(encoding) if encoding != "utf-16-be" else b"\xfe\xff" + text.encode(encoding)
    (tmp_path / "table.csv").write_bytes(content)
    assert read(tmp_path / "table.csv") == SLIDES


def test_cells_left_out_at_the_end_of_a_row_are_empty(tmp_path):
    (tmp_path / "table.csv").write_text("image,nucleus,cytosol,well\na.tif,n.tif\nb.tif,n.tif,c.tif,B1\n")
    assert read(tmp_path / "table.csv") == [
        ("a.tif", "n.tif", None, None, {"well": ""}),
        ("b.tif", "n.tif", "c.tif", None, {"well": "B1"}),
    ]


def test_urls_and_names_of_labels_stay(tmp_path):
    (tmp_path / "table.csv").write_text("image,nucleus\nhttps://x.org/a.zarr,nuclei\n/data/b.zarr,n.tif\n~/c.tif,n/m\n")
    first, second, third = read_slide_table(tmp_path / "table.csv")
    assert (first.image, first.nucleus) == ("https://x.org/a.zarr", "nuclei")
    assert (str(second.image), second.nucleus) == ("/data/b.zarr", tmp_path / "n.tif")
    assert (third.image.is_absolute(), "~" in str(third.image)) == (True, False)
    assert third.nucleus == tmp_path / "n/m"


@pytest.mark.parametrize("magic", [b"PK\x03\x04", b"\xd0\xcf\x11\xe0"])
def test_workbooks_are_refused(tmp_path, magic):
    (tmp_path / "table.xlsx").write_bytes(magic + bytes(100))
    with pytest.raises(gx.InputError, match="is a workbook of Excel or another program; save it as CSV"):
        read_slide_table(tmp_path / "table.xlsx")


@pytest.mark.parametrize("content", [b"image,nucleus\na\0,b\n", b"\xff\xfea", b"\x81\x8d"])
def test_files_that_are_no_text_are_refused(tmp_path, content):
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(gx.InputError, match="is not a CSV table") as caught:
        read_slide_table(tmp_path / "table.csv")
    assert "\n" not in str(caught.value)


def test_metadata_given_in_python_are_texts_and_may_be_missing():
    given = {"well": "01", "dose": 0.5, "day": 3, 7: True, "time": None, "depth": float("nan"), "drug": "nan"}
    expected = {"well": "01", "dose": "0.5", "day": "3", "7": "True", "time": "", "depth": "", "drug": "nan"}
    assert SlideInput("image.tif", "nucleus.tif", metadata=given).metadata == expected
    assert as_slide_input({"image": "image.tif", "nucleus": "nucleus.tif", **given}).metadata == expected
    frame = pd.DataFrame({"image": ["a.tif", "b.tif"], "dose": [0.5, None], "n": pd.array([1, None], "Int64")})
    rows = [as_slide_input(row).metadata for row in frame.to_dict("records")]
    assert rows == [{"dose": "0.5", "n": "1"}, {"dose": "", "n": ""}]
