"""The classic layout: ``single_cells.h5`` as SPARCSpy 1.0.0 writes it.

::

    single_cell_data             (N, K, S, S), chunks (1, 1, S, S)
    single_cell_index            (N, 2) row and cell id
    label_names                  ("index", "cellid", names of the slides' labels); time courses only
    single_cell_index_labelled   (N, 2 + labels) the same as texts, with the labels; time courses only

A file is a time course where it has more than one slide, or its slide has labels: its tiles are float16 and its
index uint64, as those of SPARCSpy's TimecourseHDF5CellExtraction. Otherwise they are float32 that holds float16
values, and int64, as those of its HDF5CellExtraction. What SPARCSpy has no place for (the recipe, the names of the
planes, the dropped cells) is one attribute of the file, ``gpu_extract``, in JSON; it does not look there.
"""

from __future__ import annotations

import json
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from gpu_extract.cell_tables import SPARCSPY_IMAGES
from gpu_extract.errors import OutputError
from gpu_extract.store.codecs import ChunkFormat
from gpu_extract.store.contents import Contents

__all__ = ["Sparcspy"]

# SPARCSpy's own label of a slide's name, put first where the slides do not bring it.
NAME_LABEL = "ID"
TEXT = h5py.string_dtype()


class Sparcspy:
    """See `gpu_extract.store.layout.Layout`."""

    images = SPARCSPY_IMAGES
    levels: tuple[str, ...] = ()

    def format(self, contents: Contents, compression: str, chunk_cells: int = 1) -> ChunkFormat:
        """Each plane of a tile is a chunk of its own."""
        dtype = np.dtype(np.float16 if _is_time_course(contents) else np.float32)
        given, S = contents.program.output_dtype, contents.program.recipe.tile_size
        if not np.can_cast(given, dtype, "safe"):
            kind = "several slides" if len(contents.slides) > 1 else "a slide with labels"
            raise OutputError(
                f"layout 'sparcspy' keeps tiles of {kind} as {dtype}, which does not hold the recipe's {given}; "
                "use layout 'h5sc', or output_dtype float16"
            )
        if not _is_time_course(contents) and contents.cells.ids.max() > np.iinfo(np.int64).max:
            raise OutputError(
                f"layout 'sparcspy' keeps ids as int64 and cell {contents.cells.ids.max()} is beyond; use layout 'h5sc'"
            )
        n_planes = contents.program.n_planes if compression == "none" else 1
        return ChunkFormat((min(chunk_cells, len(contents.cells)), n_planes, S, S), dtype, compression)

    def write(self, file: h5py.File, contents: Contents, format: ChunkFormat) -> None:
        """Index, labels of a time course, and an empty dataset of tiles."""
        n_cells, n_planes = len(contents.cells), len(contents.plane_names)
        index = np.stack([np.arange(n_cells, dtype=np.uint64), contents.cells.ids], axis=1)
        if _is_time_course(contents):
            labels = _labels(contents)
            _write(file, "label_names", np.array(["index", "cellid", *labels], object), TEXT)
            columns = [*index.astype(str).T, *labels.values()]
            _write(file, "single_cell_index_labelled", np.stack(columns, axis=1).astype(object), TEXT)
            _write(file, "single_cell_index", index, np.uint64)
        else:
            _write(file, "single_cell_index", index, np.int64)
        file.attrs["gpu_extract"] = json.dumps(_told(contents))
        format.create(file, self.images, n_cells, n_planes)


def _is_time_course(contents: Contents) -> bool:
    return len(contents.slides) > 1 or bool(contents.label_names)


def _labels(contents: Contents) -> dict[str, NDArray[Any]]:
    """Each label of every cell, (N,) texts by name; empty where a cell's slide does not have it."""
    slides, slide = contents.slides, contents.cells.slide
    columns = {name: [one.labels.get(name, "") for one in slides] for name in contents.label_names}
    if NAME_LABEL not in columns:
        columns = {NAME_LABEL: [one.name for one in slides], **columns}
    return {name: np.array(texts, object)[slide] for name, texts in columns.items()}


def _told(contents: Contents) -> dict[str, Any]:
    dropped = contents.cells.dropped
    return {
        **contents.told(),
        "planes": contents.plane_names,
        "n_masks": _n_leading_masks(contents),
        "dropped": {
            "slide": [contents.slides[i].name for i in dropped.slide],
            "cell_id": dropped.ids.tolist(),
            "reason": dropped.reason.tolist(),
        },
    }


def _n_leading_masks(contents: Contents) -> int:
    """How many masks come before the first channel: all but where the planes were put in an order of their own."""
    n_masks = len(contents.mask_planes)
    is_mask = [plane < n_masks for plane in contents.planes or range(contents.program.n_planes)]
    return [*is_mask, False].index(False)


def _write(file: h5py.File, name: str, values: NDArray[Any], dtype: Any) -> None:
    file.create_dataset(name, data=values.astype(dtype), dtype=dtype, track_times=False)
