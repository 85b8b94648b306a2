"""Whether the labels lie on what the image shows: not on its mirror image, and not some pixels beside it.

Cells are brighter or darker than what is around them in some channel, so that "labelled or not" and intensity
correlate. Where they do not, but would if the labels were mirrored or shifted, the labels are that. Where they never
correlate nothing is said.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpu_extract.checks.findings import Finding
from gpu_extract.model import Slide, source_text

__all__ = ["check_alignment"]

# Windows along each axis, in a grid that is its own mirror image, and their side in pixels.
N_WINDOWS, SIDE = 3, 64
# Channels that are examined, the first ones.
N_CHANNELS = 8
# Fewer cells can look mirrored or shifted by chance.
N_CELLS = 8
# Cells are counted, and mean and deviation are taken, on every so many-th pixel along y and x.
STEP = 4
# Correlation that shows that labels belong to what they lie on, 0.3 to 0.85 in real slides; by chance it is up to 0.2.
CLEAR = 0.4
# Where labels are not mirrored, the correlation is at least this part of that with a mirror image; and where they are
# not shifted, this part of that with a shifted image.
RIGHT, SHIFTED = 0.4, 0.7
# Intensities further from the mean, in standard deviations, count as that far: single bright spots would decide.
CLIPPED = 2.0
# A shift of fewer pixels is that of a filter; one of more than this part of a window is chance.
MIN_SHIFT, MAX_SHIFT = 3, 0.3

REMEDY = "compare labels and image in a viewer, and give labels of the image's own pixels"


@dataclass(frozen=True)
class _Sample:
    """Windows of a slide.

    Parameters
    ----------
    labelled : (M, rows, columns, h, w) float32
        1 where a label plane is not 0.
    intensities : (C, rows, columns, h, w) float32
    n_cells : int
        Different labels in the windows of the last plane.
    """

    labelled: NDArray[np.float32]
    intensities: NDArray[np.float32]
    n_cells: int


def check_alignment(slide: Slide) -> list[Finding]:
    """Check whether labels are mirrored or shifted against the image."""
    sample = _sample(slide)
    if sample.n_cells < N_CELLS:
        return []
    how = _mirrored(sample)
    is_error = bool(how)
    how = how or _shifted(sample)
    if not how:
        return []
    labels = " and ".join(f"{name} labels {raster.source}" for name, raster in slide.masks.items())
    problem = f"{labels} are {how} against image {source_text(slide.image)}"
    return [Finding("misplaced", problem, REMEDY, "placement", is_error, slide.name)]


def _sample(slide: Slide) -> _Sample:
    """Read the windows."""
    side = min(SIDE, *slide.size)
    rows, columns = (_starts(length, side) for length in slide.size)
    windows = [slide.read((y, x, y + side, x + side)) for y in rows for x in columns]
    n_channels = min(slide.image.shape[0], N_CHANNELS)
    grid = len(rows), len(columns), side, side
    labelled = np.stack([[plane != 0 for plane in window.labels] for window in windows], axis=1)
    with np.errstate(over="ignore"):  # what float32 does not hold becomes infinite, and is left out
        intensities = np.stack([window.image[:n_channels] for window in windows], axis=1).astype(np.float32)
    cells = np.concatenate([window.labels[-1][::STEP, ::STEP].ravel() for window in windows])
    return _Sample(
        labelled.astype(np.float32).reshape(-1, *grid),
        np.stack([_clipped(channel) for channel in intensities]).reshape(-1, *grid),
        int(np.count_nonzero(np.unique(cells))),
    )


def _starts(length: int, side: int) -> list[int]:
    """Return where the windows begin along an axis, as far from its start as from its end."""
    n = min(max(length // side, 1), N_WINDOWS)
    before = [k * (length - side) // max(n - 1, 1) for k in range((n + 1) // 2)]
    return sorted({*before, *(length - side - start for start in before)})


def _clipped(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return intensities about their mean, from -1 to 1: those far from it are clipped, those not finite are 0."""
    finite = np.where(np.isfinite(pixels), pixels, np.float32(0))
    some = finite[:, ::STEP, ::STEP].astype(np.float64)
    mean, reach = float(some.mean()), CLIPPED * float(some.std())
    scale = np.abs(some).max(initial=0.0) or 1.0  # so that float32 holds all that follows
    finite = (finite / np.float32(scale) - np.float32(mean / scale)) / np.float32(reach / scale or 1.0)
    about_mean: NDArray[np.float32] = np.clip(finite, -1, 1)
    return about_mean


