"""Whole runs on the CPU device, as a user starts them with ``device="cuda"``."""

import numpy as np
import pytest
from cuda_on_cpu.device import ShimGpu, backend_of, shim_of
from made.slides import small_slide

import gpu_extract as gx
from gpu_extract import Recipe, backends

OPTIONS = {"recipe": Recipe(tile_size=32, border="keep")}


@pytest.fixture
def gpu(monkeypatch):
    """Replace the GPU of ``device="cuda"``; the others work as before."""
    gpu, choose = ShimGpu(seed=5), backends.choose

    def choose_shim(device="auto", gpu_memory=None):
        if device != "cuda":
            return choose(device, gpu_memory)
        return backend_of(shim_of(gpu, print, 3, 1 << 30), 3)

    monkeypatch.setattr(backends, "choose", choose_shim)
    return gpu


def slides_of(*seeds):
    """Return inputs of `extract_many`; the tiles of their cells cover them."""
    for seed in seeds:
        image, nucleus, cytosol = small_slide(seed, size=(200, 230), ids=list(range(1, 60)))
        yield {"image": image, "nucleus": nucleus, "cytosol": cytosol, "name": f"slide {seed}"}


def assert_close(found, expected):
    ulps = np.abs(found.view(np.int16).astype(int) - expected.view(np.int16).astype(int))
    assert ulps.max() <= 1


def read(path):
    with gx.open_cells(path) as cells:
        return cells.read(range(len(cells))), cells.obs


@pytest.mark.parametrize("options", [{}, {"chunk_cells": 10}, {"compression": "none"}])
def test_files_of_several_slides(gpu, tmp_path, options):
    found = {}
    for device in ("cpu", "cuda"):
        path = tmp_path / f"{device}.h5sc"
        report = gx.extract_many(list(slides_of(1, 2)), output=path, device=device, **OPTIONS, **options)
        found[device] = read(path)
    assert report.device == "shim"
    assert not any("memory" in line for line in report.warnings)
    assert_close(found["cuda"][0], found["cpu"][0])
    assert found["cuda"][1].equals(found["cpu"][1])
    assert gpu.held == gpu.pinned == 0


@pytest.mark.parametrize("planes", [None, (3, 1)])
def test_iter_cells(gpu, planes):
    (slide,) = slides_of(1)
    del slide["name"]
    expected = {
        row: image
        for cells in gx.iter_cells(**slide, device="cpu", planes=planes, **OPTIONS)
        for row, image in zip(cells.rows.tolist(), cells.images, strict=True)
    }
    n = 0
    for cells in gx.iter_cells(**slide, device="cuda", planes=planes, **OPTIONS):
        assert_close(cells.images, np.stack([expected[row] for row in cells.rows.tolist()]))
        cells.record_stream(0)
        n += len(cells)
        del cells
    assert n == len(expected)
    assert gpu.held == gpu.pinned == 0


def test_a_consumer_that_stops_early(gpu):
    (slide,) = slides_of(1)
    del slide["name"]
    tiles = gx.iter_cells(**slide, device="cuda", **OPTIONS)
    next(tiles)
    tiles.close()
    del tiles
    assert gpu.held == gpu.pinned == 0


def test_a_survey(gpu):
    (slide,) = slides_of(1)
    del slide["name"]
    assert gx.survey(**slide, device="cuda", **OPTIONS).device == "shim"
    assert gpu.held == gpu.pinned == 0
