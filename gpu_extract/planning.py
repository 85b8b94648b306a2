"""From label statistics to the cells to extract, and to the batches in which they are read.

The border, mismatch and subset rules produce the `CellTable`, in which every id is either kept or dropped with one
reason. `batches` determines the order of work.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gpu_extract.checks import Trust, check_images, check_slides
from gpu_extract.components import LargestComponents, find_components
from gpu_extract.errors import InputError, LabelError
from gpu_extract.html_table import html_table
from gpu_extract.labels import LabelStatistics, Statistics, label_statistics
from gpu_extract.listing import first_few, first_lines, listed, listed_apart
from gpu_extract.matching import Pairing, Relabeled, find_overlaps, pair_nuclei
from gpu_extract.messages import announce
from gpu_extract.model import Batch, BatchSize, CellTable, DroppedCells, DropReason, Raster, Slide
from gpu_extract.recipe import Program, Recipe

__all__ = ["CellSubset", "Plan", "batches", "make_plan", "slide_statistics", "with_checked_images"]

Table = TypeVar("Table", CellTable, DroppedCells)

# Height, in tiles, of the band of pixel rows that a batch is taken from. Low bands keep windows compact.
BAND_TILES = 2
# Size of the tiles of a group of chunks: some hundred cells, enough for neighbors to be read together.
GROUP_NBYTES = 64 << 20
# Slides that a warning names.
N_NAMED = 10
# What to do if a file without cells is meant.
ALLOW_EMPTY = "To write a file without cells use --allow-empty (allow_empty=True)"


@dataclass(frozen=True)
class CellSubset:
    """The cells to extract from all slides: all, a list of ids, or ``n_cells`` at random.

    Parameters
    ----------
    ids : (n,) uint64 or None
    n_cells : int or None
        Number of cells to draw, without replacement, from those that the other rules keep.
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
    """The plan of an extraction, made before any pixel of the image is read.

    Parameters
    ----------
    slides : tuple of Slide
    program : Program
    cells : CellTable
    warnings : tuple of str
        Warnings about the input, one line each.
    planes : tuple of int
        The planes of a tile to keep, in this order; all if empty.
    trusted : tuple of str
        What the checks found and the user accepted, one line each.
    unsure : tuple of (n,) uint64
        For each slide the ids, ascending, whose boxes are not those of one cell; empty if there are none.
    rows : (n,) int64, ascending, or None
        Rows to extract; None for all. The others were written before, in whole chunks of the output.
    """

    slides: tuple[Slide, ...]
    program: Program
    cells: CellTable
    warnings: tuple[str, ...] = ()
    planes: tuple[int, ...] = ()
    trusted: tuple[str, ...] = ()
    unsure: tuple[NDArray[np.uint64], ...] = ()
    rows: NDArray[np.int64] | None = None

    def __repr__(self) -> str:
        tile = (len(self.plane_names), *self.program.tile_shape[1:])
        return (
            f"Plan(n_cells={len(self.cells)}, n_slides={len(self.slides)}, tile={tile} {self.program.output_dtype}, "
            f"n_dropped={len(self.cells.dropped)}, n_warnings={len(self.warnings)})"
        )

    def html_rows(self) -> list[tuple[str, str]]:
        """Return names and values for a table in a notebook."""
        S = self.program.recipe.tile_size
        return [
            ("cells", f"{len(self.cells):,}"),
            ("slides", f"{len(self.slides):,} ({first_few(slide.name for slide in self.slides)})"),
            *(("dropped", f"{n:,}: {reason}") for reason, n in self.cells.dropped.counts().items()),
            ("planes", listed(self.plane_names)),
            ("tiles", f"{S} x {S} {self.program.output_dtype}, {self.nbytes / 1e6:,.1f} MB before compression"),
            *(("warning", line) for line in first_lines(self.warnings)),
            *(("trusted", line) for line in first_lines(self.trusted)),
        ]

    def _repr_html_(self) -> str:
        return html_table("Plan", self.html_rows())

    @property
    def nbytes(self) -> int:
        """Uncompressed size of all tiles in bytes."""
        n_planes = self.program.n_planes
        return len(self.cells) * self.program.tile_nbytes // n_planes * (len(self.planes) or n_planes)

    @property
    def plane_names(self) -> tuple[str, ...]:
        """Names of the planes of a tile to keep, in order."""
        names = self.slides[0].mask_names + self.slides[0].channel_names
        return tuple(names[plane] for plane in self.planes or range(len(names)))

    @property
    def slides_to_read(self) -> tuple[int, ...]:
        """Indices of the slides with cells to extract."""
        slides = self.cells.slide if self.rows is None else self.cells.slide[self.rows]
        return tuple(np.unique(slides).tolist())

    @property
    def masking(self) -> str:
        """Which channel is cut with the nucleus mask, as a line; empty unless the others are cut with another mask."""
        slide = self.slides[0]
        nuclear = self.program.recipe.nuclear_name(slide.channel_names)
        if nuclear is None or len(slide.masks) < 2:
            return ""
        others = ", the others with the cytosol mask" if len(slide.channel_names) > 1 else ""
        return f"channel {nuclear} is cut with the nucleus mask{others}"

    def fitting_tile_size(self, share: float) -> int:
        """Return the smallest even tile size, in pixels, at which that share of the cells fits; 0 without cells.

        Cells whose labels may not be of one cell are left out, unless this is true of all.
        """
        sides, sure = self.fitting_sides(), self.sure()
        return int(np.quantile(sides[sure] if sure.any() else sides, share, method="higher")) if len(sides) else 0

    def sure(self) -> NDArray[np.bool_]:
        """Return which cells have labels that are surely of one cell, (N,)."""
        sure = np.ones(len(self.cells), bool)
        for index, ids in enumerate(self.unsure):
            if len(ids):
                sure &= (self.cells.slide != index) | ~np.isin(self.cells.ids, ids)
        return sure

    def fitting_sides(self) -> NDArray[np.int64]:
        """Return the smallest even tile size, in pixels, into which each cell fits, (N,)."""
        centers, boxes = self.cells.centers, self.cells.boxes
        reach: NDArray[np.int64] = np.maximum(centers - boxes[:, :2], boxes[:, 2:] - centers).max(axis=1)
        return 2 * reach


