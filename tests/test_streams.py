"""Output streams that cannot be written: a full disk under a log, a pipe that is closed, a terminal without letters."""

import os
import subprocess
import sys

import pytest

import gpu_extract as gx

SLIDE = ["image.tif", "--nucleus", "nucleus.tif", "--cytosol", "cytosol.tif", "--size", "24", "--device", "reference"]
FULL = "/dev/full"

pytestmark = pytest.mark.skipif(not os.path.exists(FULL), reason=f"there is no {FULL} on this system")


def call(*arguments, **streams):
    """Return the exit code, and what is printed on stderr unless that is one of the streams."""
    command = [sys.executable, "-m", "gpu_extract", *arguments]
    done = subprocess.run(command, check=False, text=True, **({"stderr": subprocess.PIPE} | streams))
    return done.returncode, done.stderr


def test_a_run_is_complete_though_its_report_cannot_be_printed(files):
    with open(FULL, "w") as full:
        code, err = call("run", *SLIDE, "-o", "cells.h5sc", "-q", stdout=full)
    assert code == 0
    assert "gpu-extract: cells.h5sc is complete; its report is not printed: No space left on device" in err
    assert "Traceback" not in err
    with gx.open_cells("cells.h5sc") as cells:
        assert len(cells) == 17


def test_a_log_on_a_full_disk_stops_nothing(files):
    with open(FULL, "w") as full:
        assert call("run", *SLIDE, "-o", "cells.h5sc", stdout=full, stderr=full)[0] == 0
    assert (files / "cells.h5sc").exists()


def test_results_that_cannot_be_printed_are_an_error_of_one_line():
    with open(FULL, "w") as full:
        code, err = call("doctor", stdout=full)
    assert (code, len(err.splitlines())) == (1, 1)
    assert "No space left on device" in err


def test_a_closed_pipe_gets_no_traceback(files):
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "w") as pipe:
        code, err = call("run", *SLIDE, "-o", "cells.h5sc", "-q", stdout=pipe)
    assert (code, "Traceback" in err, "Exception ignored" in err) == (0, False, False)
    assert (files / "cells.h5sc").exists()


def test_a_terminal_without_letters(files):
    environment = dict(os.environ, PYTHONIOENCODING="ascii")
    code, err = call("run", *SLIDE, "-o", "zäh.h5sc", "-q", env=environment, stdout=subprocess.DEVNULL)
    assert (code, "Traceback" in err) == (0, False)
    assert (files / "zäh.h5sc").exists()
