"""What a script or a notebook calls: `plan`, `extract`, `iter_cells`, and the same for many slides."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from gpu_extract import backends, pipeline, planning
from gpu_extract.errors import InputError, OutputError
from gpu_extract.labels import Statistics, label_statistics
from gpu_extract.model import CellImages, CellTable, DroppedCells, Slide
from gpu_extract.recipe import Recipe
from gpu_extract.slide_table import SlideInput, as_slide_input, check_listed_once
from gpu_extract.sources import open_slides
from gpu_extract.sources.names import unique_names
from gpu_extract.sources.physical import as_pixel_size, mixed_sizes, rescaled, tile_size_in_pixels, vanished_ids
from gpu_extract.sources.selectors import located
from gpu_extract.store import CellStore, Contents, check_output

__all__ = ["extract", "extract_many", "iter_cells", "plan", "plan_many"]

LAYOUTS = ("h5sc", "sparcspy")
ON_BAD_SLIDE = ("stop", "skip")


def plan(
    image: Any,
    *,
    nucleus: Any = None,
    cytosol: Any = None,
    recipe: str | os.PathLike[str] | Recipe = "standard",
    tile_size: int | None = None,
    border: str | None = None,
    ids: Sequence[int] | None = None,
    n_cells: int | None = None,
    seed: int = 0,
    channel_names: Sequence[str] | None = None,
    channels: Sequence[int | str] | None = None,
    nuclear_channel: int | str | None = None,
    pixel_size: float | Sequence[float] | None = None,
    tile_size_um: float | None = None,
    scale: float | None = None,
    statistics: Statistics = label_statistics,
) -> planning.Plan:
    """What an extraction would do: cells kept, cells dropped and why, bytes; the image's pixels are not read.

    Parameters
    ----------
    image : array-like, path, or list of them
        (C, H, W) or (H, W), of uint8, uint16, int16, uint32, float16, float32 or float64: an array (NumPy, or
        anything that reads by slice, as dask), or the path of a .npy, .npz, TIFF, OME-TIFF, OME-Zarr, SpatialData
        store or HDF5 dataset (``file.h5:/path``). Several are the channels of one slide. A path may end in a
        selection, as ``image.zarr#level=1,c=0,2``; see `gpu_extract.sources.selectors`. With a time axis it is a
        slide for each time point.
    nucleus, cytosol : array-like, path or name, optional
        (H, W) integer ids of cells, 0 is background. One at least, or a store that names its labels in the usual
        way; with both, what belongs together has one id. A name is that of a label in the image's own store.
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
    statistics : callable
        What takes the statistics of a label plane; a GPU's is quicker.

    Returns
    -------
    Plan

    Raises
    ------
    InputError
        If the input cannot be extracted; the message says what, where and what to do.
    """
    return plan_many(
        [SlideInput(image, nucleus, cytosol)],
        recipe=recipe,
        tile_size=tile_size,
        border=border,
        ids=ids,
        n_cells=n_cells,
        seed=seed,
        channel_names=channel_names,
        channels=channels,
        nuclear_channel=nuclear_channel,
        pixel_size=pixel_size,
        tile_size_um=tile_size_um,
        scale=scale,
        statistics=statistics,
    )


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
    on_bad_slide : {"stop", "skip"}
        What to do with a slide that cannot be opened, or whose labels are wrong. Skipped ones are told of in the
        plan's ``notices``.

    The other parameters, and the errors, are those of `plan`; ids may restart on each slide.
    """
    if on_bad_slide not in ON_BAD_SLIDE:
        raise InputError(f"on_bad_slide is {on_bad_slide!r}; it must be 'stop' or 'skip'")
    if tile_size is not None and tile_size_um is not None:
        raise InputError("tile_size and tile_size_um were both given (--size, --size-um); give one of them")
    changes = {"tile_size": tile_size, "border": border, "nuclear_channel": nuclear_channel}
    wanted = as_recipe(recipe).replace(**{name: value for name, value in changes.items() if value is not None})
    selection = planning.Selection(_as_ids(ids), n_cells, seed)
    # Asked for twice: by the check here and by the plan.
    statistics = cast(Statistics, functools.cache(statistics))
    opened, notices = [], []
    inputs = [as_slide_input(given) for given in slides]
    check_listed_once(inputs)
    for given in inputs:
        try:
            found = _open(given, channel_names, channels, pixel_size, scale)
            if on_bad_slide == "skip":
                for slide in found:
                    planning.slide_statistics(slide, statistics)
            opened += found
        except InputError as error:
            if on_bad_slide == "stop":
                raise
            notices.append(f"skipped {given.image}: {error}")
    if not opened:
        raise InputError("there is no slide to extract" + (f"; {notices[0]}" if notices else ""))
    names = unique_names([slide.name for slide in opened], len(opened))
    named = [replace(slide, name=name) for slide, name in zip(opened, names, strict=True)]
    if tile_size_um is not None:
        wanted = wanted.replace(tile_size=tile_size_in_pixels(named, tile_size_um))
    notices += mixed_sizes(named)
    if channels is not None and nuclear_channel is None:
        notices += _nuclear_notice(wanted, named[0])
    planned = planning.make_plan(named, wanted, selection, statistics)
    return replace(planned, cells=_with_vanished(planned, statistics), notices=tuple(notices))


