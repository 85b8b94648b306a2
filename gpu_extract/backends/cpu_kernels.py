"""One cell after the other, fused, compiled by numba, without the GIL.

`extract_cells` makes a cell's masks, cuts and normalises its channels and writes the finished tile, in scratch
memory that stays in the core's cache. It is `reference.extract_tile` with known results skipped: beyond the box
that a mask can reach all pixels have one value, ``outside``, nearly always 0, and nothing is computed there. Sums
run in SciPy's order, so that the numbers are the reference's own.

Only `cut_codes`, `load_channel` and `store_plane` see the types of labels, pixels and output; the rest works on
uint8 masks and float64 values and is compiled once.

Boxes are (y0, x0, y1, x1) in the tile, half open.
"""

import numpy as np
from numba import njit

from gpu_extract.backends.program_tables import PIXELS_GIVEN, PIXELS_MASK, PIXELS_TILE

# Parameters that are names in the recipe and numbers here.
OUTPUT_HALF, OUTPUT_FLOAT, OUTPUT_INTEGER = 0, 1, 2

# Up to this many smallest or largest values are found by insertion in one pass; more by partition.
INSERTION_LIMIT = 256

BACKGROUND, OWN, NEIGHBOUR = np.uint8(0), np.uint8(1), np.uint8(2)


@njit(nogil=True, cache=True)
def extract_cells(image, label_planes, ids, corners, masks, weights, stored, cut, options, numbers, levels, out, used):
    """Fill ``out`` with the finished tiles of n cells and ``used`` with their levels.

    Parameters
    ----------
    image : (C, h, w), any pixel type
    label_planes : tuple of one or two (h, w) arrays, uint32 or uint64
    ids : (n,), the labels' type
    corners : (n, 2) int64
        (y, x) of each tile's first pixel in the window; may lie outside it.
    masks : (k, 4) int64
        Label plane, fill holes (0 or 1), radius of the disk, radius of the blur.
    weights : (k, R + 1) float64
        Blur weights from the centre outwards.
    stored, cut : (M,), (C,) int64
        The mask of each mask plane, and of each channel.
    options : Options
        See `cpu.options`.
    numbers : Numbers
        See `cpu.numbers`.
    levels : (C, 2) float64
        Read where ``options.pixels`` is `PIXELS_GIVEN`.
    out : (n, K, S, S)
        The output type; float16 as its bits in uint16.
    used : (n, C, 2) float64
    """
    S = out.shape[2]
    n_masks = stored.shape[0]
    codes = np.empty((len(label_planes), S, S), np.uint8)
    filled = np.empty((S, S), np.uint8)
    region = np.empty((masks.shape[0], S, S), np.uint8)
    soft = np.empty((masks.shape[0], S, S))
    region_boxes = np.empty((masks.shape[0], 4), np.int64)
    soft_boxes = np.empty((masks.shape[0], 4), np.int64)
    columns = np.empty((S, S))
    padded = np.empty(S + 2 * weights.shape[1])
    stack = np.empty(S * S, np.int32)
    values = np.empty((S, S))
    pool = np.empty(S * S)
    whole = np.array([0, 0, S, S])

    for n in range(ids.shape[0]):
        y, x = corners[n, 0], corners[n, 1]
        for p in range(len(label_planes)):
            cut_codes(label_planes[p], ids[n], y, x, codes[p])
        for m in range(masks.shape[0]):
            plane = codes[masks[m, 0]]
            box = own_box(plane)
            select_own(plane, box, filled)
            if masks[m, 1] and not is_simple(filled, box):
                fill_holes(filled, box, stack)
            dilate(filled, box, masks[m, 2], region[m], region_boxes[m])
            blur(region[m], region_boxes[m], weights[m], masks[m, 3], columns, padded, soft[m], soft_boxes[m])
            for k in range(n_masks):
                if stored[k] == m:
                    store_plane(soft[m], soft_boxes[m], 0.0, numbers.unit, options.output, out[n, k])
            if options.exclude:
                cut_neighbours(plane, filled, box, region_boxes[m], region[m], soft_boxes[m], soft[m])
        for c in range(cut.shape[0]):
            m = cut[c]
            box = soft_boxes[m] if options.apply_masks else whole
            read_box = whole if options.pixels == PIXELS_TILE and not options.cut_before else box
            load_channel(image[c], y, x, read_box, values)
            if options.cut_before and options.apply_masks:
                multiply(values, soft[m], box)
            if options.pixels == PIXELS_GIVEN:
                lo, hi = levels[c, 0], levels[c, 1]
            else:
                if options.pixels == PIXELS_MASK:
                    on_slide = slide_box(y, x, image.shape[1], image.shape[2], region_boxes[m])
                    size = gather_region(values, region[m], on_slide, pool)
                    zeros = 0
                else:
                    size = gather_box(values, read_box, pool)
                    zeros = S * S - size
                lo, hi = quantile_pair(pool, size, zeros, numbers.lower, numbers.upper)
            used[n, c, 0], used[n, c, 1] = lo, hi
            outside = 0.0
            if options.scale:
                scale(values, box, lo, hi, options.flat_zero)
                if options.cut_before:
                    outside = scaled(0.0, lo, hi, options.flat_zero)
            if not options.cut_before and options.apply_masks:
                multiply(values, soft[m], box)
            if options.stretch[c]:
                outside = stretch(values, box, outside)
            store_plane(values, box, outside, numbers.unit, options.output, out[n, n_masks + c])


