"""Nothing that is read is ever written over, with --overwrite or without."""

import os
import shutil

import pytest

RUN = ["run", "image.tif", "--nucleus", "nucleus.tif", "--cytosol", "cytosol.tif", "--size", "24"]


@pytest.fixture
def cells(files, call):
    """Make cells.h5sc in the folder of the files."""
    assert call(*RUN, "-o", "cells.h5sc")[0] == 0
    return files


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def links(folder):
    """Make other names of the image, its copy as a leftover, and other files that a run reads."""
    shutil.copy("image.tif", "other.h5sc.partial")
    shutil.copy("nucleus.tif", "third.h5sc.journal")
    os.link("image.tif", "hard.h5sc")
    os.symlink("image.tif", "soft.h5sc")
    (folder / "ids.h5sc").write_text("1\n2\n3\n")
    (folder / "table.h5sc").write_text("image,nucleus\nimage.tif,nucleus.tif\n")


@pytest.mark.parametrize(
    "arguments",
    [
        [*RUN, "-o", "hard.h5sc"],
        [*RUN, "-o", "soft.h5sc"],
        [*RUN, "-o", "ids.h5sc", "--ids", "ids.h5sc"],
        ["plan", *RUN[1:], "-o", "ids.h5sc", "--ids", "ids.h5sc"],
        ["run", "--slides", "table.h5sc", "-o", "table.h5sc"],
        ["run", "other.h5sc.partial", *RUN[2:], "-o", "other.h5sc"],
        ["run", "image.tif", "--nucleus", "third.h5sc.journal", "-o", "third.h5sc"],
    ],
)
@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_what_a_run_reads_is_no_output(files, call, arguments, overwrite):
    links(files)
    before = contents(files)
    code, out, err = call(*arguments, *overwrite)
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    if overwrite:
        assert "one of the inputs; choose another name" in err
    assert contents(files) == before


def test_a_recipe_is_no_output(files, call):
    (files / "mine.toml").write_text("tile_size = 24\n")
    os.link("mine.toml", "mine.h5sc")
    code, _, err = call(*RUN, "--recipe", "mine.toml", "-o", "mine.h5sc", "--overwrite")
    assert (code, err) == (1, "gpu-extract: output mine.h5sc is one of the inputs; choose another name\n")


@pytest.mark.parametrize("name", ["cells.h5sc", "cells.png"])
def test_the_cells_of_a_gallery_are_not_its_picture(cells, call, name):
    os.link("cells.h5sc", "cells.png")
    before = contents(cells)
    code, _, err = call("gallery", "cells.h5sc", "-o", name, "--overwrite")
    assert (code, len(err.splitlines())) == (1, 1)
    assert contents(cells) == before
