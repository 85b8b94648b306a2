"""From label statistics to the cells that are extracted, and to the batches in which they are read.

The border, mismatch and subset rules give the `CellTable`, in which every id that was seen is kept, or dropped
with one reason; `batches` gives the order of work.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gpu_extract.checks import Trust, check_images, check_slides
from gpu_extract.components import LargestComponents, find_components
from gpu_extract.errors import InputError, LabelError
from gpu_extract.labels import LabelStatistics, Statistics, label_statistics
from gpu_extract.matching import Pairing, Relabelled, find_overlaps, pair_nuclei
from gpu_extract.model import Batch, BatchSize, CellTable, DroppedCells, DropReason, Raster, Slide
from gpu_extract.recipe import Program, Recipe

__all__ = ["CellSubset", "Plan", "batches", "make_plan", "slide_statistics", "with_checked_images"]

Table = TypeVar("Table", CellTable, DroppedCells)

# Cells of a batch lie in a band of rows as high as this many tiles, so that its window stays compact.
BAND_TILES = 2
# Tiles of a group of chunks: some hundred cells, so that those near each other are still read together.
GROUP_NBYTES = 64 << 20


@dataclass(frozen=True)
class CellSubset:
    """Which cells of all slides are asked for: all, those of a list of ids, or ``n_cells`` at random.

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
    warnings : tuple of str
        What the user should know, one line each.
    planes : tuple of int
        The planes of a tile that are kept, in that order; all where it is empty.
    trusted : tuple of str
        What the checks of the labels would have refused and the user accepted, one line each.
    unsure : tuple of (n,) uint64
        For each slide the ids, ascending, whose boxes are not those of one cell; empty if there are none at all.
    """

    slides: tuple[Slide, ...]
    program: Program
    cells: CellTable
    warnings: tuple[str, ...] = ()
    planes: tuple[int, ...] = ()
    trusted: tuple[str, ...] = ()
    unsure: tuple[NDArray[np.uint64], ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all tiles, uncompressed."""
        n_planes = self.program.n_planes
        return len(self.cells) * self.program.tile_nbytes // n_planes * (len(self.planes) or n_planes)

    @property
    def plane_names(self) -> tuple[str, ...]:
        """Names of the planes of a tile that are kept, in their order."""
        names = self.slides[0].mask_names + self.slides[0].channel_names
        return tuple(names[plane] for plane in self.planes or range(len(names)))

    def fitting_tile_size(self, share: float) -> int:
        """Return the smallest even tile side, in pixels, that holds that share of the cells whole.

        Cells that are not sure to be one cell are left out, unless none is sure.
        """
        sides, sure = self.fitting_sides(), self.sure()
        return int(np.quantile(sides[sure] if sure.any() else sides, share, method="higher"))

    def sure(self) -> NDArray[np.bool_]:
        """Return which cells have labels that are surely of one cell, (N,)."""
        sure = np.ones(len(self.cells), bool)
        for index, ids in enumerate(self.unsure):
            if len(ids):
                sure &= (self.cells.slide != index) | ~np.isin(self.cells.ids, ids)
        return sure

    def fitting_sides(self) -> NDArray[np.int64]:
        """The smallest even tile side, in pixels, that holds each cell whole, (N,)."""
        centers, boxes = self.cells.centers, self.cells.boxes
        reach: NDArray[np.int64] = np.maximum(centers - boxes[:, :2], boxes[:, 2:] - centers).max(axis=1)
        return 2 * reach


