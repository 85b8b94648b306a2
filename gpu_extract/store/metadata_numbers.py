"""Detection of slide metadata that are numbers: a dose of ``0.5`` is one, a well ``03`` is not."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["as_numbers"]

# Programs write exponents with a sign (1e-06, 1.5E+03). Without one it may be a name: 1E3 is well E3 of plate 1.
# Leading zeros belong to names too, as in 007.
NUMBER = re.compile(r"[+-]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-][0-9]+)?")
WHOLE_NUMBER = re.compile(r"[+-]?[0-9]+")
# Up to here float64 holds every whole number.
EXACT = 2**53


def as_numbers(texts: Sequence[str | None]) -> NDArray[np.int64] | NDArray[np.float64] | None:
    """Return texts as numbers, or None if any of them is not a number.

    Numbers have a decimal point, no leading zeros, and an exponent only with a sign.

    Parameters
    ----------
    texts : sequence of str or None
        None and empty texts are missing.

    Returns
    -------
    (n,) int64 or float64, or None
        int64 if all are whole numbers and none is missing, else float64 with NaN for missing ones. None also if
        different texts have the same value (1.1 and 1.10 may be sections) or a whole number is not exact.
    """
    given = [text for text in texts if text]
    if not given or not all(NUMBER.fullmatch(text) for text in given):
        return None
    if all(WHOLE_NUMBER.fullmatch(text) for text in given):
        whole = [int(text) for text in given]
        is_missing_any = len(given) < len(texts)
        largest = EXACT if is_missing_any else np.iinfo(np.int64).max
        if max(abs(value) for value in whole) > largest or not _are_as_many(given, whole):
            return None
        if not is_missing_any:
            return np.array(whole, np.int64)
    values = np.array([float(text) if text else np.nan for text in texts])
    known = values[~np.isnan(values)]
    return values if np.isfinite(known).all() and _are_as_many(given, known.tolist()) else None


def _are_as_many(texts: Sequence[str], values: Sequence[float]) -> bool:
    """Return whether different texts have different values."""
    return len(set(texts)) == len(set(values))
