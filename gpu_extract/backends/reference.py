"""The definition of an extraction, in float64, readable like a methods section.

The same code runs on NumPy and SciPy and, with other `Libraries`, on CuPy, cupyx and cuCIM. All other backends are
tested against this one; this one is tested against SciPy, cases worked out by hand, and files of other programs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.ndimage

from gpu_extract.model import Batch, CellImages, Window
from gpu_extract.recipe import MaskSteps, Program, Recipe

__all__ = ["HOST", "Libraries", "extract", "extract_tile"]

Array = Any  # numpy.ndarray or cupy.ndarray


class Libraries(NamedTuple):
    """The array module and its ``ndimage`` companion: numpy and scipy.ndimage, or cupy and cupyx or cuCIM."""

    xp: Any
    ndimage: Any


HOST = Libraries(np, scipy.ndimage)


class Mask(NamedTuple):
    """The masks of one cell in one label plane, each (S, S)."""

    filled: Array  # bool: the label with its holes filled
    dilated: Array  # bool: `filled`, dilated by a disk
    soft: Array  # float64: `dilated`, blurred
    free: Array  # bool: pixels that are not on a neighbour


def extract(
    window: Window,
    batch: Batch,
    program: Program,
    limits: np.ndarray | None = None,
    libraries: Libraries = HOST,
) -> CellImages:
    """Return the finished tiles of a batch.

    Parameters
    ----------
    window : Window
        Contains all pixels of the tiles that lie on the slide.
    batch : Batch
    program : Program
    limits : (C, 2) float64, optional
        Lower and upper value of each channel. By default those of the recipe, otherwise quantiles of each cell.
    libraries : Libraries
        What computes: on the host or on a GPU.

    Returns
    -------
    CellImages
        In host memory.
    """
    S = program.recipe.tile_size
    limits = program.fixed_limits if limits is None else limits
    images = np.empty((len(batch), *program.tile_shape), program.output_dtype)
    used = np.empty((len(batch), len(program.cut), 2))
    for n, (cell_id, corner) in enumerate(zip(batch.ids, batch.corners, strict=True)):
        y, x = int(corner[0]) - window.y0, int(corner[1]) - window.x0
        labels = tuple(cut_tile(plane, y, x, S) for plane in window.labels)
        pixels = cut_tile(window.image, y, x, S)
        on_slide = cut_tile(np.ones(window.image.shape[1:], bool), y, x, S)
        images[n], used[n] = extract_tile(labels, pixels, on_slide, int(cell_id), program, limits, libraries)
    return CellImages(batch.rows, batch.ids, images, used)


def cut_tile(planes: Array, y: int, x: int, size: int) -> Array:
    """Return the tile of ``size`` pixels whose first pixel is (y, x) of the last two axes; pixels outside are 0."""
    height, width = planes.shape[-2:]
    tile = np.zeros((*planes.shape[:-2], size, size), planes.dtype)
    y0, y1, x0, x1 = max(y, 0), min(y + size, height), max(x, 0), min(x + size, width)
    tile[..., y0 - y : y1 - y, x0 - x : x1 - x] = planes[..., y0:y1, x0:x1]
    return tile


def extract_tile(
    labels: tuple[Array, ...],
    pixels: Array,
    on_slide: Array,
    cell_id: int,
    program: Program,
    limits: np.ndarray | None = None,
    libraries: Libraries = HOST,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the finished tile (K, S, S) of one cell, and the (C, 2) limits it was normalized with.

    Parameters
    ----------
    labels : tuple of M arrays, (S, S), integer
        The label planes under the tile.
    pixels : (C, S, S)
        The channels under the tile.
    on_slide : (S, S) bool
        False outside the slide.
    cell_id : int
    program, limits, libraries
        As for `extract`.
    """
    xp, recipe = libraries.xp, program.recipe
    labels = tuple(xp.asarray(plane) for plane in labels)
    pixels, on_slide = xp.asarray(pixels), xp.asarray(on_slide)
    masks = [cell_mask(labels[steps.plane], cell_id, steps, libraries) for steps in program.masks]

    planes = [masks[m].soft for m in program.stored]
    used = np.empty((len(program.cut), 2))
    for c, m in enumerate(program.cut):
        mask = masks[m]
        raw = pixels[c] if recipe.normalization == "none" else pixels[c].astype(np.float64)
        cut = xp.asarray(1)
        region = mask.dilated
        if recipe.neighbours == "exclude":
            region = region & mask.free
        if recipe.apply_masks:
            cut = mask.soft * mask.free if recipe.neighbours == "exclude" else mask.soft
        before, after = (cut, 1) if recipe.cut == "before" else (1, cut)

        values = raw * before
        used[c] = channel_limits(values, region & on_slide, recipe, xp) if limits is None else limits[c]
        values = scale(values, used[c], recipe, xp) * after
        if program.stretched[c]:
            values = stretch(values)
        planes.append(values)
    return to_output(planes, len(program.stored), program, xp), used


def cell_mask(labels: Array, cell_id: int, steps: MaskSteps, libraries: Libraries = HOST) -> Mask:
    """Return the masks of one cell from the label plane under its tile, (S, S)."""
    xp, ndimage = libraries
    own = labels == cell_id
    filled = ndimage.binary_fill_holes(own) if steps.fill_holes else own
    dilated = filled
    if steps.dilation:
        dilated = ndimage.binary_dilation(filled, structure=disk(steps.dilation, xp))
    soft = ndimage.gaussian_filter(dilated.astype(np.float64), steps.sigma, mode="nearest", truncate=4.0)
    return Mask(filled, dilated, soft, (labels == 0) | own | filled)


def disk(radius: int, xp: Any = np) -> Array:
    """Return the disk ``dy^2 + dx^2 <= radius^2``, (2 radius + 1, 2 radius + 1) bool."""
    y, x = xp.ogrid[-radius : radius + 1, -radius : radius + 1]
    return y * y + x * x <= radius * radius


def channel_limits(values: Array, region: Array, recipe: Recipe, xp: Any) -> tuple[float, float]:
    """Return the lower and upper quantile of a channel of one cell; (0, 0) if no pixel counts."""
    pixels = values[region] if recipe.quantile_pixels == "mask" else values.ravel()
    if not pixels.size:
        return 0.0, 0.0
    lo, hi = xp.quantile(pixels, xp.asarray(recipe.quantiles))
    return float(lo), float(hi)


def scale(values: Array, limits: np.ndarray, recipe: Recipe, xp: Any) -> Array:
    """Return ``clip((values - lo) / (hi - lo), 0, 1)``; for ``hi == lo`` see `Recipe.flat_channel`."""
    if recipe.normalization == "none":
        return values
    lo, hi = float(limits[0]), float(limits[1])
    if hi == lo:
        if recipe.flat_channel == "zero":
            return xp.zeros_like(values)
        return xp.clip(values - lo, 0, 1)
    return xp.clip((values - lo) / (hi - lo), 0, 1)


def stretch(values: Array) -> Array:
    """Return ``(values - min) / (max - min)``, or the values themselves if ``max == min``."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else values


def to_output(planes: list[Array], n_masks: int, program: Program, xp: Any) -> np.ndarray:
    """Return the planes in the output type, rounded once, half to even, in host memory."""
    to_host: Callable[[Array], np.ndarray] = np.asarray if xp is np else xp.asnumpy
    out = np.empty(program.tile_shape, program.output_dtype)
    for k, plane in enumerate(planes):
        if program.output_dtype.kind != "f" and plane.dtype.kind == "f":
            plane = xp.rint(plane * program.unit)
        out[k] = to_host(plane).astype(program.output_dtype)
    return out
