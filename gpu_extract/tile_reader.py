"""`TileReader`: the tiles of a dataset by row, past HDF5's own way of reading where that is slower."""

from __future__ import annotations

import os
from math import prod
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from gpu_extract.codecs import compression_of, decompress

__all__ = ["TileReader"]


class TileReader:
    """Reads the tile of a row; many threads may call it, and where a chunk is decoded they do not wait for each other.

    h5py's indexing takes 100 microseconds a call, 5 ms for a list of rows, and decodes under its lock. Chunks of our
    compressions are therefore decoded here, and a dataset without chunks is read from the file itself; everything
    else is left to h5py.

    Parameters
    ----------
    images : h5py.Dataset, (N, K, S, S)
        Of an open file.
    """

    def __init__(self, images: h5py.Dataset) -> None:
        self._images = images
        self._shape, self._dtype = images.shape[1:], images.dtype
        self._compression = compression_of(images)
        self._read = images.__getitem__
        if self._compression is not None and images.chunks is not None and images.chunks[2:] == images.shape[2:]:
            self._read = self._read_chunks
        elif images.chunks is None and images.id.get_offset() is not None and _is_plain_file(images):
            self._read = self._read_values
        # The chunk of several cells that was decoded last: rows are mostly asked for in order.
        self._last: tuple[tuple[int, int], NDArray[Any]] | None = None

    def __call__(self, row: int) -> NDArray[Any]:
        """The values of a row, (K, S, S), possibly read-only.

        Raises
        ------
        ValueError, OSError, RuntimeError
            If they are damaged.
        """
        return np.asarray(self._read(row))

    def _read_chunks(self, row: int) -> NDArray[Any]:
        n_cells, n_planes = self._images.chunks[:2]
        first, within = row // n_cells * n_cells, row % n_cells
        if n_planes >= self._shape[0]:
            return self._chunk(first, 0)[within, : self._shape[0]]
        tile = np.empty(self._shape, self._dtype)
        for plane in range(0, len(tile), n_planes):
            part = tile[plane : plane + n_planes]
            part[...] = self._chunk(first, plane)[within, : len(part)]
        return tile

    def _chunk(self, row: int, plane: int) -> NDArray[Any]:
        last = self._last
        if last is not None and last[0] == (row, plane):
            return last[1]
        shape = self._images.chunks
        skipped, data = self._images.id.read_direct_chunk((row, plane, 0, 0))
        assert self._compression is not None
        values = decompress(self._compression, data, prod(shape) * self._dtype.itemsize, skipped)
        chunk = np.frombuffer(values, self._dtype).reshape(shape)
        if shape[0] > 1:
            self._last = (row, plane), chunk
        return chunk

    def _read_values(self, row: int) -> NDArray[Any]:
        nbytes = prod(self._shape) * self._dtype.itemsize
        file = self._images.file.id.get_vfd_handle()
        values = os.pread(file, nbytes, self._images.id.get_offset() + row * nbytes)
        return np.frombuffer(values, self._dtype).reshape(self._shape)


def _is_plain_file(images: h5py.Dataset) -> bool:
    return images.file.driver == "sec2" and images.external is None and not images.is_virtual