def make_plan(
    slides: Sequence[Slide],
    recipe: Recipe,
    subset: CellSubset | None = None,
    statistics: Statistics = label_statistics,
    trust: Collection[Trust] = (),
) -> Plan:
    """The plan of an extraction: the label planes are read, the image is not.

    Parameters
    ----------
    slides : sequence of Slide
    recipe : Recipe
    subset : CellSubset, optional
        All cells by default.
    statistics : callable
        `label_statistics`, or what gives the same on a GPU.
    trust : collection of str
        What is accepted of what `gpu_extract.checks` would refuse.

    Raises
    ------
    LabelError
        If a label plane is empty or holds a negative id, if ids disagree under ``on_mismatch="error"``, or if the
        planes are not what they should be; see `gpu_extract.checks`.
    InputError
        If no cell is left, or an id asked for is not there.
    RecipeError
        If the recipe does not fit the slides.
    """
    slides = tuple(slides)
    program = _program(slides, recipe)
    given = [slide_statistics(slide, statistics) for slide in slides]
    checked = check_slides(slides, given, recipe, trust)
    labelled = [_labelled(slide, planes, recipe, statistics) for slide, planes in zip(slides, given, strict=True)]
    tables = [_all_cells(of_slide, index, recipe.tile_size) for index, of_slide in enumerate(labelled)]
    reasons = [_reasons(of_slide, table, recipe) for of_slide, table in zip(labelled, tables, strict=True)]
    every, why = _join(tables), np.concatenate(reasons)
    _mark(why, ~_selected(every.ids, why == DropReason.KEPT, subset or CellSubset()), DropReason.NOT_SELECTED)
    cells = _split(every, why)
    if not len(cells):
        counts = ", ".join(f"{reason}: {n}" for reason, n in cells.dropped.counts().items())
        raise InputError(f"no cell is left to extract; all {len(cells.dropped)} were dropped ({counts})")
    warnings = dict.fromkeys([*(line for slide in slides for line in slide.warnings), *checked.warnings])
    return Plan(
        tuple(of_slide.slide for of_slide in labelled),
        program,
        cells,
        tuple(warnings),
        trusted=checked.trusted,
        unsure=checked.unsure,
    )


def with_checked_images(plan: Plan, trust: Collection[Trust] = ()) -> Plan:
    """Return the plan after a look at a few windows of the images, which `make_plan` does not read.

    Raises
    ------
    LabelError
        If labels surely are not those of their image; see `gpu_extract.checks.check_images`.
    """
    first = np.searchsorted(plan.cells.slide, np.arange(len(plan.slides) + 1)).tolist()
    boxes = [plan.cells.boxes[start:stop] for start, stop in pairwise(first)]
    checked = check_images(plan.slides, boxes, trust)
    return replace(plan, warnings=(*plan.warnings, *checked.warnings), trusted=(*plan.trusted, *checked.trusted))


def slide_statistics(slide: Slide, statistics: Statistics = label_statistics) -> list[LabelStatistics]:
    """The statistics of each label plane of a slide.

    Raises
    ------
    LabelError
        If a plane is empty or holds a negative id.
    """
    planes = []
    for name, raster in slide.masks.items():
        where = f"{name} labels {raster.source}"
        planes.append(statistics(raster, where))
        if not len(planes[-1]):
            raise LabelError(f"{where} are empty: every pixel is 0 (background); segment the image first")
    return planes


def _program(slides: tuple[Slide, ...], recipe: Recipe) -> Program:
    """The recipe's program for the slides, which must be alike in label planes, channels and pixel type."""
    first = slides[0]
    for slide in slides[1:]:
        for what, of_slide, of_first in (
            ("label planes", ", ".join(slide.mask_names), ", ".join(first.mask_names)),
            ("channels", ", ".join(slide.channel_names), ", ".join(first.channel_names)),
            ("pixels of type", slide.image.dtype.name, first.image.dtype.name),
        ):
            if of_slide != of_first:
                raise InputError(
                    f"slide {slide.name} has {what} {of_slide} and slide {first.name} has {of_first}; "
                    "the slides of one file must be alike"
                )
    return recipe.program(first.mask_names, first.image.shape[0], first.image.dtype, first.channel_names)


@dataclass(frozen=True)
class _Labelled:
    """A slide whose label planes are as the recipe wants them, and what is known of their labels."""

    slide: Slide
    planes: list[LabelStatistics]
    pairing: Pairing | None = None


def _labelled(slide: Slide, planes: list[LabelStatistics], recipe: Recipe, statistics: Statistics) -> _Labelled:
    """The slide with the lesser pieces of labels removed, and nuclei paired with cytosols, where that is asked for."""
    if recipe.pieces == "largest":
        slide = replace(slide, masks={name: _in_one_piece(raster) for name, raster in slide.masks.items()})
        planes = slide_statistics(slide, statistics)
    if recipe.match == "id":
        return _Labelled(slide, planes)
    if len(planes) < 2:
        raise InputError(
            f"match is 'overlap' and slide {slide.name} has one label plane; give nucleus and cytosol, or match 'id'"
        )
    nucleus, cytosol = slide.masks.values()
    pairing = pair_nuclei(planes[0], planes[1], find_overlaps(nucleus, cytosol), recipe.several_nuclei)
    paired = Relabelled(nucleus, pairing.nuclei, pairing.becomes)
    slide = replace(slide, masks={"nucleus": paired, "cytosol": cytosol})
    return _Labelled(slide, [statistics(paired, f"nucleus labels {nucleus.source}"), planes[1]], pairing)


