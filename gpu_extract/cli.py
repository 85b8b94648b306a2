"""The command line: arguments in, exit codes out.

The exit codes are 0: done; 1: the input or the arguments are invalid, with one line on stderr; 2: wrong usage; 3: the
run was stopped before it was complete. Results go to stdout, progress and warnings to stderr. Only this module and
`gpu_extract.progress` print.
"""

from __future__ import annotations

import io
import json
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from gpu_extract import api, interrupts
from gpu_extract.cli_options import (
    CELLS,
    OUTPUT,
    Overwrite,
    Quiet,
    Request,
    Seed,
    Threads,
    expand_home,
    with_shared_options,
)
from gpu_extract.errors import ExtractionWarning, GpuExtractError, InputError, OutputError, RunStoppedError
from gpu_extract.overwriting import check_not_read
from gpu_extract.pipeline import Report
from gpu_extract.progress import progress_on_stderr

# Shown below the help of `run`; rich separates paragraphs by empty lines.
EXAMPLES = """Examples:

gpu-extract run image.ome.tif --nucleus nuclei.tif --cytosol cells.tif -o cells.h5sc

gpu-extract run --slides slides.csv --size 64 --channels DNA,actin --device cuda -o cells.h5sc
"""
PLAN_EXAMPLES = """Examples:

gpu-extract plan image.ome.tif --nucleus nuclei.tif --cytosol cells.tif

gpu-extract plan --slides slides.csv --size-um 40 --json
"""
INFO_EXAMPLES = """Examples:

gpu-extract info cells.h5sc

gpu-extract info cells.h5sc --json
"""
VERIFY_EXAMPLES = """Examples:

gpu-extract verify cells.h5sc

gpu-extract verify *.h5sc --threads 4 --json > checked.json
"""

app = typer.Typer(
    name="gpu-extract",
    help="Extract one centered, masked and normalized image per cell from microscopy slides, all into one file.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


@app.command(epilog=EXAMPLES)
@with_shared_options
def run(
    request: Request,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            callback=expand_home,
            metavar="OUT",
            help="The file to write; missing folders are made.",
            rich_help_panel=OUTPUT,
        ),
    ],
) -> None:
    """Extract every cell of one or more slides into OUT (.h5sc, or .h5 with --layout sparcspy)."""
    check_not_read(output, request.read)
    with _stopped_cleanly(api.NOTHING_WRITTEN):
        report = api.extract_many(request.slides, output=output, progress=not request.quiet, **request.options)
    _print_report(report)


@app.command(epilog=PLAN_EXAMPLES)
@with_shared_options
def plan(
    request: Request,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            callback=expand_home,
            metavar="OUT",
            help="The file that `run` would write; only checked.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.", rich_help_panel=OUTPUT)] = False,
) -> None:
    """Show the plan of `run` with the same arguments, and estimates from a survey; nothing is written."""
    if output is not None:
        check_not_read(output, request.read)
    with _stopped_cleanly(), progress_on_stderr(quiet=request.quiet, doing="surveying"):
        survey = api.survey_many(request.slides, output=output, **request.options)
    if as_json:
        print(json.dumps(survey.to_dict(), indent=1))
    else:
        from gpu_extract.report import survey_lines

        print(*survey_lines(survey), sep="\n")


DEMO_EXAMPLES = """Examples:

gpu-extract demo

gpu-extract demo -o ~/demo --quiet
"""


@app.command(epilog=DEMO_EXAMPLES)
def demo(
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            callback=expand_home,
            metavar="DIR",
            help="The folder to write to; it is made if it is missing.",
            rich_help_panel=OUTPUT,
        ),
    ] = Path("gpu-extract-demo"),
    quiet: Quiet = False,
) -> None:
    """Extract the sample that is part of the package, real HT29 cells, into cells.h5sc and gallery.png."""
    from gpu_extract import demo_data

    sample = demo_data.paths()
    cells, picture = output / "cells.h5sc", output / "gallery.png"
    with _stopped_cleanly(api.NOTHING_WRITTEN):
        report = api.extract(
            sample.image,
            nucleus=sample.nucleus,
            cytosol=sample.cytosol,
            output=cells,
            tile_size=64,
            overwrite=_is_demo_file(cells),
            resume=not cells.exists(),
            progress=not quiet,
        )
    _print_report(report)
    _write_gallery(cells, picture, n_cells=10, seed=0, overwrite=True)
    print(f"{picture}: some of the cells; report.html comes with a later version")


@app.command(epilog=INFO_EXAMPLES)
def info(
    file: Annotated[Path, typer.Argument(callback=expand_home, metavar="FILE")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything as JSON, with all slides and the whole recipe.")
    ] = False,
) -> None:
    """Show what a file of cells contains and how it was made."""
    from gpu_extract.report import file_lines
    from gpu_extract.store.reader import open_cells

    with open_cells(file) as cells:
        summary = cells.summary()
    if as_json:
        print(json.dumps(summary, indent=1))
    else:
        print(*file_lines(summary), sep="\n")


@app.command(epilog=VERIFY_EXAMPLES)
def verify(
    files: Annotated[list[Path], typer.Argument(callback=expand_home, metavar="FILE...")],
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.", rich_help_panel=OUTPUT)] = False,
    quiet: Quiet = False,
) -> None:
    """Read and check every cell of one or more files; the exit code is 1 if any is damaged."""
    from gpu_extract.store import verify as check

    results = []
    for file in files:
        try:
            with progress_on_stderr(quiet=quiet, doing="verifying") as progress:
                found = check(file, threads=threads, progress=progress)
            results.append({"file": str(file), "is_sound": True, **found.to_dict()})
            if not as_json:
                print(f"{file}: sound, {found}")
        except OutputError as error:
            results.append({"file": str(file), "is_sound": False, "problem": str(error)})
            _fail(error, 1)
    if as_json:
        print(json.dumps(results, indent=1))
    if not all(result["is_sound"] for result in results):
        raise typer.Exit(1)


