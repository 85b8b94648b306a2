"""What holds for all tests."""

import sys

import pytest
import tifffile
from hypothesis import settings
from made.slides import small_slide

from gpu_extract import cli

# A commit is green or red, whenever it is tested. ``pytest --hypothesis-profile=explore`` draws other examples.
settings.register_profile("explore", derandomize=False)
settings.register_profile("same", derandomize=True)
settings.load_profile("same")


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with a slide as files, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    image, nucleus, cytosol = small_slide(4)
    tifffile.imwrite("image.tif", image, photometric="minisblack")
    tifffile.imwrite("nucleus.tif", nucleus)
    tifffile.imwrite("cytosol.tif", cytosol)
    return tmp_path


@pytest.fixture
def call(monkeypatch, capsys):
    """Call the command line; gives (exit code, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["gpu-extract", *map(str, arguments)])
        # A terminal as wide as the longest line, so that help and usage are not wrapped.
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        captured = capsys.readouterr()
        return exit_.value.code, captured.out, captured.err

    return call
