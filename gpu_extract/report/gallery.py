"""The gallery: a contact sheet of some cells, one row per cell and one column per plane, as a PNG file.

The sheet is a stack of strips of equal width: title, plane names, cells, scale bar, notes.
"""

from __future__ import annotations

import math
import os
import tempfile
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from gpu_extract.errors import InputError, OutputError
from gpu_extract.store.folders import make_folders, nearest_existing, remove_folders

__all__ = ["contact_sheet", "write_gallery"]

# Range of the side of a displayed tile, in pixels of the picture: large enough to see a nucleus, small enough
# that seven planes fit on a screen.
SIDE_MIN, SIDE_MAX = 96, 192

# Cells are mostly dark: a mild gamma brightens faint structures and does not change 0 and 1.
GAMMA = 0.75
# Raw counts have no fixed range; these percentiles exclude hot pixels and the camera's offset.
PERCENTILES = (0.1, 99.8)

# Distances in pixels of the picture.
MARGIN = 28
GAP = 2  # between tiles: one pixel for the frame of each
GROUP_GAP = 16  # between the masks and the channels
LABEL_GAP = 10  # between tiles and the text beside them
LINE_HEIGHT = 18
# Narrower sheets would leave no room for the title and the notes.
WIDTH_MIN = 320

PAPER, INK, FAINT, RULE = "#ffffff", "#1a1a1a", "#6b6b6b", "#c4c4c4"
# The spaces of Pillow's built-in font are too narrow at size 14.
TITLE_SIZE, NAME_SIZE, NOTE_SIZE = 19, 15, 13


def contact_sheet(
    images: NDArray[Any],
    ids: NDArray[np.uint64],
    plane_names: Sequence[str],
    n_masks: int,
    *,
    n_total: int | None = None,
    title: str = "",
) -> Image.Image:
    """Draw a picture of n cells, one row per cell and one column per plane.

    Masks are displayed from 0 to 1, or to their maximum if it is larger. Floating point channels within [0, 1]
    are displayed with a mild gamma, all others from the 0.1 to the 99.8 percentile of their column; a note below
    the cells says which. NaN and infinite pixels are black. Small tiles are enlarged by an integer factor without
    interpolation; large tiles are reduced by an integer factor to the mean of each block.

    Parameters
    ----------
    images : (n, K, S, S), any integer, floating point or boolean type
        Masks first, then channels.
    ids : (n,) uint64
        Cell ids.
    plane_names : sequence of str, length K
        Names that do not fit are shortened in the picture.
    n_masks : int
        Number of planes that are masks.
    n_total : int, optional
        Number of cells of the dataset. Default: n.
    title : str, optional
        For example the name of the dataset.

    Returns
    -------
    PIL.Image.Image
        RGB. Equal arguments give equal pixels.

    Raises
    ------
    InputError
        If there are no cells, or the arguments do not fit each other.
    """
    _check(images, ids, plane_names, n_masks)
    n, n_planes, size = images.shape[:3]
    columns = _Columns.arranged(n_planes, n_masks, size, ids)
    displayed, scaling_note = _displayed(images, n_masks)
    n_total = n if n_total is None else n_total
    cells = f"{n:,} of {n_total:,} cells" if n_total > n else f"{n:,} cell{'s' if n > 1 else ''}"
    strips = [
        _title_strip(columns, title, f"{cells} · tile {size} px"),
        _names_strip(columns, plane_names, n_masks),
        _cells_strip(columns, displayed, ids),
        _scale_strip(columns, size),
        _notes_strip(columns, [scaling_note, columns.zoom_note]),
    ]
    sheet = Image.new("RGB", (columns.width, sum(strip.height for strip in strips) + 2 * MARGIN), PAPER)
    y = MARGIN
    for strip in strips:
        sheet.paste(strip, (0, y))
        y += strip.height
    return sheet


