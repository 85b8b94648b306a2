"""The journal of an unfinished file: the data needed to finish it, and a list of its durable cells.

::

    owner    "gxcells" and a zero byte, format | process, host and start of the run as JSON, up to byte 256
    header   N, C, sizes of the skeleton (unpacked, packed), whether an existing file is replaced, CRC-32
             | skeleton | CRC-32
    record   n, m | rows and limits of n cells, sizes and checksums of their m chunks | CRC-32
    record   ...

All numbers are little-endian. The owner is written when a run begins, before it plans, and again when another run goes
on; nothing depends on it but messages. In the partial file the chunks of the records follow the skeleton in the same
order; without compression each row has a fixed offset instead.
Records are only appended, and only after their chunks are durable. After a kill or a power failure, all records up to
the first damaged one are therefore valid.
"""

from __future__ import annotations

import json
import os
import platform
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from gpu_extract.errors import OutputError
from gpu_extract.store.chunks import checksum

__all__ = [
    "OWNER_NBYTES",
    "BlankError",
    "Journal",
    "Owner",
    "Record",
    "join",
    "pack_header",
    "pack_record",
    "packed_nbytes",
    "read_journal",
]

MAGIC = b"gxcells\0"
FORMAT = 3
BEGINNING = struct.Struct("<8sI")
OWNER_NBYTES = 256
HEADER = struct.Struct("<QIQQQ")
RECORD = struct.Struct("<QQ")
CRC = struct.Struct("<I")


class BlankError(OutputError):
    """A journal ends before its first record: nothing is durable."""


@dataclass(frozen=True)
class Owner:
    """The process that writes a journal.

    Parameters
    ----------
    pid : int
    host : str
    started : str
        Date and time, in UTC.
    """

    pid: int
    host: str
    started: str

    @classmethod
    def this(cls) -> Owner:
        """Return this process, as one that starts now."""
        return cls(os.getpid(), platform.node()[:64], datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.started}"

    @property
    def may_be_alive(self) -> bool:
        """Whether the process runs; of one on another host this is not known, and so true."""
        if self.host != platform.node()[:64]:
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:  # it is another user's
            return True
        return True

    def pack(self) -> bytes:
        """Return the beginning of a journal."""
        text = json.dumps([self.pid, self.host, self.started]).encode()
        return (BEGINNING.pack(MAGIC, FORMAT) + text).ljust(OWNER_NBYTES, b"\0")

    @classmethod
    def nobody(cls) -> bytes:
        """Return the beginning of a journal that no run writes to."""
        return BEGINNING.pack(MAGIC, FORMAT).ljust(OWNER_NBYTES, b"\0")

    @classmethod
    def read(cls, path: Path) -> Owner | None:
        """Return the owner of a journal; None if there is none."""
        try:
            with open(path, "rb") as file:
                data = file.read(OWNER_NBYTES)
            pid, host, started = json.loads(data[BEGINNING.size :].rstrip(b"\0"))
            return cls(int(pid), str(host), str(started))
        except (OSError, ValueError, TypeError):
            return None


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
    n_cells, n_channels : int
        N and C of the finished file.
    skeleton : bytes
        The HDF5 file without its tiles. It says what is extracted from what, and how; see `fingerprint`.
    replaces : int, ns
        When the file was written that the finished one may replace; 0 if it may replace none.
    records : tuple of Record
        The durable cells, in the order of the partial file.
    nbytes : int, bytes
        Length of the journal up to the first damaged record.
    """

    n_cells: int
    n_channels: int
    skeleton: bytes
    replaces: int
    records: tuple[Record, ...]
    nbytes: int

    @property
    def n_written(self) -> int:
        """Number of durable cells."""
        return sum(map(len, self.records))

    def first(self, n: int) -> Journal:
        """Return the journal with only its first ``n`` records."""
        return replace(self, records=self.records[:n], nbytes=self.nbytes - sum(map(packed_nbytes, self.records[n:])))


def join(records: Sequence[Record]) -> Record:
    """Concatenate one or more records."""
    return Record(
        rows=np.concatenate([record.rows for record in records]),
        sizes=np.concatenate([record.sizes for record in records]),
        checksums=np.concatenate([record.checksums for record in records]),
        limits=np.concatenate([record.limits for record in records]),
    )


def pack_header(skeleton: bytes, n_cells: int, n_channels: int, *, replaces: int = 0) -> bytes:
    """Return the header of a new journal, which follows its `Owner`."""
    packed = isal_zlib.compress(skeleton, 1)
    fields = _with_crc(HEADER.pack(n_cells, n_channels, len(skeleton), len(packed), replaces))
    return fields + _with_crc(packed)


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
    BlankError
        If it ends before its first record.
    OutputError
        If the file cannot be read, is not a journal, or its header is damaged.
    """
    try:
        data = memoryview(Path(path).read_bytes())
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error.strerror}") from error
    begin, start = OWNER_NBYTES, OWNER_NBYTES + HEADER.size + CRC.size
    if not any(data[: len(MAGIC)]):
        raise BlankError(f"{path} is cut short")
    if bytes(data[: len(MAGIC)]) != MAGIC[: len(data)]:
        raise OutputError(f"{path} is not the journal of an unfinished run")
    # The header is durable before the first record is written. Until then a kill or a power failure may tear it.
    if not any(data[begin:start]) or len(data) < start:
        raise BlankError(f"{path} is cut short")
    version = BEGINNING.unpack_from(data)[1]
    if version != FORMAT:
        raise OutputError(f"{path} has format {version}; this version of gpu-extract reads {FORMAT}")
    fields = _without_crc(data[begin:start])
    if fields is None:
        raise OutputError(f"{path} is damaged")
    n_cells, n_channels, n_skeleton, n_packed, replaces = HEADER.unpack(fields)
    end = start + n_packed + CRC.size
    packed = _without_crc(data[start:end])
    if packed is None:
        raise (OutputError(f"{path} is damaged") if end < len(data) else BlankError(f"{path} is cut short"))
    skeleton = isal_zlib.decompress(packed, bufsize=n_skeleton)
    records, nbytes = _read_records(data, end, n_channels)
    return Journal(n_cells, n_channels, skeleton, replaces, records, nbytes)


def _read_records(data: memoryview, start: int, n_channels: int) -> tuple[tuple[Record, ...], int]:
    """Return the intact records from ``start`` on, and the offset of their end."""
    records = []
    while len(data) - start >= RECORD.size:
        n, m = RECORD.unpack_from(data, start)
        end = start + _packed_nbytes(n, m, n_channels)
        body = _without_crc(data[start:end]) if end <= len(data) else None
        if body is None:
            break
        records.append(_unpack_record(body[RECORD.size :], n, m, n_channels))
        start = end
    return tuple(records), start


def packed_nbytes(record: Record) -> int:
    """Return the size of a record in the journal; a joined one is not larger than its parts."""
    return _packed_nbytes(len(record), len(record.sizes), record.limits.shape[1])


def _packed_nbytes(n_cells: int, n_chunks: int, n_channels: int) -> int:
    return RECORD.size + n_cells * (8 + 16 * n_channels) + n_chunks * 8 + CRC.size


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
