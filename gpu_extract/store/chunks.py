"""The chunks that the store writes: tiles split and encoded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from gpu_extract.errors import OutputError
from gpu_extract.model import CellImages
from gpu_extract.store.codecs import Chunk, Codec, choose_codec

__all__ = ["ChunkFormat", "EncodedCells", "checksum", "encode", "whole_chunks"]

# Same as zlib.crc32, but five times faster.
checksum: Callable[[Chunk], int] = isal_zlib.crc32
# HDF5 stores the size of a chunk in 32 bits.
MAX_CHUNK_NBYTES = 2**32 - 1


@dataclass(frozen=True)
class ChunkFormat:
    """How tiles are split into the chunks of a dataset and encoded.

    Parameters
    ----------
    shape : (cells, planes, S, S)
        Shape of a chunk. A tile consists of whole chunks, or a chunk holds several tiles.
    dtype : numpy.dtype
        Type of the stored values. It represents every value of the tiles' own type.
    compression : {"gzip", "lzf", "lz4", "zstd", "none"}
        See `gpu_extract.store.codecs`. With ``none`` the dataset is contiguous, and a chunk is the bytes of one tile.

    Raises
    ------
    OutputError
        If the compression is unknown, or the chunk shape is not possible in HDF5.
    """

    shape: tuple[int, int, int, int]
    dtype: np.dtype[Any]
    compression: str

    def __post_init__(self) -> None:
        codec = choose_codec(self.compression)
        if self.shape[0] < 1:
            raise OutputError(f"chunk_cells is {self.shape[0]}; it must be 1 or more")
        if self.shape[0] > 1 and not codec.has_chunks:
            raise OutputError("compression 'none' has no chunks; leave chunk_cells at 1, or choose another compression")
        if self.nbytes > MAX_CHUNK_NBYTES:
            raise OutputError(
                f"a chunk takes {self.nbytes} bytes; HDF5 allows {MAX_CHUNK_NBYTES} at most: "
                "lower tile_size or chunk_cells"
            )

    @property
    def codec(self) -> Codec:
        """Codec of the compression."""
        return choose_codec(self.compression)

    @property
    def nbytes(self) -> int:
        """Size of a decoded chunk in bytes."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def is_contiguous(self) -> bool:
        """Whether the dataset is contiguous, so that each row has a fixed offset."""
        return not self.codec.has_chunks

    def is_plain_deflate(self, dtype: np.dtype[Any]) -> bool:
        """Return whether each chunk is a zlib stream of consecutive whole planes of one tile of that dtype."""
        is_whole_words = self.nbytes % 8 == 0
        return self.compression == "gzip" and self.shape[0] == 1 and self.dtype == dtype and is_whole_words

    def chunk_offsets(self, rows: NDArray[np.int64], n_planes: int) -> NDArray[np.int64]:
        """Return the (row, plane) at which each chunk of ``rows`` starts, (m, 2), in the order of `encode`."""
        n_cells, per_chunk = self.shape[:2]
        first = rows[rows % n_cells == 0]
        planes = np.arange(0, n_planes, per_chunk)
        return np.stack([np.repeat(first, len(planes)), np.tile(planes, len(first))], axis=1)


