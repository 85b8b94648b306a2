"""Slides in physical units: pixel sizes, tile sizes in um, and resampling to one pixel size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import InputError
from gpu_extract.labels import Statistics
from gpu_extract.listing import first_few
from gpu_extract.model import DropReason, Raster, Slide, source_text
from gpu_extract.sources.placement import ShiftedRaster
from gpu_extract.sources.scaled import ScaledLabels, ScaledRaster

__all__ = [
    "ambiguous_pixel_size",
    "as_pixel_size",
    "lost_ids",
    "mixed_sizes",
    "pixel_size_warning",
    "rescaled",
    "stated_pixel_size",
    "tile_size_in_pixels",
]

# Pixel sizes that differ by less are equal: tile sizes would differ by less than a pixel, and calibrations vary more.
SAME_SIZE = 0.01
# Beyond this factor the unit must be wrong: the slide would become tiny, or thousands of times as large.
MAX_SCALE = 64
# Scales this close to an integer, or to 1 / integer, are rounded: 0.3 um / 0.1 um, or values truncated in a file.
NEARLY_WHOLE = 1e-6

REMEDY = "give --pixel-size in um (pixel_size=)"


def as_pixel_size(given: float | Sequence[float]) -> tuple[float, float]:
    """Return a pixel size (y, x) in um, given as one number or two.

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


def ambiguous_pixel_size(name: str, sizes: Sequence[tuple[float, float]]) -> tuple[str, ...]:
    """Return a warning if a file states several pixel sizes, of which the first is used.

    Parameters
    ----------
    name : str
        Of the file, for the message.
    sizes : sequence of (y, x)
        In um, as the file states them in several places.
    """
    others = [size for size in sizes if not _is_same(size, sizes[0])]
    if not others:
        return ()
    texts = first_few(map(_text, others))
    return (f"{name} states pixels of {_text(sizes[0])} and of {texts} um (y, x); the first is used: else {REMEDY}",)


def stated_pixel_size(
    images: Mapping[str, tuple[float, float] | None], labels: Mapping[str, tuple[float, float] | None]
) -> tuple[tuple[float, float] | None, tuple[str, ...]]:
    """Return the pixel size (y, x) of a slide as its files state it, and warnings where they contradict each other.

    Parameters
    ----------
    images, labels : mapping
        Pixel size (y, x) in um by the name of the file, None where a file does not state it. Images that differ have no
        pixel size together; labels that differ do not change that of the images.
    """
    known = {name: size for name, size in images.items() if size is not None}
    if not known:
        return None, ()
    first, size = next(iter(known.items()))
    for name, other in known.items():
        if not _is_same(size, other):
            line = f"{first} states pixels of {_text(size)} um (y, x) and {name} of {_text(other)} um; none is used"
            return None, (f"{line}: {REMEDY}",)
    if len(known) < len(images):
        return None, ()
    return size, tuple(
        f"{name} states pixels of {_text(other)} um (y, x) and {first} of {_text(size)} um, which is used: else "
        f"{REMEDY}"
        for name, other in labels.items()
        if other is not None and not _is_same(size, other)
    )


def rescaled(slide: Slide, scale: float) -> Slide:
    """Resample a slide to ``scale`` um per pixel; return the slide itself if that is its pixel size.

    Images are resampled by `ScaledRaster` and label planes by `ScaledLabels` when they are read.

    Raises
    ------
    InputError
        If the pixel size is unknown, or so different that a unit must be wrong.
    """
    if not 0 < scale < math.inf:
        raise InputError(f"scale is {scale}; it must be a positive number of um per pixel")
    y, x = (_scale(slide, scale, side) for side in _pixel_size(slide))
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
    """Return the even number of pixels that is closest to a tile size in um.

    It is even, as usual tile sizes are, so that a network can halve it.

    Raises
    ------
    InputError
        If a pixel size is unknown, differs between y and x, or differs between slides.
    """
    if not 0 < tile_size_um < math.inf:
        raise InputError(f"tile_size_um is {tile_size_um}; it must be a positive number of um")
    first = _pixel_size(slides[0])[0]
    for slide in slides:
        y, x = _pixel_size(slide)
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
        raise InputError(f"tile_size_um is {tile_size_um:g}, less than two pixels of {first:g} um; give a larger size")
    return size


def lost_ids(slide: Slide, statistics: Statistics) -> dict[DropReason, NDArray[np.uint64]]:
    """Return the ids, ascending, that no label plane of a slide has any more, by the reason.

    Parameters
    ----------
    slide : Slide
    statistics : callable
        `label_statistics`, or its equivalent on a GPU.

    Returns
    -------
    dict
        Under ``OUTSIDE`` the ids that the placement of labels moved off the image, under ``VANISHED`` those that have
        no pixel left after resampling.
    """
    given = list(slide.masks.items())
    resampled = [(name, raster.unscaled if isinstance(raster, ScaledLabels) else raster) for name, raster in given]
    placed = [(name, raster.unshifted if isinstance(raster, ShiftedRaster) else raster) for name, raster in resampled]
    lost = {}
    for reason, before, after in (
        (DropReason.OUTSIDE, placed, resampled),
        (DropReason.VANISHED, resampled, given),
    ):
        if any(one is not other for (_, one), (_, other) in zip(before, after, strict=True)):
            lost[reason] = np.setdiff1d(_ids(before, statistics), _ids(after, statistics))
    return lost


def _ids(planes: Sequence[tuple[str, Raster]], statistics: Statistics) -> NDArray[np.uint64]:
    """Return the ids of some label planes."""
    return np.concatenate([statistics(raster, f"{name} labels {raster.source}").ids for name, raster in planes])


def mixed_sizes(slides: Sequence[Slide]) -> list[str]:
    """Return a warning if pixel sizes differ between slides; their tiles then show areas of different size."""
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


def _pixel_size(slide: Slide) -> tuple[float, float]:
    if slide.pixel_size is None:
        doubted = next((line for line in slide.warnings if line.startswith("pixel size")), None)
        if doubted is not None:
            raise InputError(f"the pixel size of slide {slide.name} is not known: {doubted}")
        raise InputError(
            f"the pixel size of slide {slide.name} is unknown, {source_text(slide.image)} does not state it; {REMEDY}"
        )
    return slide.pixel_size


def _is_same(size: tuple[float, float], other: tuple[float, float]) -> bool:
    return all(math.isclose(a, b, rel_tol=SAME_SIZE) for a, b in zip(size, other, strict=True))


def _text(size: tuple[float, float]) -> str:
    return f"{size[0]:g} x {size[1]:g}"


def _scale(slide: Slide, scale: float, side: float) -> float:
    """Return the number of source pixels per pixel along an axis."""
    ratio = scale / side
    if not 1 / MAX_SCALE <= ratio <= MAX_SCALE:
        raise InputError(
            f"scale is {scale:g} um per pixel and the pixels of slide {slide.name} are {side:g} um, "
            f"more than {MAX_SCALE} times as much or as little; check the units"
        )
    whole = round(max(ratio, 1 / ratio))
    exact = float(whole) if ratio >= 1 else 1 / whole
    return exact if math.isclose(ratio, exact, rel_tol=NEARLY_WHOLE) else ratio
