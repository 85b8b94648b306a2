"""Bit masks of one tile, 64 pixels per word: select a label, fill holes, dilate, find runs.

A mask is (S, W) uint64, W = ceil(S / 64). Pixel x of row y is bit ``x % 64`` of ``mask[y, x // 64]``; bits outside the
tile are 0. Boxes are (y0, x0, y1, x1) in the tile, half-open; an empty box is (0, 0, 0, 0).
"""

import numpy as np

from gpu_extract.backends.cpu.compiling import inner
from gpu_extract.backends.cpu.simd import ctz, eq_word

__all__ = ["bounding_box", "dilate", "fill_holes", "grow", "next_clear", "next_set", "select"]

EVERY = np.uint64(0xFFFFFFFFFFFFFFFF)
ZERO, ONE, TOP = np.uint64(0), np.uint64(1), np.uint64(63)


@inner
def equal_bits(labels, start, n, value):
    """Return a bit for each of the n <= 64 labels from ``start`` on: whether it equals ``value``."""
    if n == 64:
        return eq_word(labels, start, value)
    word = ZERO
    for i in range(n):
        word |= np.uint64(labels[start + i] == value) << np.uint64(i)
    return word


@inner
def select(plane, y0, x0, label, box, mask):
    """Write the mask of the pixels of a tile that have a label; pixels outside the slide are not in it.

    Parameters
    ----------
    plane : windows.Plane, unsigned
    y0, x0 : int, pixels
        The tile's first pixel in the plane; may lie outside it.
    label : the plane's type
        0 selects the pixels of all labels.
    box : (4,) int64
        The part of the tile that is read.
    mask : (S, W) uint64
        Written: the rows of ``box``. Beside the box, pixels of the label may be missing.
    """
    S, W = mask.shape
    for y in range(box[0], box[2]):
        on_slide = 0 <= y + y0 < plane.height
        row = plane.start + (y + y0) * plane.stride + x0
        for k in range(W):
            start = max(64 * k, -x0)
            n = min(64, plane.width - x0 - start)
            mask[y, k] = 0
            if on_slide and n > 0 and start < min(box[3], 64 * k + 64) and 64 * k + 64 > box[1]:
                bits = equal_bits(plane.data, row + start, n, label)
                if label == 0:
                    bits = ~bits & (EVERY >> np.uint64(64 - n))
                bits <<= np.uint64(start - 64 * k)
                mask[y, k] = bits & (EVERY >> np.uint64(max(64 * k + 64 - S, 0)))


@inner
def bounding_box(mask, part, box):
    """Write the bounding box of a mask to ``box``; only the rows of ``part`` are read."""
    S, W = mask.shape
    box[:] = 0
    top, bottom = S, 0
    for y in range(part[0], part[2]):
        row = ZERO
        for k in range(W):
            row |= mask[y, k]
        if row != ZERO:
            top, bottom = min(top, y), y + 1
    if top >= bottom:
        return
    left, right = -1, 0
    for k in range(W):
        column = ZERO
        for y in range(top, bottom):
            column |= mask[y, k]
        if column != ZERO:
            left = 64 * k + ctz(column) if left < 0 else left
            right = 64 * k + 64
            while not (column >> np.uint64(right - 64 * k - 1)) & ONE:
                right -= 1
    box[0], box[1], box[2], box[3] = top, left, bottom, right


@inner
def next_set(mask, y, x, end):
    """Return the first pixel of row ``y`` in ``x`` to ``end - 1`` that is in the mask; ``end`` if there is none."""
    return next_bit(mask, y, x, end, ZERO)


@inner
def next_clear(mask, y, x, end):
    """Return the first pixel of row ``y`` in ``x`` to ``end - 1`` that is not in the mask; ``end`` if there is none."""
    return next_bit(mask, y, x, end, EVERY)


@inner
def next_bit(mask, y, x, end, flip):
    """Return the first pixel in ``x`` to ``end - 1`` whose bit, after XOR with ``flip``, is set; ``end`` if none is."""
    if x >= end:
        return end
    k = x // 64
    word = (mask[y, k] ^ flip) & (EVERY << np.uint64(x % 64))
    while word == ZERO:
        k += 1
        if 64 * k >= end:
            return end
        word = mask[y, k] ^ flip
    return min(64 * k + ctz(word), end)


@inner
def is_simple(mask, box):
    """Return whether each row of a mask has at most one run: then the mask cannot have holes."""
    for y in range(box[0], box[2]):
        end = next_clear(mask, y, next_set(mask, y, box[1], box[3]), box[3])
        if next_set(mask, y, end, box[3]) < box[3]:
            return False
    return True


