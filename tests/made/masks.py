"""Masks and images of tiles that are difficult for kernels."""

import numpy as np
import scipy.ndimage

SIZES = (1, 2, 31, 32, 33, 64, 65)
IMAGE_TYPES = ("uint8", "uint16", "int16", "uint32", "float16", "float32", "float64")


def awkward_masks(size, seed=0):
    """Return masks (n, S, S) bool: blank, full, blobs, rings, open rings, holes at the edge, nested holes."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / max(size - 1, 1) * 2 - 1
    r = np.hypot(y, x)
    corner = np.hypot(y + 1, x - 1)
    blobs = scipy.ndimage.gaussian_filter(rng.random((3, size, size)), (0, 1.5, 1.5))
    return np.stack(
        [
            np.zeros((size, size), bool),
            np.ones((size, size), bool),
            (r > 0.5) & (r < 0.7),
            (r > 0.5) & (r < 0.7) & ~((np.abs(y) < 0.1) & (x > 0)),
            (corner > 0.4) & (corner < 0.8),  # the background in the corner is not a hole
            np.abs(np.maximum(np.abs(y), np.abs(x)) - 0.95) > 0.05,  # a ring of background just inside the edge
            np.sin(12 * r) > 0,
            (np.arange(size)[:, None] + np.arange(size)) % 2 == 0,  # one-pixel holes that touch at corners
            *(blobs > np.median(blobs)),
        ]
    )


def pixels(dtype, shape, seed=0):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 100, shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype, endpoint=True)
