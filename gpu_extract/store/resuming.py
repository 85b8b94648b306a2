"""What an earlier run left, and whether this run may go on with it."""

from __future__ import annotations

import io
import os
from contextlib import suppress
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import OutputError
from gpu_extract.hdf5_files import open_to_read
from gpu_extract.messages import warn
from gpu_extract.store.chunks import ChunkFormat, checksum
from gpu_extract.store.damage import reporting_damage
from gpu_extract.store.fingerprint import Fingerprint, check_same, stated_in
from gpu_extract.store.journal import Journal, Record, read_journal
from gpu_extract.store.target import START_AGAIN, Target

__all__ = ["FinishedError", "Partial", "open_partial"]

# Chunks that are read back before a run goes on. They were durable when they were recorded, so a difference is damage
# of the disk; `finish` and `verify` look at the others.
CHECKED_NBYTES = 64 << 20


class FinishedError(Exception):
    """The file that is asked for is there, complete."""


class Partial(NamedTuple):
    """The unfinished file of an earlier run.

    Parameters
    ----------
    descriptor : int
    journal : Journal
        Without records whose chunks are damaged.
    """

    descriptor: int
    journal: Journal


def open_partial(target: Target, asked: Fingerprint, format: ChunkFormat) -> Partial | None:
    """Open the unfinished file of an earlier run; None if nothing of one is durable.

    Raises
    ------
    FinishedError
        If the file is complete.
    OutputError
        If there is a file that was made from other inputs or in another way.
    OSError
        If a file cannot be read.
    """
    journal = target.unfinished_journal()
    if target.path.exists() and (journal is None or target.partial.samefile(target.path)):
        with reporting_damage(target.path), open_to_read(target.path) as file:
            stated = stated_in(file)
        check_same(target.path, asked, stated)
        raise FinishedError
    if journal is None:
        with suppress(OutputError):  # no journal, or an empty one
            _warn_of_lost(target, read_journal(target.journal).n_written)
        return None
    with reporting_damage(target.journal), h5py.File(io.BytesIO(journal.skeleton), "r") as file:
        stated = stated_in(file)
    check_same(target.partial, asked, stated)
    if target.path.exists() and target.path.stat().st_mtime_ns != journal.replaces:
        raise OutputError(
            f"{target.path} was written after the run began that {target.partial} is of; move one of them away"
        )
    rows = np.concatenate([record.rows for record in journal.records])
    if rows.min() < 0 or rows.max() >= journal.n_cells or len(np.unique(rows)) < len(rows):
        raise OutputError(f"{target.journal} is damaged: it lists cells twice, or that are none; {START_AGAIN}")
    flags = os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(target.partial, flags)
    try:
        intact = _intact(journal, descriptor, format)
        _warn_of_lost(target, journal.n_written - intact.n_written)
        return Partial(descriptor, intact)
    except BaseException:
        os.close(descriptor)
        raise


def _warn_of_lost(target: Target, n_cells: int) -> None:
    if n_cells:
        lost = f"{n_cells:,} cells that {target.journal} lists are damaged in {target.partial}, or no longer there"
        warn([f"{lost}; they are extracted again"])


def _intact(journal: Journal, partial: int, format: ChunkFormat) -> Journal:
    """Return the journal up to the last record whose chunks are in the partial file as they were written.

    The chunks of the last records are read, of all if some are damaged.
    """
    ends = np.cumsum([record.nbytes for record in journal.records]) + len(journal.skeleton)
    n_kept, n_checked = len(journal.records), 0
    for i in reversed(range(len(journal.records))):
        record = journal.records[i]
        if _is_intact(record, partial, _offsets(record, int(ends[i]), len(journal.skeleton), format)):
            n_checked += record.nbytes
        else:
            n_kept, n_checked = i, 0
        if n_checked >= CHECKED_NBYTES:
            break
    return journal.first(n_kept)


def _offsets(record: Record, end: int, start: int, format: ChunkFormat) -> NDArray[Any]:
    """Return the offset of each chunk of a record that ends at ``end``, in a file whose chunks begin at ``start``."""
    if format.is_contiguous:
        return start + record.rows * format.nbytes
    ends = np.cumsum(record.sizes, dtype=np.int64)
    return end - int(ends[-1]) + ends - record.sizes


def _is_intact(record: Record, partial: int, offsets: NDArray[Any]) -> bool:
    sizes, checksums = record.sizes.tolist(), record.checksums.tolist()
    return all(
        checksum(os.pread(partial, size, offset)) == expected
        for size, offset, expected in zip(sizes, offsets.tolist(), checksums, strict=True)
    )
