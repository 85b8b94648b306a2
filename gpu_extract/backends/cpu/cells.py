"""The cells of a batch, one after the other, by fused kernels that numba compiles and that run without the GIL.

`extract_each` makes a cell's masks, masks and normalizes its channels and writes the finished tile, in scratch memory
that stays in the core's cache. It computes what `reference.extract_tile` does, except results that are known in
advance: outside the box that a mask can reach, all pixels have one value, ``outside``, which is nearly always 0.

Only `select`, `load` and `store` depend on the types of labels, pixels and output; the rest works on bits and float64.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpu_extract.backends.cpu.blur import Taps, blur, clear
from gpu_extract.backends.cpu.compiling import compiled, inner
from gpu_extract.backends.cpu.masks import bounding_box, dilate, fill_holes, select
from gpu_extract.backends.cpu.planes import Output, copy_pixels, gather, load, multiply, scale, scaled, store, stretch
from gpu_extract.backends.cpu.quantiles import SCRATCH, quantile_pair
from gpu_extract.backends.cpu.simd import BLOCK, LANES
from gpu_extract.backends.cpu.windows import Pixels, Plane

__all__ = [
    "Options",
    "Scratch",
    "Steps",
    "Tiles",
    "Work",
    "extract_cells",
    "extract_each",
    "scratch_memory",
]


class Steps(NamedTuple):
    """The program's masks, and the mask of each plane of a tile.

    Parameters
    ----------
    masks : (k, 4) int64
        Label plane, fill holes (0 or 1), radius of the disk, radius of the blur.
    weights : (k, R + 1) float64
        Blur weights from the center outwards.
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

    output: Output
    exclude: bool
    apply_masks: bool
    cut_before: bool
    limits_given: bool  # otherwise they are quantiles of the cell
    quantiles_of_mask: bool  # otherwise of the whole tile
    lower: float  # quantiles, 0 to 1
    upper: float
    scale: bool
    flat_zero: bool
    stretch: NDArray[np.bool_]  # (C,)


class Scratch(NamedTuple):
    """One thread's scratch memory; see `scratch_memory`."""

    labelled: NDArray[np.uint64]  # (2, S, W) bit masks: the cell's pixels in each label plane
    labelled_boxes: NDArray[np.int64]  # (2, 4): bounding boxes of ``labelled``
    filled: NDArray[np.uint64]  # (S, W)
    region: NDArray[np.uint64]  # (S, W): the dilated mask
    other: NDArray[np.uint64]  # (S, W)
    bit_row: NDArray[np.uint64]  # (W,)
    region_box: NDArray[np.int64]  # (4,)
    soft_box: NDArray[np.int64]  # (4,)
    tile_box: NDArray[np.int64]  # (4,): the whole tile
    soft: NDArray[np.float64]  # (S * S + BLOCK,): the blurred mask within its box
    values: NDArray[np.float64]  # (S * S + LANES,): a channel within a box
    pixels: NDArray[np.float64]  # (S * S + LANES,): what quantiles are taken of; values in the output's type
    buffer: NDArray[np.float64]  # (n,): of blurs, and of quantiles


class Work(NamedTuple):
    """A batch of n cells, as the kernels take it.

    Parameters
    ----------
    window : Pixels
    ids : (n,), the type of the labels
    corners : (n, 2) int64
        (y, x) of each tile's first pixel in the window; may lie outside it.
    label_boxes : (n, 4) int64
        The part of each tile that contains the cell's labels.
    steps : Steps
    options : Options
    limits : (C, 2) float64
        Read if ``options.limits_given``.
    scratch : Scratch
        Of the thread that processes the batch.
    """

    window: Pixels
    ids: NDArray[Any]
    corners: NDArray[np.int64]
    label_boxes: NDArray[np.int64]
    steps: Steps
    options: Options
    limits: NDArray[np.float64]
    scratch: Scratch


class Tiles(NamedTuple):
    """Memory for finished tiles; before and after each use it is 0 outside the boxes.

    Parameters
    ----------
    images : (m, K, S, S)
        The output type; for kernels, float16 as its bits in uint16.
    boxes : (m, K, 4) int64
    """

    images: NDArray[Any]
    boxes: NDArray[np.int64]


def scratch_memory(size: int) -> Scratch:
    """Return scratch memory for tiles of ``size`` pixels."""
    words = (size + 63) // 64
    return Scratch(
        labelled=np.empty((2, size, words), np.uint64),
        labelled_boxes=np.empty((2, 4), np.int64),
        filled=np.empty((size, words), np.uint64),
        region=np.empty((size, words), np.uint64),
        other=np.empty((size, words), np.uint64),
        bit_row=np.empty(words, np.uint64),
        region_box=np.zeros(4, np.int64),
        soft_box=np.zeros(4, np.int64),
        tile_box=np.array([0, 0, size, size], np.int64),
        soft=np.empty(size * size + BLOCK),
        values=np.empty(size * size + LANES),
        pixels=np.empty(size * size + LANES),
        buffer=cache_lines((size + 1) * (size + BLOCK) + SCRATCH),
    )


def cache_lines(n: int) -> NDArray[np.float64]:
    """Return memory for n values that begins a cache line."""
    values = np.empty(n + 7)
    start = -values.ctypes.data % 64 // 8
    return values[start : start + n]


