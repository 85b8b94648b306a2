"""`verify`: everything in a file of cells is read and checked, tile by tile."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gpu_extract.cell_tables import H5SC_IMAGES, SparcspyTables
from gpu_extract.codecs import compression_of
from gpu_extract.errors import OutputError
from gpu_extract.parallel import default_threads
from gpu_extract.store.h5sc import LEVELS
from gpu_extract.store.layout import layout_of
from gpu_extract.store.target import unfinished
from gpu_extract.tile_reader import TileReader

__all__ = ["Verified", "verify"]

# Rows that a thread checks at a time.
ROWS_PER_TASK = 256


@dataclass(frozen=True)
class Verified:
    """What a sound file holds.

    Parameters
    ----------
    n_cells, n_masks, n_channels : int
    tile_size : int, pixels
    dtype : numpy.dtype
    compression : str
        The HDF5 filter, or ``none``.
    nbytes : int, bytes
        Size of all stored tiles.
    remains : str or None
        What an unfinished run has left beside the file, in words.
    """

    n_cells: int
    n_masks: int
    n_channels: int
    tile_size: int
    dtype: np.dtype[Any]
    compression: str
    nbytes: int
    remains: str | None

    def __str__(self) -> str:
        S = self.tile_size
        text = (
            f"{self.n_cells} cells of {self.n_masks} masks and {self.n_channels} channels, "
            f"{S} x {S} {self.dtype}, {self.nbytes / 1e6:.1f} MB ({self.compression})"
        )
        return f"{text}; note: {self.remains}" if self.remains else text


def verify(path: str | os.PathLike[str]) -> Verified:
    """Read a whole file of cells and check it: tables, names, shapes, and that every tile decodes.

    Files of scPortrait are checked as far as they go: lzf has no checksum, and no compression none.

    Parameters
    ----------
    path : path
        An ``.h5sc`` or a classic ``single_cells.h5`` file; it is only read.

    Returns
    -------
    Verified

    Raises
    ------
    OutputError
        If anything is wrong; the message names the first problem, with row and cell id.
    """
    path = Path(path)
    remains = unfinished(path)
    if not path.is_file():
        raise OutputError(f"{path} does not exist" + (f"; {remains}" if remains else ""))
    if path.suffix == ".partial" and not h5py.is_hdf5(path):
        raise OutputError(unfinished(path.with_suffix("")) or f"{path} is the partial file of an unfinished run")
    with _damage_told(path), h5py.File(path, "r") as file:
        layout = layout_of(file)
        images = file[layout.images]
        _check_images(file, images)
        if layout.images == H5SC_IMAGES:
            _check_facts(images)
            n_masks = _check_planes(file, images)
            ids = _check_tables(file, images)
        else:
            n_masks, ids = _check_classic(file, images)
        _check_tiles(images, ids)
        return Verified(
            n_cells=images.shape[0],
            n_masks=n_masks,
            n_channels=images.shape[1] - n_masks,
            tile_size=images.shape[2],
            dtype=images.dtype,
            compression=compression_of(images) or "other filters",
            nbytes=images.id.get_storage_size(),
            remains=remains,
        )


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file raises into an OutputError that names the file."""
    try:
        yield
    except OutputError as error:
        raise OutputError(f"{path}: {error}") from error
    except Exception as error:  # HDF5 and AnnData raise nearly anything on a damaged file
        first_line = str(error).partition("\n")[0]
        raise OutputError(f"{path} is damaged, or not a file of cells: {first_line}") from error


def _require(condition: Any, otherwise: str) -> None:
    if not condition:
        raise OutputError(otherwise)


def _check_images(file: h5py.File, images: Any) -> None:
    _require(isinstance(images, h5py.Dataset), "its tiles are not a dataset")
    _require(images.ndim == 4 and images.shape[2] == images.shape[3], f"its tiles have shape {images.shape}")
    _require(images.dtype.kind in "fiu", f"its tiles are of type {images.dtype}")
    in_file = images.file == file and images.external is None and not images.is_virtual
    _require(in_file, "its tiles lie in other files")
    if images.chunks is not None:
        _check_no_chunk_missing(images)


def _check_facts(images: h5py.Dataset) -> None:
    n_cells, n_planes, S, _ = images.shape
    facts = {name: int(images.attrs[name]) for name in ("n_cells", "n_channels", "image_size")}
    _require(
        facts == {"n_cells": n_cells, "n_channels": n_planes, "image_size": S},
        f"its tiles have shape {images.shape} and say {facts}",
    )


