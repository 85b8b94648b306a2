"""A plan and a survey as lines of text, for a terminal or a log."""

from __future__ import annotations

from collections.abc import Iterator

from gpu_extract.planning import Plan
from gpu_extract.surveying import Survey, size_histogram

__all__ = ["plan_lines", "survey_lines"]

BAR_WIDTH = 40


def plan_lines(plan: Plan) -> Iterator[str]:
    """Yield what an extraction will do: cells kept and dropped, planes, tiles, sizes of the cells, bytes."""
    cells, recipe = plan.cells, plan.program.recipe
    where = f"{len(plan.slides):,} slides" if len(plan.slides) > 1 else "one slide"
    yield f"{len(cells):,} cells of {where}"
    for reason, n in cells.dropped.counts().items():
        yield f"dropped {n:,}: {reason}"
    yield f"planes: {', '.join(plan.plane_names)}"
    if plan.masking:
        yield plan.masking
    yield f"tiles of {_square(recipe.tile_size)} pixels{_in_um(plan)}, {plan.program.output_dtype}"
    yield from _sizes(plan)
    yield f"{plan.nbytes / 1e6:,.1f} MB before compression"


def survey_lines(survey: Survey) -> Iterator[str]:
    """Yield the lines of the plan, then pixel values, label problems, and the estimates of a run."""
    yield from plan_lines(survey.plan)
    yield "channels:"
    width = max(len(channel.name) for channel in survey.channels)
    for channel in survey.channels:
        bad = f", {channel.n_nonfinite:,} NaN or infinite" if channel.n_nonfinite else ""
        if bad and survey.plan.program.recipe.nonfinite == "error":
            bad += " (an error in a run; nonfinite = 'zero' in a recipe file replaces them with 0)"
        values = "no finite pixel" if channel.lowest is None else f"{channel.lowest:g} to {channel.highest:g}"
        yield f"  {channel.name:<{width}}  {channel.dtype}  {values}{bad}"
    if survey.share_read < 1:
        yield f"  (from {survey.share_read:.0%} of the pixels)"
    if survey.problems:
        yield "label problems:"
    for problem in survey.problems:
        some = ", ".join(_example(survey, *example) for example in problem.examples)
        yield f"  {problem.count:,} x {problem.problem} ({some}{', ...' * (problem.count > len(problem.examples))})"
        if problem.remedy:
            yield f"    {problem.remedy}"
    yield (
        f"about {survey.file_nbytes / 1e6:,.1f} MB in the file, {_duration(survey.seconds)} and "
        f"{survey.memory_nbytes / 1e6:,.0f} MB of memory on device {survey.device} with {survey.threads} threads, "
        f"estimated from {survey.n_tried:,} cells"
    )


def _sizes(plan: Plan) -> Iterator[str]:
    """Yield the distribution of the cells' sizes, and the tile sizes that hold them."""
    if not len(plan.cells):
        return
    edges, counts = size_histogram(plan)
    size = plan.program.recipe.tile_size
    yield "cells by the side of the smallest tile that holds them, in pixels:"
    for first, after, n in zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True):
        bar = "#" * -(-BAR_WIDTH * n // max(int(counts.max()), 1))
        mark = "  <- the tile" if first <= size < after else ""
        yield f"  {first:>5} to {after - 1:<5} {bar:<{BAR_WIDTH}} {n:>9,}{mark}"
    most, every = plan.fitting_tile_size(0.99), plan.fitting_tile_size(1.0)
    n_truncated = int(plan.cells.truncated.sum())
    yield f"{n_truncated:,} cells do not fit: 99 % need {_square(most)}, all need {_square(every)}"
    if n_truncated > 0.01 * len(plan.cells) or size > 2 * every:
        yield f"suggested: --size {most if n_truncated else every}"


def _in_um(plan: Plan) -> str:
    """Return the side of a tile in um, if all slides have the same square pixels."""
    (y, x), *others = {slide.pixel_size or (0.0, 0.0) for slide in plan.slides}
    return f" ({plan.program.recipe.tile_size * y:.4g} um)" if y == x > 0 and not others else ""


def _example(survey: Survey, slide: str, cell_id: int) -> str:
    return str(cell_id) if len(survey.plan.slides) == 1 else f"{slide} {cell_id}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 0.1):.1f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def _square(size: int) -> str:
    return f"{size} x {size}"