@dataclass(frozen=True)
class EncodedCells:
    """The encoded chunks of a batch.

    Parameters
    ----------
    rows : (n,) int64
        Rows of the cells in the output.
    chunks : tuple of m bytes or memoryview
        Encoded, in the order of `ChunkFormat.chunk_offsets`.
    checksums : (m,) uint32
        CRC-32 of each chunk.
    limits : (n, C, 2) float64
        Lower and upper value with which each channel was normalized.
    format : ChunkFormat
    """

    rows: NDArray[np.int64]
    chunks: tuple[Chunk, ...]
    checksums: NDArray[np.uint32]
    limits: NDArray[np.float64]
    format: ChunkFormat

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def of(
        cls, rows: NDArray[np.int64], chunks: Iterable[Chunk], limits: NDArray[np.float64], format: ChunkFormat
    ) -> EncodedCells:
        """Return the cells, with checksums computed from their chunks."""
        chunks = tuple(chunks)
        return cls(rows, chunks, np.fromiter(map(checksum, chunks), np.uint32, len(chunks)), limits, format)

    @classmethod
    def join(cls, parts: Sequence[EncodedCells]) -> EncodedCells:
        """Concatenate parts of the same format."""
        return cls(
            rows=np.concatenate([part.rows for part in parts]),
            chunks=tuple(chunk for part in parts for chunk in part.chunks),
            checksums=np.concatenate([part.checksums for part in parts]),
            limits=np.concatenate([part.limits for part in parts]),
            format=parts[0].format,
        )

    @property
    def sizes(self) -> NDArray[np.uint32]:
        """Size of each chunk in bytes, (m,)."""
        return np.fromiter(map(len, self.chunks), np.uint32, len(self.chunks))


def encode(images: CellImages, format: ChunkFormat) -> EncodedCells:
    """Encode the tiles of a batch; this is thread-safe and mostly runs without the GIL.

    Parameters
    ----------
    images : CellImages
        Rows of whole chunks, ascending; see `whole_chunks`. The result holds no reference to ``images.images``.
    format : ChunkFormat
    """
    chunks = (chunk for blocks in _cut(images, format) for chunk in format.codec.encode(blocks))
    return EncodedCells.of(images.rows, chunks, images.limits, format)


def _cut(images: CellImages, format: ChunkFormat) -> Iterator[NDArray[Any]]:
    """Yield the values of all chunks in order, as C-contiguous blocks of m chunks, (m, cells, planes, S, S)."""
    stored = images.images.astype(format.dtype, copy=False)
    n_cells = format.shape[0]
    if n_cells == 1:
        yield stored.reshape(-1, *format.shape)
        return
    for cells in np.split(stored, np.flatnonzero(np.diff(images.rows // n_cells)) + 1):
        for plane in range(0, stored.shape[1], format.shape[1]):
            block = np.zeros((1, *format.shape), format.dtype)  # rows after the last one are 0
            block[0, : len(cells)] = cells[:, plane : plane + format.shape[1]]
            yield block


def whole_chunks(batches: Iterable[CellImages], format: ChunkFormat, n_total: int) -> Iterator[CellImages]:
    """Collect cells that arrive in any order into whole chunks, and yield each chunk when its last cell arrives.

    Parameters
    ----------
    batches : iterable of CellImages
        Tiles are copied. Incomplete chunks are kept in memory, so batches should complete one group of rows after
        another, as those of `planning.batches` do.
    format : ChunkFormat
    n_total : int
        Number N of cells in the file. The last chunk may have fewer cells than the others.
    """
    n_cells = format.shape[0]
    incomplete: dict[int, CellImages] = {}
    missing: dict[int, int] = {}
    for cells in batches:
        for i, row in enumerate(cells.rows.tolist()):
            chunk = row // n_cells
            if chunk not in incomplete:
                rows = np.arange(chunk * n_cells, min((chunk + 1) * n_cells, n_total))
                incomplete[chunk] = _empty_like(cells, rows)
                missing[chunk] = len(rows)
            part, at = incomplete[chunk], row % n_cells
            part.ids[at], part.images[at], part.limits[at] = cells.ids[i], cells.images[i], cells.limits[i]
            missing[chunk] -= 1
            if not missing[chunk]:
                yield incomplete.pop(chunk)
    assert not incomplete


def _empty_like(cells: CellImages, rows: NDArray[np.int64]) -> CellImages:
    """Return uninitialized cells for ``rows``."""
    return CellImages(
        rows=rows,
        ids=np.empty(len(rows), np.uint64),
        images=np.empty((len(rows), *cells.images.shape[1:]), cells.images.dtype),
        limits=np.empty((len(rows), *cells.limits.shape[1:]), cells.limits.dtype),
    )
