"""The command line: arguments in, exit codes out.

0 done; 1 the input or the arguments are wrong, one line on stderr; 2 usage; 3 stopped half way. Results go to
stdout, progress and warnings to stderr. This is the only module that prints.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
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
    help="Cut one picture out of a microscopy slide per cell: centred, masked, normalised, all in one file.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Images = Annotated[
    list[str] | None,
    typer.Argument(metavar="IMAGE...", help="The image, or the one-channel images of a slide.", show_default=False),
]
Nucleus = Annotated[str | None, typer.Option(help="Label plane of the nuclei: a file, or a name.", metavar="LABELS")]
Cytosol = Annotated[
    str | None, typer.Option(help="Label plane of the whole cells: a file, or a name.", metavar="LABELS")
]
Size = Annotated[int | None, typer.Option(help="Side of a tile in pixels; 128, or the recipe's own.")]
RecipeName = Annotated[str, typer.Option("--recipe", help="standard, sparcspy, scportrait, or a TOML file.")]
Border = Annotated[str | None, typer.Option(help="mask, window or keep; the recipe's own.")]
Match = Annotated[str | None, typer.Option(help="id or overlap: what makes a nucleus and a cytosol one cell.")]
SeveralNuclei = Annotated[str | None, typer.Option(help="largest or all, of the nuclei in a cytosol, by overlap.")]
Pieces = Annotated[str | None, typer.Option(help="all or largest, of a label in several pieces.")]
Planes = Annotated[
    str | None, typer.Option(help="Planes of a tile to keep, in that order, masks first: 0,1,3 (--layout sparcspy).")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or reference.")]
GpuMemory = Annotated[float | None, typer.Option(help="GiB of a GPU's memory to take; most of what is free.")]
Threads = Annotated[int | None, typer.Option(help="Threads; as many as cores.")]
Compression = Annotated[str, typer.Option(help="gzip, lzf, lz4, zstd or none.")]
Layout = Annotated[str, typer.Option(help="h5sc, or sparcspy for the classic single_cells.h5.")]
ChunkCells = Annotated[int, typer.Option(help="Cells in a chunk of the file; more only for reading in bulk.")]
Ids = Annotated[Path | None, typer.Option(help="Extract the ids of this file only, one a line.", metavar="FILE")]
NCells = Annotated[int | None, typer.Option(help="Extract this many cells, drawn at random.")]
Seed = Annotated[int, typer.Option(help="Seed of the random draw.")]
Channels = Annotated[str | None, typer.Option(help="Only these channels, in this order.", metavar="DNA,actin|0,2")]
NuclearChannel = Annotated[
    str | None,
    typer.Option(help="The channel cut with the nucleus mask, a name or a number; none; the recipe's own: the first."),
]
PixelSize = Annotated[float | None, typer.Option(help="um per pixel; what the image says.", metavar="UM")]
SizeUm = Annotated[
    float | None, typer.Option("--size-um", help="Side of a tile in um, instead of --size.", metavar="UM")
]
Scale = Annotated[
    float | None, typer.Option(help="Resample every slide to this many um per pixel first.", metavar="UM")
]
Slides = Annotated[
    str | None,
    typer.Option(
        help="Many slides: a CSV table with image, nucleus, cytosol and any labels; or a pattern such as "
        "'img/*_dna.tif', with the same * in the label planes.",
        metavar="TABLE.csv|PATTERN",
    ),
]
OnBadSlide = Annotated[str, typer.Option(help="stop or skip, where a slide of the table cannot be read.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT when the new file is complete.")]
Resume = Annotated[bool, typer.Option("--resume", help="Comes with a later version.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]


@dataclass(frozen=True)
class Asked:
    """What the options that `run` and `plan` share ask for.

    Parameters
    ----------
    slides : list of SlideInput
    choices, running : dict
        Arguments of `inputs.plan_many`, and those that `api.extract_many` has besides.
    quiet : bool
    """

    slides: list[SlideInput]
    choices: dict[str, Any]
    running: dict[str, Any]
    quiet: bool


def _options(
    image: Images = None,
    nucleus: Nucleus = None,
    cytosol: Cytosol = None,
    slides: Slides = None,
    on_bad_slide: OnBadSlide = "stop",
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
    overwrite: Overwrite = False,
    resume: Resume = False,
    quiet: Quiet = False,
) -> Asked:
    if resume:
        raise OutputError("--resume comes with a later version; --overwrite starts again")
    return Asked(
        slides=_slides(image, nucleus, cytosol, slides),
        choices=_given(
            recipe=recipe,
            tile_size=size,
            border=border,
            match=match,
            several_nuclei=several_nuclei,
            pieces=pieces,
            on_bad_slide=on_bad_slide,
            ids=None if ids is None else read_ids(ids),
            n_cells=n_cells,
            seed=seed,
            planes=planes,
            channels=None if channels is None else [name.strip() for name in channels.split(",") if name.strip()],
            nuclear_channel=nuclear_channel,
            pixel_size=pixel_size,
            tile_size_um=size_um,
            scale=scale,
        ),
        running=_given(
            device=device,
            threads=threads,
            gpu_memory=gpu_memory,
            compression=compression,
            layout=layout,
            chunk_cells=chunk_cells,
            overwrite=overwrite,
        ),
        quiet=quiet,
    )


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given, without those that were left out."""
    return {name: value for name, value in options.items() if value is not None}