@njit(nogil=True, cache=True)
def cut_codes(labels, cell_id, y0, x0, codes):
    """``codes`` (S, S) of the tile at (y0, x0): `BACKGROUND`, `OWN` or `NEIGHBOUR`; background off the slide."""
    S = codes.shape[0]
    left, right = max(0, -x0), min(S, labels.shape[1] - x0)
    for y in range(S):
        if y + y0 < 0 or y + y0 >= labels.shape[0]:
            codes[y] = BACKGROUND
            continue
        row = labels[y + y0]
        codes[y, :left] = BACKGROUND
        codes[y, right:] = BACKGROUND
        for x in range(left, right):
            label = row[x + x0]
            codes[y, x] = np.uint8(label != 0) + np.uint8(label != 0 and label != cell_id)


@njit(nogil=True, cache=True)
def own_box(codes):
    """The bounding box of `OWN` pixels; empty (0, 0, 0, 0) if there are none."""
    S = codes.shape[0]
    box = np.zeros(4, np.int64)
    for y in range(S):
        left = 0
        while left < S and codes[y, left] != OWN:
            left += 1
        if left == S:
            continue
        right = S
        while codes[y, right - 1] != OWN:
            right -= 1
        if box[2] == 0:
            box[0], box[1], box[3] = y, left, right
        box[1], box[2], box[3] = min(box[1], left), y + 1, max(box[3], right)
    return box


@njit(nogil=True, cache=True)
def select_own(codes, box, mask):
    """Write the 0/1 mask of `OWN` pixels into ``mask`` within ``box``."""
    for y in range(box[0], box[2]):
        for x in range(box[1], box[3]):
            mask[y, x] = codes[y, x] == OWN


@njit(nogil=True, cache=True)
def is_simple(mask, box):
    """Whether each row of the mask is one run: then every background pixel reaches the edge, and no hole exists."""
    for y in range(box[0], box[2]):
        runs = 0
        before = np.uint8(0)
        for x in range(box[1], box[3]):
            runs += mask[y, x] & (before ^ 1)
            before = mask[y, x]
        if runs > 1:
            return False
    return True


@njit(nogil=True, cache=True)
def fill_holes(mask, box, stack):
    """Fill, in place, background that is not 4-connected to the edge of the tile.

    Outside ``box`` all is background, so what reaches the edge of the box reaches the edge of the tile.
    """
    y0, x0, y1, x1 = box
    S = mask.shape[0]
    top = 0
    outside = np.uint8(2)
    for y in range(y0, y1):
        for x in range(x0, x1):
            if mask[y, x] == 0 and (y == y0 or y == y1 - 1 or x == x0 or x == x1 - 1):
                mask[y, x] = outside
                stack[top] = y * S + x
                top += 1
    while top:
        top -= 1
        y, x = stack[top] // S, stack[top] % S
        for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            yy, xx = y + dy, x + dx
            if y0 <= yy < y1 and x0 <= xx < x1 and mask[yy, xx] == 0:
                mask[yy, xx] = outside
                stack[top] = yy * S + xx
                top += 1
    for y in range(y0, y1):
        for x in range(x0, x1):
            mask[y, x] = mask[y, x] != outside


