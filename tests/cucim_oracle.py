"""The steps of `gpu_extract.ops` and the label statistics as cuCIM computes them, to judge those on a GPU.

``skimage`` is `cucim.skimage` and arrays are CuPy's, or scikit-image and NumPy's, which have the same functions. Tiles
are processed one by one: on a stack, the morphology of cuCIM connects neighboring tiles.
"""

import numpy as np

from gpu_extract.backends.reference import disk
from gpu_extract.labels import LabelStatistics


def fill_holes(skimage, xp, masks):
    """Return masks (n, S, S) bool with their holes filled."""
    # `remove_small_holes` goes by size only. The edge makes the background around a cell larger than any hole.
    S = masks.shape[-1]
    edge, most = S // 4 + 1, S * S
    padded = [xp.pad(mask, edge) for mask in masks]
    filled = [skimage.morphology.remove_small_holes(mask, connectivity=1, max_size=most) for mask in padded]
    return xp.stack([mask[edge:-edge, edge:-edge] for mask in filled])


def dilate(skimage, xp, masks, radius):
    """Return masks (n, S, S) bool dilated by a disk."""
    return xp.stack([skimage.morphology.binary_dilation(mask, disk(radius, xp)) for mask in masks])


def gaussian_blur(skimage, xp, masks, sigma):
    """Return masks (n, S, S) bool blurred, as float64."""
    blurred = (
        skimage.filters.gaussian(mask.astype(np.float64), sigma, mode="nearest", truncate=4.0, preserve_range=True)
        for mask in masks
    )
    return xp.stack(list(blurred))


def normalize(skimage, xp, images, lower, upper):
    """Return images (n, S, S) scaled such that ``lower`` becomes 0 and ``upper`` 1, as float64."""
    exposure = skimage.exposure
    scaled = (exposure.rescale_intensity(image.astype(np.float64), (lower, upper), (0.0, 1.0)) for image in images)
    return xp.stack(list(scaled))


def label_statistics(skimage, plane, to_host=np.asarray):
    """Return the statistics of a label plane (H, W) whose ids fit in int32; the coordinate sums are rounded."""
    H, W = plane.shape
    names = ("label", "num_pixels", "bbox", "centroid")
    table = skimage.measure.regionprops_table(plane.astype(np.int32), properties=names)
    table = {name: to_host(column) for name, column in table.items()}
    # cuCIM also has rows for absent ids below the largest one.
    present = table["num_pixels"] > 0
    counts = table["num_pixels"][present].astype(np.int64)
    boxes = np.stack([table[f"bbox-{k}"][present].astype(np.int64) for k in range(4)], axis=1)
    centers = np.stack([table[f"centroid-{k}"][present].astype(np.float64) for k in range(2)], axis=1)
    y0, x0, y1, x1 = boxes.T
    return LabelStatistics(
        ids=table["label"][present].astype(np.uint64),
        counts=counts,
        sums=np.rint(centers * counts[:, None]).astype(np.int64),
        boxes=boxes,
        touches=(y0 == 0) | (x0 == 0) | (y1 == H) | (x1 == W),
    )
