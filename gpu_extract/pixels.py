"""Passes over whole images in strips: the check for finite pixels, and exact quantiles of each channel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import InputError
from gpu_extract.listing import first_few
from gpu_extract.messages import announce
from gpu_extract.model import Raster, Slide, source_text, strips
from gpu_extract.recipe import Program

__all__ = ["check_finite", "image_quantiles", "slide_limits", "with_finite_pixels"]

# Pixels per strip and channel.
STRIP_PIXELS = 4 << 20
# Quantiles are found digit by digit. A histogram over 16 bits fits in the cache.
DIGIT_BITS = 16


def slide_limits(slides: Sequence[Slide], program: Program) -> list[NDArray[np.float64] | None]:
    """Return the (C, 2) quantiles of each slide's channels, or None if they are not taken over whole images."""
    recipe = program.recipe
    if recipe.normalization != "quantile" or recipe.quantile_scope == "cell":
        return [None] * len(slides)
    rasters = [slide.image for slide in slides]
    announce("measuring the quantiles of the images")
    if recipe.quantile_scope == "dataset":
        return [image_quantiles(rasters, recipe.quantiles)] * len(slides)
    return [image_quantiles([raster], recipe.quantiles) for raster in rasters]


def check_finite(slide: Slide) -> None:
    """Check that a float image has no NaN or infinite pixels; this reads the whole image.

    Raises
    ------
    InputError
        If there are any. The message has their number and the position of the first one in each channel.
    """
    if slide.image.dtype.kind != "f":
        return
    announce("checking that the pixels of slide %s are finite", slide.name)
    found: dict[int, tuple[int, int, int]] = {}  # channel -> number, y and x of the first
    for y0, strip in _strips(slide.image):
        for channel, bad in enumerate(~np.isfinite(strip)):
            if bad.any():
                y, x = divmod(int(bad.argmax()), bad.shape[1])
                n, *first = found.get(channel, (0, y + y0, x))
                found[channel] = (n + int(np.count_nonzero(bad)), first[0], first[1])
    if found:
        places = [
            f"{n} in channel {slide.channel_names[channel]}, the first at y {y}, x {x}"
            for channel, (n, y, x) in sorted(found.items())
        ]
        where = first_few(places, separator="; ")
        at_scale = "" if slide.scale == (1, 1) else f" as resampled, {slide.scale[0]:g} of its pixels to one"
        remedy = "correct these pixels"
        if slide.image.dtype == np.float16:
            remedy = "float16 makes 65,520 and more infinite: save it in another type"
        raise InputError(
            f"image {source_text(slide.image)} has pixels that are NaN or infinite{at_scale} ({where}); "
            f"{remedy}, or use a recipe with nonfinite = 'zero'"
        )


def _zero_nonfinite(image: NDArray[Any]) -> NDArray[Any]:
    """Return the image with NaN and infinite pixels set to 0; the image itself if it has none."""
    finite = np.isfinite(image)
    return image if finite.all() else np.where(finite, image, image.dtype.type(0))


@dataclass(frozen=True)
class FiniteRaster:
    """A raster of floats whose NaN and infinite pixels are 0."""

    raster: Raster

    @property
    def shape(self) -> tuple[int, int, int]:
        """See `Raster.shape`."""
        return self.raster.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """See `Raster.dtype`."""
        return self.raster.dtype

    @property
    def names(self) -> tuple[str, ...]:
        """See `Raster.names`."""
        return self.raster.names

    @property
    def source(self) -> str:
        """See `Raster.source`."""
        return self.raster.source

    def read(self, y0: int, x0: int, y1: int, x1: int) -> NDArray[Any]:
        """See `Raster.read`."""
        return _zero_nonfinite(self.raster.read(y0, x0, y1, x1))


def with_finite_pixels(slide: Slide) -> Slide:
    """Return the slide with NaN and infinite pixels of its image set to 0; the slide itself if it has no floats."""
    return replace(slide, image=FiniteRaster(slide.image)) if slide.image.dtype.kind == "f" else slide


