"""What `bench/gpu_instructions.py` counted without a GPU: instructions per cell, and the rate of a model of time."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from made.slides import as_slide
from synthetic import make_slide

from gpu_extract import Recipe, planning
from gpu_extract.backends.cuda import source
from gpu_extract.model import Batch, BatchSize, Slide, Window
from gpu_extract.recipe import Program

COUNTS = Path(__file__).with_name("results") / "instructions-sm_90.json"
# The cells that were counted: those of tests/sass/recipes.py, on one multiprocessor.
SLIDE_SIZE, N_CELLS, TILE_SIZE = 1024, 24, 128


def predicted(preset: str, path: Path = COUNTS) -> dict[str, Any] | None:
    """Return what was counted for a recipe, per cell; None if it was not.

    ``cells_per_s`` is the rate of the model. ``for_these_kernels`` is whether the sources are still the same.
    """
    if not path.exists():
        return None
    table = json.loads(path.read_text(encoding="utf-8"))
    found = table.get("recipes", {}).get(preset, {})
    if "per_cell" not in found:
        return None
    return {
        "arch": table.get("arch"),
        "nvrtc": table.get("nvrtc"),
        "for_these_kernels": table.get("sources") == source.fingerprint(),
        "cells_per_s": found.get("cells_per_s_by_the_model"),
        **found["per_cell"],
    }


@cache
def counted_slide() -> Slide:
    """Return the slide of the cells that were counted."""
    return as_slide(*make_slide(SLIDE_SIZE))


def counted_cells(preset: str) -> tuple[Window, Batch, Program]:
    """Return the cells that were counted."""
    slide = counted_slide()
    plan = planning.make_plan([slide], Recipe.preset(preset).replace(tile_size=TILE_SIZE, border="window"))
    order = np.concatenate([batch.rows for batch in planning.batches(plan, BatchSize(2048, 512 << 20))])
    rows = order[len(order) // 3 :][:N_CELLS]
    corners = plan.cells.centers[rows] - TILE_SIZE // 2
    batch = Batch(0, rows, plan.cells.ids[rows], corners, (0, 0, *slide.size))
    return slide.read(batch.box), batch, plan.program
