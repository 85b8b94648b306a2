"""A survey as lines of text, for a terminal or a log."""

from __future__ import annotations

from collections.abc import Iterator

from gpu_extract.surveying import Survey

__all__ = ["survey_lines"]

BAR_WIDTH = 40


def survey_lines(survey: Survey) -> Iterator[str]:
    """What will happen, from the cells to the time it takes."""
    plan, cells, recipe = survey.plan, survey.plan.cells, survey.plan.program.recipe
    where = f"{len(plan.slides):,} slides" if len(plan.slides) > 1 else "one slide"
    yield f"{len(cells):,} cells of {where} on device {survey.device}, {survey.threads} threads"
    for reason, n in cells.dropped.counts().items():
        yield f"dropped {n:,}: {reason}"
    yield f"planes: {', '.join(plan.plane_names)}"
    yield f"tiles of {_square(recipe.tile_size)} pixels{_in_um(survey)}, {plan.program.output_dtype}"
    yield from _sizes(survey)
    yield "channels:"
    width = max(len(channel.name) for channel in survey.channels)
    for channel in survey.channels:
        bad = f", {channel.n_nonfinite:,} NaN or infinite" if channel.n_nonfinite else ""
        if bad and recipe.nonfinite == "error":
            bad += " (a run refuses them; see nonfinite = 'zero')"
        values = "no finite pixel" if channel.lowest is None else f"{channel.lowest:g} to {channel.highest:g}"
        yield f"  {channel.name:<{width}}  {channel.dtype}  {values}{bad}"
    if survey.share_read < 1:
        yield f"  (of {survey.share_read:.0%} of the pixels)"
    if survey.problems:
        yield "labels:"
    for problem in survey.problems:
        some = ", ".join(_example(survey, *example) for example in problem.examples)
        yield f"  {problem.count:,} x {problem.problem} ({some}{', ...' * (problem.count > len(problem.examples))})"
        if problem.remedy:
            yield f"    {problem.remedy}"
    yield f"{plan.nbytes / 1e6:,.1f} MB before compression, about {survey.file_nbytes / 1e6:,.1f} MB in the file"
    yield (
        f"about {_duration(survey.seconds)} and {survey.memory_nbytes / 1e6:,.0f} MB of memory, "
        f"by {survey.n_tried:,} of the cells extracted on trial"
    )


def _sizes(survey: Survey) -> Iterator[str]:
    """The distribution of the cells' sizes against the tile."""
    edges, counts = survey.histogram()
    size = survey.plan.program.recipe.tile_size
    yield "cells by the side of the tile that holds them, in pixels:"
    for first, after, n in zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True):
        bar = "#" * -(-BAR_WIDTH * n // max(int(counts.max()), 1))
        mark = "  <- the tile" if first <= size < after else ""
        yield f"  {first:>5} to {after - 1:<5} {bar:<{BAR_WIDTH}} {n:>9,}{mark}"
    most, every = survey.plan.fitting_tile_size(0.99), survey.plan.fitting_tile_size(1.0)
    n_truncated = int(survey.plan.cells.truncated.sum())
    yield f"{n_truncated:,} cells do not fit: 99 % need {_square(most)}, all need {_square(every)}"
    if n_truncated > 0.01 * len(survey.plan.cells) or size > 2 * every:
        yield f"suggested: --size {most if n_truncated else every}"


def _in_um(survey: Survey) -> str:
    """The side of a tile in um, where all slides have one pixel size."""
    (y, x), *others = {slide.pixel_size or (0.0, 0.0) for slide in survey.plan.slides}
    return f" ({survey.plan.program.recipe.tile_size * y:.4g} um)" if y == x > 0 and not others else ""


def _example(survey: Survey, slide: str, cell_id: int) -> str:
    return str(cell_id) if len(survey.plan.slides) == 1 else f"{slide} {cell_id}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 0.1):.1f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def _square(size: int) -> str:
    return f"{size} x {size}"
