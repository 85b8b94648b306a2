"""Make slides, windows and batches for tests."""

from pathlib import Path

import numpy as np
import pytest

from gpu_extract import demo_data
from gpu_extract.model import Batch, Slide, Window
from gpu_extract.planning import make_plan
from gpu_extract.recipe import Recipe
from gpu_extract.sources import open_slide

SHARED = Path(__file__).parents[3] / "shared"
GOLDEN = Path(__file__).parents[1] / "golden"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the team's data in ../shared")

MASK_NAMES = ("nucleus", "cytosol")


def small_slide(seed=0, size=(90, 110), dtype=np.uint16, label_dtype=np.uint32, channels=3, ids=None):
    """Return a noisy image, and nucleus and cytosol label planes with touching, holed and split cells."""
    rng = np.random.default_rng(seed)
    H, W = size
    if np.dtype(dtype).kind == "f":
        image = rng.normal(100, 30, (channels, H, W)).astype(dtype)
    else:
        info = np.iinfo(dtype)
        image = rng.integers(max(info.min, -3000), min(info.max, 60000), (channels, H, W)).astype(dtype)
    nucleus, cytosol = np.zeros(size, label_dtype), np.zeros(size, label_dtype)
    y, x = np.mgrid[:H, :W]
    for n, cell_id in enumerate(ids or range(1, 25)):
        cy, cx = rng.integers(0, H), rng.integers(0, W)
        a, b = rng.uniform(3, 11, 2)
        inside = ((y - cy) / a) ** 2 + ((x - cx) / b) ** 2
        cytosol[(inside < 1) & (cytosol == 0)] = cell_id
        core = (inside < 0.4) & (cytosol == cell_id)
        nucleus[core] = cell_id
        if n % 3 == 0:
            nucleus[(inside < 0.08) & core] = 0
        if n % 4 == 0:
            cytosol[(inside > 0.45) & (inside < 0.5) & (cytosol == cell_id) & (x > cx)] = 0
    return image, nucleus, cytosol


def as_slide(image, nucleus=None, cytosol=None) -> Slide:
    """Open a slide."""
    return open_slide(image, nucleus=nucleus, cytosol=cytosol)


def one_batch(slide: Slide, recipe: Recipe):
    """Return (window, batch, program) for all cells of a slide that the recipe keeps, in one batch."""
    plan = make_plan([slide], recipe)
    S, cells = recipe.tile_size, plan.cells
    batch = Batch(0, np.arange(len(cells)), cells.ids, cells.centers - S // 2, (0, 0, *slide.size))
    return slide.read(batch.box), batch, plan.program


def bare_batch(ids, corners, size) -> Batch:
    """Return a batch of cells whose window is the whole slide."""
    n = len(ids)
    return Batch(0, np.arange(n), np.array(ids, np.uint64), np.array(corners, np.int64).reshape(n, 2), (0, 0, *size))


def bare_window(image, *labels) -> Window:
    """Return a window that is the whole slide."""
    return Window(np.ascontiguousarray(image), tuple(np.ascontiguousarray(plane) for plane in labels), 0, 0)


def first_cells(window, batch, program, n):
    """Return the result of `one_batch` with its first n cells only."""
    return window, Batch(0, batch.rows[:n], batch.ids[:n], batch.corners[:n], batch.box), program


def ht29() -> Slide:
    """Return the HT29 sample that ships with the package."""
    sample = demo_data.paths()
    return as_slide(sample.image, sample.nucleus, sample.cytosol)


def golden(name, folder=GOLDEN):
    """Return the arrays of a peer's file, which is closed."""
    with np.load(folder / f"{name}.npz") as file:
        return dict(file)
