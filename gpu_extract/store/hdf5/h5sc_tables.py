"""Names of planes and ids of cells in `.h5sc` files of this package, scPortrait and anndata.

scPortrait stores names and kinds of the planes in ``uns``, in attributes of the tiles and in ``var``. anndata keeps
only the first and the last when it writes the file again, and users may delete either.
"""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import OutputError
from gpu_extract.listing import listed
from gpu_extract.store.damage import NotCellsError

__all__ = ["cell_ids", "check_kinds", "plane_names"]

MASK, CHANNEL = "mask", "image_channel"


def plane_names(file: h5py.File, images: h5py.Dataset) -> tuple[tuple[str, ...], list[str]]:
    """Return the names of the planes of a tile, and their kinds, ``mask`` or ``image_channel``.

    Raises
    ------
    NotCellsError
        If the file does not have them.
    """
    shared, var = (_members(file.get(name)) for name in ("uns/single_cell_images", "var"))
    for names, kinds in (
        (shared.get("channel_names"), shared.get("channel_mapping")),
        (images.attrs.get("channel_names"), images.attrs.get("channel_mapping")),
        (var.get("channels"), var.get("channel_mapping")),
    ):
        if names is not None and kinds is not None:
            return tuple(_texts(names)), _texts(kinds)
    raise NotCellsError(
        "has single-cell images without names of their planes; scPortrait stores them in uns/single_cell_images "
        "(channel_names, channel_mapping) and in var (channels, channel_mapping)"
    )


def cell_ids(file: h5py.File, column: str) -> NDArray[np.uint64]:
    """Return the ids of the cells, (N,).

    Raises
    ------
    NotCellsError
        If obs has no such column, or not of whole numbers.
    """
    obs = _members(file["obs"])
    if column not in obs:
        raise NotCellsError(f"has single-cell images without ids: obs has no column {column}")
    values = _values(obs[column])
    if values.dtype.kind not in "iu" or (len(values) and values.min() < 0):
        raise NotCellsError(
            f"has ids that are not whole numbers from 0: column {column} of obs is of type {values.dtype}"
        )
    ids: NDArray[np.uint64] = values.astype(np.uint64, copy=False)
    return ids


def check_kinds(kinds: list[str]) -> None:
    """Check that masks come before channels.

    Raises
    ------
    OutputError
    """
    n_masks = kinds.count(MASK)
    if kinds != [MASK] * n_masks + [CHANNEL] * (len(kinds) - n_masks):
        raise OutputError(f"its planes are {listed(kinds)}; masks come first, then channels")


def _members(group: Any) -> Any:
    """Return a group, or an empty mapping for anything else. Before anndata 0.7 tables were not groups."""
    return group if isinstance(group, h5py.Group) else {}


def _texts(stored: Any) -> list[str]:
    """Return texts of a dataset, an attribute, or a column in one of AnnData's encodings."""
    return [value.decode() if isinstance(value, bytes) else str(value) for value in _values(stored)]


def _values(stored: Any) -> NDArray[Any]:
    if isinstance(stored, h5py.Group):  # categories, or numbers and texts that may be missing
        from anndata.io import read_elem

        return np.asarray(read_elem(stored))
    if isinstance(stored, h5py.Dataset) and h5py.check_string_dtype(stored.dtype) is not None:
        texts: NDArray[Any] = stored.asstr()[:]
        return texts
    return np.asarray(stored)
