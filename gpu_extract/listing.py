"""Lists of ids, names and files within a message, which stays one short line however many there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Sequence
from itertools import islice, takewhile
from typing import TypeVar

__all__ = ["first_few", "first_lines", "listed", "listed_apart", "repeated"]

T = TypeVar("T", bound=Hashable)


# Examples, which show a pattern, and choices, among which a reader looks for a name.
N_EXAMPLES, N_CHOICES = 3, 20
# Lines, such as warnings, of which each tells something else.
N_LINES = 5


def first_few(items: Iterable[object], limit: int = N_EXAMPLES, separator: str = ", ") -> str:
    """Return up to ``limit`` items as text, and dots for the others: ``A01, A02, A03, ...``."""
    some = list(map(str, islice(items, limit + 1)))
    return separator.join([*some[:limit], "..."] if len(some) > limit else some)


def listed(items: Collection[object], limit: int = N_CHOICES) -> str:
    """Return `first_few` of the items, with their number if some are left out: ``A01, A02, ... (1,000 in all)``."""
    return first_few(items, limit) + (f" ({len(items):,} in all)" if len(items) > limit else "")


def first_lines(lines: Sequence[str], limit: int = N_LINES) -> list[str]:
    """Return up to ``limit`` lines, and if some are left out a line with their number."""
    return [*lines[:limit], *([f"... ({len(lines):,} in all)"] if len(lines) > limit else [])]


def listed_apart(one: Sequence[object], other: Sequence[object]) -> tuple[str, str]:
    """Return two unequal lists as text; of long ones, only from where they differ."""
    start = 0
    if max(len(one), len(other)) > N_CHOICES:
        same = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
        start = max(len(list(same)) - 1, 0)  # with the last that is the same, as one list may end there
    before, limit = ("..., ", N_EXAMPLES) if start else ("", N_CHOICES)
    return before + first_few(one[start:], limit), before + first_few(other[start:], limit)


def repeated(items: Iterable[T]) -> list[T]:
    """Return the items that occur more than once, each once."""
    return [item for item, n in Counter(items).items() if n > 1]
