"""Cells that would be too large or too small for cells with the pixel size that is used."""

import pytest
import tifffile
from made.mistakes import ht29_planes

from gpu_extract import LabelError, plan, plan_many

IMAGE, NUCLEUS, CYTOSOL = ht29_planes()


def sizes(planned):
    return [line for line in planned.warnings if "median diameter" in line]


@pytest.mark.parametrize(("pixel_size", "diameter"), [(0.01, "0.234"), (0.003, "0.0703"), (5, "117"), (50, "1.17e+03")])
def test_a_pixel_size_that_makes_giants_or_crumbs_is_told_of(pixel_size, diameter):
    (line,) = sizes(plan(IMAGE, cytosol=CYTOSOL, pixel_size=pixel_size))
    assert line == (
        f"cells of slide slide have a median diameter of {diameter} um with pixels of {pixel_size} um (as given); "
        "the pixel size is likely wrong: give it in um with --pixel-size (pixel_size=)"
    )


@pytest.mark.parametrize("pixel_size", [0.05, 0.325, 1, 3.5, (0.3, 0.4)])
def test_cells_of_1_to_100_um_pass(pixel_size):
    assert sizes(plan(IMAGE, nucleus=NUCLEUS, cytosol=CYTOSOL, pixel_size=pixel_size)) == []


def test_without_a_pixel_size_nothing_is_said():
    assert sizes(plan(IMAGE, nucleus=NUCLEUS)) == []


def test_the_file_that_states_it_is_named(tmp_path):
    metadata = {"axes": "CYX", "PhysicalSizeX": 30, "PhysicalSizeY": 30}
    tifffile.imwrite(tmp_path / "a.ome.tif", IMAGE, metadata=metadata, photometric="minisblack")
    (line,) = sizes(plan(tmp_path / "a.ome.tif", nucleus=NUCLEUS))
    assert "with pixels of 30 um (OME-XML)" in line


def test_resampled_cells_are_as_large_as_before():
    (line,) = sizes(plan(IMAGE, cytosol=CYTOSOL, pixel_size=50, scale=100))
    assert "with pixels of 50 um (as given)" in line
    assert sizes(plan(IMAGE, cytosol=CYTOSOL, pixel_size=0.3, scale=0.6)) == []


def test_several_slides_are_one_line():
    slides = [{"image": IMAGE[:, k:], "nucleus": NUCLEUS[k:], "pixel_size": 50} for k in range(3)]
    (line,) = sizes(plan_many([*slides, {"image": IMAGE[:, :400], "nucleus": NUCLEUS[:400], "pixel_size": 0.3}]))
    assert "(and alike in 2 more slides: " in line


def test_slides_of_other_magnifications_are_told_of():
    small = {"image": IMAGE[:, ::3, ::3], "nucleus": NUCLEUS[::3, ::3]}
    large = {"image": IMAGE, "nucleus": NUCLEUS}
    (line,) = [line for line in plan_many([large, small]).warnings if "magnification" in line]
    assert line == (
        "cells of slide slide have a median diameter of 10.4 pixels and those of slide slide_2 of 3.57, as at another "
        "magnification; give the pixel sizes, and bring all slides to one with --scale UM (scale=)"
    )
    known = plan_many([large | {"pixel_size": 0.5}, small | {"pixel_size": 1.5}]).warnings
    assert not [line for line in known if "magnification" in line]
    (line,) = [line for line in plan_many([large, large | {"nucleus": CYTOSOL}]).warnings if "magnification" in line]
    assert "of 23.4 pixels and those of slide slide of 10.4" in line
    part = {"image": IMAGE[:, :300], "nucleus": NUCLEUS[:300]}
    assert not [line for line in plan_many([large, part]).warnings if "magnification" in line]


@pytest.mark.parametrize("lengths", [{"tile_size_um": 40}, {"scale": 0.6}])
def test_lengths_in_um_by_a_wrong_pixel_size_of_a_file_are_an_error(tmp_path, lengths):
    metadata = {"axes": "CYX", "PhysicalSizeX": 6.5, "PhysicalSizeY": 6.5}
    tifffile.imwrite(tmp_path / "a.ome.tif", IMAGE, metadata=metadata, photometric="minisblack")
    with pytest.raises(LabelError) as error:
        plan(tmp_path / "a.ome.tif", nucleus=NUCLEUS, cytosol=CYTOSOL, **lengths)
    assert str(error.value) == (
        "cells of slide a have a median diameter of 152 um with pixels of 6.5 um (OME-XML); "
        "the pixel size is likely wrong: give it in um with --pixel-size (pixel_size=)"
    )
    assert sizes(plan(tmp_path / "a.ome.tif", nucleus=NUCLEUS, cytosol=CYTOSOL, pixel_size=0.325, **lengths)) == []


def test_doubts_about_a_pixel_size_are_settled_by_giving_one(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", IMAGE[0], resolution=(1550, 1550), resolutionunit="CENTIMETER")
    doubts = [line for line in plan(tmp_path / "a.tif", nucleus=NUCLEUS).warnings if "camera" in line]
    assert len(doubts) == 1
    assert plan(tmp_path / "a.tif", nucleus=NUCLEUS, pixel_size=0.325).warnings == ()
