"""Read ids of cells from a text file, such as SPARCSpy's ``classes.csv``."""

from __future__ import annotations

import os
import re
from decimal import Decimal
from pathlib import Path

from gpu_extract.errors import InputError
from gpu_extract.sources.texts import decoded

__all__ = ["read_ids"]

# 12, 12.0 and 1.2e+01 are the same id: classes.csv is written with str() or numpy.savetxt.
NUMBER = re.compile(r"\d{1,40}(\.\d{0,40})?(e[+-]?\d{1,2})?", re.ASCII | re.IGNORECASE)
MAX_ID = 2**64 - 1


def read_ids(path: str | os.PathLike[str]) -> list[int]:
    """Return the ids in a text file with one id per line: ascending, each once, without 0 (the background).

    Raises
    ------
    InputError
        If the file cannot be read or has other contents.
    """
    try:
        texts = decoded(Path(os.path.expanduser(path)).read_bytes()).split()
    except OSError as error:
        raise InputError(f"ids {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"ids {path} is not a text file; it must hold one id per line") from error
    return sorted({_id(path, number, text) for number, text in enumerate(texts, 1)} - {0})


def _id(path: str | os.PathLike[str], number: int, text: str) -> int:
    value = Decimal(text) if NUMBER.fullmatch(text) else Decimal(-1)
    if not 0 <= value <= MAX_ID or value != value.to_integral_value():
        raise InputError(
            f"entry {number} of ids {path} is {text[:40]!r}; the file must hold one whole number per line, "
            "without a header or further columns"
        )
    return int(value)
