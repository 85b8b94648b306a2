"""The example of docs/, where PyTorch is installed."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from made.slides import small_slide

import gpu_extract as gx
from gpu_extract import Recipe
from gpu_extract.backends import why_not

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def example():
    pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location("iter_cells_torch", DOCS / "iter_cells_torch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def expected_means(tmp_path, slide, **options):
    """Return ids and the mean of each plane of the tiles, from a file."""
    path = tmp_path / "cells.h5sc"
    gx.extract(slide["image"], nucleus=slide["nucleus"], output=path, device="cpu", **options)
    with gx.open_cells(path) as cells:
        return cells.ids, cells.read(range(len(cells))).astype(np.float32).mean((2, 3))


def slide_of():
    image, nucleus, _ = small_slide(4, size=(200, 230), ids=list(range(1, 60)))
    return {"image": image, "nucleus": nucleus}


def test_features_of_all_cells(example, tmp_path):
    slide = slide_of()
    options = {"recipe": Recipe(tile_size=24, border="keep")}
    ids, means = expected_means(tmp_path, slide, **options)
    found_ids, found = example.features(lambda tiles: tiles.mean((2, 3)), **slide, device="cpu", **options)
    assert (found_ids == ids).all()
    np.testing.assert_allclose(found.numpy(), means, rtol=1e-5, atol=1e-6)


def test_features_on_a_stream_of_a_gpu(example):
    torch = pytest.importorskip("torch")
    reason = why_not("cuda") or (None if torch.cuda.is_available() else "PyTorch has no CUDA")
    if reason:
        pytest.skip(f"needs a GPU: {reason}")
    options = {**slide_of(), "recipe": Recipe(tile_size=24, border="keep"), "device": "cuda"}
    mean = lambda tiles: tiles.mean((2, 3))  # noqa: E731
    expected = torch.cat([mean(torch.from_dlpack(cells.images).float()).cpu() for cells in gx.iter_cells(**options)])
    found = example.features_on_a_stream(mean, torch.cuda.Stream(), **options)
    assert torch.equal(found.cpu(), expected)


def test_the_example_prints_the_first_cells(example, capsys):
    example.main()
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_the_page_on_gpus_names_the_numbers_of_the_code():
    from gpu_extract.backends.cuda import backend as cuda
    from gpu_extract.backends.cuda import pinned

    text = (DOCS / "gpu.md").read_text(encoding="utf-8")
    pinned_nbytes = pinned.N_BUFFERS * pinned.BUFFER_NBYTES + 2 * (cuda.STREAMS + 1) * pinned.STAGING_NBYTES
    assert f"At most {pinned_nbytes // 10**6} MB are pinned" in text
    assert f"at most {cuda.MEMORY_SHARE:.0%}".replace("%", " %") in text
    assert f"At least {cuda.WORKING_NBYTES >> 30} GiB" in text