@njit(nogil=True, cache=True)
def grow(box, margin, size, grown):
    """Write into ``grown`` the box enlarged by ``margin`` within a tile of ``size``; an empty box stays empty."""
    if box[2] == box[0]:
        grown[:] = 0
        return
    grown[0], grown[1] = max(box[0] - margin, 0), max(box[1] - margin, 0)
    grown[2], grown[3] = min(box[2] + margin, size), min(box[3] + margin, size)


@njit(nogil=True, cache=True)
def dilate(mask, box, radius, dilated, dilated_box):
    """Expand the mask by the disk ``dy^2 + dx^2 <= radius^2``: each run of a row becomes one run per dy."""
    grow(box, radius, mask.shape[0], dilated_box)
    top, left, bottom, right = dilated_box
    for y in range(top, bottom):
        dilated[y, left:right] = 0
    for y in range(box[0], box[2]):
        x = box[1]
        while x < box[3]:
            if not mask[y, x]:
                x += 1
                continue
            start = x
            while x < box[3] and mask[y, x]:
                x += 1
            for dy in range(-radius, radius + 1):
                if top <= y + dy < bottom:
                    reach = int(np.sqrt(radius * radius - dy * dy))
                    dilated[y + dy, max(start - reach, left) : min(x + reach, right)] = 1


@njit(nogil=True, cache=True)
def blur(mask, box, weights, radius, columns, padded, soft, soft_box):
    """Blur a 0/1 mask separably, rows first summed over y, then over x; the tile's border is replicated.

    Each sum starts at the centre and goes from the outermost pair of taps inwards, as SciPy's does.
    """
    S = mask.shape[0]
    grow(box, radius, S, soft_box)
    top, left, bottom, right = soft_box
    x0, x1 = box[1], box[3]
    for y in range(top, bottom):
        sums = columns[y, x0:x1]
        if box[0] <= y < box[2]:
            centre = mask[y, x0:x1]
            for x in range(x1 - x0):
                sums[x] = centre[x] * weights[0]
        else:
            sums[:] = 0.0
        for tap in range(radius, 0, -1):
            above, below = max(y - tap, 0), min(y + tap, S - 1)
            if box[0] <= above < box[2] and box[0] <= below < box[2]:
                for x in range(x1 - x0):
                    sums[x] += (mask[above, x0 + x] + mask[below, x0 + x]) * weights[tap]
            elif box[0] <= above < box[2] or box[0] <= below < box[2]:
                source = mask[above if above >= box[0] and above < box[2] else below, x0:x1]
                for x in range(x1 - x0):
                    sums[x] += source[x] * weights[tap]
    for y in range(top, bottom):
        for i in range(right - left + 2 * radius):
            x = min(max(left - radius + i, 0), S - 1)
            padded[i] = columns[y, x] if x0 <= x < x1 else 0.0
        sums = soft[y, left:right]
        for x in range(right - left):
            sums[x] = padded[x + radius] * weights[0]
        for tap in range(radius, 0, -1):
            weight = weights[tap]
            for x in range(right - left):
                sums[x] += (padded[x + radius - tap] + padded[x + radius + tap]) * weight


@njit(nogil=True, cache=True)
def cut_neighbours(codes, filled, box, region_box, region, soft_box, soft):
    """Set ``region`` and ``soft`` to 0 on neighbours that do not lie in a filled hole of the cell."""
    for y in range(soft_box[0], soft_box[2]):
        for x in range(soft_box[1], soft_box[3]):
            if codes[y, x] == NEIGHBOUR:
                inside = box[0] <= y < box[2] and box[1] <= x < box[3]
                if not (inside and filled[y, x]):
                    soft[y, x] = 0.0
                    if region_box[0] <= y < region_box[2] and region_box[1] <= x < region_box[3]:
                        region[y, x] = 0


