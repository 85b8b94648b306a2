"""Extract and deflate a batch in one compiled call, without the GIL.

The compiled functions take microseconds per cell. Python code between two calls would take as long, and threads would
wait for the GIL. Here Python code runs once per batch. The kernels are those of `cells` and `deflate`, applied to a few
cells at a time while their tiles are in the core's cache.
"""

from __future__ import annotations

import numpy as np

from gpu_extract.backends.cpu.cells import Tiles, Work, extract_each
from gpu_extract.backends.cpu.compiling import compiled
from gpu_extract.backends.cpu.deflate import deflate_each, stream_memory, streams_in
from gpu_extract.backends.cpu.simd import nanoseconds
from gpu_extract.backends.interface import Deflated

__all__ = ["deflate_cells"]


def deflate_cells(work: Work, tiles: Tiles, stream_nbytes: int) -> Deflated:
    """Return the tiles of a batch as zlib streams.

    Parameters
    ----------
    work : Work
    tiles : Tiles
        Memory for the tiles of a part.
    stream_nbytes : int, bytes
        What each stream encodes; a multiple of 8.
    """
    blocks = tiles.images.view(np.uint8).reshape(-1, stream_nbytes)
    n = len(work.ids)
    limits = np.empty((n, len(work.steps.cut), 2))
    ends, spent = np.empty(n * (len(blocks) // len(tiles.images)), np.int64), np.zeros(2, np.int64)
    memory = stream_memory(len(ends), stream_nbytes)
    extract_and_deflate(work, tiles, limits, blocks, memory, ends, spent)
    compute, encode = (spent / 1e9).tolist()
    return Deflated(streams_in(memory.out, ends), limits, {"compute": compute, "encode": encode})


@compiled
def extract_and_deflate(work, tiles, limits, blocks, memory, ends, spent):
    """Write the streams of all cells to ``memory.out``, and the limits they were normalized with.

    Parameters
    ----------
    work : Work
    tiles : Tiles
        Of a part.
    limits : (n, C, 2) float64
        Written.
    blocks : (m, stream_nbytes) uint8
        The memory of ``tiles``, divided into what each stream encodes.
    memory : StreamMemory
    ends : (n * streams of a cell,) int64, bytes
        Written: the end of each stream, which is the start of the next one.
    spent : (2,) int64, nanoseconds
        Incremented by the time of extraction and of encoding.
    """
    n, n_tiles = work.ids.shape[0], tiles.images.shape[0]
    per_cell, end = blocks.shape[0] // n_tiles, 0
    for first in range(0, n, n_tiles):
        last = min(first + n_tiles, n)
        started = nanoseconds()
        extract_each(work, first, last, tiles, limits)
        extracted = nanoseconds()
        part = blocks[: (last - first) * per_cell]
        part_ends = end + deflate_each(part, blocks.shape[1], tiles.images.itemsize, memory.pairs, memory.out[end:])
        ends[first * per_cell : last * per_cell] = part_ends
        end = part_ends[-1]
        spent[0] += extracted - started
        spent[1] += nanoseconds() - extracted
