"""Whether a label plane holds ids of cells: no mask, no image, no ids that were cut off at 8 or 16 bits.

A cell is in one place, so its bounding box is about as long as the square root of its area. Only labels for which that
does not hold, and those of planes with very few ids, are examined in pixels, the most suspicious ones first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gpu_extract.checks.counting import ComponentCount, broken_share, count_components, count_gaps, n_read
from gpu_extract.checks.findings import Finding, Trust, some_ids
from gpu_extract.labels import LabelStatistics
from gpu_extract.model import Raster, Slide, source_text

__all__ = ["check_plane"]

# A label that is longer than so many square roots of its area, or fills less of its box, is not compact: it is
# elongated, or has several components. An ellipse of aspect 3 is 2 long; a disk fills 0.79, a diagonal ellipse 0.55.
ELONGATED, SPARSE = 2.0, 0.55
# The length of a cell is that of a rather long one: where cells are crowded there are many crumbs of hidden ones.
LENGTH_QUANTILE = 0.9
# A label as long as so many cells is suspicious, and components that are so many cells apart are not of one cell.
LONG, APART = 1.5, 1.0
# A plane of no more ids may be one of classes of pixels.
FEW_IDS = 12
# A label of so many components is a class, and one of fewer if they are in so many places. Nuclei have lobes.
MANY_COMPONENTS, SOME_COMPONENTS, MANY_PLACES = 6, 4, 3
# Labels that are examined: so many of each plane, one more for so many cells, and so many if some are wrong.
N_EXAMINED, CELLS_PER_EXAMINED, N_EXAMINED_MOST = 12, 100, 64
# Pixels that are read for it: this share of all, but so many at least, and so many times more if some are wrong.
READ_SHARE, READ_PIXELS, READ_MORE = 1 / 32, 1 << 20, 4
# From this share of ids in several places on, the plane is wrong and not a few of its cells.
WRONG_SHARE, WRONG_SHARE_OF_FEW, WRONG_IDS = 0.1, 0.5, 3
# A plane with more suspicious or tiny ids may be an image, in which more of the horizontal neighbours differ; fewer
# differ where an image is labels.
ODD_SHARE, IMAGE_BROKEN, LABELS_BROKEN = 0.3, 0.4, 0.15
# Cells of a median area below this are points; said of so many of them.
POINT_PIXELS, N_POINTS = 5, 10
# A label that is so many times larger than the median one is hardly a cell: ten times as wide.
HUGE = 100
# Ids up to more than so many times their number, which are less than so many times it with their bytes swapped.
SPARSE_IDS, DENSE_IDS, N_SWAPPED = 64, 4, 10
# Nuclei do not cover so much of a slide.
COVERED = 0.75
# Labels without interior pixels whose outline holds so many times more pixels than they have are outlines; some of the
# labels are examined if the median one fills less of its box.
OUTLINED, N_OUTLINED, THIN = 2.0, 12, 0.6
# A label that covers more of the slide, or spans more of it and is so many times larger than a cell, is no cell.
MOST_OF_SLIDE, SPANS, GIANT = 0.5, 0.8, 20
# A cell may fill a picture of itself, but not more of it than this.
NEARLY_ALL = 0.8
# So many gaps are those between cells, twice as many if they are but holes in a label that covers less.
MANY_GAPS = 6
# A background touches so many sides of the slide, and has this share of the other labels in its box.
N_SIDES, AROUND = 3, 0.9
# The largest ids of 8 and 16 bits, and the share of all ids below that is there where ids were cut off.
TYPE_MAXIMA, FULL = (2**7 - 1, 2**8 - 1, 2**15 - 1, 2**16 - 1), 0.9
# All cells above that id are it, and so together many times larger than a large cell.
TOO_LARGE = 5

STRAY = "stray"
NUMBER_FIRST = "number the objects first, for example with skimage.measure.label"
LARGEST = 'keep the largest component of each with --pieces largest (Recipe(pieces="largest"))'
WIDER = "save labels of so many cells in a larger type, such as uint32"


@dataclass(frozen=True)
class _Shapes:
    """How the labels of one plane of all slides lie in their boxes; each (n,).

    Parameters
    ----------
    slide : int64
        Index of the slide.
    counts, sides : int64, pixels
        Area, and the longer side of the box.
    elongation, filling : float64
        That side in square roots of the area, and the share of the box that is the label's.
    covered, spanned : float64
        The share of the slide that is the label's, and that is in its box.
    """

    slide: NDArray[np.int64]
    counts: NDArray[np.int64]
    sides: NDArray[np.int64]
    elongation: NDArray[np.float64]
    filling: NDArray[np.float64]
    covered: NDArray[np.float64]
    spanned: NDArray[np.float64]

    @classmethod
    def of(cls, slides: Sequence[Slide], planes: Sequence[LabelStatistics]) -> _Shapes:
        """Return the shapes of all labels, in the order of slides and ids."""
        n = [len(plane) for plane in planes]
        slide = np.repeat(np.arange(len(n)), n)
        counts = np.concatenate([plane.counts for plane in planes])
        boxes = np.concatenate([plane.boxes for plane in planes])
        heights, widths = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
        sides, areas = np.maximum(heights, widths), heights * widths
        n_pixels = np.array([slide.size[0] * slide.size[1] for slide in slides])[slide]
        return cls(slide, counts, sides, sides / np.sqrt(counts), counts / areas, counts / n_pixels, areas / n_pixels)

    def length(self) -> float:
        """Return the length of a cell in pixels, from labels that are compact; 0 if none is."""
        compact = self.sides[(self.elongation < ELONGATED) & (self.filling > SPARSE)]
        return float(np.quantile(compact, LENGTH_QUANTILE)) if len(compact) else 0.0

    def suspicious(self, length: float) -> NDArray[np.bool_]:
        """Return which labels may be in several places, (n,)."""
        is_few = np.bincount(self.slide)[self.slide] <= FEW_IDS
        return is_few | ((self.elongation > ELONGATED) & (self.sides > LONG * length))


@dataclass(frozen=True)
class _Plane:
    """The label plane of a slide, with what was found of the labels that were examined.

    Parameters
    ----------
    name : str
        ``nucleus`` or ``cytosol``.
    slide : Slide
    labels : LabelStatistics
    n_suspicious : int
    rows : (n,) int64, ascending
        The examined labels, as rows of ``labels``.
    components : list of ComponentCount, length n
    """

    name: str
    slide: Slide
    labels: LabelStatistics
    n_suspicious: int
    rows: NDArray[np.int64]
    components: list[ComponentCount]

    @property
    def is_few(self) -> bool:
        """Whether there are so few ids that they may be classes."""
        return len(self.labels) <= FEW_IDS

    @property
    def scattered(self) -> NDArray[np.bool_]:
        """Which of the examined labels are in several places."""
        n_most = SOME_COMPONENTS if len(self.labels) == 1 else MANY_COMPONENTS
        return np.array([each.n_apart > 1 or (self.is_few and each.n >= n_most) for each in self.components], bool)

    @property
    def classes(self) -> NDArray[np.bool_]:
        """Which of the examined labels have as many components as no cell has."""
        return np.array([_is_class(each) for each in self.components], bool)

    @property
    def is_of_classes(self) -> bool:
        """Whether the ids are classes: few, and some with a great many components or most of the pixels."""
        counts = self.labels.counts
        many = any(_is_class(each) and max(each.n / 2, each.n_apart) >= MANY_COMPONENTS for each in self.components)
        return self.is_few and bool(many or 2 * counts[self.rows[self.classes]].sum() >= counts.sum())

    @property
    def n_scattered(self) -> int:
        """How many labels are in several places, estimated where not all suspicious ones were examined."""
        return round(self.n_suspicious * np.count_nonzero(self.scattered) / len(self.rows))

    @property
    def full_type(self) -> int:
        """See `_full_type`."""
        return _full_type(self.labels)

    @property
    def begins_anew(self) -> bool:
        """Whether the labels in several places are as many, or as low, as if ids had begun again at 0."""
        n, highest = self.n_scattered, int(self.ids(self.scattered)[-1])
        return n >= WRONG_SHARE * len(self.labels) or highest <= 2 * n + 1

    def ids(self, which: NDArray[np.bool_]) -> NDArray[np.uint64]:
        """Return the ids of some of the examined labels."""
        return self.labels.ids[self.rows[which]]

    def n_components(self, which: NDArray[np.bool_]) -> int:
        """Return how many components some of the examined labels have together."""
        chosen = np.flatnonzero(which).tolist()
        return sum(max(self.components[at].n, self.components[at].n_apart) for at in chosen)

    def finding(self, kind: str, problem: str, remedy: str, trust: Trust = "ids", *, is_error: bool = True) -> Finding:
        """Return a finding about this plane."""
        where = f"{self.name} labels {self.slide.masks[self.name].source}"
        return Finding(f"{self.name} {kind}", f"{where} {problem}", remedy, trust, is_error, self.slide.name)


@dataclass(frozen=True)
class _Planes:
    """One label plane of all slides.

    Parameters
    ----------
    name : str
        ``nucleus`` or ``cytosol``.
    slides : sequence of Slide
    labels : sequence of LabelStatistics
        Of each slide.
    shapes : _Shapes
        Of the labels of all slides, in their order: label ``at`` is number ``at`` of them.
    length : float, pixels
        Of a cell; 0 where it is unknown.
    suspicious : (n,) bool
    first : (slides + 1,) int64
        Where the labels of each slide begin.
    """

    name: str
    slides: Sequence[Slide]
    labels: Sequence[LabelStatistics]
    shapes: _Shapes
    length: float
    suspicious: NDArray[np.bool_]
    first: NDArray[np.int64]

    @classmethod
    def of(cls, name: str, slides: Sequence[Slide], labels: Sequence[LabelStatistics]) -> _Planes:
        """Return the planes, with what their statistics tell."""
        shapes = _Shapes.of(slides, labels)
        length = shapes.length()
        first = np.searchsorted(shapes.slide, np.arange(len(slides) + 1))
        return cls(name, slides, labels, shapes, length, shapes.suspicious(length), first)

    def raster(self, index: int) -> Raster:
        """Return the plane of a slide."""
        return self.slides[index].masks[self.name]

    def examine(self, order: Sequence[int], n_pixels: int) -> dict[int, ComponentCount]:
        """Count the components of labels, in this order, until so many pixels are read."""
        found: dict[int, ComponentCount] = {}
        for at in order:
            if n_pixels <= 0:
                break
            index = int(self.shapes.slide[at])
            labels, row = self.labels[index], at - int(self.first[index])
            y0, x0, y1, x1 = labels.boxes[row].tolist()
            box, cell_id, count = (y0, x0, y1, x1), int(labels.ids[row]), int(labels.counts[row])
            found[at] = count_components(self.raster(index), cell_id, box, count, APART * self.length)
            n_pixels -= n_read(box)
        return found

    def plane(self, index: int, examined: Mapping[int, ComponentCount]) -> _Plane:
        """Return the plane of a slide."""
        start, stop = self.first[index : index + 2].tolist()
        at = [each for each in sorted(examined) if start <= each < stop]
        return _Plane(
            name=self.name,
            slide=self.slides[index],
            labels=self.labels[index],
            n_suspicious=int(np.count_nonzero(self.suspicious[start:stop])),
            rows=np.array(at, np.int64) - start,
            components=[examined[each] for each in at],
        )


def check_plane(
    name: str, slides: Sequence[Slide], labels: Sequence[LabelStatistics], *, largest: bool
) -> tuple[list[Finding], list[NDArray[np.uint64]]]:
    """Check one label plane of all slides.

    Parameters
    ----------
    name : str
        ``nucleus`` or ``cytosol``.
    slides : sequence of Slide
    labels : sequence of LabelStatistics
        Of that plane, for each slide; none is empty.
    largest : bool
        Whether only the largest component of each label is extracted.

    Returns
    -------
    findings : list of Finding
    unsure : list of (n,) uint64
        For each slide the ids, ascending, that are not of one cell.
    """
    planes = _Planes.of(name, slides, labels)
    images = _images(planes)
    findings = [_image(planes.plane(index, {})) for index in images]
    examined = _examined(planes, images)
    unsure = [np.zeros(0, np.uint64)] * len(slides)
    of_slides = sorted({int(planes.shapes.slide[at]) for at in examined})
    for index in of_slides:
        plane = planes.plane(index, examined)
        if plane.scattered.any():
            unsure[index] = plane.ids(plane.scattered)
            findings += _scattered(plane, largest=largest)
    findings = _escalated(findings, len(of_slides))
    wrong = {finding.slide for finding in findings if finding.is_error}
    for index, row in _giants(planes):
        if slides[index].name not in wrong:
            findings += _giant(planes.plane(index, examined), row)
    return findings + _points(planes) + _covering(planes) + _outlines(planes) + _swapped_bytes(planes), unsure


def _images(planes: _Planes) -> list[int]:
    """Return the slides whose plane is an image: with suspicious or tiny ids that differ from pixel to pixel."""
    shapes = planes.shapes
    odd = planes.suspicious | (shapes.counts < POINT_PIXELS)
    n, n_odd = np.bincount(shapes.slide), np.bincount(shapes.slide, odd)
    candidates = np.flatnonzero((n > FEW_IDS) & (n_odd > ODD_SHARE * n))
    return [index for index in candidates.tolist() if broken_share(planes.raster(index)) > IMAGE_BROKEN]


def _examined(planes: _Planes, images: Sequence[int]) -> dict[int, ComponentCount]:
    """Examine the most suspicious labels that are not of images; if one is wrong, more of them."""
    shapes = planes.shapes
    at = np.flatnonzero(planes.suspicious & ~np.isin(shapes.slide, images))
    order = at[np.argsort(-(shapes.elongation + shapes.spanned)[at], kind="stable")].tolist()
    n = min(N_EXAMINED + len(shapes.slide) // CELLS_PER_EXAMINED, N_EXAMINED_MOST)
    n_all = sum(slide.size[0] * slide.size[1] for slide in planes.slides)
    n_pixels = max(READ_PIXELS, int(READ_SHARE * n_all))
    examined = planes.examine(order[:n], n_pixels)
    if any(each.n_apart > 1 or each.n >= SOME_COMPONENTS for each in examined.values()):
        examined |= planes.examine(order[len(examined) : N_EXAMINED_MOST], READ_MORE * n_pixels)
    return examined


def _full_type(labels: LabelStatistics) -> int:
    """Return the largest id, if it is the largest of 8 or 16 bits and nearly all ids below are there; else 0."""
    last = int(labels.ids[-1])
    return last if last in TYPE_MAXIMA and len(labels) >= FULL * last else 0


def _is_class(components: ComponentCount) -> bool:
    """Return whether no cell has so many components."""
    n, n_apart = components.n, components.n_apart
    return n >= MANY_COMPONENTS or (n >= SOME_COMPONENTS and n_apart > 1) or (n > 1 and n_apart >= MANY_PLACES)


def _image(plane: _Plane) -> Finding:
    image = plane.slide.image
    is_labels = any(broken_share(image, channel) < LABELS_BROKEN for channel in range(image.shape[0]))
    problem = f"are an image, not labels: {len(plane.labels)} values that change from pixel to pixel"
    remedy = "give a plane in which all pixels of a cell have its id, saved without loss"
    if is_labels:
        remedy = f"image {source_text(image)} looks like labels: give the two in the other order"
    return plane.finding("image", problem, remedy, "planes")


def _scattered(plane: _Plane, *, largest: bool) -> list[Finding]:
    """Return what it means that some labels of a plane are in several places."""
    labels, last = plane.labels, plane.labels.ids[-1]
    if plane.is_of_classes:
        return [_mask(plane)]
    if plane.full_type and plane.begins_anew:
        problem = f"begin anew after id {last}, the largest of its type: {_components_text(plane)}"
        return [plane.finding("wrapped", problem, WIDER)]
    if int(last) in TYPE_MAXIMA and last in plane.ids(plane.classes):
        return [_last_id(plane)]
    if plane.n_scattered >= max(WRONG_IDS, (WRONG_SHARE_OF_FEW if plane.is_few else WRONG_SHARE) * len(labels)):
        return [_repeated(plane, largest=largest)]
    return [] if largest else _stray(plane)


def _mask(plane: _Plane) -> Finding:
    ids, n = plane.ids(plane.classes), plane.n_components(plane.classes)
    what = "a mask, not labels" if len(plane.labels) == 1 else "classes of pixels, not labels of cells"
    problem = f"are {what}: {some_ids(ids)} {'has' if len(ids) == 1 else 'have'} {n} components"
    return plane.finding("mask", problem, NUMBER_FIRST, "binary")


def _last_id(plane: _Plane) -> Finding:
    """Return what it means that the largest id of a type is in many places."""
    last = plane.labels.ids[-1]
    n = plane.n_components(plane.labels.ids[plane.rows] == last)
    if plane.full_type:
        problem, remedy = f"were cut off at {last}, the largest id of its type", WIDER
    else:
        problem, remedy = f"have an id that is no cell's, {last}, the largest of its type", "set it to 0, background"
    return plane.finding("clipped", f"{problem}: it has {n} components", remedy)


def _repeated(plane: _Plane, *, largest: bool) -> Finding:
    """Return what it means that many labels are in several places: their stray pixels, or other cells."""
    n_specks_only = sum(each.n == 1 for each in plane.components)
    if 2 * n_specks_only > len(plane.components):
        problem = "have stray pixels far from their cell, as after resizing with interpolation or JPEG"
        remedy = f"resize labels by nearest neighbour and save them without loss, or {LARGEST}"
        return plane.finding("interpolated", f"{problem}: {_components_text(plane)}", remedy, is_error=not largest)
    problem = f"have ids that are in several places: {_components_text(plane)}"
    remedy = "number cells through all tiles of a segmentation, and resize labels by nearest neighbour"
    return plane.finding("repeated", problem, remedy)


def _stray(plane: _Plane) -> list[Finding]:
    """Return a finding for single labels in several places, but for cells that the slide's border cuts in two."""
    is_two = np.array([max(each.n, each.n_apart) <= 2 for each in plane.components], bool)
    if not np.any(plane.scattered & ~(is_two & plane.labels.touches[plane.rows])):
        return []
    problem = f"have several components of one id, which are extracted as one cell: {_components_text(plane)}"
    return [plane.finding(STRAY, problem, f"give each an id of its own, or {LARGEST}", is_error=False)]


