"""`verify`: a complete check of a file of cells, tile by tile."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import OutputError
from gpu_extract.hdf5_files import open_to_read
from gpu_extract.parallel import as_threads, in_order
from gpu_extract.store.damage import reporting_damage
from gpu_extract.store.hdf5.datasets import check_chunks, compression_of
from gpu_extract.store.hdf5.layout import require
from gpu_extract.store.hdf5.layouts import layout_of
from gpu_extract.store.hdf5.tile_reader import TileReader
from gpu_extract.store.target import unfinished

__all__ = ["Verified", "verify"]

# Number of rows per task of a thread.
ROWS_PER_TASK = 256


@dataclass(frozen=True)
class Verified:
    """A summary of an intact file.

    Parameters
    ----------
    n_cells, n_masks, n_channels : int
    tile_size : int, pixels
    dtype : numpy.dtype
    compression : str
        Name of the codec, or ``other filters``.
    nbytes : int, bytes
        Stored size of all tiles.
    remains : str or None
        Description of the remains of an unfinished run next to the file.
    is_own : bool
        Whether this package wrote the file.
    """

    n_cells: int
    n_masks: int
    n_channels: int
    tile_size: int
    dtype: np.dtype[Any]
    compression: str
    nbytes: int
    remains: str | None
    is_own: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the parameters as plain values, for JSON."""
        return {**asdict(self), "dtype": self.dtype.name}

    def __str__(self) -> str:
        S = self.tile_size
        text = (
            f"{self.n_cells} cells of {self.n_masks} masks and {self.n_channels} channels, "
            f"{S} x {S} {self.dtype}, {self.nbytes / 1e6:.1f} MB ({self.compression})"
        )
        if not self.is_own:
            text = f"not written by gpu-extract; {text}"
        return f"{text}; note: {self.remains}" if self.remains else text


def verify(
    path: str | os.PathLike[str],
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda checked, total: None,
) -> Verified:
    """Read a whole file of cells and check its tables, names and shapes, and that every tile can be decoded.

    Files of scPortrait and uncompressed files have no checksums, so wrong values in their tiles are not detected.
    Files that another program wrote may lack all tables but ``obs``.

    Parameters
    ----------
    path : path
        An ``.h5sc`` or a classic ``single_cells.h5`` file; it is only read.
    threads : int, optional
        Number of threads that decode tiles. Default: `gpu_extract.cpus.default_threads`. Each holds one chunk.
    progress : callable
        Called with the number of cells checked so far and the number of all cells.

    Returns
    -------
    Verified

    Raises
    ------
    OutputError
        If anything is wrong. The message describes the first problem, with row and cell id.
    InputError
        If ``threads`` is not positive.
    """
    path = Path(os.path.expanduser(path))
    threads = as_threads(threads)
    remains = unfinished(path)
    if path.is_dir():
        raise OutputError(f"{path} is a folder; give a file of cells")
    if not path.is_file():
        raise OutputError(f"{path} does not exist" + (f"; {remains}" if remains else ""))
    if path.suffix == ".partial" and not h5py.is_hdf5(path):
        raise OutputError(unfinished(path.with_suffix("")) or f"{path} is the partial file of an unfinished run")
    with reporting_damage(path), _naming_file(path), open_to_read(path) as file:
        layout = layout_of(file)
        images = file[layout.images]
        _check_images(file, images)
        tables = layout.check(file)
        _check_tiles(images, tables.ids, threads, progress)
        return Verified(
            n_cells=images.shape[0],
            n_masks=tables.n_masks,
            n_channels=images.shape[1] - tables.n_masks,
            tile_size=images.shape[2],
            dtype=images.dtype,
            compression=compression_of(images),
            nbytes=images.id.get_storage_size(),
            remains=remains,
            is_own=tables.is_own,
        )


@contextmanager
def _naming_file(path: Path) -> Iterator[None]:
    """Add the path of the file to the message of an OutputError."""
    try:
        yield
    except OutputError as error:
        raise OutputError(f"{path}: {error}") from error


def _check_images(file: h5py.File, images: Any) -> None:
    require(isinstance(images, h5py.Dataset), "its tiles are not a dataset")
    require(images.ndim == 4 and images.shape[2] == images.shape[3], f"its tiles have shape {images.shape}")
    require(images.dtype.kind in "fiu", f"its tiles are of type {images.dtype}")
    in_file = images.file == file and images.external is None and not images.is_virtual
    require(in_file, "its tiles lie in other files")
    check_chunks(images)


def _check_tiles(
    images: h5py.Dataset, ids: NDArray[np.uint64], threads: int, progress: Callable[[int, int], None]
) -> None:
    n_cells = len(ids)
    tasks = (range(row, min(row + ROWS_PER_TASK, n_cells)) for row in range(0, n_cells, ROWS_PER_TASK))
    with ThreadPoolExecutor(threads, "gpu-extract-verify") as workers:
        problems = in_order(workers, lambda rows: (rows, _first_problem(images, rows)), tasks, 2 * threads)
        for rows, problem in problems:
            if problem is not None:
                row, text = problem
                raise OutputError(f"row {row} (cell {ids[row]}): {text}")
            progress(rows.stop, n_cells)


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
