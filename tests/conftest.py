"""Settings and fixtures for all tests."""

import sys

import pytest
import tifffile
from hypothesis import settings
from made.slides import small_slide

from gpu_extract import cli

# The same examples in each run, so that a commit always passes or always fails.
# ``pytest --hypothesis-profile=explore`` draws other examples.
settings.register_profile("explore", derandomize=False)
settings.register_profile("same", derandomize=True)
settings.load_profile("same")


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Make a folder with the files of a slide, and make it the working directory."""
    monkeypatch.chdir(tmp_path)
    image, nucleus, cytosol = small_slide(4)
    tifffile.imwrite("image.tif", image, photometric="minisblack")
    tifffile.imwrite("nucleus.tif", nucleus)
    tifffile.imwrite("cytosol.tif", cytosol)
    return tmp_path


@pytest.fixture
def call(monkeypatch, capsys):
    """Return a function that calls the command line and returns (exit code, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["gpu-extract", *map(str, arguments)])
        # A wide terminal, so that help and usage are not wrapped.
        monkeypatch.setenv("COLUMNS", "200")
        # However slow the machine is, the log of a short call has no phases.
        monkeypatch.setattr("gpu_extract.progress.TICK", 3600)
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        captured = capsys.readouterr()
        return exit_.value.code, captured.out, captured.err

    return call
