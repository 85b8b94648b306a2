"""What a script or a notebook calls: `extract`, `iter_cells`, `survey`, and the same for many slides."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from gpu_extract import backends, pipeline, surveying
from gpu_extract.inputs import plan_slides
from gpu_extract.messages import warn
from gpu_extract.model import CellImages
from gpu_extract.options import ExtractOptions, ImageInput, LabelInput, PlanOptions, check_options
from gpu_extract.overwriting import check_not_read
from gpu_extract.parallel import as_threads, worker_threads
from gpu_extract.planning import Plan
from gpu_extract.progress import shown
from gpu_extract.sources.fingerprints import slide_fingerprint
from gpu_extract.sources.selectors import input_paths
from gpu_extract.sources.slide_table import SlideInput, as_slide_input
from gpu_extract.store import CellStore, Claim, Contents, FinishedError, check_output, choose_layout, claim_output
from gpu_extract.surveying import Survey

__all__ = ["NOTHING_WRITTEN", "extract", "extract_many", "iter_cells", "survey", "survey_many"]

# Said of a run that is stopped while it plans, or soon after.
NOTHING_WRITTEN = "stopped before any cell was written"


def extract(
    image: ImageInput,
    *,
    output: str | os.PathLike[str],
    nucleus: LabelInput | None = None,
    cytosol: LabelInput | None = None,
    progress: pipeline.Progress | bool | None = None,
    **options: Unpack[ExtractOptions],
) -> pipeline.Report:
    """Extract every cell of a slide into a file, and return a report.

    Parameters
    ----------
    image, nucleus, cytosol
        See `plan`.
    output : path
        The file to write: .h5sc, .h5ad, .h5 or .hdf5, or with ``layout="sparcspy"`` .h5, .hdf5 or .h5sc. Missing
        folders are made. It appears under this name once it is complete.
    progress : bool or callable, optional
        True shows progress on stderr, as a bar in a terminal or a notebook. A callable is called with the number of
        cells written so far and the number of all cells. The logger ``gpu_extract`` gets each phase as INFO.
    **options
        `PlanOptions`, among them ``recipe``, ``tile_size``, ``channels``, ``ids`` and every parameter of a `Recipe`;
        and `RunOptions`: ``device``, ``threads``, ``gpu_memory``, ``compression``, ``layout``, ``chunk_cells``,
        ``unique_ids``, ``overwrite``, ``resume``.

    Returns
    -------
    Report

    Raises
    ------
    InputError, OutputError, DeviceError
        Before anything is written, where that can be known.
    UnknownOptionError
        If there is no option of that name. It is an `InputError` and a `TypeError`.
    RunStoppedError
        If the output can no longer be written, for example because the disk is full, or an input can no longer be
        read. The cells written so far are kept; ``resume=True`` goes on with them.
    KeyboardInterrupt
        On Ctrl-C; its message says how many cells were kept, and where.

    Warns
    -----
    ExtractionWarning
        For each of the report's ``warnings``; those about the input are issued before the extraction begins.
    """
    check_options(options, ExtractOptions, "image", "output", "nucleus", "cytosol", "progress")
    return extract_many([SlideInput(image, nucleus, cytosol)], output=output, progress=progress, **options)


def extract_many(
    slides: Sequence[SlideInput | Mapping[str, Any]],
    *,
    output: str | os.PathLike[str],
    progress: pipeline.Progress | bool | None = None,
    **options: Unpack[ExtractOptions],
) -> pipeline.Report:
    """`extract` for several slides, into one file.

    Each cell's slide and the slide's metadata are in ``obs``. Rows are in the order of the slides, and in ascending
    order of ids within a slide.

    Parameters
    ----------
    slides : sequence of SlideInput or mapping
        See `plan_many`.
    output, progress, **options
        See `extract`.

    Returns
    -------
    Report

    Raises
    ------
    InputError, OutputError, DeviceError, UnknownOptionError, RunStoppedError
        As for `extract`.
    """
    check_options(options, ExtractOptions, "slides", "output", "progress")
    inputs = [as_slide_input(given) for given in slides]
    path = Path(os.path.expanduser(output))
    try:
        with shown(progress) as show, _claimed(inputs, path, options) as claim:
            job = _prepare(inputs, claim.target.path, options)
            cut_off = pipeline.truncation(job.plan)
            warn(cut_off)
            report = _extracted(job, claim, show)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(str(stop) or NOTHING_WRITTEN) from None
    warn(report.warnings[len(job.plan.warnings) + len(cut_off) :])
    return report


def survey(
    image: ImageInput,
    *,
    nucleus: LabelInput | None = None,
    cytosol: LabelInput | None = None,
    output: str | os.PathLike[str] | None = None,
    **options: Unpack[ExtractOptions],
) -> Survey:
    """Return the plan of `extract` with the same arguments, and estimates of its time, memory and file size.

    The label planes and the image are read, and some cells are extracted into a temporary file. Nothing else is
    written. For the plan alone see `plan`.

    Parameters
    ----------
    image, nucleus, cytosol
        See `plan`.
    output : path, optional
        Where the file would be written. It is checked, and not written.
    **options
        See `extract`.

    Returns
    -------
    Survey

    Raises
    ------
    InputError, OutputError, DeviceError, UnknownOptionError
        As for `extract`.
    """
    check_options(options, ExtractOptions, "image", "nucleus", "cytosol", "output")
    return survey_many([SlideInput(image, nucleus, cytosol)], output=output, **options)


def survey_many(
    slides: Sequence[SlideInput | Mapping[str, Any]],
    *,
    output: str | os.PathLike[str] | None = None,
    **options: Unpack[ExtractOptions],
) -> Survey:
    """`survey` for several slides, as for `extract_many`.

    Parameters
    ----------
    slides : sequence of SlideInput or mapping
        See `plan_many`.
    output, **options
        See `survey`.

    Returns
    -------
    Survey

    Raises
    ------
    InputError, OutputError, DeviceError, UnknownOptionError
        As for `extract`.
    """
    check_options(options, ExtractOptions, "slides", "output")
    inputs = [as_slide_input(given) for given in slides]
    path = None if output is None else Path(os.path.expanduser(output))
    if path is not None:
        _check_not_an_input(path, inputs, options)
        check_output(path, **_target_options(options))
    job = _prepare(inputs, path, options)
    return surveying.survey(job.plan, job.backend, job.threads, job.storage)


def iter_cells(
    image: ImageInput,
    *,
    nucleus: LabelInput | None = None,
    cytosol: LabelInput | None = None,
    device: str = "auto",
    threads: int | None = None,
    gpu_memory: float | None = None,
    **options: Unpack[PlanOptions],
) -> Iterator[CellImages]:
    """Iterate over batches of finished tiles, without writing a file.

    Parameters
    ----------
    image, nucleus, cytosol, **options
        See `plan`.
    device, threads, gpu_memory
        See `RunOptions`.

    Yields
    ------
    CellImages
        ``rows`` (n,), ``ids`` (n,), ``images`` (n, K, S, S) and ``limits`` (n, C, 2). Batches come in the order in
        which they are read; ``rows`` are the rows that the cells would have in the file. On a GPU ``images`` is a
        CuPy array that stays there: ``torch.from_dlpack(cells.images)`` takes it without a copy.

    Raises
    ------
    InputError, DeviceError, UnknownOptionError
        As for `extract`, on the call and not on the first batch.

    Notes
    -----
    Images on a GPU are complete when they are yielded, and can be read on any stream. Later batches reuse the memory of
    a batch that is dropped, so a kernel that still reads it must be finished or known: work on CUDA's default stream,
    where PyTorch and CuPy run unless told otherwise, always is; after work on another stream call
    ``cells.record_stream(stream)`` before the batch is dropped. Batches that are kept need memory, which
    ``gpu_memory`` limits; copy what is needed for longer.
    """
    check_options(options, PlanOptions, "image", "nucleus", "cytosol", "device", "threads", "gpu_memory")
    backend, n_threads = choose_backend(device, gpu_memory), as_threads(threads)
    plan = plan_slides([SlideInput(image, nucleus, cytosol)], options, backend.statistics)
    warn(plan.warnings)

    def batches() -> Iterator[CellImages]:
        with worker_threads(n_threads, "gpu-extract") as workers:
            yield from pipeline.tiles(plan, backend, workers, n_threads, on_device=True)

    return batches()


def choose_backend(device: str, gpu_memory: float | None) -> backends.Backend:
    """Return the backend of a device name; on a GPU it uses at most ``gpu_memory`` GiB."""
    return backends.choose(device, None if gpu_memory is None else int(gpu_memory * 2**30))


@dataclass(frozen=True)
class _Job:
    """A checked request: what to extract, what computes it, and how it is stored.

    Parameters
    ----------
    plan : Plan
    backend : Backend
    threads : int
    storage : dict
        ``compression``, ``layout``, ``chunk_cells`` and ``unique_ids``, for `CellStore.open`.
    """

    plan: Plan
    backend: backends.Backend
    threads: int
    storage: dict[str, Any]


def _extracted(job: _Job, claim: Claim, progress: pipeline.Progress) -> pipeline.Report:
    """Write the output, or what an earlier run has left of it."""
    plan = job.plan
    contents = Contents(plan.cells, plan.slides, plan.program, _provenance(job), plan.planes)
    try:
        store = CellStore.open(claim, contents, **job.storage)
    except FinishedError:
        claim.release(discard=True)
        return pipeline.report_of_finished(plan, job.backend, claim.target.path, job.threads)
    try:
        return pipeline.run(plan, job.backend, store, job.threads, progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_what_was_kept(store, len(plan.cells))) from None


def _provenance(job: _Job) -> dict[str, str]:
    """Return the texts that the file holds beside the recipe."""
    inputs = {slide.name: slide_fingerprint(slide) for slide in job.plan.slides}
    lines = {"notices": job.plan.warnings, "trusted": job.plan.trusted}
    texts = {name: "\n".join(found) for name, found in lines.items() if found}
    return texts | {"device": job.backend.numbers, "inputs": json.dumps(inputs)}


def _claimed(inputs: Sequence[SlideInput], output: Path, options: ExtractOptions) -> Claim:
    """Lock the output, so that a second run is refused before it plans. The output must not be one of the inputs."""
    _check_not_an_input(output, inputs, options)
    return claim_output(output, **_target_options(options))


def _target_options(options: ExtractOptions) -> dict[str, Any]:
    """Return the options of `check_output`."""
    return {
        "compression": options.get("compression", "gzip"),
        "layout": options.get("layout", "h5sc"),
        "overwrite": options.get("overwrite", False),
        "resume": options.get("resume", False),
    }


def _prepare(inputs: Sequence[SlideInput], output: Path | None, options: ExtractOptions) -> _Job:
    """Check the options, and make the plan. The output must not be one of the files that the slides have."""
    backend = choose_backend(options.get("device", "auto"), options.get("gpu_memory"))
    threads = as_threads(options.get("threads"))
    storage: dict[str, Any] = {
        "compression": options.get("compression", "gzip"),
        "layout": options.get("layout", "h5sc"),
        "chunk_cells": options.get("chunk_cells", 1),
        "unique_ids": options.get("unique_ids", False),
    }
    choose_layout(storage["layout"])  # refuse an unknown layout before anything is read
    plan = plan_slides(inputs, options, backend.statistics)
    if output is not None:
        for slide in plan.slides:  # which files a project's folder holds is known only after it was opened
            check_not_read(output, input_paths(slide.image.source, *(raster.source for raster in slide.masks.values())))
    warn(plan.warnings)
    return _Job(plan, backend, threads, storage)


def _what_was_kept(store: CellStore, n_cells: int) -> str:
    """Return what a run that was stopped leaves, as text."""
    if not store.n_kept:
        return NOTHING_WRITTEN
    return (
        f"stopped at {store.n_kept:,} of {n_cells:,} cells, which are kept in {store.partial}; go on with --resume "
        "(resume=True)"
    )


def _check_not_an_input(output: Path, inputs: Sequence[SlideInput], options: ExtractOptions) -> None:
    """Raise OutputError if the output is a file that is read."""
    recipe = options.get("recipe")
    if isinstance(recipe, (str, os.PathLike)):
        check_not_read(output, [recipe])
    for given in inputs:
        check_not_read(output, input_paths(given.image, given.nucleus, given.cytosol))
