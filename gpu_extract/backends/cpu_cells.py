"""One cell after the other, fused, compiled by numba, without the GIL.

`extract_each` makes a cell's masks, cuts and normalises its channels and writes the finished tile, in scratch
memory that stays in the core's cache. It is `reference.extract_tile` with known results skipped: beyond the box
that a mask can reach all pixels have one value, ``outside``, nearly always 0, and nothing is computed there.

Only `select`, `load` and `store` see the types of labels, pixels and output; the rest works on bits and float64.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpu_extract.backends import cpu_bits, cpu_blur, cpu_masks, cpu_planes, cpu_quantiles, program_tables
from gpu_extract.backends.cpu_bits import LANES, compiled, inner
from gpu_extract.backends.cpu_blur import blur, clear
from gpu_extract.backends.cpu_masks import dilate, fill_holes, own_box, select
from gpu_extract.backends.cpu_planes import copied, gather, load, multiply, scale, scaled, store, stretch
from gpu_extract.backends.cpu_quantiles import quantile_pair
from gpu_extract.backends.program_tables import PIXELS_GIVEN, PIXELS_MASK, PIXELS_TILE

__all__ = ["Numbers", "Options", "Pixels", "Scratch", "Steps", "extract_cells", "extract_each", "scratch_memory"]


class Pixels(NamedTuple):
    """A window of a slide in memory; its rows are contiguous.

    Parameters
    ----------
    image : (n,), any pixel type
    plane_stride, row_stride : int, pixels
        From a channel to the next, and from a row to the next.
    labels : two of (n,), uint8 to uint64
        The label planes; twice the same if there is one.
    label_strides : two of int, pixels
        From a row to the next.
    height, width : int, pixels
    """

    image: NDArray[Any]
    plane_stride: int
    row_stride: int
    labels: tuple[NDArray[Any], NDArray[Any]]
    label_strides: tuple[int, int]
    height: int
    width: int


class Steps(NamedTuple):
    """The program's masks, and which of them each plane uses.

    Parameters
    ----------
    masks : (k, 4) int64
        Label plane, fill holes (0 or 1), radius of the disk, radius of the blur.
    weights : (k, R + 1) float64
        Blur weights from the centre outwards.
    edges : (k, 2 n) float64
        `cpu_blur.edge_tables` of the weights.
    stored, cut : (M,), (C,) int64
        The mask of each mask plane, and of each channel.
    """

    masks: NDArray[np.int64]
    weights: NDArray[np.float64]
    edges: NDArray[np.float64]
    stored: NDArray[np.int64]
    cut: NDArray[np.int64]


class Options(NamedTuple):
    """The recipe's choices."""

    output: int  # OUTPUT_HALF, OUTPUT_FLOAT, OUTPUT_INTEGER
    exclude: bool
    apply_masks: bool
    cut_before: bool
    pixels: int  # where quantiles are taken: PIXELS_MASK, PIXELS_TILE, PIXELS_GIVEN
    scale: bool
    flat_zero: bool
    stretch: NDArray[np.bool_]  # (C,)


class Numbers(NamedTuple):
    """The recipe's numbers."""

    unit: float
    lower: float
    upper: float


class Scratch(NamedTuple):
    """What one thread works in; see `scratch_memory`."""

    own: NDArray[np.uint64]  # (2, S, W) bits: the cell in each label plane
    own_boxes: NDArray[np.int64]  # (2, 4)
    filled: NDArray[np.uint64]  # (S, W)
    region: NDArray[np.uint64]  # (S, W)
    other: NDArray[np.uint64]  # (S, W)
    bit_row: NDArray[np.uint64]  # (W,)
    boxes: NDArray[np.int64]  # (3, 4): of the region, of the blurred mask, of the whole tile
    soft: NDArray[np.float64]  # (S * S + cpu_blur.BLOCK,)
    values: NDArray[np.float64]  # (S * S + LANES,)
    pool: NDArray[np.float64]  # (S * S + LANES,)
    room: NDArray[np.float64]  # (n,): of blurs, and of quantiles


def scratch_memory(size: int) -> Scratch:
    """Scratch memory for tiles of ``size`` pixels."""
    words = (size + 63) // 64
    return Scratch(
        own=np.empty((2, size, words), np.uint64),
        own_boxes=np.empty((2, 4), np.int64),
        filled=np.empty((size, words), np.uint64),
        region=np.empty((size, words), np.uint64),
        other=np.empty((size, words), np.uint64),
        bit_row=np.empty(words, np.uint64),
        boxes=np.array([[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, size, size]], np.int64),
        soft=np.empty(size * size + cpu_blur.BLOCK),
        values=np.empty(size * size + LANES),
        pool=np.empty(size * size + LANES),
        room=cache_lines((size + 1) * (size + cpu_blur.BLOCK) + cpu_quantiles.SCRATCH),
    )


def cache_lines(n: int) -> NDArray[np.float64]:
    """Memory for n values that begins a cache line."""
    values = np.empty(n + 7)
    start = -values.ctypes.data % 64 // 8
    return values[start : start + n]


@inner
def make_mask(window, y, x, m, steps, scratch):
    """Fill, expand and blur a cell's label: ``filled``, ``region``, ``soft`` and their boxes."""
    plane, fill, dilation, radius = steps.masks[m]
    box = scratch.own_boxes[plane]
    for row in range(box[0], box[2]):
        for k in range(scratch.filled.shape[1]):
            scratch.filled[row, k] = scratch.own[plane, row, k]
    if fill:
        fill_holes(scratch.filled, box, scratch.other)
    dilate(scratch.filled, box, dilation, scratch.bit_row, scratch.region, scratch.boxes[0])
    blur(
        scratch.region,
        scratch.boxes[0],
        steps.weights[m],
        radius,
        steps.edges[m],
        scratch.room,
        scratch.soft,
        scratch.boxes[1],
    )


