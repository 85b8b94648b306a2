"""Tiles to the bytes of HDF5 chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import h5py
import imagecodecs
import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from gpu_extract.codecs import FILTERS, PLUGINS, check_compression, compression_of, fletcher32
from gpu_extract.errors import OutputError
from gpu_extract.model import CellImages

__all__ = ["ChunkFormat", "EncodedCells", "checksum", "encode"]

Chunk = bytes | memoryview

# CRC-32 of some bytes, as zlib's and five times faster.
checksum: Callable[[Chunk], int] = isal_zlib.crc32
# HDF5 holds the size of a chunk in 32 bits.
MAX_CHUNK_NBYTES = 2**32 - 1
# h5py's words for the filters. HDF5 need not know those of plugins, since it never applies them here.
FILTER_OPTIONS: dict[str, dict[str, Any]] = {
    "gzip": {"compression": "gzip", "compression_opts": 1},
    "lzf": {"compression": "lzf"},
    "lz4": {"compression": FILTERS["lz4"][0], "compression_opts": (0,)},
    "zstd": {"compression": FILTERS["zstd"][0], "compression_opts": (1,)},
}
for _name in PLUGINS:
    FILTER_OPTIONS[_name] |= {"allow_unknown_filter": True, "fletcher32": True}
# A third faster than 1, and 2 % larger.
LZ4_ACCELERATION = 4
# Its annotations know of bytes only; it takes arrays.
codecs: Any = imagecodecs
COMPRESSORS: dict[str, Callable[[NDArray[Any]], bytes]] = {
    "lzf": codecs.lzf_encode,
    "lz4": lambda block: _checked(codecs.lz4h5_encode(block, LZ4_ACCELERATION)),
    "zstd": lambda block: _checked(codecs.zstd_encode(block, 1)),
    "none": lambda block: block.tobytes(),
}


@dataclass(frozen=True)
class ChunkFormat:
    """How tiles are cut into the chunks of an HDF5 dataset, and encoded.

    Parameters
    ----------
    shape : (cells, planes, S, S)
        Of a chunk; a tile has a whole number of them, or they hold several tiles.
    dtype : numpy.dtype
        In which the values are stored; holds every value of the tiles' own type.
    compression : {"gzip", "lzf", "lz4", "zstd", "none"}
        See `gpu_extract.codecs`. With ``none`` a chunk is a tile's bytes at its row's place in a dataset without
        chunks.

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
        if self.shape[0] < 1:
            raise OutputError(f"chunk_cells is {self.shape[0]}; it must be 1 or more")
        if self.shape[0] > 1 and self.is_contiguous:
            raise OutputError("compression 'none' has no chunks; leave chunk_cells at 1, or choose another compression")
        if self.nbytes > MAX_CHUNK_NBYTES:
            raise OutputError(
                f"a chunk takes {self.nbytes} bytes; HDF5 takes {MAX_CHUNK_NBYTES} at most: "
                "lower tile_size or chunk_cells"
            )

    @property
    def nbytes(self) -> int:
        """Bytes of a decoded chunk."""
        return prod(self.shape) * self.dtype.itemsize

    def create(self, file: h5py.File, name: str, n_cells: int, n_planes: int) -> h5py.Dataset:
        """A dataset of (n_cells, n_planes, S, S) in this format, without its chunks."""
        shape = (n_cells, n_planes, *self.shape[2:])
        if self.is_contiguous:
            # What is never written by HDF5 is not to be filled by it either.
            return file.create_dataset(name, shape, self.dtype, track_times=False, fill_time="never")
        filters = FILTER_OPTIONS[self.compression]
        # A dataset that can never have more than one chunk would have no index.
        most = (max(n_cells, self.shape[0] + 1), *shape[1:])
        return file.create_dataset(
            name, shape, self.dtype, chunks=self.shape, maxshape=most, track_times=False, **filters
        )

    def is_deflated_as_made(self, made: np.dtype[Any]) -> bool:
        """Whether a chunk is the zlib stream of a tile of this type, or of some of its planes, as it lies in memory."""
        whole_words = self.nbytes % 8 == 0
        return self.compression == "gzip" and self.shape[0] == 1 and self.dtype == made and whole_words

    @property
    def is_contiguous(self) -> bool:
        """Whether values stand at their row's place instead of in chunks."""
        return self.compression == "none"

    def places(self, rows: NDArray[np.int64], n_planes: int) -> NDArray[np.int64]:
        """(row, plane) of the first value of each chunk of these rows, (m, 2), in the order of `encode`."""
        n_cells, per_chunk = self.shape[:2]
        first = rows[rows % n_cells == 0]
        planes = np.arange(0, n_planes, per_chunk)
        return np.stack([np.repeat(first, len(planes)), np.tile(planes, len(first))], axis=1)

    @classmethod
    def of(cls, images: h5py.Dataset) -> ChunkFormat:
        """The format of a dataset that `create` has made."""
        compression = compression_of(images)
        assert compression is not None
        return cls(images.chunks or (1, *images.shape[1:]), images.dtype, compression)


