"""The log of chunks: appended to the partial file, with a checkpoint in the journal every few seconds."""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Iterator, Sequence

import numpy as np

from gpu_extract.store.chunks import EncodedCells
from gpu_extract.store.codecs import Chunk
from gpu_extract.store.journal import Record, join, pack_record, packed_nbytes
from gpu_extract.store.system import preallocate_beyond_end, sync_data, trim_beyond_end

__all__ = ["ChunkLog", "write_all"]

# Upper bounds on what a kill can lose. Frequent checkpoints also keep the disk busy while cells are computed: with
# 512 MB, a run of a few seconds waits for all of its bytes at the end; with 64 MB, it waits for 3 % of its time.
CHECKPOINT_SECONDS = 2.0
CHECKPOINT_NBYTES = 32 << 20
# Disk space preallocated at a time, for chunks and for records. Room for the record of a batch is taken before its
# chunks are written, so that a disk that is full then has room for it.
PREALLOCATE_NBYTES = 32 << 20
JOURNAL_NBYTES = 1 << 20
# Linux limit on the number of buffers per call.
IOV_MAX = 1024


class ChunkLog:
    """The end of a growing partial file, and the thread that makes it durable.

    Parameters
    ----------
    partial, journal : int
        Descriptors of the two files; the caller closes them.
    chunks_start, journal_end : int, bytes
        Offsets of the first chunk and of the next record.
    row_nbytes : int, bytes, optional
        Size of each row, if rows are stored at fixed offsets instead of in order of arrival.
    records : sequence of Record
        Records of an earlier run that are in the journal.

    Attributes
    ----------
    partial : int
    records : list of Record
        Records of all appended batches; those of one checkpoint are merged into one.
    n_durable : int
        Number of durable cells.
    """

    def __init__(
        self,
        partial: int,
        journal: int,
        *,
        chunks_start: int,
        journal_end: int,
        row_nbytes: int | None = None,
        records: Sequence[Record] = (),
    ) -> None:
        self.partial = partial
        self.records = list(records)
        self.n_durable = sum(map(len, records))
        self._journal = journal
        self._chunks_start = chunks_start
        self._chunks_end = chunks_start + sum(record.nbytes for record in records)
        self._journal_end = journal_end
        self._row_nbytes = row_nbytes
        self._preallocated_end: float = self._chunks_end
        self._records_end = self._journal_end
        self._journal_preallocated_end: float = self._journal_end
        self._n_records_durable = len(records)
        self._pending_nbytes = 0
        self._failure: OSError | None = None
        self._sync_lock = threading.Lock()
        self._due = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._checkpoint_regularly, name="gpu-extract-checkpoint", daemon=True)
        self._thread.start()

    def append(self, encoded: EncodedCells) -> None:
        """Write the chunks of a batch at the end, or at the offsets of their rows.

        Raises
        ------
        OSError
            If the chunks cannot be written, or an earlier checkpoint failed.
        """
        if self._failure is not None:
            raise self._failure
        record = Record(encoded.rows, encoded.sizes, encoded.checksums, encoded.limits)
        self._preallocate_record(packed_nbytes(record))
        if self._row_nbytes is None:
            self._preallocate(record.nbytes)
            _write_chunks(self.partial, encoded.chunks, self._chunks_end)
        else:
            for block in np.split(np.arange(len(record)), np.flatnonzero(np.diff(record.rows) != 1) + 1):
                start = self._chunks_start + int(record.rows[block[0]]) * self._row_nbytes
                _write_chunks(self.partial, encoded.chunks[block[0] : block[-1] + 1], start)
        self.records.append(record)
        self._chunks_end += record.nbytes
        self._pending_nbytes += record.nbytes
        if self._pending_nbytes >= CHECKPOINT_NBYTES:
            self._pending_nbytes = 0
            self._due.set()

    def _preallocate(self, nbytes: int) -> None:
        """Preallocate disk space, in large steps, until the next ``nbytes`` fit."""
        while self._chunks_end + nbytes > self._preallocated_end:
            succeeded = preallocate_beyond_end(self.partial, int(self._preallocated_end), PREALLOCATE_NBYTES)
            if not succeeded:
                trim_beyond_end(self.partial)
            # After a failure, infinity prevents further attempts.
            self._preallocated_end = self._preallocated_end + PREALLOCATE_NBYTES if succeeded else math.inf

    def _preallocate_record(self, nbytes: int) -> None:
        """Preallocate disk space for a record, in large steps; if that is too much, just for this one."""
        self._records_end += nbytes
        start = self._journal_preallocated_end
        if self._records_end <= start:
            return
        for n in (JOURNAL_NBYTES, nbytes):
            # Trimming what a failure leaves could cut a record that the other thread writes.
            if n >= self._records_end - start and preallocate_beyond_end(self._journal, int(start), n):
                self._journal_preallocated_end = start + n
                return
        self._journal_preallocated_end = math.inf

    def _trim(self) -> None:
        """Release preallocated space of the partial file that was not used."""
        if self._preallocated_end > self._chunks_end:
            trim_beyond_end(self.partial)
            self._preallocated_end = self._chunks_end

    def checkpoint(self) -> None:
        """Make everything appended so far durable: first the chunks, then the record that lists them.

        Raises
        ------
        OSError
            If this fails. All later calls fail too, since the state of the disk after a failed sync is unknown.
        """
        with self._syncing():
            first, last = self._n_records_durable, len(self.records)
            if first < last:
                record = join(self.records[first:last])
                self._write_record(record)
                # Merge small per-batch arrays to avoid heap fragmentation.
                self.records[first:last] = [record]
                self._n_records_durable += 1

    def write_head(self, head: memoryview) -> None:
        """Write the head, which makes the partial file an HDF5 file, into the hole before the chunks.

        Raises
        ------
        OSError
            If it cannot be written; the chunks are unchanged.
        """
        write_all(self.partial, head, 0)

    def sync(self) -> None:
        """Make the head and all chunks durable, without writing a record.

        Raises
        ------
        OSError
            As in `checkpoint`.
        """
        with self._syncing():
            self._trim()
            os.fsync(self.partial)

    def stop(self) -> None:
        """Stop the thread, without a last checkpoint."""
        self._stopped = True
        self._due.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self._trim()
            trim_beyond_end(self._journal)

    @contextlib.contextmanager
    def _syncing(self) -> Iterator[None]:
        """Serialize syncs, and raise the error of an earlier one that failed."""
        with self._sync_lock:
            if self._failure is not None:
                raise self._failure
            try:
                yield
            except OSError as error:
                self._failure = error
                raise

    def _write_record(self, record: Record) -> None:
        sync_data(self.partial)
        packed = pack_record(record)
        write_all(self._journal, packed, self._journal_end)
        sync_data(self._journal)
        self._journal_end += len(packed)
        self.n_durable += len(record)

    def _checkpoint_regularly(self) -> None:
        while True:
            self._due.wait(CHECKPOINT_SECONDS)
            self._due.clear()
            if self._stopped:
                return
            # The next append raises the error in the caller's thread.
            with contextlib.suppress(OSError):
                self.checkpoint()


def write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset``.

    A single call of `os.pwrite` may write less, after a signal or beyond 2 GiB.
    """
    rest = memoryview(data)
    while rest:
        n = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[n:], offset + n


def _write_chunks(descriptor: int, chunks: Sequence[Chunk], offset: int) -> None:
    for start in range(0, len(chunks), IOV_MAX):
        buffers = chunks[start : start + IOV_MAX]
        nbytes = sum(map(len, buffers))
        n = os.pwritev(descriptor, buffers, offset)
        if n < nbytes:
            write_all(descriptor, b"".join(buffers)[n:], offset + n)
        offset += nbytes
