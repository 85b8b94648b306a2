"""Extract with a hand-written loop over cells in NumPy, SciPy and scikit-image, with one process per core.

There are two recipes, implemented without gpu_extract: SPARCSpy's, as its documentation describes it, and the plain one
that a microscopist would write with scikit-image, which is `standard`. A pool of processes passes the tiles to one HDF5
writer (lzf), as in SPARCSpy.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes, gaussian_filter
from skimage.measure import regionprops_table
from skimage.morphology import dilation, disk

Array = NDArray[Any]
# Cells per task of the pool.
CELLS = 50


def extract(recipe: str, folder: Path, output: Path, threads: int, tile_size: int) -> dict[str, Any]:
    """Extract a slide (image.npy, nucleus.npy, cytosol.npy); return the total seconds, and those of the loop alone."""
    start = time.perf_counter()
    slide = _load(folder)
    ids, centers = _centers(slide[1], tile_size)
    n_planes = 2 + len(slide[0])
    tasks = [(recipe, ids[i : i + CELLS], centers[i : i + CELLS], tile_size) for i in range(0, len(ids), CELLS)]
    loop = time.perf_counter()
    with h5py.File(output, "w") as file, get_context("fork").Pool(threads, _open, (folder,)) as pool:
        shape = (len(ids), n_planes, tile_size, tile_size)
        images = file.create_dataset("images", shape, np.float16, chunks=(1, 1, *shape[2:]), compression="lzf")
        file["ids"] = ids
        for n, tiles in enumerate(pool.imap(_tiles, tasks)):
            images[n * CELLS : n * CELLS + len(tiles)] = tiles
    end = time.perf_counter()
    return {"n_cells": len(ids), "seconds": end - start, "loop_seconds": end - loop}


def _load(folder: Path) -> tuple[Array, ...]:
    return tuple(np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("image", "nucleus", "cytosol"))


def _centers(nucleus: Array, tile_size: int) -> tuple[Array, Array]:
    """Return the ids and rounded centers of the nuclei whose tiles lie on the slide."""
    table = regionprops_table(np.asarray(nucleus), properties=("label", "centroid"))
    centers = np.round(np.stack([table["centroid-0"], table["centroid-1"]], axis=1)).astype(int)
    w = tile_size // 2
    inside = np.all((centers > w) & (centers < np.array(nucleus.shape) - w), axis=1)
    return table["label"][inside], centers[inside]


SLIDE: list[Array] = []  # the slide as opened by this process of the pool


def _open(folder: Path) -> None:
    SLIDE[:] = _load(folder)


def _tiles(task: tuple[str, Array, Array, int]) -> Array:
    recipe, ids, centers, tile_size = task
    w = tile_size // 2
    tiles = []
    for cell_id, (y, x) in zip(ids, centers, strict=True):
        box = np.s_[..., y - w : y - w + tile_size, x - w : x - w + tile_size]
        image, nucleus, cytosol = (np.asarray(plane[box]) for plane in SLIDE)
        tiles.append(RECIPES[recipe](image, nucleus, cytosol, cell_id))
    return np.array(tiles, np.float16)


def sparcspy_tile(image: Array, nucleus: Array, cytosol: Array, cell_id: int) -> Array:
    """Return the five planes of a cell as SPARCSpy computes them."""
    nucleus_mask = (nucleus == cell_id).astype(float)
    cytosol_mask = binary_fill_holes(cytosol == cell_id).astype(float)
    planes = [gaussian_filter(nucleus_mask, 1, mode="nearest"), gaussian_filter(cytosol_mask, 1, mode="nearest")]
    cuts = [gaussian_filter(nucleus_mask, 5, mode="nearest")]
    cuts += [gaussian_filter(dilation(cytosol_mask, disk(6)), 5, mode="nearest")] * (len(image) - 1)
    for c, (pixels, cut) in enumerate(zip(image.astype(float), cuts, strict=True)):
        cell = _between_quantiles(pixels, *np.quantile(pixels, (0.001, 0.999))) * cut
        if c != 1 and cell.max() > cell.min():
            cell = (cell - cell.min()) / (cell.max() - cell.min())
        planes.append(cell)
    return np.array(planes)


def plain_tile(image: Array, nucleus: Array, cytosol: Array, cell_id: int) -> Array:
    """Return the five planes of a cell of the recipe ``standard``."""
    masks, cuts, regions = [], [], []
    for labels in (nucleus, cytosol):
        mask = binary_fill_holes(labels == cell_id)
        own = (labels == 0) | (labels == cell_id) | mask
        region = dilation(mask.astype(np.uint8), disk(2)).astype(bool)
        masks.append(mask.astype(float))
        cuts.append(gaussian_filter(region.astype(float), 1, mode="nearest") * own)
        regions.append(region & own)
    planes = masks
    for c, pixels in enumerate(image.astype(float)):
        m = min(c, 1)
        lower, upper = np.quantile(pixels[regions[m]], (0.001, 0.999))
        planes.append(_between_quantiles(pixels, lower, upper) * cuts[m])
    return np.array(planes)


def _between_quantiles(pixels: Array, lower: float, upper: float) -> Array:
    return np.asarray(np.clip((pixels - lower) / (upper - lower), 0, 1))


RECIPES: dict[str, Callable[[Array, Array, Array, int], Array]] = {"sparcspy": sparcspy_tile, "standard": plain_tile}