def _in_one_piece(raster: Raster) -> Raster:
    pieces = find_components(raster)
    return LargestComponents(raster, pieces) if len(pieces) else raster


def _reasons(labelled: _Labelled, every: CellTable, recipe: Recipe) -> NDArray[np.uint8]:
    """Return why each cell of a slide is dropped, (n,) codes of `DropReason`."""
    slide, planes = labelled.slide, labelled.planes
    reasons = np.full(len(every), DropReason.KEPT, np.uint8)
    if slide.ids is not None:
        _mark(reasons, ~np.isin(every.ids, slide.ids), DropReason.NOT_LISTED)
    for plane, name in zip(planes, slide.masks, strict=True):
        _drop(reasons, ~np.isin(every.ids, plane.ids), DropReason.without(name), recipe, slide)
    if recipe.border == "mask":
        for plane in planes:
            _mark(reasons, np.isin(every.ids, plane.ids[plane.touches]), DropReason.TOUCHES_BORDER)
    if recipe.border == "window":
        w, size = recipe.tile_size // 2, np.array(slide.size)
        inside = np.all((every.centers > w) & (every.centers < size - w), axis=1)
        _mark(reasons, ~inside, DropReason.WINDOW_LEAVES_SLIDE)
    return reasons


def _all_cells(labelled: _Labelled, slide: int, tile_size: int) -> CellTable:
    """Every id of any label plane as a cell; the centre is that of the first plane that has the id."""
    planes, pairing = labelled.planes, labelled.pairing
    ids = np.unique(np.concatenate([plane.ids for plane in planes]))
    n = len(ids)
    centers = np.zeros((n, 2), np.int64)
    boxes = np.tile(np.array([np.iinfo(np.int64).max] * 2 + [-1] * 2), (n, 1))
    areas = np.zeros((n, len(planes)), np.int64)
    for m in reversed(range(len(planes))):
        plane = planes[m]
        at = np.searchsorted(ids, plane.ids)
        centers[at] = plane.centers()
        boxes[at, :2] = np.minimum(boxes[at, :2], plane.boxes[:, :2])
        boxes[at, 2:] = np.maximum(boxes[at, 2:], plane.boxes[:, 2:])
        areas[at, m] = plane.counts
    corners = centers - tile_size // 2
    truncated = np.any((boxes[:, :2] < corners) | (boxes[:, 2:] > corners + tile_size), axis=1)
    # Nuclei beside a larger one have lost their labels, and would not be accounted for.
    smaller = np.zeros(0, np.uint64) if pairing is None else pairing.nuclei[pairing.becomes == 0]
    reason = np.full(len(smaller), DropReason.SMALLER_NUCLEUS, np.uint8)
    return CellTable(
        slide=np.full(n, slide),
        ids=ids,
        centers=centers,
        boxes=boxes,
        areas=areas,
        truncated=truncated,
        dropped=DroppedCells(np.full(len(smaller), slide), smaller, reason),
        nuclei=None if pairing is None else pairing.of(ids),
    )


def _drop(
    reasons: NDArray[np.uint8], missing: NDArray[np.bool_], reason: DropReason, recipe: Recipe, slide: Slide
) -> None:
    """Apply the mismatch rule to cells that one plane does not have."""
    if recipe.on_mismatch == "error" and missing.any():
        raise LabelError(
            f"slide {slide.name}: {int(missing.sum())} cells have {reason.text}; "
            "match the label planes, or use on_mismatch 'drop' or 'keep'"
        )
    if recipe.on_mismatch == "drop":
        _mark(reasons, missing, reason)


def _mark(reasons: NDArray[np.uint8], where: NDArray[np.bool_], reason: DropReason) -> None:
    """Give that reason to cells that have none yet."""
    reasons[where & (reasons == DropReason.KEPT)] = reason


def _selected(ids: NDArray[np.uint64], kept: NDArray[np.bool_], subset: CellSubset) -> NDArray[np.bool_]:
    """Which of the ids are asked for."""
    if subset.ids is not None:
        unknown = np.setdiff1d(subset.ids, ids)
        if len(unknown):
            some = ", ".join(map(str, unknown[:3])) + (", ..." if len(unknown) > 3 else "")
            raise InputError(f"{len(unknown)} of {len(subset.ids)} ids asked for are not in the labels: {some}")
        return np.isin(ids, subset.ids)
    if subset.n_cells is None:
        return np.ones(len(ids), bool)
    candidates = np.flatnonzero(kept)
    if subset.n_cells > len(candidates):
        raise InputError(f"{subset.n_cells} cells were asked for; there are {len(candidates)} to choose from")
    chosen = np.random.default_rng(subset.seed).choice(candidates, subset.n_cells, replace=False)
    return np.isin(np.arange(len(ids)), chosen)


