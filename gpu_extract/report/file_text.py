"""What is in a file of cells as lines of text, few however many slides it has."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gpu_extract.errors import RecipeError
from gpu_extract.listing import first_few, first_lines, listed
from gpu_extract.recipe import Recipe

__all__ = ["file_lines"]

# Slides that get a line each.
N_SLIDES = 10


def file_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a `Cells.summary`, without characters that a terminal should not print."""
    for line in _lines(summary):
        text = line.encode("utf-8", "replace").decode()
        yield "".join(character if character.isprintable() else "?" for character in text)


def _lines(summary: Mapping[str, Any]) -> Iterator[str]:
    planes, size = summary["planes"], summary["tile_size"]
    yield f"{summary['file']}: {summary['n_cells']:,} cells, {len(planes)} planes of {size} x {size} {summary['dtype']}"
    n_masks = sum(plane["kind"] == "mask" for plane in planes)
    names = listed([plane["name"] for plane in planes])
    yield f"planes: {names} ({_n(n_masks, 'mask')}, {_n(len(planes) - n_masks, 'channel')})"
    yield _size(summary)
    yield from _slides(summary["slides"], summary["cells_per_slide"])
    yield _ids(summary["ids"], len(summary["slides"]))
    yield f"obs: {listed([f'{name} {_type(column)}' for name, column in summary['obs'].items()], 30)}"
    n_dropped = sum(summary["dropped"].values())
    if n_dropped:
        yield f"dropped: {n_dropped:,} ({listed([f'{n:,} {reason}' for reason, n in summary['dropped'].items()])})"
    yield from _origin(summary)
    yield from (f"warning: {line}" for line in first_lines(summary["warnings"]))
    yield from (f"trusted: {line}" for line in first_lines(summary["trusted"]))


def _size(summary: Mapping[str, Any]) -> str:
    stored, plain, chunk = (summary[key] for key in ("tiles_nbytes", "tiles_uncompressed_nbytes", "chunk_shape"))
    chunks = "without chunks" if chunk is None else f"chunks of {' x '.join(map(str, chunk))}"
    return (
        f"size: {_mb(summary['nbytes'])}, tiles {_mb(stored)} of {_mb(plain)} ({summary['compression']}, {chunks}), "
        f"layout {summary['layout']}"
    )


def _slides(slides: Sequence[Mapping[str, Any]], spread: Mapping[str, Any] | None) -> Iterator[str]:
    if not slides:
        yield "slides: not named in the file"
    elif len(slides) <= N_SLIDES:
        yield f"slides: {len(slides)}"
        yield from (f"  {_slide(slide)}" for slide in slides)
    else:
        yield f"slides: {len(slides):,} ({first_few(slide['name'] for slide in slides)})"
        if spread is not None:
            empty = f", {_n(spread['n_empty'], 'slide')} without cells" if spread["n_empty"] else ""
            yield f"cells per slide: {spread['min']:,} to {spread['max']:,}, median {spread['median']:,g}{empty}"


def _slide(slide: Mapping[str, Any]) -> str:
    n_cells = "cells not counted" if slide["n_cells"] is None else _n(slide["n_cells"], "cell")
    dropped = f", {slide['n_dropped']:,} dropped" if slide["n_dropped"] else ""
    about = listed([f"{name} {value}" for name, value in slide["metadata"].items()])
    return f"{slide['name']}: {n_cells}{dropped}{f' ({about})' if about else ''}"


def _ids(ids: Mapping[str, Any], n_slides: int) -> str:
    """Return whether a cell can be named by its id alone."""
    if ids["min"] is None:
        return "ids: none"
    of_labels = ", the ids in the label planes" if ids["column"] == "cell_id" else ""
    text = f"ids ({ids['column']}{of_labels}): {ids['min']} to {ids['max']}, "
    if not ids["n_repeated"]:
        return f"{text}each once in the file"
    where = "slides; a cell is named by slide and id" if n_slides > 1 else "rows"
    return f"{text}{ids['n_repeated']:,} of {ids['n_different']:,} in several {where}"


def _origin(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield which program made the file, from what, and how."""
    version, slides = summary["version"], summary["slides"]
    own = f"gpu-extract {version}" if version else "gpu-extract"
    if summary["is_own"]:
        yield f"made by: {own}"
    else:
        yield f"made by: another program{f', from a file of {own}' if version else ''}"
    first = slides[0] if slides else {}
    files = [file for key in ("image", "nucleus", "cytosol") if key in first for file in first[key].split(", ")]
    if files:
        others = f", and alike of {_n(len(slides) - 1, 'other slide')}" if len(slides) > 1 else ""
        yield f"from: {listed(files, 6)}{others}"
    if summary["recipe"] is not None:
        yield f"recipe: {_recipe(summary['recipe'])}"


def _recipe(text: str) -> str:
    """Return the parameters of a recipe that are not those of its preset."""
    try:
        given = tomllib.loads(text)
        base = given.pop("base", "standard")
        preset = tomllib.loads(Recipe.preset(base).to_toml())
    except (tomllib.TOMLDecodeError, RecipeError):
        return "of another version of gpu-extract; --json prints it"
    changed = [f"{name} = {json.dumps(value)}" for name, value in given.items() if preset.get(name) != value]
    return f"{base}{f' with {listed(changed)}' if changed else ''}"


def _type(column: Mapping[str, Any]) -> str:
    return f"{column['type']} of {column['n_values']:,}" if "n_values" in column else str(column["type"])


def _mb(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.1f} MB"


def _n(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"