def _with_vanished(planned: planning.Plan, statistics: Statistics) -> CellTable:
    """The cells of a plan, with those among the dropped of which resampling leaves no pixel."""
    vanished = [vanished_ids(slide, statistics) for slide in planned.slides]
    if not any(map(len, vanished)):
        return planned.cells
    dropped = planned.cells.dropped
    slide = np.concatenate([dropped.slide, np.repeat(np.arange(len(vanished)), [len(ids) for ids in vanished])])
    ids = np.concatenate([dropped.ids, *vanished])
    reason = np.full(len(ids), "no pixel left after resampling", object)
    reason[: len(dropped)] = dropped.reason
    order = np.lexsort((ids, slide))
    return replace(planned.cells, dropped=DroppedCells(slide[order], ids[order], reason[order]))


def _nuclear_notice(recipe: Recipe, slide: Slide) -> list[str]:
    """Which of the channels that were chosen is the nuclear one, where nobody named it."""
    at = recipe.nuclear_channel
    if not isinstance(at, int) or at >= len(slide.channel_names) or not recipe.apply_masks:
        return []
    return [
        f"channel {slide.channel_names[at]} is cut with the nucleus mask, being number {at} of those chosen; "
        "name another or none with --nuclear-channel (nuclear_channel=)"
    ]


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
    found = []
    for slide in slides:
        known = slide.pixel_size if size is None else as_pixel_size(size)
        labelled = replace(slide, labels={**slide.labels, **given.labels}, pixel_size=known)
        found.append(labelled if scale is None else rescaled(labelled, scale))
    return found


def extract(
    image: Any,
    *,
    output: str | os.PathLike[str],
    nucleus: Any = None,
    cytosol: Any = None,
    device: str = "auto",
    threads: int | None = None,
    gpu_memory: float | None = None,
    compression: str = "gzip",
    layout: str = "h5sc",
    overwrite: bool = False,
    progress: pipeline.Progress | None = None,
    **choices: Any,
) -> pipeline.Report:
    """Extract every cell of a slide into an ``.h5sc`` file, and say what was done.

    Parameters
    ----------
    image, nucleus, cytosol
        As for `plan`.
    output : path
        The file to write. It appears under this name when it is complete.
    device : str
        ``auto`` (a GPU where one works, else the cpu), ``cpu``, ``cuda``, ``cuda:1``, ``reference``.
    threads : int, optional
        Threads that compute and encode; by default the cores that this process may use.
    gpu_memory : float, GiB, optional
        How much of a GPU's memory may be taken; by default most of what is free.
    compression : {"gzip", "none"}
    layout : {"h5sc"}
    overwrite : bool
        Replace ``output`` if it exists, once the new file is complete, and drop the remains of an unfinished run.
    progress : callable, optional
        Called with the number of cells written so far, and of all.
    **choices
        ``recipe``, ``tile_size``, ``border``, ``ids``, ``n_cells``, ``seed``, ``channel_names``, ``channels``,
        ``nuclear_channel``, ``pixel_size``, ``tile_size_um``, ``scale``: as for `plan`.

    Returns
    -------
    Report

    Raises
    ------
    InputError, OutputError, DeviceError
        Before anything is written, where that can be known.
    RunStoppedError
        If the output cannot be written on, for example because the disk is full.
    """
    return extract_many(
        [SlideInput(image, nucleus, cytosol)],
        output=output,
        device=device,
        threads=threads,
        gpu_memory=gpu_memory,
        compression=compression,
        layout=layout,
        overwrite=overwrite,
        progress=progress,
        **choices,
    )


