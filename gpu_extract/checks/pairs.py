"""Whether a nucleus and the cytosol of its id are of one cell: where they lie, and which is the larger one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from gpu_extract.checks.findings import Finding, some_ids
from gpu_extract.labels import LabelStatistics
from gpu_extract.model import Slide
from gpu_extract.recipe import Recipe

__all__ = ["check_pairs"]

# So many pairs of a slide are enough to call the whole slide wrong; fewer only if most pairs of all slides are.
N_PAIRS = 3
# From this share of its pairs on a slide is wrong, and not a few of its cells.
WRONG_SHARE = 0.5
# From this share on it is worth a warning that nuclei are larger than their cytosol.
LARGER_SHARE = 0.1
# Pairs that are examined in pixels: if all is well, and at most.
N_EXAMINED, N_EXAMINED_MOST = 24, 1000
# A nucleus in a larger box is in several places, and what is said of that is enough.
EXAMINED_PIXELS = 1 << 18
# Of nuclei within the box of their cytosol so many are examined: enough to see that cytosols are rings.
N_INSIDE = 3
# A cytosol this near to its nucleus, in pixels, surrounds it without holding it.
RING_PIXELS = 2
# Both planes are shifted if, of so many pairs, the median nucleus is off by more pixels, and if this share of nuclei
# leaves the cytosol on that side, so many times more than on the other.
N_SHIFTED, SHIFT_PIXELS, SHIFT_SHARE, SHIFT_RATIO = 20, 1.5, 0.07, 3
# One plane is a shifted or mirrored one if nuclei are at most so many of their lengths from where they then would be.
PLACED, N_PLACED = 0.5, 4
# Where a smaller part of ids is in both planes many cells are lost; said of so many ids or more.
SHARED, N_SHARED = 0.5, 10
# Planes that are matched by overlap are swapped if the median nucleus has so many times the area of the cytosol.
SWAPPED_AREA = 1.5

BY_OVERLAP = 'pair them by their pixels with --match overlap (Recipe(match="overlap"))'


class _Place(IntEnum):
    """Where a nucleus lies: on its cytosol, beside it as in a ring that leaves it out, or elsewhere."""

    ON = 0
    BESIDE = 1
    APART = 2


@dataclass(frozen=True)
class _Pairs:
    """The nuclei and cytosols of one id, of all slides in their order.

    Parameters
    ----------
    slide : (n,) int64
        Index of the slide.
    ids : (n,) uint64
    nuclei, cytosols : LabelStatistics
        Of these ids; not of ascending ids where there are several slides.
    """

    slide: NDArray[np.int64]
    ids: NDArray[np.uint64]
    nuclei: LabelStatistics
    cytosols: LabelStatistics

    @classmethod
    def of(cls, slides: Sequence[Slide], planes: Sequence[Sequence[LabelStatistics]]) -> _Pairs:
        """Return the pairs of all slides; those of listed ids, where a slide has a list."""
        both = [_shared(slide, *of_slide) for slide, of_slide in zip(slides, planes, strict=True)]
        nuclei, cytosols = (_joined([of_slide[m] for of_slide in both]) for m in (0, 1))
        slide = np.repeat(np.arange(len(slides)), [len(of_slide[0]) for of_slide in both])
        return cls(slide, nuclei.ids, nuclei, cytosols)

    def __len__(self) -> int:
        return len(self.ids)

    def of_slide(self, index: int) -> _Pairs:
        """Return the pairs of one slide."""
        rows = np.arange(*np.searchsorted(self.slide, (index, index + 1)).tolist())
        return _Pairs(self.slide[rows], self.ids[rows], _rows_of(self.nuclei, rows), _rows_of(self.cytosols, rows))

    def centers(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the centers of nuclei and of cytosols, each (n, 2), pixels."""
        nuclei, cytosols = (plane.sums / plane.counts[:, None] for plane in (self.nuclei, self.cytosols))
        return nuclei, cytosols

    def leaves(self) -> NDArray[np.bool_]:
        """Return on which sides a nucleus leaves the box of its cytosol, (4, n): at low y, low x, high y, high x."""
        nuclei, cytosols = self.nuclei.boxes, self.cytosols.boxes
        low = [nuclei[:, axis] < cytosols[:, axis] for axis in (0, 1)]
        return np.stack(low + [nuclei[:, axis] > cytosols[:, axis] for axis in (2, 3)])

    def disjoint(self) -> NDArray[np.bool_]:
        """Return which pairs have boxes that share no pixel."""
        nuclei, cytosols = self.nuclei.boxes, self.cytosols.boxes
        along_y = (nuclei[:, 0] >= cytosols[:, 2]) | (cytosols[:, 0] >= nuclei[:, 2])
        return along_y | (nuclei[:, 1] >= cytosols[:, 3]) | (cytosols[:, 1] >= nuclei[:, 3])

    def counts_of_slides(self, which: NDArray[np.bool_], n_slides: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return, for each slide, how many pairs it has, and how many of them are ``which``."""
        n = np.bincount(self.slide, minlength=n_slides)
        return n, np.bincount(self.slide[which], minlength=n_slides)


def _rows_of(plane: LabelStatistics, rows: NDArray[np.int64]) -> LabelStatistics:
    """Return the statistics of some labels."""
    return LabelStatistics(*(getattr(plane, field.name)[rows] for field in fields(plane)))


def _joined(planes: Sequence[LabelStatistics]) -> LabelStatistics:
    """Return the statistics of labels behind one another."""
    if len(planes) == 1:
        return planes[0]
    return LabelStatistics(
        *(np.concatenate([getattr(plane, field.name) for plane in planes]) for field in fields(LabelStatistics))
    )


def _shared(
    slide: Slide, nuclei: LabelStatistics, cytosols: LabelStatistics
) -> tuple[LabelStatistics, LabelStatistics]:
    """Return the statistics of the ids that both planes have, and that are listed where some are."""
    if slide.ids is None and np.array_equal(nuclei.ids, cytosols.ids):
        return nuclei, cytosols
    ids, of_nuclei, of_cytosols = np.intersect1d(nuclei.ids, cytosols.ids, assume_unique=True, return_indices=True)
    listed = np.ones(len(ids), bool) if slide.ids is None else np.isin(ids, slide.ids)
    return _rows_of(nuclei, of_nuclei[listed]), _rows_of(cytosols, of_cytosols[listed])


def check_pairs(
    slides: Sequence[Slide], planes: Sequence[Sequence[LabelStatistics]], recipe: Recipe
) -> tuple[list[Finding], list[NDArray[np.uint64]]]:
    """Check the two label planes of all slides against each other.

    Parameters
    ----------
    slides : sequence of Slide
    planes : sequence
        Of each slide, the statistics of nucleus and cytosol; none is empty.
    recipe : Recipe

    Returns
    -------
    findings : list of Finding
    unsure : list of (n,) uint64
        For each slide the ids, ascending, of which nucleus and cytosol are not of one cell.
    """
    unsure = [np.zeros(0, np.uint64)] * len(slides)
    pairs = _Pairs.of(slides, planes)
    findings = _same(slides, pairs)
    if recipe.match == "overlap":
        return findings + _swapped_by_area(slides, planes), unsure
    if recipe.on_mismatch == "drop":
        findings += _lost(slides, planes, pairs)
    leaves = pairs.leaves()
    swapped = _swapped(slides, pairs, leaves)
    if any(finding.is_error for finding in swapped) or not len(pairs):
        return swapped + findings, unsure
    places = _places(slides, pairs, inside=~np.any(leaves, axis=0))
    apart = places == _Place.APART
    n, n_apart = pairs.counts_of_slides(apart, len(slides))
    for index in np.flatnonzero(n_apart).tolist():
        unsure[index] = pairs.ids[apart & (pairs.slide == index)]
    shifted = _shifted(slides, pairs, leaves, np.flatnonzero(n_apart <= WRONG_SHARE * n))
    return _apart(slides, pairs, unsure) + _rings(pairs, places) + shifted + swapped + findings, unsure


def _wrong_slides(n: NDArray[np.int64], n_wrong: NDArray[np.int64], n_least: int = 1) -> list[int]:
    """Return the slides most of whose pairs are wrong: those of several pairs, or any if most of all pairs are."""
    surely = n >= N_PAIRS
    if n.sum() >= n_least and n_wrong.sum() > WRONG_SHARE * n.sum():
        surely |= n > 0
    found: list[int] = np.flatnonzero((n_wrong > WRONG_SHARE * n) & surely).tolist()
    return found


def _same(slides: Sequence[Slide], pairs: _Pairs) -> list[Finding]:
    """Return findings for slides whose two planes are equal.

    A warning, since the cells are what was given: some who need two planes for a program give one plane twice.
    """
    n, n_equal = pairs.counts_of_slides(pairs.nuclei.counts == pairs.cytosols.counts, len(slides))
    findings = []
    for index in np.flatnonzero((n == n_equal) & (n > 0)).tolist():
        of_slide = pairs.of_slide(index)
        if not np.array_equal(of_slide.nuclei.sums, of_slide.cytosols.sums) or of_slide.leaves().any():
            continue
        nucleus, cytosol = (raster.source for raster in slides[index].masks.values())
        if n[index] < N_PAIRS and (nucleus != cytosol or nucleus == "array"):
            continue  # few small cells may be equal by chance
        problem = f"nucleus labels {nucleus} and cytosol labels {cytosol} are equal in all {n[index]} cells"
        remedy = "if that is not meant, give the other plane, or only one"
        findings.append(Finding("same", problem, remedy, "planes", slide=slides[index].name))
    return findings


def _swapped(slides: Sequence[Slide], pairs: _Pairs, leaves: NDArray[np.bool_]) -> list[Finding]:
    """Return findings for slides whose nuclei are larger than their cytosols and not within them.

    A cytosol without its nucleus, a ring, may be smaller, but has the nucleus in its box.
    """
    larger = (pairs.nuclei.counts > pairs.cytosols.counts) & leaves.any(axis=0)
    n, n_larger = pairs.counts_of_slides(larger, len(slides))
    wrong = _wrong_slides(n, n_larger, n_least=N_PAIRS)
    remedy = "give the planes the other way round (--nucleus, --cytosol; nucleus=, cytosol=)"
    findings = []
    for index in wrong:
        nucleus, cytosol = slides[index].masks.values()
        problem = (
            f"nucleus labels {nucleus.source} are larger than cytosol labels {cytosol.source} "
            f"in {n_larger[index]} of {n[index]} cells, as if they were swapped"
        )
        findings.append(Finding("swapped", problem, remedy, "planes", True, slides[index].name))
    if not wrong and n_larger.sum() > LARGER_SHARE * len(pairs):
        problem = f"nuclei are larger than their cytosols in {n_larger.sum()} of {len(pairs)} cells"
        remedy = "check that the planes are not swapped"
        findings.append(Finding("larger", f"{problem} ({some_ids(pairs.ids[larger])})", remedy, "planes"))
    return findings


def _swapped_by_area(slides: Sequence[Slide], planes: Sequence[Sequence[LabelStatistics]]) -> list[Finding]:
    """Return findings for slides whose typical nucleus is larger than the typical cytosol, whatever their ids."""
    findings = []
    for slide, (nuclei, cytosols) in zip(slides, planes, strict=True):
        if min(len(nuclei), len(cytosols)) < N_PAIRS:
            continue
        areas = float(np.median(nuclei.counts)), float(np.median(cytosols.counts))
        if areas[0] > SWAPPED_AREA * areas[1]:
            problem = (
                f"nuclei of slide {slide.name} have {areas[0]:.0f} pixels and cytosols {areas[1]:.0f} (medians), "
                "as if the planes were swapped"
            )
            remedy = "give the planes the other way round (--nucleus, --cytosol; nucleus=, cytosol=)"
            findings.append(Finding("swapped", problem, remedy, "planes", True, slide.name))
    return findings


def _places(slides: Sequence[Slide], pairs: _Pairs, *, inside: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return where the nuclei lie, (n,) of `_Place`; ``inside`` are those in the boxes of their cytosols.

    Boxes tell of most. Of the others those are examined first that are most likely apart; all of them if some are.
    """
    disjoint, nuclei, cytosols = pairs.disjoint(), pairs.nuclei.boxes, pairs.cytosols.boxes
    places = np.where(disjoint, _Place.APART, _Place.ON).astype(np.uint8)
    areas = (nuclei[:, 2] - nuclei[:, 0]) * (nuclei[:, 3] - nuclei[:, 1])
    unclear = np.flatnonzero(~inside & ~disjoint & (areas <= EXAMINED_PIXELS))
    low = np.maximum(nuclei[unclear, :2], cytosols[unclear, :2])
    high = np.minimum(nuclei[unclear, 2:], cytosols[unclear, 2:])
    shared = np.prod(high - low, axis=1) / areas[unclear]
    unclear = unclear[np.argsort(shared, kind="stable")]
    within = np.flatnonzero(inside & (areas <= EXAMINED_PIXELS))
    some_within = within[np.unique(np.linspace(0, len(within) - 1, N_INSIDE).astype(int))] if len(within) else within
    for at in [*unclear[:N_EXAMINED].tolist(), *some_within.tolist()]:
        places[at] = _examine(slides, pairs, at)
    if np.any(places == _Place.APART):
        rest = [*unclear[N_EXAMINED:].tolist(), *(within.tolist() if len(pairs) <= N_EXAMINED_MOST else [])]
        for at in rest[:N_EXAMINED_MOST]:
            places[at] = _examine(slides, pairs, at)
    return places


def _examine(slides: Sequence[Slide], pairs: _Pairs, at: int) -> _Place:
    """Return where a nucleus lies, by its pixels."""
    slide, cell_id = slides[int(pairs.slide[at])], int(pairs.ids[at])
    y0, x0, y1, x1 = pairs.nuclei.boxes[at].tolist()
    H, W = slide.size
    box = max(y0 - RING_PIXELS, 0), max(x0 - RING_PIXELS, 0), min(y1 + RING_PIXELS, H), min(x1 + RING_PIXELS, W)
    nuclei, cytosols = (raster.read(*box)[0] for raster in slide.masks.values())
    nucleus, cytosol = nuclei == cell_id, cytosols == cell_id
    n_on = np.count_nonzero(nucleus & cytosol)
    n_elsewhere = np.count_nonzero(nucleus & ~cytosol & (cytosols != 0))
    if n_elsewhere > n_on:
        return _Place.APART
    if n_on:
        return _Place.ON
    return _Place.BESIDE if np.any(_grown(nucleus) & cytosol) else _Place.APART


def _grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return a mask (h, w) with all pixels that are at most RING_PIXELS away along y and x."""
    for axis in (0, 1):
        near = np.moveaxis(mask.copy(), axis, 0)
        from_here = np.moveaxis(mask, axis, 0)
        for step in range(1, RING_PIXELS + 1):
            near[step:] |= from_here[:-step]
            near[:-step] |= from_here[step:]
        mask = np.moveaxis(near, 0, axis)
    return mask


def _apart(slides: Sequence[Slide], pairs: _Pairs, apart: Sequence[NDArray[np.uint64]]) -> list[Finding]:
    """Return findings for slides with pairs that lie apart, by their ids: errors where most do."""
    n, n_apart = np.bincount(pairs.slide, minlength=len(slides)), np.array([len(ids) for ids in apart])
    wrong = _wrong_slides(n, n_apart)
    findings = []
    for index in np.flatnonzero(n_apart).tolist():
        ids = apart[index]
        problem = (
            f"{_subject(slides, index)}nucleus and cytosol of one id share no pixel, or fewer than with other ids, "
            f"in {n_apart[index]} of {n[index]} cells ({some_ids(ids)})"
        )
        if index not in wrong:
            findings.append(Finding("apart", problem, BY_OVERLAP, "ids", slide=slides[index].name))
            continue
        moved = _moved(slides[index].size, pairs.of_slide(index))
        if moved:
            remedy = "bring both planes to the same pixels"
            findings.append(Finding("moved", f"{problem}: {moved}", remedy, "placement", True, slides[index].name))
        else:
            problem = f"{problem}: the planes were numbered apart"
            findings.append(Finding("numbered", problem, BY_OVERLAP, "ids", True, slides[index].name))
    return findings


def _subject(slides: Sequence[Slide], index: int) -> str:
    """Return how a line about a slide begins: with its name, where there are several."""
    return f"slide {slides[index].name}: " if len(slides) > 1 else ""


def _moved(size: tuple[int, int], pairs: _Pairs) -> str:
    """Return how the nuclei of a slide are shifted or mirrored against their cytosols; empty if they are not."""
    if len(pairs) < N_PLACED:
        return ""
    (nuclei, cytosols), (H, W) = pairs.centers(), size
    y, x = cytosols.T
    maps = {
        "": (y, x),
        "upside down": (H - 1 - y, x),
        "mirrored left to right": (y, W - 1 - x),
        "turned by 180 degrees": (H - 1 - y, W - 1 - x),
        "transposed": (x, y),
        "turned by 90 degrees": (x, H - 1 - y),
        "turned by -90 degrees": (W - 1 - x, y),
        "transposed and turned by 180 degrees": (W - 1 - x, H - 1 - y),
    }
    near = PLACED * float(np.median(np.sqrt(pairs.nuclei.counts)))
    for how, (to_y, to_x) in maps.items():
        offsets = nuclei - np.stack([to_y, to_x], axis=1)
        middle = np.median(offsets, axis=0)
        if np.median(np.abs(offsets - middle).max(axis=1)) <= near:
            return f"the nucleus plane is {how or _by(middle)} against the cytosol plane"
    return ""


def _by(offset: NDArray[np.float64]) -> str:
    """Return a shift in words."""
    dy, dx = np.round(offset).astype(int).tolist()
    return f"shifted by about {dy}, {dx} pixels (y, x)"


def _rings(pairs: _Pairs, places: NDArray[np.uint8]) -> list[Finding]:
    """Return a finding where cytosols leave out their nuclei."""
    n = int(np.count_nonzero(places == _Place.BESIDE))
    if not n:
        return []
    problem = f"cytosol labels leave out the nucleus ({some_ids(pairs.ids[places == _Place.BESIDE])})"
    remedy = "it is filled only where it is a hole in the cytosol (fill_cytosol)"
    return [Finding("rings", problem, remedy, "planes")]


def _shifted(
    slides: Sequence[Slide], pairs: _Pairs, leaves: NDArray[np.bool_], of_slides: NDArray[np.int64]
) -> list[Finding]:
    """Return findings for those of some slides whose nuclei leave their cytosols on one side."""
    findings: list[Finding] = []
    if not leaves.any():
        return findings
    n = np.bincount(pairs.slide, minlength=len(slides))
    n_leave = np.stack([np.bincount(pairs.slide[side], minlength=len(slides)) for side in leaves], axis=1)
    shares = n_leave / np.maximum(n, 1)[:, None]
    candidates = of_slides[(n[of_slides] >= N_SHIFTED) & (shares[of_slides].max(axis=1) > SHIFT_SHARE)]
    for index in candidates.tolist():
        nuclei, cytosols = pairs.of_slide(index).centers()
        offset = np.median(nuclei - cytosols, axis=0)
        side = int(np.argmax(np.abs(offset)))
        there, back = (shares[index, side], shares[index, side + 2])[:: 1 if offset[side] < 0 else -1]
        if abs(offset[side]) > SHIFT_PIXELS and there > SHIFT_SHARE and there > SHIFT_RATIO * back:
            problem = (
                f"{_subject(slides, index)}nuclei are {_by(offset)} against their cytosols, "
                f"which {there:.0%} of them leave on that side and {back:.0%} on the other"
            )
            remedy = "bring both planes to the same pixels"
            is_error = bool(there > WRONG_SHARE)
            findings.append(Finding("shifted", problem, remedy, "placement", is_error, slides[index].name))
    return findings


def _lost(slides: Sequence[Slide], planes: Sequence[Sequence[LabelStatistics]], pairs: _Pairs) -> list[Finding]:
    """Return findings for slides few of whose ids are in both planes, so that most cells are dropped."""
    n_pairs = np.bincount(pairs.slide, minlength=len(slides))
    findings = []
    for index, (slide, (nuclei, cytosols)) in enumerate(zip(slides, planes, strict=True)):
        n_least = min(len(nuclei), len(cytosols))
        if slide.ids is None and n_least >= N_SHARED and n_pairs[index] < SHARED * n_least:
            problem = (
                f"{_subject(slides, index)}{n_pairs[index] or 'no'} ids are in both planes, of {len(nuclei)} nuclei "
                f"and {len(cytosols)} cytosols, and all other cells are dropped"
            )
            findings.append(Finding("lost", problem, BY_OVERLAP, "ids", not n_pairs[index], slide.name))
    return findings
