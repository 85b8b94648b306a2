"""Chunks appended to the partial file, and sealed in its journal every few seconds."""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Iterator, Sequence

import numpy as np

from gpu_extract.store.chunks import EncodedCells
from gpu_extract.store.codecs import Chunk
from gpu_extract.store.journal import Record, join, pack_record
from gpu_extract.store.system import preallocate_beyond_end, trim_beyond_end

__all__ = ["ChunkLog", "write_all"]

# What a kill can cost at most. The disk works while cells are computed only if it is told to: with 512 MB, a run of
# some seconds waits for all of its bytes at the end; with 64 MB, it still waits for 3 % of its time.
CHECKPOINT_SECONDS = 2.0
CHECKPOINT_NBYTES = 32 << 20
# Room that is taken on the disk at a time.
PREALLOCATE_NBYTES = 32 << 20
# Linux takes no more buffers in one call.
IOV_MAX = 1024


class ChunkLog:
    """The growing end of a partial file, and the thread that makes it durable.

    Parameters
    ----------
    partial, journal : int
        Descriptors of the two files; they stay the caller's.
    chunks_end, journal_end : int, bytes
        Where the next chunk and the next record go.
    row_nbytes : int, bytes, optional
        Size of each row, where rows stand in their order instead of following each other as they come.

    Attributes
    ----------
    partial : int
    records : list of Record
        Of what was appended; what was sealed at once is one record.
    n_durable : int
        Cells that are durable.
    """

    def __init__(
        self, partial: int, journal: int, *, chunks_end: int, journal_end: int, row_nbytes: int | None = None
    ) -> None:
        self.partial = partial
        self.records: list[Record] = []
        self.n_durable = 0
        self._journal = journal
        self._chunks_start = self._chunks_end = chunks_end
        self._journal_end = journal_end
        self._row_nbytes = row_nbytes
        self._preallocated_end: float = chunks_end
        self._n_records_durable = 0
        self._pending_nbytes = 0
        self._failure: OSError | None = None
        self._sync_lock = threading.Lock()
        self._due = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._checkpoint_regularly, name="gpu-extract-checkpoint", daemon=True)
        self._thread.start()

    def append(self, encoded: EncodedCells) -> None:
        """Write a batch's chunks behind the others, or at their rows' places.

        Raises
        ------
        OSError
            If they cannot be written, or what came before could not be made durable.
        """
        if self._failure is not None:
            raise self._failure
        record = Record(encoded.rows, encoded.sizes, encoded.checksums, encoded.limits)
        if self._row_nbytes is None:
            self._preallocate(record.nbytes)
            _write_chunks(self.partial, encoded.chunks, self._chunks_end)
        else:
            for some in np.split(np.arange(len(record)), np.flatnonzero(np.diff(record.rows) != 1) + 1):
                start = self._chunks_start + int(record.rows[some[0]]) * self._row_nbytes
                _write_chunks(self.partial, encoded.chunks[some[0] : some[-1] + 1], start)
        self.records.append(record)
        self._chunks_end += record.nbytes
        self._pending_nbytes += record.nbytes
        if self._pending_nbytes >= CHECKPOINT_NBYTES:
            self._pending_nbytes = 0
            self._due.set()

    def _preallocate(self, nbytes: int) -> None:
        """Take room for so many bytes, and for those that follow them."""
        while self._chunks_end + nbytes > self._preallocated_end:
            succeeded = preallocate_beyond_end(self.partial, int(self._preallocated_end), PREALLOCATE_NBYTES)
            # After a failure it is not tried again.
            self._preallocated_end = self._preallocated_end + PREALLOCATE_NBYTES if succeeded else math.inf

    def _trim(self) -> None:
        """Give back what was taken and not written."""
        if self._preallocated_end > self._chunks_end:
            trim_beyond_end(self.partial)
            self._preallocated_end = self._chunks_end

    def checkpoint(self) -> None:
        """Make durable what was appended before the call: first the chunks, then the record that tells of them.

        Raises
        ------
        OSError
            If that fails. No later call succeeds: after a failed sync nobody knows what is on the disk.
        """
        with self._syncing():
            first, last = self._n_records_durable, len(self.records)
            if first < last:
                record = join(self.records[first:last])
                self._write_record(record)
                # Small arrays of each batch, left among the larger ones that come and go, would tear memory apart.
                self.records[first:last] = [record]
                self._n_records_durable += 1

    def write_head(self, head: memoryview) -> None:
        """Write the head, which makes the partial file an HDF5 file, over the hole before the chunks.

        Raises
        ------
        OSError
            If it cannot be written; the chunks are as before.
        """
        write_all(self.partial, head, 0)

    def sync(self) -> None:
        """Make durable the head and all chunks; no record is written any more.

        Raises
        ------
        OSError
            As of `checkpoint`.
        """
        with self._syncing():
            self._trim()
            os.fsync(self.partial)

    def stop(self) -> None:
        """End the thread; what is not sealed stays so."""
        self._stopped = True
        self._due.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self._trim()

    @contextlib.contextmanager
    def _syncing(self) -> Iterator[None]:
        """One at a time, and none after one that failed."""
        with self._sync_lock:
            if self._failure is not None:
                raise self._failure
            try:
                yield
            except OSError as error:
                self._failure = error
                raise

    def _write_record(self, record: Record) -> None:
        os.fdatasync(self.partial)
        packed = pack_record(record)
        write_all(self._journal, packed, self._journal_end)
        os.fdatasync(self._journal)
        self._journal_end += len(packed)
        self.n_durable += len(record)

    def _checkpoint_regularly(self) -> None:
        while True:
            self._due.wait(CHECKPOINT_SECONDS)
            self._due.clear()
            if self._stopped:
                return
            # The next append raises it, where the user can be told.
            with contextlib.suppress(OSError):
                self.checkpoint()


def write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset``; one call may write less, at a signal or beyond 2 GiB."""
    rest = memoryview(data)
    while rest:
        n = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[n:], offset + n


def _write_chunks(descriptor: int, chunks: Sequence[Chunk], offset: int) -> None:
    for start in range(0, len(chunks), IOV_MAX):
        some = chunks[start : start + IOV_MAX]
        nbytes = sum(map(len, some))
        n = os.pwritev(descriptor, some, offset)
        if n < nbytes:
            write_all(descriptor, b"".join(some)[n:], offset + n)
        offset += nbytes
