"""Coarse maps of an image and of its labels, and how well they fit at every shift (template matching by FFT)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_extract.labels import LabelStatistics
from gpu_extract.model import Slide

__all__ = [
    "AS_GIVEN",
    "MIRRORED",
    "TURNED",
    "WIDTH",
    "Fit",
    "Fits",
    "ImageSearch",
    "ImageWindow",
    "LabelMap",
    "Way",
    "channel_fits",
    "image_window",
    "nearby_fits",
]

# A typical cell is so many coarse pixels wide: few, so that a map is small and noise averages out.
WIDTH = 5
# Of the image at most so many pixels are read along each axis, and of its channels the first ones.
MAX_SIDE, N_CHANNELS = 1024, 8
# Side of the map of labels in which the window of the image is searched, coarse pixels.
REACH = 512
# Rows and columns of a coarse pixel that are enough to take its mean.
PER_STEP = 4
# Intensities further from the mean, in standard deviations, count as that far: single bright spots would decide.
CLIPPED = 2.0
# What is brighter over so many coarse pixels along each axis is uneven light, and is taken out.
BACKGROUND = 15
# Small shifts are up to so many coarse pixels along each axis, in steps of half as many.
NEARBY = 4
# A shift needs this part of the window to lie on labels: less would fit by chance.
OVERLAP = 0.25
# A part of a map whose variance is a smaller part of the largest one is flat.
FLAT = 1e-3

# Neighbours along x of a channel that shows something correlate by more; those of noise by 0.
STRUCTURED = 0.3

Plane = NDArray[np.float32]
Box = tuple[int, int, int, int]  # y0, x0, y1, x1


@dataclass(frozen=True)
class Way:
    """A way in which a label plane can be mirrored or turned against its image.

    Parameters
    ----------
    name : str
        In words.
    transposed, along_y, along_x : bool
        What undoes it: transposed first, then mirrored along an axis.
    """

    name: str
    transposed: bool = False
    along_y: bool = False
    along_x: bool = False

    def undone(self, yx: NDArray[np.float64], size: tuple[float, float]) -> NDArray[np.float64]:
        """Return where points (n, 2) of a plane of that size would be."""
        y, x = yx[:, ::-1].T if self.transposed else yx.T
        return np.stack([size[0] - y if self.along_y else y, size[1] - x if self.along_x else x], axis=1)


AS_GIVEN = Way("")
MIRRORED = (
    Way("upside down", along_y=True),
    Way("mirrored left to right", along_x=True),
    Way("turned by 180 degrees", along_y=True, along_x=True),
)
TURNED = (
    Way("transposed", transposed=True),
    Way("turned by 90 degrees", transposed=True, along_x=True),
    Way("turned by -90 degrees", transposed=True, along_y=True),
    Way("transposed and turned by 180 degrees", transposed=True, along_y=True, along_x=True),
)


@dataclass(frozen=True)
class LabelMap:
    """The cells of a label plane as disks, in coarse pixels.

    Parameters
    ----------
    step : int, pixels
        Side of a coarse pixel.
    size : (H, W), coarse pixels
        Whole ones.
    extent : (H, W), coarse pixels
        With the part of a coarse pixel at the end.
    centers, radii : (n, 2) and (n,) float64, coarse pixels
    """

    step: int
    size: tuple[int, int]
    extent: tuple[float, float]
    centers: NDArray[np.float64]
    radii: NDArray[np.float64]

    @classmethod
    def of(cls, labels: LabelStatistics, size: tuple[int, int]) -> LabelMap:
        """Return the map of a slide of that size (H, W), pixels."""
        radii = np.sqrt(labels.counts / math.pi)
        step = max(min(round(2 * float(np.median(radii)) / WIDTH), *size), 1)
        centers = (labels.sums / labels.counts[:, None] + 0.5) / step
        extent = size[0] / step, size[1] / step
        return cls(step, (size[0] // step, size[1] // step), extent, centers, np.clip(radii / step, 0.75, WIDTH))

    def drawn(self, way: Way, box: Box) -> Plane:
        """Draw the disks within a box, 1 on 0 less the background, as if the labels had not been mirrored that way."""
        y0, x0, y1, x1 = box
        centers = way.undone(self.centers, self.extent)
        reach = math.ceil(float(self.radii.max()))
        near = np.all((centers > (y0 - reach, x0 - reach)) & (centers < (y1 + reach, x1 + reach)), axis=1)
        centers, radii = centers[near], self.radii[near]
        offsets = np.arange(-reach, reach + 1)
        y, x = (np.floor(centers[:, axis, None]).astype(np.int64) + offsets for axis in (0, 1))
        dy, dx = y + 0.5 - centers[:, :1], x + 0.5 - centers[:, 1:]
        n, row, column = np.nonzero(dy[:, :, None] ** 2 + dx[:, None, :] ** 2 < radii[:, None, None] ** 2)
        margin = 2 * reach + 1
        plane = np.zeros((y1 - y0 + 2 * margin, x1 - x0 + 2 * margin), np.float32)
        plane[y[n, row] - y0 + margin, x[n, column] - x0 + margin] = 1
        return _highpassed(plane[margin:-margin, margin:-margin])

    def densest(self, window: tuple[int, int]) -> tuple[tuple[int, int], int]:
        """Return where the window (h, w) with the most cells begins, of windows side by side, and their number."""
        n = [max(length // side, 1) for length, side in zip(self.size, window, strict=True)]
        counts, _, _ = np.histogram2d(
            self.centers[:, 0], self.centers[:, 1], bins=n, range=[(0, self.size[0]), (0, self.size[1])]
        )
        at = np.unravel_index(int(np.argmax(counts)), counts.shape)
        y, x = (
            int(k) * (length - side) // max(count - 1, 1)
            for k, length, side, count in zip(at, self.size, window, n, strict=True)
        )
        return (y, x), int(counts.max())


@dataclass(frozen=True)
class ImageWindow:
    """A window of the image where many cells are, in coarse pixels.

    Parameters
    ----------
    at : (y, x)
        Where it begins.
    channels : (C, h, w) float32
        Less the background.
    n_cells : int
    """

    at: tuple[int, int]
    channels: Plane
    n_cells: int

    @property
    def box(self) -> Box:
        """Where the window lies."""
        (y, x), (_, h, w) = self.at, self.channels.shape
        return y, x, y + h, x + w

    @property
    def is_structured(self) -> bool:
        """Whether a channel shows more than noise: neighbours that are alike."""
        shifted = [_highpassed(channel) for channel in self.channels]
        alike = [_correlations(plane[None, :, :-1], plane[:, 1:])[0] for plane in shifted]
        return bool(max(alike) > STRUCTURED)


def image_window(slide: Slide, labels: LabelMap, side: int) -> ImageWindow:
    """Read the window with the most cells, of at most so many coarse pixels a side."""
    side, step = max(min(side, MAX_SIDE // labels.step), 1), labels.step
    h, w = (min(side, length) for length in labels.size)
    (y, x), n_cells = labels.densest((h, w))
    pixels = slide.image.read(y * step, x * step, (y + h) * step, (x + w) * step)[:N_CHANNELS]
    channels = np.stack([_clipped(_coarse(channel, step)) for channel in pixels])
    return ImageWindow((y, x), channels, n_cells)


def channel_fits(window: ImageWindow, labels: LabelMap) -> NDArray[np.float64]:
    """Return the absolute correlation of labels with each channel of a window, (C,)."""
    channels = np.stack([_highpassed(channel) for channel in window.channels])
    return np.abs(_correlations(channels, labels.drawn(AS_GIVEN, window.box)))


def nearby_fits(window: ImageWindow, labels: LabelMap) -> tuple[float, float]:
    """Return the correlation of image and labels in the best channel, and the best one at small shifts."""
    y0, x0, y1, x1 = window.box
    channels = np.stack([_highpassed(channel) for channel in window.channels])
    drawn = labels.drawn(AS_GIVEN, (y0 - NEARBY, x0 - NEARBY, y1 + NEARBY, x1 + NEARBY))
    starts = range(0, 2 * NEARBY + 1, NEARBY // 2)
    fits = [
        float(np.abs(_correlations(channels, drawn[y : y + y1 - y0, x : x + x1 - x0])).max())
        for y in starts
        for x in starts
    ]
    return fits[len(fits) // 2], max(fits)


@dataclass(frozen=True)
class Fit:
    """How well labels fit the image at a shift, in the channel in which they fit best.

    Parameters
    ----------
    correlation : float
        Its absolute value.
    prominence : float
        That of the correlation in standard deviations of the correlations at all shifts.
    shift : (y, x), pixels
        By which the labels are off.
    way : Way
    """

    correlation: float
    prominence: float
    shift: tuple[int, int]
    way: Way

    @property
    def evidence(self) -> float:
        """High where labels fit well, and much better than at other shifts."""
        return self.correlation * self.prominence


@dataclass(frozen=True)
class Fits:
    """The fits of labels to the image at all shifts; those of few common pixels are 0.

    Parameters
    ----------
    correlations, prominences : (C, h, w) float32
        Absolute values.
    zero : (y, x)
        Index of no shift.
    step : int, pixels
    way : Way
    """

    correlations: Plane
    prominences: Plane
    zero: tuple[int, int]
    step: int
    way: Way

    def at_zero(self) -> Fit:
        """Return the fit of labels that are not shifted."""
        return self.near(0)

    def opposite(self, fit: Fit) -> float:
        """Return the correlation of the channels' best, at the shift opposite to that of a fit."""
        y, x = (at - round(shift / self.step) for at, shift in zip(self.zero, fit.shift, strict=True))
        _, h, w = self.correlations.shape
        return float(self.correlations[:, y, x].max()) if 0 <= y < h and 0 <= x < w else 0.0

    def near(self, reach: int) -> Fit:
        """Return the most evident fit of labels that are shifted by so many coarse pixels at most."""
        y, x = self.zero
        return self._best((max(y - reach, 0), max(x - reach, 0), y + reach + 1, x + reach + 1))

    def best(self) -> Fit:
        """Return the most evident fit."""
        return self._best((0, 0, *self.correlations.shape[1:]))

    def _best(self, box: Box) -> Fit:
        y0, x0, y1, x1 = box
        part = np.s_[:, y0:y1, x0:x1]
        evidence = self.correlations[part] * self.prominences[part]
        channel, y, x = np.unravel_index(int(np.argmax(evidence)), evidence.shape)
        at = int(channel), int(y) + y0, int(x) + x0
        shift = tuple(round((at[1 + axis] - self.zero[axis] + self._between(at, axis)) * self.step) for axis in (0, 1))
        return Fit(float(self.correlations[at]), float(self.prominences[at]), (shift[0], shift[1]), self.way)

    def _between(self, at: tuple[int, int, int], axis: int) -> float:
        """Return where between pixels the peak along an axis is, that of a parabola through three of them."""
        line = np.moveaxis(self.correlations[at[0]], axis, 0)[:, at[2 - axis]].astype(np.float64)
        k = at[1 + axis]
        if not 0 < k < len(line) - 1:
            return 0.0
        before, here, after = line[k - 1 : k + 2].tolist()
        bend = before - 2 * here + after
        return 0.5 * (before - after) / bend if bend < 0 and here >= max(before, after) else 0.0


