"""The interface of a layout: how the parts of a file of cells are arranged, written, read and checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import OutputError
from gpu_extract.store.chunks import ChunkFormat

if TYPE_CHECKING:
    import pandas as pd

    from gpu_extract.store.contents import Contents

__all__ = ["Layout", "Tables", "dropped_table", "require", "require_unique"]


class Layout(Protocol):
    """One arrangement of a file of cells."""

    @property
    def images(self) -> str:
        """Name of the dataset of tiles, (N, K, S, S)."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Suffixes that the name of a file of this layout may have."""

    @property
    def limits(self) -> tuple[str, ...]:
        """Names of the datasets of lower and upper limits, (N, C) each, filled in at the end; may be empty."""

    def format(self, contents: Contents, compression: str, chunk_cells: int = 1) -> ChunkFormat:
        """Return the format of the tiles, with ``chunk_cells`` cells per chunk.

        Raises
        ------
        OutputError
            If the layout does not support the contents.
        """

    def warnings(self, contents: Contents) -> tuple[str, ...]:
        """Return what a careful reader of the file should know, one line each."""

    def write(self, file: h5py.File, contents: Contents, format: ChunkFormat) -> None:
        """Write everything except the tiles. Their dataset is created without chunks, and limits are 0."""

    def tables(self, file: h5py.File) -> Tables:
        """Return the tables of an open file. Errors of HDF5 on a damaged file are not converted."""

    def check(self, file: h5py.File) -> Tables:
        """Compare all tables of an open file with its tiles, and return them.

        Raises
        ------
        OutputError
            If they do not match. The message describes the first contradiction.
        """


class Tables(Protocol):
    """The tables of an open file.

    Attributes
    ----------
    images : h5py.Dataset
    planes : tuple of str, length K
        Names of the planes of a tile: masks first, then channels.
    n_masks : int
    ids : (N,) uint64
        In the label planes.
    is_own : bool
        Whether this package wrote the file.
    """

    images: Any
    planes: tuple[str, ...]
    n_masks: int
    ids: NDArray[np.uint64]
    is_own: bool

    def obs(self) -> pd.DataFrame:
        """Return a table of the cells: ``scportrait_cell_id``, and slide and metadata if there are any."""

    def dropped(self) -> pd.DataFrame:
        """Return a table of the dropped cells: ``slide``, ``cell_id``, ``reason``."""

    def info(self) -> dict[str, Any]:
        """Return the provenance of the file."""


def dropped_table(columns: dict[str, list[Any]]) -> pd.DataFrame:
    """Return a table of dropped cells; missing columns are empty."""
    import pandas as pd

    return pd.DataFrame(
        {
            "slide": pd.Series(columns.get("slide", []), dtype=object),
            "cell_id": np.array(columns.get("cell_id", []), np.uint64),
            "reason": pd.Series(columns.get("reason", []), dtype=object),
        }
    )


def require(condition: Any, otherwise: str) -> None:
    """Raise an OutputError with the message ``otherwise`` unless the condition holds."""
    if not condition:
        raise OutputError(otherwise)


def require_unique(obs: pd.DataFrame, columns: list[str]) -> None:
    """Raise an OutputError if two rows have equal values in these columns."""
    repeated = np.flatnonzero(obs.duplicated(columns))
    if len(repeated):
        row = repeated[0]
        raise OutputError(f"row {row} (cell {obs['scportrait_cell_id'].iloc[row]}) is a duplicate")
