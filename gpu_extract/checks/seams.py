"""Whether labels are cut along straight lines, as where tiles of a slide were segmented apart.

The boxes of cells begin and end anywhere. Where many of them end, or begin, in one row or column, they were cut there;
where many end and others begin beside them, one cell has two ids.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gpu_extract.checks.findings import Finding
from gpu_extract.labels import LabelStatistics
from gpu_extract.listing import listed
from gpu_extract.model import Slide

__all__ = ["check_seams"]

# Fewer cells tell nothing.
N_CELLS = 20
# Boxes that end in one row by chance, in standard deviations above the mean and then so many more: those that have one
# beside them that begins there, and any.
JOINED, CUT = (4.0, 2.5), (6.0, 6.0)
# Cells in a regular grid end in common rows, too; then most of them do.
MOST = 0.8
# An area has four edges; more lines are those of cells that repeat.
N_EDGES = 8


def check_seams(name: str, slides: Sequence[Slide], labels: Sequence[LabelStatistics]) -> list[Finding]:
    """Check whether labels of a plane are cut along straight lines.

    Parameters
    ----------
    name : str
        ``nucleus`` or ``cytosol``.
    slides : sequence of Slide
    labels : sequence of LabelStatistics
        Of that plane, for each slide; none is empty.
    """
    findings = []
    for slide, of_slide in zip(slides, labels, strict=True):
        if len(of_slide) < N_CELLS:
            continue
        where = f"{name} labels {slide.masks[name].source}"
        joined, cut = _seams(of_slide.boxes, slide.size)
        if joined:
            problem = f"{where} are cut at {_text(joined)}, and other ids begin there: one cell has two ids"
            remedy = "segment overlapping tiles and join them, or extract a file for each tile"
            findings.append(Finding(f"{name} seams", problem, remedy, slide=slide.name))
        elif cut:
            problem = f"{where} are cut at {_text(cut)}, where the area ends that was segmented"
            remedy = "segment the whole image, or remove the cells at that edge"
            findings.append(Finding(f"{name} cut", problem, remedy, slide=slide.name))
    return findings


def _seams(boxes: NDArray[np.int64], size: tuple[int, int]) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Return the rows and columns, as (axis, pixel), at which cells are cut in two, and at which they are cut."""
    joined: list[tuple[str, int]] = []
    cut: list[tuple[str, int]] = []
    is_joined, is_cut = np.zeros(len(boxes), bool), np.zeros(len(boxes), bool)
    for axis, length in enumerate(size):
        starts = np.bincount(boxes[:, axis], minlength=length + 1)[1:length]
        ends = np.bincount(boxes[:, axis + 2], minlength=length + 1)[1:length]
        mean = len(boxes) / length
        least, many = (mean + times * np.sqrt(mean) + more for times, more in (JOINED, CUT))
        for at in (np.flatnonzero(np.minimum(starts, ends) >= least) + 1).tolist():
            halves = _halves(boxes, axis, at)
            if np.count_nonzero(halves) >= 2 * least:
                joined.append(("yx"[axis], at))
                is_joined |= halves
        for at in (np.flatnonzero(np.maximum(starts, ends) >= many) + 1).tolist():
            cut.append(("yx"[axis], at))
            is_cut |= (boxes[:, axis] == at) | (boxes[:, axis + 2] == at)
    if joined:
        return (joined, []) if is_joined.mean() < MOST else ([], [])
    return [], cut if len(cut) <= N_EDGES and is_cut.mean() < MOST else []


def _halves(boxes: NDArray[np.int64], axis: int, at: int) -> NDArray[np.bool_]:
    """Return which boxes end, or begin, at a row or column where one beside them begins, or ends."""
    other = 1 - axis
    ends, starts = np.flatnonzero(boxes[:, axis + 2] == at), np.flatnonzero(boxes[:, axis] == at)
    low = np.maximum(boxes[ends, None, other], boxes[None, starts, other])
    high = np.minimum(boxes[ends, None, other + 2], boxes[None, starts, other + 2])
    beside = low < high
    halves = np.zeros(len(boxes), bool)
    halves[ends[beside.any(axis=1)]], halves[starts[beside.any(axis=0)]] = True, True
    return halves


def _text(seams: Sequence[tuple[str, int]]) -> str:
    return listed([f"{axis} {at}" for axis, at in seams], limit=3)
