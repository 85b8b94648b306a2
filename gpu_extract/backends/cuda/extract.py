"""The fused extraction on a device: a recipe as arrays for ``kernels/extract.cu``, and the launch."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpu_extract.backends.cuda.device import Array, Device, scratch_blocks
from gpu_extract.backends.cuda.registry import extract_kernel
from gpu_extract.backends.program_tables import limits_source, mask_tables
from gpu_extract.recipe import Program

__all__ = ["ProgramArrays", "launch_extract", "program_arrays", "workspace_nbytes"]

# Warps of a block; each blurs a row of a mask at a time.
WARPS = 8


class ProgramArrays(NamedTuple):
    """A program as the arrays that the kernel ``extract`` takes; see there."""

    masks: NDArray[np.int32]  # (k, 4)
    weights: NDArray[np.float32]  # (k, R + 1)
    stored: NDArray[np.int32]  # (M,)
    cut: NDArray[np.int32]  # (C,)
    stretch: NDArray[np.int32]  # (C,)
    options: NDArray[np.int32]  # (6,), enum Option
    numbers: NDArray[np.float64]  # (3,), enum Number
    limits: NDArray[np.float64]  # (C, 2)


def program_arrays(program: Program, limits: NDArray[np.float64] | None) -> ProgramArrays:
    """Return the arrays of a program in host memory; ``limits`` are as for `reference.extract`."""
    recipe, C = program.recipe, len(program.cut)
    limits = program.fixed_limits if limits is None else limits
    masks, weights = mask_tables(program)
    options = (
        recipe.neighbours == "exclude",
        recipe.apply_masks,
        recipe.cut == "before",
        limits_source(program, limits),
        recipe.normalization != "none",
        recipe.flat_channel == "zero",
    )
    return ProgramArrays(
        masks=masks.astype(np.int32),
        weights=weights.astype(np.float32),
        stored=np.array(program.stored, np.int32),
        cut=np.array(program.cut, np.int32),
        stretch=np.array(program.stretched, np.int32),
        options=np.array(options, np.int32),
        numbers=np.array([program.unit, *recipe.quantiles]),
        limits=np.zeros((C, 2)) if limits is None else np.ascontiguousarray(limits, np.float64),
    )


def workspace_nbytes(tile_size: int) -> int:
    """Return the bytes of a block's workspace: four bit masks, a row of floats per warp, and a blurred mask."""
    words = tile_size * ((tile_size + 31) // 32)
    return 4 * (4 * words + WARPS * tile_size + tile_size * tile_size)


def launch_extract(
    device: Device,
    program: Program,
    arrays: ProgramArrays,
    image: Array,
    labels: Array,
    ids: Array,
    corners: Array,
    images: Array,
    used_limits: Array,
) -> None:
    """Launch the extraction of n cells; all arrays, including those of the program, are on the device.

    Parameters
    ----------
    image : (C, h, w), the program's image type
    labels : (M, h, w), unsigned
    ids : (n,) uint64
    corners : (n, 2) int32
        (y, x) of each tile's first pixel in the image; may lie outside it.
    images : (n, K, S, S), the program's output type; written
    used_limits : (n, C, 2) float64; written
    """
    n, S = len(ids), program.recipe.tile_size
    C, h, w = image.shape
    _check(image, (len(program.cut), h, w), program.image_dtype, "image")
    if labels.dtype.kind != "u" or labels.shape[1:] != (h, w) or not labels.flags.c_contiguous:
        raise ValueError(f"labels are {labels.shape} {labels.dtype}; they must be (M, {h}, {w}), unsigned, contiguous")
    _check(ids, (n,), np.uint64, "ids")
    _check(corners, (n, 2), np.int32, "corners")
    _check(images, (n, *program.tile_shape), program.output_dtype, "images")
    _check(used_limits, (n, C, 2), np.float64, "used_limits")
    if n == 0:
        return
    kernel = extract_kernel(program.image_dtype, program.output_dtype)
    n_blocks = min(n, device.multiprocessors * kernel.blocks_per_multiprocessor)
    needed = workspace_nbytes(S)
    fits = needed <= device.shared_nbytes_limit
    n_blocks = n_blocks if fits else scratch_blocks(n_blocks, needed)
    scratch = device.empty((1 if fits else n_blocks * needed,), np.uint8)
    arguments = (
        *(image, np.int32(C), np.int32(h), np.int32(w)),
        *(labels.view(np.uint8), np.int32(labels.dtype.itemsize), ids, corners, np.int32(n), np.int32(S)),
        *(arrays.masks, np.int32(len(arrays.masks)), arrays.weights, np.int32(arrays.weights.shape[1])),
        *(arrays.stored, np.int32(len(arrays.stored)), arrays.cut, arrays.stretch),
        *(arrays.options, arrays.numbers, arrays.limits),
        *(scratch, np.uint64(0 if fits else needed), images, used_limits),
    )
    device.launch(kernel, n_blocks, arguments, needed if fits else 0)


def _check(array: Array, shape: tuple[int, ...], dtype: Any, name: str) -> None:
    """Raise ValueError for an array that the kernel would misread."""
    if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
        raise ValueError(f"{name} is {array.shape} {array.dtype}; it must be {shape} {np.dtype(dtype)}, contiguous")
