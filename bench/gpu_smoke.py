"""The first cells of `gpu_evidence.py`: their tiles are computed beforehand (``--prepare``) and carried to the GPU."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gpu_checks import POISONS, PRESETS, CheckError, PoisonedDevice, Task, agreement, extract_on, first_cells, ht29
from gpu_record import Step

from gpu_extract import recipe as recipes
from gpu_extract.backends import program_tables, reference
from gpu_extract.model import CellImages

Figures = dict[str, Any]

SIZES, SMALL_SIZES = (128, 64, 31), (31,)
SMALL_CELLS = 4
NAMES = ("rows", "ids", "images", "limits")
# What the tiles depend on.
SOURCES = (reference, recipes, program_tables)


def prepare(folder: Path, *, small: bool) -> list[Path]:
    """Compute the tiles of all smoke tests by the reference, and write one file for each."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for preset, size in cases(small=small):
        cells = reference.extract(*task(preset, size, small=small))
        path = folder / file_name(preset, size)
        np.savez_compressed(path, digest=digest(), **{name: getattr(cells, name) for name in NAMES})
        paths.append(path)
    return paths


def smoke_steps(gpu: Any, prepared: Path | None, *, small: bool) -> list[Step]:
    """Return one test for each recipe and size."""
    return [
        Step(f"{preset}, tile {size}", partial(smoke, gpu, prepared, preset, size, small=small))
        for preset, size in cases(small=small)
    ]


def smoke(gpu: Any, prepared: Path | None, preset: str, size: int, *, small: bool) -> Figures:
    """Compare cells with those computed beforehand, or with the reference if there are none."""
    window, batch, program = task(preset, size, small=small)
    found = extract_on(PoisonedDevice(gpu.open_stream(), POISONS[0]), window, batch, program)
    if prepared is None:
        return agreement(found, reference.extract(window, batch, program), program)
    with np.load(prepared / file_name(preset, size)) as file:
        if str(file["digest"]) != digest():
            raise CheckError(f"the tiles in {prepared} were computed by other sources; run --prepare again")
        expected = CellImages(**{name: file[name] for name in NAMES})
    return {"prepared": True, **agreement(found, expected, program)}


def cases(*, small: bool) -> list[tuple[str, int]]:
    """Return the recipes and tile sizes, the most important first."""
    return [(preset, size) for size in (SMALL_SIZES if small else SIZES) for preset in PRESETS]


def task(preset: str, size: int, *, small: bool) -> Task:
    """Return the cells of a smoke test, from the sample that ships with the package."""
    whole = ht29(preset, size)
    return first_cells(whole, SMALL_CELLS) if small else whole


def file_name(preset: str, size: int) -> str:
    """Return the name of the file of a test."""
    return f"smoke-{preset}-{size}.npz"


def digest() -> str:
    """Return the SHA-256 of the sources that the tiles depend on."""
    texts = [Path(str(module.__file__)).read_bytes() for module in SOURCES]
    return hashlib.sha256(b"\0".join(texts)).hexdigest()
