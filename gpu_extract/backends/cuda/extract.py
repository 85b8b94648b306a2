"""The fused extraction on a device: a recipe as arrays for the kernels, and the launch.

There are two kernels: ``extract_fast`` computes the usual programs, and ``extract`` all programs, and the cells that do
not fit the limits of the fast one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpu_extract.backends.cuda.device import Array, Device, scratch_blocks
from gpu_extract.backends.cuda.registry import extract_kernel, fast_extract_kernel, is_fast
from gpu_extract.backends.program_tables import limits_source, mask_tables
from gpu_extract.recipe import Program, gaussian_weights

__all__ = ["ProgramArrays", "launch_extract", "program_arrays", "workspace_nbytes"]

# Warps of a block; each blurs a row of a mask at a time.
WARPS = 8

# Numbers of kernels/fast_blur.cuh: pixels of a table, and the parts of a profile.
TABLE_BITS = 9
PROFILE_CENTER, PROFILE_BEYOND, PROFILE_SIZE = 56, 104, 136
# sizeof(Shared) in kernels/extract_fast.cu, and bytes of the two masks of a label plane.
FAST_SHARED_NBYTES = 23264
FAST_PLANE_NBYTES = 2 * 128 * 16
# Shared memory that the driver reserves for each block.
RESERVED_NBYTES = 1 << 10
# The fraction of a batch's cells for which the fast kernel has memory; the others are computed by the general kernel.
FITTING = 0.99


class ProgramArrays(NamedTuple):
    """A program as the arrays that the kernels ``extract`` and ``extract_fast`` take; see there.

    The masks are sorted by label plane, so that a plane is read once.
    """

    masks: NDArray[np.int32]  # (k, 5), enum MaskColumn
    weights: NDArray[np.float32]  # (k, R + 1)
    tables: NDArray[np.float32]  # (n_tables, 512)
    profiles: NDArray[np.float32]  # (k, 136)
    stored: NDArray[np.int32]  # (M,)
    cut: NDArray[np.int32]  # (C,)
    order: NDArray[np.int32]  # (C,)
    starts: NDArray[np.int32]  # (k + 1,)
    stretch: NDArray[np.int32]  # (C,)
    options: NDArray[np.int32]  # (6,), enum Option
    numbers: NDArray[np.float64]  # (3,), enum Number
    limits: NDArray[np.float64]  # (C, 2)


def program_arrays(program: Program, limits: NDArray[np.float64] | None) -> ProgramArrays:
    """Return the arrays of a program in host memory; ``limits`` are as for `reference.extract`."""
    recipe, C = program.recipe, len(program.cut)
    limits = program.fixed_limits if limits is None else limits
    masks, weights = mask_tables(program)
    by_plane = np.argsort(masks[:, 0], kind="stable")
    rank = np.argsort(by_plane)
    masks, weights = masks[by_plane], weights[by_plane]
    first_tables, tables = blur_tables(masks[:, 3], weights)
    cut = rank[list(program.cut)]
    options = (
        recipe.neighbours == "exclude",
        recipe.apply_masks,
        recipe.cut == "before",
        limits_source(program, limits),
        recipe.normalization != "none",
        recipe.flat_channel == "zero",
    )
    return ProgramArrays(
        masks=np.column_stack([masks, first_tables]).astype(np.int32),
        weights=weights.astype(np.float32),
        tables=tables,
        profiles=np.stack([blur_profile(row) for row in weights]),
        stored=rank[list(program.stored)].astype(np.int32),
        cut=cut.astype(np.int32),
        order=np.argsort(cut, kind="stable").astype(np.int32),
        starts=np.searchsorted(np.sort(cut), np.arange(len(masks) + 1)).astype(np.int32),
        stretch=np.array(program.stretched, np.int32),
        options=np.array(options, np.int32),
        numbers=np.array([program.unit, *recipe.quantiles]),
        limits=np.zeros((C, 2)) if limits is None else np.ascontiguousarray(limits, np.float64),
    )


def blur_tables(radii: NDArray[Any], weights: NDArray[np.float64]) -> tuple[list[int], NDArray[np.float32]]:
    """Return the first table of each mask, and the tables, (n_tables, 512): sums of weights for nine pixels along x.

    Bit ``i`` of an index of table ``t`` is the pixel ``9 t + i - R`` from the center. Masks with the same blur share
    tables; the number of tables of a blur is odd.
    """
    bits = np.arange(1 << TABLE_BITS)[:, np.newaxis] >> np.arange(TABLE_BITS) & 1
    first: dict[bytes, int] = {}
    tables: list[NDArray[np.float64]] = []
    for radius, row in zip(radii.tolist(), weights, strict=True):
        # Blurs of one radius may differ. A mask that is not blurred has no table.
        if not radius or row.tobytes() in first:
            continue
        first[row.tobytes()] = len(tables)
        n_tables = (2 * radius + TABLE_BITS) // TABLE_BITS | 1
        pixels = np.zeros(n_tables * TABLE_BITS)
        pixels[: 2 * radius + 1] = row[abs(np.arange(-radius, radius + 1))]
        tables += list(pixels.reshape(n_tables, TABLE_BITS) @ bits.T)
    return [first.get(row.tobytes(), 0) for row in weights], np.array(tables or [np.zeros(1 << TABLE_BITS)], np.float32)


def blur_profile(weights: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the profile of a blur, (136,), from its weights, (R + 1,) or more; see ``kernels/fast_blur.cuh``."""
    profile = np.zeros(PROFILE_SIZE)
    weights = weights[: PROFILE_BEYOND - PROFILE_CENTER]
    distances = np.arange(len(weights))
    profile[PROFILE_CENTER + distances] = profile[PROFILE_CENTER - distances] = weights
    beyond = weights[::-1].cumsum()[::-1][1:][: PROFILE_SIZE - PROFILE_BEYOND]
    profile[PROFILE_BEYOND : PROFILE_BEYOND + len(beyond)] = beyond
    return profile.astype(np.float32)


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
    boxes: NDArray[np.int64] | None = None,
) -> None:
    """Launch the extraction of n cells; all arrays except ``boxes`` are on the device.

    Parameters
    ----------
    image : (C, h, w), the program's image type
    labels : (M, h, w), unsigned
    ids : (n,) uint64
    corners : (n, 2) int32
        (y, x) of each tile's first pixel in the image; may lie outside it.
    images : (n, K, S, S), the program's output type; written
    used_limits : (n, C, 2) float64; written
    boxes : (n, 4), optional
        Bounding boxes (y0, x0, y1, x1) of the cells, in host memory. If they are known to be small, more blocks run
        concurrently.
    """
    n = len(ids)
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
    cells = (
        *(image, np.int32(C), np.int32(h), np.int32(w)),
        *(labels.view(np.uint8), np.int32(labels.dtype.itemsize), ids, corners, np.int32(n)),
        np.int32(program.recipe.tile_size),
    )
    outputs = (images, used_limits)
    redo = None
    if is_fast(program, labels.dtype.itemsize):
        redo = _launch_fast(device, program, arrays, cells, outputs, n, _soft_size(program, boxes))
    _launch_general(device, program, arrays, cells, outputs, n, redo)


