"""The journal of an unfinished file: the data needed to finish it, and a list of its durable cells.

::

    header   "gxcells" and a zero byte, format, C, N, sizes of the skeleton
             (unpacked, packed), fingerprint | skeleton | CRC-32
    record   n, m | rows and limits of n cells, sizes and checksums of their m chunks | CRC-32
    record   ...

All numbers are little-endian. In the partial file the chunks of the records follow the skeleton in the same order;
without compression each row has a fixed offset instead.
Records are only appended, and only after their chunks are durable. After a kill or a power failure, all records up to
the first damaged one are therefore valid.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from gpu_extract.errors import OutputError
from gpu_extract.store.chunks import checksum

__all__ = ["Journal", "Record", "join", "pack_header", "pack_record", "read_journal"]

MAGIC = b"gxcells\0"
FORMAT = 2
HEADER = struct.Struct("<8sIIQQQ32s")
RECORD = struct.Struct("<QQ")
CRC = struct.Struct("<I")


@dataclass(frozen=True)
class Record:
    """Cells whose chunks are consecutive in the partial file, in the order of `ChunkFormat.chunk_offsets`.

    Parameters
    ----------
    rows : (n,) int64
    sizes : (m,) uint32, bytes
        Size of each chunk.
    checksums : (m,) uint32
        CRC-32 of each chunk.
    limits : (n, C, 2) float64
    """

    rows: NDArray[np.int64]
    sizes: NDArray[np.uint32]
    checksums: NDArray[np.uint32]
    limits: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        """Total size of the chunks in bytes."""
        return int(self.sizes.sum(dtype=np.uint64))


@dataclass(frozen=True)
class Journal:
    """The intact part of a journal.

    Parameters
    ----------
    fingerprint : bytes
        SHA-256 of the skeleton, which includes the cells, the recipe and the sources. Two runs with the same
        fingerprint write the same file.
    n_cells, n_channels : int
        N and C of the finished file.
    skeleton : bytes
        The HDF5 file without its tiles.
    records : tuple of Record
        The durable cells, in the order of the partial file.
    nbytes : int, bytes
        Length of the journal up to the first damaged record.
    """

    fingerprint: bytes
    n_cells: int
    n_channels: int
    skeleton: bytes
    records: tuple[Record, ...]
    nbytes: int

    @property
    def n_written(self) -> int:
        """Number of durable cells."""
        return sum(map(len, self.records))


def join(records: Sequence[Record]) -> Record:
    """Concatenate one or more records."""
    return Record(
        rows=np.concatenate([record.rows for record in records]),
        sizes=np.concatenate([record.sizes for record in records]),
        checksums=np.concatenate([record.checksums for record in records]),
        limits=np.concatenate([record.limits for record in records]),
    )


def pack_header(skeleton: bytes, n_cells: int, n_channels: int) -> bytes:
    """Return the header of a new journal."""
    packed = isal_zlib.compress(skeleton, 1)
    fingerprint = hashlib.sha256(skeleton).digest()
    fields = HEADER.pack(MAGIC, FORMAT, n_channels, n_cells, len(skeleton), len(packed), fingerprint)
    return _with_crc(fields + packed)


def pack_record(record: Record) -> bytes:
    """Return the bytes of a record in the journal."""
    arrays = (
        record.rows.astype("<i8"),
        record.limits.astype("<f8"),
        record.sizes.astype("<u4"),
        record.checksums.astype("<u4"),
    )
    return _with_crc(RECORD.pack(len(record), len(record.sizes)) + b"".join(array.tobytes() for array in arrays))


def read_journal(path: str | Path) -> Journal:
    """Read the journal of an unfinished file up to its first damaged record.

    Raises
    ------
    OutputError
        If the file cannot be read, is not a journal, or its header is damaged.
    """
    try:
        data = memoryview(Path(path).read_bytes())
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error.strerror}") from error
    if bytes(data[: len(MAGIC)]) != MAGIC:
        raise OutputError(f"{path} is not the journal of an unfinished run")
    if len(data) < HEADER.size:
        raise OutputError(f"{path} is cut short")
    _, version, n_channels, n_cells, n_skeleton, n_packed, fingerprint = HEADER.unpack_from(data)
    if version != FORMAT:
        raise OutputError(f"{path} has format {version}; this version of gpu-extract reads {FORMAT}")
    header = _without_crc(data[: HEADER.size + n_packed + CRC.size])
    if header is None:
        raise OutputError(f"{path} is damaged")
    skeleton = isal_zlib.decompress(header[HEADER.size :], bufsize=n_skeleton)
    records, nbytes = _read_records(data, HEADER.size + n_packed + CRC.size, n_channels)
    return Journal(fingerprint, n_cells, n_channels, skeleton, records, nbytes)


def _read_records(data: memoryview, start: int, n_channels: int) -> tuple[tuple[Record, ...], int]:
    """Return the intact records from ``start`` on, and the offset of their end."""
    records = []
    while len(data) - start >= RECORD.size:
        n, m = RECORD.unpack_from(data, start)
        end = start + RECORD.size + n * (8 + 16 * n_channels) + m * 8 + CRC.size
        body = _without_crc(data[start:end]) if end <= len(data) else None
        if body is None:
            break
        records.append(_unpack_record(body[RECORD.size :], n, m, n_channels))
        start = end
    return tuple(records), start


def _unpack_record(body: memoryview, n: int, m: int, n_channels: int) -> Record:
    def column(dtype: str, offset: int, count: int) -> NDArray[Any]:
        return np.frombuffer(body, dtype, count, offset)

    chunks = n * (8 + 16 * n_channels)
    return Record(
        rows=column("<i8", 0, n),
        limits=column("<f8", 8 * n, 2 * n * n_channels).reshape(n, n_channels, 2),
        sizes=column("<u4", chunks, m),
        checksums=column("<u4", chunks + 4 * m, m),
    )


def _with_crc(data: bytes) -> bytes:
    return data + CRC.pack(checksum(data))


def _without_crc(data: memoryview) -> memoryview | None:
    """Return the data before its CRC-32, or None if the CRC-32 does not match."""
    body, crc = data[: -CRC.size], data[-CRC.size :]
    return body if crc == CRC.pack(checksum(body)) else None
