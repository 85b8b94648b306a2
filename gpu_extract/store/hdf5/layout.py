"""What a layout is: where the parts of a file of cells stand, and how they are written, read and checked."""

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
    def limits(self) -> tuple[str, ...]:
        """Names of the datasets of lower and upper limits, (N, C) each, which are known only at the end; or none."""

    def format(self, contents: Contents, compression: str, chunk_cells: int = 1) -> ChunkFormat:
        """Return how its tiles are stored, ``chunk_cells`` cells in a chunk.

        Raises
        ------
        OutputError
            If this layout cannot hold the contents.
        """

    def write(self, file: h5py.File, contents: Contents, format: ChunkFormat) -> None:
        """Write everything but the tiles, whose dataset is created and empty; limits are 0."""

    def tables(self, file: h5py.File) -> Tables:
        """Return the tables of an open file; raises whatever HDF5 raises on a damaged file."""

    def check(self, file: h5py.File) -> Tables:
        """Compare all tables of an open file with its tiles, and return them.

        Raises
        ------
        OutputError
            Names the first contradiction.
        """


class Tables(Protocol):
    """The tables of an open file.

    Attributes
    ----------
    images : h5py.Dataset
    planes : tuple of str, length K
        Names of a tile's planes: masks first, then channels.
    n_masks : int
    ids : (N,) uint64
    """

    images: Any
    planes: tuple[str, ...]
    n_masks: int
    ids: NDArray[np.uint64]

    def obs(self) -> pd.DataFrame:
        """Return a row for each cell: ``scportrait_cell_id``, and its slide and metadata if there are any."""

    def dropped(self) -> pd.DataFrame:
        """Return the cells that were dropped: ``slide``, ``cell_id``, ``reason``."""

    def info(self) -> dict[str, Any]:
        """Return how the file was made."""


def dropped_table(columns: dict[str, list[Any]]) -> pd.DataFrame:
    """Return a table of dropped cells, empty for columns that are missing."""
    import pandas as pd

    return pd.DataFrame(
        {
            "slide": pd.Series(columns.get("slide", []), dtype=object),
            "cell_id": np.array(columns.get("cell_id", []), np.uint64),
            "reason": pd.Series(columns.get("reason", []), dtype=object),
        }
    )


def require(condition: Any, otherwise: str) -> None:
    """Raise an OutputError with that message unless the condition holds."""
    if not condition:
        raise OutputError(otherwise)


def require_unique(obs: pd.DataFrame, columns: list[str]) -> None:
    """Raise an OutputError if two rows are equal in these columns."""
    repeated = np.flatnonzero(obs.duplicated(columns))
    if len(repeated):
        row = repeated[0]
        raise OutputError(f"row {row} (cell {obs['scportrait_cell_id'].iloc[row]}) is there twice")