@dataclass(frozen=True)
class _Transformed:
    """A channel of the window: its Fourier transform, and sums and variances in its part that lies on labels."""

    spectrum: NDArray[Any]
    sums: Plane
    variances: Plane


class ImageSearch:
    """The search for the place of labels in a window of the image: its channels, and their edges.

    Normalized cross-correlation of two maps that overlap in part, by FFT; see Padfield, IEEE Transactions on Image
    Processing 21 (2012).

    Parameters
    ----------
    window : ImageWindow
    labels : LabelMap
    """

    def __init__(self, window: ImageWindow, labels: LabelMap) -> None:
        y0, x0, y1, x1 = window.box
        rows, columns = _around(y0, y1, labels.size[0]), _around(x0, x1, labels.size[1])
        self._labels, self._box = labels, (rows[0], columns[0], rows[1], columns[1])
        self._zero = y1 - 1 - rows[0], x1 - 1 - columns[0]
        self._shape = y1 - y0 + rows[1] - rows[0] - 1, x1 - x0 + columns[1] - columns[0] - 1
        self._padded = _fast_length(self._shape[0]), _fast_length(self._shape[1])
        self._window = self._transformed(np.ones((y1 - y0, x1 - x0), np.float32))
        self._all = self._transformed(np.ones((rows[1] - rows[0], columns[1] - columns[0]), np.float32))
        self._counts = np.maximum(np.rint(self._summed(self._window, self._all)), 1)
        self._possible = self._counts >= OVERLAP * (y1 - y0) * (x1 - x0)
        planes = [_highpassed(each) for channel in window.channels for each in (channel, _edges(channel))]
        self._channels = [self._channel(plane) for plane in planes if plane.std() > 0]

    @property
    def is_flat(self) -> bool:
        """Whether the window shows nothing."""
        return not self._channels

    def fits(self, way: Way) -> Fits:
        """Return the fits of the labels, as if they had not been mirrored that way."""
        drawn = self._labels.drawn(way, self._box)
        spectrum = self._transformed(drawn)
        sums = self._summed(spectrum, self._window)
        variances = self._summed(self._transformed(drawn * drawn), self._window) - sums**2 / self._counts
        usable = self._possible & (variances > FLAT * variances.max())
        n_possible = max(int(np.count_nonzero(self._possible)), 1)
        correlations, prominences = [], []
        for channel in self._channels:
            covariances = self._summed(channel.spectrum, spectrum) - channel.sums * sums / self._counts
            used = usable & (channel.variances > FLAT * channel.variances.max())
            norms = np.sqrt(np.where(used, channel.variances * variances, 1))
            correlation = np.where(used, np.abs(covariances) / norms, np.float32(0))
            scores = correlation * np.sqrt(self._counts)
            spread = float(np.sqrt(np.square(scores, dtype=np.float64).sum() / n_possible)) or 1.0
            correlations.append(correlation)
            prominences.append(scores / np.float32(spread))
        return Fits(np.stack(correlations), np.stack(prominences), self._zero, self._labels.step, way)

    def _channel(self, plane: Plane) -> _Transformed:
        turned = plane[::-1, ::-1]
        spectrum = self._transformed(turned)
        sums = self._summed(spectrum, self._all)
        squares = self._summed(self._transformed(turned * turned), self._all)
        return _Transformed(spectrum, sums, (squares - sums**2 / self._counts).astype(np.float32))

    def _transformed(self, plane: Plane) -> NDArray[Any]:
        return np.fft.rfft2(plane, self._padded)

    def _summed(self, one: NDArray[Any], other: NDArray[Any]) -> Plane:
        """Return the sums of the products of two transformed maps at all shifts."""
        sums: Plane = np.fft.irfft2(one * other, self._padded)[: self._shape[0], : self._shape[1]].astype(np.float32)
        return sums


