"""Where a user's pixels are: a path, and behind ``#`` what is meant where a file holds more than one thing.

::

    image.zarr#level=1            a level of a pyramid; 0, the full resolution, by default
    img.ome.tif#c=0,2             channels by index or name (c=DNA,actin), in that order
    stack.ome.tif#z=3             a Z slice, or z=max, the maximum projection
    movie.ome.tif#t=3,c=0         a time point; several selectors are parted by commas
    store.zarr#image=NAME         an image, or label=NAME, a label, by name
    sparse.zarr#missing=fill      chunks that are absent hold the fill value, as the file's writer meant
    cells.geojson#unit=um         coordinates of outlines are in um; px, pixels of the image, by default

A file whose own name holds the ``#`` is that file. In HDF5 the array's path stands before: ``file.h5:/a/b#c=0``.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields
from typing import Any, Literal

from gpu_extract.errors import InputError

__all__ = ["Location", "Selection", "input_paths", "located", "parse_input"]

URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


@dataclass(frozen=True)
class Selection:
    """What is meant of what a file holds; None where the user did not say."""

    level: int | None = None
    c: tuple[int | str, ...] | None = None
    z: int | Literal["max"] | None = None
    t: int | None = None
    image: str | None = None
    label: str | None = None
    missing: Literal["fill"] | None = None
    unit: Literal["px", "um"] | None = None

    def __str__(self) -> str:
        """As it stands behind a path, empty if nothing is selected."""
        chosen = {each.name: getattr(self, each.name) for each in fields(self)}
        texts = [f"{key}={_text(value)}" for key, value in chosen.items() if value is not None]
        return f"#{','.join(texts)}" if texts else ""

    def refuse(self, subject: str, *keys: str) -> None:
        """Refuse selectors that make no sense for a kind of file; level 0 always does.

        Raises
        ------
        InputError
        """
        for key in keys:
            if getattr(self, key) not in (None, 0):
                raise InputError(f"{subject} has nothing that {key}= could select; leave that selector out")


@dataclass(frozen=True)
class Location:
    """A path, a dataset inside it, and what is selected.

    Parameters
    ----------
    path : str
    inside : str
        The path of a dataset in an HDF5 file; empty if none was given.
    selection : Selection
    plane : str, optional
        The label plane that is there; None if it is an image.
    """

    path: str
    inside: str
    selection: Selection
    plane: str | None

    def __str__(self) -> str:
        return f"{'image' if self.plane is None else f'{self.plane} label plane'} {self.source}"

    @property
    def source(self) -> str:
        """The whole of it in one text, from which it can be opened again."""
        return f"{self.path}{':' if self.inside else ''}{self.inside}{self.selection}"

    @property
    def is_url(self) -> bool:
        """Whether it is reached over a network."""
        return URL.match(self.path) is not None

    @property
    def exists(self) -> bool:
        """Whether something is there, as far as can be told without a network."""
        return self.is_url or os.path.lexists(self.path)


def parse_input(given: Any, plane: str | None) -> Any:
    """Return the `Location` that a path means; anything else, such as an array, as it is.

    What a user gives is parsed here once, before anything else is done with it.

    Raises
    ------
    InputError
        If the selectors of a path are not known.
    """
    return located(os.fsdecode(given), plane) if isinstance(given, (str, os.PathLike)) else given


def input_paths(*inputs: Any) -> list[str]:
    """Return the paths of what a user gave as image or label plane, without selectors; arrays and None have none.

    Parameters
    ----------
    *inputs : path, array, sequence of them, or None

    Raises
    ------
    InputError
        If the selectors of a path are not known.
    """
    each = [one for given in inputs for one in (given if isinstance(given, (list, tuple)) else [given])]
    parsed = [parse_input(one, None) for one in each]
    return [location.path for location in parsed if isinstance(location, Location)]


def located(text: str, plane: str | None) -> Location:
    """Return the location that a text means.

    Raises
    ------
    InputError
        If its selectors are not known.
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
    return Location(path, "", selection, plane)


def _selection(text: str, tail: str) -> Selection:
    known = [each.name for each in fields(Selection)]
    chosen: dict[str, Any] = {}
    # A comma parts selectors only where a key follows: c=0,2,t=3 are two.
    for part in re.split(r",(?=[^,=]*=)", tail):
        key, _, value = part.partition("=")
        if key not in known:
            raise InputError(f"{text}: the selector {key!r} is unknown; there are {', '.join(known)}, as in #c=0,2,t=3")
        if key in chosen:
            raise InputError(f"{text}: {key}= is there twice; give it once")
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
    if (key, value) in (("z", "max"), ("missing", "fill"), ("unit", "px"), ("unit", "um")):
        return value
    allowed = {
        "c": "different channels by number from 0 or by name, as in c=0,2",
        "z": "a number from 0, or max",
        "missing": "fill",
        "unit": "px or um",
        "image": "a name",
        "label": "a name",
    }
    raise InputError(f"{text}: {key}={value} is not possible; {key}= takes {allowed.get(key, 'a number from 0')}")


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
