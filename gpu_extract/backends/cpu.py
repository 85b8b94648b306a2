"""The cpu backend: the kernels of `cpu_kernels` over a batch, without the GIL."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpu_extract.backends import cpu_kernels as kernels
from gpu_extract.backends.program_tables import mask_tables, quantile_pixels
from gpu_extract.model import Batch, CellImages, Window
from gpu_extract.recipe import Program

__all__ = ["extract"]


class Options(NamedTuple):
    """The recipe's choices as the kernels read them."""

    output: int  # how values are written: OUTPUT_HALF (float16 as bits), OUTPUT_FLOAT, OUTPUT_INTEGER
    exclude: bool
    apply_masks: bool
    cut_before: bool
    pixels: int  # where quantiles are taken: PIXELS_MASK, PIXELS_TILE, PIXELS_GIVEN
    scale: bool
    flat_zero: bool
    stretch: NDArray[np.bool_]  # (C,)


class Numbers(NamedTuple):
    """The recipe's numbers as the kernels read them."""

    unit: float
    lower: float
    upper: float


def extract(window: Window, batch: Batch, program: Program, levels: NDArray[np.float64] | None = None) -> CellImages:
    """The finished tiles of a batch; parameters and result as for `reference.extract`."""
    n, C = len(batch), len(program.cut)
    levels = program.fixed_levels if levels is None else levels
    images = np.empty((n, *program.tile_shape), program.output_dtype)
    used = np.empty((n, C, 2))
    labels = label_planes(window.labels)
    image = window.image.astype(np.float32) if window.image.dtype == np.float16 else window.image
    masks, weights = mask_tables(program)
    kernels.extract_cells(
        image,
        labels,
        batch.ids.astype(labels[0].dtype),
        batch.corners - (window.y0, window.x0),
        masks,
        weights,
        np.array(program.stored),
        np.array(program.cut),
        options(program, levels),
        Numbers(program.unit, *program.recipe.quantiles),
        np.empty((C, 2)) if levels is None else levels,
        images.view(np.uint16) if program.output_dtype == np.float16 else images,
        used,
    )
    return CellImages(batch.rows, batch.ids, images, used)


def label_planes(planes: tuple[NDArray[Any], ...]) -> tuple[NDArray[Any], ...]:
    """The label planes as uint32, or all as uint64 where one has 64 bits; ids are not negative."""
    wide = any(plane.dtype.itemsize > 4 for plane in planes)
    return tuple(np.ascontiguousarray(plane, np.uint64 if wide else np.uint32) for plane in planes)


def options(program: Program, levels: NDArray[np.float64] | None) -> Options:
    """The recipe's choices; ``levels`` is None where each cell has its own quantiles."""
    recipe = program.recipe
    output = kernels.OUTPUT_FLOAT if program.output_dtype.kind == "f" else kernels.OUTPUT_INTEGER
    return Options(
        output=kernels.OUTPUT_HALF if program.output_dtype == np.float16 else output,
        exclude=recipe.neighbours == "exclude",
        apply_masks=recipe.apply_masks,
        cut_before=recipe.cut == "before",
        pixels=quantile_pixels(program, levels),
        scale=recipe.normalization != "none",
        flat_zero=recipe.flat_channel == "zero",
        stretch=np.array(program.stretched),
    )
