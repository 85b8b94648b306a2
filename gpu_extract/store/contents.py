"""The contents of an output file that are known before the first tile is computed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import InputError
from gpu_extract.listing import first_few, listed_apart, repeated
from gpu_extract.model import MASK_NAMES, CellTable, Slide
from gpu_extract.recipe import Program

__all__ = ["Contents"]

# The columns of obs that this package writes. Metadata with these names would be ambiguous.
OWN_COLUMNS = (
    "_index",
    "scportrait_cell_id",
    "cell_id",
    "slide",
    "center_y",
    "center_x",
    "bbox_y0",
    "bbox_x0",
    "bbox_y1",
    "bbox_x1",
    *(f"area_{name}" for name in MASK_NAMES),
    "truncated",
    "nucleus_id",
    "n_nuclei",
)


@dataclass(frozen=True)
class Contents:
    """The cells of a file, their sources, and the recipe.

    Parameters
    ----------
    cells : CellTable
    slides : tuple of Slide
        Slides with the same label planes and channels.
    program : Program
    planes : tuple of int
        The planes of a tile to store, in this order; all if empty.
    texts : mapping of str to str
        Additional texts to store next to the recipe, for example the command line.
    unique_ids : bool
        Number the cells of all slides from 1 in ``scportrait_cell_id``; their ids on the slide are then in ``cell_id``.

    Raises
    ------
    InputError
        If the slides have different planes, or a name or text cannot be stored.
    """

    cells: CellTable
    slides: tuple[Slide, ...]
    program: Program
    texts: Mapping[str, str] = field(default_factory=dict)
    planes: tuple[int, ...] = ()
    unique_ids: bool = False

    def __post_init__(self) -> None:
        assert len(self.plane_names) == (len(self.planes) or self.program.n_planes)
        names = [slide.name for slide in self.slides]
        if len(set(names)) != len(names):
            raise InputError(f"slide names must differ: {first_few(repeated(names))} occur more than once")
        for slide in self.slides:
            self._check_slide(slide)

    def _check_slide(self, slide: Slide) -> None:
        first = self.slides[0]
        planes, of_first = (one.mask_names + one.channel_names for one in (slide, first))
        if planes != of_first:
            given, expected = listed_apart(planes, of_first)
            raise InputError(
                f"slide {slide.name} has planes {given} and slide {first.name} has {expected}; "
                "the slides of one file must have the same"
            )
        for text in (slide.name, *slide.channel_names, *slide.metadata, *slide.metadata.values()):
            _check_text(text)
        for key in slide.metadata:
            if key in OWN_COLUMNS:
                raise InputError(f"metadata {key!r} of slide {slide.name} has the name of a column; rename it")
            if key in ("", ".", "..") or "/" in key:
                raise InputError(f"metadata {key!r} of slide {slide.name} cannot name a column in HDF5; rename it")

    @property
    def mask_planes(self) -> tuple[str, ...]:
        """Names of the mask planes in the spelling of scPortrait, length M."""
        return tuple(f"seg_all_{name}" for name in self.slides[0].mask_names)

    @property
    def plane_names(self) -> tuple[str, ...]:
        """Names of the stored planes of a tile, length K."""
        names = self.mask_planes + self.slides[0].channel_names
        return tuple(names[plane] for plane in self.planes or range(len(names)))

    @property
    def label_column(self) -> str:
        """The column of obs with the cells' ids in the label planes."""
        return "cell_id" if self.unique_ids else "scportrait_cell_id"

    @property
    def id_columns(self) -> dict[str, NDArray[np.uint64]]:
        """The columns of obs that hold ids, (N,) uint64 each."""
        labels = {self.label_column: self.cells.ids}
        if not self.unique_ids:
            return labels
        return {"scportrait_cell_id": np.arange(1, len(self.cells) + 1, dtype=np.uint64), **labels}

    @property
    def metadata_names(self) -> tuple[str, ...]:
        """Names of the metadata of all slides, in order of first occurrence."""
        return tuple(dict.fromkeys(key for slide in self.slides for key in slide.metadata))

    def provenance(self) -> dict[str, str]:
        """Return the texts needed to repeat the extraction: ``version``, ``recipe`` (TOML), ``sources`` (JSON).

        By ``cells_digest`` and some of ``texts`` a run that goes on after another finds out whether it is the same.
        """
        sources = [
            {
                "slide": slide.name,
                "labels": dict(slide.metadata),  # for compatibility with existing files
                "image": slide.image.source,
                **{name: raster.source for name, raster in slide.masks.items()},
                **({} if slide.pixel_size is None else {"pixel_size": slide.pixel_size}),
                **({} if slide.scale == (1, 1) else {"scale": slide.scale}),
            }
            for slide in self.slides
        ]
        return {
            **self.texts,
            **({"unique_ids": "yes"} if self.unique_ids else {}),
            "version": _own_version(),
            "recipe": self.program.recipe.to_toml(),
            # JSON escapes non-ASCII characters, including undecodable bytes in paths.
            "sources": json.dumps(sources, indent=1),
            "cells_digest": self.cells.digest(),
        }


@cache
def _own_version() -> str:
    try:
        return version("gpu-extract")
    except PackageNotFoundError:
        return "unknown"  # a checkout that is not installed


def _check_text(text: str) -> None:
    try:
        storable = b"\0" not in text.encode()
    except UnicodeEncodeError:
        storable = False
    if not storable:
        raise InputError(f"{text!r} cannot be stored as text in HDF5; rename it")