def _components_text(plane: _Plane) -> str:
    """Return how many ids have several components, with examples."""
    n, n_all, ids = plane.n_scattered, len(plane.labels), plane.ids(plane.scattered)
    what = "far-apart components" if any(each.n_apart > 1 for each in plane.components) else "components"
    if n == 1:
        return f"{some_ids(ids)} has {plane.n_components(plane.scattered)} {what}"
    about = "about " if plane.n_suspicious > len(plane.rows) and n < n_all else ""
    return f"{about}{n} of {n_all} ids have {what} ({some_ids(ids)})"


def _escalated(findings: list[Finding], n_slides: int) -> list[Finding]:
    """Return the findings, in which warnings of stray components are errors if most of the slides have them."""
    n_stray = sum(finding.kind.endswith(STRAY) for finding in findings)
    if n_stray < max(WRONG_IDS, n_slides / 2):
        return findings
    return [
        replace(each, remedy=NUMBER_FIRST, trust="binary", is_error=True) if each.kind.endswith(STRAY) else each
        for each in findings
    ]


def _giants(planes: _Planes) -> list[tuple[int, int]]:
    """Return the labels that are too large for a cell: index of the slide, and row."""
    shapes = planes.shapes
    giant = shapes.spanned > SPANS
    if giant.any():
        is_few = np.bincount(shapes.slide)[shapes.slide] <= FEW_IDS
        giant &= is_few | (shapes.counts > GIANT * np.median(shapes.counts))
    of_all_above = planes.first[1:][[_full_type(labels) > 0 for labels in planes.labels]] - 1
    if len(of_all_above):
        giant[of_all_above] |= shapes.counts[of_all_above] > TOO_LARGE * np.quantile(shapes.counts, LENGTH_QUANTILE)
    is_many = np.bincount(shapes.slide)[shapes.slide] > FEW_IDS
    huge = is_many & (shapes.counts > HUGE * np.median(shapes.counts))
    at = np.flatnonzero((shapes.covered > MOST_OF_SLIDE) | giant | huge)
    index = shapes.slide[at]
    return list(zip(index.tolist(), (at - planes.first[index]).tolist(), strict=True))


