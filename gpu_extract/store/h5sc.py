"""The `.h5sc` layout: an AnnData file that scPortrait's readers open, without its tiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gpu_extract.cell_tables import H5SC_IMAGES
from gpu_extract.errors import OutputError
from gpu_extract.store.codecs import ChunkFormat
from gpu_extract.store.contents import Contents

__all__ = ["LEVELS", "H5sc"]

# Lower and upper value of each cell and channel.
LEVELS = ("obsm/normalization_lower", "obsm/normalization_upper")


class H5sc:
    """See `gpu_extract.store.layout.Layout`."""

    images = H5SC_IMAGES
    levels = LEVELS

    def format(self, contents: Contents, compression: str, chunk_cells: int = 1) -> ChunkFormat:
        """A tile is a chunk, in the recipe's type."""
        if contents.planes:
            raise OutputError("layout 'h5sc' keeps all planes, masks first; to choose planes use layout 'sparcspy'")
        return ChunkFormat(
            (min(chunk_cells, len(contents.cells)), *contents.program.tile_shape),
            contents.program.output_dtype,
            compression,
        )

    def write(self, file: h5py.File, contents: Contents, format: ChunkFormat) -> None:
        """AnnData's tables, and an empty dataset of tiles with what scPortrait wants to know of it."""
        from anndata.io import write_elem

        write_elem(file, "/", _tables(contents, format.compression))
        images = format.create(file, self.images, len(contents.cells), contents.program.n_planes)
        images.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        for name, value in _facts(contents, format.compression).items():
            # scPortrait keeps lists of names as bytes here, and as text in uns.
            is_list = isinstance(value, np.ndarray)
            images.attrs[name] = np.array([text.encode() for text in value]) if is_list else value
        images.attrs["normalization_range"] = np.array(_normalization_range(contents))


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
    if cells.nuclei is not None:
        columns |= {"nucleus_id": cells.nuclei[:, 0], "n_nuclei": cells.nuclei[:, 1].astype(np.int64)}
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
    return {**contents.told(), "dropped": table}


def _row_names(n: int) -> pd.Index[Any]:
    return _texts(np.arange(n).astype(str))


def _texts(texts: Any) -> pd.Index[Any]:
    """Texts as plain objects: pandas 3 would make them nullable, which anndata writes in a way that is new."""
    index: pd.Index[Any] = pd.Index(texts, dtype=object)
    return index
