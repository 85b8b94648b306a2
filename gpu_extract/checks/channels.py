"""Channels that are no images, or not one each: masks, labels, copies, slices, saturated ones, swapped bytes.

Within a cell, masks and labels do not change, as the pixels of images do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_extract.checks.findings import Finding
from gpu_extract.model import Slide, source_text

__all__ = ["check_channels"]

# Windows, and their side in pixels: some cells each, and few segments of a file.
N_WINDOWS, SIDE = 3, 128
# Windows are at cells of the slide's top, whose pixels a run reads first and finds in the cache.
N_TOP_CELLS = 64
# Neighbours within a cell that are not 0 are equal for this share in labels and masks, and for less in most images.
EQUAL_SHARE = 0.7
# On fewer neighbours nothing is said.
N_NEIGHBOURS = 200
# Then so many of a cell's pixels that are not 0 have one value; said of so many cells or more.
COMMON_SHARE, N_CELLS = 0.95, 3
# A channel in which more of the pixels of cells have the largest value of their type lost what it showed.
# Single cells may be bright.
SATURATED, N_SATURATED = 0.1, 10
# So many channels with such a correlation of each with the next are one. Red, green and blue are three.
N_ALIKE, ALIKE = 4, 0.95
# Neighbours of pixels with swapped bytes correlate by less than the first, and as they should by more than the second.
ROUGH, SMOOTH = 0.4, 0.7


@dataclass(frozen=True)
class _Window:
    """A part of a slide: image (C, h, w), and labels (h, w) by the plane's name."""

    image: NDArray[Any]
    labels: dict[str, NDArray[Any]]

    @property
    def cells(self) -> NDArray[Any]:
        """The last label plane."""
        return list(self.labels.values())[-1]


def check_channels(slide: Slide, boxes: NDArray[np.int64]) -> list[Finding]:
    """Check whether channels of the image are masks or labels.

    Parameters
    ----------
    slide : Slide
    boxes : (n, 4) int64, pixels
        Of its cells; at least one.
    """
    windows = _windows(slide, boxes)
    alike = _alike(slide, windows)
    findings = _swapped_bytes(slide, windows) + alike
    for channel, name in enumerate(slide.channel_names):
        what = _what(windows, channel) or ("" if alike else _copied(windows, channel, slide.channel_names))
        if what:
            problem = f"channel {name} of {source_text(slide.image)} is {what}, and is extracted as an image"
            remedy = "name the channels to extract with --channels (channels=)"
            findings.append(Finding(f"channel {name}", problem, remedy, "planes", slide=slide.name))
        elif (share := _saturated(windows, channel)) > SATURATED:
            problem = f"channel {name} of {slide.image.source} is saturated in {share:.0%} of the pixels of cells"
            remedy = "intensities there are lost; check that the image was not stretched before it was saved"
            findings.append(Finding(f"saturated {name}", problem, remedy, slide=slide.name))
    return findings


def _copied(windows: Sequence[_Window], channel: int, names: Sequence[str]) -> str:
    """Return the earlier channel that a channel is equal to, in words; empty if there is none or it is flat."""
    pixels = [window.image[channel] for window in windows]
    if all(np.ptp(each) == 0 for each in pixels):
        return ""
    for earlier in range(channel):
        if all(np.array_equal(each, window.image[earlier]) for each, window in zip(pixels, windows, strict=True)):
            return f"equal to channel {names[earlier]}"
    return ""


def _saturated(windows: Sequence[_Window], channel: int) -> float:
    """Return the share of the pixels of cells that have the largest value of their type."""
    dtype = windows[0].image.dtype
    ids = np.unique(np.concatenate([window.cells.ravel() for window in windows]))
    if dtype.kind == "f" or len(ids) <= N_SATURATED:
        return 0.0
    n_cells = sum(int(np.count_nonzero(window.cells)) for window in windows)
    largest = np.iinfo(dtype).max
    n = sum(int(np.count_nonzero((window.image[channel] == largest) & (window.cells != 0))) for window in windows)
    return n / max(n_cells, 1)


def _alike(slide: Slide, windows: Sequence[_Window]) -> list[Finding]:
    """Return a finding if every channel is nearly the next one, as slices of a stack are."""
    n = slide.image.shape[0]
    if n < N_ALIKE or min(_correlation(windows, (c, 0), (c + 1, 0)) for c in range(n - 1)) < ALIKE:
        return []
    problem = (
        f"the {n} channels of {slide.image.source} are nearly alike, as Z slices or time points of one channel are"
    )
    remedy = "if they are, choose one of them with --channels (channels=)"
    return [Finding("alike", problem, remedy, "planes", slide=slide.name)]


