"""Names of slides and channels: complete, unique, and valid in HDF5."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

__all__ = ["cleaned", "file_stem", "unique_names"]


def cleaned(name: str) -> str:
    """Return the name on one line, without characters that HDF5 cannot store or a terminal should not print.

    HDF5 cannot store NUL and lone surrogates.
    """
    text = " ".join(name.encode("utf-8", "replace").decode().split())
    return "".join(character for character in text if character.isprintable())


def unique_names(names: Sequence[str], n_channels: int) -> tuple[str, ...]:
    """Return a unique name for every channel, from the names found in the files.

    If the number of ``names`` differs from that of channels, none is used, because their order is unknown. Unnamed
    channels become ``ch0``, ``ch1``, ... by index; a repeated name gets a suffix, for example ``DNA_2``.
    """
    found = names if len(names) == n_channels else [""] * n_channels
    unique: list[str] = []
    for index, name in enumerate(found):
        base = cleaned(name) or f"ch{index}"
        candidate, repeat = base, 1
        while candidate in unique:
            repeat += 1
            candidate = f"{base}_{repeat}"
        unique.append(candidate)
    return tuple(unique)


def file_stem(path: str) -> str:
    """Return the name of a file without its folder and extension; ``.ome.tif`` and ``.zarr.zip`` are one extension."""
    stem = re.sub(r"(?<=.)(\.ome)?(\.zarr(?=\.zip$))?\.[^.]+$", "", os.path.basename(path), flags=re.IGNORECASE)
    return cleaned(stem)