@njit(nogil=True, cache=True)
def load_channel(channel, y0, x0, box, values):
    """Write the pixels of a tile at (y0, x0) into ``values`` within ``box``, 0 off the slide."""
    height, width = channel.shape
    left, right = max(box[1], -x0), min(box[3], width - x0)
    for y in range(box[0], box[2]):
        if y + y0 < 0 or y + y0 >= height or left >= right:
            values[y, box[1] : box[3]] = 0.0
            continue
        values[y, box[1] : left] = 0.0
        values[y, right : box[3]] = 0.0
        for x in range(left, right):
            values[y, x] = channel[y + y0, x + x0]


@njit(nogil=True, cache=True)
def multiply(values, factor, box):
    """Multiply ``values`` by ``factor`` within ``box``."""
    for y in range(box[0], box[2]):
        for x in range(box[1], box[3]):
            values[y, x] *= factor[y, x]


@njit(nogil=True, cache=True)
def slide_box(y0, x0, height, width, box):
    """The part of ``box``, in the tile at (y0, x0), that lies on the slide."""
    return max(box[0], -y0), max(box[1], -x0), min(box[2], height - y0), min(box[3], width - x0)


@njit(nogil=True, cache=True)
def gather_region(values, region, box, pool):
    """Collect into ``pool`` the values where ``region`` is set within ``box``; return how many."""
    size = 0
    for y in range(box[0], box[2]):
        for x in range(box[1], box[3]):
            pool[size] = values[y, x]
            size += region[y, x]
    return size


@njit(nogil=True, cache=True)
def gather_box(values, box, pool):
    """Collect into ``pool`` the values within ``box``; return how many."""
    size = 0
    for y in range(box[0], box[2]):
        for x in range(box[1], box[3]):
            pool[size] = values[y, x]
            size += 1
    return size


@njit(nogil=True, cache=True)
def quantile_pair(pool, size, zeros, lower, upper):
    """Two of numpy's linear quantiles of ``pool[:size]`` and ``zeros`` zeros besides; (0, 0) of nothing."""
    if size + zeros == 0:
        return 0.0, 0.0
    return quantile(pool, size, zeros, lower), quantile(pool, size, zeros, upper)


@njit(nogil=True, cache=True)
def quantile(pool, size, zeros, q):
    """Numpy's linear quantile ``q`` of ``pool[:size]`` and ``zeros`` zeros besides."""
    total = size + zeros
    position = (total - 1) * q
    before = min(int(np.floor(position)), total - 1)
    after = min(before + 1, total - 1)
    fraction = position - np.floor(position)
    a, b = ranked(pool, size, zeros, before, after)
    # numpy interpolates from the nearer end, which makes the last bit depend on the fraction.
    if fraction >= 0.5:
        return b - (b - a) * (1 - fraction)
    return a + (b - a) * fraction


@njit(nogil=True, cache=True)
def ranked(pool, size, zeros, before, after):
    """The values of rank ``before`` and ``after``, its successor or itself, of pool[:size] and ``zeros`` zeros."""
    total = size + zeros
    if after < INSERTION_LIMIT:
        lowest = extremes(pool, size, zeros, after + 1, 1.0)
        return lowest[before], lowest[after]
    if total - before <= INSERTION_LIMIT:
        highest = extremes(pool, size, zeros, total - before, -1.0)
        return -highest[total - 1 - before], -highest[total - 1 - after]
    everything = np.empty(total)
    for i in range(total):
        everything[i] = pool[i] if i < size else 0.0
    select(everything, before)
    successor = everything[after]
    for i in range(after, total):
        successor = min(successor, everything[i])
    return everything[before], successor


@njit(nogil=True, cache=True)
def extremes(pool, size, zeros, keep, sign):
    """The ``keep`` smallest of ``sign * pool[:size]`` and ``zeros`` zeros, ascending, found in one pass."""
    ordered = np.empty(keep)
    for i in range(keep):
        ordered[i] = 0.0 if i < zeros else np.inf
    for i in range(size):
        if sign * pool[i] < ordered[keep - 1]:
            insert(ordered, sign * pool[i])
    return ordered


