"""Names of axes, as files and arrays state them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gpu_extract.errors import InputError
from gpu_extract.listing import listed

__all__ = ["axis_positions"]

# Names that libraries and people give to the axes.
NAMES = {
    "t": ("t", "time", "times", "timepoint", "timepoints", "frame", "frames"),
    "z": ("z", "slice", "slices", "depth"),
    "c": ("c", "ch", "channel", "channels", "band", "bands", "wavelength", "wavelengths", "marker", "markers"),
    "y": ("y", "row", "rows", "height"),
    "x": ("x", "col", "cols", "column", "columns", "width"),
}
LETTERS = {name: letter for letter, names in NAMES.items() for name in names}
# Names that xarray and netCDF4 make up for axes without a name.
PLACEHOLDER = re.compile(r"(dim_|phony_dim_)\d+")
# Axes of an array that does not name them, counted from the last.
UNNAMED = "tcyx"


def axis_positions(
    subject: str, names: Sequence[str], shape: Sequence[int], error: type[InputError] = InputError
) -> dict[str, int] | None:
    """Return the position of each named axis, by its letter: some of t, z and c, always y and x.

    Parameters
    ----------
    subject : str
        The array, in messages.
    names : sequence of str
        Names of all axes, in any case; an empty one for an axis without a name.
    shape : sequence of int
    error : type
        Class of the exception.

    Returns
    -------
    dict of str to int, or None
        Without axes of length 1, except y and x, and c if it is named so. None if no axis has a name, or if those that
        have one are where they are in an array without names, (c, y, x).

    Raises
    ------
    InputError
        If names are unknown, repeated, missing, or too many or few. An axis of length 1 may have any name.
    """
    known = ["" if PLACEHOLDER.fullmatch(name.lower()) else name.strip() for name in names]
    if not any(known):
        return None
    there = listed([f"{name or 'without a name'} ({n})" for name, n in zip(known, shape, strict=False)])
    if len(known) != len(shape):
        raise error(f"{subject} names the axes {listed(known)} and has {len(shape)}; name each of them")
    letters = [LETTERS.get(name.lower(), "") for name in known]
    unnamed = [index for index, name in enumerate(known) if not name and shape[index] > 1]
    if unnamed:
        default = UNNAMED[-len(shape) :] if len(shape) < len(UNNAMED) else ""
        if default and all(letter in ("", at) for letter, at in zip(letters, default, strict=True)):
            return None
        raise error(f"{subject} has the axes {there}; name all of them: t, z, c, y and x")
    unknown = [name for name, letter, n in zip(known, letters, shape, strict=True) if not letter and n > 1]
    if unknown:
        raise error(
            f"{subject} has the axes {there}, of which {listed(unknown)} is unknown; known are t, z, c, y and x: "
            "rename it, or give one part of it"
        )
    found: dict[str, int] = {}
    for index, (letter, n) in enumerate(zip(letters, shape, strict=True)):
        if not letter or (letter in "tz" and n == 1):
            continue
        if letter in found:
            raise error(f"{subject} has the axes {there}, two of which are {letter}; name each differently")
        found[letter] = index
    if not {"y", "x"} <= found.keys():
        raise error(f"{subject} has the axes {there}; it must have y and x")
    return found
