"""What each recipe takes: the machine code of the fused extraction on some cells of the synthetic slide, counted.

The counts stand in ``counts.json``, with which tests/backends/cuda/test_instructions.py compares. They depend on the
compiler, so the `test` extra of pyproject.toml installs the version that the table names.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import nvrtc
import synthetic
from made.slides import as_slide

from gpu_extract import Recipe, planning
from gpu_extract.backends.cuda.batches import DeviceExtraction
from gpu_extract.model import Batch, BatchSize, CellImages, Slide, Window
from gpu_extract.recipe import Program
from sass.device import ARCH, Launched, SassDevice

__all__ = ["PRESETS", "TABLE", "Measurement", "compiler", "measure", "read_table", "warp_instructions", "write_table"]

PRESETS = ("standard", "scportrait", "sparcspy")
TABLE = Path(__file__).with_name("counts.json")
# Cells of the slide that bench/gpu_timings.py uses, of a smaller size; a number that 1, 2 and 3 blocks share equally.
SLIDE_SIZE, N_CELLS, TILE_SIZE = 1024, 24, 128


class Measurement(NamedTuple):
    """A recipe on some cells: what was launched, what came out, and the task, with which it can be compared."""

    preset: str
    launches: list[Launched]
    cells: CellImages
    task: tuple[Window, Batch, Program]


@cache
def _slide() -> Slide:
    return as_slide(*synthetic.make_slide(SLIDE_SIZE))


def _task(preset: str) -> tuple[Window, Batch, Program]:
    """Return neighbouring cells from the middle of the slide."""
    plan = planning.make_plan([_slide()], Recipe.preset(preset).replace(tile_size=TILE_SIZE, border="window"))
    order = np.concatenate([batch.rows for batch in planning.batches(plan, BatchSize(2048, 512 << 20))])
    rows = order[len(order) // 3 :][:N_CELLS]
    corners = plan.cells.centers[rows] - TILE_SIZE // 2
    batch = Batch(0, rows, plan.cells.ids[rows], corners, (0, 0, *_slide().size))
    return _slide().read(batch.box), batch, plan.program


def measure(preset: str, *, timed: bool = False) -> Measurement:
    """Extract some cells with a recipe on one multiprocessor; with ``timed``, model its time."""
    device, task = SassDevice(multiprocessors=1, timed=timed), _task(preset)
    cells = DeviceExtraction([device], print).extract(*task)
    return Measurement(preset, device.launches, cells, task)


def warp_instructions(measurement: Measurement) -> float:
    """Return the warp instructions per cell."""
    return sum(int(one.run.counts[:, 0].sum()) for one in measurement.launches) / len(measurement.cells)


def compiler() -> str:
    """Return the version of the compiler on which counts depend, such as 13.5."""
    return ".".join(nvrtc.version().split(".")[:2])


def read_table() -> dict[str, Any]:
    """Return the table: the compiler's version, and warp instructions per cell by recipe."""
    table: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return table


def write_table(counts: dict[str, float]) -> None:
    """Write the table."""
    table = {
        "about": f"warp instructions per cell on sm_{ARCH}, {N_CELLS} cells of the synthetic slide, tile {TILE_SIZE}",
        "nvrtc": compiler(),
        "warp_instructions_per_cell": {preset: round(count) for preset, count in counts.items()},
    }
    TABLE.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