@njit(nogil=True, cache=True)
def select(pool, rank):
    """Reorder ``pool`` so that ``pool[rank]`` is the value of that rank and none after it is smaller (Hoare)."""
    low, high = 0, pool.shape[0] - 1
    while low < high:
        pivot = pool[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while pool[i] < pivot:
                i += 1
            while pivot < pool[j]:
                j -= 1
            if i <= j:
                pool[i], pool[j] = pool[j], pool[i]
                i += 1
                j -= 1
        if j < rank:
            low = i
        if rank < i:
            high = j


@njit(nogil=True, cache=True)
def insert(ordered, value):
    """Put ``value`` into the ascending array in place of its last entry."""
    i = ordered.shape[0] - 1
    while i > 0 and ordered[i - 1] > value:
        ordered[i] = ordered[i - 1]
        i -= 1
    ordered[i] = value


@njit(nogil=True, cache=True)
def scaled(value, lo, hi, flat_zero):
    """``clip((value - lo) / (hi - lo), 0, 1)``; where ``hi == lo`` 0, or clip(value - lo, 0, 1)."""
    if hi == lo and flat_zero:
        return 0.0
    span = hi - lo if hi != lo else 1.0
    return min(max((value - lo) / span, 0.0), 1.0)


@njit(nogil=True, cache=True)
def scale(values, box, lo, hi, flat_zero):
    """Make each of ``values`` within ``box`` what `scaled` makes of it."""
    for y in range(box[0], box[2]):
        for x in range(box[1], box[3]):
            values[y, x] = scaled(values[y, x], lo, hi, flat_zero)


@njit(nogil=True, cache=True)
def stretch(values, box, outside):
    """``(y - min) / (max - min)`` within ``box``, min and max over the whole tile; gives the new ``outside``."""
    S = values.shape[0]
    everywhere = (box[2] - box[0]) * (box[3] - box[1]) == S * S
    low, high = (np.inf, -np.inf) if everywhere else (outside, outside)
    for y in range(box[0], box[2]):
        for x in range(box[1], box[3]):
            low, high = min(low, values[y, x]), max(high, values[y, x])
    if not high > low:
        return outside
    for y in range(box[0], box[2]):
        for x in range(box[1], box[3]):
            values[y, x] = (values[y, x] - low) / (high - low)
    return (outside - low) / (high - low)


@njit(nogil=True, cache=True)
def store_plane(values, box, outside, unit, output, plane):
    """Write ``values`` within ``box``, and ``outside`` elsewhere, into ``plane`` in its own type, half to even."""
    S = plane.shape[1]
    alone = np.empty(1)
    alone[0] = outside
    filling = outside
    if output == OUTPUT_HALF:
        filling = half_bits(outside, alone.view(np.uint64)[0])
    elif output == OUTPUT_INTEGER:
        filling = np.rint(outside * unit)
    for y in range(plane.shape[0]):
        for x in range(S):
            plane[y, x] = filling
    bits = values.view(np.uint64)
    for y in range(box[0], box[2]):
        if output == OUTPUT_HALF:
            for x in range(box[1], box[3]):
                plane[y, x] = half_bits(values[y, x], bits[y, x])
        elif output == OUTPUT_INTEGER:
            for x in range(box[1], box[3]):
                plane[y, x] = np.rint(values[y, x] * unit)
        else:
            for x in range(box[1], box[3]):
                plane[y, x] = values[y, x]


@njit(nogil=True, cache=True, inline="always")
def half_bits(value, bits):
    """The bits of the float16 nearest to a finite float64, ties to even; ``bits`` are the float64's own."""
    sign = (bits >> np.uint64(48)) & np.uint64(0x8000)
    magnitude = bits & np.uint64(0x7FFFFFFFFFFFFFFF)
    # Below 2^-14 float16 counts in steps of 2^-24; scaling by 2^24 is exact, so rint rounds once.
    small = np.uint64(np.rint(min(abs(value), 1.0) * 16777216.0))
    odd = (magnitude >> np.uint64(42)) & np.uint64(1)
    normal = ((magnitude + np.uint64((1 << 41) - 1) + odd) >> np.uint64(42)) - np.uint64((1023 - 15) << 10)
    body = small if magnitude < np.uint64(0x3F10000000000000) else min(normal, np.uint64(0x7C00))
    return np.uint16(sign | body)