def make_plan(
    slides: Sequence[Slide],
    recipe: Recipe,
    subset: CellSubset | None = None,
    statistics: Statistics = label_statistics,
    *,
    allow_empty: bool = False,
    trust: Collection[Trust] = (),
    in_um: bool = False,
) -> Plan:
    """Plan an extraction. This reads the label planes, but not the image.

    Parameters
    ----------
    slides : sequence of Slide
    recipe : Recipe
    subset : CellSubset, optional
        All cells by default.
    statistics : callable
        `label_statistics`, or its equivalent on a GPU.
    allow_empty : bool
        Whether a plan without any cell is valid. A slide without cells always is, if another one has cells.
    trust : collection of str
        Findings of `gpu_extract.checks` to accept.
    in_um : bool
        Whether lengths in um are asked for.

    Raises
    ------
    LabelError
        If a label plane of every slide is empty, a label plane has a negative id, or ids do not match under
        ``on_mismatch="error"``, or the planes are not what they should be
        (`gpu_extract.checks`).
    InputError
        If no cell is left, or a requested id does not exist.
    RecipeError
        If the recipe does not match the slides.
    """
    slides = tuple(slides)
    program = _program(slides, recipe)
    given = []
    for number, slide in enumerate(slides, 1):
        announce("reading the labels of slide %d of %d", number, len(slides))
        given.append(slide_statistics(slide, statistics))
    announce("planning")
    if not allow_empty:
        _check_not_empty(slides, given)
    checked = check_slides(slides, given, recipe, trust, in_um=in_um)
    prepared = [_prepare(slide, planes, recipe, statistics) for slide, planes in zip(slides, given, strict=True)]
    tables = [_all_cells(of_slide, index, recipe.tile_size) for index, of_slide in enumerate(prepared)]
    reasons = np.concatenate(
        [_drop_reasons(of_slide, table, recipe) for of_slide, table in zip(prepared, tables, strict=True)]
    )
    all_cells = _concatenate(tables, CellTable)
    in_subset = _in_subset(all_cells.ids, reasons == DropReason.KEPT, subset or CellSubset())
    _set_reason(reasons, ~in_subset, DropReason.NOT_SELECTED)
    cells = _split(all_cells, reasons)
    if not len(cells) and not allow_empty:
        counts = ", ".join(f"{reason}: {n}" for reason, n in cells.dropped.counts().items())
        raise InputError(f"no cell is left to extract; all {len(cells.dropped)} were dropped ({counts}). {ALLOW_EMPTY}")
    lines = dict.fromkeys(line for slide in slides for line in slide.warnings)
    return Plan(
        tuple(of_slide.slide for of_slide in prepared),
        program,
        cells,
        (*lines, *checked.warnings, *_empty_slides(prepared, cells)),
        trusted=checked.trusted,
        unsure=checked.unsure,
    )


