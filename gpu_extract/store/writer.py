"""`CellStore`: the writer of one output file, from its first cell to its final name."""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from gpu_extract.errors import RunStoppedError
from gpu_extract.store.chunk_log import ChunkLog, write_all
from gpu_extract.store.chunks import ChunkFormat, EncodedCells
from gpu_extract.store.contents import Contents
from gpu_extract.store.hdf5.index import check_index, finished_head
from gpu_extract.store.hdf5.layout import Layout
from gpu_extract.store.hdf5.layouts import choose_layout, skeleton
from gpu_extract.store.journal import pack_header, read_journal
from gpu_extract.store.system import preallocate, trim_heap
from gpu_extract.store.target import Target, check_output, sync_folder

__all__ = ["CellStore"]


# Whose planning and tables took tens of megabytes, which are worth more than the milliseconds that it takes to give
# them back.
TRIM_HEAP_CELLS = 30_000


class CellStore:
    """An output file that is being written; `create` makes one.

    Cells go to ``OUT.partial``, and ``OUT.journal`` tells which of them are on the disk. ``OUT`` appears when
    `finish` has checked it. The file's tables are made by a thread of their own, while the first cells are computed;
    `append` waits for them. Of `finish`, `keep` and `abandon` the first one that is called ends the store; later
    calls of `keep` and `abandon` do nothing. All methods are called from one thread.

    Attributes
    ----------
    path : Path
        The final name.
    format : ChunkFormat
        What `encode` is to be called with.
    """

    def __init__(self, target: Target, contents: Contents, layout: Layout, format: ChunkFormat, journal: int) -> None:
        self.path = target.path
        self.format = format
        self._target = target
        self._n_cells = len(contents.cells)
        self._journal = journal
        executor = ThreadPoolExecutor(1, "gpu-extract-tables")
        self._opening = executor.submit(self._open_log, contents, layout)
        if self._n_cells > TRIM_HEAP_CELLS:
            self._opening.add_done_callback(lambda _: trim_heap())
        executor.shutdown(wait=False)
        self._is_open = True

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        contents: Contents,
        *,
        compression: str = "gzip",
        layout: str = "h5sc",
        chunk_cells: int = 1,
        overwrite: bool = False,
    ) -> CellStore:
        """A store for these contents, ready for `append`; it keeps every other run out of ``path``.

        Parameters
        ----------
        path : path
            The final name.
        contents : Contents
        compression : {"gzip", "lzf", "lz4", "zstd", "none"}
        layout : {"h5sc", "sparcspy"}
        chunk_cells : int
            Cells in a chunk.
        overwrite : bool
            Drop the remains of an unfinished run now, and replace a finished file in `finish`.

        Raises
        ------
        OutputError
            If the output cannot be written there, is there already, or another run is writing it; or if the layout
            cannot hold the contents.
        """
        target = check_output(path, compression, overwrite=overwrite)
        chosen = choose_layout(layout)
        format = chosen.format(contents, compression, chunk_cells)
        with target.writing():
            journal = target.claim()
        return cls(target, contents, chosen, format, journal)

    def _open_log(self, contents: Contents, layout: Layout) -> ChunkLog:
        """Write everything that stands before the tiles."""
        head = skeleton(contents, layout, self.format)
        header = pack_header(head, self._n_cells, len(contents.program.cut))
        row_nbytes = self.format.nbytes if self.format.is_contiguous else None
        partial = _create_partial(self._target, len(head), header, self._journal, (row_nbytes or 0) * self._n_cells)
        return ChunkLog(partial, self._journal, chunks_end=len(head), journal_end=len(header), row_nbytes=row_nbytes)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What readers of the file should know, one line each."""
        if not self.format.codec.needs_plugin:
            return ()
        return (
            f"{self.format.compression} is read by gpu-extract itself, and by other programs with the HDF5 plugins "
            "only (Python: pip install hdf5plugin; import hdf5plugin)",
        )

    def append(self, encoded: EncodedCells) -> None:
        """Write a batch.

        Raises
        ------
        OutputError
            If the file cannot be begun.
        RunStoppedError
            If the disk is full or fails; what was written before is kept, and the store is closed.
        """
        assert encoded.format == self.format
        log = self._log
        try:
            log.append(encoded)
        except OSError as error:
            raise self._stopped(error) from error

    def finish(self) -> Path:
        """Complete the file, check it and give it its name.

        Returns
        -------
        Path
            The finished file.

        Raises
        ------
        RunStoppedError
            If the disk is full or fails; what was written before is kept, and the store is closed.
        OutputError
            If a cell is missing, or ``path`` has been taken meanwhile; the store is as before.
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
        """Make durable what was written, and leave it beside the output's name; nothing if there is no cell."""
        if not self._is_open:
            return
        if self._opening.exception() is None:
            log = self._opening.result()
            # What cannot be sealed is lost, and was never said to be kept.
            with contextlib.suppress(OSError):
                log.checkpoint()
            if log.n_durable:
                self._close()
                return
        self.abandon()

    def abandon(self) -> None:
        """Leave nothing behind."""
        if self._is_open:
            self._opening.exception()  # nothing is written any more
            self._target.discard()
            self._close()

    @property
    def _log(self) -> ChunkLog:
        """Where chunks go, once all that stands before them is written."""
        with self._target.writing():
            return self._opening.result()

    def _close(self) -> None:
        self._is_open = False
        if self._opening.exception() is None:
            log = self._opening.result()
            log.stop()
            os.close(log.partial)
        os.close(self._journal)  # and with it goes the lock

    def _stopped(self, error: OSError) -> RunStoppedError:
        self.keep()
        kept = f"{self._log.n_durable} of {self._n_cells} cells are kept in {self._target.partial}"
        return RunStoppedError(f"{self.path} cannot be written: {error.strerror or error}; {kept}")


def _create_partial(target: Target, n_head: int, header: bytes, journal: int, n_values: int) -> int:
    """A descriptor of a new partial file, which the journal knows of: room for the head, and for values."""
    partial = os.open(target.partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
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
