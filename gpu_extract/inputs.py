"""From inputs and options to a plan: open the inputs, bring them to one scale, and plan them together."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, Unpack, cast

import numpy as np
from numpy.typing import NDArray

from gpu_extract import planning
from gpu_extract.checks import Trust, as_trust, check_labels
from gpu_extract.errors import InputError
from gpu_extract.labels import Statistics, label_statistics
from gpu_extract.listing import listed
from gpu_extract.messages import announce, warn
from gpu_extract.model import CellTable, DroppedCells, Slide
from gpu_extract.options import ImageInput, LabelInput, PlanOptions, check_options
from gpu_extract.recipe import Recipe
from gpu_extract.sources import open_slides
from gpu_extract.sources.names import unique_names
from gpu_extract.sources.physical import (
    as_pixel_size,
    lost_ids,
    mixed_sizes,
    pixel_size_warning,
    rescaled,
    tile_size_in_pixels,
)
from gpu_extract.sources.plates import plate_inputs
from gpu_extract.sources.slide_table import SlideInput, as_slide_input, check_listed_once

__all__ = ["as_recipe", "plan", "plan_many", "plan_slides"]

ON_BAD_SLIDE = ("stop", "skip")
# Names of stains and proteins that mark nuclei.
NUCLEAR_STAIN = re.compile(
    r"(?<![a-z])(dapi|hoechst|dna|dsdna|draq5|sytox|h2b|histone\w*|nucle(us|i|ar))(?![a-z])", re.IGNORECASE
)
# The parameters of a recipe that may be given as options.
RECIPE_OPTIONS = frozenset(field.name for field in fields(Recipe)) - {"base"}


def plan(
    image: ImageInput,
    *,
    nucleus: LabelInput | None = None,
    cytosol: LabelInput | None = None,
    **options: Unpack[PlanOptions],
) -> planning.Plan:
    """Return what an extraction will do: cells kept, cells dropped and why, planes, bytes, a fitting tile size.

    The label planes are read, and a few windows of the image. For estimates of time, memory and file size see
    `gpu_extract.survey`.

    Parameters
    ----------
    image : array, path, or sequence of them
        (C, H, W) or (H, W), of uint8, uint16, int16, uint32, float16, float32 or float64: an array (NumPy, or
        any array that reads by slice, such as Dask), or the path of a .npy, .npz, TIFF, OME-TIFF, OME-Zarr,
        SpatialData store, HDF5 dataset (``file.h5:/path``) or classic SPARCSpy project. A list or tuple holds the
        channels of one slide. A path may end in a selection, such as ``image.zarr#level=1,c=0,2``; see
        `gpu_extract.sources.selectors`. An image with a time axis becomes one slide per time point.
    nucleus, cytosol : array, path or name, optional
        (H, W) integer ids of cells, 0 is background. At least one is needed, unless the image is a classic project or
        a store with label planes of the usual names. If both are given, a nucleus and a cytosol with the same id are
        one cell. A name is that of a label plane in the image's own store.
    **options
        See `PlanOptions`.

    Returns
    -------
    Plan

    Raises
    ------
    InputError
        If the input cannot be extracted; the message says what, where and what to do.
    UnknownOptionError
        If there is no option of that name. It is an `InputError` and a `TypeError`.
    """
    check_options(options, PlanOptions, "image", "nucleus", "cytosol")
    return _with_warnings(plan_slides([SlideInput(image, nucleus, cytosol)], options))


def plan_many(slides: Sequence[SlideInput | Mapping[str, Any]], **options: Unpack[PlanOptions]) -> planning.Plan:
    """Return the plan of several slides that become one dataset; see `plan`.

    Parameters
    ----------
    slides : sequence of SlideInput or mapping
        Each with ``image``, ``nucleus`` and ``cytosol`` as for `plan`; all other keys of a mapping are the slide's
        metadata. All slides must have the same label planes, channels and pixel type; with ``tile_size_um`` also the
        same pixel size, unless ``scale`` is given. Ids may restart on each slide.
    **options
        See `PlanOptions`.

    Returns
    -------
    Plan

    Raises
    ------
    InputError, UnknownOptionError
        As for `plan`.
    """
    check_options(options, PlanOptions, "slides")
    return _with_warnings(plan_slides([as_slide_input(given) for given in slides], options))


def _with_warnings(planned: planning.Plan) -> planning.Plan:
    """Issue the warnings of a plan and return it."""
    warn(planned.warnings)
    return planned


def plan_slides(
    inputs: Sequence[SlideInput], options: PlanOptions, statistics: Statistics = label_statistics
) -> planning.Plan:
    """Make the plan of `plan_many` with the label statistics of a backend.

    Parameters
    ----------
    inputs : sequence of SlideInput
    options : PlanOptions
        May hold further keys, which have no effect.
    statistics : callable
        `label_statistics`, or an equivalent that is faster on a GPU.
    """
    # A script that passes None for an option means its default.
    options = cast(PlanOptions, {name: value for name, value in options.items() if value is not None})
    on_bad_slide, channels = options.get("on_bad_slide", "stop"), options.get("channels")
    if on_bad_slide not in ON_BAD_SLIDE:
        raise InputError(f"on_bad_slide is {on_bad_slide!r}; it must be 'stop' or 'skip'")
    tile_size_um = options.get("tile_size_um")
    if "tile_size" in options and tile_size_um is not None:
        raise InputError("tile_size and tile_size_um were both given (--size, --size-um); give one of them")
    changes = {name: value for name, value in options.items() if name in RECIPE_OPTIONS}
    recipe = as_recipe(options.get("recipe", "standard")).replace(**changes)
    subset = planning.CellSubset(_as_ids(options.get("ids")), options.get("n_cells"), options.get("seed", 0))
    # Cached, because both the check of the slides and the plan call it.
    statistics = cast(Statistics, functools.cache(statistics))
    if on_bad_slide == "skip":  # each field of a plate by itself
        inputs = [each for given in inputs for each in plate_inputs(given)]
    check_listed_once(inputs)
    trust = as_trust(options.get("trust"))
    in_um = tile_size_um is not None or options.get("scale") is not None
    check = None
    if on_bad_slide == "skip":
        check = partial(_check_slide, recipe=recipe, statistics=statistics, trust=trust, in_um=in_um)
    opened, warnings = _opened(inputs, lambda given: _open(given, options, trust), check)
    names = unique_names([slide.name for slide in opened], len(opened))
    named = [replace(slide, name=name) for slide, name in zip(opened, names, strict=True)]
    if tile_size_um is not None:
        recipe = recipe.replace(tile_size=tile_size_in_pixels(named, tile_size_um))
    warnings += mixed_sizes(named)
    if "nuclear_channel" not in options:
        warnings += _nuclear_warnings(recipe, named[0], were_chosen=channels is not None)
    allow_empty = options.get("allow_empty", False)
    planned = planning.make_plan(named, recipe, subset, statistics, allow_empty=allow_empty, trust=trust, in_um=in_um)
    planned = planning.with_checked_images(planned, trust, statistics)
    return replace(
        planned,
        cells=_with_lost(planned, named, statistics),
        warnings=(*warnings, *planned.warnings),
        planes=_as_planes(options.get("planes"), planned.program.n_planes),
    )


def _opened(
    inputs: Sequence[SlideInput], open_one: Callable[[SlideInput], list[Slide]], check: Callable[[Slide], None] | None
) -> tuple[list[Slide], list[str]]:
    """Open all inputs. With ``check``, invalid slides are skipped, and a warning is returned for each."""
    opened, warnings = [], []
    for number, given in enumerate(inputs, 1):
        announce("opening input %d of %d", number, len(inputs))
        try:
            found = open_one(given)
            if check is not None:
                for slide in found:
                    check(slide)
            opened += found
        except InputError as error:
            if check is None and given.origin:
                raise type(error)(f"{given.origin}: {error}") from error
            if check is None:
                raise
            warnings.append(f"skipped {given.image}: {error}")
    if not opened:
        raise InputError("there is no slide to extract" + (f"; {warnings[0]}" if warnings else ""))
    return opened, warnings


def _open(given: SlideInput, options: PlanOptions, trust: Collection[str]) -> list[Slide]:
    """Open an input as one slide, or one per time point, resampled if ``scale`` is given."""
    channel_names, pixel_size = options.get("channel_names"), options.get("pixel_size")
    size = pixel_size if given.pixel_size is None else given.pixel_size
    slides = open_slides(
        given.image,
        nucleus=given.nucleus,
        cytosol=given.cytosol,
        channel_names=given.channel_names if channel_names is None else channel_names,
        channels=options.get("channels"),
        name=given.name,
        pixel_size=None if size is None else as_pixel_size(size),
        trust=trust,
    )
    ids, scale, found = _as_ids(given.ids), options.get("scale"), []
    for slide in slides:
        known = slide.pixel_size if size is None else as_pixel_size(size)
        labelled = replace(slide, metadata={**slide.metadata, **given.metadata}, pixel_size=known)
        if size is not None:  # what was doubtful of the file's own does not matter
            own = tuple(line for line in labelled.warnings if not line.startswith("pixel size"))
            labelled = replace(labelled, pixel_size_source="as given", warnings=own)
        if size is None and (scale is not None or options.get("tile_size_um") is not None):
            labelled = replace(labelled, warnings=(*labelled.warnings, *pixel_size_warning(labelled)))
        if ids is not None:
            labelled = labelled.only(ids)
        found.append(labelled if scale is None else rescaled(labelled, scale))
    return found


def _check_slide(
    slide: Slide, recipe: Recipe, statistics: Statistics, trust: Collection[Trust], *, in_um: bool
) -> None:
    """Check what a run would refuse of the labels of a slide.

    Raises
    ------
    LabelError
    """
    check_labels(slide, planning.slide_statistics(slide, statistics), recipe, trust, in_um=in_um)


def _nuclear_warnings(recipe: Recipe, slide: Slide, *, were_chosen: bool) -> list[str]:
    """Return a warning about the nuclear channel that nobody named.

    Parameters
    ----------
    recipe : Recipe
    slide : Slide
    were_chosen : bool
        Whether the channels are a choice of the user, so that the place of the nuclear one may be another than meant.
    """
    at, nuclear = recipe.nuclear_channel, recipe.nuclear_name(slide.channel_names)
    if nuclear is None:
        return []
    stains = [name for name in slide.channel_names if NUCLEAR_STAIN.search(name)]
    if stains and nuclear not in stains and len(slide.masks) > 1:
        return [
            f"channel {nuclear} is cut with the nucleus mask, being number {at}, and {listed(stains)} with the "
            f"cytosol mask; if {stains[0]} is the nuclear stain, give --nuclear-channel {stains[0]} "
            f"(nuclear_channel={stains[0]!r}), or none if no channel is"
        ]
    if not were_chosen or nuclear in stains:
        return []
    return [
        f"channel {nuclear} is cut with the nucleus mask, being number {at} of those chosen; "
        "name another or none with --nuclear-channel (nuclear_channel=)"
    ]


def _with_lost(planned: planning.Plan, slides: Sequence[Slide], statistics: Statistics) -> CellTable:
    """Return the plan's cells; ids that placing and resampling left without a pixel are added to the dropped ones."""
    lost = [
        DroppedCells(np.full(len(ids), index), ids, np.full(len(ids), reason, np.uint8))
        for index, slide in enumerate(slides)
        for reason, ids in lost_ids(slide, statistics).items()
    ]
    if not lost:
        return planned.cells
    every = [planned.cells.dropped, *lost]
    slide, ids, reason = (
        np.concatenate([getattr(each, name) for each in every]) for name in ("slide", "ids", "reason")
    )
    order = np.lexsort((ids, slide))
    return replace(planned.cells, dropped=DroppedCells(slide[order], ids[order], reason[order]))


