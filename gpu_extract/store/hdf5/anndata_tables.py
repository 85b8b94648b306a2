"""The tables of an ``.h5sc`` file as AnnData.

This is the only module that imports pandas and anndata at module level; it is loaded when a file is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anndata
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gpu_extract.store.contents import Contents
from gpu_extract.store.hdf5.spatial_annotation import region_columns, spatialdata_attrs
from gpu_extract.store.metadata_numbers import as_numbers

__all__ = ["anndata_tables"]


def anndata_tables(contents: Contents, facts: dict[str, Any], limits: Sequence[str]) -> anndata.AnnData:
    """Return all tables of the file, with limits of 0.

    Parameters
    ----------
    contents : Contents
    facts : dict
        Entries of ``uns["single_cell_images"]``, as in scPortrait.
    limits : sequence of str
        Names of the datasets of limits, ``obsm/...``.
    """
    n_channels = len(contents.program.cut)
    names = _row_names(len(facts["channel_names"]))
    channels = pd.Series(facts["channel_names"], index=names, dtype=object)
    mapping = pd.Categorical(_texts(facts["channel_mapping"]))
    var = pd.DataFrame({"channels": channels, "channel_mapping": mapping}, index=names)
    attrs = spatialdata_attrs(contents)
    return anndata.AnnData(
        obs=_obs(contents),
        var=var,
        obsm={
            "spatial": contents.cells.centers[:, ::-1].astype(np.float64),
            **{name.removeprefix("obsm/"): np.zeros((len(contents.cells), n_channels)) for name in limits},
        },
        uns={
            "single_cell_images": facts,
            "gpu_extract": {**contents.provenance(), "dropped": _dropped(contents)},
            **({"spatialdata_attrs": attrs} if attrs else {}),
        },
    )


def _obs(contents: Contents) -> pd.DataFrame:
    cells, slides = contents.cells, contents.slides
    columns: dict[str, Any] = {
        **contents.id_columns,
        "slide": _slide_column(cells.slide, contents),
    }
    for key, regions in region_columns(contents).items():
        # squidpy draws one plot per category, including those without cells.
        columns[key] = pd.Categorical.from_codes(cells.slide, _texts(regions)).remove_unused_categories()
    for key in contents.metadata_names:
        columns[key] = _metadata_column(cells.slide, [slide.metadata.get(key) for slide in slides])
    columns |= {"center_y": cells.centers[:, 0], "center_x": cells.centers[:, 1]}
    columns |= {f"bbox_{edge}": cells.boxes[:, i] for i, edge in enumerate(("y0", "x0", "y1", "x1"))}
    columns |= {f"area_{name}": cells.areas[:, m] for m, name in enumerate(slides[0].mask_names)}
    columns["truncated"] = cells.truncated
    if cells.nuclei is not None:
        columns |= {"nucleus_id": cells.nuclei[:, 0], "n_nuclei": cells.nuclei[:, 1].astype(np.int64)}
    return pd.DataFrame(columns, index=_row_names(len(cells)))


def _slide_column(slide: NDArray[np.int64], contents: Contents) -> Any:
    return pd.Categorical.from_codes(slide, _texts([slide.name for slide in contents.slides]))


def _metadata_column(slide: NDArray[np.int64], values: Sequence[str | None]) -> Any:
    """Return the value of each cell's slide, numbers or a categorical; missing if the slide's is missing or empty."""
    numbers = as_numbers(values)
    if numbers is not None:
        return numbers[slide]
    categories = list(dict.fromkeys(value for value in values if value))
    codes = np.array([categories.index(value) if value else -1 for value in values])
    return pd.Categorical.from_codes(codes[slide], _texts(categories))


def _dropped(contents: Contents) -> pd.DataFrame:
    dropped = contents.cells.dropped
    return pd.DataFrame(
        {
            "slide": _slide_column(dropped.slide, contents),
            "cell_id": dropped.ids,
            "reason": pd.Categorical(_texts(dropped.reasons())),
        },
        index=_row_names(len(dropped)),
    )


def _row_names(n: int) -> pd.Index[Any]:
    return _texts(np.arange(n).astype(str))


def _texts(texts: Any) -> pd.Index[Any]:
    """Return texts as an index of objects.

    By default pandas 3 makes them nullable strings, which anndata writes in an encoding that older readers do not know.
    """
    index: pd.Index[Any] = pd.Index(texts, dtype=object)
    return index
