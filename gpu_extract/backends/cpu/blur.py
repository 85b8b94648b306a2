"""Separable Gaussian blur of a bit mask: along x from the ends of runs, then along y tap by tap.

Along x, a pixel is a sum over runs, and the sum of the weights over a run is a difference of cumulative weights. This
takes one step per run and pixel, independent of the radius.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpu_extract.backends.cpu.compiling import inner
from gpu_extract.backends.cpu.masks import grow, next_clear, next_set
from gpu_extract.backends.cpu.simd import BLOCK, accumulate_taps

__all__ = ["BLOCK", "Taps", "blur", "clear", "edge_tables"]


class Taps(NamedTuple):
    """The weights of a blur.

    Parameters
    ----------
    weights : (R + 1,) float64
        From the center outwards.
    radius : int, pixels
        The weights beyond it are 0.
    edges : (2 n,) float64
        `edge_tables` of the weights.
    """

    weights: NDArray[np.float64]
    radius: int
    edges: NDArray[np.float64]


def edge_tables(weights: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Return, for each blur, the sum of the weights left of an edge for a pixel that is ``d`` right of it.

    Parameters
    ----------
    weights : (k, R + 1) float64
        From the center outwards.
    size : int, pixels
        Of the tile.

    Returns
    -------
    (k, 2 n) float64, n = size + R + 1
        The sum for ``d`` is at ``n + d``.
    """
    radius, n = weights.shape[1] - 1, size + weights.shape[1]
    both = np.concatenate([weights[:, :0:-1], weights], axis=1)
    cumulative = np.concatenate([np.zeros((len(weights), 1)), np.cumsum(both, axis=1)], axis=1)
    return np.ascontiguousarray(cumulative[:, np.clip(radius - np.arange(-n, n), 0, 2 * radius + 1)])


@inner
def blur(mask, box, taps, buffer, soft, soft_box):
    """Blur a mask; the tile's border is replicated.

    A sum along y starts at the center and continues from the outermost pair of taps inwards, as in SciPy.

    Parameters
    ----------
    mask : (S, W) uint64
    box : (4,) int64
        Outside of it the mask is empty.
    taps : Taps
    buffer : ((S + 1) * (S + BLOCK),) float64
        Scratch memory; fastest if it begins a cache line.
    soft, soft_box : (S * S + BLOCK,) float64, (4,) int64
        Written: the blurred mask within its box, row by row, and the box.
    """
    S, radius = mask.shape[0], taps.radius
    grow(box, radius, S, soft_box)
    width = soft_box[3] - soft_box[1]
    stride = (width + BLOCK - 1) // BLOCK * BLOCK
    # The rows of the box, and an empty row above and below unless the box reaches the tile's border.
    first, last = max(box[0] - 1, 0), min(box[2], S - 1)
    n_rows = last + 1 - first
    rows = buffer[: n_rows * stride].reshape((n_rows, stride))
    for y in range(first, last + 1):
        blur_row(mask, y, box, soft_box[1], taps.edges, rows[y - first, :width])
    for y in range(soft_box[0], soft_box[2]):
        # Pairs of rows that are farther or nearer are empty. Outside the tile, the border row is replicated.
        near = max(box[0] - y, y - box[2] + 1, 1)
        above, below = radius if box[0] == 0 else y - box[0], radius if box[2] == S else box[2] - 1 - y
        far = min(max(above, below), radius)
        # The last block of a row can write past the row's end; the next row overwrites that.
        start = (y - soft_box[0]) * width
        for x in range(0, width, BLOCK):
            accumulate_taps(rows, y - first, x, taps.weights, near, far, soft, start + x)


@inner
def blur_row(mask, y, box, left, edges, blurred):
    """Write row ``y`` of a mask, blurred along x, from column ``left`` on."""
    S, n, width = mask.shape[0], edges.shape[0] // 2, np.uintp(blurred.shape[0])
    begun = False
    start = next_set(mask, y, box[1], box[3]) if box[0] <= y < box[2] else box[3]
    while start < box[3]:
        end = next_clear(mask, y, start, box[3])
        # A run that touches the tile's border is replicated outside it, beyond the radius of the blur.
        last = np.uintp(n + left - (end if end < S else n))
        first = np.uintp(n + left - (start if start > 0 else S - n))
        if begun:
            for x in range(width):
                blurred[x] += edges[last + x] - edges[first + x]
        else:
            for x in range(width):
                blurred[x] = edges[last + x] - edges[first + x]
        begun = True
        start = next_set(mask, y, end, box[3])
    if not begun:
        for x in range(width):
            blurred[x] = 0.0


@inner
def clear(soft, box, mask):
    """Set a blurred mask to 0 at the pixels of a bit mask, within the box of the blurred mask."""
    width = box[3] - box[1]
    for y in range(box[0], box[2]):
        row = (y - box[0]) * width - box[1]
        start = next_set(mask, y, box[1], box[3])
        while start < box[3]:
            end = next_clear(mask, y, start, box[3])
            for x in range(np.uintp(row + start), np.uintp(row + end)):
                soft[x] = 0.0
            start = next_set(mask, y, end, box[3])