def extract_many(
    slides: Sequence[SlideInput | Mapping[str, Any]],
    *,
    output: str | os.PathLike[str],
    device: str = "auto",
    threads: int | None = None,
    gpu_memory: float | None = None,
    compression: str = "gzip",
    layout: str = "h5sc",
    overwrite: bool = False,
    progress: pipeline.Progress | None = None,
    **choices: Any,
) -> pipeline.Report:
    """`extract` for several slides, into one file.

    ``obs`` says of each cell its slide and the slide's labels; rows are slides in the order given, ascending ids
    within a slide. ``slides`` and ``on_bad_slide`` are those of `plan_many`, all else is as for `extract`.
    """
    backend, threads = choose_backend(device, gpu_memory), as_threads(threads)
    path = Path(output)
    inputs = [as_slide_input(given) for given in slides]
    check_layout(layout)
    check_output(path, compression, overwrite=overwrite)
    for given in inputs:
        _check_not_an_input(path, given.image, given.nucleus, given.cytosol)
    planned = plan_many(inputs, statistics=backend.statistics, **choices)
    provenance = {"notices": "\n".join(planned.notices)} if planned.notices else {}
    contents = Contents(planned.cells, planned.slides, planned.program, provenance)
    store = CellStore.create(path, contents, compression=compression, overwrite=overwrite)
    return pipeline.run(planned, backend, store, threads, progress or (lambda written, total: None))


def iter_cells(
    image: Any,
    *,
    nucleus: Any = None,
    cytosol: Any = None,
    device: str = "auto",
    threads: int | None = None,
    gpu_memory: float | None = None,
    **choices: Any,
) -> Iterator[CellImages]:
    """Extract without a file: batches of finished tiles, one after the other.

    Parameters are those of `extract`. Batches come in the order in which they are read; ``rows`` says where
    each cell would stand in the file.

    Yields
    ------
    CellImages
        ``rows`` (n,), ``ids`` (n,), ``images`` (n, K, S, S) and ``levels`` (n, C, 2). On a GPU ``images`` is a CuPy
        array that stays there: ``torch.from_dlpack(cells.images)`` takes it without a copy.
    """
    backend, threads = choose_backend(device, gpu_memory), as_threads(threads)
    planned = plan(image, nucleus=nucleus, cytosol=cytosol, statistics=backend.statistics, **choices)

    def batches() -> Iterator[CellImages]:
        with ThreadPoolExecutor(threads, "gpu-extract") as workers:
            yield from pipeline.tiles(planned, backend, workers, threads, on_device=True)

    return batches()


def as_recipe(recipe: str | os.PathLike[str] | Recipe) -> Recipe:
    """The recipe itself, the preset of that name, or the one in a TOML file."""
    if isinstance(recipe, Recipe):
        return recipe
    name = os.fspath(recipe)
    return Recipe.from_toml(name) if name.endswith(".toml") else Recipe.preset(name)


def choose_backend(device: str, gpu_memory: float | None) -> backends.Backend:
    """The backend of a device name, with at most ``gpu_memory`` GiB of a GPU's memory."""
    return backends.choose(device, None if gpu_memory is None else int(gpu_memory * 2**30))


def as_threads(threads: int | None) -> int:
    """A positive number of threads; by default the cores that this process may use."""
    if threads is None:
        return pipeline.default_threads()
    if threads < 1:
        raise InputError(f"threads is {threads}; it must be 1 or more")
    return threads


def check_layout(layout: str) -> None:
    """Refuse a layout that this version does not write."""
    if layout == "sparcspy":
        raise OutputError("layout 'sparcspy' comes with a later version; 'h5sc' is what this one writes")
    if layout not in LAYOUTS:
        raise OutputError(f"unknown layout {layout!r}; it must be 'h5sc'")


def _as_ids(ids: Sequence[int] | None) -> np.ndarray[Any, np.dtype[np.uint64]] | None:
    if ids is None:
        return None
    try:
        return np.unique(np.array([int(i) for i in ids], np.uint64))
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"ids must be whole numbers from 1 to 2^64 - 1: {error}") from error


def _check_not_an_input(output: Path, *inputs: Any) -> None:
    """Refuse to write over a file that is read."""
    for given in inputs:
        for one in given if isinstance(given, list | tuple) else [given]:
            if not isinstance(one, str | os.PathLike):
                continue
            path = located(os.fsdecode(one), None).path  # without what selects a part of the file
            if os.path.realpath(path) == os.path.realpath(output):
                raise OutputError(f"output {output} is one of the inputs; choose another name")
