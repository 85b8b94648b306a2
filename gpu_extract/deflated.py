"""A batch extracted and deflated by one compiled call, on the CPU, without the GIL.

What is compiled takes microseconds for a cell, and Python between two such calls takes as many; worse, it waits for
its turn among the threads. Here Python comes once a batch. The kernels are those of `backends.cpu_cells` and
`store.deflate`, a piece of a few cells at a time, while its tiles are in the core's cache.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpu_extract.backends import cpu_bits, cpu_blur, cpu_cells, cpu_masks, cpu_planes, cpu_quantiles, program_tables
from gpu_extract.backends.cpu import as_written, kept_tiles, work_of
from gpu_extract.backends.cpu_bits import compiled, nanoseconds
from gpu_extract.backends.cpu_cells import extract_each
from gpu_extract.model import Batch, Window
from gpu_extract.recipe import Program
from gpu_extract.store import ChunkFormat, EncodedCells, deflate
from gpu_extract.store.deflate import deflate_each

__all__ = ["extract_deflated"]


def extract_deflated(
    window: Window, batch: Batch, program: Program, levels: NDArray[np.float64] | None, format: ChunkFormat
) -> tuple[EncodedCells, float, float]:
    """A batch as it is written, and the seconds that extraction and encoding took.

    Parameters
    ----------
    window, batch, program, levels
        As for `backends.reference.extract`.
    format : ChunkFormat
        One for which `ChunkFormat.is_deflated_as_made` holds.
    """
    tiles = kept_tiles(program)
    blocks = tiles.images.view(np.uint8).reshape(-1, format.nbytes)
    per_cell = len(blocks) // len(tiles.images)
    used = np.empty((len(batch), len(program.cut), 2))
    ends, spent = np.empty(len(batch) * per_cell, np.int64), np.zeros(2, np.int64)
    pairs, out = deflate.room_for(len(ends), format.nbytes)
    work = work_of(window, batch, program, levels)
    memory = as_written(tiles.images), tiles.boxes, used, blocks, format.dtype.itemsize, pairs, out, ends, spent
    extract_and_deflate(work, *memory)
    compute, encode = (spent / 1e9).tolist()
    return EncodedCells.of(batch.rows, deflate.streams_in(out, ends), used, format), compute, encode


@compiled(cpu_bits, cpu_blur, cpu_cells, cpu_masks, cpu_planes, cpu_quantiles, program_tables, deflate)
def extract_and_deflate(work, tiles, boxes, used, blocks, itemsize, pairs, out, ends, spent):
    """Write the streams of all cells into ``out``, and their levels into ``used``.

    Parameters
    ----------
    work : Work
    tiles, boxes, used
        As for `extract_each`; tiles and boxes of a piece, levels of all cells.
    blocks : (m, nbytes) uint8
        The memory of ``tiles``, cut into what becomes a stream each.
    itemsize, pairs, out
        As for `deflate_each`.
    ends : (n,) int64, bytes
        Written: where each stream ends; it begins where the one before ends.
    spent : (2,) int64, nanoseconds
        The time that extraction and encoding take is added.
    """
    per_cell, end = blocks.shape[0] // tiles.shape[0], 0
    for first in range(0, work.ids.shape[0], tiles.shape[0]):
        n = min(tiles.shape[0], work.ids.shape[0] - first)
        last = first + n
        begun = nanoseconds()
        extract_each(
            work.window,
            work.ids[first:last],
            work.corners[first:last],
            work.parts[first:last],
            work.steps,
            work.options,
            work.numbers,
            work.levels,
            work.scratch,
            tiles[:n],
            boxes[:n],
            used[first:last],
        )
        extracted = nanoseconds()
        found = end + deflate_each(blocks[: n * per_cell], blocks.shape[1], itemsize, pairs, out[end:])
        ends[first * per_cell : last * per_cell] = found
        end = found[-1]
        spent[0] += extracted - begun
        spent[1] += nanoseconds() - extracted