def _giant(plane: _Plane, row: int) -> list[Finding]:
    """Return what it means that a label is so large."""
    labels, size = plane.labels, plane.slide.size
    cell_id, low, high = int(labels.ids[row]), labels.boxes[row, :2], labels.boxes[row, 2:]
    n_sides = np.count_nonzero(low == 0) + np.count_nonzero(high == size)
    inside = np.all((labels.boxes[:, :2] >= low) & (labels.boxes[:, 2:] <= high), axis=1)
    n_inside, n_others = int(np.count_nonzero(inside)) - 1, len(labels) - 1
    share = float(labels.counts[row]) / (size[0] * size[1])
    covers = f"id {cell_id} covers {share:.0%} of the slide"
    if plane.full_type == cell_id:
        problem = f"were cut off at {cell_id}, the largest id of its type: {covers}"
        return [plane.finding("clipped", problem, WIDER)]
    no_zero = labels.counts.sum() == size[0] * size[1]
    if n_sides >= N_SIDES and n_inside > AROUND * n_others and (n_others >= WRONG_IDS or (n_others and no_zero)):
        problem = f"have a background that is not 0: {covers} and lies around {n_inside} of the {n_others} others"
        return [plane.finding("background", problem, f"set id {cell_id} to 0", "binary")]
    huge = _huge(plane, row, covers)
    if huge and share <= MOST_OF_SLIDE and np.prod(high - low) <= SPANS * size[0] * size[1]:
        return huge
    (y0, x0), (y1, x1) = low.tolist(), high.tolist()
    n_gaps, n_enclosed = count_gaps(plane.slide.masks[plane.name], cell_id, (y0, x0, y1, x1))
    covers_most = share > MOST_OF_SLIDE and n_sides >= N_SIDES
    if (covers_most and n_sides == 4 and n_gaps >= MANY_GAPS) or n_enclosed >= 2 * MANY_GAPS:
        problem = f"are a mask, not labels: {covers}, with {n_gaps} gaps in it"
        return [plane.finding("mask", problem, NUMBER_FIRST, "binary")]
    if covers_most and (n_gaps >= MANY_GAPS or share >= NEARLY_ALL):
        problem = f"may be a mask, not labels: {covers}"
        return [plane.finding("foreground", problem, NUMBER_FIRST, "binary", is_error=False)]
    return huge


