"""The stages of a batch: read -> compute -> encode -> write, overlapped, in order, in bounded memory.

One thread reads, ``threads`` threads compute and encode, and the caller's thread writes. On the CPU each thread
encodes a few cells right after computing them, while they are in its cache, and reuses their memory. On a GPU,
separate threads compute large batches, which are sent without the zeros around what is in the tiles and split for
encoding. Queues between stages are short, so a slow disk stops the reader. An error in any stage stops the others and
is raised in the caller's thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gpu_extract.backends import Backend, Extract, ExtractInParts, PackedCells
from gpu_extract.errors import DeviceError, InputError, RunStoppedError
from gpu_extract.html_table import html_table
from gpu_extract.listing import first_lines
from gpu_extract.messages import announce
from gpu_extract.model import Batch, CellImages, Slide, Window
from gpu_extract.parallel import in_order, worker_threads
from gpu_extract.pixels import check_finite, slide_limits, with_finite_pixels
from gpu_extract.planning import Plan, batches
from gpu_extract.sources.retries import read_patiently
from gpu_extract.store import CellStore, ChunkFormat, EncodedCells, encode, whole_chunks

__all__ = ["Progress", "Report", "report_of_finished", "run", "tiles", "truncation"]

In = TypeVar("In")
Out = TypeVar("Out")

# Called with the number of cells written so far and the total.
Progress = Callable[[int, int], None]

# Number of windows read ahead of the computation.
WINDOWS_AHEAD = 2
# Bytes of tiles computed and encoded ahead of the writer, which waits for the tables of the file at the start and
# occasionally for the disk.
ENCODED_AHEAD_NBYTES = 128 << 20
# Maximum number of cells per encoding task.
ENCODE_CELLS = 128
# Number of a GPU's batches that are encoded at a time; each has a buffer of pinned memory, of which there are few.
ENCODE_BATCHES = 5


@dataclass(frozen=True)
class Report:
    """The result of an extraction.

    Parameters
    ----------
    path : Path
        The finished file.
    n_cells, n_truncated : int
        Number of cells in the file, and how many of them have a mask that does not fit in the tile.
    dropped : dict of str to int
        Number of cells dropped for each reason.
    device : str
    threads : int
    seconds : float
        From the first read to the finished file.
    stage_seconds : dict of str to float
        Time spent in ``read``, ``compute``, ``encode`` and ``write``, summed over threads.
    warnings : tuple of str
        Warnings about the input and the file, one line each.
    masking : str
        See `Plan`.
    resumed : int
        Number of those cells that an earlier run has written; see ``resume``.
    """

    path: Path
    n_cells: int
    n_truncated: int
    dropped: dict[str, int]
    device: str
    threads: int
    seconds: float
    stage_seconds: dict[str, float]
    warnings: tuple[str, ...]
    masking: str = ""
    resumed: int = 0

    def __repr__(self) -> str:
        return (
            f"Report(path={str(self.path)!r}, n_cells={self.n_cells}, n_truncated={self.n_truncated}, "
            f"n_dropped={sum(self.dropped.values())}, device={self.device!r}, seconds={self.seconds:.1f}, "
            f"n_warnings={len(self.warnings)})"
        )

    def _repr_html_(self) -> str:
        rows = [
            ("file", self.path),
            ("cells", f"{self.n_cells:,} ({self.n_truncated:,} do not fit in their tile)"),
            *(("dropped", f"{n:,}: {reason}") for reason, n in self.dropped.items()),
            ("time", f"{self.seconds:.1f} s, {self.cells_per_second:,.0f} cells/s"),
            ("device", f"{self.device}, {self.threads} threads"),
            *(("warning", line) for line in first_lines(self.warnings)),
        ]
        return html_table("Report", rows)

    @property
    def cells_per_second(self) -> float:
        """Cells written per second, over the whole run."""
        return (self.n_cells - self.resumed) / self.seconds if self.seconds else 0.0


@dataclass
class Stopwatch:
    """Seconds spent in each stage, summed over threads."""

    seconds: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the duration of the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        """Add time to a stage."""
        with self._lock:
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def timed(self, name: str, items: Iterable[In]) -> Iterator[In]:
        """Yield the items, and add the time spent waiting for each to a stage."""
        remaining = iter(items)
        while True:
            with self.stage(name):
                try:
                    item = next(remaining)
                except StopIteration:
                    return
            yield item


def run(
    plan: Plan, backend: Backend, store: CellStore, threads: int, progress: Progress = lambda written, total: None
) -> Report:
    """Extract the plan's cells into a store and finish it; cells that the store has from an earlier run are left out.

    On any error the cells written so far are kept in the partial file next to the output.

    Raises
    ------
    InputError, DeviceError
        If the input cannot be read, or the device fails, and no cell was written.
    RunStoppedError
        If that happens later, or the output cannot be written.
    """
    start, watch = time.perf_counter(), Stopwatch()
    n_flat, written = np.zeros(len(plan.program.cut), np.int64), store.n_resumed
    if written:
        plan = replace(plan, rows=store.rows_to_do())
        n_flat += sum(_n_flat(record.limits) for record in store.resumed)
    n_to_do = len(plan.cells) - written
    announce("extracting %s", f"{n_to_do:,} cells" if n_to_do != 1 else "1 cell")
    try:
        with worker_threads(threads, "gpu-extract") as workers:
            for chunks in encoded_batches(plan, backend, store.format, workers, threads, watch):
                with watch.stage("write"):
                    store.append(chunks)
                n_flat += _n_flat(chunks.limits)
                written += len(chunks)
                progress(written, len(plan.cells))
        announce("finishing the file")
        with watch.stage("write"):
            path = store.finish()
    except (InputError, DeviceError) as error:
        store.keep()
        if not store.n_kept:
            raise
        raise RunStoppedError(f"{error}; {store.kept()}") from error
    except BaseException:
        store.keep()
        raise
    return _report(
        plan,
        backend,
        path,
        threads,
        seconds=time.perf_counter() - start,
        stage_seconds=watch.seconds,
        warnings=[*_flat_channels(plan, n_flat.tolist()), *backend.warnings, *store.warnings],
        resumed=store.n_resumed,
    )


def report_of_finished(plan: Plan, backend: Backend, path: Path, threads: int) -> Report:
    """Return the report of a run that found its file complete."""
    return _report(plan, backend, path, threads, seconds=0.0, stage_seconds={}, warnings=[], resumed=len(plan.cells))


def _report(
    plan: Plan,
    backend: Backend,
    path: Path,
    threads: int,
    *,
    seconds: float,
    stage_seconds: dict[str, float],
    warnings: list[str],
    resumed: int,
) -> Report:
    """Return a report; ``warnings`` come after those of the plan."""
    return Report(
        path=path,
        n_cells=len(plan.cells),
        n_truncated=int(plan.cells.truncated.sum()),
        dropped=plan.cells.dropped.counts(),
        device=backend.device,
        threads=threads,
        seconds=seconds,
        stage_seconds=stage_seconds,
        warnings=(*plan.warnings, *truncation(plan), *warnings),
        masking=plan.masking,
        resumed=resumed,
    )


def encoded_batches(
    plan: Plan, backend: Backend, format: ChunkFormat, workers: Executor, threads: int, watch: Stopwatch
) -> Iterator[EncodedCells]:
    """Yield the encoded cells of the plan, in the order of `batches`."""

    def encode_part(images: CellImages) -> EncodedCells:
        with watch.stage("encode"):
            return encode(images, format)

    if format.shape[0] > 1:
        computed = tiles(plan, backend, workers, threads, watch, chunk_cells=format.shape[0])
        parts = whole_chunks(computed, format, len(plan.cells))
        yield from in_order(workers, encode_part, parts, ahead=threads + 1)
        return
    if backend.extract_packed:
        yield from encoded_packed_batches(plan, backend, format, workers, threads, watch)
        return

    limits = checked_limits(plan)
    extract = backend.extract_in_parts or as_single_part(backend.extract)
    deflates = backend.extract_deflated is not None and not plan.planes
    deflates = deflates and format.is_plain_deflate(plan.program.output_dtype)

    def compute_and_encode(task: tuple[Batch, Window]) -> EncodedCells:
        batch, window = task
        if deflates:
            assert backend.extract_deflated is not None
            deflated = backend.extract_deflated(window, batch, plan.program, limits[batch.slide], format.nbytes)
            for stage, seconds in deflated.seconds.items():
                watch.add(stage, seconds)
            return EncodedCells.of(batch.rows, deflated.streams, deflated.limits, format)
        computed = watch.timed("compute", extract(window, batch, plan.program, limits[batch.slide]))
        return EncodedCells.join(
            [encode_part(cells.chosen(plan.planes) if plan.planes else cells) for cells in computed]
        )

    batch_nbytes = min(backend.batch_size.nbytes, backend.batch_size.n_cells * plan.program.tile_nbytes)
    ahead = threads + ENCODED_AHEAD_NBYTES // batch_nbytes
    with read_windows(plan, backend, watch) as read:
        yield from in_order(workers, compute_and_encode, read, ahead)


def encoded_packed_batches(
    plan: Plan, backend: Backend, format: ChunkFormat, workers: Executor, threads: int, watch: Stopwatch
) -> Iterator[EncodedCells]:
    """Yield the encoded cells of the plan; the device sends them without the zeros around what is in the tiles."""
    from gpu_extract.backends.cpu.packed import deflated, unpacked  # imports numba, which is slow

    limits, extract = checked_limits(plan), backend.extract_packed
    assert extract is not None

    def compute(task: tuple[Batch, Window]) -> list[PackedCells]:
        batch, window = task
        with watch.stage("compute"):
            found = extract(window, batch, plan.program, limits[batch.slide])
            return [cells.chosen(plan.planes) for cells in found] if plan.planes else found

    def encode_part(cells: PackedCells) -> EncodedCells:
        with watch.stage("encode"):
            if format.is_plain_deflate(plan.program.output_dtype):
                return EncodedCells.of(cells.rows, deflated(cells, format.nbytes), cells.limits, format)
            return encode(unpacked(cells), format)

    computed = computed_parts(plan, backend, workers, threads, watch, compute)
    parts = split_batches(computed, part_cells(plan, backend, threads))
    yield from in_order(workers, encode_part, parts, ahead=threads + 1)


def as_single_part(extract: Extract) -> ExtractInParts:
    """Return the extraction as one that yields the whole batch as a single part."""

    def extract_in_parts(*task: Any) -> Iterator[CellImages]:
        yield extract(*task)

    return extract_in_parts


def tiles(
    plan: Plan,
    backend: Backend,
    workers: Executor,
    threads: int,
    watch: Stopwatch | None = None,
    *,
    chunk_cells: int = 1,
    on_device: bool = False,
) -> Iterator[CellImages]:
    """Yield the finished tiles of the plan, computed by ``workers``, in the order of `batches`.

    Windows are read ahead. With ``on_device`` the tiles stay on the device that computed them.
    """
    watch = watch or Stopwatch()
    limits = checked_limits(plan)

    def compute(task: tuple[Batch, Window]) -> list[CellImages]:
        batch, window = task
        with watch.stage("compute"):
            if on_device and backend.extract_on_device:
                return backend.extract_on_device(window, batch, plan.program, limits[batch.slide], plan.planes)
            cells = backend.extract(window, batch, plan.program, limits[batch.slide])
            return [cells.chosen(plan.planes) if plan.planes else cells]

    yield from computed_parts(plan, backend, workers, threads, watch, compute, chunk_cells)


def computed_parts(
    plan: Plan,
    backend: Backend,
    workers: Executor,
    threads: int,
    watch: Stopwatch,
    compute: Callable[[tuple[Batch, Window]], list[Out]],
    chunk_cells: int = 1,
) -> Iterator[Out]:
    """Yield the parts that ``compute`` returns for the batches of the plan; one thread per stream of a GPU calls it."""
    with ExitStack() as pools:
        if backend.streams:
            threads = backend.streams
            workers = pools.enter_context(worker_threads(threads, "gpu-extract-stream"))
        read = pools.enter_context(read_windows(plan, backend, watch, chunk_cells))
        for parts in in_order(workers, compute, read, ahead=threads + 1):
            while parts:
                yield parts.pop(0)  # the memory of tiles is free when the caller drops them


def checked_limits(plan: Plan) -> list[NDArray[np.float64] | None]:
    """Return the limits of each slide, None if each cell has its own, after checking that pixels are finite.

    Raises
    ------
    InputError
        If pixels are not finite and the recipe has ``nonfinite="error"``.
    """
    indices = plan.slides_to_read
    if plan.program.recipe.nonfinite == "error":
        for index in indices:
            check_finite(plan.slides[index])
    if plan.program.recipe.quantile_scope == "dataset":
        return slide_limits(plan.slides, plan.program) if indices else [None] * len(plan.slides)
    limits: list[NDArray[np.float64] | None] = [None] * len(plan.slides)
    for index, of_slide in zip(indices, slide_limits([plan.slides[i] for i in indices], plan.program), strict=True):
        limits[index] = of_slide
    return limits


@contextmanager
def read_windows(
    plan: Plan, backend: Backend, watch: Stopwatch, chunk_cells: int = 1
) -> Iterator[Iterator[tuple[Batch, Window]]]:
    """Open an iterator over the batches of the plan and their windows, which a thread reads ahead."""
    is_zero = plan.program.recipe.nonfinite == "zero"
    slides = [with_finite_pixels(slide) if is_zero else slide for slide in plan.slides]
    is_covered = covered(plan)

    def read(batch: Batch) -> tuple[Batch, Window]:
        slide = slides[batch.slide]
        with watch.stage("read"):
            read_box = backend.read if backend.read and is_covered[batch.slide] else Slide.read
            return batch, _read(read_box, slide, batch.box, is_named=len(slides) > 1)

    with ExitStack() as stack:
        stack.callback(backend.release)
        reader = stack.enter_context(worker_threads(1, "gpu-extract-read"))
        yield in_order(reader, read, batches(plan, backend.batch_size, chunk_cells), ahead=WINDOWS_AHEAD)


def covered(plan: Plan) -> list[bool]:
    """Return for each slide whether its tiles have at least as many pixels as the slide.

    It is then faster to read each pixel once than to read windows, which overlap.
    """
    n_pixels = np.bincount(plan.cells.slide, minlength=len(plan.slides)) * plan.program.recipe.tile_size**2
    return [n >= slide.size[0] * slide.size[1] for n, slide in zip(n_pixels.tolist(), plan.slides, strict=True)]


def _read(
    read: Callable[[Slide, tuple[int, int, int, int]], Window],
    slide: Slide,
    box: tuple[int, int, int, int],
    *,
    is_named: bool,
) -> Window:
    """Return a window of a slide; with ``is_named`` an error names the slide."""
    try:
        return read_patiently(lambda: read(slide, box))
    except InputError as error:
        raise type(error)(f"slide {slide.name}: {error}" if is_named else str(error)) from error


def part_cells(plan: Plan, backend: Backend, threads: int) -> int:
    """Return the number of cells of an encoding task, such that all threads work on few of a GPU's batches."""
    batch_cells = min(backend.batch_size.n_cells, backend.batch_size.nbytes // plan.program.tile_nbytes)
    return max(1, min(ENCODE_CELLS, ENCODE_BATCHES * batch_cells // (threads + 1)))


def split_batches(batches: Iterable[PackedCells], n_cells: int) -> Iterator[PackedCells]:
    """Split batches for encoding, in parts of at most ``n_cells`` cells.

    The batches of a GPU are so large that most threads would wait for the last one.
    """
    for cells in batches:
        for start in range(0, len(cells), n_cells):
            yield cells.part(slice(start, start + n_cells))


def _n_flat(limits: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the number of cells in which each channel is flat, (C,), from limits (n, C, 2)."""
    return np.asarray(np.count_nonzero(limits[:, :, 0] == limits[:, :, 1], axis=0))


def truncation(plan: Plan) -> list[str]:
    """Return a warning if tiles cut off cells."""
    n_truncated, S = int(plan.cells.truncated.sum()), plan.program.recipe.tile_size
    if not n_truncated:
        return []
    # If the masks of an id are not of one cell, their box does not tell how large tiles should be.
    is_any_sure = bool((plan.cells.truncated & plan.sure()).any())
    needs = f"; 99 % need {plan.fitting_tile_size(0.99)}, all need {plan.fitting_tile_size(1.0)}"
    line = f"{n_truncated} of {len(plan.cells)} cells do not fit in a tile of {S} pixels and are cut off"
    return [line + (needs if is_any_sure else "")]


def _flat_channels(plan: Plan, n_flat: list[int]) -> Iterator[str]:
    for name, n in zip(plan.slides[0].channel_names, n_flat, strict=True):
        if n:
            yield f"channel {name} is flat in {n} of {len(plan.cells)} cells (its lower and upper value are equal)"
