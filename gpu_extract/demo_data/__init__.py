"""A real slide that ships with the package: human HT29 cells, three channels, 316 cells; see SOURCE.md."""

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
    """Where the image, (3, 512, 512) uint8, and its two label planes, (512, 512) uint16, are installed."""
    folder = Path(str(resources.files(__name__)))
    return DemoPaths(
        image=folder / "ht29_image.ome.tif",
        nucleus=folder / "ht29_nucleus.tif",
        cytosol=folder / "ht29_cytosol.tif",
    )
