"""Whatever way cells are asked for, the checks come before: run, extract, iter_cells and plan."""

import numpy as np
import pytest
import tifffile
from made.mistakes import ht29_planes, moved, numbered_anew, round_cells, without
from made.slides import as_slide

from gpu_extract import InputError, LabelError, Recipe, extract, iter_cells, plan, survey
from gpu_extract.planning import make_plan, with_checked_images

IMAGE, NUCLEUS, CYTOSOL = ht29_planes()
APART = numbered_anew(without(NUCLEUS, [50, 120, 200])), numbered_anew(CYTOSOL)


def plan_of(*planes, image=IMAGE, trust=(), **recipe):
    return make_plan([as_slide(image, *planes)], Recipe(**recipe), trust=trust)


def test_planes_that_were_numbered_apart_are_refused_everywhere(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    for name, plane in zip(("image", "nucleus", "cytosol"), (IMAGE, *APART), strict=True):
        tifffile.imwrite(f"{name}.tif", plane.astype(np.uint16), photometric="minisblack")
    planes = {"nucleus": "nucleus.tif", "cytosol": "cytosol.tif"}
    for ask in (
        lambda: plan("image.tif", **planes),
        lambda: extract("image.tif", output="out.h5sc", device="cpu", **planes),
        lambda: iter_cells("image.tif", device="cpu", **planes),
    ):
        with pytest.raises(LabelError, match=r"share no pixel.*--match overlap.*--trust ids"):
            ask()
    options = ["image.tif", "--nucleus", "nucleus.tif", "--cytosol", "cytosol.tif", "--device", "cpu"]
    for command in (["run", *options, "-o", "out.h5sc"], ["plan", *options]):
        code, _, stderr = call(*command)
        assert code == 1
        assert "--match overlap" in stderr
        assert len(stderr.strip().splitlines()) == 1
    assert not list(tmp_path.glob("out*"))
    assert call("run", *options, "-o", "out.h5sc", "--match", "overlap", "--quiet")[0] == 0


def test_labels_that_are_mirrored_against_the_image_are_refused_before_cells_are_written(tmp_path):
    nucleus = np.ascontiguousarray(NUCLEUS[::-1])
    with pytest.raises(LabelError, match=r"upside down against image.*--trust placement"):
        extract(IMAGE, nucleus=nucleus, output=tmp_path / "out.h5sc", device="cpu")
    with pytest.raises(LabelError, match="upside down against image"):
        iter_cells(IMAGE, nucleus=nucleus, device="cpu")
    assert not list(tmp_path.iterdir())


def test_warnings_are_in_the_report(tmp_path):
    image = np.concatenate([IMAGE, (NUCLEUS > 0)[np.newaxis].astype(np.uint8)])
    report = extract(image, nucleus=NUCLEUS, cytosol=CYTOSOL, output=tmp_path / "out.h5sc", device="cpu")
    assert [line for line in report.warnings if "channel ch3 of array is a mask of two values" in line]


def several_mistakes(folder):
    """Files of a slide with a shift, slices, a wrong pixel size and stray pixels; and the options that name them."""
    image = np.stack([IMAGE[0], IMAGE[0], IMAGE[2]]).astype(np.uint16)
    nucleus, cytosol = moved(NUCLEUS, 6, -4), moved(CYTOSOL, 6, -4)
    cytosol[5, 5] = 200
    for name, plane in (("image", image), ("nucleus", nucleus), ("cytosol", cytosol)):
        tifffile.imwrite(folder / f"{name}.tif", plane.astype(np.uint16), photometric="minisblack")
    return folder / "image.tif", {"nucleus": folder / "nucleus.tif", "cytosol": folder / "cytosol.tif"}


def test_run_and_plan_say_the_same_word_for_word(tmp_path, call):
    image, planes = several_mistakes(tmp_path)
    options = {**planes, "pixel_size": 50, "device": "cpu"}
    planned = plan(image, pixel_size=50, **planes).warnings
    for part in ("shifted by about 6, -4", "equal to channel ch0", "median diameter", "far-apart components"):
        assert len([line for line in planned if part in line]) == 1, (part, planned)
    assert survey(image, **options).plan.warnings == planned
    report = extract(image, output=tmp_path / "a.h5sc", **options)
    assert report.warnings[: len(planned)] == planned
    arguments = [image, "--nucleus", planes["nucleus"], "--cytosol", planes["cytosol"], "--pixel-size", 50]
    for command in (["plan"], ["run", "-o", tmp_path / "b.h5sc", "--quiet"]):
        code, stdout, stderr = call(*command, *arguments, "--device", "cpu")
        assert code == 0
        told = [line.removeprefix("warning: ") for line in stderr.splitlines() if line.startswith("warning: ")]
        assert tuple(told[: len(planned)]) == planned
        assert "far-apart" not in stdout


def test_what_is_trusted_is_in_the_plan():
    with pytest.raises(LabelError):
        plan_of(*APART)
    planned = plan_of(*APART, trust=["ids"])
    assert len(planned.trusted) == 1
    assert planned.trusted[0].startswith("ids: nucleus and cytosol of one id share no pixel")
    assert any("accepted by --trust ids" in line for line in planned.warnings)
    upside_down = plan_of(NUCLEUS[::-1].copy(), CYTOSOL[::-1].copy())
    with pytest.raises(LabelError):
        with_checked_images(upside_down)
    trusted = with_checked_images(upside_down, ["placement"])
    assert [line.split(":")[0] for line in trusted.trusted] == ["placement"]
    assert upside_down.trusted == ()


def test_labels_are_judged_before_their_largest_component_is_taken():
    with pytest.raises(LabelError, match="are a mask"):
        plan_of((NUCLEUS > 0).astype(np.uint8), pieces="largest")


def test_cells_that_are_none_do_not_say_how_large_a_tile_should_be(tmp_path):
    image, nucleus, cytosol = round_cells()
    becomes = np.array([0, 1, 2, 3, 4, 6, 5])  # two of six lie apart
    planned = plan_of(becomes[nucleus], cytosol, image=image, tile_size=16)
    assert planned.sure().tolist() == [True] * 4 + [False] * 2
    assert planned.fitting_tile_size(1.0) == plan_of(nucleus, cytosol, image=image).fitting_tile_size(1.0)
    swapped = np.roll(np.arange(7), 3)
    swapped[swapped == 0], swapped[0] = swapped[0], 0
    planned = plan_of(swapped[nucleus], cytosol, image=image, tile_size=16, trust=["ids"])
    assert not planned.sure().any()
    assert planned.fitting_tile_size(1.0) > 60  # all that there is


def test_no_tile_size_is_suggested_by_cells_that_are_none(tmp_path):
    image, nucleus, cytosol = round_cells()
    becomes = np.array([0, 1, 2, 3, 4, 6, 5])
    report = extract(
        image, nucleus=becomes[nucleus], cytosol=cytosol, output=tmp_path / "a.h5sc", device="cpu", tile_size=32
    )
    cut = [line for line in report.warnings if "cut off" in line]
    assert cut == ["2 of 6 cells do not fit in a tile of 32 pixels and are cut off"]
    report = extract(
        image, nucleus=becomes[nucleus], cytosol=cytosol, output=tmp_path / "b.h5sc", device="cpu", tile_size=16
    )
    line = "6 of 6 cells do not fit in a tile of 16 pixels and are cut off; 99 % need 22, all need 22"
    assert line in report.warnings


def test_an_empty_plane_has_its_own_line():
    with pytest.raises(InputError, match="are empty: every pixel is 0"):
        plan_of(np.zeros_like(NUCLEUS), CYTOSOL)