@inner
def fill_holes(mask, box, reached):
    """Fill holes in place: background that is not 4-connected to the edge of the tile.

    Everything outside ``box`` is background, so background that is connected to the edge of the box is connected to
    the edge of the tile. A flood fill from the edge of the box sweeps over the rows, down and up in turn, until nothing
    changes. ``reached``, (S, W), is scratch memory: background that the flood has reached.
    """
    if is_simple(mask, box):
        return
    first, last = box[1] // 64, (box[3] - 1) // 64
    for y in range(box[0], box[2]):
        for k in range(first, last + 1):
            reached[y, k] = 0
    for y in (box[0], box[2] - 1):
        for k in range(first, last + 1):
            reached[y, k] = background(mask, y, k, box)
    for y in range(box[0], box[2]):
        for x in (box[1], box[3] - 1):
            reached[y, x // 64] |= background(mask, y, x // 64, box) & (ONE << np.uint64(x % 64))
    changed = True
    while changed:
        changed = False
        for y in range(box[0], box[2]):
            changed |= flood_row(mask, y, max(y - 1, box[0]), box, reached)
        for y in range(box[2] - 1, box[0] - 1, -1):
            changed |= flood_row(mask, y, min(y + 1, box[2] - 1), box, reached)
    for y in range(box[0], box[2]):
        for k in range(first, last + 1):
            mask[y, k] |= background(mask, y, k, box) & ~reached[y, k]


@inner
def background(mask, y, k, box):
    """Return the pixels of word ``k`` of row ``y`` that are in ``box`` and not in the mask."""
    inside = EVERY
    if 64 * k < box[1]:
        inside &= EVERY << np.uint64(box[1] - 64 * k)
    if 64 * k + 64 > box[3]:
        inside &= EVERY >> np.uint64(64 * k + 64 - box[3])
    return ~mask[y, k] & inside


@inner
def flood_row(mask, y, beside, box, reached):
    """Flood row ``y`` from its own reached pixels and those of row ``beside``; return whether anything changed."""
    first, last = box[1] // 64, (box[3] - 1) // 64
    changed = False
    carry = ZERO
    for k in range(first, last + 1):
        within = background(mask, y, k, box)
        seed = (reached[y, k] | reached[beside, k] | carry) & within
        word = flood_word(seed, within)
        changed |= word != reached[y, k]
        reached[y, k] = word
        carry = word >> TOP
    carry = ZERO
    for k in range(last, first - 1, -1):
        within = background(mask, y, k, box)
        word = reached[y, k]
        if carry & within & ~word:
            word = flood_word(word | (carry & within), within)
            reached[y, k] = word
            changed = True
        carry = word << TOP
    return changed


@inner
def flood_word(seed, within):
    """Return the runs of ``within`` that contain a bit of ``seed``; each step doubles the distance covered."""
    up, down, free_up, free_down = seed, seed, within, within
    for step in range(6):
        shift = ONE << np.uint64(step)
        up |= free_up & (up << shift)
        down |= free_down & (down >> shift)
        free_up &= free_up << shift
        free_down &= free_down >> shift
    return up | down


@inner
def grow(box, margin, size, grown):
    """Write a box, enlarged by ``margin`` within a tile of ``size``, to ``grown``; an empty box stays empty."""
    if box[2] == box[0]:
        grown[:] = 0
        return
    grown[0], grown[1] = max(box[0] - margin, 0), max(box[1] - margin, 0)
    grown[2], grown[3] = min(box[2] + margin, size), min(box[3] + margin, size)


@inner
def dilate(mask, box, radius, row, dilated, dilated_box):
    """Dilate a mask by the disk ``dy^2 + dx^2 <= radius^2``.

    Each row is widened pixel by pixel, from the width of the disk's narrowest row to that of its widest row, and
    combined by OR with the rows at the corresponding distance.

    Parameters
    ----------
    mask, box : (S, W) uint64, (4,) int64
        The mask and its bounding box.
    radius : int, pixels
    row : (W,) uint64
        Scratch memory.
    dilated, dilated_box : (S, W) uint64, (4,) int64
        Written: the rows of the dilated mask within its box, and the box.
    """
    S, W = mask.shape
    grow(box, radius, S, dilated_box)
    for y in range(dilated_box[0], dilated_box[2]):
        for k in range(W):
            dilated[y, k] = 0
    for y in range(box[0], box[2]):
        for k in range(W):
            row[k] = mask[y, k]
        width = 0
        for dy in range(radius, -1, -1):
            reach = int(np.sqrt(radius * radius - dy * dy))
            while width < reach:
                widen(row)
                width += 1
            for other in (y - dy, y + dy):
                if 0 <= other < S:
                    for k in range(W):
                        dilated[other, k] |= row[k]
    if S % 64:
        for y in range(dilated_box[0], dilated_box[2]):
            dilated[y, W - 1] &= EVERY >> np.uint64(64 - S % 64)


@inner
def widen(row):
    """Dilate a row of a mask by one pixel to both sides, in place."""
    W = row.shape[0]
    before = ZERO
    for k in range(W):
        here = row[k]
        after = row[k + 1] if k + 1 < W else ZERO
        row[k] = here | (here << ONE) | (before >> TOP) | (here >> ONE) | (after << TOP)
        before = here
