"""Slides given by a pattern of file names, and slides that are listed twice."""

import h5py
import numpy as np
import pytest
import tifffile
from made.slides import small_slide
from made.stores import write_ome_zarr

import gpu_extract as gx
from gpu_extract import SlideInput, match_slides
from gpu_extract.errors import InputError

IMAGE, NUCLEUS, CYTOSOL = small_slide(0)


@pytest.fixture
def plate(tmp_path, monkeypatch):
    """Write three fields as files, in one folder per kind, among other files."""
    for folder in ("img", "seg"):
        (tmp_path / folder).mkdir()
    for n, field in enumerate(("A1_f1", "A1_f2", "B2_f1")):
        image, nucleus, cytosol = small_slide(n)
        tifffile.imwrite(tmp_path / "img" / f"{field}_dna.tif", image[0])
        tifffile.imwrite(tmp_path / "img" / f"{field}_actin.tif", image[1])
        tifffile.imwrite(tmp_path / "seg" / f"{field}_nuc.tif", nucleus)
        tifffile.imwrite(tmp_path / "seg" / f"{field}_cell.tif", cytosol)
    (tmp_path / "img" / "notes.txt").write_text("")
    (tmp_path / "img" / "._A1_f1_dna.tif").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_each_matching_file_is_a_slide(plate):
    slides = match_slides("img/*_dna.tif", nucleus="seg/*_nuc.tif", cytosol="seg/*_cell.tif")
    assert slides == [
        SlideInput(f"img/{field}_dna.tif", f"seg/{field}_nuc.tif", f"seg/{field}_cell.tif", name=field)
        for field in ("A1_f1", "A1_f2", "B2_f1")
    ]
    planned = gx.plan_many(slides, tile_size=24)
    assert [slide.name for slide in planned.slides] == ["A1_f1", "A1_f2", "B2_f1"]


def test_a_pattern_may_have_several_stars_channels_and_selectors(plate):
    slides = match_slides("img/*_*_dna.tif#c=0; img/*_*_actin.tif", nucleus="seg/*_*_nuc.tif#c=0")
    assert slides[2] == SlideInput(
        ["img/B2_f1_dna.tif#c=0", "img/B2_f1_actin.tif"],
        "seg/B2_f1_nuc.tif#c=0",
        name="B2_f1",
        channel_names=("dna", "actin"),
    )
    planned = gx.plan_many(slides, tile_size=24, channels=["actin"], nuclear_channel="none")
    assert [slide.channel_names for slide in planned.slides] == [("actin",)] * 3
    np.testing.assert_array_equal(planned.slides[2].read((0, 0, 90, 110)).image[0], small_slide(2)[0][1])
    assert gx.plan_many(slides, tile_size=24, channel_names=["a", "b"]).slides[0].channel_names == ("a", "b")
    assert len(match_slides("*/A1_*_nuc.tif", nucleus="*/A1_*_nuc.tif")) == 2


def test_the_command_line_takes_a_pattern(plate, call):
    pattern = ["--slides", "img/*_dna.tif", "--nucleus", "seg/*_nuc.tif", "--size", 24]
    code, out, _ = call("run", *pattern, "-o", "cells.h5sc")
    assert code == 0
    with gx.open_cells("cells.h5sc") as cells:
        assert list(cells.obs["slide"].cat.categories) == ["A1_f1", "A1_f2", "B2_f1"]
    code, out, _ = call("plan", *pattern)
    assert (code, "cells of 3 slides" in out) == (0, True)
    code, out, err = call("plan", *pattern, "img/A1_f1_dna.tif")
    assert (code, out, err.count("\n"), "in quotes" in err) == (1, "", 1, True)
    code, out, err = call("plan", "--slides", "img/A1_f1_dna.tif", "img/A1_f2_dna.tif")  # expanded by a shell
    assert (code, out, err.count("\n"), "in quotes" in err) == (1, "", 1, True)


def test_label_planes_may_be_names_in_the_store_of_each_slide(plate):
    for name in "ab":
        write_ome_zarr(plate / f"{name}.zarr", IMAGE, labels={"dots": NUCLEUS})
    slides = match_slides("*.zarr", nucleus="dots")
    assert [(slide.nucleus, slide.name) for slide in slides] == [("dots", "a"), ("dots", "b")]
    assert len(gx.plan_many(slides, tile_size=24).slides) == 2


