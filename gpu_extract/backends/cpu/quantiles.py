"""Linear quantiles of a cell's pixels, as numpy.quantile computes them, without sorting.

A small number of smallest or largest values is found in two passes, 64 pixels at a time: the first finds a threshold
that few more pixels than wanted exceed, the second collects these pixels. Ranks in the middle are found by selection.
"""

import numpy as np

from gpu_extract.backends.cpu.compiling import inner
from gpu_extract.backends.cpu.simd import LANES, ctz, gt_word, largest_of_columns, lt_word

__all__ = ["SCRATCH", "quantile_pair"]

# Elements that `extremes` needs in addition to twice the number of values it keeps.
SCRATCH = 192
EVERY = np.uint64(0xFFFFFFFFFFFFFFFF)


@inner
def quantile_pair(pixels, zeros, lower, upper, scratch):
    """Return two linear quantiles of some pixels and ``zeros`` additional zeros; (0, 0) if there are none.

    Parameters
    ----------
    pixels : (n,), any pixel type
        Contiguous.
    scratch : (m,) float64
        m is the number of pixels and zeros, plus `SCRATCH`.
    """
    lo, hi = 0.0, 0.0
    total = pixels.shape[0] + zeros
    if total == 0:
        return lo, hi
    for q in (lower, upper):
        position = (total - 1) * q
        before = min(int(np.floor(position)), total - 1)
        after = min(before + 1, total - 1)
        fraction = position - np.floor(position)
        a, b = values_of_ranks(pixels, zeros, before, after, scratch)
        # NumPy interpolates from the nearer end; this affects the last bit.
        lo, hi = hi, b - (b - a) * (1 - fraction) if fraction >= 0.5 else a + (b - a) * fraction
    return lo, hi


@inner
def values_of_ranks(pixels, zeros, before, after, scratch):
    """Return the values of rank ``before`` and ``after`` (its successor or the same rank); see `quantile_pair`."""
    n = pixels.shape[0]
    total = n + zeros
    if 2 * (after + 1) < total:
        extremes(pixels, zeros, after + 1, -1.0, scratch)
        b, a = two_smallest(scratch[: after + 1])
        return 0.0 - (a if after > before else b), 0.0 - b
    if 2 * (total - before) < total:
        extremes(pixels, zeros, total - before, 1.0, scratch)
        a, b = two_smallest(scratch[: total - before])
        return a, b if after > before else a
    for i in range(n):
        scratch[i] = pixels[i]
    scratch[n:total] = 0.0
    partition(scratch[:total], before)
    a = scratch[before]
    return a, two_smallest(scratch[after:total])[0]


@inner
def two_smallest(values):
    """Return the smallest and the second smallest value; infinity if there is none."""
    first, second = np.inf, np.inf
    for value in values:
        if value < first:
            first, second = value, first
        elif value < second:
            second = value
    return first, second


@inner
def extremes(pixels, zeros, keep, sign, kept):
    """Write the ``keep`` largest of ``sign`` times the pixels and of ``zeros`` zeros to ``kept``, in any order.

    Values above a threshold are collected. When twice as many as wanted are collected, only the largest are kept, and
    the smallest of these becomes the threshold. It is a pixel or 0, so pixels are compared in their own type.
    """
    # Most pixels are positive: with enough zeros, the smallest values need no better threshold than 0.
    has_threshold = (sign > 0 or zeros < keep) and find_threshold(pixels, keep, sign, kept)
    threshold = kept[0] if has_threshold else 0.0
    if zeros >= keep and not threshold > 0.0:
        threshold, has_threshold = 0.0, True
    count = keep if has_threshold else 0
    kept[:count] = threshold
    if not has_threshold or threshold < 0.0:
        kept[count : count + zeros] = 0.0
        count += zeros
    n = pixels.shape[0]
    for at in range(0, n, 64):
        size = min(64, n - at)
        word = EVERY >> np.uint64(64 - size)
        if has_threshold and size == 64:
            beyond = pixels.dtype.type(sign * threshold)
            word = gt_word(pixels, at, beyond) if sign > 0 else lt_word(pixels, at, beyond)
        while word != np.uint64(0):
            value = sign * pixels[at + ctz(word)]
            if not has_threshold or value > threshold:
                kept[count] = value
                count += 1
            word &= word - np.uint64(1)
        if count > 2 * keep + SCRATCH - 128:
            threshold, has_threshold = keep_largest(kept[:count], keep), True
            count = keep
    if count > keep:
        keep_largest(kept[:count], keep)


@inner
def find_threshold(pixels, keep, sign, lanes):
    """Write a threshold to ``lanes[0]`` that ``keep`` or a few more of ``sign`` times the pixels reach.

    Pixels are distributed over more than ``keep`` lanes; the threshold is the maximum of rank ``keep`` among the maxima
    of the lanes. Return whether there are enough pixels for this.
    """
    rows, deep = pixels.shape[0] // LANES, (3 * keep // 2 + LANES - 1) // LANES
    if rows < 2 * deep:
        return False
    size = deep * LANES
    for y in range(deep):
        largest_of_columns(pixels, y * LANES, size, rows // deep, sign, lanes[y * LANES :])
    while size % 2 == 0 and size >= 3 * keep:
        size //= 2
        for i in range(size):
            lanes[i] = max(lanes[i], lanes[size + i])
    partition(lanes[:size], size - keep)
    lanes[0] = lanes[size - keep]
    return True


@inner
def keep_largest(values, keep):
    """Move the ``keep`` largest values to the front; return the smallest of them."""
    rest = values.shape[0] - keep
    partition(values, rest)
    least = values[rest]
    # Values that are in place already stay there.
    source = max(rest, keep)
    for i in range(min(rest, keep)):
        values[i] = values[source + i]
    return least


@inner
def partition(values, rank):
    """Reorder ``values`` so that ``values[rank]`` has that rank and no value behind it is smaller (Hoare)."""
    low, high = 0, values.shape[0] - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while pivot < values[j]:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if j < rank:
            low = i
        if rank < i:
            high = j
