"""Whether the labels lie on what the image shows: not on its mirror image, not beside it, not on another image.

Cells are brighter or darker than what is around them in some channel, or their outlines are. Planning knows where each
cell is and how large, so that disks on a coarse map stand for the labels, and only a window of the image is read. Where
the two correlate, all is well. Where they do not, the map is shifted and mirrored in every way, and the fit that stands
out tells where the labels would belong; if none does, they are hardly those of this image.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

import numpy as np
from numpy.typing import NDArray

from gpu_extract.checks.findings import Finding
from gpu_extract.checks.matching_maps import (
    AS_GIVEN,
    MIRRORED,
    TURNED,
    WIDTH,
    Fit,
    Fits,
    ImageSearch,
    LabelMap,
    channel_fits,
    image_window,
    nearby_fits,
)
from gpu_extract.labels import LabelStatistics
from gpu_extract.model import Slide, source_text

__all__ = ["check_alignment", "check_order"]

# Fewer cells can look mirrored or shifted by chance.
N_CELLS = 8
# Labels with this correlation, and this much for the square root of few cells, belong to what they lie on.
CLEAR, CLEAR_OF_FEW = 0.25, 1.5
# A correlation at a small shift that is worth a search.
BETTER = 0.4
# Side in coarse pixels of the window in which that is looked for, and of the one that is searched otherwise.
LOOK_SIDE, SEARCH_SIDE = 64, 256
# Evidence is correlation times prominence: 6 to 45 where labels belong, and by chance mostly below 4 and up to 6.
EVIDENT, CERTAIN = 5.0, 7.0
# Labels are not shifted if the correlation where they are is at least this part of that with shifted ones, and not by
# more than a cell if this part of the prominence is; nor by less if the opposite shift fits so well.
SHIFTED, SURELY, ONE_SIDED = 0.7, 0.3, 0.5
# A shift of fewer pixels is that of a filter.
MIN_SHIFT = 3
# Labels that belong stand out where they are, or a coarse pixel beside it: in real slides of 100 cells by 3.6 to 50, of
# 30 by 2.8 and more, of 8 by 1.7 and more; by chance by 1 to 3.4.
PROMINENT = 5.0
UNLIKE = (100, 3.3), (40, 2.8), (30, 2.5), (8, 1.5), (0, 0.0)

# Labels follow a channel by more, and do not follow one by less; of so many cells in a window.
FOLLOWS, FOLLOWS_NOT, N_CELLS_ORDER = 0.5, 0.25, 20

MISPLACED = "misplaced"
REMEDY = "compare labels and image in a viewer, and give labels of the image's own pixels"


def check_alignment(slide: Slide, planes: Sequence[LabelStatistics]) -> list[Finding]:
    """Check whether labels are mirrored or shifted against the image, or of another one.

    Parameters
    ----------
    slide : Slide
    planes : sequence of LabelStatistics
        Of its label planes.
    """
    maps = [LabelMap.of(labels, slide.size) for labels in planes if len(labels) >= N_CELLS]
    looks = [_look(slide, labels) for labels in maps]
    suspicious = [labels for labels, look in zip(maps, looks, strict=True) if look == _Look.SUSPICIOUS]
    is_clear = _Look.CLEAR in looks
    unlike: list[Finding] = []
    for labels in suspicious if is_clear else maps:
        found = _search(slide, labels)
        if found is None or found.kind == MISPLACED:
            return [] if found is None else [found]
        unlike = [found]
    return [] if is_clear else unlike


def check_order(slides: Sequence[Slide], planes: Sequence[Sequence[LabelStatistics]]) -> list[Finding]:
    """Check whether the same channel shows the cells in all slides; else their order may differ.

    Parameters
    ----------
    slides : sequence of Slide
    planes : sequence
        Of each slide, the statistics of its label planes.
    """
    if len(slides) < 2 or slides[0].image.shape[0] < 2:
        return []
    first: tuple[Slide, NDArray[np.float64]] | None = None
    for slide, (labels, *_) in zip(slides, planes, strict=True):
        if len(labels) < N_CELLS_ORDER:
            continue
        cells = LabelMap.of(labels, slide.size)
        window = image_window(slide, cells, LOOK_SIDE)
        fits = channel_fits(window, cells)
        if window.n_cells < N_CELLS_ORDER or fits.max() < FOLLOWS:
            continue
        if first is None:
            first = slide, fits
        one, other = int(np.argmax(first[1])), int(np.argmax(fits))
        if first[1][other] < FOLLOWS_NOT and fits[one] < FOLLOWS_NOT:
            names = slide.channel_names
            problem = (
                f"labels follow channel {names[one]} in slide {first[0].name}, and channel {names[other]} in slide "
                f"{slide.name}, as if its channels were in another order"
            )
            return [Finding("order", problem, "give the channels of all slides in one order")]
    return []


class _Look(Enum):
    """What a small window says: labels lie where they should, beside it, or nothing."""

    CLEAR = auto()
    SUSPICIOUS = auto()
    UNKNOWN = auto()


def _look(slide: Slide, labels: LabelMap) -> _Look:
    """Look at labels in a small window, and at no large shift; that is enough for nearly all slides."""
    window = image_window(slide, labels, LOOK_SIDE)
    given, nearby = nearby_fits(window, labels)
    if given > SHIFTED * nearby:
        clear = max(CLEAR, CLEAR_OF_FEW / max(window.n_cells, 1) ** 0.5)
        return _Look.CLEAR if given > clear else _Look.UNKNOWN
    return _Look.SUSPICIOUS if nearby > BETTER else _Look.UNKNOWN


def _search(slide: Slide, labels: LabelMap) -> Finding | None:
    """Return what is wrong with the place of a label plane, by a large window; None if nothing is."""
    window = image_window(slide, labels, SEARCH_SIDE)
    search = ImageSearch(window, labels)
    if search.is_flat:
        return None
    fits = search.fits(AS_GIVEN)
    shifted = _shifted(fits)
    if shifted is not None:
        is_far = max(map(abs, shifted.shift)) > WIDTH * labels.step
        return _misplaced(slide, shifted, is_error=is_far and shifted.evidence > CERTAIN)
    here = fits.near(1).prominence
    if here > PROMINENT:
        return None
    ways = MIRRORED + (TURNED if slide.size[0] == slide.size[1] else ())
    mirrored = max((search.fits(way).best() for way in ways), key=lambda fit: fit.evidence)
    if mirrored.evidence > EVIDENT and here < SURELY * mirrored.prominence:
        return _misplaced(slide, mirrored, is_error=mirrored.evidence > CERTAIN)
    least = next(prominence for n_cells, prominence in UNLIKE if window.n_cells >= n_cells)
    return _unlike(slide) if here < least and window.is_structured else None


def _shifted(fits: Fits) -> Fit | None:
    """Return the fit that shows that labels are shifted; None if they are not."""
    best, near = fits.best(), fits.near(1)
    far = max(map(abs, best.shift))
    if best.evidence < EVIDENT or far < MIN_SHIFT or fits.at_zero().correlation > SHIFTED * best.correlation:
        return None
    if far > WIDTH * fits.step:
        return best if near.prominence < SURELY * best.prominence else None
    # What lies about the cells, such as a membrane, fits on both sides.
    return best if fits.opposite(best) < ONE_SIDED * best.correlation else None


def _labels(slide: Slide) -> str:
    return " and ".join(f"{name} labels {raster.source}" for name, raster in slide.masks.items())


def _misplaced(slide: Slide, fit: Fit, *, is_error: bool) -> Finding:
    """Return the finding that labels would fit if they were mirrored or shifted."""
    y, x = fit.shift
    how = fit.way.name
    if max(abs(y), abs(x)) >= MIN_SHIFT:
        how += f"{' and ' * bool(how)}shifted by about {y}, {x} pixels (y, x)"
    problem = f"{_labels(slide)} are {how} against image {source_text(slide.image)}"
    return Finding(MISPLACED, problem, REMEDY, "placement", is_error, slide.name)


def _unlike(slide: Slide) -> Finding:
    """Return the finding that labels fit nowhere."""
    problem = f"{_labels(slide)} follow nothing that image {source_text(slide.image)} shows, in any channel"
    remedy = "check that they are of this image, and not of another field, time point or pyramid level"
    return Finding("unlike", problem, remedy, "placement", slide=slide.name)
