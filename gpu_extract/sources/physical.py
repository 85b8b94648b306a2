"""Slides in physical units: the size of a pixel, tiles of a size in um, and all slides at one pixel size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import InputError
from gpu_extract.labels import Statistics
from gpu_extract.model import Slide
from gpu_extract.sources.scaled import ScaledLabels, ScaledRaster

__all__ = ["as_pixel_size", "mixed_sizes", "pixel_size_warning", "rescaled", "tile_size_in_pixels", "vanished_ids"]

# Pixel sizes that differ by less are one: a tile's side would differ by less than a pixel, and calibrations do.
SAME_SIZE = 0.01
# Beyond this the unit is wrong: a slide would be a few pixels, or thousands of times as large.
MAX_SCALE = 64
# A scale this near to a whole number, or to one part of it, is that: 0.3 um over 0.1 um, or numbers cut off in a file.
NEARLY_WHOLE = 1e-6

REMEDY = "give --pixel-size in um (pixel_size=)"


def as_pixel_size(given: float | Sequence[float]) -> tuple[float, float]:
    """The size of a pixel (y, x) in um, from one number or two.

    Raises
    ------
    InputError
        If it is not one or two positive numbers.
    """
    try:
        y, x = (float(given), float(given)) if isinstance(given, int | float | str) else map(float, given)
    except (TypeError, ValueError):
        y = x = math.nan
    if not (0 < y < math.inf and 0 < x < math.inf):
        raise InputError(f"pixel_size is {given!r}; it must be a positive number of um per pixel, or two, (y, x)")
    return y, x


def rescaled(slide: Slide, scale: float) -> Slide:
    """The slide at ``scale`` um per pixel; the slide itself if it has that.

    Images are resampled by `ScaledRaster`, label planes by `ScaledLabels`, when they are read.

    Raises
    ------
    InputError
        If its pixel size is not known, or so different that a unit must be wrong.
    """
    if not 0 < scale < math.inf:
        raise InputError(f"scale is {scale}; it must be a positive number of um per pixel")
    y, x = (_scale(slide, scale, side) for side in _known(slide))
    if (y, x) == (1, 1):
        return slide
    return replace(
        slide,
        image=ScaledRaster(slide.image, (y, x)),
        masks={name: ScaledLabels(raster, (y, x)) for name, raster in slide.masks.items()},
        pixel_size=(scale, scale),
        scale=(y, x),
    )


def tile_size_in_pixels(slides: Sequence[Slide], tile_size_um: float) -> int:
    """The even number of pixels that is nearest to a tile's side in um.

    Even, as the usual tile sizes are, so that a network can halve it.

    Raises
    ------
    InputError
        If a pixel size is not known, is not the same along y and x, or differs between slides.
    """
    if not 0 < tile_size_um < math.inf:
        raise InputError(f"tile_size_um is {tile_size_um}; it must be a positive number of um")
    first = _known(slides[0])[0]
    for slide in slides:
        y, x = _known(slide)
        if not math.isclose(y, x, rel_tol=SAME_SIZE):
            raise InputError(
                f"slide {slide.name} has pixels of {y:g} x {x:g} um (y, x), and a tile of {tile_size_um:g} um would "
                "not be square; make them square with --scale UM (scale=)"
            )
        if not math.isclose(y, first, rel_tol=SAME_SIZE):
            raise InputError(
                f"slide {slide.name} has pixels of {y:g} um and slide {slides[0].name} of {first:g} um; "
                "bring all to one size with --scale UM (scale=)"
            )
    size = 2 * round(tile_size_um / first / 2)
    if size < 2:
        raise InputError(f"tile_size_um is {tile_size_um:g}, less than two pixels of {first:g} um; give more")
    return size


def vanished_ids(slide: Slide, statistics: Statistics) -> NDArray[np.uint64]:
    """The ids, ascending, that are in the label planes of a slide's source and not in those it was resampled to."""
    before, after = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
    for name, raster in slide.masks.items():
        if isinstance(raster, ScaledLabels):
            where = f"{name} labels {raster.source}"
            before.append(statistics(raster.unscaled, where).ids)
            after.append(statistics(raster, where).ids)
    return np.setdiff1d(np.concatenate(before), np.concatenate(after))


def mixed_sizes(slides: Sequence[Slide]) -> list[str]:
    """What to tell the user of slides whose pixels differ in size, so that their tiles show areas that do."""
    sides = [side for slide in slides if slide.pixel_size for side in slide.pixel_size]
    if not sides or math.isclose(min(sides), max(sides), rel_tol=SAME_SIZE):
        return []
    return [f"pixels are {min(sides):g} to {max(sides):g} um wide; --scale UM (scale=) brings all slides to one size"]


def pixel_size_warning(slide: Slide) -> list[str]:
    """Return a line that says which pixel size lengths in um are based on, and where it comes from."""
    if slide.pixel_size is None or not slide.pixel_size_source:
        return []
    (y, x), source = slide.pixel_size, slide.pixel_size_source
    size = f"{y:.4g}" if math.isclose(y, x, rel_tol=SAME_SIZE) else f"{y:.4g} x {x:.4g}"
    doubt = f"; if that is the camera's, {REMEDY}" if "tag" in source else ""
    return [f"pixel size {size} um, from {source}{doubt}"]


def _known(slide: Slide) -> tuple[float, float]:
    if slide.pixel_size is None:
        doubted = next((line for line in slide.warnings if line.startswith("pixel size")), None)
        if doubted is not None:
            raise InputError(f"the pixel size of slide {slide.name} is not known: {doubted}")
        raise InputError(
            f"the pixel size of slide {slide.name} is not known, {slide.image.source} does not state it; {REMEDY}"
        )
    return slide.pixel_size


def _scale(slide: Slide, scale: float, side: float) -> float:
    """Source pixels for each pixel along an axis."""
    ratio = scale / side
    if not 1 / MAX_SCALE <= ratio <= MAX_SCALE:
        raise InputError(
            f"scale is {scale:g} um per pixel and the pixels of slide {slide.name} are {side:g} um, "
            f"more than {MAX_SCALE} times as much or as little; check the units"
        )
    whole = round(max(ratio, 1 / ratio))
    exact = float(whole) if ratio >= 1 else 1 / whole
    return exact if math.isclose(ratio, exact, rel_tol=NEARLY_WHOLE) else ratio
