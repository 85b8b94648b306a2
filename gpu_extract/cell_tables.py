"""What stands beside the tiles in a file of cells: ids, names of planes, tables, in either layout.

`H5scTables` reads the files of `gpu_extract` and of scPortrait, `SparcspyTables` the classic ``single_cells.h5`` of
`gpu_extract` and of SPARCSpy. Both raise whatever a damaged file makes HDF5 raise.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray

from gpu_extract.codecs import compression_of

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["H5SC_IMAGES", "SPARCSPY_IMAGES", "H5scTables", "SparcspyTables", "Tables", "open_tables"]

# Where the tiles are; which of them is there tells the layout.
H5SC_IMAGES = "obsm/single_cell_images"
SPARCSPY_IMAGES = "single_cell_data"

# What `H5scTables.info` tells of scPortrait's own entries, beside the compression.
NORMALIZATION = ("normalization", "normalization_range_lower", "normalization_range_upper")


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
        """What is known of each cell: ``scportrait_cell_id``, and its slide and labels where there are any."""

    def dropped(self) -> pd.DataFrame:
        """The cells that were left out: ``slide``, ``cell_id``, ``reason``."""

    def info(self) -> dict[str, Any]:
        """How the file was made."""


def open_tables(file: h5py.File) -> Tables:
    """The tables of a file of either layout.

    Raises
    ------
    ValueError
        If it is of neither.
    """
    if H5SC_IMAGES in file:
        return H5scTables(file)
    if SPARCSPY_IMAGES in file:
        return SparcspyTables(file)
    raise ValueError(f"it has no {H5SC_IMAGES} and no {SPARCSPY_IMAGES}")


class H5scTables:
    """See `Tables`."""

    def __init__(self, file: h5py.File) -> None:
        self._file = file
        self.images = file[H5SC_IMAGES]
        shared = file["uns/single_cell_images"]
        self.planes: tuple[str, ...] = tuple(shared["channel_names"].asstr()[:])
        self.n_masks = list(shared["channel_mapping"].asstr()[:]).count("mask")
        self.ids: NDArray[np.uint64] = file["obs/scportrait_cell_id"][:].astype(np.uint64, copy=False)

    def obs(self) -> pd.DataFrame:
        """AnnData's obs."""
        return self._table("obs")

    def dropped(self) -> pd.DataFrame:
        """Empty in files of scPortrait."""
        name = "uns/gpu_extract/dropped"
        return self._table(name) if name in self._file else _dropped_table({})

    def info(self) -> dict[str, Any]:
        """Entries of scPortrait, and the texts that are ours."""
        shared = self._file["uns/single_cell_images"]
        facts = {name: shared[name][()].item() for name in NORMALIZATION}
        facts["compression"] = shared["compression"].asstr()[()]
        for name, item in self._file.get("uns/gpu_extract", {}).items():
            if isinstance(item, h5py.Dataset):
                facts[name] = item.asstr()[()]
        return facts

    def _table(self, name: str) -> pd.DataFrame:
        from anndata.io import read_elem

        table: pd.DataFrame = read_elem(self._file[name])
        return table


class SparcspyTables:
    """See `Tables`.

    SPARCSpy keeps no names. Its tiles are nucleus, cytosol and the channels, or one mask and one channel; files of
    ours bring the names in an attribute.
    """

    def __init__(self, file: h5py.File) -> None:
        self._file = file
        self.images = file[SPARCSPY_IMAGES]
        self._told: dict[str, Any] = json.loads(file.attrs.get("gpu_extract", "{}"))
        n_planes = self.images.shape[1]
        self.planes = tuple(map(str, self._told.get("planes") or _plane_names(n_planes)))
        self.n_masks = int(self._told.get("n_masks", min(2, n_planes - 1)))
        self.ids = file["single_cell_index"][:, 1].astype(np.uint64, copy=False)

    def obs(self) -> pd.DataFrame:
        """Ids, and of a time course its labels; label ``ID`` is the slide."""
        import pandas as pd

        columns: dict[str, Any] = {"scportrait_cell_id": self.ids}
        if "label_names" in self._file:
            names = self._file["label_names"].asstr()[2:]
            texts = self._file["single_cell_index_labelled"].asstr()[:, 2:]
            labels = dict(zip(names, texts.T, strict=True))
            if "ID" in labels:
                columns["slide"] = pd.Categorical(labels["ID"])
            columns |= {name: pd.Categorical(values) for name, values in labels.items()}
        return pd.DataFrame(columns, index=pd.Index(np.arange(len(self.ids)).astype(str), dtype=object))

    def dropped(self) -> pd.DataFrame:
        """Empty in files of SPARCSpy."""
        return _dropped_table(self._told.get("dropped", {}))

    def info(self) -> dict[str, Any]:
        """The compression, and what is ours."""
        texts = {name: value for name, value in self._told.items() if isinstance(value, str)}
        return {"compression": compression_of(self.images) or "other filters", **texts}


def _plane_names(n_planes: int) -> list[str]:
    """The planes of SPARCSpy's own tiles."""
    masks = ["seg_all_nucleus", "seg_all_cytosol"] if n_planes > 2 else ["mask0"]
    return masks + [f"ch{c}" for c in range(n_planes - len(masks))]


def _dropped_table(columns: dict[str, list[Any]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(
        {
            "slide": pd.Series(columns.get("slide", []), dtype=object),
            "cell_id": np.array(columns.get("cell_id", []), np.uint64),
            "reason": pd.Series(columns.get("reason", []), dtype=object),
        }
    )
