"""Numpy's linear quantiles of a cell's pixels, without sorting them.

The few smallest or largest values are found in two passes, 64 pixels at a time: one for a value that hardly more
pixels are beyond than are wanted, one that collects them. Ranks in the middle are found by selection.
"""

import numpy as np

from gpu_extract.backends.cpu.compiling import inner
from gpu_extract.backends.cpu.simd import LANES, ctz, gt_word, largest_of_columns, lt_word

__all__ = ["SCRATCH", "quantile_pair"]

# What `extremes` holds besides two times the values it keeps.
SCRATCH = 192
EVERY = np.uint64(0xFFFFFFFFFFFFFFFF)


@inner
def quantile_pair(pixels, zeros, lower, upper, scratch):
    """Two of numpy's linear quantiles of some pixels and ``zeros`` zeros besides; (0, 0) of nothing.

    Parameters
    ----------
    pixels : (n,), any pixel type
        Contiguous.
    scratch : (m,) float64
        With room for all of them and the zeros and `SCRATCH` more.
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
        a, b = ranked(pixels, zeros, before, after, scratch)
        # numpy interpolates from the nearer end, which makes the last bit depend on the fraction.
        lo, hi = hi, b - (b - a) * (1 - fraction) if fraction >= 0.5 else a + (b - a) * fraction
    return lo, hi


@inner
def ranked(pixels, zeros, before, after, scratch):
    """The values of rank ``before`` and ``after``, its successor or itself; the rest as for `quantile_pair`."""
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
    """The smallest value and the next one; infinity where there is none."""
    first, second = np.inf, np.inf
    for value in values:
        if value < first:
            first, second = value, first
        elif value < second:
            second = value
    return first, second


@inner
def extremes(pixels, zeros, keep, sign, kept):
    """Write the ``keep`` largest of ``sign`` times the pixels and ``zeros`` zeros into ``kept``, in any order.

    What is beyond the threshold is collected; should twice as many be there as wanted, they are thinned out, and the
    threshold is the least of what is left. It is a pixel or 0, so that pixels are compared in their own type.
    """
    # Most pixels are positive: among enough zeros only the largest ones need a better threshold.
    has_threshold = (sign > 0 or zeros < keep) and reached(pixels, keep, sign, kept)
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
def reached(pixels, keep, sign, lanes):
    """Write into ``lanes[0]`` a value that ``keep`` of ``sign`` times the pixels reach, few more; whether it was found.

    Pixels are dealt out to more than ``keep`` lanes, and of the largest of each lane the one of rank ``keep`` is it.
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
    """Move the ``keep`` largest values to the front; give the least of them."""
    rest = values.shape[0] - keep
    partition(values, rest)
    least = values[rest]
    # Those that are in place stay there.
    source = max(rest, keep)
    for i in range(min(rest, keep)):
        values[i] = values[source + i]
    return least


@inner
def partition(values, rank):
    """Reorder ``values`` so that ``values[rank]`` has that rank and none after it is smaller (Hoare)."""
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