def _swapped_bytes(slide: Slide, windows: Sequence[_Window]) -> list[Finding]:
    """Return a finding if neighbours become alike once the bytes of each pixel are in the other order."""
    dtype = slide.image.dtype
    if dtype.kind == "f" or dtype.itemsize == 1:
        return []
    swapped = [_Window(window.image.byteswap(), window.labels) for window in windows]
    for channel in range(slide.image.shape[0]):
        if _correlation(windows, (channel, 0), (channel, 1)) > ROUGH:
            return []
        if _correlation(swapped, (channel, 0), (channel, 1)) < SMOOTH:
            return []
    problem = f"pixels of image {slide.image.source} have their bytes in the wrong order"
    remedy = "swap them, for example with numpy.ndarray.byteswap, or state the order of bytes when reading raw data"
    return [Finding("bytes", problem, remedy, "planes", True, slide.name)]


def _correlation(windows: Sequence[_Window], one: tuple[int, int], other: tuple[int, int]) -> float:
    """Return the correlation of two channels, each moved by some pixels along x; 0 where one is flat."""
    a, b = (
        np.concatenate([window.image[channel, :, by : by - 2].ravel() for window in windows]).astype(np.float64)
        for channel, by in (one, other)
    )
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt(np.einsum("n,n->", a, a) * np.einsum("n,n->", b, b)))
    return float(np.einsum("n,n->", a, b)) / norm if norm > 0 else 0.0


def _windows(slide: Slide, boxes: NDArray[np.int64]) -> list[_Window]:
    """Read windows at some of the topmost cells, from left to right."""
    n, (H, W) = len(boxes), slide.size
    top = np.argpartition(boxes[:, 0], N_TOP_CELLS)[:N_TOP_CELLS] if n > N_TOP_CELLS else np.arange(n)
    by_column = boxes[top[np.argsort(boxes[top, 1], kind="stable")]]
    windows = []
    for row in sorted({int(at) for at in np.linspace(0, len(by_column) - 1, N_WINDOWS)}):
        y0, x0, y1, x1 = by_column[row].tolist()
        y, x = max((y0 + y1 - SIDE) // 2, 0), max((x0 + x1 - SIDE) // 2, 0)
        window = slide.read((y, x, min(y + SIDE, H), min(x + SIDE, W)))
        windows.append(_Window(window.image, dict(zip(slide.masks, window.labels, strict=True))))
    return windows


def _what(windows: Sequence[_Window], channel: int) -> str:
    """Return what a channel is, if it is not an image; else an empty text."""
    n_neighbours = 0
    for window in windows:
        n_equal, n = _neighbours(window, channel)
        if n_equal < EQUAL_SHARE * n:
            return ""
        n_neighbours += n
    values = [_values_of_cells(window, channel) for window in windows]
    n_common, n_all, n_cells = np.sum(values, axis=0).tolist()
    if n_neighbours < N_NEIGHBOURS or n_cells < N_CELLS or n_common < COMMON_SHARE * n_all:
        return ""
    for name in windows[0].labels:
        if all(np.array_equal(window.image[channel], window.labels[name]) for window in windows):
            return f"equal to the {name} labels"
    n_values = len(np.unique(np.concatenate([window.image[channel].ravel() for window in windows])))
    return "a mask of two values" if n_values == 2 else "a plane of labels" if n_values > 2 else ""


def _neighbours(window: _Window, channel: int) -> tuple[int, int]:
    """Return how many neighbours along y or x, of one cell and not both 0, are equal, and how many there are."""
    pixels, cells = window.image[channel], window.cells
    n_equal = n_all = 0
    for axis in (0, 1):
        before, after = ((slice(None),) * axis + (part,) for part in (slice(-1), slice(1, None)))
        a, b, cell, other = pixels[before], pixels[after], cells[before], cells[after]
        of_one = (cell == other) & (cell != 0) & ((a != 0) | (b != 0))
        n_all += int(np.count_nonzero(of_one))
        n_equal += int(np.count_nonzero(of_one & (a == b)))
    return n_equal, n_all


def _values_of_cells(window: _Window, channel: int) -> tuple[int, int, int]:
    """Return how many pixels that are not 0 have the most common value of their cell, how many there are, and cells."""
    pixels, cells = window.image[channel].ravel(), window.cells.ravel()
    kept = (pixels != 0) & (cells != 0)
    pixels, cells = pixels[kept], cells[kept]
    order = np.lexsort((pixels, cells))
    pixels, cells = pixels[order], cells[order]
    first = np.flatnonzero(np.append(True, (np.diff(cells) != 0) | (pixels[1:] != pixels[:-1])) if len(pixels) else [])
    counts, of_cells = np.diff(first, append=len(pixels)), cells[first]
    if not len(counts):
        return 0, 0, 0
    of_each = np.flatnonzero(np.append(True, of_cells[1:] != of_cells[:-1]))
    return int(np.maximum.reduceat(counts, of_each).sum()), len(pixels), len(of_each)
