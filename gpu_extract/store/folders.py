"""The folders above an output: found, made and removed again."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

__all__ = ["make_folders", "nearest_existing", "remove_folders"]


def nearest_existing(folder: Path) -> Path:
    """Return the folder, or the nearest path above it that exists; it need not be a folder."""
    # lexists, so that a broken symbolic link counts: no folder can be made in its place.
    return next((path for path in (folder, *folder.parents) if os.path.lexists(path)), Path(folder.anchor or "."))


def make_folders(folder: Path) -> tuple[Path, ...]:
    """Make a folder and those above it; return the ones that were missing, outermost first.

    Raises
    ------
    OSError
        If one cannot be made. Those made before it are removed.
    """
    made: list[Path] = []
    for path in reversed((folder, *folder.parents)):
        if os.path.isdir(path):  # Path.is_dir raises if a name is too long
            continue
        try:
            path.mkdir()
        except FileExistsError:
            if path.is_dir():  # another run has just made it, and may need it
                continue
            remove_folders(made)
            raise
        except OSError:
            remove_folders(made)
            raise
        made.append(path)
    return tuple(made)


def remove_folders(made: Iterable[Path]) -> None:
    """Remove the folders that `make_folders` made, as far as they are empty."""
    for path in reversed(tuple(made)):
        with suppress(OSError):
            path.rmdir()