def _split(every: CellTable, reasons: NDArray[np.uint8]) -> CellTable:
    """The table of the cells without a reason to be dropped; the others are added to its ``dropped``."""
    kept = reasons == DropReason.KEPT
    gone = ~kept
    ids = every.ids
    if every.nuclei is not None:
        # A nucleus on no cytosol has an id of our making; it is told of by its own.
        ids = np.where(every.areas[:, -1] == 0, every.nuclei[:, 0], ids)
    dropped = DroppedCells(every.slide[gone], ids[gone], reasons[gone])
    return every.part(kept, _joined_rows([dropped, every.dropped], DroppedCells))


def _join(tables: list[CellTable]) -> CellTable:
    """One table of all slides, in their order."""
    return _joined_rows(tables, CellTable)


def _joined_rows(tables: Sequence[Table], kind: type[Table]) -> Table:
    """The rows of all tables behind one another."""
    columns: dict[str, Any] = {}
    for field in fields(kind):
        parts = [getattr(table, field.name) for table in tables]
        if isinstance(parts[0], DroppedCells):
            columns[field.name] = _joined_rows(parts, DroppedCells)
        else:
            columns[field.name] = None if parts[0] is None else np.concatenate(parts)
    return kind(**columns)


def batches(plan: Plan, batch_size: BatchSize, chunk_cells: int = 1) -> Iterator[Batch]:
    """The plan's cells in batches of neighbours, band by band down each slide, left to right within a band.

    Where ``chunk_cells`` rows make a chunk of the output, group by group: a group is rows that follow each other, whole
    chunks of them, few enough to be held until all have come. Ids that are scattered over the slide make that slow:
    every group reads it anew.
    """
    cells, S = plan.cells, plan.program.recipe.tile_size
    corners = cells.centers - S // 2
    bands = cells.centers[:, 0] // (BAND_TILES * S)
    per_group = len(cells)
    if chunk_cells > 1:
        per_group = chunk_cells * max(GROUP_NBYTES // (chunk_cells * plan.program.tile_nbytes), 1)
    groups = np.arange(len(cells)) // per_group
    order = np.lexsort((cells.ids, corners[:, 1], bands, cells.slide, groups))
    breaks = np.flatnonzero(np.diff(groups[order]) | np.diff(cells.slide[order]) | np.diff(bands[order])) + 1
    for band in np.split(order, breaks):
        for rows in _cut_band(plan, band, corners[band, 1], batch_size):
            yield _batch(plan, np.sort(rows), corners)


def _cut_band(
    plan: Plan, band: NDArray[np.int64], left: NDArray[np.int64], batch_size: BatchSize
) -> Iterator[NDArray[np.int64]]:
    """The cells of one band, ordered by their tiles' ``left``, in pieces of bounded number and bytes."""
    program, slide = plan.program, plan.slides[int(plan.cells.slide[band[0]])]
    S = program.recipe.tile_size
    n_most = int(np.clip(batch_size.nbytes // program.tile_nbytes, 1, batch_size.n_cells))
    pixel_nbytes = slide.image.shape[0] * slide.image.dtype.itemsize
    pixel_nbytes += sum(raster.dtype.itemsize for raster in slide.masks.values())
    reach = batch_size.nbytes // (pixel_nbytes * (BAND_TILES + 1) * S) - S
    start = 0
    while start < len(band):
        end = int(np.searchsorted(left, left[start] + max(reach, 0), side="right"))
        end = min(end, start + n_most)
        yield band[start:end]
        start = end


def _batch(plan: Plan, rows: NDArray[np.int64], corners: NDArray[np.int64]) -> Batch:
    slide = int(plan.cells.slide[rows[0]])
    H, W = plan.slides[slide].size
    y0, x0 = np.maximum(corners[rows].min(axis=0), 0).tolist()
    y1, x1 = np.minimum(corners[rows].max(axis=0) + plan.program.recipe.tile_size, (H, W)).tolist()
    return Batch(slide, rows, plan.cells.ids[rows], corners[rows], (y0, x0, y1, x1), plan.cells.boxes[rows])