def _asked(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the parameters of `_options` behind its own, and their result as its ``asked``."""
    shared = signature(_options, eval_str=True).parameters
    own = {name: one for name, one in signature(command, eval_str=True).parameters.items() if name != "asked"}

    def with_options(**given: Any) -> None:
        options = {name: given.pop(name) for name in shared}
        command(asked=_options(**options), **given)

    parameters = [one.replace(kind=Parameter.KEYWORD_ONLY) for one in (own | dict(shared)).values()]
    with_options.__name__, with_options.__doc__ = command.__name__, command.__doc__
    with_options.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {one.name: one.annotation for one in parameters}
    return with_options


@app.command()
@_asked
def run(
    asked: Asked,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="The file to write.")],
) -> None:
    """Extract every cell of a slide into OUT (.h5sc, or .h5 with --layout sparcspy)."""
    with _running(output, quiet=asked.quiet) as progress:
        done = api.extract_many(asked.slides, output=output, progress=progress, **asked.running, **asked.choices)
    _print_report(done)


@app.command()
@_asked
def plan(
    asked: Asked,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="OUT", help="Only checked.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
) -> None:
    """Tell what `run` with the same arguments would do; nothing is written."""
    told = api.survey_many(asked.slides, output=output, **asked.running, **asked.choices)
    if as_json:
        print(json.dumps(told.to_dict(), indent=1))
    else:
        from gpu_extract.report import survey_lines

        print(*survey_lines(told), sep="\n")
    for line in told.plan.warnings:
        print(f"warning: {line}", file=sys.stderr)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where to write.")] = Path(
        "gpu-extract-demo"
    ),
    quiet: Quiet = False,
) -> None:
    """Extract the shipped sample, real HT29 cells: cells.h5sc and gallery.png."""
    from gpu_extract import demo_data

    sample = demo_data.paths()
    cells, picture = output / "cells.h5sc", output / "gallery.png"
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"folder {output} cannot be made: {error.strerror}; choose another with -o") from error
    with _running(cells, quiet=quiet) as progress:
        done = api.extract(
            sample.image,
            nucleus=sample.nucleus,
            cytosol=sample.cytosol,
            output=cells,
            tile_size=64,
            overwrite=_is_demo_file(cells),
            progress=progress,
        )
    _print_report(done)
    _write_gallery(cells, picture, n_cells=10, seed=0, overwrite=True)
    print(f"{picture}: look at it; report.html comes with a later version")


@app.command()
def info(file: Annotated[Path, typer.Argument(metavar="FILE")]) -> None:
    """Say what a file of cells holds and how it was made."""
    from gpu_extract.store.reader import open_cells

    with open_cells(file) as cells:
        print(f"{file}: {len(cells)} cells, {len(cells.planes)} planes of {_square(cells.tile_size)} {cells.dtype}")
        print(f"planes: {', '.join(cells.planes)}")
        for name, value in cells.info.items():
            text = str(value).strip()
            print(f"{name}:" + ("\n  " + text.replace("\n", "\n  ") if "\n" in text else f" {text}"))


@app.command()
def verify(file: Annotated[Path, typer.Argument(metavar="FILE")]) -> None:
    """Read every cell of a file and check it; exit code 1 if anything is wrong."""
    from gpu_extract.store import verify as check

    print(f"{file}: sound, {check(file)}")


@app.command()
def gallery(
    file: Annotated[Path, typer.Argument(metavar="FILE")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT.png")],
    n_cells: Annotated[int, typer.Option(help="Cells to show, drawn at random.")] = 10,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Draw some cells of a file: a row a cell, a column a plane."""
    _write_gallery(file, output, n_cells=n_cells, seed=seed, overwrite=overwrite)
    print(output)


@app.command()
def report(
    file: Annotated[Path, typer.Argument(metavar="FILE")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT.html")],
) -> None:
    """Comes with a later version: a page about a run."""
    raise OutputError("report comes with a later version; 'gpu-extract info' and 'gpu-extract gallery' work now")


@app.command()
def doctor() -> None:
    """Tell which devices work here, and which versions are installed."""
    import h5py

    from gpu_extract import backends
    from gpu_extract.parallel import default_threads

    print(f"gpu-extract {version('gpu-extract')}, Python {sys.version.split()[0]}, {default_threads()} cores")
    for device in ("cpu", "reference", "cuda", "reference:cuda"):
        reason = backends.why_not(device)
        print(f"  {device:<14} " + (f"no: {reason}" if reason else "works"))
    print(f"device 'auto' is {backends.choose('auto').device!r}")
    print(f"HDF5 {h5py.version.hdf5_version}")
    for package in ("numpy", "scipy", "numba", "h5py", "anndata", "isal", "tifffile", "imagecodecs"):
        print(f"  {package:<12} {version(package)}")


def main() -> None:
    """The entry point of ``gpu-extract``."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app()
    except RunStoppedError as error:
        sys.exit(_fail(error, 3))
    except GpuExtractError as error:
        sys.exit(_fail(error, 1))


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """SIGTERM stops a run as Ctrl-C does, with what was written kept."""
    raise KeyboardInterrupt


def _fail(error: GpuExtractError, code: int) -> int:
    print(f"gpu-extract: {error}", file=sys.stderr)
    return code


def _slides(image: list[str] | None, nucleus: str | None, cytosol: str | None, slides: str | None) -> list[SlideInput]:
    """The one slide of the arguments, or those of a table or a pattern."""
    if slides is not None and "*" in slides:
        if image:
            raise InputError("--slides and IMAGE were both given; write a pattern in quotes, and the rest as options")
        return match_slides(slides, nucleus=nucleus, cytosol=cytosol)
    if slides is not None:
        if image or nucleus or cytosol:
            raise InputError(
                "--slides and IMAGE, --nucleus or --cytosol were both given; "
                "a table names the files, and a pattern stands in quotes"
            )
        return read_slide_table(Path(slides))
    if not image:
        raise typer.BadParameter("give at least one IMAGE, or --slides")
    return [SlideInput(image[0] if len(image) == 1 else image, nucleus, cytosol)]


def _is_demo_file(path: Path) -> bool:
    """Whether an earlier `demo` wrote this file, so that a new one may replace it."""
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
def _running(output: Path, *, quiet: bool) -> Iterator[Progress]:
    """Progress of a run, and a clear word on what is left behind when it is stopped."""
    done = (0, 0)
    with progress_on_stderr(quiet=quiet) as show:

        def progress(n_cells: int, total: int) -> None:
            nonlocal done
            done = (n_cells, total)
            show(n_cells, total)

        try:
            yield progress
        except KeyboardInterrupt:
            n_cells, total = done
            if not n_cells:
                raise RunStoppedError("stopped before any cell was written") from None
            raise RunStoppedError(
                f"stopped at {n_cells:,} of {total:,} cells, which are kept in {output}.partial; "
                "going on from there comes with a later version, --overwrite starts again"
            ) from None


def _print_report(report: Report) -> None:
    print(f"{report.path}: {report.n_cells:,} cells, {report.path.stat().st_size / 1e6:,.1f} MB")
    _print_dropped(report.dropped)
    print(
        f"device {report.device}, {report.threads} threads, {report.seconds:.1f} s, "
        f"{report.cells_per_second:,.0f} cells/s"
    )
    for line in report.warnings:
        print(f"warning: {line}", file=sys.stderr)


def _print_dropped(dropped: dict[str, int]) -> None:
    for reason, n in dropped.items():
        print(f"dropped {n:,}: {reason}")


def _square(size: int) -> str:
    return f"{size} x {size}"
