"""What a user gives -> the plan of its extraction: inputs are opened, brought to one scale, and planned together."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gpu_extract import planning
from gpu_extract.errors import InputError
from gpu_extract.labels import Statistics, label_statistics
from gpu_extract.model import CellTable, DroppedCells, DropReason, Slide
from gpu_extract.recipe import Recipe
from gpu_extract.sources import open_slides
from gpu_extract.sources.names import unique_names
from gpu_extract.sources.physical import as_pixel_size, mixed_sizes, rescaled, tile_size_in_pixels, vanished_ids
from gpu_extract.sources.slide_table import SlideInput, as_slide_input, check_listed_once

__all__ = ["as_recipe", "plan", "plan_many"]

ON_BAD_SLIDE = ("stop", "skip")


def plan(image: Any, *, nucleus: Any = None, cytosol: Any = None, **choices: Any) -> planning.Plan:
    """What an extraction would do: cells kept, cells dropped and why, bytes; the image's pixels are not read.

    Parameters
    ----------
    image : array-like, path, or list of them
        (C, H, W) or (H, W), of uint8, uint16, int16, uint32, float16, float32 or float64: an array (NumPy, or
        anything that reads by slice, as dask), or the path of a .npy, .npz, TIFF, OME-TIFF, OME-Zarr, SpatialData
        store, HDF5 dataset (``file.h5:/path``) or classic SPARCSpy project. Several are the channels of one slide. A
        path may end in a selection, as ``image.zarr#level=1,c=0,2``; see `gpu_extract.sources.selectors`. With a time
        axis it is a slide for each time point.
    nucleus, cytosol : array-like, path or name, optional
        (H, W) integer ids of cells, 0 is background. One at least, or a classic project, or a store that names its
        labels in the usual way; with both, what belongs together has one id. A name is that of a label in the image's
        own store.
    **choices
        ``recipe``, ``tile_size``, ``border``, ``ids``, and all else that `plan_many` takes.

    Returns
    -------
    Plan

    Raises
    ------
    InputError
        If the input cannot be extracted; the message says what, where and what to do.
    """
    return plan_many([SlideInput(image, nucleus, cytosol)], **choices)


def plan_many(
    slides: Sequence[SlideInput | Mapping[str, Any]],
    *,
    recipe: str | os.PathLike[str] | Recipe = "standard",
    tile_size: int | None = None,
    border: str | None = None,
    ids: Sequence[int] | None = None,
    n_cells: int | None = None,
    seed: int = 0,
    channel_names: Sequence[str] | None = None,
    planes: str | Sequence[int] | None = None,
    channels: Sequence[int | str] | None = None,
    nuclear_channel: int | str | None = None,
    pixel_size: float | Sequence[float] | None = None,
    tile_size_um: float | None = None,
    scale: float | None = None,
    on_bad_slide: str = "stop",
    statistics: Statistics = label_statistics,
) -> planning.Plan:
    """`plan` for several slides that become one dataset.

    Parameters
    ----------
    slides : sequence of SlideInput or mapping
        Each with ``image``, ``nucleus`` and ``cytosol`` as for `plan`; whatever else a mapping has are the slide's
        own labels. All must have the same label planes, channels and pixel type; with ``tile_size_um`` also the same
        pixel size, unless ``scale`` makes it so.
    recipe : str, path or Recipe
        A preset (``standard``, ``sparcspy``, ``scportrait``), a TOML file, or a `Recipe`.
    tile_size, border : optional
        Instead of the recipe's own; see `Recipe`.
    ids : sequence of int, optional
        Extract these cells only.
    n_cells : int, optional
        Extract this many cells, drawn at random with ``seed``.
    channel_names : sequence of str, optional
        Instead of the names in the image's metadata.
    planes : sequence of int, or text, optional
        Keep these planes of a tile only, in this order, counted masks first: ``[0, 1, 3]`` or ``"0,1,3"``. Not for
        files of layout ``h5sc``.
    channels : sequence of int or str, optional
        Extract these channels only, by index or name, in this order; by default all.
    nuclear_channel : int or str, optional
        Instead of the recipe's own, which is the first: the channel that is cut with the nucleus mask, by its index
        among those extracted or its name; ``none`` for no such channel.
    pixel_size : float or (y, x), um, optional
        Size of a pixel, instead of what the image's metadata say.
    tile_size_um : float, um, optional
        Side of a tile, instead of ``tile_size``; the even number of pixels that is nearest.
    scale : float, um per pixel, optional
        Resample image and labels to this pixel size before anything else; centres and boxes then are in the new
        pixels. See `gpu_extract.sources.scaled`.
    on_bad_slide : {"stop", "skip"}
        What to do with a slide that cannot be opened, or whose labels are wrong. Skipped ones are told of in the
        plan's ``warnings``.
    statistics : callable
        What takes the statistics of a label plane; a GPU's is quicker.

    Ids may restart on each slide. The errors are those of `plan`.
    """
    if on_bad_slide not in ON_BAD_SLIDE:
        raise InputError(f"on_bad_slide is {on_bad_slide!r}; it must be 'stop' or 'skip'")
    if tile_size is not None and tile_size_um is not None:
        raise InputError("tile_size and tile_size_um were both given (--size, --size-um); give one of them")
    changes = {"tile_size": tile_size, "border": border, "nuclear_channel": nuclear_channel}
    wanted = as_recipe(recipe).replace(**{name: value for name, value in changes.items() if value is not None})
    subset = planning.CellSubset(_as_ids(ids), n_cells, seed)
    # Asked for twice: by the check of slides and by the plan.
    statistics = cast(Statistics, functools.cache(statistics))
    inputs = [as_slide_input(given) for given in slides]
    check_listed_once(inputs)
    check = statistics if on_bad_slide == "skip" else None
    opened, warnings = _opened(inputs, lambda given: _open(given, channel_names, channels, pixel_size, scale), check)
    names = unique_names([slide.name for slide in opened], len(opened))
    named = [replace(slide, name=name) for slide, name in zip(opened, names, strict=True)]
    if tile_size_um is not None:
        wanted = wanted.replace(tile_size=tile_size_in_pixels(named, tile_size_um))
    warnings += mixed_sizes(named)
    if channels is not None and nuclear_channel is None:
        warnings += _nuclear_warning(wanted, named[0])
    planned = planning.make_plan(named, wanted, subset, statistics)
    chosen = _as_planes(planes, planned.program.n_planes)
    return replace(
        planned,
        cells=_with_vanished(planned, named, statistics),
        warnings=(*warnings, *planned.warnings),
        planes=chosen,
    )


def _opened(
    inputs: Sequence[SlideInput], open_one: Callable[[SlideInput], list[Slide]], check: Statistics | None
) -> tuple[list[Slide], list[str]]:
    """The slides of all inputs, and a line for each that is skipped: where ``check`` is given, what is wrong is."""
    opened, warnings = [], []
    for given in inputs:
        try:
            found = open_one(given)
            if check is not None:
                for slide in found:
                    planning.slide_statistics(slide, check)
            opened += found
        except InputError as error:
            if check is None:
                raise
            warnings.append(f"skipped {given.image}: {error}")
    if not opened:
        raise InputError("there is no slide to extract" + (f"; {warnings[0]}" if warnings else ""))
    return opened, warnings


def _open(
    given: SlideInput,
    channel_names: Sequence[str] | None,
    channels: Sequence[int | str] | None,
    pixel_size: float | Sequence[float] | None,
    scale: float | None,
) -> list[Slide]:
    """The slide, or one for each time point of a time course, at the pixel size asked for."""
    slides = open_slides(
        given.image,
        nucleus=given.nucleus,
        cytosol=given.cytosol,
        channel_names=given.channel_names if channel_names is None else channel_names,
        channels=channels,
        name=given.name,
    )
    size = pixel_size if given.pixel_size is None else given.pixel_size
    ids, found = _as_ids(given.ids), []
    for slide in slides:
        known = slide.pixel_size if size is None else as_pixel_size(size)
        labelled = replace(slide, metadata={**slide.metadata, **given.metadata}, pixel_size=known)
        if ids is not None:
            labelled = labelled.only(ids)
        found.append(labelled if scale is None else rescaled(labelled, scale))
    return found


def _nuclear_warning(recipe: Recipe, slide: Slide) -> list[str]:
    """Which of the channels that were chosen is the nuclear one, where nobody named it."""
    at = recipe.nuclear_channel
    if not isinstance(at, int) or at >= len(slide.channel_names) or not recipe.apply_masks:
        return []
    return [
        f"channel {slide.channel_names[at]} is cut with the nucleus mask, being number {at} of those chosen; "
        "name another or none with --nuclear-channel (nuclear_channel=)"
    ]


def _with_vanished(planned: planning.Plan, slides: Sequence[Slide], statistics: Statistics) -> CellTable:
    """The cells of the plan of slides, with those among the dropped of which resampling leaves no pixel."""
    vanished = [vanished_ids(slide, statistics) for slide in slides]
    if not any(map(len, vanished)):
        return planned.cells
    dropped = planned.cells.dropped
    slide = np.concatenate([dropped.slide, np.repeat(np.arange(len(vanished)), [len(ids) for ids in vanished])])
    ids = np.concatenate([dropped.ids, *vanished])
    reason = np.full(len(ids), DropReason.VANISHED, np.uint8)
    reason[: len(dropped)] = dropped.reason
    order = np.lexsort((ids, slide))
    return replace(planned.cells, dropped=DroppedCells(slide[order], ids[order], reason[order]))


def _as_ids(ids: Sequence[int] | None) -> NDArray[np.uint64] | None:
    if ids is None:
        return None
    try:
        return np.unique(np.array([int(i) for i in ids], np.uint64))
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"ids must be whole numbers from 1 to 2^64 - 1: {error}") from error


def _as_planes(planes: str | Sequence[int] | None, n_planes: int) -> tuple[int, ...]:
    """The planes that are asked for; empty for all of them."""
    if planes is None:
        return ()
    given = [plane.strip() for plane in planes.split(",")] if isinstance(planes, str) else list(map(str, planes))
    known = {str(plane): plane for plane in range(n_planes)}
    if not given or len(set(given)) < len(given) or not known.keys() >= set(given):
        raise InputError(
            f"planes are {', '.join(given) or 'none'}; give numbers from 0 to {n_planes - 1}, each once at most, "
            "masks first in counting"
        )
    return tuple(known[plane] for plane in given)


def as_recipe(recipe: str | os.PathLike[str] | Recipe) -> Recipe:
    """The recipe itself, the preset of that name, or the one in a TOML file."""
    if isinstance(recipe, Recipe):
        return recipe
    name = os.fspath(recipe)
    return Recipe.from_toml(name) if name.endswith(".toml") else Recipe.preset(name)
