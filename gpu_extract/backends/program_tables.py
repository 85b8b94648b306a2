"""Numeric tables of a program, for compiled backends: the same rows for numba and for CUDA."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_extract.recipe import Program, gaussian_weights

__all__ = ["LIMITS_GIVEN", "LIMITS_OF_MASK", "LIMITS_OF_TILE", "limits_source", "mask_tables"]

# Where a cell's limits come from, in the order of ``enum LimitsSource`` in kernels/extract.cu.
LIMITS_OF_MASK, LIMITS_OF_TILE, LIMITS_GIVEN = 0, 1, 2


def mask_tables(program: Program) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the program's masks, (k, 4), and their blur weights from the center outwards, padded to (k, R + 1).

    A row of masks is the index of the label plane, fill holes (0 or 1), the radius of the dilation, and the radius of
    the blur.
    """
    blurs = [gaussian_weights(steps.sigma) for steps in program.masks]
    weights = np.zeros((len(blurs), max(map(len, blurs))))
    for row, blur in zip(weights, blurs, strict=True):
        row[: len(blur)] = blur
    masks = [
        (steps.plane, steps.fill_holes, steps.dilation, len(blur) - 1)
        for steps, blur in zip(program.masks, blurs, strict=True)
    ]
    return np.array(masks, np.int64), weights


def limits_source(program: Program, limits: NDArray[Any] | None) -> int:
    """Return where a cell's limits come from: they are given, or quantiles of the pixels that the recipe selects."""
    if limits is not None:
        return LIMITS_GIVEN
    return LIMITS_OF_MASK if program.recipe.quantile_pixels == "mask" else LIMITS_OF_TILE
