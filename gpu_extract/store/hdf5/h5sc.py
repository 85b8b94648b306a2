"""The layout ``h5sc``: an AnnData file that scPortrait can read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import OutputError
from gpu_extract.store.chunks import ChunkFormat
from gpu_extract.store.hdf5.datasets import compression_of, create_images
from gpu_extract.store.hdf5.h5sc_tables import cell_ids, check_kinds, plane_names
from gpu_extract.store.hdf5.layout import dropped_table, require, require_unique

if TYPE_CHECKING:
    import pandas as pd

    from gpu_extract.store.contents import Contents

__all__ = ["H5sc", "H5scTables"]

IMAGES = "obsm/single_cell_images"
# Lower and upper limit of each cell and channel.
LIMITS = ("obsm/normalization_lower", "obsm/normalization_upper")
# Entries of scPortrait that `H5scTables.info` returns, besides the compression.
NORMALIZATION = ("normalization", "normalization_range_lower", "normalization_range_upper")


class H5sc:
    """See `gpu_extract.store.hdf5.layout.Layout`."""

    images = IMAGES
    suffixes = (".h5sc", ".h5ad", ".h5", ".hdf5")
    limits = LIMITS

    def format(self, contents: Contents, compression: str, chunk_cells: int = 1) -> ChunkFormat:
        """See `Layout.format`. A chunk holds whole tiles in the output type of the recipe."""
        if contents.planes:
            raise OutputError("layout 'h5sc' keeps all planes, masks first; to choose planes use layout 'sparcspy'")
        return ChunkFormat(
            (min(chunk_cells, max(len(contents.cells), 1)), *contents.program.tile_shape),
            contents.program.output_dtype,
            compression,
        )

    def warnings(self, contents: Contents) -> tuple[str, ...]:
        """See `Layout.warnings`: whether ids are ambiguous for readers that go by id."""
        if contents.unique_ids or len(contents.slides) == 1:
            return ()
        ids, counts = np.unique(contents.cells.ids, return_counts=True)
        repeated = ids[counts > 1]
        if not len(repeated):
            return ()
        return (
            f"{len(repeated)} ids occur on several slides, the first is {repeated[0]}; scPortrait looks cells up by id "
            "alone and finds only the last of them: give --unique-ids (unique_ids=True) to number the cells of all "
            "slides",
        )

    def write(self, file: h5py.File, contents: Contents, format: ChunkFormat) -> None:
        """See `Layout.write`. The dataset of tiles has the attributes that scPortrait reads."""
        from gpu_extract.store.hdf5.anndata_files import write_anndata
        from gpu_extract.store.hdf5.anndata_tables import anndata_tables

        facts = _facts(contents, format.compression)
        lower, upper = _normalization_range(contents)
        shared = facts | {"normalization_range_lower": lower, "normalization_range_upper": upper}
        write_anndata(file, anndata_tables(contents, shared, self.limits))
        images = create_images(file, self.images, len(contents.cells), contents.program.n_planes, format)
        images.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        for name, value in facts.items():
            # scPortrait stores lists of names as bytes in attributes, and as text in uns.
            is_list = isinstance(value, np.ndarray)
            images.attrs[name] = np.array([text.encode() for text in value]) if is_list else value
        images.attrs["normalization_range"] = np.array((lower, upper))

    def tables(self, file: h5py.File) -> H5scTables:
        """See `Layout.tables`."""
        return H5scTables(file)

    def check(self, file: h5py.File) -> H5scTables:
        """See `Layout.check`. Files of other programs may lack all tables but obs."""
        images, tables = file[self.images], H5scTables(file)
        if not tables.is_own:
            _check_foreign(file, tables)
            return tables
        _check_attributes(images)
        _check_planes(file, images)
        _check_tables(file, images, tables)
        return tables


class H5scTables:
    """The tables of a file of this package or of scPortrait; see `gpu_extract.store.hdf5.layout.Tables`."""

    def __init__(self, file: h5py.File) -> None:
        self._file = file
        self.images = file[IMAGES]
        # Programs that read our file and write it again keep uns. anndata drops the attributes of the tiles, and
        # `scportrait.io.write_h5sc` writes image_size_x instead of image_size.
        self.is_own = "uns/gpu_extract" in file and "image_size" in self.images.attrs
        self.planes, kinds = plane_names(file, self.images)
        self.n_masks = kinds.count("mask")
        self.has_unique_ids = "uns/gpu_extract/unique_ids" in file
        self.ids: NDArray[np.uint64] = cell_ids(file, "cell_id" if self.has_unique_ids else "scportrait_cell_id")

    def obs(self) -> pd.DataFrame:
        """See `Tables.obs`; this is ``obs`` of the AnnData file."""
        return self._table("obs")

    def dropped(self) -> pd.DataFrame:
        """See `Tables.dropped`; empty in files of scPortrait."""
        name = "uns/gpu_extract/dropped"
        return self._table(name) if name in self._file else dropped_table({})

    def info(self) -> dict[str, Any]:
        """See `Tables.info`; the entries of scPortrait and the texts that this package adds."""
        shared = self._file.get("uns/single_cell_images", {})
        facts = {name: shared[name][()].item() for name in NORMALIZATION if name in shared}
        if "compression" in shared:
            facts["compression"] = shared["compression"].asstr()[()]
        else:
            facts["compression"] = compression_of(self.images)
        for name, item in self._file.get("uns/gpu_extract", {}).items():
            if isinstance(item, h5py.Dataset):
                facts[name] = item.asstr()[()]
        return facts

    def _table(self, name: str) -> pd.DataFrame:
        from anndata.io import read_elem

        table: pd.DataFrame = read_elem(self._file[name])
        return table


def _facts(contents: Contents, compression: str) -> dict[str, Any]:
    """Return the entries that scPortrait stores both as attributes of the tiles and in uns."""
    n_masks, n_channels = len(contents.mask_planes), len(contents.program.cut)
    recipe = contents.program.recipe
    return {
        "n_cells": len(contents.cells),
        "n_channels": n_masks + n_channels,
        "n_masks": n_masks,
        "n_image_channels": n_channels,
        "image_size": recipe.tile_size,
        "normalization": recipe.normalization != "none",
        "channel_names": np.array(contents.plane_names, object),
        "channel_mapping": np.array(["mask"] * n_masks + ["image_channel"] * n_channels, object),
        "compression": compression,
    }


def _normalization_range(contents: Contents) -> tuple[float, float]:
    recipe = contents.program.recipe
    if recipe.normalization == "quantile":
        return recipe.quantiles
    if recipe.normalization == "range":
        assert recipe.value_range is not None  # Recipe checks it
        return recipe.value_range
    return (0.0, 1.0)


def _check_attributes(images: h5py.Dataset) -> None:
    n_cells, n_planes, S, _ = images.shape
    facts = {name: int(images.attrs[name]) for name in ("n_cells", "n_channels", "image_size")}
    require(
        facts == {"n_cells": n_cells, "n_channels": n_planes, "image_size": S},
        f"its tiles have shape {images.shape} and its attributes say {facts}",
    )


def _check_planes(file: h5py.File, images: h5py.Dataset) -> None:
    """Compare the names and kinds of the planes in all places where they are stored."""
    from anndata.io import read_elem

    n_planes = images.shape[1]
    var, shared = read_elem(file["var"]), read_elem(file["uns/single_cell_images"])
    names, kinds = list(shared["channel_names"]), list(shared["channel_mapping"])
    require(len(names) == len(kinds) == n_planes, f"it has {n_planes} planes and names {len(names)}")
    require(list(var["channels"]) == names, "var and uns name different planes")
    require(list(var["channel_mapping"]) == kinds, "var and uns give different kinds of planes")
    check_kinds(kinds)


def _check_foreign(file: h5py.File, tables: H5scTables) -> None:
    """Compare the tables of another program's file with its tiles, as far as it has them."""
    n_cells, n_planes = tables.images.shape[:2]
    names, kinds = plane_names(file, tables.images)
    require(len(names) == len(kinds) == n_planes, f"it has {n_planes} planes and names {len(names)}")
    check_kinds(kinds)
    require(len(tables.ids) == n_cells, f"obs has {len(tables.ids)} rows for {n_cells} tiles")