def with_checked_images(plan: Plan, trust: Collection[Trust] = (), statistics: Statistics = label_statistics) -> Plan:
    """Check a few windows of the images, which `make_plan` does not read, and return the plan with what was found.

    Parameters
    ----------
    plan : Plan
    trust : collection of str
        Findings to accept.
    statistics : callable
        As for `make_plan`.

    Raises
    ------
    LabelError
        If labels surely are not those of their image; see `gpu_extract.checks.check_images`.
    """
    announce("checking the images")
    slides = [slide for index, slide in enumerate(plan.slides) if np.any(plan.cells.slide == index)]
    checked = check_images(slides, lambda slide: slide_statistics(slide, statistics), trust)
    return replace(plan, warnings=(*plan.warnings, *checked.warnings), trusted=(*plan.trusted, *checked.trusted))


def slide_statistics(slide: Slide, statistics: Statistics = label_statistics) -> list[LabelStatistics]:
    """Return the statistics of each label plane of a slide.

    Raises
    ------
    LabelError
        If a plane has a negative id.
    """
    return [statistics(raster, f"{name} labels {raster.source}") for name, raster in slide.masks.items()]


def _program(slides: tuple[Slide, ...], recipe: Recipe) -> Program:
    """Return the program for the slides, which must have the same label planes, channels and pixel type."""
    first = slides[0]
    for slide in slides[1:]:
        for what, of_slide, of_first in (
            ("label planes", slide.mask_names, first.mask_names),
            ("channels", slide.channel_names, first.channel_names),
            ("pixels of type", (slide.image.dtype.name,), (first.image.dtype.name,)),
        ):
            if of_slide != of_first:
                given, expected = listed_apart(of_slide, of_first)
                raise InputError(
                    f"slide {slide.name} has {what} {given} and slide {first.name} has {expected}; "
                    "the slides of one file must have the same"
                )
    return recipe.program(first.mask_names, first.image.shape[0], first.image.dtype, first.channel_names)


@dataclass(frozen=True)
class _PreparedSlide:
    """A slide with the label planes that the recipe asks for, and their statistics."""

    slide: Slide
    planes: list[LabelStatistics]
    pairing: Pairing | None = None


def _check_not_empty(slides: Sequence[Slide], statistics: Sequence[Sequence[LabelStatistics]]) -> None:
    """Raise an error if no slide has labels in all of its planes."""
    empty = [
        f"{name} labels {raster.source}"
        for slide, planes in zip(slides, statistics, strict=True)
        for (name, raster), plane in zip(slide.masks.items(), planes, strict=True)
        if not len(plane)
    ]
    if all(any(not len(plane) for plane in planes) for planes in statistics):
        of_all = f", as are those of all {len(slides)} slides" if len(slides) > 1 else ""
        raise LabelError(
            f"{empty[0]} are empty: every pixel is 0 (background){of_all}; segment the image first. {ALLOW_EMPTY}"
        )


def _empty_slides(prepared: Sequence[_PreparedSlide], cells: CellTable) -> list[str]:
    """Return a warning that names the slides without any cell; those without a cell of the subset are not meant."""
    has_cells, dropped = np.bincount(cells.slide, minlength=len(prepared)) > 0, cells.dropped
    not_selected = np.isin(np.arange(len(prepared)), dropped.slide[dropped.reason == DropReason.NOT_SELECTED])
    names = []
    for index in np.flatnonzero(~has_cells & ~not_selected).tolist():
        n_dropped = np.count_nonzero(dropped.slide == index)
        names.append(prepared[index].slide.name + (f" (all {n_dropped:,} dropped)" if n_dropped else ""))
    if not names:
        return []
    return [f"{'1 slide has' if len(names) == 1 else f'{len(names)} slides have'} no cell: {first_few(names, N_NAMED)}"]