def _launch_fast(
    device: Device,
    program: Program,
    arrays: ProgramArrays,
    cells: tuple[Any, ...],
    outputs: tuple[Array, Array],
    n: int,
    soft_size: int,
) -> Array | None:
    """Launch the fast kernel, and return which cells the general one must compute: (n,) uint8, or None for all.

    Parameters
    ----------
    cells, outputs
        The first and last arguments of the kernel.
    soft_size : int
        Pixels of a blurred mask that should fit into shared memory.
    """
    kernel = fast_extract_kernel(program.image_dtype, program.output_dtype, program.recipe.tile_size)
    fixed = FAST_SHARED_NBYTES + len(arrays.stored) * FAST_PLANE_NBYTES + arrays.tables.nbytes + arrays.profiles.nbytes
    fixed += -(-arrays.masks.nbytes // 16) * 16
    capacities = {
        n_blocks: (device.shared_nbytes_limit // n_blocks - RESERVED_NBYTES - fixed) // 16 * 4
        for n_blocks in range(kernel.blocks_per_multiprocessor, 0, -1)
    }
    n_blocks = next((n_blocks for n_blocks, capacity in capacities.items() if capacity >= soft_size), 1)
    if capacities[n_blocks] <= 0:
        return None
    capacity = min(capacities[n_blocks], program.recipe.tile_size**2)
    redo = device.empty((n,), np.uint8)
    arguments = (
        *(*cells, arrays.masks, np.int32(len(arrays.masks)), arrays.tables, np.int32(len(arrays.tables))),
        *(arrays.profiles, arrays.stored, np.int32(len(arrays.stored)), arrays.order, arrays.starts, arrays.stretch),
        *(arrays.options, arrays.numbers, arrays.limits, np.int32(capacity), *outputs, redo),
    )
    device.launch(kernel, min(n, device.multiprocessors * n_blocks), arguments, fixed + 4 * capacity)
    return redo


def _soft_size(program: Program, boxes: NDArray[np.int64] | None) -> int:
    """Return the pixels of a cell's blurred masks, for most cells; the whole tile if their boxes are unknown."""
    size = program.recipe.tile_size
    if boxes is None or not len(boxes):
        return size * size
    margin = max(steps.dilation + len(gaussian_weights(steps.sigma)) - 1 for steps in program.masks)
    heights, widths = (boxes[:, 2:] - boxes[:, :2] + 2 * margin).T
    widths = widths + 6  # columns start and end at multiples of 4
    return int(np.quantile(np.minimum(heights, size) * np.minimum(widths, size), FITTING))


def _launch_general(
    device: Device,
    program: Program,
    arrays: ProgramArrays,
    cells: tuple[Any, ...],
    outputs: tuple[Array, Array],
    n: int,
    redo: Array | None,
) -> None:
    """Launch the general kernel for the cells that ``redo`` marks, or for all cells."""
    needed = workspace_nbytes(program.recipe.tile_size)
    fits = needed <= device.shared_nbytes_limit
    kernel = extract_kernel(program.image_dtype, program.output_dtype, in_shared=fits)
    n_blocks = min(n, device.multiprocessors * kernel.blocks_per_multiprocessor)
    n_blocks = n_blocks if fits else scratch_blocks(n_blocks, needed)
    scratch = device.empty((1 if fits else n_blocks * needed,), np.uint8)
    arguments = (
        *(*cells, arrays.masks, np.int32(len(arrays.masks)), arrays.weights, np.int32(arrays.weights.shape[1])),
        *(arrays.stored, np.int32(len(arrays.stored)), arrays.cut, arrays.stretch),
        *(arrays.options, arrays.numbers, arrays.limits),
        *(scratch, np.uint64(needed), *outputs),
        *(device.empty((1,), np.uint8) if redo is None else redo, np.int32(redo is not None)),
    )
    device.launch(kernel, n_blocks, arguments, needed if fits else 0)


def _check(array: Array, shape: tuple[int, ...], dtype: Any, name: str) -> None:
    """Raise ValueError for an array that the kernel would misread."""
    if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
        raise ValueError(f"{name} is {array.shape} {array.dtype}; it must be {shape} {np.dtype(dtype)}, contiguous")
