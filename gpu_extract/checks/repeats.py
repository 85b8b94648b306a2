"""Whether slides have label planes, or images, of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np

from gpu_extract.checks.findings import Finding
from gpu_extract.labels import LabelStatistics
from gpu_extract.listing import first_few
from gpu_extract.model import Slide

__all__ = ["check_repeats"]

# Fewer cells, all equal in place and area, can be a test pattern or a single cell in the middle of its picture.
N_CELLS = 3
# Side, in pixels, of the window of two images that is compared.
SIDE = 128


def check_repeats(slides: Sequence[Slide], planes: Sequence[Sequence[LabelStatistics]]) -> list[Finding]:
    """Return a finding for slides that have equal labels, and say whether their images are equal too.

    One segmentation of several images is not always wrong: an image may be a cycle of the same cells.

    Parameters
    ----------
    slides : sequence of Slide
    planes : sequence
        Of each slide, the statistics of its label planes; none is empty.
    """
    alike: dict[bytes, list[int]] = {}
    for index, of_slide in enumerate(planes):
        if len(of_slide[-1]) >= N_CELLS:
            alike.setdefault(_content(of_slide), []).append(index)
    findings = []
    for first, *others in alike.values():
        equal = [index for index in others if _are_equal(slides[first], slides[index], planes[first][-1])]
        for which, what in ((equal, "images and labels"), ([k for k in others if k not in equal], "labels")):
            if which:
                findings.append(_finding(what, [slides[index] for index in (first, *which)]))
    return findings


def _content(planes: Sequence[LabelStatistics]) -> bytes:
    """Return what is equal where label planes are equal."""
    return b"".join(
        np.ascontiguousarray(getattr(plane, field.name)).tobytes() for plane in planes for field in fields(plane)
    )


def _are_equal(one: Slide, other: Slide, labels: LabelStatistics) -> bool:
    """Return whether two slides have equal pixels about their first cell."""
    if one.image.shape != other.image.shape:
        return False
    y, x = labels.boxes[0, :2].tolist()
    box = y, x, min(y + SIDE, one.size[0]), min(x + SIDE, one.size[1])
    return np.array_equal(one.image.read(*box), other.image.read(*box))


def _finding(what: str, slides: Sequence[Slide]) -> Finding:
    names = first_few([slide.name for slide in slides])
    if what == "labels":
        problem = f"{len(slides)} slides have equal labels and different images: {names}"
        remedy = "if their cells are not the same, give each slide its own label plane"
    else:
        problem = f"{len(slides)} slides are equal in labels and pixels, so that cells count twice: {names}"
        remedy = "list each once"
    return Finding(f"equal {what}", problem, remedy, slide=slides[0].name)
