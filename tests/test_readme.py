"""The code of the README, of ``docs`` and of the help runs as it stands."""

import glob
import re
import shlex
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import skimage.measure
import skimage.morphology
import tifffile
from made.classic_files import write_classes, write_segmentation
from made.stores import write_ome_zarr

import gpu_extract as gx
from gpu_extract import backends, cli, demo_data
from gpu_extract.backends.cpu import warm

PROJECT = Path(__file__).parents[1]
PAGES = [PROJECT / "README.md", *sorted(PROJECT.glob("docs/*.md"))]
NAMES = ["DNA", "pH3", "actin"]
# Programs that a test does not start: they install, or run the tests.
NOT_RUN = ("python -m pip install", "python -m bench")


def blocks(language):
    """Return the fenced blocks of a language in all pages: name of the page, line, and text."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for fence in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            if fence[1] == language:
                found.append((page.name, text[: fence.start()].count("\n") + 1, fence[2]))
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Make a folder with all files that the pages name, from the sample; and compute with the reference.

    The numbers are those of every other device, and nothing is compiled.
    """
    monkeypatch.chdir(tmp_path)
    choose = backends.choose
    monkeypatch.setattr(backends, "choose", lambda device="auto", gpu_memory=None: choose("reference", gpu_memory))
    image, nucleus, cytosol = (tifffile.imread(path)[..., :256, :256] for path in demo_data.paths())
    write_image("image.ome.tif", image)
    write_image("image.tif", image)
    for name, plane in {"dna": image[0], "actin": image[2], "nuclei": nucleus, "cells": cytosol}.items():
        tifffile.imwrite(f"{name}.tif", plane)
    write_slides(image, nucleus, cytosol)
    write_ome_zarr("plate.ome.zarr", image, labels={"nuclei": nucleus, "cells": cytosol})
    for project in (tmp_path, tmp_path / "project" / "segmentation"):
        project.mkdir(parents=True, exist_ok=True)
        write_segmentation(project / "segmentation.h5", image, (nucleus, cytosol))
        write_classes(project / "classes.csv", np.intersect1d(nucleus, cytosol)[1:])
    return tmp_path


def write_image(path, image):
    metadata = {"axes": "CYX", "Channel": {"Name": NAMES}, "PhysicalSizeX": 0.65, "PhysicalSizeY": 0.65}
    tifffile.imwrite(path, image, ome=True, photometric="minisblack", metadata=metadata)


def write_slides(image, nucleus, cytosol):
    """Write slides as a table and as files of a pattern names them."""
    for name in ("img", "seg"):
        Path(name).mkdir()
    lines = ["image,nucleus,cytosol,well,dose"]
    for name, part in {"a": np.s_[..., :160, :], "b": np.s_[..., 96:, :]}.items():
        write_image(f"img/{name}.ome.tif", image[part])
        tifffile.imwrite(f"img/{name}_dna.tif", image[part][0])
        tifffile.imwrite(f"img/{name}_actin.tif", image[part][2])
        tifffile.imwrite(f"seg/{name}_nuc.tif", nucleus[part])
        tifffile.imwrite(f"seg/{name}_cyto.tif", cytosol[part])
        lines.append(f"img/{name}.ome.tif,seg/{name}_nuc.tif,seg/{name}_cyto.tif,{name},0.5")
    Path("slides.csv").write_text("\n".join(lines))


COMMANDS = [(page, line, text) for page, line, text in blocks("") if "gpu-extract " in text]


def run_command(command, monkeypatch):
    """Run a command line in this process, with the variables before it; return its exit code."""
    words = shlex.split(re.sub(r"(^|\s)[#>].*", "", command))  # a # within a word is a selector
    if not words or command.startswith(NOT_RUN):
        return 0
    with monkeypatch.context() as patch:
        while "=" in words[0]:
            patch.setenv(*words.pop(0).split("="))
        assert words[0] == "gpu-extract", f"{command!r} is a program that this test does not know"
        words = [name for word in words for name in (sorted(glob.glob(word)) if word == "*.h5sc" else [word])]
        if "-o" in words:
            Path(words[words.index("-o") + 1]).unlink(missing_ok=True)
        patch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as exit_:
            cli.main()
    return exit_.value.code


@pytest.mark.parametrize(("page", "line", "text"), COMMANDS, ids=lambda value: str(value).partition("\n")[0][:30])
def test_commands(folder, monkeypatch, capsys, page, line, text):
    for command in re.split(r"\n| && ", text.strip()):
        assert not run_command(command, monkeypatch), f"{page}, line {line}: {command}: {capsys.readouterr().err}"