def image_quantiles(rasters: Sequence[Raster], quantiles: tuple[float, float]) -> NDArray[np.float64]:
    """Return the exact quantiles of each channel over all pixels of all images, (C, 2).

    The definition is NumPy's linear one. NaN and infinite pixels count as 0. Memory use is one strip and a few
    histograms.
    """
    total = sum(raster.shape[1] * raster.shape[2] for raster in rasters)
    positions = [q * (total - 1) for q in quantiles]
    ranks = [(int(p), min(int(p) + 1, total - 1)) for p in positions]
    result = np.empty((rasters[0].shape[0], 2))
    ordered = _order_statistics(rasters, sorted({rank for pair in ranks for rank in pair}))
    for channel, values in enumerate(ordered):
        for i, (position, pair) in enumerate(zip(positions, ranks, strict=True)):
            ends = [float(values[rank]) for rank in pair]
            result[channel, i] = np.quantile(ends, position - int(position))
    return result


def _order_statistics(rasters: Sequence[Raster], ranks: list[int]) -> list[dict[int, Any]]:
    """Return the pixel values of the given ranks over all images, for each channel, by radix selection.

    Each pass over the images determines the next 16 bits of every value: the bin of the rank in a histogram of
    these bits, over the pixels that share the bits found so far.
    """
    n_channels, dtype = rasters[0].shape[0], rasters[0].dtype
    bits = dtype.itemsize * 8
    digit_bits = min(bits, DIGIT_BITS)
    # For each rank: the prefix found so far, and the rank among the pixels that share it.
    found = [{rank: (0, rank) for rank in ranks} for _ in range(n_channels)]
    for shift in range(bits - digit_bits, -1, -digit_bits):
        histograms: list[dict[int, NDArray[np.int64]]] = [
            {prefix: np.zeros(1 << digit_bits, np.int64) for prefix, _ in wanted.values()} for wanted in found
        ]
        for raster in rasters:
            for _, strip in _strips(raster):
                for channel, by_prefix in enumerate(histograms):
                    keys = _sortable(_zero_nonfinite(strip[channel]) if dtype.kind == "f" else strip[channel])
                    # np.bincount accepts uint64 only since NumPy 2.3.
                    digits = ((keys >> shift) & ((1 << digit_bits) - 1)).astype(np.int64)
                    for prefix, histogram in by_prefix.items():
                        inside = (
                            digits if shift == bits - digit_bits else digits[keys >> (shift + digit_bits) == prefix]
                        )
                        histogram += np.bincount(inside.ravel(), minlength=1 << digit_bits)
        for wanted, by_prefix in zip(found, histograms, strict=True):
            for rank, (prefix, inner) in wanted.items():
                cumulative = np.cumsum(by_prefix[prefix])
                digit = int(np.searchsorted(cumulative, inner, side="right"))
                before = int(cumulative[digit - 1]) if digit else 0
                wanted[rank] = ((prefix << digit_bits) | digit, inner - before)
    return [{rank: _from_sortable(key, dtype) for rank, (key, _) in wanted.items()} for wanted in found]


def _sortable(values: NDArray[Any]) -> NDArray[np.uint64]:
    """Map values to unsigned integers of the same order.

    The sign bit is flipped, and for negative floats all other bits too.
    """
    bits = values.dtype.itemsize * 8
    keys = values.view(f"u{values.dtype.itemsize}").astype(np.uint64)
    sign = np.uint64(1 << (bits - 1))
    if values.dtype.kind == "u":
        return keys
    if values.dtype.kind == "i":
        return keys ^ sign
    everything = np.uint64((1 << bits) - 1)
    return np.asarray(np.where(keys & sign, keys ^ everything, keys | sign))


def _from_sortable(key: int, dtype: np.dtype[Any]) -> Any:
    """Return the value with this `_sortable` key."""
    bits = dtype.itemsize * 8
    sign = 1 << (bits - 1)
    if dtype.kind == "i":
        key ^= sign
    elif dtype.kind == "f":
        key = key & ~sign if key & sign else key ^ ((1 << bits) - 1)
    return np.array(key, f"u{dtype.itemsize}").view(dtype)[()]


def _strips(raster: Raster) -> Iterator[tuple[int, NDArray[Any]]]:
    """Read an image from top to bottom in C-contiguous strips (C, h, W), each with its first row."""
    for y0, strip in strips(raster, STRIP_PIXELS):
        yield y0, np.ascontiguousarray(strip)
