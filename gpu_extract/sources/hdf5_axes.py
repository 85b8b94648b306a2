"""Names of the axes of an HDF5 dataset: vigra's and ilastik's ``axistags``, and HDF5's dimension labels and scales."""

from __future__ import annotations

import json
from typing import Any

from gpu_extract.errors import InputError, SourceError
from gpu_extract.listing import listed
from gpu_extract.sources.axes import axis_positions
from gpu_extract.sources.names import cleaned

__all__ = ["dataset_axes", "has_axis_names"]


def has_axis_names(dataset: Any) -> bool:
    """Return whether a dataset names any of its axes."""
    return "axistags" in dataset.attrs or any(_dimension_names(dataset))


def dataset_axes(subject: str, dataset: Any, error: type[InputError] = SourceError) -> dict[str, int] | None:
    """Return the position of each axis that a dataset names; None if it names none. See `axes.axis_positions`.

    Raises
    ------
    SourceError
        If its axistags and its dimension labels contradict each other, or the names cannot be used.
    """
    tags, labels = _axistags(subject, dataset, error), _dimension_names(dataset)
    by_tags = None if tags is None else axis_positions(f"{subject} (its axistags)", tags, dataset.shape, error)
    by_labels = axis_positions(f"{subject} (its dimension labels)", labels, dataset.shape, error)
    if by_tags is not None and by_labels is not None and by_tags != by_labels:
        raise error(
            f"{subject} has the axes {listed(tags or ())} by its axistags and {listed(labels)} by its dimension "
            "labels; correct one of them"
        )
    return by_labels if by_tags is None else by_tags


def _axistags(subject: str, dataset: Any, error: type[InputError]) -> list[str] | None:
    """Return the keys in the JSON that vigra and ilastik write; None if there is none."""
    text = dataset.attrs.get("axistags")
    if text is None:
        return None
    try:
        text = text.decode() if isinstance(text, bytes) else str(text)
        return [cleaned(str(axis["key"])) for axis in json.loads(text)["axes"]]
    except (ValueError, KeyError, TypeError, RecursionError) as cause:
        raise error(f"{subject} has axistags that cannot be read; correct or remove this attribute") from cause


def _dimension_names(dataset: Any) -> list[str]:
    """Return the label of each axis, else the name of its first scale (netCDF4), else an empty text."""
    names = []
    for dimension in dataset.dims:
        label = cleaned(dimension.label)
        if not label and len(dimension):
            label = cleaned(str(dimension[0].name or "")).rpartition("/")[2]
        names.append(label)
    return names