def _check_tables(file: h5py.File, images: h5py.Dataset, tables: H5scTables) -> None:
    """Compare the tables with the tiles."""
    from anndata.io import read_elem

    n_cells = images.shape[0]
    obs = read_elem(file["obs"])
    require(len(obs) == n_cells, f"obs has {len(obs)} rows for {n_cells} tiles")
    require(np.array_equal(obs.index, np.arange(n_cells).astype(str)), "obs is not indexed '0', '1', ...")
    ids: NDArray[Any] = obs["scportrait_cell_id"].to_numpy()
    require(ids.dtype == np.uint64, f"scportrait_cell_id is of type {ids.dtype}; it must be uint64")
    require_unique(obs, ["slide", "cell_id" if tables.has_unique_ids else "scportrait_cell_id"])
    if tables.has_unique_ids:
        require_unique(obs, ["scportrait_cell_id"])
    for name in (*LIMITS, "obsm/spatial"):
        if name in file:
            values = read_elem(file[name])
            require(len(values) == n_cells, f"{name} has {len(values)} rows for {n_cells} tiles")
            broken = np.flatnonzero(~np.isfinite(values).all(axis=1))
            if len(broken):
                raise OutputError(f"row {broken[0]} (cell {ids[broken[0]]}): {name} is not finite")
