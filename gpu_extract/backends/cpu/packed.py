"""Tiles that were downloaded without their zeros: make them whole again, in a core's cache, and deflate them there."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_extract.backends.cpu.compiling import compiled, inner
from gpu_extract.backends.cpu.deflate import deflate_each, stream_memory, streams_in
from gpu_extract.backends.cpu.memory import per_thread
from gpu_extract.backends.interface import PackedCells
from gpu_extract.model import CellImages

__all__ = ["deflated", "unpacked"]

# Tiles that a core makes whole at a time; they stay in its cache.
GROUP_NBYTES = 512 << 10


def unpacked(cells: PackedCells) -> CellImages:
    """Return the tiles with their zeros."""
    n, K = cells.starts.shape
    S, dtype = cells.tile_size, cells.values.dtype
    images = np.zeros((n, K, S, S), dtype)
    unpack_tiles(_bits(cells.values), cells.starts, cells.boxes, _bits(images))
    return CellImages(cells.rows, cells.ids, images, cells.limits, cells.boxes)


def deflated(cells: PackedCells, stream_nbytes: int) -> list[memoryview]:
    """Return the tiles as zlib streams, in the order of cells and planes.

    Parameters
    ----------
    cells : PackedCells
    stream_nbytes : int, bytes
        What each stream encodes: a tile, or some of its planes; a multiple of 8.
    """
    n, K = cells.starts.shape
    S, dtype = cells.tile_size, cells.values.dtype
    tile_nbytes = K * S * S * dtype.itemsize
    tiles = per_thread(_zeros, max(GROUP_NBYTES // tile_nbytes, 1), K, S, dtype)
    ends = np.empty(n * (tile_nbytes // stream_nbytes), np.int64)
    memory = stream_memory(len(ends), stream_nbytes)
    blocks = tiles.view(np.uint8).reshape(-1, stream_nbytes)
    deflate_tiles(_bits(cells.values), cells.starts, cells.boxes, _bits(tiles), blocks, memory, ends)
    return streams_in(memory.out, ends)


def _zeros(n: int, K: int, S: int, dtype: Any) -> NDArray[Any]:
    """Return memory for whole tiles; it is 0 before and after each use."""
    return np.zeros((n, K, S, S), dtype)


def _bits(array: NDArray[Any]) -> NDArray[Any]:
    """Return the items as unsigned integers, so that one compiled function is for all types of the same size."""
    return array.view(f"u{array.itemsize}")


@inner
def _place(values, starts, boxes, tile):
    """Write the boxes of the planes of a tile. Loops over slices are vectorized."""
    for k in range(len(starts)):
        start, left, right = starts[k], boxes[k, 1], boxes[k, 3]
        for y in range(boxes[k, 0], boxes[k, 2]):
            source, row = values[start : start + right - left], tile[k, y, left:right]
            for x in range(len(row)):
                row[x] = source[x]
            start += right - left


@inner
def _clear(boxes, tile):
    """Set the boxes of the planes of a tile to 0."""
    for k in range(len(boxes)):
        for y in range(boxes[k, 0], boxes[k, 2]):
            row = tile[k, y, boxes[k, 1] : boxes[k, 3]]
            for x in range(len(row)):
                row[x] = 0


@compiled
def unpack_tiles(values, starts, boxes, tiles):
    """Write the boxes of all planes to tiles of zeros, (n, K, S, S)."""
    for i in range(len(tiles)):
        _place(values, starts[i], boxes[i], tiles[i])


@compiled
def deflate_tiles(values, starts, boxes, tiles, blocks, memory, ends):
    """Write the streams of all cells to ``memory.out``, and where each ends to ``ends``.

    Parameters
    ----------
    values : (N,), unsigned
    starts : (n, K) int64
    boxes : (n, K, 4) int64
    tiles : (m, K, S, S), the type of ``values``
        0 before and after.
    blocks : (m * streams of a cell, stream_nbytes) uint8
        The memory of ``tiles``, divided into what each stream encodes.
    memory : StreamMemory
    ends : (n * streams of a cell,) int64, bytes
        Written.
    """
    n, n_tiles = len(starts), len(tiles)
    per_cell, end = len(blocks) // n_tiles, 0
    for first in range(0, n, n_tiles):
        last = min(first + n_tiles, n)
        for i in range(first, last):
            _place(values, starts[i], boxes[i], tiles[i - first])
        part = blocks[: (last - first) * per_cell]
        part_ends = end + deflate_each(part, blocks.shape[1], tiles.itemsize, memory.pairs, memory.out[end:])
        ends[first * per_cell : last * per_cell] = part_ends
        end = part_ends[-1]
        for i in range(first, last):
            _clear(boxes[i], tiles[i - first])
