"""What a file of cells contains and how it was made, as plain values for `Cells.summary`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpu_extract.store.hdf5.datasets import compression_of

if TYPE_CHECKING:
    import pandas as pd

    from gpu_extract.store.hdf5.layout import Tables
    from gpu_extract.store.reader import Cells

__all__ = ["summarize"]

# Texts that have an entry of their own in a summary, or, as its columns show unique ids, need none.
OWN_TEXTS = (
    "version",
    "recipe",
    "sources",
    "notices",
    "trusted",
    "dropped",
    "unique_ids",
    "compression",
    "cells_digest",
)


def summarize(cells: Cells, tables: Tables) -> dict[str, Any]:
    """Return the entries that `Cells.summary` documents."""
    info, obs = cells.info, cells.obs
    slides = _slides(cells, info)
    return {
        "file": str(cells.path),
        "nbytes": cells.path.stat().st_size,
        "layout": cells.layout,
        "is_own": tables.is_own,
        "version": info.get("version"),
        "n_cells": len(cells),
        "planes": [
            {"name": name, "kind": "mask" if index < len(cells.mask_planes) else "channel"}
            for index, name in enumerate(cells.planes)
        ],
        **_tiles(cells, tables.images),
        "ids": {"column": "cell_id" if "unique_ids" in info else "scportrait_cell_id", **_ids(cells.ids)},
        "obs": {str(name): _type(obs[name]) for name in obs},
        "slides": slides,
        "cells_per_slide": _spread([slide["n_cells"] for slide in slides]),
        "dropped": info["dropped"],
        "recipe": info.get("recipe"),
        "warnings": info["notices"].splitlines() if "notices" in info else [],
        "trusted": info["trusted"].splitlines() if "trusted" in info else [],
        "more": {name: value for name, value in info.items() if name not in OWN_TEXTS},
    }


def _tiles(cells: Cells, images: Any) -> dict[str, Any]:
    return {
        "tile_size": cells.tile_size,
        "dtype": cells.dtype.name,
        "compression": compression_of(images),  # in files written again, that of uns is no longer true
        "chunk_shape": None if images.chunks is None else list(images.chunks),
        "tiles_nbytes": images.id.get_storage_size(),
        "tiles_uncompressed_nbytes": prod(images.shape) * cells.dtype.itemsize,
    }


def _ids(ids: NDArray[np.uint64]) -> dict[str, int | None]:
    unique, counts = np.unique(ids, return_counts=True)
    lowest, highest = (int(unique[0]), int(unique[-1])) if len(unique) else (None, None)
    return {"min": lowest, "max": highest, "n_different": len(unique), "n_repeated": int(np.count_nonzero(counts > 1))}


def _type(column: pd.Series[Any]) -> dict[str, Any]:
    if column.dtype == "category":
        return {"type": "category", "n_values": len(column.cat.categories)}
    return {"type": str(column.dtype)}


def _slides(cells: Cells, info: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the slides in the order of the run, those without cells included; none if the file does not name any."""
    sources = {entry["slide"]: entry for entry in _sources(info.get("sources"))}
    counts = _counts(cells.obs, "slide")
    if not set(counts) <= set(sources):  # another program named them, or a time course by its metadata
        sources = {name: {} for name in counts}
    elif not counts and len(sources) == 1:
        counts = dict.fromkeys(sources, len(cells))
    n_dropped = _counts(cells.dropped, "slide")
    known = bool(counts) or not len(cells)
    return [
        {
            "name": name,
            "n_cells": counts.get(name, 0) if known else None,
            "n_dropped": n_dropped.get(name, 0),
            "metadata": entry.get("labels", {}),
            **{key: value for key, value in entry.items() if key not in ("slide", "labels")},
        }
        for name, entry in sources.items()
    ]


def _counts(table: pd.DataFrame, column: str) -> dict[str, int]:
    """Return how often each value of a column occurs; empty if there is no such column."""
    if column not in table:
        return {}
    return {str(name): int(n) for name, n in table[column].value_counts(sort=False).items() if n}


def _sources(text: str | None) -> list[dict[str, Any]]:
    """Return what the file says of each slide's files; nothing if this package did not write that text."""
    try:
        entries = json.loads(text or "[]")
    except ValueError:
        return []
    return [entry for entry in entries if isinstance(entry, dict) and "slide" in entry]


def _spread(counts: list[int | None]) -> dict[str, float] | None:
    known = [n for n in counts if n is not None]
    if not known:
        return None
    return {"min": min(known), "median": float(np.median(known)), "max": max(known), "n_empty": known.count(0)}
