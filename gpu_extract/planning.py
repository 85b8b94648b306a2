"""From label planes to the cells that are extracted, and to the batches in which they are read.

One pass over the label planes, a strip at a time, gives `LabelStatistics`; the border, mismatch and subset rules
of SPEC section 2 give the `CellTable`, in which every id that was seen is kept, or dropped with one reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import InputError, LabelError
from gpu_extract.model import Batch, CellTable, DroppedCells, Raster, Slide
from gpu_extract.recipe import Program, Recipe

__all__ = ["LabelStatistics", "Plan", "Selection", "batches", "label_statistics", "make_plan"]

# What one strip of a label plane may take in memory.
STRIP_NBYTES = 64 << 20

# Cells of a batch lie in a band of rows as high as this many tiles, so that its window stays compact.
BAND_TILES = 2
# Enough cells that a batch's fixed costs vanish, few enough that every core has several batches to work on.
BATCH_CELLS = 64
# A batch's window and tiles together; a single cell may need more.
BATCH_NBYTES = 32 << 20


@dataclass(frozen=True)
class LabelStatistics:
    """What is known of each label of one plane, ids ascending.

    Parameters
    ----------
    ids : (n,) uint64
    counts : (n,) int64, pixels
    sums : (n, 2) int64, pixels
        Sums of the y and of the x coordinates.
    boxes : (n, 4) int64, pixels
    touches : (n,) bool
        Whether the label has a pixel on the first or last row or column of the slide.
    """

    ids: NDArray[np.uint64]
    counts: NDArray[np.int64]
    sums: NDArray[np.int64]
    boxes: NDArray[np.int64]
    touches: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ids)

    def centers(self) -> NDArray[np.int64]:
        """(n, 2) mean (y, x) of the pixels, divided in float64, rounded half to even."""
        return np.round(self.sums / self.counts[:, None]).astype(np.int64)


@dataclass(frozen=True)
class Selection:
    """Which cells are asked for: all, those of a list of ids, or ``n_cells`` at random.

    Parameters
    ----------
    ids : (n,) uint64 or None
    n_cells : int or None
        Drawn without replacement from the cells that the other rules keep.
    seed : int
    """

    ids: NDArray[np.uint64] | None = None
    n_cells: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.ids is not None and self.n_cells is not None:
            raise InputError("a list of ids and a number of cells were both given; give one of them")
        if self.n_cells is not None and self.n_cells < 1:
            raise InputError(f"n_cells is {self.n_cells}; it must be 1 or more")


@dataclass(frozen=True)
class Plan:
    """What an extraction will do, before any pixel of the image is read.

    Parameters
    ----------
    slides : tuple of Slide
    program : Program
    cells : CellTable
    """

    slides: tuple[Slide, ...]
    program: Program
    cells: CellTable

    @property
    def nbytes(self) -> int:
        """Bytes of all tiles, uncompressed."""
        return len(self.cells) * int(np.prod(self.program.tile_shape)) * self.program.output_dtype.itemsize

    def fitting_tile_size(self, share: float = 0.99) -> int:
        """The smallest even tile side, in pixels, that holds that share of the cells whole."""
        centers, boxes = self.cells.centers, self.cells.boxes
        reach = np.maximum(centers - boxes[:, :2], boxes[:, 2:] - centers).max(axis=1)
        return int(2 * np.quantile(reach, share, method="higher"))


def make_plan(slides: Sequence[Slide], recipe: Recipe, selection: Selection | None = None) -> Plan:
    """The plan of an extraction: the label planes are read, the image is not.

    Raises
    ------
    LabelError
        If a label plane is empty or holds a negative id, or if ids disagree under ``on_mismatch="error"``.
    InputError
        If no cell is left, or an id asked for is not there.
    RecipeError
        If the recipe does not fit the slides.
    """
    slides = tuple(slides)
    first = slides[0]
    program = recipe.program(first.mask_names, first.image.shape[0], first.image.dtype)
    parts = [_slide_cells(slide, index, recipe, selection or Selection()) for index, slide in enumerate(slides)]
    cells = _join(parts)
    if not len(cells):
        why = ", ".join(f"{reason}: {n}" for reason, n in cells.dropped.counts().items())
        raise InputError(f"no cell is left to extract; all {len(cells.dropped)} were dropped ({why})")
    return Plan(slides, program, cells)


def label_statistics(raster: Raster, where: str = "labels") -> LabelStatistics:
    """Count, coordinate sums, box and border contact of each label of a plane (1, H, W), 0 left out.

    Read a strip of rows at a time; the memory needed is a strip and the labels' statistics.

    Raises
    ------
    LabelError
        If a label is negative.
    """
    _, H, W = raster.shape
    rows = max(1, STRIP_NBYTES // (W * raster.dtype.itemsize))
    negative, lowest = 0, 0
    strips = []
    for y0 in range(0, H, rows):
        labels = raster.read(y0, 0, min(y0 + rows, H), W)[0]
        if labels.dtype.kind == "i" and labels.min() < 0:
            negative += int(np.count_nonzero(labels < 0))
            lowest = min(lowest, int(labels.min()))
        else:
            strips.append(_strip_statistics(labels, y0, (H, W)))
    if negative:
        raise LabelError(
            f"{where} hold {negative} negative pixels (lowest {lowest}); ids of cells must be 0 (background) or more"
        )
    return _merge(strips)


def _strip_statistics(labels: NDArray[Any], y0: int, size: tuple[int, int]) -> LabelStatistics:
    """The statistics of a strip of rows (h, W) that begins at row ``y0``, from its runs of equal labels."""
    H, W = size
    starts = np.empty(labels.shape, bool)
    starts[:, 0] = True
    np.not_equal(labels[:, 1:], labels[:, :-1], out=starts[:, 1:])
    flat = np.flatnonzero(starts)
    lengths = np.diff(flat, append=labels.size)
    values = labels.ravel()[flat]
    kept = values != 0
    flat, lengths, ids = flat[kept], lengths[kept], values[kept].astype(np.uint64)
    y, x = np.divmod(flat, W)
    y += y0
    last_x = x + lengths - 1
    return _merge(
        [
            LabelStatistics(
                ids=ids,
                counts=lengths,
                # A run of n pixels from x has the x sum n x + n (n - 1) / 2.
                sums=np.stack([y * lengths, x * lengths + lengths * (lengths - 1) // 2], axis=1),
                boxes=np.stack([y, x, y + 1, last_x + 1], axis=1),
                touches=(y == 0) | (y == H - 1) | (x == 0) | (last_x == W - 1),
            )
        ]
    )


def _merge(parts: list[LabelStatistics]) -> LabelStatistics:
    """The statistics of labels of which each may occur several times in the parts."""
    ids = np.concatenate([part.ids for part in parts])
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    starts = np.flatnonzero(np.diff(ids, prepend=ids[:1] + np.uint64(1)))

    def gathered(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(part, name) for part in parts])[order]

    if not len(ids):
        empty = np.zeros((0, 4), np.int64)
        return LabelStatistics(ids, empty[:, 0], empty[:, :2], empty, np.zeros(0, bool))
    boxes = gathered("boxes")
    low = np.minimum.reduceat(boxes[:, :2], starts, axis=0)
    high = np.maximum.reduceat(boxes[:, 2:], starts, axis=0)
    return LabelStatistics(
        ids=ids[starts],
        counts=np.add.reduceat(gathered("counts"), starts),
        sums=np.add.reduceat(gathered("sums"), starts, axis=0),
        boxes=np.concatenate([low, high], axis=1),
        touches=np.logical_or.reduceat(gathered("touches"), starts),
    )


def _slide_cells(slide: Slide, index: int, recipe: Recipe, selection: Selection) -> CellTable:
    """The cells of one slide, kept and dropped."""
    statistics = []
    for name, raster in slide.masks.items():
        where = f"{name} labels {raster.source}"
        plane = label_statistics(raster, where)
        if not len(plane):
            raise LabelError(f"{where} are empty: every pixel is 0 (background); segment the image first")
        statistics.append(plane)
    every = _all_cells(statistics, index, recipe.tile_size)
    reasons = np.full(len(every), "", object)
    for plane, name in zip(statistics, slide.masks, strict=True):
        _drop(reasons, ~np.isin(every.ids, plane.ids), f"no {name}", recipe, slide)
        if recipe.border == "mask":
            touching = plane.ids[plane.touches]
            _mark(reasons, np.isin(every.ids, touching), "mask touches the slide's border")
    if recipe.border == "window":
        w, size = recipe.tile_size // 2, np.array(slide.size)
        inside = ((every.centers > w) & (every.centers < size - w)).all(axis=1)
        _mark(reasons, ~inside, "window leaves the slide")
    _mark(reasons, ~_selected(every.ids, reasons == "", selection), "not selected")
    return _split(every, reasons)


def _all_cells(statistics: list[LabelStatistics], slide: int, tile_size: int) -> CellTable:
    """Every id of any plane as a cell; the centre is that of the first plane that has the id."""
    ids = np.unique(np.concatenate([plane.ids for plane in statistics]))
    n = len(ids)
    centers = np.zeros((n, 2), np.int64)
    boxes = np.tile(np.array([np.iinfo(np.int64).max] * 2 + [-1] * 2), (n, 1))
    areas = np.zeros((n, len(statistics)), np.int64)
    for m in reversed(range(len(statistics))):
        plane = statistics[m]
        at = np.searchsorted(ids, plane.ids)
        centers[at] = plane.centers()
        boxes[at, :2] = np.minimum(boxes[at, :2], plane.boxes[:, :2])
        boxes[at, 2:] = np.maximum(boxes[at, 2:], plane.boxes[:, 2:])
        areas[at, m] = plane.counts
    corners = centers - tile_size // 2
    truncated = ((boxes[:, :2] < corners) | (boxes[:, 2:] > corners + tile_size)).any(axis=1)
    nothing = DroppedCells(np.zeros(0, np.int64), np.zeros(0, np.uint64), np.zeros(0, object))
    return CellTable(np.full(n, slide), ids, centers, boxes, areas, truncated, nothing)


def _drop(reasons: NDArray[np.object_], missing: NDArray[np.bool_], reason: str, recipe: Recipe, slide: Slide) -> None:
    """Apply the mismatch rule to cells that one plane does not have."""
    if recipe.on_mismatch == "error" and missing.any():
        raise LabelError(
            f"slide {slide.name}: {int(missing.sum())} cells have {reason}; "
            "match the label planes, or use on_mismatch 'drop' or 'keep'"
        )
    if recipe.on_mismatch == "drop":
        _mark(reasons, missing, reason)


def _mark(reasons: NDArray[np.object_], where: NDArray[np.bool_], reason: str) -> None:
    """Give that reason to cells that have none yet."""
    reasons[where & (reasons == "")] = reason


def _selected(ids: NDArray[np.uint64], kept: NDArray[np.bool_], selection: Selection) -> NDArray[np.bool_]:
    """Which of the ids are asked for."""
    if selection.ids is not None:
        unknown = np.setdiff1d(selection.ids, ids)
        if len(unknown):
            some = ", ".join(map(str, unknown[:3])) + (", ..." if len(unknown) > 3 else "")
            raise InputError(f"{len(unknown)} of {len(selection.ids)} ids asked for are not in the labels: {some}")
        return np.isin(ids, selection.ids)
    if selection.n_cells is None:
        return np.ones(len(ids), bool)
    candidates = np.flatnonzero(kept)
    if selection.n_cells > len(candidates):
        raise InputError(f"{selection.n_cells} cells were asked for; the slide has {len(candidates)} to choose from")
    chosen = np.random.default_rng(selection.seed).choice(candidates, selection.n_cells, replace=False)
    return np.isin(np.arange(len(ids)), chosen)


def _split(every: CellTable, reasons: NDArray[np.object_]) -> CellTable:
    """The table of the cells without a reason to be dropped; the others are listed in its ``dropped``."""
    kept, gone = reasons == "", reasons != ""
    return CellTable(
        every.slide[kept],
        every.ids[kept],
        every.centers[kept],
        every.boxes[kept],
        every.areas[kept],
        every.truncated[kept],
        DroppedCells(every.slide[gone], every.ids[gone], reasons[gone]),
    )


def _join(parts: list[CellTable]) -> CellTable:
    """One table of all slides, in their order."""
    names = ("slide", "ids", "centers", "boxes", "areas", "truncated")
    joined = [np.concatenate([getattr(part, name) for part in parts]) for name in names]
    dropped = [
        np.concatenate([getattr(part.dropped, name) for part in parts]) for name in ("slide", "ids", "reason")
    ]
    return CellTable(*joined, DroppedCells(*dropped))


def batches(plan: Plan) -> Iterator[Batch]:
    """The plan's cells in batches of neighbours, band by band down each slide, left to right within a band."""
    cells, S = plan.cells, plan.program.recipe.tile_size
    corners = cells.centers - S // 2
    tile_nbytes = int(np.prod(plan.program.tile_shape)) * plan.program.output_dtype.itemsize
    size = int(np.clip(BATCH_NBYTES // tile_nbytes, 1, BATCH_CELLS))
    bands = cells.centers[:, 0] // (BAND_TILES * S)
    order = np.lexsort((cells.ids, corners[:, 1], bands, cells.slide))
    # A batch ends where its slide or its band does, and when it is full.
    breaks = np.flatnonzero(np.diff(cells.slide[order]) | np.diff(bands[order])) + 1
    for band in np.split(order, breaks):
        for start in range(0, len(band), size):
            yield _batch(plan, band[start : start + size], corners)


def _batch(plan: Plan, rows: NDArray[np.int64], corners: NDArray[np.int64]) -> Batch:
    rows = np.sort(rows)
    slide = int(plan.cells.slide[rows[0]])
    H, W = plan.slides[slide].size
    low, high = corners[rows].min(axis=0), corners[rows].max(axis=0) + plan.program.recipe.tile_size
    # A tile may lie wholly off the slide only if its label is in several pieces; the window is then empty.
    y0, x0 = np.clip(low, 0, (H, W))
    y1, x1 = np.clip(high, 0, (H, W))
    return Batch(slide, rows, plan.cells.ids[rows], corners[rows], (int(y0), int(x0), int(y1), int(x1)))