@inner
def make_mask(steps, m, scratch):
    """Fill, dilate and blur a cell's label mask: write ``filled``, ``region``, ``soft`` and their boxes."""
    plane, fill, dilation, radius = steps.masks[m]
    box = scratch.labelled_boxes[plane]
    for row in range(box[0], box[2]):
        for k in range(scratch.filled.shape[1]):
            scratch.filled[row, k] = scratch.labelled[plane, row, k]
    if fill:
        fill_holes(scratch.filled, box, scratch.other)
    dilate(scratch.filled, box, dilation, scratch.bit_row, scratch.region, scratch.region_box)
    taps = Taps(steps.weights[m], radius, steps.edges[m])
    blur(scratch.region, scratch.region_box, taps, scratch.buffer, scratch.soft, scratch.soft_box)


@inner
def exclude(labels, y, x, filled_box, scratch):
    """Remove the neighbours from ``region`` and ``soft``: other labels that are not in a filled hole of the cell."""
    box, neighbours = scratch.soft_box, scratch.other
    select(labels, y, x, labels.data.dtype.type(0), box, neighbours)
    for row in range(box[0], box[2]):
        for k in range(box[1] // 64, (box[3] + 63) // 64):
            if filled_box[0] <= row < filled_box[2]:
                neighbours[row, k] &= ~scratch.filled[row, k]
            scratch.region[row, k] &= ~neighbours[row, k]
    clear(scratch.soft, box, neighbours)


@inner
def clip_box(box, y, x, plane):
    """Return the part of a box of the tile at (y, x) that lies on the slide."""
    return max(box[0], -y), max(box[1], -x), min(box[2], plane.height - y), min(box[3], plane.width - x)


@inner
def measure_limits(channel, y, x, box, options, scratch, limits):
    """Write the quantiles of a channel of a cell, whose pixels within ``box`` are in ``scratch.values``."""
    lower, upper, S = options.lower, options.upper, scratch.filled.shape[0]
    n_pixels, size = S * S, (box[2] - box[0]) * (box[3] - box[1])
    if options.quantiles_of_mask:
        part = clip_box(scratch.region_box, y, x, channel)
        n = gather(scratch.values, box, scratch.region, part, scratch.pixels)
        limits[0], limits[1] = quantile_pair(scratch.pixels[:n], 0, lower, upper, scratch.buffer)
    elif options.cut_before:
        limits[0], limits[1] = quantile_pair(scratch.values[:size], n_pixels - size, lower, upper, scratch.buffer)
    else:
        part = clip_box(scratch.tile_box, y, x, channel)
        # Rows of a slide are a whole number of pages apart and evict each other from the cache, so copy them.
        pixels = scratch.pixels.view(channel.data.dtype)
        n = copy_pixels(channel, y, x, part, pixels)
        limits[0], limits[1] = quantile_pair(pixels[:n], n_pixels - n, lower, upper, scratch.buffer)


@inner
def make_channel(work, y, x, c, box, limits):
    """Mask and normalize a channel within ``box``, in ``scratch.values``; return the value outside the box.

    ``limits``, (2,), are read if they are given, otherwise written.
    """
    window, options, scratch = work.window, work.options, work.scratch
    image, S = window.image, scratch.filled.shape[0]
    channel = Plane(image.data, c * window.channel_stride, image.stride, image.height, image.width)
    n_pixels, size = S * S, (box[2] - box[0]) * (box[3] - box[1])
    values, soft = scratch.values[:size], scratch.soft[:size]
    load(channel, y, x, box, scratch.values)
    if options.cut_before and options.apply_masks:
        multiply(values, soft)
    if not options.limits_given:
        measure_limits(channel, y, x, box, options, scratch, limits)
    outside = 0.0
    if options.scale:
        scale(values, limits[0], limits[1], options.flat_zero)
        if options.cut_before and size < n_pixels:
            outside = scaled(0.0, limits[0], limits[1], options.flat_zero)
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
    M, converted = steps.stored.shape[0], scratch.pixels.view(tiles.images.dtype)
    for n in range(first, last):
        y, x, label_box = work.corners[n, 0], work.corners[n, 1], work.label_boxes[n]
        tile, boxes = tiles.images[n - first], tiles.boxes[n - first]
        for p in range(2):
            select(window.labels[p], y, x, work.ids[n], label_box, scratch.labelled[p])
            bounding_box(scratch.labelled[p], label_box, scratch.labelled_boxes[p])
        for m in range(steps.masks.shape[0]):
            make_mask(steps, m, scratch)
            for k in range(M):
                if steps.stored[k] == m:
                    store(scratch.soft, scratch.soft_box, 0.0, options.output, converted, tile[k], boxes[k])
            if options.exclude:
                plane = steps.masks[m, 0]
                exclude(window.labels[plane], y, x, scratch.labelled_boxes[plane], scratch)
            for c in range(steps.cut.shape[0]):
                if steps.cut[c] != m:
                    continue
                used = limits[n, c]
                if options.limits_given:
                    used[0], used[1] = work.limits[c, 0], work.limits[c, 1]
                box = scratch.soft_box if options.apply_masks else scratch.tile_box
                outside = make_channel(work, y, x, c, box, used)
                store(scratch.values, box, outside, options.output, converted, tile[M + c], boxes[M + c])


@compiled
def extract_cells(work, first, last, tiles, limits):
    """Call `extract_each` from Python."""
    extract_each(work, first, last, tiles, limits)
