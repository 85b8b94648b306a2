"""What a check finds, the words by which a user accepts it, and the decision: an error, or lines of warning."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import InputError, LabelError
from gpu_extract.listing import first_few, listed

__all__ = ["TRUST", "Checked", "Finding", "Trust", "as_trust", "conclude", "some_ids"]

# What a user can accept, by the kind of mistake that it would be:
#   ids        ids that are not those of cells: wrapped, clipped, repeated, or numbered apart in the two planes
#   binary     a label that is a class of pixels (foreground, background, nucleus) and not a cell
#   planes     one plane in the place of another: nucleus and cytosol swapped, an image given as labels
#   placement  planes that are shifted or mirrored against each other
Trust = Literal["ids", "binary", "planes", "placement"]
TRUST: tuple[Trust, ...] = get_args(Trust)


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with the meaning of a slide's label planes, or might be.

    Parameters
    ----------
    kind : str
        Findings of one kind are merged to one line.
    problem : str
        What was given and why that is no good, for the slide that has it.
    remedy : str
        What to do.
    trust : Trust or None
        The word by which the user accepts it; None for what the remedy settles.
    is_error : bool
        Whether cells would surely be wrong.
    slide : str
        Name of the slide; empty where all slides have it.
    """

    kind: str
    problem: str
    remedy: str
    trust: Trust | None = None
    is_error: bool = False
    slide: str = ""


@dataclass(frozen=True)
class Checked:
    """What the user should know of slides whose cells may be written.

    Parameters
    ----------
    warnings : tuple of str
        One line each, those about what was accepted included.
    trusted : tuple of str
        What would be an error if the user had not accepted it, one line each, beginning with the word: to be
        recorded in the file.
    unsure : tuple of (n,) uint64
        For each slide the ids, ascending, whose pixels are not those of one cell; their boxes tell no cell's size.
    """

    warnings: tuple[str, ...] = ()
    trusted: tuple[str, ...] = ()
    unsure: tuple[NDArray[np.uint64], ...] = field(default_factory=tuple)


def as_trust(given: str | Iterable[str] | None) -> frozenset[Trust]:
    """Return what the user accepts: words, or one text of words with commas between them.

    Raises
    ------
    InputError
        If a word is unknown; the message names those there are.
    """
    words = given.split(",") if isinstance(given, str) else list(given or ())
    wanted = {word.strip() for word in words if word.strip()}
    unknown = sorted(wanted - set(TRUST))
    if unknown:
        raise InputError(
            f"trust is {listed([*map(repr, unknown)])}; it must be one or more of {', '.join(TRUST)} (--trust WHAT)"
        )
    return cast(frozenset[Trust], frozenset(wanted))


def conclude(
    findings: Iterable[Finding], trust: frozenset[Trust], unsure: Sequence[NDArray[np.uint64]] = ()
) -> Checked:
    """Raise the first error that is not accepted; return the lines of all else.

    Raises
    ------
    LabelError
        With the problem, the remedy, and the option that accepts it.
    """
    by_kind: dict[tuple[str, bool], list[Finding]] = {}
    for finding in findings:
        by_kind.setdefault((finding.kind, finding.is_error), []).append(finding)
    warnings, trusted = [], []
    for alike in by_kind.values():
        first, problem = alike[0], _merged(alike)
        if first.trust in trust:
            warnings.append(f'{problem} (accepted by --trust {first.trust}, trust="{first.trust}")')
            if first.is_error:
                trusted.append(f"{first.trust}: {problem}")
        elif first.is_error:
            accepts = f'; --trust {first.trust} (trust="{first.trust}") accepts it' if first.trust else ""
            raise LabelError(f"{problem}; {first.remedy}{accepts}")
        else:
            warnings.append(f"{problem}; {first.remedy}" if first.remedy else problem)
    return Checked(tuple(warnings), tuple(trusted), tuple(unsure))


def _merged(alike: Sequence[Finding]) -> str:
    """Return the problem of the first of findings of one kind, and which other slides have it."""
    others = [finding.slide for finding in alike[1:] if finding.slide]
    if not others:
        return alike[0].problem
    return f"{alike[0].problem} (and alike in {len(others)} more slide{'s' * (len(others) > 1)}: {first_few(others)})"


def some_ids(ids: NDArray[np.uint64]) -> str:
    """Return the first few ids as text: ``ids 2, 5, 9, ...``."""
    return ("id " if len(ids) == 1 else "ids ") + first_few(ids)