@inner
def exclude(window, y, x, plane, scratch):
    """Take the neighbours out of ``region`` and ``soft``: other labels that do not lie in a filled hole of the cell."""
    box, own_box = scratch.boxes[1], scratch.own_boxes[plane]
    stride = window.label_strides[plane]
    neighbours, labels = scratch.other, window.labels[plane]
    select(labels, stride, window.height, window.width, y, x, labels.dtype.type(0), box, neighbours)
    for row in range(box[0], box[2]):
        for k in range(box[1] // 64, (box[3] + 63) // 64):
            if own_box[0] <= row < own_box[2]:
                neighbours[row, k] &= ~scratch.filled[row, k]
            scratch.region[row, k] &= ~neighbours[row, k]
    clear(scratch.soft, box, neighbours)


@inner
def slide_box(window, y, x, box):
    """The part of ``box``, in the tile at (y, x), that lies on the slide."""
    return max(box[0], -y), max(box[1], -x), min(box[2], window.height - y), min(box[3], window.width - x)


@inner
def make_channel(window, y, x, c, box, options, numbers, scratch, used):
    """Cut and normalise a channel within ``box``, into ``scratch.values``; gives the value outside of the box.

    ``used`` are the levels: read where they are given, else written.
    """
    S = scratch.filled.shape[0]
    n_pixels = S * S
    size = (box[2] - box[0]) * (box[3] - box[1])
    values, soft = scratch.values[:size], scratch.soft[:size]
    start = c * window.plane_stride
    load(window.image, start, window.row_stride, window.height, window.width, y, x, box, values)
    if options.cut_before and options.apply_masks:
        multiply(values, soft)
    lower, upper = numbers.lower, numbers.upper
    if options.pixels == PIXELS_TILE and not options.cut_before:
        part = slide_box(window, y, x, scratch.boxes[2])
        # Rows of a slide lie a whole number of pages apart, and drive each other out of the cache.
        pool = scratch.pool.view(window.image.dtype)
        n = copied(window.image, start + y * window.row_stride + x, window.row_stride, part, pool)
        used[0], used[1] = quantile_pair(pool[:n], n_pixels - n, lower, upper, scratch.room)
    elif options.pixels != PIXELS_GIVEN:
        pool, n, zeros = values, size, n_pixels - size
        if options.pixels == PIXELS_MASK:
            part = slide_box(window, y, x, scratch.boxes[0])
            n = gather(values, box, scratch.region, part, scratch.pool)
            pool, zeros = scratch.pool, 0
        used[0], used[1] = quantile_pair(pool[:n], zeros, lower, upper, scratch.room)
    outside = 0.0
    if options.scale:
        scale(values, used[0], used[1], options.flat_zero)
        if options.cut_before and size < n_pixels:
            outside = scaled(0.0, used[0], used[1], options.flat_zero)
    if not options.cut_before and options.apply_masks:
        multiply(values, soft)
    return stretch(values, outside, n_pixels) if options.stretch[c] else outside


@inner
def extract_each(window, ids, corners, parts, steps, options, numbers, levels, scratch, out, boxes, used):
    """Fill ``out`` with the finished tiles of n cells and ``used`` with their levels.

    Parameters
    ----------
    window : Pixels
    ids : (n,), the labels' type
    corners : (n, 2) int64
        (y, x) of each tile's first pixel in the window; may lie outside it.
    parts : (n, 4) int64
        The part of each tile in which its cell's labels lie.
    steps : Steps
    options : Options
    numbers : Numbers
    levels : (C, 2) float64
        Read where ``options.pixels`` is `PIXELS_GIVEN`.
    scratch : Scratch
    out : (n, K, S, S)
        The output type; float16 as its bits in uint16. 0 outside of ``boxes``, on entry too.
    boxes : (n, K, 4) int64
        What of each plane may be anything but 0.
    used : (n, C, 2) float64
    """
    M = steps.stored.shape[0]
    soft_box, whole, pool = scratch.boxes[1], scratch.boxes[2], scratch.pool.view(out.dtype)
    for n in range(ids.shape[0]):
        y, x = corners[n, 0], corners[n, 1]
        for p in range(2):
            stride = window.label_strides[p]
            select(window.labels[p], stride, window.height, window.width, y, x, ids[n], parts[n], scratch.own[p])
            own_box(scratch.own[p], parts[n], scratch.own_boxes[p])
        for m in range(steps.masks.shape[0]):
            make_mask(window, y, x, m, steps, scratch)
            for k in range(M):
                if steps.stored[k] == m:
                    store(scratch.soft, soft_box, 0.0, numbers.unit, options.output, pool, out[n, k], boxes[n, k])
            if options.exclude:
                exclude(window, y, x, steps.masks[m, 0], scratch)
            for c in range(steps.cut.shape[0]):
                if steps.cut[c] != m:
                    continue
                if options.pixels == PIXELS_GIVEN:
                    used[n, c, 0], used[n, c, 1] = levels[c, 0], levels[c, 1]
                box = soft_box if options.apply_masks else whole
                outside = make_channel(window, y, x, c, box, options, numbers, scratch, used[n, c])
                plane, filled = out[n, M + c], boxes[n, M + c]
                store(scratch.values, box, outside, numbers.unit, options.output, pool, plane, filled)


@compiled(cpu_bits, cpu_blur, cpu_masks, cpu_planes, cpu_quantiles, program_tables)
def extract_cells(window, ids, corners, parts, steps, options, numbers, levels, scratch, out, boxes, used):
    """`extract_each`, for Python."""
    extract_each(window, ids, corners, parts, steps, options, numbers, levels, scratch, out, boxes, used)
