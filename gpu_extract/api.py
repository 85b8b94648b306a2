"""What a script or a notebook calls: `extract`, `iter_cells`, and the same for many slides."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gpu_extract import backends, pipeline
from gpu_extract.errors import InputError, OutputError
from gpu_extract.inputs import plan, plan_many
from gpu_extract.model import CellImages
from gpu_extract.parallel import default_threads
from gpu_extract.planning import Plan, with_checked_images
from gpu_extract.sources.selectors import located
from gpu_extract.sources.slide_table import SlideInput, as_slide_input
from gpu_extract.store import CellStore, Contents, check_output, choose_layout
from gpu_extract.surveying import Survey, survey

__all__ = ["extract", "extract_many", "iter_cells", "survey_many"]


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
    chunk_cells: int = 1,
    overwrite: bool = False,
    progress: pipeline.Progress | None = None,
    **choices: Any,
) -> pipeline.Report:
    """Extract every cell of a slide into a file, and say what was done.

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
    compression : {"gzip", "lzf", "lz4", "zstd", "none"}
        ``lz4`` and ``zstd`` are read by other programs with a plugin only; see `gpu_extract.store.codecs`.
    layout : {"h5sc", "sparcspy"}
        ``sparcspy`` is the classic ``single_cells.h5``: a time course where there are several slides, or labels.
    chunk_cells : int
        Cells in a chunk of the file. More make reading all of them in order quicker, and reading one at random slower;
        ids that are scattered over the slide make the extraction slower.
    overwrite : bool
        Replace ``output`` if it exists, once the new file is complete, and drop the remains of an unfinished run.
    progress : callable, optional
        Called with the number of cells written so far, and of all.
    **choices
        ``recipe``, ``tile_size``, ``border``, ``ids``, ``n_cells``, ``seed``, ``channel_names``, ``planes``,
        ``channels``, ``nuclear_channel``, ``pixel_size``, ``tile_size_um``, ``scale``: as for `plan`.

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
        chunk_cells=chunk_cells,
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
    chunk_cells: int = 1,
    overwrite: bool = False,
    progress: pipeline.Progress | None = None,
    **choices: Any,
) -> pipeline.Report:
    """`extract` for several slides, into one file.

    ``obs`` says of each cell its slide and the slide's labels; rows are slides in the order given, ascending ids
    within a slide. ``slides`` and ``on_bad_slide`` are those of `plan_many`, all else is as for `extract`.
    """
    backend, threads = choose_backend(device, gpu_memory), as_threads(threads)
    choose_layout(layout)  # or refuse it before anything is read
    path = Path(output)
    check_output(path, compression, overwrite=overwrite)
    planned = _planned(slides, path, backend, choices)
    provenance = {"notices": "\n".join(planned.warnings)} if planned.warnings else {}
    contents = Contents(planned.cells, planned.slides, planned.program, provenance, planned.planes)
    store = CellStore.create(
        path, contents, compression=compression, layout=layout, chunk_cells=chunk_cells, overwrite=overwrite
    )
    return pipeline.run(planned, backend, store, threads, progress or (lambda written, total: None))


def survey_many(
    slides: Sequence[SlideInput | Mapping[str, Any]],
    *,
    output: str | os.PathLike[str] | None = None,
    device: str = "auto",
    threads: int | None = None,
    gpu_memory: float | None = None,
    compression: str = "gzip",
    layout: str = "h5sc",
    chunk_cells: int = 1,
    overwrite: bool = False,
    **choices: Any,
) -> Survey:
    """What `extract_many` with the same arguments would do and take; nothing is written.

    The label planes and the images are read, and some cells are extracted into a temporary file. ``output`` is
    checked, if it is given.

    Raises
    ------
    InputError, OutputError, DeviceError
        As of `extract_many`.
    """
    backend, threads = choose_backend(device, gpu_memory), as_threads(threads)
    choose_layout(layout)  # or refuse it before anything is read
    if output is not None:
        check_output(output, compression, overwrite=overwrite)
    planned = _planned(slides, None if output is None else Path(output), backend, choices)
    storage = {"compression": compression, "layout": layout, "chunk_cells": chunk_cells}
    return survey(planned, backend, threads, storage)


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
        ``rows`` (n,), ``ids`` (n,), ``images`` (n, K, S, S) and ``limits`` (n, C, 2). On a GPU ``images`` is a CuPy
        array that stays there: ``torch.from_dlpack(cells.images)`` takes it without a copy.
    """
    backend, threads = choose_backend(device, gpu_memory), as_threads(threads)
    planned = plan(image, nucleus=nucleus, cytosol=cytosol, statistics=backend.statistics, **choices)
    planned = with_checked_images(planned)

    def batches() -> Iterator[CellImages]:
        with ThreadPoolExecutor(threads, "gpu-extract") as workers:
            yield from pipeline.tiles(planned, backend, workers, threads, on_device=True)

    return batches()


def choose_backend(device: str, gpu_memory: float | None) -> backends.Backend:
    """The backend of a device name, with at most ``gpu_memory`` GiB of a GPU's memory."""
    return backends.choose(device, None if gpu_memory is None else int(gpu_memory * 2**30))


def as_threads(threads: int | None) -> int:
    """A positive number of threads; by default the cores that this process may use."""
    if threads is None:
        return default_threads()
    if threads < 1:
        raise InputError(f"threads is {threads}; it must be 1 or more")
    return threads


def _planned(
    slides: Sequence[SlideInput | Mapping[str, Any]],
    output: Path | None,
    backend: backends.Backend,
    choices: Mapping[str, Any],
) -> Plan:
    """The plan, with the statistics of the device and checked images; refuses an output that is a file that is read."""
    inputs = [as_slide_input(given) for given in slides]
    if output is None:
        return with_checked_images(plan_many(inputs, statistics=backend.statistics, **choices))
    for given in inputs:
        _check_not_an_input(output, given.image, given.nucleus, given.cytosol)
    planned = plan_many(inputs, statistics=backend.statistics, **choices)
    for slide in planned.slides:  # a folder was given, perhaps, and only now it is known of which file
        _check_not_an_input(output, slide.image.source, *(raster.source for raster in slide.masks.values()))
    return with_checked_images(planned)


def _check_not_an_input(output: Path, *inputs: Any) -> None:
    """Refuse to write over a file that is read."""
    for given in inputs:
        for one in given if isinstance(given, list | tuple) else [given]:
            if not isinstance(one, str | os.PathLike):
                continue
            path = located(os.fsdecode(one), None).path  # without what selects a part of the file
            if os.path.realpath(path) == os.path.realpath(output):
                raise OutputError(f"output {output} is one of the inputs; choose another name")