def _huge(plane: _Plane, row: int, covers: str) -> list[Finding]:
    """Return a finding if a label is so many times larger than the median one, of many."""
    counts, cell_id = plane.labels.counts, int(plane.labels.ids[row])
    times = float(counts[row] / np.median(counts))
    if len(counts) <= FEW_IDS or times <= HUGE:
        return []
    problem = f"have an id that is hardly a cell: {covers}, {times:.0f} times the area of the median one"
    return [plane.finding("huge", problem, f"set id {cell_id} to 0 if it is none", "binary", is_error=False)]


def _points(planes: _Planes) -> list[Finding]:
    """Return a finding where most cells are but a few pixels large."""
    counts = planes.shapes.counts
    if len(counts) < N_POINTS or np.median(counts) >= POINT_PIXELS:
        return []
    problem = f"{planes.name} labels have a median area of {np.median(counts):.0f} pixels"
    return [Finding("points", problem, "give the segmentation, not markers of cells", "planes")]


def _covering(planes: _Planes) -> list[Finding]:
    """Return a finding for each slide that nuclei cover nearly whole."""
    findings = []
    for slide, labels in zip(planes.slides, planes.labels, strict=True):
        share = float(labels.counts.sum()) / (slide.size[0] * slide.size[1])
        if planes.name == "nucleus" and len(labels) > FEW_IDS and share > COVERED:
            problem = f"nucleus labels {slide.masks['nucleus'].source} cover {share:.0%} of the slide, as nuclei do not"
            remedy = "if they are whole cells, give them as cytosol (--cytosol, cytosol=)"
            findings.append(Finding("covering", problem, remedy, "planes", slide=slide.name))
    return findings


