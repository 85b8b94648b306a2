"""`CellStore`: the writer of an output file."""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from gpu_extract.errors import RunStoppedError
from gpu_extract.libraries import reporting_libraries
from gpu_extract.store.chunk_log import ChunkLog, write_all
from gpu_extract.store.chunks import ChunkFormat, EncodedCells
from gpu_extract.store.contents import Contents
from gpu_extract.store.hdf5.index import check_index, finished_head
from gpu_extract.store.hdf5.layout import Layout
from gpu_extract.store.hdf5.layouts import choose_layout, skeleton
from gpu_extract.store.journal import pack_header, read_journal
from gpu_extract.store.system import preallocate, trim_heap
from gpu_extract.store.target import Claim, Target, check_output, sync_folder

__all__ = ["CellStore"]


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
    n_kept : int
        Number of cells in the partial file after `keep`.
    """

    def __init__(self, target: Target, contents: Contents, layout: Layout, format: ChunkFormat, claim: Claim) -> None:
        self.path = target.path
        self.format = format
        self._layout_warnings = layout.warnings(contents)
        self._target = target
        self._n_cells = len(contents.cells)
        self._journal, self._is_locked, self._made = claim
        executor = ThreadPoolExecutor(1, "gpu-extract-tables")
        self._opening = executor.submit(self._open_log, contents, layout)
        if self._n_cells > TRIM_HEAP_CELLS:
            self._opening.add_done_callback(lambda _: trim_heap())
        executor.shutdown(wait=False)
        self._is_open = True
        self.n_kept = 0

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
        if unique_ids:
            contents = replace(contents, unique_ids=True)
        target = check_output(path, compression, layout=layout, overwrite=overwrite)
        chosen = choose_layout(layout)
        format = chosen.format(contents, compression, chunk_cells)
        with target.writing():
            claim = target.claim()
        return cls(target, contents, chosen, format, claim)

    def _open_log(self, contents: Contents, layout: Layout) -> ChunkLog:
        """Create the partial file and the journal, up to the first tile."""
        with reporting_libraries():
            head = skeleton(contents, layout, self.format)
        header = pack_header(head, self._n_cells, len(contents.program.cut))
        row_nbytes = self.format.nbytes if self.format.is_contiguous else None
        partial = _create_partial(self._target, len(head), header, self._journal, (row_nbytes or 0) * self._n_cells)
        return ChunkLog(partial, self._journal, chunks_end=len(head), journal_end=len(header), row_nbytes=row_nbytes)

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
        if not self._is_locked:
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
            self._target.discard(self._made)
            self._close()

    @property
    def _log(self) -> ChunkLog:
        """Log of chunks, once the thread has opened it."""
        with self._target.writing():
            return self._opening.result()

    def _close(self) -> None:
        self._is_open = False
        if self._opening.exception() is None:
            log = self._opening.result()
            log.stop()
            os.close(log.partial)
        os.close(self._journal)  # this releases the lock

    def _stopped(self, error: OSError) -> RunStoppedError:
        self.keep()
        kept = f"{self.n_kept} of {self._n_cells} cells are kept in {self._target.partial}"
        return RunStoppedError(f"{self.path} cannot be written: {error.strerror or error}; {kept}")


def _create_partial(target: Target, n_head: int, header: bytes, journal: int, n_values: int) -> int:
    """Create the partial file, preallocated for the head and ``n_values`` bytes, and write the journal's header.

    Returns
    -------
    int
        Descriptor of the partial file.
    """
    partial = os.open(target.partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        os.ftruncate(partial, n_head)
        preallocate(partial, n_head + n_values)
        os.fsync(partial)
        write_all(journal, header, 0)
        os.fsync(journal)
        sync_folder(target.path.parent)
    except BaseException:
        os.close(partial)
        raise
    return partial
