"""The cpu backend: the kernels of `cells` applied to batches, without the GIL."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from gpu_extract.backends.cpu import code_cache, planes
from gpu_extract.backends.cpu.blur import edge_tables
from gpu_extract.backends.cpu.cells import Options, Steps, Tiles, Work, extract_cells, scratch_memory
from gpu_extract.backends.cpu.fused import deflate_cells
from gpu_extract.backends.cpu.labels import label_statistics
from gpu_extract.backends.cpu.memory import per_thread
from gpu_extract.backends.cpu.windows import pixels_of
from gpu_extract.backends.interface import Backend, Deflated
from gpu_extract.backends.program_tables import mask_tables
from gpu_extract.model import Batch, CellImages, Window
from gpu_extract.recipe import Program

__all__ = ["extract", "extract_deflated", "extract_in_parts", "open_backend"]

# Size of a part: its tiles stay in a core's second-level cache until they are encoded. Larger parts are not faster.
PART_CELLS = 8
PART_NBYTES = 2 << 20


def open_backend() -> Backend:
    """Return the backend. Its functions compute in the caller's thread."""
    return Backend(
        "cpu",
        extract,
        statistics=label_statistics,
        extract_in_parts=extract_in_parts,
        extract_deflated=extract_deflated,
        warnings=code_cache.warnings,
    )


def extract(window: Window, batch: Batch, program: Program, limits: NDArray[np.float64] | None = None) -> CellImages:
    """Return the finished tiles of a batch; parameters are as for `reference.extract`."""
    (cells,) = _extract(window, batch, program, limits, _zero_tiles(len(batch), program))
    return cells


def extract_in_parts(
    window: Window, batch: Batch, program: Program, limits: NDArray[np.float64] | None = None
) -> Iterator[CellImages]:
    """Yield the finished tiles of a batch, a few cells at a time; each part overwrites the previous one's memory."""
    return _extract(window, batch, program, limits, _part_tiles(program))


def extract_deflated(
    window: Window, batch: Batch, program: Program, limits: NDArray[np.float64] | None, stream_nbytes: int
) -> Deflated:
    """Extract a batch and deflate its tiles in one compiled call.

    Parameters
    ----------
    window, batch, program, limits
        As for `reference.extract`.
    stream_nbytes : int, bytes
        What each stream encodes: a tile, or some of its planes; a multiple of 8.
    """
    work, tiles = _work(window, batch, program, limits), _part_tiles(program)
    return deflate_cells(work, _as_kernel_type(tiles), stream_nbytes)


def _zero_tiles(n_cells: int, program: Program) -> Tiles:
    """Return memory for ``n_cells`` tiles, all 0."""
    boxes = np.zeros((n_cells, program.n_planes, 4), np.int64)
    return Tiles(np.zeros((n_cells, *program.tile_shape), program.output_dtype), boxes)


def _part_tiles(program: Program) -> Tiles:
    """Return this thread's memory for the tiles of a part."""
    return per_thread(_zero_tiles, min(max(PART_NBYTES // program.tile_nbytes, 1), PART_CELLS), program)


def _extract(
    window: Window, batch: Batch, program: Program, limits: NDArray[np.float64] | None, tiles: Tiles
) -> Iterator[CellImages]:
    """Yield the cells of a batch, as many at a time as there are tiles."""
    work, written = _work(window, batch, program, limits), _as_kernel_type(tiles)
    used = np.empty((len(batch), len(program.cut), 2))
    for first in range(0, max(len(batch), 1), max(len(tiles.images), 1)):
        last = min(first + len(tiles.images), len(batch))
        extract_cells(work, first, last, written, used)
        part, n = slice(first, last), last - first
        yield CellImages(batch.rows[part], batch.ids[part], tiles.images[:n], used[part], tiles.boxes[:n])


def _as_kernel_type(tiles: Tiles) -> Tiles:
    """Return the same memory in the type that the kernels write: float16 as uint16."""
    return tiles._replace(images=tiles.images.view(np.uint16)) if tiles.images.dtype == np.float16 else tiles


def _work(window: Window, batch: Batch, program: Program, limits: NDArray[np.float64] | None) -> Work:
    """Return a batch as the kernels take it, with this thread's scratch memory."""
    limits = program.fixed_limits if limits is None else limits
    pixels = pixels_of(window)
    return Work(
        window=pixels,
        ids=batch.ids.astype(pixels.labels[0].data.dtype),
        corners=batch.corners - (window.y0, window.x0),
        label_boxes=_label_boxes(batch, program.recipe.tile_size),
        steps=per_thread(_steps, program),
        options=_options(program, limits_given=limits is not None),
        limits=np.empty((len(program.cut), 2)) if limits is None else limits,
        scratch=per_thread(scratch_memory, program.recipe.tile_size),
    )


def _label_boxes(batch: Batch, size: int) -> NDArray[np.int64]:
    """Return the part of each tile, (n, 4), that contains the cell's labels; the whole tile if it is not known."""
    if batch.boxes is None:
        return np.tile(np.array([0, 0, size, size]), (len(batch), 1))
    return np.clip(batch.boxes - np.tile(batch.corners, 2), 0, size)


def _steps(program: Program) -> Steps:
    """Return the program's masks as the kernels take them."""
    masks, weights = mask_tables(program)
    edges = edge_tables(weights, program.recipe.tile_size)
    return Steps(masks, weights, edges, np.array(program.stored), np.array(program.cut))


def _options(program: Program, *, limits_given: bool) -> Options:
    """Return the recipe's choices as the kernels take them."""
    recipe = program.recipe
    lower, upper = recipe.quantiles
    kind = planes.OUTPUT_FLOAT if program.output_dtype.kind == "f" else planes.OUTPUT_INTEGER
    if program.output_dtype == np.float16:
        kind = planes.OUTPUT_HALF
    return Options(
        output=planes.Output(kind, program.unit),
        exclude=recipe.neighbours == "exclude",
        apply_masks=recipe.apply_masks,
        cut_before=recipe.cut == "before",
        limits_given=limits_given,
        quantiles_of_mask=recipe.quantile_pixels == "mask",
        lower=lower,
        upper=upper,
        scale=recipe.normalization != "none",
        flat_zero=recipe.flat_channel == "zero",
        stretch=np.array(program.stretched),
    )
