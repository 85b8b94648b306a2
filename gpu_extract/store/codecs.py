"""Tiles to the bytes of HDF5 chunks, and back.

HDF5's gzip filter wants a zlib stream: two bytes of header, raw deflate, adler32 of the tile. `deflate` writes one;
isal reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import h5py
import numpy as np
from isal import isal_zlib
from isal.igzip_lib import IsalError
from numpy.typing import NDArray

from gpu_extract.errors import OutputError
from gpu_extract.model import CellImages

__all__ = ["COMPRESSIONS", "ChunkFormat", "EncodedCells", "check_compression", "checksum", "decode", "encode"]

COMPRESSIONS = ("gzip", "none")

ZLIB_STREAM = 15  # zlib's wbits: a zlib header around a window of 32 KiB
# HDF5 holds the size of a chunk in 32 bits.
MAX_CHUNK_NBYTES = 2**32 - 1


@dataclass(frozen=True)
class ChunkFormat:
    """How tiles are cut into the chunks of an HDF5 dataset, and encoded.

    Parameters
    ----------
    shape : (cells, planes, S, S)
        Of a chunk; a tile has a whole number of them.
    dtype : numpy.dtype
        In which the values are stored; holds every value of the tiles' own type.
    compression : {"gzip", "none"}

    Raises
    ------
    OutputError
        If the compression is another one, or a chunk is larger than HDF5 takes.
    """

    shape: tuple[int, int, int, int]
    dtype: np.dtype[Any]
    compression: str

    def __post_init__(self) -> None:
        check_compression(self.compression)
        if self.nbytes > MAX_CHUNK_NBYTES:
            raise OutputError(
                f"a chunk takes {self.nbytes} bytes; HDF5 takes {MAX_CHUNK_NBYTES} at most: lower tile_size"
            )

    @property
    def nbytes(self) -> int:
        """Bytes of a decoded chunk."""
        return prod(self.shape) * self.dtype.itemsize

    def create(self, file: h5py.File, name: str, n_cells: int, n_planes: int) -> h5py.Dataset:
        """A dataset of (n_cells, n_planes, S, S) in this format, without its chunks."""
        gzip = {"compression": "gzip", "compression_opts": 1} if self.compression == "gzip" else {}
        shape = (n_cells, n_planes, *self.shape[2:])
        return file.create_dataset(name, shape, self.dtype, chunks=self.shape, track_times=False, **gzip)

    def places(self, rows: NDArray[np.int64], n_planes: int) -> NDArray[np.int64]:
        """(row, plane) of the first value of each chunk of these rows, (m, 2), in the order of `encode`."""
        n_cells, per_chunk = self.shape[:2]
        first = rows[rows % n_cells == 0]
        planes = np.arange(0, n_planes, per_chunk)
        return np.stack([np.repeat(first, len(planes)), np.tile(planes, len(first))], axis=1)

    @classmethod
    def of(cls, images: h5py.Dataset) -> ChunkFormat:
        """The format of a dataset that `create` has made."""
        return cls(images.chunks, images.dtype, images.compression or "none")


@dataclass(frozen=True)
class EncodedCells:
    """A batch as the bytes that go to disk.

    Parameters
    ----------
    rows : (n,) int64
        Their rows in the output.
    chunks : tuple of m bytes
        Encoded, in the order of `ChunkFormat.places`.
    checksums : (m,) uint32
        CRC-32 of each chunk.
    levels : (n, C, 2) float64
        The lower and upper value that each channel was normalised with.
    format : ChunkFormat
    """

    rows: NDArray[np.int64]
    chunks: tuple[bytes, ...]
    checksums: NDArray[np.uint32]
    levels: NDArray[np.float64]
    format: ChunkFormat

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def sizes(self) -> NDArray[np.uint32]:
        """Bytes of each chunk, (m,)."""
        return np.fromiter(map(len, self.chunks), np.uint32, len(self.chunks))


def check_compression(compression: str) -> None:
    """Refuse a compression that this version does not write.

    Raises
    ------
    OutputError
    """
    if compression not in COMPRESSIONS:
        raise OutputError(f"compression {compression!r} is not written; it must be {' or '.join(COMPRESSIONS)}")


def encode(images: CellImages, format: ChunkFormat) -> EncodedCells:
    """The batch's tiles as chunks; pure, and free of the GIL where the time goes.

    Nothing of ``images.images`` is referred to afterwards.
    """
    blocks = _cut(images, format)
    if format.compression == "gzip":
        from gpu_extract.store.deflate import deflate  # numba takes its time

        chunks = tuple(map(deflate, blocks))
    else:
        chunks = tuple(block.tobytes() for block in blocks)
    return EncodedCells(
        rows=images.rows,
        chunks=chunks,
        checksums=np.fromiter(map(checksum, chunks), np.uint32, len(chunks)),
        levels=images.levels,
        format=format,
    )


def _cut(images: CellImages, format: ChunkFormat) -> Iterator[NDArray[Any]]:
    """The values of each chunk, C-contiguous."""
    n_planes = format.shape[1]
    for tile in images.images:
        stored = tile.astype(format.dtype, copy=False)
        for plane in range(0, len(tile), n_planes):
            yield stored[plane : plane + n_planes]


def decode(chunk: bytes, dtype: np.dtype[Any], n_values: int, *, compressed: bool) -> NDArray[Any]:
    """The values of a chunk, (n_values,), read-only.

    Raises
    ------
    ValueError
        If the chunk is damaged or holds another number of bytes; it is never unpacked further than that.
    """
    nbytes = n_values * dtype.itemsize
    if compressed:
        stream = isal_zlib.decompressobj(ZLIB_STREAM)
        try:
            chunk = stream.decompress(chunk, nbytes + 1)
        except IsalError as error:  # type: ignore[misc]  # isal's stubs call the class an instance
            raise ValueError(f"its gzip stream is damaged ({error})") from error
        # Only at its end has the stream been compared with its checksum.
        if len(chunk) <= nbytes and not stream.eof:
            raise ValueError("its gzip stream is cut short")
    if len(chunk) != nbytes:
        raise ValueError(f"it does not hold {nbytes} bytes")
    return np.frombuffer(chunk, dtype)


def checksum(data: bytes | memoryview) -> int:
    """CRC-32 of some bytes, as zlib's and five times faster."""
    return int(isal_zlib.crc32(data))
