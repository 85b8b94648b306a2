"""Several slides as one dataset: a table of files and metadata, or a pattern of file names."""

from __future__ import annotations

import csv
import glob
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from gpu_extract.errors import InputError
from gpu_extract.listing import listed
from gpu_extract.sources.selectors import URL
from gpu_extract.sources.texts import decoded

__all__ = ["SlideInput", "as_slide_input", "check_listed_once", "match_slides", "read_slide_table"]

PLANES = ("nucleus", "cytosol")
COLUMNS = ("image", *PLANES, "pixel_size")
# Separates the files of a slide's channels within a cell of the table.
CHANNEL_SEPARATOR = ";"
# What separates the cells of a row: Excel writes a semicolon where the decimal point is a comma.
DELIMITERS = (",", ";", "\t")
# A first line by which Excel is told the delimiter. Excel does not show it, and so does not count it.
SEPARATOR_LINE = re.compile(r'\s*"?sep=(.)"?[ \t;,]*(?:\r\n|\r|\n|$)', re.IGNORECASE)
# First bytes of workbooks: a ZIP archive (.xlsx, .ods, .numbers) or a compound file (.xls).
WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")


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
    origin : str
        Where the slide is listed, for errors: a row of a table.
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
    origin: str = ""

    def __post_init__(self) -> None:
        texts = {str(key): _as_text(value) for key, value in self.metadata.items()}
        object.__setattr__(self, "metadata", texts)


def as_slide_input(given: SlideInput | Mapping[str, Any]) -> SlideInput:
    """Return a slide from a mapping: ``image``, ``nucleus``, ``cytosol``, ``pixel_size``; other keys are metadata."""
    if isinstance(given, SlideInput):
        return given
    if "image" not in given:
        raise InputError(f"a slide has {listed(given) or 'nothing'}, but no image; give image=...")
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
    images = [os.path.expanduser(part.strip()) for part in image.split(CHANNEL_SEPARATOR)]
    labels = [
        (name, os.path.expanduser(at)) for name, at in zip(PLANES, (nucleus, cytosol), strict=True) if at is not None
    ]
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
        slides.append(
            SlideInput(first, files.get("nucleus"), files.get("cytosol"), name="_".join(parts), channel_names=names)
        )
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

    Cells are separated by commas, semicolons or tabs, as Excel writes them (see `DELIMITERS`); the first line may be
    ``sep=;``. The encoding is UTF-8, UTF-16 with its mark, or cp1252. The names of the first four columns may be in
    any case. Empty rows and columns have no effect.

    Paths are relative to the table. Several images of a slide, its channels, are separated by semicolons: a cell with
    semicolons must be in quotes if semicolons separate the cells too. A nucleus or cytosol may be the name of a label
    in the image's store; an empty one means that the slide does not have it. An empty pixel_size (um) is unknown.

    Raises
    ------
    InputError
        If the file cannot be read, or is not such a table. Rows are numbered as in Excel: the header is row 1, and
        empty rows count.
    """
    path = Path(os.path.expanduser(path))
    rows, delimiter = _rows(path)
    filled = [(number, row) for number, row in enumerate(rows, 1) if any(row)]
    if len(filled) < 2:
        raise InputError(f"slides {path} has no slide; its first line names the columns, one line per slide follows")
    (_, header), *others = filled
    header = [_column(name) for name in header]
    _check_header(path, [name for name in header if name])
    return [_slide(path, header, row, number, delimiter) for number, row in others]


def _rows(path: Path) -> tuple[list[list[str]], str]:
    """Return the cells of all rows, empty ones included, without spaces around them; and the delimiter."""
    try:
        content = path.read_bytes()
        if content.startswith(WORKBOOKS):
            raise InputError(f"slides {path} is a workbook of Excel or another program; save it as CSV")
        text = decoded(content)
        stated = SEPARATOR_LINE.match(text)
        if stated is not None:
            return list(_parsed(text[stated.end() :], stated[1])), stated[1]
        delimiter = max(DELIMITERS, key=lambda each: _fit(text, each))
        return list(_parsed(text, delimiter)), delimiter
    except OSError as error:
        raise InputError(f"slides {path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"slides {path} is not a CSV table: {error}") from error


def _parsed(text: str, delimiter: str) -> Iterator[list[str]]:
    for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True):
        yield [cell.strip() for cell in row]


def _fit(text: str, delimiter: str) -> tuple[bool, int]:
    """Return whether the first row has the columns that a table must have, and how many columns it has."""
    try:
        header = next(filter(any, _parsed(text, delimiter)), [])
    except csv.Error:
        return False, 0
    names = {_column(name) for name in header}
    return "image" in names and bool(names & set(PLANES)), len(header)


def _column(name: str) -> str:
    """Return one of our columns in its own spelling; any other name unchanged."""
    own = re.sub(r"[\s_-]+", "_", name.lower())
    return own if own in COLUMNS else name


def _check_header(path: Path, header: Sequence[str]) -> None:
    if "image" not in header or not set(PLANES) & set(header):
        raise InputError(
            f"slides {path} has the columns {listed(header)}; it needs image, and nucleus or cytosol or both"
        )
    if len(set(header)) < len(header):
        raise InputError(f"slides {path} has the columns {listed(header)}; each must have a different name")


def _slide(path: Path, header: Sequence[str], row: Sequence[str], number: int, delimiter: str) -> SlideInput:
    n_cells = max((n for n, cell in enumerate(row, 1) if cell), default=0)
    n_columns = max(n for n, name in enumerate(header, 1) if name)
    if n_cells > n_columns:
        quotes = ""
        if delimiter == CHANNEL_SEPARATOR:
            quotes = '; put the files of several channels in quotes, as in "dna.tif;actin.tif"'
        raise InputError(f"slides {path}: row {number} has {n_cells} cells for {n_columns} columns{quotes}")
    # Excel leaves out empty cells at the end of a row.
    every = list(zip(header, [*row, *[""] * len(header)], strict=False))
    nameless = next((cell for name, cell in every if cell and not name), None)
    if nameless is not None:
        raise InputError(f"slides {path}: row {number} has {nameless!r} in a column without a name; name the column")
    cells = {name: cell for name, cell in every if name}
    files = [name.strip() for name in cells["image"].split(CHANNEL_SEPARATOR) if name.strip()]
    if not files:
        raise InputError(f"slides {path}: row {number} has no image")
    images = [_located(path.parent, name) for name in files]
    planes = {name: _plane(path.parent, cells[name]) if cells.get(name) else None for name in PLANES}
    labels = {name: value for name, value in cells.items() if name not in COLUMNS}
    origin = f"slides {path}: row {number}"
    size = _pixel_size(origin, cells.get("pixel_size", ""))
    image = images[0] if len(images) == 1 else images
    return SlideInput(image, planes["nucleus"], planes["cytosol"], labels, pixel_size=size, origin=origin)


def _located(folder: Path, name: str) -> Path | str:
    """Return the path of a file that a table in a folder names; a URL unchanged."""
    return name if URL.match(name) else folder / os.path.expanduser(name)


def _plane(folder: Path, name: str) -> Path | str:
    """Return the path of a label plane, or a name if it can only be that of a label in the image's store."""
    at = _located(folder, name)
    is_name = not re.search(r"[/\\.:]", name) and not os.path.lexists(_split_path(str(at))[0])
    return name if is_name else at


def _pixel_size(where: str, cell: str) -> float | None:
    try:
        return float(cell.replace(",", ".")) if cell else None
    except ValueError:
        raise InputError(f"{where} has the pixel_size {cell!r}; it must be a number of um per pixel") from None
