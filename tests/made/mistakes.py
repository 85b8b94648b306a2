"""Label planes with the mistakes that people make, from planes that are right."""

import numpy as np

from gpu_extract.checks import check_images, check_slides
from gpu_extract.errors import LabelError
from gpu_extract.labels import label_statistics
from gpu_extract.recipe import Recipe
from made.slides import as_slide, ht29


def ht29_planes():
    """(image, nucleus, cytosol) of the shipped sample."""
    slide = ht29()
    box = (0, 0, *slide.size)
    return slide.image.read(*box), *(raster.read(*box)[0] for raster in slide.masks.values())


def numbered_anew(labels):
    """The labels numbered from 1 in the order in which they begin, as `skimage.measure.label` numbers components."""
    ids, first = np.unique(labels, return_index=True)
    first, ids = first[ids > 0], ids[ids > 0]
    becomes = np.zeros(int(labels.max()) + 1, np.uint32)
    becomes[ids[np.argsort(first)]] = np.arange(1, len(ids) + 1)
    return becomes[labels]


def without(labels, ids):
    """The labels without some ids."""
    return np.where(np.isin(labels, ids), 0, labels)


def moved(plane, dy, dx):
    """A plane moved down and to the right; what leaves it is lost."""
    out = np.zeros_like(plane)
    H, W = plane.shape
    to = np.s_[max(dy, 0) : H + min(dy, 0), max(dx, 0) : W + min(dx, 0)]
    out[to] = plane[max(-dy, 0) : H - max(dy, 0), max(-dx, 0) : W - max(dx, 0)]
    return out


def round_cells(H=96, W=128, centers=((20, 20), (20, 60), (25, 105), (65, 25), (60, 70), (70, 105))):
    """Round cells as of the project's cases: an image whose pixels tell the cell, nucleus and cytosol of one id."""
    y, x = np.mgrid[:H, :W]
    nucleus, cytosol = np.zeros((H, W), np.uint16), np.zeros((H, W), np.uint16)
    for cell_id, (cy, cx) in enumerate(centers, 1):
        r = np.hypot(y - cy, x - cx)
        cytosol[r < 11], nucleus[r < 7] = cell_id, cell_id
    image = np.stack([100 * cytosol + 10 * c + y % 7 + x % 5 for c in range(2)]).astype(np.uint16)
    return image, nucleus, cytosol


def disks(n, size=(520, 696), radius=30, seed=3):
    """A mask of ``n`` disks that do not touch, as CellProfiler saves objects: 0 and 1."""
    rng, (H, W) = np.random.default_rng(seed), size
    y, x = np.mgrid[:H, :W]
    mask, centers = np.zeros(size, np.uint8), np.zeros((0, 2))
    while len(centers) < n:
        center = rng.integers(radius, (H - radius, W - radius))
        if np.all(np.hypot(*(centers - center).T) > 3 * radius):
            centers = np.vstack([centers, center])
            mask[np.hypot(y - center[0], x - center[1]) < radius] = 1
    return mask


def checked(slides, trust=(), **recipe):
    """What the checks of labels and images say: (warnings, what was trusted, unsure ids of the first slide)."""
    slides = slides if isinstance(slides, list) else [slides]
    planes = [[label_statistics(raster) for raster in slide.masks.values()] for slide in slides]
    of_labels = check_slides(slides, planes, Recipe(**recipe), trust)
    filled = {id(slide): of_slide for slide, of_slide in zip(slides, planes, strict=True) if all(map(len, of_slide))}
    of_images = check_images([slide for slide in slides if id(slide) in filled], lambda slide: filled[id(slide)], trust)
    warnings = of_labels.warnings + of_images.warnings
    return warnings, of_labels.trusted + of_images.trusted, of_labels.unsure[0].tolist()


def refusal(*slide, **choices):
    """The error that a slide (image, nucleus, cytosol) meets, "" if there is none, with its warnings as second."""
    try:
        warnings, _, _ = checked(as_slide(*slide), **choices)
    except LabelError as error:
        return str(error), ()
    return "", warnings
