"""Count what each recipe takes on a GPU, without one: the machine code for sm_90 runs on the CPU (tests/sass).

    python bench/gpu_instructions.py [--json FILE] [--update]

Prints a table for each recipe, and writes ``bench/results/instructions-sm_90.json``: warp instructions, sectors of
global memory, cycles and bank conflicts of shared memory, barriers, all per cell and by stage (the functions of
``kernels/`` that are inlined in the kernel), the most frequent instructions, and the rate that the model of time gives.
Counts are exact. The rate is not measured: no GPU has calibrated the model. ``--update`` also writes the table with
which tests/backends/cuda/test_instructions.py compares. Takes about a minute.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter, defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

# For the simulator, and for the package itself if it is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.append(str(Path(__file__).resolve().parents[1]))

import numpy as np
import nvrtc
from numpy.typing import NDArray
from sass import recipes
from sass.building import why_not
from sass.device import ARCH, Launched
from sass.program import COUNTS
from sass.source_functions import stage

from gpu_extract.backends.cuda import source

Figures = dict[str, Any]

RESULTS = Path(__file__).with_name("results") / f"instructions-sm_{ARCH}.json"
# An H100 or H200 (SXM).
MULTIPROCESSORS, CLOCK_HZ = 132, 1.755e9
# Functions with a smaller share belong to the stage of the function around them.
LEAST_SHARE = 0.02
N_OPCODES = 12


def main(argv: list[str] | None = None) -> int:
    """Measure all recipes, print the tables, write the files, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=RESULTS, help="file to write")
    parser.add_argument("--update", action="store_true", help="also write the counts with which the tests compare")
    arguments = parser.parse_args(argv)
    if why_not():
        print(f"machine code cannot be run: {why_not()}", file=sys.stderr)
        return 1
    found = {}
    for preset in recipes.PRESETS:
        found[preset] = figures(recipes.measure(preset, timed=True))
        print("\n".join(table(preset, found[preset])), flush=True)
    contents = {
        "about": "counted by executing machine code on the CPU; rates are those of a model that no GPU has calibrated",
        "arch": f"sm_{ARCH}",
        "nvrtc": nvrtc.version(),
        "nvdisasm": version("nvidia-cuda-nvdisasm"),
        "slide": f"synthetic, {recipes.SLIDE_SIZE} pixels, {recipes.N_CELLS} cells, tile {recipes.TILE_SIZE}",
        "model": {"multiprocessors": MULTIPROCESSORS, "clock_hz": CLOCK_HZ},
        "sources": source.fingerprint(),
        "recipes": found,
    }
    arguments.json.write_text(json.dumps(contents, indent=1) + "\n", encoding="utf-8")
    if arguments.update:
        recipes.write_table({preset: each["per_cell"]["warp_instructions"] for preset, each in found.items()})
    return 0


def figures(measured: recipes.Measurement) -> Figures:
    """Return the figures of a recipe."""
    n = len(measured.cells)
    cycles = sum(one.run.cycles or 0 for one in measured.launches) / n
    by_stage = {name: counts / n for name, counts in counts_by_stage(measured.launches).items()}
    return {
        "per_cell": {**named(sum(by_stage.values(), np.zeros(len(COUNTS) + 1))), "cycles": round(cycles)},
        "cells_per_s_by_the_model": round(MULTIPROCESSORS * CLOCK_HZ / cycles),
        "kernels": [kernel(one) for one in measured.launches],
        "stages": {name: named(counts) for name, counts in merged(by_stage).items()},
        "instructions": instructions(measured.launches),
    }


def kernel(one: Launched) -> Figures:
    """Return the resources of a launch."""
    return {
        "kernel": one.kernel.expression,
        "registers": one.program.resources.registers,
        "spills": one.program.resources.spills,
        "shared_bytes": one.program.resources.static_shared + one.shared_nbytes,
        "blocks_per_multiprocessor": one.resident,
        "blocks": one.n_blocks,
    }


def counts_by_stage(launches: list[Launched]) -> dict[str, NDArray[np.float64]]:
    """Return `COUNTS` and the barriers of a block by stage."""
    found: dict[str, NDArray[np.float64]] = defaultdict(lambda: np.zeros(len(COUNTS) + 1))
    for one in launches:
        for instruction, counts in zip(one.program.instructions, one.run.counts, strict=True):
            barriers = counts[0] / (one.kernel.threads / 32) if "BAR." in instruction.text else 0.0
            found[stage(instruction)] += (*counts, barriers)
    return found


def merged(by_stage: dict[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    """Return the stages, the largest first; small functions are part of the function in which they are inlined."""
    total = sum(counts[0] for counts in by_stage.values())
    found: dict[str, NDArray[np.float64]] = defaultdict(lambda: np.zeros(len(COUNTS) + 1))
    for name, counts in by_stage.items():
        found[name if counts[0] >= LEAST_SHARE * total else name.partition(" / ")[0]] += counts
    executed = {name: counts for name, counts in found.items() if counts[0]}
    return dict(sorted(executed.items(), key=lambda item: -item[1][0]))


def named(counts: NDArray[np.float64]) -> Figures:
    """Return counts per cell by name."""
    found = dict(zip((*COUNTS, "barriers"), counts.tolist(), strict=True))
    warps, lanes = found.pop("warps"), found.pop("lanes")
    rounded = {name: round(count, 1) if name == "barriers" else round(count) for name, count in found.items()}
    return {"warp_instructions": round(warps), "lanes_per_instruction": round(lanes / max(1.0, warps), 1), **rounded}


def instructions(launches: list[Launched]) -> dict[str, float]:
    """Return the shares of the most frequent instructions."""
    found: Counter[str] = Counter()
    for one in launches:
        for instruction, counts in zip(one.program.instructions, one.run.counts, strict=True):
            found[re.sub(r"@\S+ ", "", instruction.text).split()[0].split(".")[0]] += int(counts[0])
    return {name: round(count / found.total(), 3) for name, count in found.most_common(N_OPCODES)}


def table(preset: str, found: Figures) -> list[str]:
    """Return the figures of a recipe as lines of Markdown."""
    total = found["per_cell"]
    columns = [name for name in total if name != "cycles"]
    rows = {**found["stages"], "all": total}
    kernels = "; ".join(
        f"{one['kernel']}, {one['registers']} registers, {one['shared_bytes']:,} bytes shared, "
        f"{one['blocks_per_multiprocessor']} blocks per multiprocessor"
        for one in found["kernels"]
    )
    return [
        f"{preset}: {found['cells_per_s_by_the_model']:,} cells/s by the model, {total['cycles']:,} cycles per cell",
        kernels,
        "",
        f"| stage | {' | '.join(name.replace('_', ' ') for name in columns)} |",
        f"|---|{'---|' * len(columns)}",
        *(f"| {name} | {' | '.join(f'{row[column]:,}' for column in columns)} |" for name, row in rows.items()),
        "",
        ", ".join(f"{name} {share:.1%}" for name, share in found["instructions"].items()),
        "",
    ]


if __name__ == "__main__":
    sys.exit(main())