def _as_ids(ids: Iterable[int] | None) -> NDArray[np.uint64] | None:
    if ids is None:
        return None
    try:
        return np.unique(np.array([int(i) for i in ids], np.uint64))
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"ids must be whole numbers from 1 to 2^64 - 1: {error}") from error


def _as_planes(planes: str | Sequence[int] | None, n_planes: int) -> tuple[int, ...]:
    """Return the indices of the chosen planes; empty means all planes."""
    if planes is None:
        return ()
    given = [plane.strip() for plane in planes.split(",")] if isinstance(planes, str) else list(map(str, planes))
    known = {str(plane): plane for plane in range(n_planes)}
    if not given or len(set(given)) < len(given) or not known.keys() >= set(given):
        raise InputError(
            f"planes are {listed(given) or 'none'}; give numbers from 0 to {n_planes - 1}, each once at most, "
            "masks first in counting"
        )
    return tuple(known[plane] for plane in given)


def as_recipe(recipe: str | os.PathLike[str] | Recipe) -> Recipe:
    """Return a recipe unchanged, a preset by its name, or the recipe in a TOML file."""
    if isinstance(recipe, Recipe):
        return recipe
    name = os.fspath(recipe)
    return Recipe.from_toml(name) if name.endswith(".toml") else Recipe.preset(name)
