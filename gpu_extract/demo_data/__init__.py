"""The sample slide that ships with the package: 316 human HT29 cells in three channels; see SOURCE.md."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import NamedTuple

__all__ = ["DemoPaths", "paths"]


class DemoPaths(NamedTuple):
    """The files of the sample slide."""

    image: Path
    nucleus: Path
    cytosol: Path


def paths() -> DemoPaths:
    """Return the paths of the image, (3, 512, 512) uint8, and of its two label planes, (512, 512) uint16."""
    folder = Path(str(resources.files(__name__)))
    return DemoPaths(
        image=folder / "ht29_image.ome.tif",
        nucleus=folder / "ht29_nucleus.tif",
        cytosol=folder / "ht29_cytosol.tif",
    )
