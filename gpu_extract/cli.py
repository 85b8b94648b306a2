"""The command line: arguments in, exit codes out.

The exit codes are 0: done; 1: the input or the arguments are invalid, with one line on stderr; 2: wrong usage; 3: the
run was stopped before it was complete. Results go to stdout, progress and warnings to stderr. Only this module and
`gpu_extract.progress` print.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from inspect import Parameter, Signature, signature
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, get_args, get_type_hints

import typer

from gpu_extract import api
from gpu_extract.errors import GpuExtractError, InputError, OutputError, RunStoppedError
from gpu_extract.options import RunOptions
from gpu_extract.pipeline import Progress, Report
from gpu_extract.progress import progress_on_stderr
from gpu_extract.recipe import Recipe
from gpu_extract.settings import recipe_changes
from gpu_extract.sources.id_lists import read_ids
from gpu_extract.sources.slide_table import SlideInput, match_slides, read_slide_table

# Shown below the help of `run`; rich separates paragraphs by empty lines.
EXAMPLES = """Examples:

gpu-extract run image.ome.tif --nucleus nuclei.tif --cytosol cells.tif -o cells.h5sc

gpu-extract run --slides slides.csv --size 64 --channels DNA,actin --device cuda -o cells.h5sc
"""
PLAN_EXAMPLES = """Examples:

gpu-extract plan image.ome.tif --nucleus nuclei.tif --cytosol cells.tif

gpu-extract plan --slides slides.csv --size-um 40 --json
"""

app = typer.Typer(
    name="gpu-extract",
    help="Extract one centered, masked and normalized image per cell from microscopy slides, all into one file.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

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


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"gpu-extract {version('gpu-extract')}")
        raise typer.Exit


@app.callback()
def _common(
    is_version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Take the options before the command."""


def _expand_home(value: Any) -> Any:
    """Replace ``~`` at the start of a path, of several, or of the parts of a pattern, by the user's folder.

    A shell does this for words that start with ``~``, and not within quotes or in ``--output=~/cells.h5sc``.
    """
    if isinstance(value, list | tuple):
        return [_expand_home(each) for each in value]
    if isinstance(value, Path):
        return Path(os.path.expanduser(value))
    return ";".join(map(os.path.expanduser, value.split(";"))) if value else value


# Shown as the default of options that a recipe has a value for.
OF_RECIPE = "the recipe's"

