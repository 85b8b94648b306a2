"""The pixels of one channel within a box: load, multiply, scale, and store in the output's type.

The values of a box are contiguous float64, row by row, so most steps are a single loop.
"""

from typing import NamedTuple

import numpy as np

from gpu_extract.backends.cpu.compiling import inner
from gpu_extract.backends.cpu.masks import next_clear, next_set
from gpu_extract.backends.cpu.simd import LANES, bits_of, float_of, gt_word, lt_word, store_lanes

__all__ = [
    "OUTPUT_FLOAT",
    "OUTPUT_HALF",
    "OUTPUT_INTEGER",
    "Output",
    "copy_pixels",
    "gather",
    "load",
    "multiply",
    "scale",
    "scaled",
    "store",
    "stretch",
]

# How values are stored: as float16, unchanged, or times a unit and rounded.
OUTPUT_HALF, OUTPUT_FLOAT, OUTPUT_INTEGER = 0, 1, 2


class Output(NamedTuple):
    """The output's type.

    Parameters
    ----------
    kind : int
        OUTPUT_HALF, OUTPUT_FLOAT or OUTPUT_INTEGER.
    unit : float
        The integer that stands for 1.
    """

    kind: int
    unit: float


# Bits of a float64: the exponent; the exponent of 2^-14, the smallest normal float16; and an increment of the exponent
# by 42, because the mantissa of float16 is 42 bits shorter.
EXPONENT, HALF_NORMAL, HALF_PLACES = np.uint64(0x7FF << 52), np.uint64(0x3F1 << 52), np.uint64(42 << 52)
# float16 values from here on are infinite.
HALF_INFINITE = 65536.0


@inner
def load(plane, y0, x0, box, values):
    """Write the pixels within a box of a tile to ``values``; pixels outside the slide are 0.

    Parameters
    ----------
    plane : windows.Plane
    y0, x0 : int, pixels
        The tile's first pixel in the plane; may lie outside it.
    box : (4,) int64
    values : (m,) float64
        Written. Up to `LANES` values behind those of the box are overwritten.
    """
    n = box[3] - box[1]
    left, right = max(box[1], -x0), min(box[3], plane.width - x0)
    for y in range(box[0], box[2]):
        source, target = plane.start + (y + y0) * plane.stride + x0 + box[1], (y - box[0]) * n
        on_slide = 0 <= y + y0 < plane.height
        if on_slide and right - left == n and source + n + LANES <= plane.data.shape[0]:
            for x in range(0, n, LANES):
                store_lanes(plane.data, source + x, n - x, 0.0, values, target + x)
            continue
        values[target : target + n] = 0.0
        if on_slide:
            for x in range(left - box[1], right - box[1]):
                values[target + x] = plane.data[source + x]


@inner
def copy_pixels(plane, y0, x0, box, pixels):
    """Copy the pixels within a box of the tile at (y0, x0), all on the slide, row by row; return their number."""
    top, left, bottom, right = box
    n = max(right - left, 0)
    for y in range(top, bottom):
        source = np.uintp(plane.start + (y + y0) * plane.stride + x0 + left)
        target = np.uintp((y - top) * n)
        for x in range(np.uintp(n)):
            pixels[target + x] = plane.data[source + x]
    return max(bottom - top, 0) * n


@inner
def gather(values, box, region, part, selected):
    """Copy the values of a box at the pixels of the mask ``region`` within ``part`` of it; return their number."""
    n = box[3] - box[1]
    size = 0
    top, left, bottom, right = part
    for y in range(top, bottom):
        row = (y - box[0]) * n - box[1]
        start = next_set(region, y, left, right)
        while start < right:
            end = next_clear(region, y, start, right)
            for x in range(start, end):
                selected[size] = values[row + x]
                size += 1
            start = next_set(region, y, end, right)
    return size


@inner
def multiply(values, factors):
    """Multiply values by factors, in place."""
    for i in range(values.shape[0]):
        values[i] *= factors[i]


