"""Several slides as one dataset: a table of files and metadata, or a pattern of file names."""

from __future__ import annotations

import csv
import glob
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from gpu_extract.errors import InputError

__all__ = ["SlideInput", "as_slide_input", "check_listed_once", "match_slides", "read_slide_table"]

PLANES = ("nucleus", "cytosol")
COLUMNS = ("image", *PLANES, "pixel_size")
# Separates the files of a slide's channels within a cell of the table.
CHANNEL_SEPARATOR = ";"


@dataclass(frozen=True)
class SlideInput:
    """The inputs of one slide.

    Parameters
    ----------
    image, nucleus, cytosol
        See `gpu_extract.extract`.
    metadata : mapping of str
        Texts or numbers that describe the slide, for example ``{"well": "D03", "dose": 0.5}``; each becomes a column
        of ``obs``. They are kept as texts, empty for None and NaN.
    ids : sequence of int, optional
        Cells of this slide to extract; ids without a label are ignored.
    pixel_size : float or (y, x), um, optional
        Size of a pixel. It takes precedence over that of the whole run, which takes precedence over the image's.
    name : str, optional
        Name of the slide. Default: the image's file name.
    channel_names : sequence of str, optional
        Used unless the run has channel names.
    """

    image: Any
    nucleus: Any = None
    cytosol: Any = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    _: KW_ONLY
    ids: Sequence[int] | None = None
    pixel_size: float | Sequence[float] | None = None
    name: str | None = None
    channel_names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        texts = {str(key): _as_text(value) for key, value in self.metadata.items()}
        object.__setattr__(self, "metadata", texts)


def as_slide_input(given: SlideInput | Mapping[str, Any]) -> SlideInput:
    """Return a slide from a mapping: ``image``, ``nucleus``, ``cytosol``, ``pixel_size``; other keys are metadata."""
    if isinstance(given, SlideInput):
        return given
    if "image" not in given:
        raise InputError(f"a slide has {', '.join(map(str, given)) or 'nothing'}, but no image; give image=...")
    metadata = {key: value for key, value in given.items() if key not in COLUMNS}
    named = {name: given[name] for name in COLUMNS if name in given}
    return SlideInput(**named, metadata=metadata)


def _as_text(value: Any) -> str:
    """Return a value of the metadata as text; empty if it is missing: None, or NaN of NumPy or pandas."""
    text = "" if value is None else str(value)
    return "" if not isinstance(value, str) and text in ("nan", "NaT", "<NA>") else text


def check_listed_once(slides: Sequence[SlideInput]) -> None:
    """Refuse files that are given twice with the same label planes, because their cells would count twice.

    Raises
    ------
    InputError
    """
    seen: set[tuple[str, ...]] = set()
    for given in slides:
        files = _files(given)
        if files in seen:
            raise InputError(f"slide {given.image} is listed twice, with the same label planes; list it once")
        if files:
            seen.add(files)


def _files(given: SlideInput) -> tuple[str, ...]:
    """Return the absolute paths of a slide, including selectors; empty if it has arrays."""
    images = given.image if isinstance(given.image, list | tuple) else [given.image]
    paths = [each for each in (*images, given.nucleus, given.cytosol) if each is not None]
    if not all(isinstance(path, str | os.PathLike) for path in paths):
        return ()
    every = (*images, given.nucleus, given.cytosol)
    return tuple("" if each is None else os.path.abspath(os.fsdecode(each)) for each in every)


