"""Names of slides and channels: whole, unique, and such that HDF5 can store them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

__all__ = ["cleaned", "file_stem", "unique_names"]


def cleaned(name: str) -> str:
    """The name on one line, without what HDF5 cannot hold (NUL, lone surrogates) or a terminal should not print."""
    text = " ".join(name.encode("utf-8", "replace").decode().split())
    return "".join(character for character in text if character.isprintable())


def unique_names(names: Sequence[str], n_channels: int) -> tuple[str, ...]:
    """A different name for every channel, from the names found in the files.

    Where `names` are not as many as the channels none is used, since which belongs to which is unknown.
    Unnamed channels become ``ch0``, ``ch1``, ... by index; a name met again gets a suffix, as in ``DNA_2``.
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
    """The file's name without its folder and extension; ``.ome.tif`` and ``.zarr.zip`` count as one."""
    stem = re.sub(r"(?<=.)(\.ome)?(\.zarr(?=\.zip$))?\.[^.]+$", "", os.path.basename(path), flags=re.IGNORECASE)
    return cleaned(stem)
