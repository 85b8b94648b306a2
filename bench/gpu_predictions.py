"""What was counted without a GPU: instructions per cell of the machine code, and the rates modelled from them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# The first of these that exists. Its entries are found by their "name" (or by their key): a recipe, or a kernel.
PLACES = (ROOT / "bench/results/gpu-instructions.json", ROOT / "tests/sass/counts.json")


def predicted(name: str) -> dict[str, Any] | None:
    """Return what was counted for a recipe or a kernel; None if it was not."""
    return table().get(name)


@cache
def table() -> dict[str, Any]:
    """Return all counts by name; empty if there is no file."""
    path = next((path for path in PLACES if path.exists()), None)
    if path is None:
        return {}
    return by_name(json.loads(path.read_text(encoding="utf-8")))


def by_name(content: Any) -> dict[str, Any]:
    """Return the entries of a file: of a list under one of its keys, or of a mapping from names to entries."""
    found: dict[str, Any] = {}
    for entry in content if isinstance(content, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("name"), str):
            found[entry["name"]] = entry
    for key, value in content.items() if isinstance(content, dict) else []:
        if isinstance(value, dict):
            found[key] = value
        found.update(by_name(value))
    return found


def instructions(name: str) -> float | None:
    """Return the warp instructions per cell that were counted for a recipe; None if they were not."""
    entry = predicted(name) or {}
    for key in ("instructions_per_cell", "warp_instructions_per_cell", "warp_instructions", "instructions"):
        if isinstance(entry.get(key), int | float):
            return float(entry[key])
    return None