def write_gallery(
    path_out: str | os.PathLike[str],
    images: NDArray[Any],
    ids: NDArray[np.uint64],
    plane_names: Sequence[str],
    n_masks: int,
    *,
    n_total: int | None = None,
    title: str = "",
    overwrite: bool = False,
) -> Path:
    """Write a contact sheet as a PNG file, which appears under its name once it is complete.

    Parameters
    ----------
    path_out : path
        The file to write, with the suffix .png. Missing folders are made.
    images, ids, plane_names, n_masks, n_total, title
        See `contact_sheet`.
    overwrite : bool, default False
        Replace an existing file.

    Returns
    -------
    Path
        `path_out`.

    Raises
    ------
    InputError
        As for `contact_sheet`.
    OutputError
        If the suffix is another, the folder is not writable, `path_out` is a folder, or it exists and `overwrite`
        is False.
    """
    path = Path(os.path.expanduser(path_out))
    # os.path, because Path.is_dir raises if a name is too long or a folder cannot be searched.
    if os.path.isdir(path):
        raise OutputError(f"{path} is a folder; name a PNG file, for example {path / 'gallery.png'}")
    if path.suffix.lower() != ".png":
        given = f"the suffix {path.suffix}" if path.suffix else "no suffix"
        raise OutputError(f"output {path} has {given}; a gallery is PNG: name it .png")
    if not os.path.isdir(nearest := nearest_existing(path.parent)):
        raise OutputError(f"{path} cannot be written: {nearest} is not a folder; choose another place")
    if os.path.exists(path) and not overwrite:
        raise OutputError(f"{path} exists; choose another name, or replace it with --overwrite (overwrite=True)")
    sheet = contact_sheet(images, ids, plane_names, n_masks, n_total=n_total, title=title)
    made: tuple[Path, ...] = ()
    try:
        made = make_folders(path.parent)
        # In the same folder, so that the replacement is atomic.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".gallery-") as folder:
            unfinished = Path(folder) / "unfinished.png"
            sheet.save(unfinished)
            unfinished.replace(path)
    except OSError as error:
        remove_folders(made)
        reason = error.strerror or error
        raise OutputError(f"{path} cannot be written: {reason}; choose another place") from error
    return path