def match_slides(image: str, *, nucleus: str | None = None, cytosol: str | None = None) -> list[SlideInput]:
    """Return a slide for each file that matches a pattern, sorted by the matched text.

    Parameters
    ----------
    image : str
        A path in which ``*`` stands for any part of a name, such as ``img/*_dna.tif``. The matched text is the name of
        the slide. Several patterns, separated by semicolons, are the channels of a slide: the first is matched, and
        the matched text replaces the ``*`` of the others. Selectors, as in ``plate/*.ome.tif#c=0,1``, apply to all
        slides.
    nucleus, cytosol : str, optional
        The label planes, with the same ``*``, such as ``seg/*_nuc.tif``. Without a ``*``, the name of a label in the
        image's own store.

    Raises
    ------
    InputError
        If nothing matches, a file of a slide is missing, or one label file would be used for all slides.
    """
    images = [part.strip() for part in image.split(CHANNEL_SEPARATOR)]
    labels = [(name, at) for name, at in zip(PLANES, (nucleus, cytosol), strict=True) if at is not None]
    if "**" in image:
        raise InputError(f"images {image}: ** is not allowed; * stands for a part of one name, and may be repeated")
    for what, pattern in [("images", each) for each in images] + labels:
        if pattern.count("*") != images[0].count("*") and ("*" in pattern or os.path.lexists(pattern)):
            raise InputError(f"{what} {pattern} must have the same * as images {images[0]}: one file per slide")
    slides, names = [], _channel_names(images)
    for parts in _matches(images[0]):
        files = {what: _filled(what, pattern, parts) for what, pattern in labels}
        channels = [_filled("image", pattern, parts) for pattern in images]
        first = channels[0] if len(channels) == 1 else channels
        planes = files.get("nucleus"), files.get("cytosol")
        slides.append(SlideInput(first, *planes, name="_".join(parts), channel_names=names))
    return slides


def _channel_names(patterns: Sequence[str]) -> tuple[str, ...] | None:
    """Return channel names from the parts in which the patterns differ, such as ``dna`` of ``*_dna.tif``."""
    stems = [os.path.basename(_split_path(pattern)[0]).replace("*", "").strip("_-. ") for pattern in patterns]
    names = tuple(stem.partition(".")[0].rstrip("_- ") for stem in stems)
    return names if len(names) > 1 and len(set(names)) == len(names) and all(names) else None


def _matches(pattern: str) -> list[tuple[str, ...]]:
    """Return the texts that the stars of a pattern match, for each existing file."""
    path, _ = _split_path(pattern)
    fixed = [re.escape(part) for part in path.split("*")]
    named = re.compile("([^/]*)".join(fixed), re.DOTALL)
    found = glob.glob("*".join(map(glob.escape, path.split("*"))))
    matches = [match.groups() for match in map(named.fullmatch, found) if match]
    if not matches:
        raise InputError(f"no file matches the images {pattern}; check the pattern, and put it in quotes")
    return sorted(matches)


def _filled(what: str, pattern: str, parts: Sequence[str]) -> str:
    """Return the pattern with its stars replaced.

    Raises
    ------
    InputError
        If the file does not exist.
    """
    left = iter(parts)
    text = re.sub(r"\*", lambda _: next(left), pattern)
    if "*" in pattern and not os.path.lexists(_split_path(text)[0]):
        raise InputError(f"slide {'_'.join(parts)} has no {what}: there is no {text} (of {pattern})")
    return text


def _split_path(text: str) -> tuple[str, str]:
    """Split a text into the path of a file and the rest: a dataset in it, and selectors."""
    match = re.fullmatch(r"(.*?)((?::/[^#]*)?(?:#[^#/]*=[^#]*)?)", text, re.DOTALL)
    assert match is not None
    return match[1], match[2]


def read_slide_table(path: Path) -> list[SlideInput]:
    """Return the slides of a CSV file with columns image, nucleus, cytosol, pixel_size, then any metadata.

    Paths are relative to the table. Several images of a slide, its channels, are separated by semicolons. An empty
    nucleus or cytosol means that the slide does not have it; an empty pixel_size (um) is unknown.

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
        raise InputError(f"slides {path} has no slide; its first line names the columns, one line per slide follows")
    header = rows[0]
    _check_header(path, header)
    return [_slide(path, header, row, number) for number, row in enumerate(rows[1:], 2)]


def _check_header(path: Path, header: Sequence[str]) -> None:
    if "image" not in header or not set(PLANES) & set(header):
        raise InputError(
            f"slides {path} has the columns {', '.join(header)}; it needs image, and nucleus or cytosol or both"
        )
    if "" in header or len(set(header)) < len(header):
        raise InputError(f"slides {path} has the columns {', '.join(header)}; each must have a different name")


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
    image = images[0] if len(images) == 1 else images
    return SlideInput(image, planes["nucleus"], planes["cytosol"], labels, pixel_size=size)


def _pixel_size(where: str, cell: str) -> float | None:
    try:
        return float(cell) if cell else None
    except ValueError:
        raise InputError(f"{where} has the pixel_size {cell!r}; it must be a number of um per pixel") from None
