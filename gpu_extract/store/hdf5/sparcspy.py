"""The layout ``sparcspy``: the classic ``single_cells.h5`` of SPARCSpy 1.0.0.

::

    single_cell_data             (N, K, S, S), chunks (1, 1, S, S)
    single_cell_index            (N, 2) row and cell id
    label_names                  ("index", "cellid", names of the slides' metadata); only in time courses
    single_cell_index_labelled   (N, 2 + metadata) the same as text, with the metadata; only in time courses

A file with several slides or with metadata is a time course: tiles are float16 and the index is uint64, as in the
files of SPARCSpy's TimecourseHDF5CellExtraction. Otherwise tiles are float32 with float16 values and the index is
int64, as in the files of its HDF5CellExtraction. Data without a counterpart in SPARCSpy (the recipe, the names of the
planes, the dropped cells) are stored as JSON in an attribute of the file, ``gpu_extract``, which SPARCSpy ignores.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import OutputError
from gpu_extract.store.chunks import ChunkFormat
from gpu_extract.store.hdf5.datasets import compression_of, create_images
from gpu_extract.store.hdf5.layout import dropped_table, require, require_unique

if TYPE_CHECKING:
    import pandas as pd

    from gpu_extract.store.contents import Contents

__all__ = ["Sparcspy", "SparcspyTables"]

IMAGES = "single_cell_data"
# Label under which SPARCSpy stores the name of a slide. It is added unless the metadata has it.
NAME_LABEL = "ID"
TEXT = h5py.string_dtype()


class Sparcspy:
    """See `gpu_extract.store.hdf5.layout.Layout`."""

    images = IMAGES
    # Not .h5ad, because it is no AnnData file. SPARCSpy itself opens "single_cells.h5" only.
    suffixes = (".h5", ".hdf5", ".h5sc")
    limits: tuple[str, ...] = ()

    def format(self, contents: Contents, compression: str, chunk_cells: int = 1) -> ChunkFormat:
        """See `Layout.format`. A chunk holds one plane of each cell."""
        dtype = np.dtype(np.float16 if _is_time_course(contents) else np.float32)
        given, S = contents.program.output_dtype, contents.program.recipe.tile_size
        if not np.can_cast(given, dtype, "safe"):
            kind = "several slides" if len(contents.slides) > 1 else "a slide with metadata"
            raise OutputError(
                f"layout 'sparcspy' keeps tiles of {kind} as {dtype}, which cannot represent the recipe's {given}; "
                "use layout 'h5sc', or output_dtype float16"
            )
        if not _is_time_course(contents) and contents.cells.ids.max(initial=0) > np.iinfo(np.int64).max:
            raise OutputError(
                f"layout 'sparcspy' keeps ids as int64; cell {contents.cells.ids.max()} exceeds it; use layout 'h5sc'"
            )
        if contents.unique_ids:
            raise OutputError(
                "layout 'sparcspy' has no place for ids that are unique over the file (unique_ids, --unique-ids), its "
                "cells are told apart by their rows; leave that out, or use layout 'h5sc'"
            )
        n_planes = len(contents.plane_names) if compression == "none" else 1
        return ChunkFormat((min(chunk_cells, max(len(contents.cells), 1)), n_planes, S, S), dtype, compression)

    def warnings(self, contents: Contents) -> tuple[str, ...]:
        """See `Layout.warnings`: none, as readers of this layout go by row."""
        return ()

    def write(self, file: h5py.File, contents: Contents, format: ChunkFormat) -> None:
        """See `Layout.write`."""
        n_cells, n_planes = len(contents.cells), len(contents.plane_names)
        index = np.stack([np.arange(n_cells, dtype=np.uint64), contents.cells.ids], axis=1)
        if _is_time_course(contents):
            metadata = _metadata(contents)
            _write(file, "label_names", np.array(["index", "cellid", *metadata], object), TEXT)
            columns = [*index.astype(str).T, *metadata.values()]
            _write(file, "single_cell_index_labelled", np.stack(columns, axis=1).astype(object), TEXT)
            _write(file, "single_cell_index", index, np.uint64)
        else:
            _write(file, "single_cell_index", index, np.int64)
        file.attrs["gpu_extract"] = json.dumps(_attribute(contents))
        create_images(file, self.images, n_cells, n_planes, format)

    def tables(self, file: h5py.File) -> SparcspyTables:
        """See `Layout.tables`."""
        return SparcspyTables(file)

    def check(self, file: h5py.File) -> SparcspyTables:
        """See `Layout.check`."""
        images, index = file[self.images], file["single_cell_index"]
        n_cells = images.shape[0]
        require(index.shape == (n_cells, 2), f"single_cell_index has shape {index.shape} for {n_cells} tiles")
        require(np.array_equal(index[:, 0], np.arange(n_cells)), "single_cell_index does not number the rows 0, 1, ...")
        tables = SparcspyTables(file)
        require(len(tables.planes) == images.shape[1], f"{len(tables.planes)} planes are named for {images.shape[1]}")
        obs = tables.obs()
        if "label_names" in file:
            labelled = file["single_cell_index_labelled"].asstr()[:, 1]
            require(np.array_equal(labelled, tables.ids.astype(str)), "single_cell_index_labelled has other ids")
        require_unique(obs, obs.columns.tolist())
        return tables


class SparcspyTables:
    """The tables of a file of this package or of SPARCSpy; see `gpu_extract.store.hdf5.layout.Tables`.

    SPARCSpy stores no plane names. Its tiles have a nucleus, a cytosol and channels, or one mask and one channel.
    Files of this package store the names in an attribute.
    """

    def __init__(self, file: h5py.File) -> None:
        self._file = file
        self.images = file[IMAGES]
        self.is_own = "gpu_extract" in file.attrs
        self._attribute: dict[str, Any] = json.loads(file.attrs.get("gpu_extract", "{}"))
        n_planes = self.images.shape[1]
        self.planes = tuple(map(str, self._attribute.get("planes") or _plane_names(n_planes)))
        self.n_masks = int(self._attribute.get("n_masks", min(2, n_planes - 1)))
        self.ids = file["single_cell_index"][:, 1].astype(np.uint64, copy=False)

    def obs(self) -> pd.DataFrame:
        """See `Tables.obs`; the slide of a time course is its metadata ``ID``."""
        import pandas as pd

        columns: dict[str, Any] = {"scportrait_cell_id": self.ids}
        if "label_names" in self._file:
            names = self._file["label_names"].asstr()[2:]
            texts = self._file["single_cell_index_labelled"].asstr()[:, 2:]
            metadata = dict(zip(names, texts.T, strict=True))
            if NAME_LABEL in metadata:
                columns["slide"] = pd.Categorical(metadata[NAME_LABEL])
            columns |= {name: pd.Categorical(values) for name, values in metadata.items()}
        return pd.DataFrame(columns, index=pd.Index(np.arange(len(self.ids)).astype(str), dtype=object))

    def dropped(self) -> pd.DataFrame:
        """See `Tables.dropped`; empty in files of SPARCSpy."""
        return dropped_table(self._attribute.get("dropped", {}))

    def info(self) -> dict[str, Any]:
        """See `Tables.info`; the compression and the texts that this package adds."""
        texts = {name: value for name, value in self._attribute.items() if isinstance(value, str)}
        return {"compression": compression_of(self.images), **texts}


def _plane_names(n_planes: int) -> list[str]:
    """Return plane names for tiles written by SPARCSpy."""
    masks = ["seg_all_nucleus", "seg_all_cytosol"] if n_planes > 2 else ["mask0"]
    return masks + [f"ch{c}" for c in range(n_planes - len(masks))]


def _is_time_course(contents: Contents) -> bool:
    return len(contents.slides) > 1 or bool(contents.metadata_names)


def _metadata(contents: Contents) -> dict[str, NDArray[Any]]:
    """Return the metadata of each cell's slide, (N,) texts by name; empty if the slide has no such entry."""
    slides, slide = contents.slides, contents.cells.slide
    columns = {name: [one.metadata.get(name, "") for one in slides] for name in contents.metadata_names}
    if NAME_LABEL not in columns:
        columns = {NAME_LABEL: [one.name for one in slides], **columns}
    return {name: np.array(texts, object)[slide] for name, texts in columns.items()}


def _attribute(contents: Contents) -> dict[str, Any]:
    dropped = contents.cells.dropped
    return {
        **contents.provenance(),
        "planes": contents.plane_names,
        "n_masks": _n_leading_masks(contents),
        "dropped": {
            "slide": [contents.slides[i].name for i in dropped.slide],
            "cell_id": dropped.ids.tolist(),
            "reason": dropped.reasons().tolist(),
        },
    }


def _n_leading_masks(contents: Contents) -> int:
    """Return the number of masks before the first channel: M, unless planes were selected or reordered."""
    n_masks = len(contents.mask_planes)
    is_mask = [plane < n_masks for plane in contents.planes or range(contents.program.n_planes)]
    return [*is_mask, False].index(False)


def _write(file: h5py.File, name: str, values: NDArray[Any], dtype: Any) -> None:
    file.create_dataset(name, data=values.astype(dtype), dtype=dtype, track_times=False)