@dataclass(frozen=True)
class _Columns:
    """Layout of the columns of a sheet, in pixels of the picture.

    Parameters
    ----------
    enlarged, reduced : int
        Integer factors by which tiles are enlarged or reduced; one of them is 1.
    side : int
        Side of a displayed tile.
    lefts : tuple of int
        First x of each column.
    width : int
        Width of the sheet.
    """

    enlarged: int
    reduced: int
    side: int
    lefts: tuple[int, ...]
    width: int

    @classmethod
    def arranged(cls, n_planes: int, n_masks: int, size: int, ids: NDArray[np.uint64]) -> _Columns:
        enlarged = max(1, -(-SIDE_MIN // size))
        reduced = max(1, -(-size // SIDE_MAX))
        side = -(-size * enlarged // reduced)
        left = MARGIN + max(_length(text, NOTE_SIZE) for text in ["cell id", *map(str, ids.tolist())]) + LABEL_GAP
        lefts = []
        for plane in range(n_planes):
            if plane == n_masks and plane > 0:
                left += GROUP_GAP - GAP
            lefts.append(left)
            left += side + GAP
        return cls(enlarged, reduced, side, tuple(lefts), max(left - GAP + MARGIN, WIDTH_MIN))

    @property
    def zoom_note(self) -> str:
        if self.reduced > 1:
            return f"shown at 1/{self.reduced} size"
        return f"enlarged {self.enlarged} times" if self.enlarged > 1 else ""

    def zoomed(self, plane: NDArray[np.uint8]) -> Image.Image:
        """Return a tile at its displayed size."""
        picture = Image.fromarray(plane)
        if self.reduced > 1:
            return picture.reduce(self.reduced)
        return picture.resize((self.side, self.side), Image.Resampling.NEAREST)

    def strip(self, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        """Return an empty strip of the sheet, and the object that draws on it."""
        strip = Image.new("RGB", (self.width, height), PAPER)
        return strip, ImageDraw.Draw(strip)


def _check(images: NDArray[Any], ids: NDArray[np.uint64], plane_names: Sequence[str], n_masks: int) -> None:
    if images.ndim != 4 or images.shape[2] != images.shape[3] or images.dtype.kind not in "biuf":
        raise InputError(f"images are {images.shape} {images.dtype}; they must be numbers, (n, K, S, S)")
    n, n_planes, size = images.shape[:3]
    if n == 0 or n_planes == 0 or size == 0:
        raise InputError(f"images are {images.shape}: there is no cell to draw; give at least one")
    if ids.shape != (n,):
        raise InputError(f"{ids.size} ids were given for {n} cells; give one each")
    if len(plane_names) != n_planes:
        raise InputError(f"{len(plane_names)} plane names were given for {n_planes} planes; give one each")
    if not 0 <= n_masks <= n_planes:
        raise InputError(f"n_masks is {n_masks}; it must be from 0 to the number of planes, {n_planes}")


def _displayed(images: NDArray[Any], n_masks: int) -> tuple[NDArray[np.uint8], str]:
    """Return the displayed pixels, (n, K, S, S), 0 is black, and a note on how the channels were scaled."""
    channels = images[:, n_masks:]
    as_stored = images.dtype.kind == "f" and bool(np.all((channels >= 0) & (channels <= 1)))
    displayed = np.empty(images.shape, np.uint8)
    for plane in range(images.shape[1]):
        column = images[:, plane].astype(np.float64)
        column[~np.isfinite(column)] = 0
        if plane < n_masks:
            column /= max(column.max(), 1.0)
        elif as_stored:
            column **= GAMMA
        else:
            column = _stretched(column)
        displayed[:, plane] = np.rint(np.clip(column, 0, 1) * 255)
    if not channels.shape[1]:
        return displayed, ""
    if as_stored:
        return displayed, f"channels 0 to 1, gamma {GAMMA}"
    return displayed, f"each channel from its {PERCENTILES[0]} to its {PERCENTILES[1]} percentile"


def _stretched(column: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = np.percentile(column, PERCENTILES)
    if low == high:  # a few bright pixels on a constant background
        low, high = column.min(), column.max()
    stretched: NDArray[np.float64] = (column - low) / (high - low or 1.0)
    return stretched


def _title_strip(columns: _Columns, title: str, summary: str) -> Image.Image:
    if not title:
        strip, draw = columns.strip(LINE_HEIGHT + 16)
        draw.text((MARGIN, 0), summary, fill=INK, font=_font(NAME_SIZE))
        return strip
    strip, draw = columns.strip(TITLE_SIZE + LINE_HEIGHT + 28)
    fitting = _shortened(_drawable(title), TITLE_SIZE, columns.width - 2 * MARGIN)
    draw.text((MARGIN, 0), fitting, fill=INK, font=_font(TITLE_SIZE))
    draw.text((MARGIN, TITLE_SIZE + 9), summary, fill=FAINT, font=_font(NAME_SIZE))
    return strip


def _names_strip(columns: _Columns, plane_names: Sequence[str], n_masks: int) -> Image.Image:
    """Draw the headings "masks" and "channels" above a thin rule, then the names of the planes."""
    lines = [_wrapped(_drawable(name), NAME_SIZE, columns.side) for name in plane_names]
    rule = LINE_HEIGHT + 4
    height = rule + LINE_HEIGHT * max(map(len, lines)) + 14
    strip, draw = columns.strip(height)
    for word, lefts in (("masks", columns.lefts[:n_masks]), ("channels", columns.lefts[n_masks:])):
        if lefts:
            right = lefts[-1] + columns.side - 1
            draw.text(((lefts[0] + right) / 2, 0), word, fill=FAINT, font=_font(NOTE_SIZE), anchor="ma")
            draw.line([(lefts[0], rule), (right, rule)], fill=RULE)
    # Names of one line and of two lines end on the same line, just above the tiles.
    baseline = height - 10
    for left, name in zip(columns.lefts, lines, strict=True):
        for above, line in enumerate(reversed(name)):
            foot = (left + columns.side / 2, baseline - LINE_HEIGHT * above)
            draw.text(foot, line, fill=INK, font=_font(NAME_SIZE), anchor="ms")
    foot = (columns.lefts[0] - LABEL_GAP, baseline)
    draw.text(foot, "cell id", fill=FAINT, font=_font(NOTE_SIZE), anchor="rs")
    return strip


def _cells_strip(columns: _Columns, displayed: NDArray[np.uint8], ids: NDArray[np.uint64]) -> Image.Image:
    side = columns.side
    strip, draw = columns.strip(len(displayed) * (side + GAP))
    for row, (cell_id, planes) in enumerate(zip(ids.tolist(), displayed, strict=True)):
        top = row * (side + GAP) + 1
        middle = (columns.lefts[0] - LABEL_GAP, top + side / 2)
        draw.text(middle, str(cell_id), fill=INK, font=_font(NOTE_SIZE), anchor="rm")
        for left, plane in zip(columns.lefts, planes, strict=True):
            # Without a frame, a tile that is white at its edge would have no visible end.
            draw.rectangle((left - 1, top - 1, left + side, top + side), outline=RULE)
            strip.paste(columns.zoomed(plane), (left, top))
    return strip


def _scale_strip(columns: _Columns, size: int) -> Image.Image:
    """Draw a scale bar of 1, 2 or 5 times a power of ten pixels of a tile, at most a third of its side."""
    lengths = [step * 10**power for power in range(6) for step in (1, 2, 5)]
    length = max(step for step in lengths if step <= max(size / 3, 1))
    strip, draw = columns.strip(LABEL_GAP + LINE_HEIGHT + 8)
    right = columns.lefts[-1] + columns.side
    left = right - round(length * columns.enlarged / columns.reduced)
    draw.rectangle((left, LABEL_GAP, right - 1, LABEL_GAP + 3), fill=INK)
    draw.text((left - 8, LABEL_GAP + 2), f"{length} px", fill=INK, font=_font(NOTE_SIZE), anchor="rm")
    return strip


def _notes_strip(columns: _Columns, notes: Sequence[str]) -> Image.Image:
    """Draw the notes one after the other, on as many lines as they need."""
    lines: list[str] = []
    for note in filter(None, notes):
        joined = f"{lines[-1]} · {note}" if lines else note
        if lines and _length(joined, NOTE_SIZE) <= columns.width - 2 * MARGIN:
            lines[-1] = joined
        else:
            lines.append(note)
    strip, draw = columns.strip(LINE_HEIGHT * len(lines))
    for i, line in enumerate(lines):
        draw.text((MARGIN, LINE_HEIGHT * i), line, fill=FAINT, font=_font(NOTE_SIZE))
    return strip


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _length(text: str, font_size: int) -> int:
    """Return the width of a line of text in pixels of the picture, rounded up."""
    return math.ceil(_font(font_size).getlength(text))


def _drawable(text: str) -> str:
    """Return the text in letters that Pillow's built-in font has: α-tubulin as alpha-tubulin, Müller as Muller."""
    drawable = ""
    for character in unicodedata.normalize("NFKD", text):
        if " " <= character <= "~":
            drawable += character
        elif unicodedata.name(character, "").startswith("GREEK"):
            drawable += unicodedata.name(character).split()[-1].lower()
        elif not unicodedata.combining(character):
            drawable += "?"
    return drawable


def _wrapped(name: str, font_size: int, width: int) -> list[str]:
    """Return the name on one line or two, broken after a separator if there is one."""
    if _length(name, font_size) <= width:
        return [name]
    fitting = max((i for i in range(1, len(name)) if _length(name[:i], font_size) <= width), default=1)
    breaks = [i for i in range(1, fitting + 1) if name[i - 1] in " _-./"]
    cut = breaks[-1] if breaks else fitting
    return [name[:cut].rstrip(), _shortened(name[cut:], font_size, width)]


def _shortened(text: str, font_size: int, width: int) -> str:
    """Return the text, or its beginning and end around an ellipsis, because names often differ at the end."""
    if _length(text, font_size) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        shortened = f"{text[: (kept + 1) // 2]}…{text[-(kept // 2) :]}"
        if _length(shortened, font_size) <= width:
            return shortened
    return "…"
