"""The cpu backend: the kernels of `cpu_cells` over a batch, without the GIL."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpu_extract.backends import cpu_planes
from gpu_extract.backends.cpu_blur import edge_tables
from gpu_extract.backends.cpu_cells import Numbers, Options, Pixels, Scratch, Steps, extract_cells, scratch_memory
from gpu_extract.backends.program_tables import mask_tables, quantile_pixels
from gpu_extract.model import Batch, CellImages, Window
from gpu_extract.recipe import Program

__all__ = ["Tiles", "Work", "extract", "extract_in_pieces", "kept_tiles", "work_of"]

# The tiles of a piece stay in the second cache of a core until they are encoded; more cells gain nothing.
PIECE_CELLS = 8
PIECE_NBYTES = 2 << 20

_of_thread = threading.local()


class Tiles(NamedTuple):
    """Memory for finished tiles: 0 outside of the boxes, now and after each use."""

    images: NDArray[Any]  # (n, K, S, S), the output type
    boxes: NDArray[np.int64]  # (n, K, 4)


class Work(NamedTuple):
    """What the kernels are given of a batch; see `cpu_cells.extract_each`."""

    window: Pixels
    ids: NDArray[Any]
    corners: NDArray[np.int64]
    parts: NDArray[np.int64]
    steps: Steps
    options: Options
    numbers: Numbers
    levels: NDArray[np.float64]
    scratch: Scratch


def blank(n_cells: int, program: Program) -> Tiles:
    """Memory for so many tiles, all 0."""
    boxes = np.zeros((n_cells, program.n_planes, 4), np.int64)
    return Tiles(np.zeros((n_cells, *program.tile_shape), program.output_dtype), boxes)


def extract(window: Window, batch: Batch, program: Program, levels: NDArray[np.float64] | None = None) -> CellImages:
    """The finished tiles of a batch; parameters and result as for `reference.extract`."""
    (cells,) = _extract(window, batch, program, levels, len(batch), blank(len(batch), program))
    return cells


def extract_in_pieces(
    window: Window, batch: Batch, program: Program, levels: NDArray[np.float64] | None = None
) -> Iterator[CellImages]:
    """The finished tiles of a batch, a few cells at a time, in memory that the next few overwrite."""
    tiles = kept_tiles(program)
    return _extract(window, batch, program, levels, len(tiles.images), tiles)


def kept_tiles(program: Program) -> Tiles:
    """Memory of this thread for the tiles of a piece, the same again and again."""
    tiles: Tiles = _kept(blank, min(max(PIECE_NBYTES // program.tile_nbytes, 1), PIECE_CELLS), program)
    return tiles


def _extract(
    window: Window,
    batch: Batch,
    program: Program,
    levels: NDArray[np.float64] | None,
    n_cells: int,
    tiles: Tiles,
) -> Iterator[CellImages]:
    work = work_of(window, batch, program, levels)
    for start in range(0, max(len(batch), 1), max(n_cells, 1)):
        part = slice(start, start + n_cells)
        rows = batch.rows[part]
        images, boxes = tiles.images[: len(rows)], tiles.boxes[: len(rows)]
        used = np.empty((len(rows), len(program.cut), 2))
        some = work._replace(ids=work.ids[part], corners=work.corners[part], parts=work.parts[part])
        extract_cells(*some, as_written(images), boxes, used)
        yield CellImages(rows, batch.ids[part], images, used, boxes)


def work_of(window: Window, batch: Batch, program: Program, levels: NDArray[np.float64] | None) -> Work:
    """What the kernels are given of a batch, in this thread; ``levels`` is None where each cell has its own."""
    levels = program.fixed_levels if levels is None else levels
    pixels, steps = pixels_of(window), _kept(steps_of, program)
    return Work(
        window=pixels,
        ids=batch.ids.astype(pixels.labels[0].dtype),
        corners=batch.corners - (window.y0, window.x0),
        parts=label_parts(batch, program.recipe.tile_size),
        steps=steps,
        options=options_of(program, levels),
        numbers=Numbers(program.unit, *program.recipe.quantiles),
        levels=np.empty((len(program.cut), 2)) if levels is None else levels,
        scratch=_kept(scratch_memory, program.recipe.tile_size),
    )


def as_written(images: NDArray[Any]) -> NDArray[Any]:
    """Tiles in the type in which the kernels write them: float16 as its bits."""
    return images.view(np.uint16) if images.dtype == np.float16 else images


def _kept(make: Callable[..., Any], *arguments: Any) -> Any:
    """What ``make`` gave this thread for the same arguments the last time, or gives it now."""
    kept: dict[Any, Any] = _of_thread.__dict__.setdefault("kept", {})
    if make not in kept or kept[make][0] != arguments:
        kept[make] = arguments, make(*arguments)
    return kept[make][1]


def pixels_of(window: Window) -> Pixels:
    """The window as the kernels read it: where it lies if it can be read there, else a copy."""
    image = window.image.astype(np.float32) if window.image.dtype == np.float16 else window.image
    # Ids are not negative, so their bits are those of the unsigned type; with two planes, of the wider one's.
    itemsize = max(plane.dtype.itemsize for plane in window.labels)
    planes = [flat(as_unsigned(plane, itemsize)[np.newaxis]) for plane in window.labels]
    (first, _, first_stride), (last, _, last_stride) = planes[0], planes[-1]
    return Pixels(*flat(image), (first, last), (first_stride, last_stride), *window.image.shape[1:])


def as_unsigned(labels: NDArray[Any], itemsize: int) -> NDArray[Any]:
    """Labels, none of them negative, as unsigned integers of so many bytes; a view where they have as many."""
    if labels.dtype.itemsize == itemsize and labels.dtype.isnative:
        return labels.view(f"u{itemsize}")
    return labels.astype(f"u{itemsize}")


def flat(planes: NDArray[Any]) -> tuple[NDArray[Any], int, int]:
    """Planes (P, h, w) as the memory (n,) from their first pixel to their last, and the plane and row strides in it.

    A copy where a row is not contiguous, or pixels do not lie at whole numbers of pixels. The memory is read-only:
    numba compiles for what is writable and what is not apart.
    """
    strides = planes.strides
    whole = min(strides) >= 0 and not any(stride % planes.itemsize for stride in strides)
    if strides[2] != planes.itemsize or not whole or not planes.flags.aligned:
        planes = np.ascontiguousarray(planes)
    plane, row, _ = (stride // planes.itemsize for stride in planes.strides)
    P, h, w = planes.shape
    n = (P - 1) * plane + (h - 1) * row + w if planes.size else 0
    memory = np.lib.stride_tricks.as_strided(planes, (n,), (planes.itemsize,), writeable=False)
    return memory, plane, row


def label_parts(batch: Batch, size: int) -> NDArray[np.int64]:
    """The part of each tile, (n, 4), in which the cell's labels lie; all of it where that is not known."""
    if batch.boxes is None:
        return np.tile(np.array([0, 0, size, size]), (len(batch), 1))
    return np.clip(batch.boxes - np.tile(batch.corners, 2), 0, size)


def steps_of(program: Program) -> Steps:
    """The program's masks as the kernels read them."""
    masks, weights = mask_tables(program)
    return Steps(
        masks, weights, edge_tables(weights, program.recipe.tile_size), np.array(program.stored), np.array(program.cut)
    )


def options_of(program: Program, levels: NDArray[np.float64] | None) -> Options:
    """The recipe's choices; ``levels`` is None where each cell has its own quantiles."""
    recipe = program.recipe
    output = cpu_planes.OUTPUT_FLOAT if program.output_dtype.kind == "f" else cpu_planes.OUTPUT_INTEGER
    return Options(
        output=cpu_planes.OUTPUT_HALF if program.output_dtype == np.float16 else output,
        exclude=recipe.neighbours == "exclude",
        apply_masks=recipe.apply_masks,
        cut_before=recipe.cut == "before",
        pixels=quantile_pixels(program, levels),
        scale=recipe.normalization != "none",
        flat_zero=recipe.flat_channel == "zero",
        stretch=np.array(program.stretched),
    )
