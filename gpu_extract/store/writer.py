"""`CellStore`: the writer of an output file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import RunStoppedError
from gpu_extract.libraries import reporting_libraries
from gpu_extract.store.chunk_log import ChunkLog, write_all
from gpu_extract.store.chunks import ChunkFormat, EncodedCells
from gpu_extract.store.contents import Contents
from gpu_extract.store.fingerprint import asked_for
from gpu_extract.store.hdf5.index import check_index, finished_head
from gpu_extract.store.hdf5.layout import Layout
from gpu_extract.store.hdf5.layouts import choose_layout, skeleton
from gpu_extract.store.journal import OWNER_NBYTES, Record, pack_header, read_journal
from gpu_extract.store.resuming import Partial, open_partial
from gpu_extract.store.system import preallocate, trim_heap
from gpu_extract.store.target import Claim, claim_output, sync_folder

__all__ = ["CellStore"]


HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
# With this many cells, planning and tables have used tens of megabytes, worth the milliseconds of trimming the heap.
TRIM_HEAP_CELLS = 30_000


class CellStore:
    """The writer of an output file; `create` opens one.

    Cells are written to ``OUT.partial``, and ``OUT.journal`` lists the durable ones. `finish` checks the file and
    renames it to ``OUT``. A thread prepares the tables of the file while the first cells are computed; `append` waits
    for it. The first successful call of `finish`, `keep` or `abandon` closes the store; later calls of `keep` and
    `abandon` do nothing. Call all methods from one thread.

    Attributes
    ----------
    path : Path
        Final path.
    format : ChunkFormat
        The format that `encode` must be called with.
    resumed : tuple of Record
        The cells that an earlier run has written.
    n_kept : int
        Number of cells in the partial file after `keep`.
    """

    def __init__(
        self, claim: Claim, contents: Contents, layout: Layout, format: ChunkFormat, partial: Partial | None = None
    ) -> None:
        self.path = claim.target.path
        self.format = format
        self._layout_warnings = layout.warnings(contents)
        self._claim, self._target = claim, claim.target
        if partial is not None:
            self._target = replace(claim.target, overwrite=bool(partial.journal.replaces))
        self._n_cells = len(contents.cells)
        executor = ThreadPoolExecutor(1, "gpu-extract-tables")
        if partial is None:
            self._opening = executor.submit(self._create_log, contents, layout)
        else:
            self._opening = executor.submit(self._continue_log, partial)
        if self._n_cells > TRIM_HEAP_CELLS:
            self._opening.add_done_callback(lambda _: trim_heap())
        executor.shutdown(wait=False)
        self._is_open = True
        self.resumed = () if partial is None else partial.journal.records
        self.n_kept = self.n_resumed

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        contents: Contents,
        *,
        compression: str = "gzip",
        layout: str = "h5sc",
        chunk_cells: int = 1,
        unique_ids: bool = False,
        overwrite: bool = False,
    ) -> CellStore:
        """Create a store, ready for `append`, and lock ``path`` against other runs.

        Parameters
        ----------
        path : path
            Final path. Missing folders are made, and removed by `abandon`.
        contents : Contents
        compression : {"gzip", "lzf", "lz4", "zstd", "none"}
        layout : {"h5sc", "sparcspy"}
        chunk_cells : int
            Number of cells per chunk.
        unique_ids : bool
            See `Contents`.
        overwrite : bool
            Remove the remains of an unfinished run now, and replace an existing file in `finish`.

        Raises
        ------
        OutputError
            If the output cannot be written, exists already or is locked by another run, or if the layout does not
            support the contents.
        """
        claim = claim_output(path, compression, layout=layout, overwrite=overwrite)
        try:
            return cls.open(
                claim,
                contents,
                compression=compression,
                layout=layout,
                chunk_cells=chunk_cells,
                unique_ids=unique_ids,
            )
        except BaseException:
            claim.release()
            raise

    @classmethod
    def open(
        cls,
        claim: Claim,
        contents: Contents,
        *,
        compression: str = "gzip",
        layout: str = "h5sc",
        chunk_cells: int = 1,
        unique_ids: bool = False,
    ) -> CellStore:
        """Create a store for an output that is locked already; see `create`. The store releases the claim.

        If the claim is to resume an unfinished run, the store goes on after its last durable cell; see `resumed`.

        Raises
        ------
        FinishedError
            If the claim is to resume, and the file is complete.
        OutputError
            If the layout does not support the contents, or what is to be resumed was made from other inputs or in
            another way. The claim is then still held.
        """
        if unique_ids:
            contents = replace(contents, unique_ids=True)
        chosen = choose_layout(layout)
        format = chosen.format(contents, compression, chunk_cells)
        if not claim.target.resume:
            return cls(claim, contents, chosen, format)
        with reporting_libraries(), claim.target.writing():
            partial = open_partial(claim.target, asked_for(contents, chosen, format), format)
        return cls(claim, contents, chosen, format, partial)

    def _create_log(self, contents: Contents, layout: Layout) -> ChunkLog:
        """Create the partial file and the journal, up to the first tile."""
        with reporting_libraries():
            head = skeleton(contents, layout, self.format)
        header = pack_header(head, self._n_cells, len(contents.program.cut), replaces=self._target.replaced())
        partial = _create_partial(self._claim, len(head), header, (self._row_nbytes or 0) * self._n_cells)
        return self._log_of(partial, len(head), OWNER_NBYTES + len(header))

    def _continue_log(self, partial: Partial) -> ChunkLog:
        """Cut both files after the last durable cells, and go on there."""
        journal, n_head = partial.journal, len(partial.journal.skeleton)
        try:
            os.ftruncate(self._claim.journal, journal.nbytes)
            # Before other chunks take the place of those that the journal listed.
            os.fsync(self._claim.journal)
            if self._row_nbytes is None:
                os.ftruncate(partial.descriptor, n_head + sum(record.nbytes for record in journal.records))
            else:
                preallocate(partial.descriptor, n_head + self._row_nbytes * self._n_cells)
            # Whatever a finish wrote there, this is no HDF5 file yet.
            write_all(partial.descriptor, bytes(len(HDF5_SIGNATURE)), 0)
        except BaseException:
            os.close(partial.descriptor)
            raise
        return self._log_of(partial.descriptor, n_head, journal.nbytes, journal.records)

    def _log_of(self, partial: int, n_head: int, journal_end: int, records: Sequence[Record] = ()) -> ChunkLog:
        return ChunkLog(
            partial,
            self._claim.journal,
            chunks_start=n_head,
            journal_end=journal_end,
            row_nbytes=self._row_nbytes,
            records=records,
        )

    @property
    def _row_nbytes(self) -> int | None:
        """Size of a row if rows have fixed offsets."""
        return self.format.nbytes if self.format.is_contiguous else None

    @property
    def n_resumed(self) -> int:
        """Number of cells that an earlier run has written."""
        return sum(map(len, self.resumed))

    def rows_to_do(self) -> NDArray[np.int64]:
        """Return the rows that no earlier run has written, ascending."""
        is_missing = np.ones(self._n_cells, bool)
        for record in self.resumed:
            is_missing[record.rows] = False
        return np.flatnonzero(is_missing)

    @property
    def partial(self) -> Path:
        """The file that is written until it is complete."""
        return self._target.partial

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings for users of the file, one line each."""
        warnings = [*self._layout_warnings]
        if self.format.codec.needs_plugin:
            warnings.append(
                f"{self.format.compression} is read by gpu-extract itself, and by other programs with the HDF5 "
                "plugins only (Python: pip install hdf5plugin; import hdf5plugin)"
            )
        if not self._claim.is_locked:
            warnings.append(
                f"the file system of {self.path} has no file locks, so nothing kept another run from writing to the "
                "same file; give every run an output of its own"
            )
        return tuple(warnings)

    def append(self, encoded: EncodedCells) -> None:
        """Write a batch.

        Raises
        ------
        OutputError
            If the partial file cannot be created.
        RunStoppedError
            If the disk is full or fails. Cells written so far are kept, and the store is closed.
        """
        assert encoded.format == self.format
        log = self._log
        try:
            log.append(encoded)
        except OSError as error:
            raise self._stopped(error) from error

    def finish(self) -> Path:
        """Complete the file, check it and rename it to its final path.

        Returns
        -------
        Path
            The finished file.

        Raises
        ------
        RunStoppedError
            If the disk is full or fails. Cells written so far are kept, and the store is closed.
        OutputError
            If a cell is missing, or ``path`` was created in the meantime. The store stays open.
        """
        log = self._log
        try:
            journal = replace(read_journal(self._target.journal), records=tuple(log.records))
            with ThreadPoolExecutor(1, "gpu-extract-sync") as executor:
                checkpointed = executor.submit(log.checkpoint)
                log.write_head(finished_head(journal))
                synced = executor.submit(log.sync)
                check_index(self._target.partial, journal)
                checkpointed.result()
                synced.result()
            self._target.publish()
        except OSError as error:
            raise self._stopped(error) from error
        self._close()
        return self.path

    def keep(self) -> None:
        """Make all cells durable and keep the partial file; remove it if there are none. See `n_kept`."""
        if not self._is_open:
            return
        if self._opening.exception() is None:
            log = self._opening.result()
            # Cells after the last successful checkpoint are lost; none of them was reported as kept.
            with contextlib.suppress(OSError):
                log.checkpoint()
            self.n_kept = log.n_durable
        if self.n_kept:
            self._close()
        else:
            self.abandon()

    def abandon(self) -> None:
        """Remove the partial file and the journal."""
        if self._is_open:
            self._opening.exception()  # wait for the thread
            self._close(discard=True)

    @property
    def _log(self) -> ChunkLog:
        """Log of chunks, once the thread has opened it."""
        with self._target.writing():
            return self._opening.result()

    def _close(self, *, discard: bool = False) -> None:
        self._is_open = False
        if self._opening.exception() is None:
            log = self._opening.result()
            log.stop()
            os.close(log.partial)
        self._claim.release(discard=discard)

    def _stopped(self, error: OSError) -> RunStoppedError:
        self.keep()
        return RunStoppedError(f"{self.path} cannot be written: {error.strerror or error}; {self.kept()}")

    def kept(self) -> str:
        """Return what the run has left after `keep`, and how to go on, as text."""
        if not self.n_kept:
            return "no cell is kept"
        kept = f"{self.n_kept:,} of {self._n_cells:,} cells are kept in {self._target.partial}"
        return f"{kept}; go on with --resume (resume=True)"


def _create_partial(claim: Claim, n_head: int, header: bytes, n_values: int) -> int:
    """Create the partial file, preallocated for the head and ``n_values`` bytes, and write the journal's header.

    Returns
    -------
    int
        Descriptor of the partial file.
    """
    claim.clear()
    target = claim.target
    partial = os.open(target.partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        os.ftruncate(partial, n_head)
        preallocate(partial, n_head + n_values)
        os.fsync(partial)
        write_all(claim.journal, header, OWNER_NBYTES)
        os.fsync(claim.journal)
        sync_folder(target.path.parent)
    except BaseException:
        os.close(partial)
        raise
    return partial
