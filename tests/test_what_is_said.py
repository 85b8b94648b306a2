"""What Python and the command line say while they work: phases, warnings, and what a stopped run keeps."""

import logging
import re
import warnings

import pytest
from made.slides import small_slide

import gpu_extract as gx
from gpu_extract import cli, messages

RUN = ["run", "image.tif", "--nucleus", "nucleus.tif", "--cytosol", "cytosol.tif", "-o", "cells.h5sc"]
PHASES = [
    "opening input 1 of 1",
    "reading the labels of slide 1 of 1",
    "planning",
    "checking the images",
    "extracting 6 cells",
    "finishing the file",
]


@pytest.fixture
def slide():
    """Return the arguments of a slide whose cells are cut off by a tile of 8 pixels."""
    image, nucleus, cytosol = small_slide(4)
    return {
        "image": image,
        "nucleus": nucleus,
        "cytosol": cytosol,
        "tile_size": 8,
        "border": "keep",
        "ids": range(1, 7),
    }


def test_the_command_line_says_what_it_did(files, call):
    (files / "ids.csv").write_text("1\n2\n3\n4\n5\n6\n")
    code, out, err = call(*RUN, "--size", "8", "--border", "keep", "--ids", "ids.csv")
    assert code == 0
    assert "6 of 6 cells" in err
    assert err.index("warning: 5 of 6 cells do not fit") < err.index("6 of 6 cells\n")  # in time to stop
    assert " s in all, " in out
    assert "; extraction " in out


def test_progress_true_shows_the_cells(slide, tmp_path, capsys):
    with pytest.warns(gx.ExtractionWarning):
        gx.extract(**slide, output=tmp_path / "cells.h5sc", progress=True)
    assert "6 of 6 cells" in capsys.readouterr().err


def test_extract_is_silent_on_stderr_without_progress(slide, tmp_path, capsys):
    with pytest.warns(gx.ExtractionWarning):
        gx.extract(**slide, output=tmp_path / "cells.h5sc")
    assert capsys.readouterr().err == ""


def test_phases_and_warnings_go_to_the_logger(slide, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "gpu_extract"), pytest.warns(gx.ExtractionWarning):
        report = gx.extract(**slide, output=tmp_path / "cells.h5sc")
    said = {
        level: [r.message for r in caplog.records if r.levelno == level] for level in (logging.INFO, logging.WARNING)
    }
    assert [line for line in said[logging.INFO] if line in PHASES] == PHASES
    assert said[logging.WARNING] == list(report.warnings)


def test_a_logger_without_handlers_prints_nothing(capfd):
    with pytest.warns(gx.ExtractionWarning):
        messages.warn(["look"])
    assert capfd.readouterr() == ("", "")


def test_each_warning_of_a_report_is_a_python_warning_at_the_place_of_the_call(slide, tmp_path):
    with pytest.warns(gx.ExtractionWarning) as issued:
        report = gx.extract(**slide, output=tmp_path / "cells.h5sc")
    assert [str(each.message) for each in issued] == list(report.warnings)
    assert {each.filename for each in issued} == {__file__}


@pytest.mark.parametrize("function", [gx.plan, gx.survey, gx.iter_cells])
def test_warnings_about_the_input_are_issued_by_every_function(slide, function):
    with pytest.warns(gx.ExtractionWarning, match="if DAPI is the nuclear stain") as issued:
        function(slide.pop("image"), **slide, channel_names=["actin", "DAPI", "pH3"])
    assert {each.filename for each in issued} == {__file__}


@pytest.mark.filterwarnings("error::gpu_extract.errors.ExtractionWarning")
def test_a_warning_about_the_input_may_be_made_an_error(slide, tmp_path):
    with pytest.raises(gx.ExtractionWarning, match="nuclear stain"):
        gx.extract(**slide, channel_names=["actin", "DAPI", "pH3"], output=tmp_path / "cells.h5sc")
    assert not list(tmp_path.iterdir())


def interrupt(*values):
    raise KeyboardInterrupt


def test_an_interrupted_extract_says_what_was_kept(slide, tmp_path):
    output = tmp_path / "cells.h5sc"
    with pytest.raises(KeyboardInterrupt) as stop:
        gx.extract(**slide, output=output, progress=interrupt)
    assert re.match(rf"stopped at \d of 6 cells, which are kept in {output}.partial; ", str(stop.value))
    assert not output.exists()


def test_an_extract_that_is_interrupted_at_once_says_so(slide, tmp_path, monkeypatch):
    monkeypatch.setattr("gpu_extract.pipeline.checked_limits", interrupt)
    with pytest.raises(KeyboardInterrupt, match="stopped before any cell was written"):
        gx.extract(**slide, output=tmp_path / "cells.h5sc")
    assert not list(tmp_path.iterdir())


def test_other_warnings_are_shown_as_ever(capsys):
    with pytest.warns(UserWarning, match="something else"), cli._printed_warnings():
        warnings.warn("something else", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == ""


def test_which_channel_is_cut_with_the_nucleus_mask_is_said(files, call):
    line = "channel ch0 is cut with the nucleus mask, the others with the cytosol mask"
    assert line in call(*RUN, "--size", "24")[1].splitlines()
    assert line in call("plan", *RUN[1:6], "--size", "24")[1].splitlines()
    for silent in (["--raw"], ["--nuclear-channel", "none"]):
        assert "nucleus mask" not in call(*RUN, "--size", "24", "--overwrite", *silent)[1]
    nuclei = [*RUN[:4], *RUN[6:]]
    assert "nucleus mask" not in call(*nuclei, "--size", "24", "--overwrite")[1]