def _check_no_chunk_missing(images: h5py.Dataset) -> None:
    """HDF5 reads a chunk that was never written as zeros, without a word."""
    per_row = prod(ceil(n / c) for n, c in zip(images.shape[1:], images.chunks[1:], strict=True))
    rows_per_chunk = images.chunks[0]
    found = np.zeros(ceil(images.shape[0] / rows_per_chunk), np.int64)

    def count(chunk: Any) -> None:
        found[chunk.chunk_offset[0] // rows_per_chunk] += 1

    images.id.chunk_iter(count)
    missing = np.flatnonzero(found != per_row)
    if len(missing):
        raise OutputError(
            f"row {missing[0] * rows_per_chunk} was never written ({found.sum()} of {per_row * len(found)} "
            "chunks are there); the run that wrote the file did not finish"
        )


def _check_planes(file: h5py.File, images: h5py.Dataset) -> int:
    """M, after the planes' names and kinds have been compared wherever they are told."""
    from anndata.io import read_elem

    n_planes = images.shape[1]
    var, shared = read_elem(file["var"]), read_elem(file["uns/single_cell_images"])
    names, kinds = list(shared["channel_names"]), list(shared["channel_mapping"])
    _require(len(names) == len(kinds) == n_planes, f"it has {n_planes} planes and names {len(names)}")
    _require(list(var["channels"]) == names, "var and uns name different planes")
    _require(list(var["channel_mapping"]) == kinds, "var and uns tell different kinds of planes")
    n_masks = kinds.count("mask")
    _require(
        kinds == ["mask"] * n_masks + ["image_channel"] * (n_planes - n_masks),
        f"its planes are {kinds}; masks come first, then channels",
    )
    return n_masks


def _check_tables(file: h5py.File, images: h5py.Dataset) -> NDArray[np.uint64]:
    """The ids of the cells, (N,), after all tables have been compared with the tiles."""
    from anndata.io import read_elem

    n_cells = images.shape[0]
    obs = read_elem(file["obs"])
    _require(len(obs) == n_cells, f"obs has {len(obs)} rows for {n_cells} tiles")
    _require(np.array_equal(obs.index, np.arange(n_cells).astype(str)), "obs is not indexed '0', '1', ...")
    ids: NDArray[Any] = obs["scportrait_cell_id"].to_numpy()
    _require(ids.dtype == np.uint64, f"scportrait_cell_id is of type {ids.dtype}; it must be uint64")
    _check_unique(obs, [name for name in ("slide", "scportrait_cell_id") if name in obs])
    for name in (*LEVELS, "obsm/spatial"):
        if name in file:
            values = read_elem(file[name])
            _require(len(values) == n_cells, f"{name} has {len(values)} rows for {n_cells} tiles")
            broken = np.flatnonzero(~np.isfinite(values).all(axis=1))
            if len(broken):
                raise OutputError(f"row {broken[0]} (cell {ids[broken[0]]}): {name} is not finite")
    return ids


def _check_classic(file: h5py.File, images: h5py.Dataset) -> tuple[int, NDArray[np.uint64]]:
    """How many planes are masks, and the ids of the cells, after index and labels have been compared."""
    index, n_cells = file["single_cell_index"], images.shape[0]
    _require(index.shape == (n_cells, 2), f"single_cell_index has shape {index.shape} for {n_cells} tiles")
    _require(np.array_equal(index[:, 0], np.arange(n_cells)), "single_cell_index does not number the rows 0, 1, ...")
    tables = SparcspyTables(file)
    _require(len(tables.planes) == images.shape[1], f"{len(tables.planes)} planes are named for {images.shape[1]}")
    obs = tables.obs()
    if "label_names" in file:
        labelled = file["single_cell_index_labelled"].asstr()[:, 1]
        _require(np.array_equal(labelled, tables.ids.astype(str)), "single_cell_index_labelled has other ids")
    _check_unique(obs, obs.columns.tolist())
    return tables.n_masks, tables.ids


def _check_unique(obs: pd.DataFrame, columns: list[str]) -> None:
    twice = np.flatnonzero(obs.duplicated(columns))
    if len(twice):
        row = twice[0]
        raise OutputError(f"row {row} (cell {obs['scportrait_cell_id'].iloc[row]}) is there twice")


def _check_tiles(images: h5py.Dataset, ids: NDArray[np.uint64]) -> None:
    tasks = [range(row, min(row + ROWS_PER_TASK, len(ids))) for row in range(0, len(ids), ROWS_PER_TASK)]
    with ThreadPoolExecutor(default_threads()) as workers:
        for problem in workers.map(lambda rows: _first_problem(images, rows), tasks):
            if problem is not None:
                row, text = problem
                workers.shutdown(cancel_futures=True)
                raise OutputError(f"row {row} (cell {ids[row]}): {text}")


def _first_problem(images: h5py.Dataset, rows: Sequence[int]) -> tuple[int, str] | None:
    read, tile = TileReader(images), np.empty(images.shape[1:], images.dtype)
    for row in rows:
        try:
            read(row, tile)
        except (OSError, RuntimeError, ValueError) as error:
            return row, f"its tile cannot be read: {error}"
        if tile.dtype.kind == "f" and not np.isfinite(tile).all():
            return row, "its tile has values that are not finite"
    return None
