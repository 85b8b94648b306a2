"""The command line: arguments in, exit codes out.

The exit codes are 0: done; 1: the input or the arguments are invalid, with one line on stderr; 2: wrong usage; 3: the
run was stopped before it was complete. Results go to stdout, progress and warnings to stderr. Only this module and
`gpu_extract.progress` print.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from inspect import Parameter, Signature, signature
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from gpu_extract import api
from gpu_extract.errors import GpuExtractError, InputError, OutputError, RunStoppedError
from gpu_extract.pipeline import Progress, Report
from gpu_extract.progress import progress_on_stderr
from gpu_extract.sources.id_lists import read_ids
from gpu_extract.sources.slide_table import SlideInput, match_slides, read_slide_table

app = typer.Typer(
    name="gpu-extract",
    help="Extract one centred, masked and normalised image per cell from microscopy slides, all into one file.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

# Shown as the default of options that a recipe has a value for.
OF_RECIPE = "the recipe's"

Images = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="IMAGE...", help="The image of a slide, or several images, one per channel.", show_default=False
    ),
]
Nucleus = Annotated[
    str | None,
    typer.Option(help="Label plane of the nuclei: a file, or a name in the image's store.", metavar="LABELS"),
]
Cytosol = Annotated[
    str | None,
    typer.Option(help="Label plane of the whole cells: a file, or a name in the image's store.", metavar="LABELS"),
]
Slides = Annotated[
    str | None,
    typer.Option(
        help="Several slides: a CSV table with the columns image, nucleus, cytosol and any metadata, or a pattern "
        "such as 'img/*_dna.tif', with the same * in --nucleus and --cytosol.",
        metavar="TABLE.csv|PATTERN",
    ),
]
OnBadSlide = Annotated[str, typer.Option(help="Stop at an invalid slide of --slides, or skip it.", metavar="stop|skip")]
TrustWords = Annotated[
    str | None,
    typer.Option(
        "--trust",
        help="Checks to skip, separated by commas: ids, binary, planes, placement. Their errors become warnings.",
        metavar="WHAT",
    ),
]
AllowEmpty = Annotated[
    bool, typer.Option("--allow-empty", help="Write a file without cells if no slide has any, instead of an error.")
]
Size = Annotated[int | None, typer.Option(help="Side of a tile in pixels, 1 to 4096.", show_default=OF_RECIPE)]
SizeUm = Annotated[
    float | None, typer.Option("--size-um", help="Side of a tile in um, instead of --size.", metavar="UM")
]
PixelSize = Annotated[
    float | None, typer.Option(help="Pixel size in um.", metavar="UM", show_default="from the image's metadata")
]
Scale = Annotated[
    float | None,
    typer.Option(
        help="Resample all slides to this pixel size in um first.", metavar="UM", show_default="no resampling"
    ),
]
RecipeName = Annotated[
    str,
    typer.Option("--recipe", help="standard, sparcspy, scportrait, or a TOML file.", metavar="NAME|FILE.toml"),
]
Border = Annotated[
    str | None,
    typer.Option(
        help="Drop cells whose mask touches the slide's border, cells whose window leaves the slide, or none.",
        metavar="mask|window|keep",
        show_default=OF_RECIPE,
    ),
]
Match = Annotated[
    str | None,
    typer.Option(
        help="Pair nuclei and cytosols by equal ids, or by overlap.", metavar="id|overlap", show_default=OF_RECIPE
    ),
]
SeveralNuclei = Annotated[
    str | None,
    typer.Option(
        help="Which nuclei of a cytosol to use, with --match overlap.",
        metavar="largest|all",
        show_default=OF_RECIPE,
    ),
]
Pieces = Annotated[
    str | None,
    typer.Option(help="Which connected components of a label to use.", metavar="all|largest", show_default=OF_RECIPE),
]
Channels = Annotated[
    str | None,
    typer.Option(
        help="Channels to extract, by name or number, in this order.", metavar="DNA,actin|0,2", show_default="all"
    ),
]
NuclearChannel = Annotated[
    str | None,
    typer.Option(
        help="Channel that is cut with the nucleus mask: its name, its number among those extracted, or none.",
        metavar="CHANNEL|none",
        show_default=OF_RECIPE,
    ),
]
UniqueIds = Annotated[
    bool,
    typer.Option(
        "--unique-ids", help="Number the cells of all slides 1 to N; the ids in the label planes are then in cell_id."
    ),
]
Ids = Annotated[
    Path | None,
    typer.Option(help="Extract only the ids in this file, one per line.", metavar="FILE", show_default="all"),
]
NCells = Annotated[int | None, typer.Option(help="Extract this number of cells, drawn at random.", show_default="all")]
Seed = Annotated[int, typer.Option(help="Seed of the random draw.")]
Planes = Annotated[
    str | None,
    typer.Option(
        help="Planes of a tile to keep, in this order, numbered from 0, masks first; only with --layout sparcspy.",
        metavar="0,1,3",
        show_default="all",
    ),
]
Device = Annotated[
    str,
    typer.Option(help="auto (a GPU if one works, else the CPU), cpu, cuda, cuda:N or reference.", metavar="DEVICE"),
]
Threads = Annotated[int | None, typer.Option(help="Number of threads.", show_default="number of cores")]
GpuMemory = Annotated[
    float | None,
    typer.Option(help="Maximum GPU memory to use, in GiB.", metavar="GIB", show_default="most of the free memory"),
]
Compression = Annotated[
    str,
    typer.Option(
        help="gzip, lzf, lz4, zstd or none; other programs need a plugin to read lz4 and zstd.", metavar="NAME"
    ),
]
Layout = Annotated[
    str, typer.Option(help="Layout of the file; sparcspy is the classic single_cells.h5.", metavar="h5sc|sparcspy")
]
ChunkCells = Annotated[
    int, typer.Option(help="Cells per chunk of the file; more than 1 speeds up only reading in order.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing OUT once the new file is complete.")]
Resume = Annotated[bool, typer.Option("--resume", help="Not available yet; comes with a later version.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Do not show progress on stderr.")]


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
    options = {
        "recipe": recipe,
        "tile_size": size,
        "border": border,
        "match": match,
        "several_nuclei": several_nuclei,
        "pieces": pieces,
        "nuclear_channel": nuclear_channel,
        "on_bad_slide": on_bad_slide,
        "allow_empty": allow_empty,
        "trust": trust,
        "ids": None if ids is None else read_ids(ids),
        "n_cells": n_cells,
        "seed": seed,
        "planes": planes,
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
    """Return the command with the parameters of `_request` after its own; it gets their values as ``request``."""
    shared = signature(_request, eval_str=True).parameters
    own = {name: one for name, one in signature(command, eval_str=True).parameters.items() if name != "request"}

    def with_options(**given: Any) -> None:
        values = {name: given.pop(name) for name in shared}
        command(request=_request(**values), **given)

    parameters = [one.replace(kind=Parameter.KEYWORD_ONLY) for one in (own | dict(shared)).values()]
    with_options.__name__, with_options.__doc__ = command.__name__, command.__doc__
    with_options.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {one.name: one.annotation for one in parameters}
    return with_options


@app.command()
@_with_shared_options
def run(
    request: Request,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="The file to write.")],
) -> None:
    """Extract every cell of one or more slides into OUT (.h5sc, or .h5 with --layout sparcspy)."""
    with _progress_of_run(output, quiet=request.quiet) as progress:
        report = api.extract_many(request.slides, output=output, progress=progress, **request.options)
    _print_report(report)


@app.command()
@_with_shared_options
def plan(
    request: Request,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT", help="The file that `run` would write; only checked."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
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
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to write to.")] = Path(
        "gpu-extract-demo"
    ),
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
def info(file: Annotated[Path, typer.Argument(metavar="FILE")]) -> None:
    """Show what a file of cells contains and how it was made."""
    from gpu_extract.store.reader import open_cells

    with open_cells(file) as cells:
        print(f"{file}: {len(cells)} cells, {len(cells.planes)} planes of {_square(cells.tile_size)} {cells.dtype}")
        print(f"planes: {', '.join(cells.planes)}")
        for name, value in cells.info.items():
            text = str(value).strip()
            print(f"{name}:" + ("\n  " + text.replace("\n", "\n  ") if "\n" in text else f" {text}"))


@app.command()
def verify(file: Annotated[Path, typer.Argument(metavar="FILE")]) -> None:
    """Read and check every cell of a file; the exit code is 1 if it is damaged."""
    from gpu_extract.store import verify as check

    print(f"{file}: sound, {check(file)}")


@app.command()
def gallery(
    file: Annotated[Path, typer.Argument(metavar="FILE")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT.png")],
    n_cells: Annotated[int, typer.Option(help="Number of cells to draw, chosen at random.")] = 10,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Draw some cells of a file as a PNG picture, one row per cell and one column per plane."""
    _write_gallery(file, output, n_cells=n_cells, seed=seed, overwrite=overwrite)
    print(output)


@app.command()
def report(
    file: Annotated[Path, typer.Argument(metavar="FILE")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT.html")],
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
