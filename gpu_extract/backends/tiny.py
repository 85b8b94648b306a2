"""One cell of 8 x 8 pixels, with which kernels are compiled ahead and devices are tried."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from gpu_extract.model import MASK_NAMES, Batch, Window
from gpu_extract.recipe import Program, Recipe

__all__ = ["tiny_batch"]

SIDE = 8


def tiny_batch(image_dtype: DTypeLike, label_dtype: DTypeLike) -> tuple[Window, Batch, Program]:
    """Return a window with one cell in images and labels of the given types, its batch, and a program for it."""
    image, labels = np.zeros((1, SIDE, SIDE), image_dtype), np.zeros((SIDE, SIDE), label_dtype)
    image[0, 3:5, 3:5], labels[3:5, 3:5] = 1, 1
    program = Recipe(tile_size=SIDE).program(MASK_NAMES, len(image), image.dtype)
    batch = Batch(0, np.arange(1), np.ones(1, np.uint64), np.zeros((1, 2), np.int64), (0, 0, SIDE, SIDE))
    return Window(image, (labels, labels), 0, 0), batch, program