@dataclass(frozen=True)
class EncodedCells:
    """A batch as the bytes that go to disk.

    Parameters
    ----------
    rows : (n,) int64
        Their rows in the output.
    chunks : tuple of m bytes or memoryview
        Encoded, in the order of `ChunkFormat.places`.
    checksums : (m,) uint32
        CRC-32 of each chunk.
    levels : (n, C, 2) float64
        The lower and upper value that each channel was normalised with.
    format : ChunkFormat
    """

    rows: NDArray[np.int64]
    chunks: tuple[Chunk, ...]
    checksums: NDArray[np.uint32]
    levels: NDArray[np.float64]
    format: ChunkFormat

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def of(
        cls, rows: NDArray[np.int64], chunks: Iterable[Chunk], levels: NDArray[np.float64], format: ChunkFormat
    ) -> EncodedCells:
        """Cells with the checksums of their chunks."""
        chunks = tuple(chunks)
        return cls(rows, chunks, np.fromiter(map(checksum, chunks), np.uint32, len(chunks)), levels, format)

    @classmethod
    def join(cls, parts: Sequence[EncodedCells]) -> EncodedCells:
        """The cells of all parts, of one format, as one batch."""
        return cls(
            rows=np.concatenate([part.rows for part in parts]),
            chunks=tuple(chunk for part in parts for chunk in part.chunks),
            checksums=np.concatenate([part.checksums for part in parts]),
            levels=np.concatenate([part.levels for part in parts]),
            format=parts[0].format,
        )

    @property
    def sizes(self) -> NDArray[np.uint32]:
        """Bytes of each chunk, (m,)."""
        return np.fromiter(map(len, self.chunks), np.uint32, len(self.chunks))


def encode(images: CellImages, format: ChunkFormat) -> EncodedCells:
    """The batch's tiles as chunks; pure, and free of the GIL where the time goes.

    Rows are those of whole chunks, in ascending order (`gather`). Nothing of ``images.images`` is referred to
    afterwards.
    """
    chunks = (chunk for blocks in _cut(images, format) for chunk in _compressed(blocks, format.compression))
    return EncodedCells.of(images.rows, chunks, images.levels, format)


def _compressed(blocks: NDArray[Any], compression: str) -> Sequence[Chunk]:
    """The chunk of each block of values."""
    if compression == "gzip":
        from gpu_extract.store.deflate import deflate  # numba takes its time

        return deflate(blocks)
    return list(map(COMPRESSORS[compression], blocks))


def _cut(images: CellImages, format: ChunkFormat) -> Iterator[NDArray[Any]]:
    """The values of all chunks in their order, C-contiguous, in arrays of several chunks (m, cells, planes, S, S)."""
    stored = images.images.astype(format.dtype, copy=False)
    n_cells = format.shape[0]
    if n_cells == 1:
        yield stored.reshape(-1, *format.shape)
        return
    for cells in np.split(stored, np.flatnonzero(np.diff(images.rows // n_cells)) + 1):
        for plane in range(0, stored.shape[1], format.shape[1]):
            block = np.zeros((1, *format.shape), format.dtype)  # what a last chunk has beyond the last row is 0
            block[0, : len(cells)] = cells[:, plane : plane + format.shape[1]]
            yield block


def _checked(data: bytes) -> bytes:
    return data + fletcher32(data)