def _prepare(slide: Slide, planes: list[LabelStatistics], recipe: Recipe, statistics: Statistics) -> _PreparedSlide:
    """Keep the largest components of labels and pair nuclei with cytosols, if the recipe asks for it."""
    if recipe.pieces == "largest":
        slide = replace(slide, masks={name: _keep_largest_components(raster) for name, raster in slide.masks.items()})
        planes = slide_statistics(slide, statistics)
    if recipe.match == "id":
        return _PreparedSlide(slide, planes)
    if len(planes) < 2:
        raise InputError(
            f"match is 'overlap' and slide {slide.name} has one label plane; give nucleus and cytosol, or match 'id'"
        )
    nucleus, cytosol = slide.masks.values()
    pairing = pair_nuclei(planes[0], planes[1], find_overlaps(nucleus, cytosol), recipe.several_nuclei)
    paired = Relabeled(nucleus, pairing.nuclei, pairing.becomes)
    slide = replace(slide, masks={"nucleus": paired, "cytosol": cytosol})
    return _PreparedSlide(slide, [statistics(paired, f"nucleus labels {nucleus.source}"), planes[1]], pairing)


def _keep_largest_components(raster: Raster) -> Raster:
    components = find_components(raster)
    return LargestComponents(raster, components) if len(components) else raster


def _drop_reasons(prepared: _PreparedSlide, cells: CellTable, recipe: Recipe) -> NDArray[np.uint8]:
    """Return the reason why each cell of a slide is dropped, (n,) codes of `DropReason`."""
    slide, planes = prepared.slide, prepared.planes
    reasons = np.full(len(cells), DropReason.KEPT, np.uint8)
    if slide.ids is not None:
        _set_reason(reasons, ~np.isin(cells.ids, slide.ids), DropReason.NOT_LISTED)
    for plane, name in zip(planes, slide.masks, strict=True):
        _apply_mismatch_rule(reasons, ~np.isin(cells.ids, plane.ids), DropReason.without(name), recipe, slide)
    if recipe.border == "mask":
        for plane in planes:
            _set_reason(reasons, np.isin(cells.ids, plane.ids[plane.touches]), DropReason.TOUCHES_BORDER)
    if recipe.border == "window":
        w, size = recipe.tile_size // 2, np.array(slide.size)
        inside = np.all((cells.centers > w) & (cells.centers < size - w), axis=1)
        _set_reason(reasons, ~inside, DropReason.WINDOW_LEAVES_SLIDE)
    return reasons


def _all_cells(prepared: _PreparedSlide, slide: int, tile_size: int) -> CellTable:
    """Return every id of any label plane as a cell, with its center in the first plane that has the id."""
    planes, pairing = prepared.planes, prepared.pairing
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
    # Smaller nuclei of a cell have lost their labels, so they would be missing from the table.
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


def _apply_mismatch_rule(
    reasons: NDArray[np.uint8], missing: NDArray[np.bool_], reason: DropReason, recipe: Recipe, slide: Slide
) -> None:
    """Apply the mismatch rule to cells that are missing from one plane."""
    if recipe.on_mismatch == "error" and missing.any():
        raise LabelError(
            f"slide {slide.name}: {int(missing.sum())} cells have {reason.text}; "
            "match the label planes, or use on_mismatch 'drop' or 'keep'"
        )
    if recipe.on_mismatch == "drop" or (recipe.on_mismatch == "keep_nuclei" and reason == DropReason.NO_NUCLEUS):
        _set_reason(reasons, missing, reason)


def _set_reason(reasons: NDArray[np.uint8], where: NDArray[np.bool_], reason: DropReason) -> None:
    """Set the reason of selected cells that have none yet."""
    reasons[where & (reasons == DropReason.KEPT)] = reason


def _in_subset(ids: NDArray[np.uint64], kept: NDArray[np.bool_], subset: CellSubset) -> NDArray[np.bool_]:
    """Return whether each id is in the subset."""
    if subset.ids is not None:
        unknown = np.setdiff1d(subset.ids, ids)
        if len(unknown):
            n, of_all = len(unknown), len(subset.ids)
            raise InputError(f"{n:,} of {of_all:,} ids asked for are not in the labels: {first_few(unknown)}")
        return np.isin(ids, subset.ids)
    if subset.n_cells is None:
        return np.ones(len(ids), bool)
    candidates = np.flatnonzero(kept)
    if subset.n_cells > len(candidates):
        raise InputError(f"{subset.n_cells} cells were asked for; there are {len(candidates)} to choose from")
    chosen = np.random.default_rng(subset.seed).choice(candidates, subset.n_cells, replace=False)
    return np.isin(np.arange(len(ids)), chosen)