def _outlines(planes: _Planes) -> list[Finding]:
    """Return a finding where the labels are but the outlines of cells."""
    shapes = planes.shapes
    if len(shapes.counts) < N_POINTS or np.median(shapes.filling) > THIN:
        return []
    chosen = np.unique(np.linspace(0, len(shapes.counts) - 1, N_OUTLINED).astype(int)).tolist()
    n_outlines = sum(_is_outline(planes, at) for at in chosen)
    if 2 * n_outlines <= len(chosen):
        return []
    slide = planes.slides[0]
    problem = (
        f"{planes.name} labels {slide.masks[planes.name].source} are outlines of cells, with holes where cells are"
    )
    return [Finding(f"{planes.name} outlines", problem, "fill them, for example with scipy.ndimage", "planes")]


def _is_outline(planes: _Planes, at: int) -> bool:
    """Return whether a label has no interior pixel, and holes that are larger than itself."""
    from scipy import ndimage

    index = int(planes.shapes.slide[at])
    labels, row = planes.labels[index], at - int(planes.first[index])
    y0, x0, y1, x1 = labels.boxes[row].tolist()
    if (y1 - y0) * (x1 - x0) > READ_PIXELS // N_OUTLINED:
        return False
    mask = np.pad(planes.raster(index).read(y0, x0, y1, x1)[0] == labels.ids[row], 1)
    if ndimage.binary_erosion(mask, np.ones((3, 3), bool)).any():
        return False
    return bool(np.count_nonzero(ndimage.binary_fill_holes(mask)) > OUTLINED * np.count_nonzero(mask))


def _swapped_bytes(planes: _Planes) -> list[Finding]:
    """Return a finding for each slide whose ids are those of cells once their bytes are in the other order."""
    findings = []
    for slide, labels in zip(planes.slides, planes.labels, strict=True):
        raster, n = slide.masks[planes.name], len(labels)
        if n < N_SWAPPED or raster.dtype.kind not in "iu" or int(labels.ids[-1]) < SPARSE_IDS * n:
            continue
        if int(labels.ids.astype(raster.dtype).byteswap().max()) > DENSE_IDS * n:
            continue
        where = f"{planes.name} labels {raster.source}"
        problem = f"{where} have ids whose bytes are in the wrong order ({some_ids(labels.ids)})"
        remedy = "swap them, for example with numpy.ndarray.byteswap"
        findings.append(Finding(f"{planes.name} bytes", problem, remedy, "ids", slide=slide.name))
    return findings