def _normal(planes: NDArray[np.float32], axes: tuple[int, ...]) -> NDArray[np.float32]:
    """Return planes with mean 0 along some axes, and norm 1 each; 0 where a plane is flat."""
    centered = planes - planes.mean(axis=axes, keepdims=True, dtype=np.float32)
    norms = np.sqrt(np.einsum("pabyx,pabyx->p", centered, centered))
    normal: NDArray[np.float32] = centered / np.where(norms > 0, norms, 1).astype(np.float32)[:, None, None, None, None]
    return normal


def _mirrored(sample: _Sample) -> str:
    """Return how the labels are mirrored against the image; empty if they are not."""
    axes = (1, 2, 3, 4)
    labels, channels = _normal(sample.labelled, axes), _normal(sample.intensities, axes)

    def fit(moved: NDArray[np.float32]) -> float:
        # Not by BLAS, whose threads would keep on turning.
        return float(np.abs(np.einsum("mabyx,kabyx->mk", labels, moved)).max())

    ways = {
        "upside down": channels[:, ::-1, :, ::-1, :],
        "mirrored left to right": channels[:, :, ::-1, :, ::-1],
        "turned by 180 degrees": channels[:, ::-1, ::-1, ::-1, ::-1],
    }
    if channels.shape[1] == channels.shape[2]:
        transposed = channels.transpose(0, 2, 1, 4, 3)
        ways["transposed"] = transposed
        ways["turned by 90 degrees"] = transposed[:, ::-1, :, ::-1, :]
        ways["turned by -90 degrees"] = transposed[:, :, ::-1, :, ::-1]
    as_given = fit(channels)
    if as_given > CLEAR:
        return ""
    fits = {way: fit(moved) for way, moved in ways.items()}
    best = max(fits, key=lambda way: fits[way])
    return best if fits[best] > CLEAR and as_given < RIGHT * fits[best] else ""


def _shifted(sample: _Sample) -> str:
    """Return how the labels are shifted against the image; empty if they are not."""
    labels, channels = (_normal(_halved(planes), (3, 4)) for planes in (sample.labelled, sample.intensities))
    side = labels.shape[-1]
    spectra = [np.fft.rfft2(planes) for planes in (labels, channels)]
    fits = np.fft.irfft2(np.einsum("mrcyx,krcyx->mkyx", spectra[0].conj(), spectra[1]), s=(side, side))
    fits = np.abs(fits).reshape(-1, side, side)
    best, y, x = np.unravel_index(np.argmax(fits), fits.shape)
    shift = [int(at) - side * (at > side // 2) for at in (y, x)]
    far, clear = max(map(abs, shift)), fits[best, y, x] > CLEAR and fits[:, 0, 0].max() < SHIFTED * fits[best, y, x]
    if not clear or not MIN_SHIFT <= 2 * far <= 2 * MAX_SHIFT * side:
        return ""
    return f"shifted by about {-2 * shift[0]}, {-2 * shift[1]} pixels (y, x)"


def _halved(planes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return planes of half the size, each pixel the sum of four: precise enough to tell a shift."""
    side = planes.shape[-1] // 2 * 2
    even, odd = slice(0, side, 2), slice(1, side, 2)
    rows = planes[..., even, :] + planes[..., odd, :]
    halved: NDArray[np.float32] = rows[..., even] + rows[..., odd]
    return halved
