"""One cell after the other, fused, compiled by numba, without the GIL.

`extract_each` makes a cell's masks, cuts and normalises its channels and writes the finished tile, in scratch
memory that stays in the core's cache. It is `reference.extract_tile` with known results skipped: beyond the box
that a mask can reach all pixels have one value, ``outside``, nearly always 0, and nothing is computed there.

Only `select`, `load` and `store` see the types of labels, pixels and output; the rest works on bits and float64.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpu_extract.backends.cpu.blur import blur, clear
from gpu_extract.backends.cpu.compiling import compiled, inner
from gpu_extract.backends.cpu.masks import bounding_box, dilate, fill_holes, select
from gpu_extract.backends.cpu.planes import copied, gather, load, multiply, scale, scaled, store, stretch
from gpu_extract.backends.cpu.quantiles import SCRATCH, quantile_pair
from gpu_extract.backends.cpu.simd import BLOCK, LANES

__all__ = [
    "Numbers",
    "Options",
    "Pixels",
    "Scratch",
    "Steps",
    "Tiles",
    "Work",
    "extract_cells",
    "extract_each",
    "scratch_memory",
]


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
        `blur.edge_tables` of the weights.
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
    limits_given: bool  # else they are quantiles of the cell
    quantiles_of_mask: bool  # else of the whole tile
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
    own_boxes: NDArray[np.int64]  # (2, 4): bounding boxes of ``own``
    filled: NDArray[np.uint64]  # (S, W)
    region: NDArray[np.uint64]  # (S, W)
    other: NDArray[np.uint64]  # (S, W)
    bit_row: NDArray[np.uint64]  # (W,)
    boxes: NDArray[np.int64]  # (3, 4): of the region, of the blurred mask, of the whole tile
    soft: NDArray[np.float64]  # (S * S + BLOCK,)
    values: NDArray[np.float64]  # (S * S + LANES,)
    pool: NDArray[np.float64]  # (S * S + LANES,)
    room: NDArray[np.float64]  # (n,): of blurs, and of quantiles


class Work(NamedTuple):
    """A batch of n cells, as the kernels take it.

    Parameters
    ----------
    window : Pixels
    ids : (n,), the type of the labels
    corners : (n, 2) int64
        (y, x) of each tile's first pixel in the window; may lie outside it.
    label_boxes : (n, 4) int64
        The part of each tile that holds the cell's labels.
    steps : Steps
    options : Options
    numbers : Numbers
    limits : (C, 2) float64
        Read if ``options.limits_given``.
    scratch : Scratch
        Of the thread that works on it.
    """

    window: Pixels
    ids: NDArray[Any]
    corners: NDArray[np.int64]
    label_boxes: NDArray[np.int64]
    steps: Steps
    options: Options
    numbers: Numbers
    limits: NDArray[np.float64]
    scratch: Scratch


class Tiles(NamedTuple):
    """Memory for finished tiles; it is 0 outside of the boxes before and after each use.

    Parameters
    ----------
    images : (m, K, S, S)
        The output type; float16 as its bits in uint16 where kernels write it.
    boxes : (m, K, 4) int64
    """

    images: NDArray[Any]
    boxes: NDArray[np.int64]


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
        soft=np.empty(size * size + BLOCK),
        values=np.empty(size * size + LANES),
        pool=np.empty(size * size + LANES),
        room=cache_lines((size + 1) * (size + BLOCK) + SCRATCH),
    )


def cache_lines(n: int) -> NDArray[np.float64]:
    """Memory for n values that begins a cache line."""
    values = np.empty(n + 7)
    start = -values.ctypes.data % 64 // 8
    return values[start : start + n]


@inner
def make_mask(steps, m, scratch):
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
    box, bounding_box = scratch.boxes[1], scratch.own_boxes[plane]
    stride = window.label_strides[plane]
    neighbours, labels = scratch.other, window.labels[plane]
    select(labels, stride, window.height, window.width, y, x, labels.dtype.type(0), box, neighbours)
    for row in range(box[0], box[2]):
        for k in range(box[1] // 64, (box[3] + 63) // 64):
            if bounding_box[0] <= row < bounding_box[2]:
                neighbours[row, k] &= ~scratch.filled[row, k]
            scratch.region[row, k] &= ~neighbours[row, k]
    clear(scratch.soft, box, neighbours)


@inner
def slide_box(window, y, x, box):
    """The part of ``box``, in the tile at (y, x), that lies on the slide."""
    return max(box[0], -y), max(box[1], -x), min(box[2], window.height - y), min(box[3], window.width - x)


@inner
def make_channel(work, y, x, c, box, used):
    """Cut and normalize a channel within ``box``, into ``scratch.values``; return the value outside of the box.

    ``used``, (2,), are the limits: read where they are given, else written.
    """
    window, options, numbers, scratch = work.window, work.options, work.numbers, work.scratch
    S = scratch.filled.shape[0]
    n_pixels = S * S
    size = (box[2] - box[0]) * (box[3] - box[1])
    values, soft = scratch.values[:size], scratch.soft[:size]
    start = c * window.plane_stride
    load(window.image, start, window.row_stride, window.height, window.width, y, x, box, values)
    if options.cut_before and options.apply_masks:
        multiply(values, soft)
    lower, upper = numbers.lower, numbers.upper
    if not (options.limits_given or options.quantiles_of_mask or options.cut_before):
        part = slide_box(window, y, x, scratch.boxes[2])
        # Rows of a slide are a whole number of pages apart and evict each other from the cache.
        pool = scratch.pool.view(window.image.dtype)
        n = copied(window.image, start + y * window.row_stride + x, window.row_stride, part, pool)
        used[0], used[1] = quantile_pair(pool[:n], n_pixels - n, lower, upper, scratch.room)
    elif not options.limits_given:
        pool, n, zeros = values, size, n_pixels - size
        if options.quantiles_of_mask:
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
def extract_each(work, first, last, tiles, limits):
    """Extract the cells ``first`` to ``last - 1`` of a batch.

    Parameters
    ----------
    work : Work
    first, last : int
    tiles : Tiles
        Written: cell ``first`` becomes tile 0.
    limits : (n, C, 2) float64
        Written for these cells: the lower and upper value that each channel was normalized with.
    """
    window, steps, options, scratch = work.window, work.steps, work.options, work.scratch
    M, unit = steps.stored.shape[0], work.numbers.unit
    soft_box, whole, pool = scratch.boxes[1], scratch.boxes[2], scratch.pool.view(tiles.images.dtype)
    for n in range(first, last):
        y, x, label_box = work.corners[n, 0], work.corners[n, 1], work.label_boxes[n]
        tile, boxes = tiles.images[n - first], tiles.boxes[n - first]
        for p in range(2):
            stride, own = window.label_strides[p], scratch.own[p]
            select(window.labels[p], stride, window.height, window.width, y, x, work.ids[n], label_box, own)
            bounding_box(own, label_box, scratch.own_boxes[p])
        for m in range(steps.masks.shape[0]):
            make_mask(steps, m, scratch)
            for k in range(M):
                if steps.stored[k] == m:
                    store(scratch.soft, soft_box, 0.0, unit, options.output, pool, tile[k], boxes[k])
            if options.exclude:
                exclude(window, y, x, steps.masks[m, 0], scratch)
            for c in range(steps.cut.shape[0]):
                if steps.cut[c] != m:
                    continue
                used = limits[n, c]
                if options.limits_given:
                    used[0], used[1] = work.limits[c, 0], work.limits[c, 1]
                box = soft_box if options.apply_masks else whole
                outside = make_channel(work, y, x, c, box, used)
                store(scratch.values, box, outside, unit, options.output, pool, tile[M + c], boxes[M + c])


@compiled
def extract_cells(work, first, last, tiles, limits):
    """`extract_each`, for Python."""
    extract_each(work, first, last, tiles, limits)
