"""Parse locations: a path, and selectors after ``#`` that choose a part of the file.

::

    image.zarr#level=1            a level of a pyramid; 0, the full resolution, by default
    img.ome.tif#c=0,2             channels by index or name (c=DNA,actin), in this order
    stack.ome.tif#z=3             a Z slice, or z=max, the maximum projection
    movie.ome.tif#t=3,c=0         a time point; several selectors are separated by commas
    store.zarr#image=NAME         an image, or label=NAME, a label, by name; in HDF5, a dataset
    sparse.zarr#missing=error     absent chunks are an error; in HDF5 missing=fill makes them the fill value
    cells.geojson#unit=um         coordinates of outlines are in um; px, pixels of the image, by default

A file whose own name contains ``#`` is opened under that name. In HDF5 the path of a dataset precedes the selectors:
``file.h5:/a/b#c=0``.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields
from typing import Any, Literal

from gpu_extract.errors import InputError

__all__ = ["Location", "Selection", "input_paths", "located", "parse_input"]

TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".tf8", ".tf2", ".qptiff", ".svs")
URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
# A path inside a zipped store, which may be written like one in a folder.
ZIPPED = re.compile(r"(.*?\.(?:zip|ozx))(/.+)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Selection:
    """The selected part of a file; None for each selector that was not given."""

    level: int | None = None
    c: tuple[int | str, ...] | None = None
    z: int | Literal["max"] | None = None
    t: int | None = None
    image: str | None = None
    label: str | None = None
    missing: Literal["fill", "error"] | None = None
    unit: Literal["px", "um"] | None = None

    def __str__(self) -> str:
        """Return the text after the path; empty if nothing is selected."""
        chosen = {each.name: getattr(self, each.name) for each in fields(self)}
        texts = [f"{key}={_text(value)}" for key, value in chosen.items() if value is not None]
        return f"#{','.join(texts)}" if texts else ""

    def refuse(self, subject: str, *keys: str) -> None:
        """Refuse selectors that do not apply to a kind of file; ``level=0`` is always allowed.

        Raises
        ------
        InputError
        """
        for key in keys:
            if getattr(self, key) not in (None, 0):
                raise InputError(f"{subject} has nothing that {key}= could select; leave that selector out")


@dataclass(frozen=True)
class Location:
    """A path, a dataset in the file, and a selection.

    Parameters
    ----------
    path : str
    inside : str
        The path of a dataset in an HDF5 file; empty if none was given.
    selection : Selection
    plane : str, optional
        Name of the label plane there; None if it is an image.
    """

    path: str
    inside: str
    selection: Selection
    plane: str | None

    def __str__(self) -> str:
        return f"{'image' if self.plane is None else f'{self.plane} label plane'} {self.source}"

    @property
    def source(self) -> str:
        """The location as one text that can be parsed again."""
        return f"{self.path}{':' if self.inside else ''}{self.inside}{self.selection}"

    @property
    def is_url(self) -> bool:
        """Whether the path is a URL."""
        return URL.match(self.path) is not None

    @property
    def is_remote_tiff(self) -> bool:
        """Whether it is a TIFF on a network; only its name can say so, because a Zarr store is not a file."""
        return self.is_url and self.path.lower().partition("?")[0].endswith(TIFF_SUFFIXES)

    @property
    def exists(self) -> bool:
        """Whether the path exists; always true for a URL, which is not requested."""
        return self.is_url or os.path.lexists(self.path)


def parse_input(given: Any, plane: str | None) -> Any:
    """Return the `Location` of a path, with ``~`` expanded; anything else, such as an array, unchanged.

    Each input of the user is parsed here once, before anything else is done with it.

    Raises
    ------
    InputError
        If a selector is unknown or invalid.
    """
    return located(os.path.expanduser(os.fsdecode(given)), plane) if isinstance(given, (str, os.PathLike)) else given


def input_paths(*inputs: Any) -> list[str]:
    """Return the paths among a user's images and label planes, without selectors.

    Parameters
    ----------
    *inputs : path, array, sequence of them, or None
        Arrays and None are ignored.

    Raises
    ------
    InputError
        If a selector is unknown or invalid.
    """
    each = [one for given in inputs for one in (given if isinstance(given, (list, tuple)) else [given])]
    parsed = [parse_input(one, None) for one in each]
    return [location.path for location in parsed if isinstance(location, Location)]


def located(text: str, plane: str | None) -> Location:
    """Return the location that a text describes.

    Raises
    ------
    InputError
        If a selector is unknown or invalid.
    """
    path, selection = text, Selection()
    if not os.path.lexists(text):
        head, mark, tail = text.rpartition("#")
        if mark and "=" in tail:
            path, selection = head, _selection(text, tail)
    if not os.path.lexists(path):
        head, _, tail = path.partition(":/")
        if os.path.isfile(head):
            return Location(head, f"/{tail}", selection, plane)
        zipped = ZIPPED.match(path)
        if zipped and os.path.isfile(zipped[1]):
            return Location(zipped[1], zipped[2], selection, plane)
    return Location(path, "", selection, plane)


def _selection(text: str, tail: str) -> Selection:
    known = [each.name for each in fields(Selection)]
    chosen: dict[str, Any] = {}
    # A comma separates selectors only if a key follows: c=0,2,t=3 are two.
    for part in re.split(r",(?=[^,=]*=)", tail):
        key, _, value = part.partition("=")
        if key not in known:
            raise InputError(f"{text}: the selector {key!r} is unknown; there are {', '.join(known)}, as in #c=0,2,t=3")
        if key in chosen:
            raise InputError(f"{text}: {key}= is given twice; give it once")
        chosen[key] = _value(text, key, value)
    return Selection(**chosen)


def _value(text: str, key: str, value: str) -> Any:
    if key in ("image", "label") and value:
        return value
    if key == "c":
        channels = tuple(part.strip() for part in value.split(","))
        if all(channels) and len(set(channels)) == len(channels):
            return channels
    if key in ("level", "z", "t") and re.fullmatch(r"\d{1,9}", value):
        return int(value)
    if (key, value) in (("z", "max"), ("missing", "fill"), ("missing", "error"), ("unit", "px"), ("unit", "um")):
        return value
    allowed = {
        "c": "different channels by number from 0 or by name, as in c=0,2",
        "z": "a number from 0, or max",
        "missing": "fill or error",
        "unit": "px or um",
        "image": "a name",
        "label": "a name",
    }
    raise InputError(f"{text}: {key}={value} is not allowed; {key}= takes {allowed.get(key, 'a number from 0')}")


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