def _around(start: int, stop: int, length: int) -> tuple[int, int]:
    """Return where a stretch of at most REACH begins and ends that is centered on another one, within an axis."""
    first = min(max((start + stop - REACH) // 2, 0), max(length - REACH, 0))
    return first, min(first + REACH, length)


def _correlations(channels: Plane, drawn: Plane) -> NDArray[np.float64]:
    """Return the correlation of each channel (C, h, w) with a map (h, w); 0 where one is flat."""
    a, b = channels - channels.mean(axis=(1, 2), keepdims=True), drawn - drawn.mean()
    # Not by BLAS, whose threads would keep on turning.
    norms = np.sqrt(np.einsum("cyx,cyx->c", a, a) * np.einsum("yx,yx->", b, b)).astype(np.float64)
    products = np.einsum("cyx,yx->c", a, b).astype(np.float64)
    correlations: NDArray[np.float64] = np.divide(products, norms, out=np.zeros_like(norms), where=norms > 0)
    return correlations


def _coarse(pixels: NDArray[Any], step: int) -> Plane:
    """Return the means of squares of pixels (h, w), of large ones by every so many-th row and column.

    Pixels that are not finite count as 0.
    """
    h, w, every = pixels.shape[0] // step, pixels.shape[1] // step, max(step // PER_STEP, 1)
    blocks = pixels.reshape(h, step, w, step)[:, ::every, :, ::every]
    if pixels.dtype.kind != "f":
        means: Plane = blocks.mean(axis=(1, 3), dtype=np.float32)
        return means
    finite = np.where(np.isfinite(blocks), blocks, 0).astype(np.float64)
    scale = float(np.abs(finite).max(initial=0.0)) or 1.0  # so that float32 holds all that follows
    scaled: Plane = (finite / scale).mean(axis=(1, 3)).astype(np.float32)
    return scaled


def _clipped(coarse: Plane) -> Plane:
    """Return intensities about their mean, from -1 to 1: those far from it are clipped."""
    mean, reach = float(coarse.mean(dtype=np.float64)), CLIPPED * float(coarse.std(dtype=np.float64))
    about_mean: Plane = np.clip((coarse - np.float32(mean)) / np.float32(reach or 1.0), -1, 1)
    return about_mean


def _edges(coarse: Plane) -> Plane:
    """Return how much pixels differ from the next ones along y and x: an outline is an edge, whatever is in it."""
    down, right = np.diff(coarse, axis=0, append=coarse[-1:]), np.diff(coarse, axis=1, append=coarse[:, -1:])
    return _clipped(np.abs(down) + np.abs(right))


def _highpassed(coarse: Plane) -> Plane:
    """Return a map (h, w) less its mean in squares of BACKGROUND pixels about each pixel."""
    return coarse - _running_mean(_running_mean(coarse).T).T


def _running_mean(coarse: Plane) -> Plane:
    """Return the mean of up to BACKGROUND rows about each row."""
    n, half = len(coarse), BACKGROUND // 2
    sums = np.concatenate([np.zeros_like(coarse[:1]), np.cumsum(coarse, axis=0, dtype=np.float32)])
    low, high = np.maximum(np.arange(n) - half, 0), np.minimum(np.arange(n) + half + 1, n)
    mean: Plane = (sums[high] - sums[low]) / (high - low)[:, None].astype(np.float32)
    return mean


def _fast_length(length: int) -> int:
    """Return the next length without prime factors above 5, at which FFT is fast."""
    rest = length
    for factor in (2, 3, 5):
        while rest % factor == 0:
            rest //= factor
    return length if rest == 1 else _fast_length(length + 1)