EPILOGS = {command.callback.__name__: command.epilog for command in cli.app.registered_commands if command.epilog}


@pytest.mark.parametrize("name", EPILOGS)
def test_the_examples_of_the_help(folder, monkeypatch, capsys, name):
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setattr(warm, "warm", lambda image, label: 0.0)  # it would compile for minutes
    examples = [line for line in EPILOGS[name].splitlines() if "gpu-extract" in line]
    assert len(examples) == 2
    if name in ("info", "verify", "gallery"):
        assert not run_command("gpu-extract run image.tif --nucleus nuclei.tif -o cells.h5sc", monkeypatch)
    for command in examples:
        assert f"gpu-extract {name}" in command
        assert not run_command(command, monkeypatch), f"{command}: {capsys.readouterr().err}"


def test_all_commands_have_examples():
    assert EPILOGS.keys() >= {"run", "plan", "gallery", "demo", "doctor", "warm"}


def run_block(page, line, text, names):
    """Run a block; skip the test where it imports a library that is not installed and that is not ours to install."""
    try:
        exec(compile("\n" * line + text, page, "exec"), names)
    except ModuleNotFoundError as error:
        if error.name != "scanpy":
            raise
        return False
    return True


def test_the_python_of_the_readme(folder):
    torch = types.SimpleNamespace(from_dlpack=np.from_dlpack)  # PyTorch is too large for the tests
    names = {"torch": torch, "config": {"HDF5CellExtraction": {"image_size": 64, "compression": True}}}
    for page, line, text in blocks("python"):
        if page == "README.md":
            assert run_block(page, line, text, names)
    assert names["report"].n_cells == 265
    assert names["cells"][[42, 17]].shape == (2, 5, 128, 128)
    assert Path("project/extraction/data/single_cells.h5").exists()


def test_recipes_of_the_readme(folder):
    for page, _, text in blocks("toml"):
        Path("mine.toml").write_text(text)
        assert gx.Recipe.from_toml("mine.toml").tile_size == 96, page


def test_every_block_is_run():
    known = {"", "python", "toml"}
    for page in PAGES:
        assert set(re.findall(r"^```(\w+)$", page.read_text(), re.MULTILINE)) <= known
    assert {page for page, _, _ in blocks("python")} == {"README.md", "clusters.md"}


@pytest.fixture
def clusters(folder):
    """Run the blocks of the page about clusters; return their names, and whether scanpy is installed."""
    names, has_scanpy = {}, True
    for page, line, text in blocks("python"):
        if page == "clusters.md" and (has_scanpy or "leiden" not in text):
            has_scanpy &= run_block(page, line, text, names)
    return names, has_scanpy


def test_from_an_image_to_clusters(clusters):
    names, has_scanpy = clusters
    sample = demo_data.paths()
    image, nucleus = tifffile.imread(sample.image), tifffile.imread(sample.nucleus)
    regions = {region.label: region for region in skimage.measure.regionprops(nucleus, np.moveaxis(image, 0, -1))}
    filled = [region for region in regions.values() if region.area_filled == region.area]
    table = names["table"].set_index(names["adata"].obs["scportrait_cell_id"].to_numpy())
    found = [region for region in filled if region.label in table.index]
    assert len(found) > 200
    for region in found:
        row = table.loc[region.label]
        assert row["area_nucleus"] == region.area
        expected = region.intensity_mean
        np.testing.assert_allclose(row[[f"{name}_nucleus" for name in NAMES]], expected, rtol=1e-6)
    check_undone(names, image, nucleus)
    if not has_scanpy:
        pytest.skip("scanpy is not installed; everything before it was run")
    assert 10 <= len(names["tiles"]) <= 40
    first, second = names["means"]["pH3_nucleus"].nlargest(2)
    assert first > 3 * second


def check_undone(names, image, nucleus):
    """Compare the DNA that the page restores with that of the image, well inside the nuclei."""
    with gx.open_cells("scaled.h5sc") as cells:
        obs, tiles = cells.obs.iloc[:3], cells.read(rows=[0, 1, 2])
    n_compared = 0
    for row, (y, x) in enumerate(obs[["center_y", "center_x"]].round().astype(int).to_numpy().tolist()):
        window = np.pad(image[0], 48)[y : y + 96, x : x + 96]
        inside = skimage.morphology.erosion(tiles[row, 0] > 0, np.ones((5, 5)))
        clipped = (tiles[row, 2] == 0) | (tiles[row, 2] == 1)
        compared = inside & ~clipped
        n_compared += compared.sum()
        np.testing.assert_allclose(names["pixels"][row, 0][compared], window[compared], rtol=0.02)
    assert n_compared > 20
