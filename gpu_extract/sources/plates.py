"""HCS plates of OME-Zarr: the fields of a plate or of a well, each of which is a slide."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gpu_extract.errors import InputError, SourceError
from gpu_extract.listing import first_few
from gpu_extract.sources.files import translated
from gpu_extract.sources.selectors import Location, parse_input
from gpu_extract.sources.slide_table import SlideInput
from gpu_extract.sources.zips import is_zipped_zarr

__all__ = ["Field", "check_label_names", "fields_error", "plate_fields", "plate_inputs"]

# Fields that are named in an error; a plate has thousands.
MAX_NAMED = 5


@dataclass(frozen=True)
class Field:
    """A field of view of a plate.

    Parameters
    ----------
    location : Location
        Of its image, with the selection that was given for the plate.
    metadata : mapping of str to str
        ``well`` (as in A01), ``row``, ``column`` and ``field``; ``acquisition`` if the plate has several.
    """

    location: Location
    metadata: Mapping[str, str]

    @property
    def name(self) -> str:
        """Well and field, as in ``A01_0``, with the acquisition if there are several."""
        keys = ("well", "acquisition", "field")
        return "_".join(self.metadata[key] for key in keys if self.metadata.get(key))


def plate_fields(image: Any) -> list[Field]:
    """Return the fields of a plate or a well; empty if the image is anything else.

    Parameters
    ----------
    image : path, Location, array or sequence
        Only a path can be that of a plate.

    Raises
    ------
    SourceError
        If the metadata of the plate are damaged, or name wells or fields that do not exist.
    """
    images = image if isinstance(image, (list, tuple)) else [image]
    location = parse_input(images[0], None) if len(images) == 1 else None
    if not isinstance(location, Location) or location.is_remote_tiff:
        return []
    if not (location.is_url or os.path.isdir(location.path) or is_zipped_zarr(location.path)):
        return []
    if location.selection.image is not None:  # one field of a well, by its name
        return []
    from gpu_extract.sources.zarr_stores import group_attributes, store_location

    try:
        store = store_location(location)
    except SourceError:  # a folder of several stores, which may yet be a classic project
        return []
    attributes = None if store is None else group_attributes(store, "")
    if store is None or attributes is None or attributes.get("multiscales"):
        return []
    with translated(store, "has damaged metadata of an OME-Zarr plate"):
        if "plate" in attributes:
            fields = [field for well in attributes["plate"]["wells"] for field in _fields(store, str(well["path"]))]
        elif "well" in attributes:
            fields = list(_fields_of_well(store, "", attributes["well"], _path_of_well(store)))
        else:
            return []
    if not fields:
        raise SourceError(f"{store} is a plate without any field; check the store")
    several = len({field.metadata["acquisition"] for field in fields}) > 1
    return fields if several else [_without_acquisition(field) for field in fields]


def plate_inputs(given: SlideInput) -> list[SlideInput]:
    """Return one input per field if the image is a plate or a well, else the input itself.

    Raises
    ------
    InputError, SourceError
        As for `plate_fields` and `check_label_names`.
    """
    fields = plate_fields(given.image)
    if fields:
        check_label_names(given.image, len(fields), nucleus=given.nucleus, cytosol=given.cytosol)
    inputs = [
        replace(
            given,
            image=field.location.source,
            metadata={**field.metadata, **given.metadata},
            name=field.name if given.name is None else f"{given.name}_{field.name}",
        )
        for field in fields
    ]
    return inputs or [given]


def check_label_names(image: Any, n_fields: int, **labels: Any) -> None:
    """Raise an error if one label plane is given for several fields, instead of the name of a label in each.

    Raises
    ------
    InputError
    """
    for plane, given in labels.items():
        labels_at = parse_input(given, plane)
        if n_fields > 1 and given is not None and not (isinstance(labels_at, Location) and not labels_at.exists):
            raise InputError(
                f"{plane} label plane {labels_at.source if isinstance(labels_at, Location) else 'array'} is one plane, "
                f"and {_text(image)} is a plate of {n_fields} fields; give the name of a label that is in each field"
            )


def fields_error(image: Any, n_fields: int, errors: Mapping[str, InputError]) -> SourceError:
    """Return the error for fields of a plate that cannot be opened.

    Parameters
    ----------
    image : path
    n_fields : int
        Of the plate.
    errors : mapping of str to InputError
        By the path of the field.
    """
    first = next(iter(errors.values()))
    return SourceError(
        f"{len(errors)} of the {n_fields} fields of {image} cannot be extracted: {first_few(errors, MAX_NAMED)}; "
        f"the first because {first} (--on-bad-slide skip, on_bad_slide='skip', leaves them out)"
    )


def _text(image: Any) -> str:
    (first,) = image if isinstance(image, (list, tuple)) else [image]
    return first.source if isinstance(first, Location) else str(first)


def _fields(store: Location, well: str) -> Iterator[Field]:
    """Yield the fields of a well at its path in the plate."""
    from gpu_extract.sources.zarr_stores import group_attributes

    attributes = group_attributes(store, well)
    if attributes is None or "well" not in attributes:
        raise SourceError(f"{store} is damaged: its metadata name the well {well!r}, which does not exist")
    yield from _fields_of_well(store, f"{well}/", attributes["well"], well)


def _fields_of_well(store: Location, prefix: str, well: Mapping[str, Any], path: str) -> Iterator[Field]:
    row, _, column = path.rpartition("/")
    for image in well["images"]:
        name = str(image["path"])
        if not re.fullmatch(r"(?!\.\.?$)[^/\\]+", name):
            raise SourceError(f"{store} is damaged: its metadata name the field {name!r}")
        metadata = {
            "well": f"{row}{column.zfill(2) if column.isdigit() else column}",
            "row": row,
            "column": column,
            "field": name,
            "acquisition": str(image.get("acquisition", "")),
        }
        yield Field(_within(store, f"{prefix}{name}"), metadata)


def _within(store: Location, path: str) -> Location:
    """Return the location of a path in a store."""
    if is_zipped_zarr(store.path):
        return replace(store, inside=f"{store.inside}/{path}")
    return replace(store, path=f"{store.path.rstrip('/')}/{path}")


def _path_of_well(store: Location) -> str:
    """Return row and column of a well that was given by its own path; only the column if the row is none."""
    row, column = os.path.split(store.path.rstrip("/") if store.is_url else os.path.abspath(store.path + store.inside))
    row = os.path.basename(row)
    return f"{row}/{column}" if re.fullmatch(r"[A-Za-z0-9]{1,3}", row) else column


def _without_acquisition(field: Field) -> Field:
    return replace(field, metadata={key: text for key, text in field.metadata.items() if key != "acquisition"})
