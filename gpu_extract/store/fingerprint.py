"""What a file of cells was made from and how, to be compared before a run goes on with it.

A finished file and the skeleton in a journal say it in their tables. Warnings are not compared, since they may depend
on the machine.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

import h5py

from gpu_extract.errors import OutputError
from gpu_extract.store.chunks import ChunkFormat
from gpu_extract.store.contents import Contents
from gpu_extract.store.hdf5.datasets import format_of
from gpu_extract.store.hdf5.layout import Layout
from gpu_extract.store.hdf5.layouts import LAYOUTS, layout_of
from gpu_extract.store.target import START_AGAIN

__all__ = ["Fingerprint", "asked_for", "check_same", "stated_in"]

Fingerprint = dict[str, Any]
# Differences that a message names.
N_NAMED = 3


def asked_for(contents: Contents, layout: Layout, format: ChunkFormat) -> Fingerprint:
    """Return the fingerprint of a run."""
    return _fingerprint(contents.provenance(), layout, format, contents.plane_names, len(contents.cells))


def stated_in(file: h5py.File) -> Fingerprint | None:
    """Return the fingerprint of an open file, or of its skeleton; None if it does not say what it was made from.

    Errors of HDF5 on a damaged file are not converted.
    """
    layout = layout_of(file)
    tables = layout.tables(file)
    texts = tables.info()
    if not {"version", "recipe", "sources", "cells_digest"} <= texts.keys():
        return None
    return _fingerprint(texts, layout, format_of(tables.images), tables.planes, len(tables.ids))


def check_same(subject: object, asked: Fingerprint, stated: Fingerprint | None) -> None:
    """Raise an error that names what differs, if anything does.

    Parameters
    ----------
    subject : path
        The file that a run found.
    asked, stated : dict
        The fingerprints of the run and of the file.

    Raises
    ------
    OutputError
    """
    if stated is None:
        raise OutputError(f"{subject} does not say what it was made from; choose another name, or {START_AGAIN}")
    found = list(_differences(asked, stated))
    if found:
        more = f"; and {len(found) - N_NAMED} more" if len(found) > N_NAMED else ""
        raise OutputError(
            f"{subject} was made from other inputs or in another way ({'; '.join(found[:N_NAMED])}{more}); give what "
            f"was given then, choose another name, or {START_AGAIN}"
        )


def _fingerprint(
    texts: Mapping[str, str], layout: Layout, format: ChunkFormat, planes: tuple[str, ...], n_cells: int
) -> Fingerprint:
    return {
        "version of gpu-extract": texts["version"],
        "device": texts.get("device", "unknown"),
        "layout": next(name for name, each in LAYOUTS.items() if each is layout),
        "compression": format.compression,
        "shape of a chunk": list(format.shape),
        "type of tiles": format.dtype.name,
        "planes": list(planes),
        "unique ids": texts.get("unique_ids", "no"),
        "recipe": tomllib.loads(texts["recipe"]),
        "order of slides": [slide["slide"] for slide in json.loads(texts["sources"])],
        "slide": {slide["slide"]: _slide(slide) for slide in json.loads(texts["sources"])},
        "input of": json.loads(texts.get("inputs", "{}")),
        "number of cells": n_cells,
        "digest of the cells' ids, places and sizes": texts["cells_digest"],
    }


def _slide(source: dict[str, Any]) -> dict[str, Any]:
    """Return what the file says of a slide, in words of this version."""
    return {"metadata" if key == "labels" else key: value for key, value in source.items() if key != "slide"}


def _differences(asked: Fingerprint, stated: Fingerprint, within: str = "") -> Iterator[str]:
    """Yield a text for each value that differs, in the order of the fingerprint."""
    for name in dict.fromkeys((*asked, *stated)):
        now, then = asked.get(name), stated.get(name)
        where = f"{within} {name}".lstrip()
        if isinstance(now, dict) or isinstance(then, dict):
            yield from _differences(now or {}, then or {}, where)
        elif now != then:
            yield f"{where}: {_text(now)} now, {_text(then)} then"


def _text(value: Any) -> str:
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
