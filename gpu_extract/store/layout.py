"""The `.h5sc` layout: an AnnData file that scPortrait's readers open, without its tiles."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from math import prod
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gpu_extract.store.contents import Contents

__all__ = ["IMAGES", "LEVELS", "LIBVER", "skeleton"]

IMAGES = "obsm/single_cell_images"
# Lower and upper value of each cell and channel, (N, C) each, known only at the end.
LEVELS = ("obsm/normalization_lower", "obsm/normalization_upper")
# HDF5 1.10's format, which every h5py of today reads; "latest" would be HDF5 2.0's, which h5py 3.14 does not.
LIBVER = ("v110", "v110")
# Where that format's superblock says how long the file is (HDF5 File Format Specification, II.A, version 3).
END_OF_FILE, END_OF_FILE_OFFSET = struct.Struct("<Q"), 28


def skeleton(contents: Contents, compression: str) -> bytes:
    """The whole HDF5 file but for its tiles, which HDF5 will put after its end; levels are 0."""
    from anndata.io import write_elem

    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=LIBVER) as file:
        write_elem(file, "/", _tables(contents, compression))
        _allocate_index(_create_images(file, contents, compression))
    written = buffer.getvalue()
    # HDF5 counts space that it has not written; BytesIO does not.
    (size,) = END_OF_FILE.unpack_from(written, END_OF_FILE_OFFSET)
    return written[:size].ljust(size, b"\0")


def _allocate_index(images: h5py.Dataset) -> None:
    """Make HDF5 allocate the whole index of the tiles, which it does at the first one; then remove that one."""
    n_cells = len(images)
    if n_cells == 1:
        return  # a dataset of one chunk has no index
    images.id.write_direct_chunk((0, 0, 0, 0), bytes(images.dtype.itemsize * prod(images.chunks)))
    images.resize(0, axis=0)
    images.resize(n_cells, axis=0)


def _create_images(file: h5py.File, contents: Contents, compression: str) -> h5py.Dataset:
    program = contents.program
    gzip = {"compression": "gzip", "compression_opts": 1} if compression == "gzip" else {}
    images = file.create_dataset(
        IMAGES,
        (len(contents.cells), *program.tile_shape),
        program.output_dtype,
        chunks=(1, *program.tile_shape),
        track_times=False,
        **gzip,
    )
    images.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    for name, value in _facts(contents, compression).items():
        # scPortrait keeps lists of names as bytes here, and as text in uns.
        is_list = isinstance(value, np.ndarray)
        images.attrs[name] = np.array([text.encode() for text in value]) if is_list else value
    images.attrs["normalization_range"] = np.array(_normalization_range(contents))
    return images


def _facts(contents: Contents, compression: str) -> dict[str, Any]:
    """What scPortrait writes both beside the tiles and in uns."""
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


def _tables(contents: Contents, compression: str) -> Any:
    """Everything of the file but tiles, as an AnnData; levels are 0."""
    import anndata

    n_channels = len(contents.program.cut)
    facts = _facts(contents, compression)
    lower, upper = _normalization_range(contents)
    shared = facts | {"normalization_range_lower": lower, "normalization_range_upper": upper}
    names = _row_names(len(facts["channel_names"]))
    channels = pd.Series(facts["channel_names"], index=names, dtype=object)
    mapping = pd.Categorical(_texts(facts["channel_mapping"]))
    var = pd.DataFrame({"channels": channels, "channel_mapping": mapping}, index=names)
    return anndata.AnnData(
        obs=_obs(contents),
        var=var,
        obsm={
            "spatial": contents.cells.centers[:, ::-1].astype(np.float64),
            **{name.removeprefix("obsm/"): np.zeros((len(contents.cells), n_channels)) for name in LEVELS},
        },
        uns={"single_cell_images": shared, "gpu_extract": _provenance(contents)},
    )


def _obs(contents: Contents) -> pd.DataFrame:
    cells, slides = contents.cells, contents.slides
    columns: dict[str, Any] = {
        "scportrait_cell_id": cells.ids,
        "slide": _slide_column(cells.slide, contents),
    }
    for key in contents.label_names:
        columns[key] = _label_column(cells.slide, [slide.labels.get(key) for slide in slides])
    columns |= {"center_y": cells.centers[:, 0], "center_x": cells.centers[:, 1]}
    columns |= {f"bbox_{edge}": cells.boxes[:, i] for i, edge in enumerate(("y0", "x0", "y1", "x1"))}
    columns |= {f"area_{name}": cells.areas[:, m] for m, name in enumerate(slides[0].mask_names)}
    columns["truncated"] = cells.truncated
    return pd.DataFrame(columns, index=_row_names(len(cells)))


def _slide_column(slide: NDArray[np.int64], contents: Contents) -> Any:
    return pd.Categorical.from_codes(slide, _texts([slide.name for slide in contents.slides]))


def _label_column(slide: NDArray[np.int64], values: Sequence[str | None]) -> Any:
    """One label of each cell; missing where its slide does not have it."""
    categories = list(dict.fromkeys(value for value in values if value is not None))
    codes = np.array([-1 if value is None else categories.index(value) for value in values])
    return pd.Categorical.from_codes(codes[slide], _texts(categories))


def _provenance(contents: Contents) -> dict[str, Any]:
    """What it takes to run the same extraction again, and what was left out."""
    dropped = contents.cells.dropped
    table = pd.DataFrame(
        {
            "slide": _slide_column(dropped.slide, contents),
            "cell_id": dropped.ids,
            "reason": pd.Categorical(_texts(dropped.reason)),
        },
        index=_row_names(len(dropped)),
    )
    sources = [
        {
            "slide": slide.name,
            "labels": dict(slide.labels),
            "image": slide.image.source,
            **{name: raster.source for name, raster in slide.masks.items()},
            **({} if slide.pixel_size is None else {"pixel_size": slide.pixel_size}),
            **({} if slide.scale == (1, 1) else {"scale": slide.scale}),
        }
        for slide in contents.slides
    ]
    return {
        **contents.provenance,
        "version": _own_version(),
        "recipe": contents.program.recipe.to_toml(),
        # JSON escapes what is not ASCII, among it the bytes of paths that are no text.
        "sources": json.dumps(sources, indent=1),
        "dropped": table,
    }


def _own_version() -> str:
    try:
        return version("gpu-extract")
    except PackageNotFoundError:
        return "unknown"  # run from a checkout that is not installed


def _row_names(n: int) -> pd.Index[Any]:
    return _texts(np.arange(n).astype(str))


def _texts(texts: Any) -> pd.Index[Any]:
    """Texts as plain objects: pandas 3 would make them nullable, which anndata writes in a way that is new."""
    index: pd.Index[Any] = pd.Index(texts, dtype=object)
    return index
