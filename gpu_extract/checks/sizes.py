"""Whether cells have the size of cells, where the size of a pixel is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gpu_extract.checks.findings import Finding
from gpu_extract.labels import LabelStatistics
from gpu_extract.model import Slide

__all__ = ["check_sizes"]

# Median diameters in um beyond which a pixel size is hardly right: bacteria are 1 um wide, and muscle fibers 100 um.
SMALLEST, LARGEST = 1.0, 100.0
# A median of fewer cells says little, and a comparison of those of slides.
N_CELLS, N_COMPARED = 3, 10
# Cells of one kind differ by less between slides, in diameter.
DIFFERENT = 2.0


def check_sizes(
    slides: Sequence[Slide], planes: Sequence[Sequence[LabelStatistics]], *, in_um: bool = False
) -> list[Finding]:
    """Return a finding for each slide whose cells would be too large or too small for cells.

    Parameters
    ----------
    slides : sequence of Slide
    planes : sequence
        Of each slide, the statistics of its label planes; none is empty.
    in_um : bool
        Whether lengths in um are asked for. Tiles are then surely wrong if the pixel size of a file is, and one that
        the user gives is that of other cells.
    """
    findings = []
    for slide, of_slide in zip(slides, planes, strict=True):
        if slide.pixel_size is None or len(of_slide[-1]) < N_CELLS:
            continue
        area = float(np.median(of_slide[-1].counts)) * slide.pixel_size[0] * slide.pixel_size[1]
        diameter = 2 * math.sqrt(area / math.pi)
        if not SMALLEST <= diameter <= LARGEST:
            findings.append(_finding(slide, diameter, is_error=in_um and slide.pixel_size_source != "as given"))
    return findings + _different(slides, planes)


def _different(slides: Sequence[Slide], planes: Sequence[Sequence[LabelStatistics]]) -> list[Finding]:
    """Return a finding if cells of some slides are far larger in pixels, and pixel sizes do not tell why."""
    counted = [
        (2 * math.sqrt(float(np.median(of_slide[-1].counts)) / math.pi), slide)
        for slide, of_slide in zip(slides, planes, strict=True)
        if len(of_slide[-1]) >= N_COMPARED
    ]
    if len(counted) < 2 or all(slide.pixel_size is not None for _, slide in counted):
        return []
    (small, one), (large, other) = (pick(counted, key=lambda each: each[0]) for pick in (min, max))
    if large < DIFFERENT * small:
        return []
    problem = (
        f"cells of slide {other.name} have a median diameter of {large:.3g} pixels and those of slide {one.name} of "
        f"{small:.3g}, as at another magnification"
    )
    remedy = "give the pixel sizes, and bring all slides to one with --scale UM (scale=)"
    return [Finding("different sizes", problem, remedy)]


def _finding(slide: Slide, diameter: float, *, is_error: bool) -> Finding:
    """Return the finding that cells of a slide have that diameter, in um."""
    assert slide.pixel_size is not None
    y, x = (side / scale for side, scale in zip(slide.pixel_size, slide.scale, strict=True))
    size = f"{y:.4g}" if math.isclose(y, x, rel_tol=0.01) else f"{y:.4g} x {x:.4g}"
    source = slide.pixel_size_source or slide.image.source
    cells = f"cells of slide {slide.name} have a median diameter of {diameter:.3g} um"
    problem = f"{cells} with pixels of {size} um ({source})"
    remedy = "the pixel size is likely wrong: give it in um with --pixel-size (pixel_size=)"
    return Finding("size", problem, remedy, is_error=is_error, slide=slide.name)
