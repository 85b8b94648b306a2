"""Whether label planes and images mean what they should, checked before any cell is written.

Planning knows the area, place and box of every label, and nearly every mistake of meaning shows there. Pixels are read
in a few windows only, mostly of suspicious labels, so that the checks take less than a hundredth of a run. Where cells
would surely be wrong they raise a `LabelError` that names the word by which the user accepts the slides as they are
(``--trust ids``); where cells may be wrong they return warnings.

`check_slides` needs the label planes only; `check_images` reads the image as well. `planes` and `seams` check each
label plane by itself, `pairs` the two against each other, `sizes` and `repeats` the slides against each other, and
`channels` and `alignment` the image. `counting` counts the components of a label, `matching_maps` compares coarse maps,
and `findings` has the words and the decision.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from gpu_extract.checks.alignment import check_alignment, check_order
from gpu_extract.checks.channels import check_channels
from gpu_extract.checks.findings import TRUST, Checked, Finding, Trust, as_trust, conclude
from gpu_extract.checks.pairs import check_pairs
from gpu_extract.checks.planes import check_plane
from gpu_extract.checks.repeats import check_repeats
from gpu_extract.checks.seams import check_seams
from gpu_extract.checks.sizes import check_sizes
from gpu_extract.labels import LabelStatistics
from gpu_extract.model import Slide
from gpu_extract.recipe import Recipe

__all__ = ["TRUST", "Checked", "Trust", "as_trust", "check_images", "check_labels", "check_slides"]

# Slides of a dataset whose images are sampled: so many, and one more for so many slides. What is wrong with one is
# mostly wrong with all.
N_SAMPLED, SLIDES_PER_SAMPLED = 4, 32


def check_slides(
    slides: Sequence[Slide],
    planes: Sequence[Sequence[LabelStatistics]],
    recipe: Recipe,
    trust: Collection[Trust] = (),
    *,
    in_um: bool = False,
) -> Checked:
    """Check the label planes of slides that are alike in their planes; the image is not read.

    Parameters
    ----------
    slides : sequence of Slide
        As they were given: labels neither paired by overlap nor reduced to their largest component.
    planes : sequence
        Of each slide, the statistics of its label planes, in their order.
    recipe : Recipe
    trust : collection of str
        What the user accepts; see `Trust`.
    in_um : bool
        Whether lengths in um are asked for, so that pixel sizes matter.

    Returns
    -------
    Checked

    Raises
    ------
    LabelError
        If cells would surely be wrong. The line names the remedy, and the word that accepts it.
    """
    # A plane without any label has a line of its own, in planning.
    rows = [index for index, of_slide in enumerate(planes) if all(map(len, of_slide))]
    unsure = [np.zeros(0, np.uint64)] * len(slides)
    if not rows:
        return Checked(unsure=tuple(unsure))
    some, of_some = [slides[index] for index in rows], [planes[index] for index in rows]
    names, findings, doubtful = some[0].mask_names, list[Finding](), list[Sequence[NDArray[np.uint64]]]()
    for m, name in enumerate(names):
        found, ids = check_plane(name, some, [each[m] for each in of_some], largest=recipe.pieces == "largest")
        findings += found + check_seams(name, some, [each[m] for each in of_some])
        if recipe.match == "id" or name == names[-1]:  # nuclei that are paired by overlap get other ids
            doubtful.append(ids)
    if len(names) == 2:
        found, ids = check_pairs(some, of_some, recipe)
        findings += found
        doubtful.append(ids)
    findings += check_sizes(some, of_some, in_um=in_um) + check_repeats(some, of_some)
    for index, *of_slide in zip(rows, *doubtful, strict=True):
        if any(map(len, of_slide)):
            unsure[index] = np.unique(np.concatenate(of_slide))
    return conclude(findings, frozenset(trust), unsure)


def check_labels(
    slide: Slide,
    planes: Sequence[LabelStatistics],
    recipe: Recipe,
    trust: Collection[Trust] = (),
    *,
    in_um: bool = False,
) -> Checked:
    """Check the label planes of one slide; see `check_slides`, which tells more of slides that belong together."""
    return check_slides([slide], [planes], recipe, trust, in_um=in_um)


def check_images(
    slides: Sequence[Slide], statistics: Callable[[Slide], Sequence[LabelStatistics]], trust: Collection[Trust] = ()
) -> Checked:
    """Check the images of some slides against their labels, by a few windows.

    Parameters
    ----------
    slides : sequence of Slide
        Each has a label in some plane.
    statistics : callable
        Returns the statistics of a slide's label planes.
    trust : collection of str
        What the user accepts; see `Trust`.

    Raises
    ------
    LabelError
        If labels surely are not those of their image.
    """
    findings: list[Finding] = []
    n = min(max(N_SAMPLED, len(slides) // SLIDES_PER_SAMPLED), len(slides))
    sampled = [slides[k * len(slides) // n] for k in range(n)]
    planes = [statistics(slide) for slide in sampled]
    for slide, of_slide in zip(sampled, planes, strict=True):
        findings += check_channels(slide, max(of_slide, key=len).boxes)
        findings += check_alignment(slide, of_slide)
    findings += check_order(sampled, planes)
    return conclude(findings, frozenset(trust))