def test_a_pattern_may_contain_datasets_and_brackets(plate):
    for name in ("a[1]", "a[2]"):
        with h5py.File(plate / f"{name}.h5", "w") as h5:
            h5["image"], h5["nuclei"] = IMAGE, NUCLEUS
    slides = match_slides("a[*].h5:/image", nucleus="a[*].h5:/nuclei")
    assert [(slide.image, slide.name) for slide in slides] == [("a[1].h5:/image", "1"), ("a[2].h5:/image", "2")]
    assert len(gx.plan_many(slides, tile_size=24).slides) == 2


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*/dna.tif;*/actin.tif", ("dna", "actin")),
        ("*_w1.ome.tif; *_w2.ome.tif", ("w1", "w2")),
        ("w1-*.tif;w2-*.tif", ("w1", "w2")),
        ("*/a/1.tif;*/b/1.tif", None),  # equal names are not used
        ("w1/*.tif;w2/*.tif", None),
        ("*.tif", None),  # one file, whose channels have their own names
    ],
)
def test_channels_are_named_by_the_parts_in_which_patterns_differ(tmp_path, monkeypatch, pattern, names):
    monkeypatch.chdir(tmp_path)
    for path in pattern.replace("*", "X").split(";"):
        (tmp_path / path.strip()).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path.strip()).write_text("")
    (slide,) = match_slides(pattern, nucleus="n")
    assert slide.channel_names == names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["img/*_rna.tif", "seg/*_nuc.tif"], r"no file matches the images img/\*_rna\.tif; check the pattern"),
        (
            ["img/*_dna.tif", "seg/*_x.tif"],
            r"slide A1_f1 has no nucleus: there is no seg/A1_f1_x\.tif \(of",
        ),
        (["img/*_dna.tif;img/*_x.tif", "seg/*_nuc.tif"], r"slide A1_f1 has no image: there is no img/A1_f1_x\.tif"),
        (["img/*_dna.tif", "seg/A1_f1_nuc.tif"], r"nucleus seg/A1_f1_nuc\.tif must have the same \* as images img/"),
        (["img/*_dna.tif", "seg/*_*_nuc.tif"], r"nucleus seg/\*_\*_nuc\.tif must have the same \*"),
        (["img/**/a.tif", None], r"\*\* is not allowed"),
    ],
)
def test_a_pattern_without_a_match_is_an_error_of_one_line(plate, arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        match_slides(arguments[0], nucleus=arguments[1])
    assert "\n" not in str(caught.value)


# Listed twice


@pytest.mark.parametrize(
    "again", [{"image": "img/A1_f1_dna.tif"}, {"image": "./img/../img/A1_f1_dna.tif"}, {"dose": "2"}]
)
def test_a_slide_that_is_listed_twice_is_an_error(plate, again):
    slide = {"image": "img/A1_f1_dna.tif", "nucleus": "seg/A1_f1_nuc.tif"}
    with pytest.raises(InputError, match=r"A1_f1_dna\.tif is listed twice, with the same label planes") as caught:
        gx.plan_many([slide, slide | {"image": "img/A1_f2_dna.tif"}, slide | again])
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="is listed twice"):
        gx.plan_many([slide, slide | again], on_bad_slide="skip")


def test_a_table_that_lists_a_slide_twice_is_an_error(plate, call):
    (plate / "table.csv").write_text("image,nucleus,well\n" + "img/A1_f1_dna.tif,seg/A1_f1_nuc.tif,A1\n" * 2)
    code, out, err = call("run", "--slides", "table.csv", "-o", "cells.h5sc", "--size", 24)
    assert (code, out, err.count("\n"), "is listed twice" in err) == (1, "", 1, True)
    assert not (plate / "cells.h5sc").exists()


def test_other_label_planes_or_selectors_make_another_slide(plate):
    slide = {"image": "img/A1_f1_dna.tif", "nucleus": "seg/A1_f1_nuc.tif"}
    others = [slide, slide | {"nucleus": "seg/A1_f1_cell.tif"}, slide | {"image": "img/A1_f1_dna.tif#c=0"}]
    assert len(gx.plan_many(others, tile_size=24).slides) == 3
    arrays = {"image": IMAGE, "nucleus": NUCLEUS}
    assert len(gx.plan_many([arrays, arrays], tile_size=24).slides) == 2


def test_a_table_has_pixel_sizes(plate):
    table = plate / "table.csv"
    rows = [f"img/A1_f{n}_dna.tif,seg/A1_f{n}_nuc.tif,{size},A1\n" for n, size in ((1, 0.5), (2, ""))]
    table.write_text("image,nucleus,pixel_size,well\n" + "".join(rows))
    slides = gx.read_slide_table(table)
    assert [slide.pixel_size for slide in slides] == [0.5, None]
    planned = gx.plan_many(slides, tile_size=24, pixel_size=0.4)
    assert [slide.pixel_size for slide in planned.slides] == [(0.5, 0.5), (0.4, 0.4)]
    assert [dict(slide.metadata) for slide in planned.slides] == [{"well": "A1"}] * 2
    table.write_text("image,nucleus,pixel_size\n" + "img/A1_f1_dna.tif,seg/A1_f1_nuc.tif,wide\n")
    with pytest.raises(InputError, match=r"row 2 has the pixel_size 'wide'; it must be a number of um per pixel"):
        gx.read_slide_table(table)
    table.write_text("image,nucleus,pixel_size\n" + "img/A1_f1_dna.tif,seg/A1_f1_nuc.tif,-1\n")
    with pytest.raises(InputError, match="must be a positive number of um"):
        gx.plan_many(gx.read_slide_table(table))
