"""The options that the commands `run` and `plan` share, and the slides and `ExtractOptions` that they ask for."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from gpu_extract.errors import InputError
from gpu_extract.options import RunOptions
from gpu_extract.recipe import Recipe
from gpu_extract.settings import recipe_changes
from gpu_extract.sources.id_lists import read_ids
from gpu_extract.sources.slide_table import SlideInput, match_slides, read_slide_table

__all__ = ["CELLS", "OUTPUT", "Overwrite", "Quiet", "Request", "Seed", "Threads", "expand_home", "with_shared_options"]

# The groups of options in the help, in this order.
INPUT, CELLS, TILES, CHANNELS, OUTPUT, DEVICE = "Input", "Cells", "Tiles", "Channels", "Output", "Device"


def _choices(kind: type[Any], name: str) -> tuple[str, ...]:
    """Return the names that a parameter allows."""
    return get_args(get_type_hints(kind)[name])


def _one_of(*names: str) -> dict[str, Any]:
    """Return the settings of an option that takes one of some names: the help and completion show them.

    A wrong name is not refused here, but by the API, in one line.
    """

    def complete() -> list[str]:
        return list(names)

    return {"metavar": f"[{'|'.join(names)}]", "autocompletion": complete}


def expand_home(value: Any) -> Any:
    """Replace ``~`` at the start of a path, of several, or of the parts of a pattern, by the user's folder.

    A shell does this for words that start with ``~``, and not within quotes or in ``--output=~/cells.h5sc``.
    """
    if isinstance(value, list | tuple):
        return [expand_home(each) for each in value]
    if isinstance(value, Path):
        return Path(os.path.expanduser(value))
    return ";".join(map(os.path.expanduser, value.split(";"))) if value else value


# Shown as the default of options that a recipe has a value for.
OF_RECIPE = "the recipe's"

Images = Annotated[
    list[str] | None,
    typer.Argument(
        callback=expand_home,
        metavar="IMAGE...",
        help="The image of a slide, or several images, one per channel.",
        show_default=False,
    ),
]
Nucleus = Annotated[
    str | None,
    typer.Option(
        callback=expand_home,
        help="Label plane of the nuclei: a file, or a name in the image's store.",
        metavar="LABELS",
        rich_help_panel=INPUT,
    ),
]
Cytosol = Annotated[
    str | None,
    typer.Option(
        callback=expand_home,
        help="Label plane of the whole cells: a file, or a name in the image's store.",
        metavar="LABELS",
        rich_help_panel=INPUT,
    ),
]
Slides = Annotated[
    str | None,
    typer.Option(
        callback=expand_home,
        help="Several slides: a CSV table with the columns image, nucleus, cytosol and any metadata, or a pattern "
        "such as 'img/*_dna.tif', with the same * in --nucleus and --cytosol.",
        metavar="TABLE.csv|PATTERN",
        rich_help_panel=INPUT,
    ),
]
OnBadSlide = Annotated[
    str,
    typer.Option(
        help="Stop at an invalid slide of --slides, or skip it.", **_one_of("stop", "skip"), rich_help_panel=INPUT
    ),
]
TrustWords = Annotated[
    str | None,
    typer.Option(
        "--trust",
        help="Checks to skip, separated by commas: ids, binary, planes, placement. Their errors become warnings.",
        metavar="WHAT",
        rich_help_panel=INPUT,
    ),
]
AllowEmpty = Annotated[
    bool,
    typer.Option(
        "--allow-empty",
        help="Write a file without cells if no slide has any, instead of an error.",
        rich_help_panel=CELLS,
    ),
]
Size = Annotated[
    int | None, typer.Option(help="Side of a tile in pixels, 1 to 4096.", show_default=OF_RECIPE, rich_help_panel=TILES)
]
SizeUm = Annotated[
    float | None,
    typer.Option("--size-um", help="Side of a tile in um, instead of --size.", metavar="UM", rich_help_panel=TILES),
]
PixelSize = Annotated[
    float | None,
    typer.Option(
        help="Pixel size in um.", metavar="UM", show_default="from the image's metadata", rich_help_panel=INPUT
    ),
]
Scale = Annotated[
    float | None,
    typer.Option(
        help="Resample all slides to this pixel size in um first.",
        metavar="UM",
        show_default="no resampling",
        rich_help_panel=INPUT,
    ),
]
RecipeName = Annotated[
    str,
    typer.Option(
        "--recipe",
        callback=expand_home,
        help="standard, sparcspy, scportrait, or a TOML file.",
        metavar="NAME|FILE.toml",
        rich_help_panel=TILES,
    ),
]
Border = Annotated[
    str | None,
    typer.Option(
        help="Drop cells whose mask touches the slide's border, cells whose window leaves the slide, or none.",
        **_one_of(*_choices(Recipe, "border")),
        show_default=OF_RECIPE,
        rich_help_panel=CELLS,
    ),
]
Match = Annotated[
    str | None,
    typer.Option(
        help="Pair nuclei and cytosols by equal ids, or by overlap.",
        **_one_of(*_choices(Recipe, "match")),
        show_default=OF_RECIPE,
        rich_help_panel=CELLS,
    ),
]
SeveralNuclei = Annotated[
    str | None,
    typer.Option(
        help="Which nuclei of a cytosol to use, with --match overlap.",
        **_one_of(*_choices(Recipe, "several_nuclei")),
        show_default=OF_RECIPE,
        rich_help_panel=CELLS,
    ),
]
Pieces = Annotated[
    str | None,
    typer.Option(
        help="Which connected components of a label to use.",
        **_one_of(*_choices(Recipe, "pieces")),
        show_default=OF_RECIPE,
        rich_help_panel=CELLS,
    ),
]
Raw = Annotated[
    bool,
    typer.Option(
        "--raw",
        help="Store the pixels as they are: not masked, not normalized, in the image's type.",
        rich_help_panel=TILES,
    ),
]
NoMasks = Annotated[
    bool,
    typer.Option("--no-masks", help="Do not cut the channels with masks: apply_masks=false.", rich_help_panel=TILES),
]
Normalize = Annotated[
    str | None,
    typer.Option(
        help="Scale each channel to 0 to 1 by two quantiles, by --range, by its type's maximum, or not.",
        **_one_of(*_choices(Recipe, "normalization")),
        show_default=OF_RECIPE,
        rich_help_panel=TILES,
    ),
]
ValueRange = Annotated[
    str | None,
    typer.Option(
        "--range",
        help="The values that become 0 and 1, with --normalize range.",
        metavar="LOW,HIGH",
        rich_help_panel=TILES,
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Any parameter of a recipe, for example quantiles=0.01,0.99 or fill_nucleus=false; repeatable.",
        metavar="NAME=VALUE",
        rich_help_panel=TILES,
    ),
]
ChannelNames = Annotated[
    str | None,
    typer.Option(
        help="Names of the image's channels, all of them.",
        metavar="DNA,actin",
        show_default="from the image's metadata",
        rich_help_panel=CHANNELS,
    ),
]
Channels = Annotated[
    str | None,
    typer.Option(
        help="Channels to extract, by name or number, in this order.",
        metavar="DNA,actin|0,2",
        show_default="all",
        rich_help_panel=CHANNELS,
    ),
]
NuclearChannel = Annotated[
    str | None,
    typer.Option(
        help="Channel that is cut with the nucleus mask: its name, its number among those extracted, or none.",
        metavar="CHANNEL|none",
        show_default=OF_RECIPE,
        rich_help_panel=CHANNELS,
    ),
]
UniqueIds = Annotated[
    bool,
    typer.Option(
        "--unique-ids",
        help="Number the cells of all slides 1 to N; the ids in the label planes are then in cell_id.",
        rich_help_panel=OUTPUT,
    ),
]
Ids = Annotated[
    Path | None,
    typer.Option(
        callback=expand_home,
        help="Extract only the ids in this file, one per line.",
        metavar="FILE",
        show_default="all",
        rich_help_panel=CELLS,
    ),
]
NCells = Annotated[
    int | None,
    typer.Option(help="Extract this number of cells, drawn at random.", show_default="all", rich_help_panel=CELLS),
]
Seed = Annotated[int, typer.Option(help="Seed of the random draw.", rich_help_panel=CELLS)]
Planes = Annotated[
    str | None,
    typer.Option(
        help="Planes of a tile to keep, in this order, numbered from 0, masks first; only with --layout sparcspy.",
        metavar="0,1,3",
        show_default="all",
        rich_help_panel=OUTPUT,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        help="auto (a GPU if one works, else the CPU), cpu, cuda, cuda:N or reference.",
        metavar="DEVICE",
        rich_help_panel=DEVICE,
    ),
]
Threads = Annotated[
    int | None, typer.Option(help="Number of threads.", show_default="number of cores", rich_help_panel=DEVICE)
]
GpuMemory = Annotated[
    float | None,
    typer.Option(
        help="Maximum GPU memory to use, in GiB.",
        metavar="GIB",
        show_default="most of the free memory",
        rich_help_panel=DEVICE,
    ),
]
Compression = Annotated[
    str,
    typer.Option(
        help="Other programs need a plugin to read lz4 and zstd.",
        **_one_of(*_choices(RunOptions, "compression")),
        rich_help_panel=OUTPUT,
    ),
]
Layout = Annotated[
    str,
    typer.Option(
        help="Layout of the file; sparcspy is the classic single_cells.h5.",
        **_one_of(*_choices(RunOptions, "layout")),
        rich_help_panel=OUTPUT,
    ),
]
ChunkCells = Annotated[
    int,
    typer.Option(
        help="Cells per chunk of the file; more than 1 speeds up only reading in order.", rich_help_panel=OUTPUT
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace an existing OUT once the new file is complete.", rich_help_panel=OUTPUT),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on with an unfinished run of the same inputs and options; begin if there is none.",
        rich_help_panel=OUTPUT,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Do not show progress on stderr.", rich_help_panel=OUTPUT)]


@dataclass(frozen=True)
class Request:
    """The values of the options that `run` and `plan` share.

    Parameters
    ----------
    slides : list of SlideInput
    options : dict
        The `ExtractOptions` that were given.
    quiet : bool
        Whether to show no progress.
    read : tuple of str or path
        The files of options that have been read: a table of slides and a list of ids.
    """

    slides: list[SlideInput]
    options: dict[str, Any]
    quiet: bool
    read: tuple[str | Path, ...] = ()


def _request(
    image: Images = None,
    nucleus: Nucleus = None,
    cytosol: Cytosol = None,
    slides: Slides = None,
    on_bad_slide: OnBadSlide = "stop",
    allow_empty: AllowEmpty = False,
    trust: TrustWords = None,
    size: Size = None,
    size_um: SizeUm = None,
    pixel_size: PixelSize = None,
    scale: Scale = None,
    recipe: RecipeName = "standard",
    border: Border = None,
    match: Match = None,
    several_nuclei: SeveralNuclei = None,
    pieces: Pieces = None,
    raw: Raw = False,
    no_masks: NoMasks = False,
    normalize: Normalize = None,
    value_range: ValueRange = None,
    settings: Settings = None,
    channel_names: ChannelNames = None,
    channels: Channels = None,
    nuclear_channel: NuclearChannel = None,
    ids: Ids = None,
    n_cells: NCells = None,
    seed: Seed = 0,
    planes: Planes = None,
    device: Device = "auto",
    threads: Threads = None,
    gpu_memory: GpuMemory = None,
    compression: Compression = "gzip",
    layout: Layout = "h5sc",
    chunk_cells: ChunkCells = 1,
    unique_ids: UniqueIds = False,
    overwrite: Overwrite = False,
    resume: Resume = False,
    quiet: Quiet = False,
) -> Request:
    named = {
        "tile_size": ("--size", size),
        "border": ("--border", border),
        "match": ("--match", match),
        "several_nuclei": ("--several-nuclei", several_nuclei),
        "pieces": ("--pieces", pieces),
        "nuclear_channel": ("--nuclear-channel", nuclear_channel),
    }
    changes = recipe_changes(
        named, raw=raw, no_masks=no_masks, normalize=normalize, value_range=value_range, settings=settings or ()
    )
    options = {
        "recipe": recipe,
        **changes,
        "on_bad_slide": on_bad_slide,
        "allow_empty": allow_empty,
        "trust": trust,
        "ids": None if ids is None else read_ids(ids),
        "n_cells": n_cells,
        "seed": seed,
        "planes": planes,
        "channel_names": None if channel_names is None else [name.strip() for name in channel_names.split(",")],
        "channels": None if channels is None else [name.strip() for name in channels.split(",") if name.strip()],
        "pixel_size": pixel_size,
        "tile_size_um": size_um,
        "scale": scale,
        "device": device,
        "threads": threads,
        "gpu_memory": gpu_memory,
        "compression": compression,
        "layout": layout,
        "chunk_cells": chunk_cells,
        "unique_ids": unique_ids,
        "overwrite": overwrite,
        "resume": resume,
    }
    given = {name: value for name, value in options.items() if value is not None}
    read = tuple(file for file in (slides, ids) if file is not None)
    return Request(_slides(image, nucleus, cytosol, slides), given, quiet, read)


def with_shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with the parameters of `_request` before its own; it gets their values as ``request``."""
    shared = signature(_request, eval_str=True).parameters
    own = {name: one for name, one in signature(command, eval_str=True).parameters.items() if name != "request"}

    def with_options(**given: Any) -> None:
        values = {name: given.pop(name) for name in shared}
        command(request=_request(**values), **given)

    parameters = [one.replace(kind=Parameter.KEYWORD_ONLY) for one in (dict(shared) | own).values()]
    with_options.__name__, with_options.__doc__ = command.__name__, command.__doc__
    with_options.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {one.name: one.annotation for one in parameters}
    return with_options


def _slides(image: list[str] | None, nucleus: str | None, cytosol: str | None, slides: str | None) -> list[SlideInput]:
    """Return the slide of the arguments, or the slides of a table or a pattern."""
    if slides is not None and "*" in slides:
        if image:
            raise InputError("--slides and IMAGE were both given; give one of them, and put a pattern in quotes")
        return match_slides(slides, nucleus=nucleus, cytosol=cytosol)
    if slides is not None:
        if image or nucleus or cytosol:
            raise InputError(
                "--slides TABLE.csv and IMAGE, --nucleus or --cytosol were both given; "
                "name all files in the table, or put a pattern in quotes"
            )
        return read_slide_table(Path(slides))
    if not image:
        raise typer.BadParameter("give at least one IMAGE, or --slides")
    return [SlideInput(image[0] if len(image) == 1 else image, nucleus, cytosol)]