@inner
def scaled(value, lo, hi, flat_zero):
    """Return ``clip((value - lo) / (hi - lo), 0, 1)``; if ``hi == lo``, 0 or ``clip(value - lo, 0, 1)``."""
    if hi == lo and flat_zero:
        return 0.0
    span = hi - lo if hi != lo else 1.0
    return min(max((value - lo) / span, 0.0), 1.0)


@inner
def scale(values, lo, hi, flat_zero):
    """Apply `scaled` to all values, in place."""
    if hi == lo and flat_zero:
        values[:] = 0.0
        return
    span = hi - lo if hi != lo else 1.0
    for i in range(values.shape[0]):
        values[i] = min(max((values[i] - lo) / span, 0.0), 1.0)


@inner
def bounds(values, low, high):
    """Return the minimum of the values and ``low``, and the maximum of the values and ``high``.

    Blocks of 64 values are compared at once; only blocks with a value outside of the bounds are examined one by one.
    """
    size = values.shape[0]
    for start in range(0, size, 64):
        n = min(64, size - start)
        if n < 64 or lt_word(values, start, low) | gt_word(values, start, high):
            for i in range(start, start + n):
                low, high = min(low, values[i]), max(high, values[i])
    return low, high


@inner
def stretch(values, outside, n_pixels):
    """Replace values by ``(value - min) / (max - min)`` over the whole tile; return the new ``outside``."""
    low, high = (np.inf, -np.inf) if values.shape[0] == n_pixels else (outside, outside)
    low, high = bounds(values, low, high)
    if not high > low:
        return outside
    for i in range(values.shape[0]):
        values[i] = (values[i] - low) / (high - low)
    return (outside - low) / (high - low)


@inner
def store(values, box, outside, output, converted, plane, filled):
    """Write ``values`` within ``box``, and ``outside`` elsewhere, to ``plane`` in its own type, rounded half to even.

    Parameters
    ----------
    values : (m,) float64
        The value behind those of the box is overwritten.
    box : (4,) int64
    outside : float
    output : Output
    converted : (m + LANES,), the plane's type
        Scratch memory.
    plane : (S, S)
        Written. C-contiguous; float16 as its bits in uint16.
    filled : (4,) int64
        Updated: the box outside of which ``plane`` is 0.
    """
    S = plane.shape[0]
    for y in range(filled[0], filled[2]):
        plane[y, filled[1] : filled[3]] = 0
    filled[0], filled[1], filled[2], filled[3] = box
    n = box[3] - box[1]
    size = (box[2] - box[0]) * n
    values[size] = outside
    convert(values[: size + 1], output, converted)
    beyond = converted[size]
    if outside != 0.0:
        filled[0], filled[1], filled[2], filled[3] = 0, 0, S, S
        plane[:] = beyond
    for y in range(box[0], box[2]):
        source, target = (y - box[0]) * n, y * S + box[1]
        if target + n + LANES <= S * S:
            for x in range(0, n, LANES):
                store_lanes(converted, source + x, n - x, beyond, plane, target + x)
        else:
            for x in range(n):
                plane[y, box[1] + x] = converted[source + x]


@inner
def convert(values, output, converted):
    """Convert values to the output's type."""
    if output.kind == OUTPUT_HALF:
        for i in range(values.shape[0]):
            converted[i] = half_bits(values[i])
    elif output.kind == OUTPUT_INTEGER:
        for i in range(values.shape[0]):
            converted[i] = np.rint(values[i] * output.unit)
    else:
        for i in range(values.shape[0]):
            converted[i] = values[i]


@inner
def half_bits(value):
    """Return the bits of the float16 nearest to a finite float64, ties to even."""
    size = min(abs(value), HALF_INFINITE)
    exponent = max(bits_of(size) & EXPONENT, HALF_NORMAL)
    # Adding a number whose last bit is float16's last bit rounds the value to that bit.
    large = exponent + HALF_PLACES
    places = bits_of(size + float_of(large)) - large
    body = ((exponent - HALF_NORMAL) >> np.uint64(42)) + places
    return np.uint16((bits_of(value) >> np.uint64(48)) & np.uint64(0x8000) | body)
