"""The steps of `gpu_extract.ops` and the label statistics as cuCIM computes them, to judge those on a GPU.

``skimage`` is `cucim.skimage` and arrays are CuPy's, or scikit-image and NumPy's, which have the same functions. Tiles
are processed one by one: on a stack, the morphology of cuCIM connects neighboring tiles.
"""

import numpy as np
from agreement import GPU_RTOL

from gpu_extract import ops
from gpu_extract.backends.reference import disk
from gpu_extract.labels import LabelStatistics

BLUR_ATOL = 1e-6  # of float32 sums
# Coordinate sums from cuCIM's centroids, relative; in float32 they are not exact.
CENTROID_RTOL = 1e-6


def assert_ops_agree(masks, images, skimage, xp, to_host):
    """Compare `gpu_extract.ops` on the arrays of ``xp``: masks (n, S, S) bool and images (n, S, S) in host memory."""
    masks, images = xp.asarray(masks), xp.asarray(images)
    cases = [("fill_holes", ops.fill_holes(masks), fill_holes(skimage, xp, masks), 0.0)]
    for radius in (1, 3, 7):
        cases.append((f"dilate {radius}", ops.dilate(masks, radius), dilate(skimage, xp, masks, radius), 0.0))
    for sigma in (0.4, 2.5, 5.0):
        blurred = ops.gaussian_blur(masks, sigma), gaussian_blur(skimage, xp, masks, sigma)
        cases.append((f"gaussian_blur {sigma}", *blurred, BLUR_ATOL))
    scaled = ops.normalize(images, 3.0, 200.0), normalize(skimage, xp, images, 3.0, 200.0)
    cases.append(("normalize", *scaled, GPU_RTOL))
    for name, found, expected, atol in cases:
        error = np.abs(to_host(found).astype(np.float64) - to_host(expected).astype(np.float64)).max()
        assert error <= atol, f"{name} differs from cuCIM by {error}, more than {atol}"


def assert_statistics_agree(plane, found, skimage, xp, to_host):
    """Compare label statistics with those of a plane (H, W) in host memory."""
    expected = label_statistics(skimage, xp.asarray(plane.astype(np.int32)), to_host)
    for name in ("ids", "counts", "boxes", "touches"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), f"{name} differ from cuCIM's"
    np.testing.assert_allclose(found.sums, expected.sums, rtol=CENTROID_RTOL, atol=1)


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
    """Return the statistics of a label plane (H, W) int32; the coordinate sums are rounded."""
    H, W = plane.shape
    names = ("label", "num_pixels", "bbox", "centroid")
    table = skimage.measure.regionprops_table(plane, properties=names)
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