def _split(all_cells: CellTable, reasons: NDArray[np.uint8]) -> CellTable:
    """Return the table of the kept cells; the others are added to its ``dropped``."""
    is_kept = reasons == DropReason.KEPT
    is_dropped = ~is_kept
    ids = all_cells.ids
    if all_cells.nuclei is not None:
        # A nucleus without a cytosol was given an unused id; report its original one.
        ids = np.where(all_cells.areas[:, -1] == 0, all_cells.nuclei[:, 0], ids)
    dropped = DroppedCells(all_cells.slide[is_dropped], ids[is_dropped], reasons[is_dropped])
    return all_cells.part(is_kept, _concatenate([dropped, all_cells.dropped], DroppedCells))


def _concatenate(tables: Sequence[Table], kind: type[Table]) -> Table:
    """Concatenate the rows of tables."""
    columns: dict[str, Any] = {}
    for field in fields(kind):
        parts = [getattr(table, field.name) for table in tables]
        if isinstance(parts[0], DroppedCells):
            columns[field.name] = _concatenate(parts, DroppedCells)
        else:
            columns[field.name] = None if parts[0] is None else np.concatenate(parts)
    return kind(**columns)


def batches(plan: Plan, batch_size: BatchSize, chunk_cells: int = 1) -> Iterator[Batch]:
    """Yield the cells to extract in batches of neighbors, band by band down each slide, left to right in a band.

    If a chunk of the output holds several cells (``chunk_cells``), the order is group by group. A group is a range of
    rows that consists of whole chunks and is small enough to be kept in memory until complete. This is slow if ids
    are scattered over the slide, because each group reads the slide again.
    """
    cells, S = plan.cells, plan.program.recipe.tile_size
    rows = np.arange(len(cells)) if plan.rows is None else plan.rows
    if not len(rows):
        return
    corners = cells.centers - S // 2
    bands = cells.centers[:, 0] // (BAND_TILES * S)
    per_group = len(cells)
    if chunk_cells > 1:
        per_group = chunk_cells * max(GROUP_NBYTES // (chunk_cells * plan.program.tile_nbytes), 1)
    groups = np.arange(len(cells)) // per_group
    order = rows[np.lexsort((cells.ids[rows], corners[rows, 1], bands[rows], cells.slide[rows], groups[rows]))]
    breaks = np.flatnonzero(np.diff(groups[order]) | np.diff(cells.slide[order]) | np.diff(bands[order])) + 1
    for band in np.split(order, breaks):
        for rows in _cut_band(plan, band, corners[band, 1], batch_size):
            yield _batch(plan, np.sort(rows), corners)


def _cut_band(
    plan: Plan, band: NDArray[np.int64], left: NDArray[np.int64], batch_size: BatchSize
) -> Iterator[NDArray[np.int64]]:
    """Split the cells of one band, sorted by the left edges of their tiles, into batches of bounded size."""
    program, slide = plan.program, plan.slides[int(plan.cells.slide[band[0]])]
    S = program.recipe.tile_size
    max_cells = int(np.clip(batch_size.nbytes // program.tile_nbytes, 1, batch_size.n_cells))
    pixel_nbytes = slide.image.shape[0] * slide.image.dtype.itemsize
    pixel_nbytes += sum(raster.dtype.itemsize for raster in slide.masks.values())
    reach = batch_size.nbytes // (pixel_nbytes * (BAND_TILES + 1) * S) - S
    start = 0
    while start < len(band):
        end = int(np.searchsorted(left, left[start] + max(reach, 0), side="right"))
        end = min(end, start + max_cells)
        yield band[start:end]
        start = end


def _batch(plan: Plan, rows: NDArray[np.int64], corners: NDArray[np.int64]) -> Batch:
    slide = int(plan.cells.slide[rows[0]])
    H, W = plan.slides[slide].size
    y0, x0 = np.maximum(corners[rows].min(axis=0), 0).tolist()
    y1, x1 = np.minimum(corners[rows].max(axis=0) + plan.program.recipe.tile_size, (H, W)).tolist()
    return Batch(slide, rows, plan.cells.ids[rows], corners[rows], (y0, x0, y1, x1), plan.cells.boxes[rows])
