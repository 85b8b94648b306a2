"""The reader of files of cells: ``open_cells("cells.h5sc")[42]`` is the tile of cell 42.

`hdf5.tile_reader` reads tiles and the layout of the file reads tables. Files written by scPortrait and SPARCSpy can be
read too.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpu_extract.errors import InputError, OutputError, UnknownCellError
from gpu_extract.hdf5_files import open_to_read
from gpu_extract.html_table import html_table
from gpu_extract.listing import first_few, listed
from gpu_extract.store.damage import reporting_damage
from gpu_extract.store.hdf5.layouts import LAYOUTS, layout_of
from gpu_extract.store.hdf5.tile_reader import TileReader

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Cells", "open_cells"]


def open_cells(path: str | os.PathLike[str]) -> Cells:
    """Open an ``.h5sc`` or a classic ``single_cells.h5`` file; close it after use, or use a ``with`` statement.

    Raises
    ------
    OutputError
        If the file does not exist, is not a file of cells, or is damaged.
    """
    return Cells(path)


class Cells:
    """The cells of a file, by id or by row. Tables are read on first access.

    The object pickles as its path; unpickling opens the file again.

    Parameters
    ----------
    path : path

    Attributes
    ----------
    path : Path
    planes : tuple of str, length K
        Names of the planes of a tile: masks first, then channels.
    mask_planes, channel_planes : tuple of str, length M and C
    tile_size : int, pixels
    dtype : numpy.dtype
    layout : str
        ``h5sc`` or ``sparcspy``.
    ids : (N,) uint64
        Id of the cell in each row.

    Raises
    ------
    OutputError
        If the file does not exist, is not a file of cells, or is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(os.path.expanduser(path))
        if not self.path.is_file():
            raise OutputError(f"{path} {'is a folder' if self.path.is_dir() else 'does not exist'}")
        with reporting_damage(self.path):
            self._file = open_to_read(self.path)
            try:
                self._read_header()
            except BaseException:
                self._file.close()
                raise

    def _read_header(self) -> None:
        layout = layout_of(self._file)
        self.layout = next(name for name, each in LAYOUTS.items() if each is layout)
        tables = self._tables = layout.tables(self._file)
        images = self._images = tables.images
        # A file from elsewhere could refer to any file of this machine.
        if images.file != self._file or images.external or images.is_virtual:
            raise OutputError(f"{self.path} has its tiles in other files, which are not read")
        if images.ndim != 4 or images.shape[2] != images.shape[3]:
            raise OutputError(f"{self.path} has tiles of shape {images.shape}; they must be (N, K, S, S)")
        self.planes = tables.planes
        self.mask_planes, self.channel_planes = self.planes[: tables.n_masks], self.planes[tables.n_masks :]
        self.tile_size: int = images.shape[2]
        self.dtype: np.dtype[Any] = images.dtype
        self.ids = tables.ids
        if (len(self.ids), len(self.planes)) != images.shape[:2]:
            raise OutputError(
                f"{self.path} has tiles of shape {images.shape} for {len(self.ids)} ids and {len(self.planes)} planes"
            )
        self._read_tile = TileReader(images)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Arrays and tables that were read stay valid."""
        self._file.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return open_cells, (self.path,)

    def __repr__(self) -> str:
        S = self.tile_size
        return f"<{len(self)} cells of {len(self.planes)} planes, {S} x {S} {self.dtype}, in {self.path}>"

    def _repr_html_(self) -> str:
        ids = f"{self.ids.min()} to {self.ids.max()}" if len(self) else ""
        rows = [
            ("file", self.path),
            ("cells", f"{len(self):,}"),
            ("ids", ids),
            ("masks", listed(self.mask_planes)),
            ("channels", listed(self.channel_planes)),
            ("tiles", f"{self.tile_size} x {self.tile_size} {self.dtype}"),
            ("layout", self.layout),
        ]
        return html_table("Cells", rows)

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, cell: object) -> bool:
        return len(self._rows_of(cell)) > 0

    def __iter__(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """Iterate over the id and tile of each cell, in the order of rows."""
        for row, cell_id in enumerate(self.ids.tolist()):
            yield cell_id, self.read([row])[0]

    def __getitem__(self, cell: int | tuple[str, int] | ArrayLike | Sequence[tuple[str, int]]) -> NDArray[Any]:
        """Return the tile of a cell, (K, S, S), or the tiles of a list of cells, (n, K, S, S), in its order.

        Parameters
        ----------
        cell : int, (slide, id), or list or array of them
            A cell is named by its id, or by slide and id as in ``cells["A", 42]``. A list or an array names several,
            as in ``cells[[42, 7]]``; repeats are allowed. See `read` for rows.

        Raises
        ------
        UnknownCellError
            If no cell has the id, or cells of several slides do.
        InputError
            If an array holds other values than whole numbers.
        OutputError
            If a tile is damaged.
        """
        if isinstance(cell, list | range) or (hasattr(cell, "__array__") and np.ndim(cell)):
            return self._read_several(_listed(cell))
        tile: NDArray[Any] = self.read([self._row_of(cell)])[0]
        return tile

    def _read_several(self, keys: list[Any]) -> NDArray[Any]:
        """Return the tiles of cells named by id or by slide and id.

        Raises
        ------
        UnknownCellError
            If there is none of some of them, or several; the message names the first few.
        """
        found = {repr(key): (key, self._rows_of(key)) for key in keys}
        unknown = [key for key, rows in found.values() if not len(rows)]
        if len(unknown) > 1:
            some = f"{first_few(map(_describe, unknown))} ({len(unknown):,} in all)"
            raise UnknownCellError(f"{self.path} has no cells {some}{self._hint(unknown[0])}")
        several = [key for key, rows in found.values() if len(rows) > 1]
        if len(several) > 1 and not unknown:
            some = first_few(map(_describe, several))
            raise UnknownCellError(
                f"{self.path} has several cells of each of {len(several):,} ids ({some}); "
                "name their slides, as in cells[[(slide, id), ...]]"
            )
        return self.read([self._row_of(key) for key in keys])

    def _row_of(self, cell: Any) -> int:
        """Return the row of the only cell of that name.

        Raises
        ------
        UnknownCellError
        """
        rows = self._rows_of(cell)
        if len(rows) == 0:
            raise UnknownCellError(f"{self.path} has no cell {_describe(cell)}{self._hint(cell)}")
        if len(rows) > 1:
            raise UnknownCellError(f"{self.path}: id {_describe(cell)} is in {self._several(cell, rows)}")
        return int(rows[0])

    def _several(self, cell: Any, rows: NDArray[np.int64]) -> str:
        """Return where the cells of one name are, and how to read one of them, for a message."""
        slides = self._slides_of(rows)
        if len(set(slides)) == len(slides):
            return f"{len(slides):,} slides ({first_few(slides)}); name one, as in cells[{slides[0]!r}, {cell}]"
        return f"{len(rows):,} rows ({first_few(rows)}); read one, as in cells.read(rows=[{rows[0]}])"

    def read(self, rows: ArrayLike) -> NDArray[Any]:
        """Return the tiles of the given rows, as in ``cells.read(rows=[0, 1])``; ``cells[[42, 7]]`` reads by id.

        Parameters
        ----------
        rows : (n,) int
            Rows from 0 to N - 1, in any order; repeats are allowed. They are not ids: row 0 is the first cell of the
            file, whatever its id, ``cells.ids[0]``.

        Returns
        -------
        (n, K, S, S) array of the dtype of the file

        Raises
        ------
        InputError
            If ``rows`` is not a list of whole numbers from 0 to N - 1, or an array of uint64, the type of `ids`.
        OutputError
            If a tile is damaged.
        """
        wanted = np.asarray(rows)
        if wanted.ndim != 1 or (wanted.dtype.kind not in "iu" and len(wanted)):
            raise InputError(
                f"rows are of type {wanted.dtype} and shape {wanted.shape}; give a list of whole numbers, or read by "
                "id with cells[[id, ...]]"
            )
        if wanted.dtype == np.uint64 and len(wanted):  # row numbers of NumPy and pandas are signed
            raise InputError(
                "rows are of type uint64, as ids are; read by id with cells[ids], or, if they are rows, give "
                "rows.astype(int)"
            )
        outside = (wanted < 0) | (wanted >= len(self))
        if outside.any():
            row = wanted[outside][0]
            raise InputError(
                f"row {row} is not in the file; rows are 0 to {len(self) - 1}; read by id with cells[[id, ...]]"
            )
        tiles = np.empty((len(wanted), *self._images.shape[1:]), self.dtype)
        for tile, row in zip(tiles, wanted.tolist(), strict=True):
            with self._reading(f", row {row} (cell {self.ids[row]})"):
                self._read_tile(row, tile)
        return tiles

    @cached_property
    def obs(self) -> pd.DataFrame:
        """Table of the cells, one per row."""
        with self._reading():
            return self._tables.obs()

    @cached_property
    def dropped(self) -> pd.DataFrame:
        """Table of the dropped cells: ``slide``, ``cell_id`` and ``reason``."""
        with self._reading():
            return self._tables.dropped()

    @cached_property
    def info(self) -> dict[str, Any]:
        """Provenance of the file: compression, normalization, and the number of dropped cells by reason.

        Files of this package also have ``version``, ``recipe`` (TOML) and ``sources`` (JSON).
        """
        with self._reading():
            facts = self._tables.info()
        return facts | {"dropped": {str(key): int(n) for key, n in self.dropped["reason"].value_counts().items()}}

    def summary(self) -> dict[str, Any]:
        """Return what the file contains and how it was made, as plain values: what ``gpu-extract info --json`` prints.

        Returns
        -------
        dict
            ``file``, ``nbytes``, ``layout``
                Path, size in bytes, and `layout`.
            ``is_own``, ``version``
                Whether this package wrote the file, and its version; None if the file does not say.
            ``n_cells``, ``planes``
                Planes in order, each with ``name`` and ``kind``, ``mask`` or ``channel``.
            ``tile_size``, ``dtype``, ``compression``, ``chunk_shape``, ``tiles_nbytes``, ``tiles_uncompressed_nbytes``
                The tiles; the shape is None if they are not in chunks.
            ``ids``
                ``column`` of `obs` with the ids in the label planes, ``min`` and ``max`` of them (None without
                cells), ``n_different``, and ``n_repeated``, the ids that several rows have.
            ``obs``
                For each column its ``type``, and for categories ``n_values``.
            ``slides``
                All slides in the order of the run: ``name``, ``n_cells`` (None if unknown), ``n_dropped``,
                ``metadata``, and where the file says it ``image``, ``nucleus``, ``cytosol``, ``pixel_size`` (y, x, um)
                and ``scale``.
            ``cells_per_slide``
                ``min``, ``median``, ``max`` and ``n_empty``; None if unknown.
            ``dropped``
                Number of dropped cells by reason.
            ``recipe``, ``warnings``, ``trusted``
                The recipe as TOML (None if the file has none), and lines of the run.
            ``more``
                Other entries of `info`.
        """
        from gpu_extract.store.summary import summarize

        with self._reading():
            return summarize(self, self._tables)

    @cached_property
    def _by_id(self) -> NDArray[np.int64]:
        return np.argsort(self.ids, kind="stable")

    def _rows_of(self, cell: Any) -> NDArray[np.int64]:
        slide, cell_id = _parts(cell)
        if isinstance(cell_id, bool) or not isinstance(cell_id, int | np.integer) or not 0 <= cell_id < 2**64:
            return np.empty(0, np.int64)
        bounds = [np.searchsorted(self.ids, np.uint64(cell_id), side, sorter=self._by_id) for side in ("left", "right")]
        rows = self._by_id[slice(*bounds)]
        if slide is None:
            return rows
        return rows[[name == slide for name in self._slides_of(rows)]]

    def _slides_of(self, rows: NDArray[np.int64]) -> list[str]:
        """Return the slide name of each row; empty in files of scPortrait."""
        return list(self.obs["slide"].iloc[rows]) if "slide" in self.obs else [""] * len(rows)

    def _hint(self, cell: Any) -> str:
        """Return a possible reason why a cell is missing, for a message."""
        slide, cell_id = _parts(cell)
        if isinstance(cell, tuple) and not isinstance(slide, str):
            several = f"cells[[{first_few(map(reprlib.repr, cell))}]]"
            return f"; read several cells with {several}, and one of a slide with cells['slide', id]"
        dropped = self.dropped[self.dropped["cell_id"] == cell_id]
        if slide is not None:
            dropped = dropped[dropped["slide"] == slide]
        if len(dropped):
            return f"; it was dropped: {dropped['reason'].iloc[0]}"
        return f"; ids run from {self.ids.min()} to {self.ids.max()}, rows are read by cells.read(rows=[row])"

    @contextmanager
    def _reading(self, where: str = "") -> Iterator[None]:
        if not self._file:
            raise OutputError(f"{self.path} is closed; open it again")
        with reporting_damage(self.path, where):
            yield


def _describe(cell: object) -> str:
    slide, cell_id = _parts(cell)
    if slide is not None:
        return f"{_describe(cell_id)} of slide {_describe(slide)}"
    return str(cell) if isinstance(cell, int | str | np.generic) else reprlib.repr(cell)


def _listed(cells: Any) -> list[Any]:
    """Return the keys in a list or an array.

    Raises
    ------
    InputError
        If they are not a flat list of ids or of (slide, id).
    """
    if isinstance(cells, list | range):
        if not any(isinstance(each, list | set | dict | np.ndarray) for each in cells):
            return [each.item() if isinstance(each, np.generic) else each for each in cells]
        raise InputError("ids are lists within a list; give one list of ids, or of (slide, id)")
    array = np.asarray(cells)
    if array.ndim != 1 or (array.dtype.kind not in "iuO" and len(array)):
        kind = "a mask of rows" if array.dtype == bool else f"of type {array.dtype} and shape {array.shape}"
        raise InputError(f"ids are {kind}; give a list of whole numbers, or read rows with cells.read(rows=[row, ...])")
    return list(array.tolist())


def _parts(cell: Any) -> tuple[Any, Any]:
    """Split a key into slide and id; the slide is None if it was not given."""
    return cell if isinstance(cell, tuple) and len(cell) == 2 else (None, cell)