Images = Annotated[
    list[str] | None,
    typer.Argument(
        callback=_expand_home,
        metavar="IMAGE...",
        help="The image of a slide, or several images, one per channel.",
        show_default=False,
    ),
]
Nucleus = Annotated[
    str | None,
    typer.Option(
        callback=_expand_home,
        help="Label plane of the nuclei: a file, or a name in the image's store.",
        metavar="LABELS",
        rich_help_panel=INPUT,
    ),
]
Cytosol = Annotated[
    str | None,
    typer.Option(
        callback=_expand_home,
        help="Label plane of the whole cells: a file, or a name in the image's store.",
        metavar="LABELS",
        rich_help_panel=INPUT,
    ),
]
Slides = Annotated[
    str | None,
    typer.Option(
        callback=_expand_home,
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
        callback=_expand_home,
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
        callback=_expand_home,
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
    bool, typer.Option("--resume", help="Not available yet; comes with a later version.", rich_help_panel=OUTPUT)
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
    """

    slides: list[SlideInput]
    options: dict[str, Any]
    quiet: bool


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
    if resume:
        raise OutputError("--resume comes with a later version; use --overwrite to start again")
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
    }
    given = {name: value for name, value in options.items() if value is not None}
    return Request(_slides(image, nucleus, cytosol, slides), given, quiet)


def _with_shared_options(command: Callable[..., None]) -> Callable[..., None]:
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


@app.command(epilog=EXAMPLES)
@_with_shared_options
def run(
    request: Request,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            callback=_expand_home,
            metavar="OUT",
            help="The file to write; missing folders are made.",
            rich_help_panel=OUTPUT,
        ),
    ],
) -> None:
    """Extract every cell of one or more slides into OUT (.h5sc, or .h5 with --layout sparcspy)."""
    with _progress_of_run(output, quiet=request.quiet) as progress:
        report = api.extract_many(request.slides, output=output, progress=progress, **request.options)
    _print_report(report)


@app.command(epilog=PLAN_EXAMPLES)
@_with_shared_options
def plan(
    request: Request,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            callback=_expand_home,
            metavar="OUT",
            help="The file that `run` would write; only checked.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.", rich_help_panel=OUTPUT)] = False,
) -> None:
    """Show the plan of `run` with the same arguments, and estimates from a survey; nothing is written."""
    survey = api.survey_many(request.slides, output=output, **request.options)
    if as_json:
        print(json.dumps(survey.to_dict(), indent=1))
    else:
        from gpu_extract.report import survey_lines

        print(*survey_lines(survey), sep="\n")
    _print_warnings(survey.plan.warnings)


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", callback=_expand_home, metavar="DIR", help="The folder to write to.")
    ] = Path("gpu-extract-demo"),
    quiet: Quiet = False,
) -> None:
    """Extract the sample that is part of the package, real HT29 cells, into cells.h5sc and gallery.png."""
    from gpu_extract import demo_data

    sample = demo_data.paths()
    cells, picture = output / "cells.h5sc", output / "gallery.png"
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"folder {output} cannot be made: {error.strerror}; choose another with -o") from error
    with _progress_of_run(cells, quiet=quiet) as progress:
        report = api.extract(
            sample.image,
            nucleus=sample.nucleus,
            cytosol=sample.cytosol,
            output=cells,
            tile_size=64,
            overwrite=_is_demo_file(cells),
            progress=progress,
        )
    _print_report(report)
    _write_gallery(cells, picture, n_cells=10, seed=0, overwrite=True)
    print(f"{picture}: some of the cells; report.html comes with a later version")


@app.command()
def info(file: Annotated[Path, typer.Argument(callback=_expand_home, metavar="FILE")]) -> None:
    """Show what a file of cells contains and how it was made."""
    from gpu_extract.store.reader import open_cells

    with open_cells(file) as cells:
        print(f"{file}: {len(cells)} cells, {len(cells.planes)} planes of {_square(cells.tile_size)} {cells.dtype}")
        print(f"planes: {', '.join(cells.planes)}")
        for name, value in cells.info.items():
            text = str(value).strip()
            print(f"{name}:" + ("\n  " + text.replace("\n", "\n  ") if "\n" in text else f" {text}"))


@app.command()
def verify(file: Annotated[Path, typer.Argument(callback=_expand_home, metavar="FILE")]) -> None:
    """Read and check every cell of a file; the exit code is 1 if it is damaged."""
    from gpu_extract.store import verify as check

    print(f"{file}: sound, {check(file)}")


@app.command()
def gallery(
    file: Annotated[Path, typer.Argument(callback=_expand_home, metavar="FILE")],
    output: Annotated[Path, typer.Option("--output", "-o", callback=_expand_home, metavar="OUT.png")],
    n_cells: Annotated[int, typer.Option(help="Number of cells to draw, chosen at random.")] = 10,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Draw some cells of a file as a PNG picture, one row per cell and one column per plane."""
    _write_gallery(file, output, n_cells=n_cells, seed=seed, overwrite=overwrite)
    print(output)


@app.command()
def report(
    file: Annotated[Path, typer.Argument(callback=_expand_home, metavar="FILE")],
    output: Annotated[Path, typer.Option("--output", "-o", callback=_expand_home, metavar="OUT.html")],
) -> None:
    """Not available yet: an HTML page about a run comes with a later version."""
    raise OutputError("report comes with a later version; 'gpu-extract info' and 'gpu-extract gallery' work now")


@app.command()
def doctor() -> None:
    """Show which devices work on this machine, and which versions are installed."""
    import h5py

    from gpu_extract import backends
    from gpu_extract.cpus import thread_limits

    print(f"gpu-extract {version('gpu-extract')}, Python {sys.version.split()[0]}")
    limits = thread_limits()
    decides = min(limits, key=lambda name: limits[name])
    print(f"threads: {limits[decides]}, by {decides} ({', '.join(f'{name}: {n}' for name, n in limits.items())})")
    problems = {device: backends.try_device(device) for device in ("cpu", "reference", "cuda", "reference:cuda")}
    for device, reason in problems.items():
        print(f"  {device:<14} " + (f"no: {reason}" if reason else "works"))
    print(f"device 'auto' is {'cpu' if backends.why_not('cuda') else 'cuda:0'!r}")
    if not problems["cpu"]:
        from gpu_extract.backends.cpu import code_cache

        print(f"compiled code: {code_cache.folder() or code_cache.NO_FOLDER}")
    print(f"HDF5 {h5py.version.hdf5_version}")
    for package in ("numpy", "scipy", "numba", "h5py", "anndata", "isal", "tifffile", "imagecodecs"):
        print(f"  {package:<12} {version(package)}")
    absent = "not installed; reference:cuda uses cupyx instead (pip install cucim-cu13, or cucim-cu12 for CUDA 12)"
    print(f"  {'cucim':<12} {backends.cucim_version() or absent}")


@app.command()
def warm(
    images: Annotated[
        str | None,
        typer.Option(help="Types of images.", metavar="TYPE,...", show_default="uint8,uint16,float32"),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="Types of labels.", metavar="TYPE,...", show_default="uint16,int32,uint32,int64"),
    ] = None,
) -> None:
    """Compile the kernels of the cpu device ahead, for float16 tiles; the first run of a type does it otherwise."""
    from gpu_extract.backends.cpu import warm as kernels

    image_dtypes, label_dtypes = _types(images, kernels.IMAGE_DTYPES), _types(labels, kernels.LABEL_DTYPES, "iu")
    folder = kernels.writable_folder()
    for image in image_dtypes:
        for plane in label_dtypes:
            print(f"{image} images, {plane} labels: {kernels.warm(image, plane):.1f} s", flush=True)
    print(f"compiled code is kept in {folder}")


def main() -> None:
    """Run the command line ``gpu-extract``."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app()
    except RunStoppedError as error:
        sys.exit(_fail(error, 3))
    except GpuExtractError as error:
        sys.exit(_fail(error, 1))


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """Stop a run on SIGTERM as on Ctrl-C, which keeps the cells that are written."""
    raise KeyboardInterrupt


def _fail(error: GpuExtractError, code: int) -> int:
    print(f"gpu-extract: {error}", file=sys.stderr)
    return code


def _types(text: str | None, default: Sequence[str], kinds: str = "iuf") -> list[str]:
    """Return the names of pixel types in a text, separated by commas."""
    import numpy as np

    names = default if text is None else [name.strip() for name in text.split(",")]
    known = [np.dtype(code).name for code in "BHILbhilefd" if np.dtype(code).kind in kinds]
    for name in names:
        if name not in known:
            raise InputError(f"{name!r} is not a type; it must be one of {', '.join(known)}")
    return list(names)


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


def _is_demo_file(path: Path) -> bool:
    """Return whether an earlier `demo` wrote this file, which the next may then replace."""
    from gpu_extract.store.reader import open_cells

    try:
        with open_cells(path) as cells:
            return "demo_data" in str(cells.info.get("sources"))
    except GpuExtractError:
        return False


def _write_gallery(file: Path, picture: Path, *, n_cells: int, seed: int, overwrite: bool) -> None:
    import numpy as np

    from gpu_extract.report import write_gallery
    from gpu_extract.store.reader import open_cells

    if n_cells < 1:
        raise InputError(f"n_cells is {n_cells}; it must be 1 or more")
    with open_cells(file) as cells:
        n = min(n_cells, len(cells))
        rows = np.sort(np.random.default_rng(seed).choice(len(cells), n, replace=False))
        write_gallery(
            picture,
            cells.read(rows),
            cells.ids[rows],
            cells.planes,
            len(cells.mask_planes),
            n_total=len(cells),
            title=file.name,
            overwrite=overwrite,
        )


@contextmanager
def _progress_of_run(output: Path, *, quiet: bool) -> Iterator[Progress]:
    """Show the progress of a run; if it is stopped, raise an error that says what was kept."""
    counts = (0, 0)
    with progress_on_stderr(quiet=quiet) as show:

        def progress(n_cells: int, total: int) -> None:
            nonlocal counts
            counts = (n_cells, total)
            show(n_cells, total)

        try:
            yield progress
        except KeyboardInterrupt:
            n_cells, total = counts
            if not n_cells:
                raise RunStoppedError("stopped before any cell was written") from None
            raise RunStoppedError(
                f"stopped at {n_cells:,} of {total:,} cells, which are kept in {output}.partial; "
                "resuming comes with a later version, use --overwrite to start again"
            ) from None


def _print_report(report: Report) -> None:
    print(f"{report.path}: {report.n_cells:,} cells, {report.path.stat().st_size / 1e6:,.1f} MB")
    for reason, n in report.dropped.items():
        print(f"dropped {n:,}: {reason}")
    print(
        f"device {report.device}, {report.threads} threads, {report.seconds:.1f} s, "
        f"{report.cells_per_second:,.0f} cells/s"
    )
    _print_warnings(report.warnings)


def _print_warnings(warnings: Iterable[str]) -> None:
    for line in warnings:
        print(f"warning: {line}", file=sys.stderr)


def _square(size: int) -> str:
    return f"{size} x {size}"
