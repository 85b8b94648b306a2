"""Many slides as one dataset: a table of their files and labels."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_extract.errors import InputError

__all__ = ["SlideInput", "as_slide_input", "read_slide_table"]

PLANES = ("nucleus", "cytosol")
COLUMNS = ("image", *PLANES, "pixel_size")
# Within a cell of the table, between the files that are the channels of one slide.
CHANNEL_SEPARATOR = ";"


@dataclass(frozen=True)
class SlideInput:
    """What a user gives for one slide.

    Parameters
    ----------
    image, nucleus, cytosol
        As for `gpu_extract.extract`.
    labels : mapping of str to str
        The slide's own labels, for example ``{"well": "D03"}``; a column of ``obs`` each.
    pixel_size : float or (y, x), um, optional
        Size of a pixel; goes before that of the whole run, which goes before what the image says.
    """

    image: Any
    nucleus: Any = None
    cytosol: Any = None
    labels: Mapping[str, str] = field(default_factory=dict)
    pixel_size: float | Sequence[float] | None = None


def as_slide_input(given: SlideInput | Mapping[str, Any]) -> SlideInput:
    """A slide from a mapping: ``image``, ``nucleus``, ``cytosol`` and ``pixel_size``; all else are its labels."""
    if isinstance(given, SlideInput):
        return given
    if "image" not in given:
        raise InputError(f"a slide has {', '.join(map(str, given)) or 'nothing'}, and no image; give image=...")
    labels = {str(key): str(value) for key, value in given.items() if key not in COLUMNS}
    return SlideInput(given["image"], given.get("nucleus"), given.get("cytosol"), labels, given.get("pixel_size"))


def read_slide_table(path: Path) -> list[SlideInput]:
    """The slides of a CSV file with columns image, nucleus, cytosol, pixel_size, then any labels.

    Paths are relative to the table; several images of a slide, its channels, are separated by semicolons. An empty
    nucleus or cytosol is one that is not there; an empty pixel_size (um) is not known.

    Raises
    ------
    InputError
        If the file cannot be read, or is not such a table.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file, strict=True))
    except OSError as error:
        raise InputError(f"slides {path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"slides {path} is not a CSV table: {error}") from error
    rows = [[cell.strip() for cell in row] for row in rows if any(cell.strip() for cell in row)]
    if len(rows) < 2:
        raise InputError(f"slides {path} has no slide; its first line names the columns, and one line a slide follows")
    header = rows[0]
    _check_header(path, header)
    return [_slide(path, header, row, number) for number, row in enumerate(rows[1:], 2)]


def _check_header(path: Path, header: Sequence[str]) -> None:
    if "image" not in header or not set(PLANES) & set(header):
        raise InputError(
            f"slides {path} has the columns {', '.join(header)}; it needs image, and nucleus or cytosol or both"
        )
    if "" in header or len(set(header)) < len(header):
        raise InputError(f"slides {path} has the columns {', '.join(header)}; each must have a name of its own")


def _slide(path: Path, header: Sequence[str], row: Sequence[str], number: int) -> SlideInput:
    if len(row) != len(header):
        raise InputError(f"slides {path}: row {number} has {len(row)} cells for {len(header)} columns")
    cells = dict(zip(header, row, strict=True))
    if not cells["image"]:
        raise InputError(f"slides {path}: row {number} has no image")
    images = [path.parent / name.strip() for name in cells["image"].split(CHANNEL_SEPARATOR)]
    planes = {name: path.parent / cells[name] if cells.get(name) else None for name in PLANES}
    labels = {name: value for name, value in cells.items() if name not in COLUMNS}
    size = _pixel_size(f"slides {path}: row {number}", cells.get("pixel_size", ""))
    return SlideInput(images[0] if len(images) == 1 else images, planes["nucleus"], planes["cytosol"], labels, size)


def _pixel_size(where: str, cell: str) -> float | None:
    try:
        return float(cell) if cell else None
    except ValueError:
        raise InputError(f"{where} has the pixel_size {cell!r}; it must be a number of um per pixel") from None