GALLERY_EXAMPLES = """Examples:

gpu-extract gallery cells.h5sc -o gallery.png

gpu-extract gallery cells.h5sc -o pictures/other.png --n-cells 40 --seed 1
"""


@app.command(epilog=GALLERY_EXAMPLES)
def gallery(
    file: Annotated[Path, typer.Argument(callback=expand_home, metavar="FILE", help="A file of cells.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            callback=expand_home,
            metavar="OUT.png",
            help="The picture to write; missing folders are made.",
            rich_help_panel=OUTPUT,
        ),
    ],
    n_cells: Annotated[
        int, typer.Option(help="Number of cells to draw, chosen at random.", rich_help_panel=CELLS)
    ] = 10,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Draw some cells of a file as a PNG picture, one row per cell and one column per plane."""
    _write_gallery(file, output, n_cells=n_cells, seed=seed, overwrite=overwrite)
    print(output)


@app.command()
def report(
    file: Annotated[Path, typer.Argument(callback=expand_home, metavar="FILE")],
    output: Annotated[Path, typer.Option("--output", "-o", callback=expand_home, metavar="OUT.html")],
) -> None:
    """Not available yet: an HTML page about a run comes with a later version."""
    raise OutputError("report comes with a later version; 'gpu-extract info' and 'gpu-extract gallery' work now")


DOCTOR_EXAMPLES = """Examples:

gpu-extract doctor

OMP_NUM_THREADS=4 gpu-extract doctor
"""


@app.command(epilog=DOCTOR_EXAMPLES)
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


WARM_EXAMPLES = """Examples:

gpu-extract warm

gpu-extract warm --images uint16 --labels int32,int64
"""


@app.command(epilog=WARM_EXAMPLES)
def warm(
    images: Annotated[
        str | None,
        typer.Option(help="Types of images; uint8,uint16,float32 by default.", metavar="TYPE,...", show_default=False),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Types of labels; uint16,int32,uint32,int64 by default.", metavar="TYPE,...", show_default=False
        ),
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
    """Run the command line ``gpu-extract``; `gpu_extract.__main__` also handles signals."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files in a terminal that lacks their letters
    try:
        with _printed_warnings():
            app(prog_name="gpu-extract")  # also as python -m gpu_extract: completion needs the name of a program
    except RunStoppedError as error:
        sys.exit(_fail(error, 3))
    except GpuExtractError as error:
        sys.exit(_fail(error, 1))
    except OSError as error:  # a full disk behind stdout; what is read and written has errors of its own
        interrupts.discard_stdout()
        sys.exit(_fail(OutputError(f"stopped by an error of the system: {error}"), 1))


def _fail(error: GpuExtractError, code: int) -> int:
    _say(f"gpu-extract: {error}")
    return code


def _say(line: str) -> None:
    """Print a line on stderr; a log that cannot be written changes nothing."""
    with suppress(OSError, ValueError):  # a closed stream raises ValueError
        print(line, file=sys.stderr, flush=True)


def _types(text: str | None, default: Sequence[str], kinds: str = "iuf") -> list[str]:
    """Return the names of pixel types in a text, separated by commas."""
    import numpy as np

    names = default if text is None else [name.strip() for name in text.split(",")]
    known = [np.dtype(code).name for code in "BHILbhilefd" if np.dtype(code).kind in kinds]
    for name in names:
        if name not in known:
            raise InputError(f"{name!r} is not a type; it must be one of {', '.join(known)}")
    return list(names)


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
    check_not_read(picture, [file])
    with open_cells(file) as cells, _stopped_cleanly():
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
def _stopped_cleanly(otherwise: str = "stopped") -> Iterator[None]:
    """Let the block clean up if it is stopped, and convert Ctrl-C to an error that says what was kept."""
    try:
        with interrupts.raised():
            yield
    except KeyboardInterrupt as stop:
        raise RunStoppedError(str(stop) or otherwise) from None


def _print_report(report: Report) -> None:
    """Print the report of a run, whose file is complete even if nothing can be printed any more."""
    try:
        print(*_report_lines(report), sep="\n", flush=True)
    except OSError as error:
        interrupts.discard_stdout()
        _say(f"gpu-extract: {report.path} is complete; its report is not printed: {error.strerror}")


def _report_lines(report: Report) -> Iterator[str]:
    size = f"{report.path}: {report.n_cells:,} cells, {report.path.stat().st_size / 1e6:,.1f} MB"
    if report.resumed and not report.seconds:
        yield f"{size}; complete before, nothing was left to do"
        return
    yield size + (f"; {report.resumed:,} of them were written before" if report.resumed else "")
    for reason, n in report.dropped.items():
        yield f"dropped {n:,}: {reason}"
    if report.masking:
        yield report.masking
    seconds = time.perf_counter() - interrupts.STARTED
    yield (
        f"device {report.device}, {report.threads} threads, {seconds:.1f} s in all, "
        f"{(report.n_cells - report.resumed) / seconds:,.0f} cells/s; extraction {report.seconds:.1f} s, "
        f"{report.cells_per_second:,.0f} cells/s"
    )


@contextmanager
def _printed_warnings() -> Iterator[None]:
    """Print each `ExtractionWarning` as one line; where in the code it was issued is of no use here."""
    show = warnings.showwarning

    def show_line(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, ExtractionWarning):
            _say(f"warning: {message}")
        else:
            show(message, category, *place, **more)

    with warnings.catch_warnings():
        warnings.simplefilter("always", ExtractionWarning)
        warnings.showwarning = show_line
        yield
