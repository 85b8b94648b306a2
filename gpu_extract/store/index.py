"""The end of a run: HDF5 builds its index over the chunks where they already are.

The partial file is a hole as long as the skeleton, then the chunks. HDF5 opens it through `IndexedLog`, which
keeps the skeleton and whatever HDF5 adds behind the chunks in memory, and accepts each chunk that HDF5 writes
where it already is. Nothing is copied, and a kill leaves the partial file as usable as it was.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gpu_extract.codecs import decompress
from gpu_extract.errors import OutputError
from gpu_extract.store.chunk_log import write_all
from gpu_extract.store.codecs import ChunkFormat, checksum
from gpu_extract.store.journal import Journal, Record, join
from gpu_extract.store.layout import LIBVER, layout_of

__all__ = ["IndexedLog", "check_index", "make_index"]

# The largest that HDF5 allows is 128 MiB; the default, 1 MiB, writes index pages out and reads them again.
METADATA_CACHE_NBYTES = 127 << 20
# HDF5 gathers what is smaller in a buffer, and writes more of it than was asked for.
SIEVE_NBYTES = 64 << 10
# Chunks that are read back before the file gets its name. `verify` reads all.
N_CHECKED = 64


class IndexedLog(io.RawIOBase):
    """The file object through which HDF5 sees skeleton, chunks and its own additions as one file.

    Parameters
    ----------
    descriptor : int
        The partial file.
    head : bytes
        The skeleton, which the file's hole stands for.
    end : int, bytes
        Where the chunks end.
    """

    def __init__(self, descriptor: int, head: bytes, end: int) -> None:
        self._descriptor = descriptor
        self._head, self._start, self._end = bytearray(head), len(head), end
        self._tail = bytearray()
        self._position = 0
        self._expected = (-1, 0)

    def expect(self, offset: int, nbytes: int) -> None:
        """Accept one chunk of this size at this place, which is where it already is."""
        self._expected = (offset, nbytes)

    def save(self) -> None:
        """Write what was kept in memory; the head, which makes the file an HDF5 file, last."""
        write_all(self._descriptor, self._tail, self._end)
        os.ftruncate(self._descriptor, self._end + len(self._tail))
        write_all(self._descriptor, self._head, 0)
        os.fsync(self._descriptor)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a place, and tell which."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._end + len(self._tail)}
        self._position = origin[whence] + offset
        return self._position

    def tell(self) -> int:
        """The place of the next read or write."""
        return self._position

    def truncate(self, size: int | None = None) -> int:
        """Set the tail's length. HDF5 asks for less than the chunks' end while it is half-way: ignored."""
        size = self._position if size is None else size
        n = max(size - self._end, 0)
        self._tail = self._tail[:n].ljust(n, b"\0")
        return size

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer; zeros stand for what has not been written."""
        view = memoryview(buffer).cast("B")
        first, last = self._position, self._position + len(view)
        in_head = self._head[first:last]
        chunk_first, chunk_last = max(first, self._start), min(last, self._end)
        in_chunks = os.pread(self._descriptor, max(chunk_last - chunk_first, 0), chunk_first)
        in_tail = self._tail[max(first - self._end, 0) : max(last - self._end, 0)]
        view[:] = (bytes(in_head) + in_chunks + bytes(in_tail)).ljust(len(view), b"\0")
        self._position = last
        return len(view)

    def write(self, data: Any) -> int:
        """Accept the chunk that is expected, keep what lies outside the chunks, refuse everything else."""
        view = memoryview(data)
        first, last = self._position, self._position + view.nbytes
        if (first, view.nbytes) == self._expected:
            self._expected = (-1, 0)
        elif last <= self._start:
            self._head[first:last] = view
        elif first >= self._end:
            first, last = first - self._end, last - self._end
            self._tail.extend(bytes(max(last - len(self._tail), 0)))
            self._tail[first:last] = view
        else:
            raise RuntimeError(f"HDF5 writes {view.nbytes} bytes at {first}, among chunks; expected {self._expected}")
        self._position += view.nbytes
        return view.nbytes

    @property
    def is_expecting(self) -> bool:
        """Whether the chunk that was announced has not come."""
        return self._expected != (-1, 0)


def make_index(partial: int, journal: Journal) -> IndexedLog:
    """What turns a partial file into an HDF5 file, in place, when it is saved; until then nothing is written.

    Parameters
    ----------
    partial : int
        Its descriptor.
    journal : Journal
        Of all its chunks.

    Raises
    ------
    OutputError
        If a row is missing.
    """
    record = _complete(journal)
    log = IndexedLog(partial, journal.skeleton, len(journal.skeleton) + record.nbytes)
    with h5py.File(log, "r+", libver=LIBVER) as file:
        config = file.id.get_mdc_config()
        config.set_initial_size = True
        config.initial_size = config.max_size = METADATA_CACHE_NBYTES
        file.id.set_mdc_config(config)
        layout, order = layout_of(file), np.argsort(record.rows)
        for i, name in enumerate(layout.levels):
            file[name][...] = record.levels[order, :, i]
        put_in_place = _place_values if file[layout.images].chunks is None else _index_chunks
        put_in_place(file[layout.images], log, len(journal.skeleton), record)
    return log


def check_index(path: Path, journal: Journal) -> None:
    """Open a finished file and compare some of its chunks with the journal.

    Raises
    ------
    OutputError
        If it does not hold what was written.
    """
    record = join(journal.records)
    with h5py.File(path, "r") as file:
        images = file[layout_of(file).images]
        format = ChunkFormat.of(images)
        places = format.places(record.rows, images.shape[1])
        n_found = len(places) if images.chunks is None else images.id.get_num_chunks()
        if n_found != len(places) or len(places) != len(record.sizes):
            raise OutputError(f"{path} holds {n_found} of {len(places)} chunks")
        values = np.empty(format.nbytes, np.uint8)
        for i in np.unique(np.linspace(0, len(places) - 1, N_CHECKED).astype(int)):
            row, plane = places[i].tolist()
            chunk = _stored(images, format, row, plane)
            if checksum(chunk) != record.checksums[i]:
                raise OutputError(f"{path}: row {row} is not what was written; the disk is at fault")
            try:
                decompress(format.compression, chunk, values)
            except ValueError as error:
                raise OutputError(f"{path}: row {row} cannot be decoded: {error}") from error


def _stored(images: h5py.Dataset, format: ChunkFormat, row: int, plane: int) -> bytes:
    if format.is_contiguous:
        start = images.id.get_offset() + row * format.nbytes
        return os.pread(images.file.id.get_vfd_handle(), format.nbytes, start)
    chunk: bytes = images.id.read_direct_chunk((row, plane, 0, 0))[1]
    return chunk


def _complete(journal: Journal) -> Record:
    """All chunks of a file, once it is sure that each row is there once."""
    rows = np.concatenate([record.rows for record in journal.records] or [np.empty(0, np.int64)])
    if not np.array_equal(np.sort(rows), np.arange(journal.n_cells)):
        raise OutputError(f"{len(np.unique(rows))} of {journal.n_cells} cells were written; the file is unfinished")
    return join(journal.records)


def _index_chunks(images: h5py.Dataset, log: IndexedLog, offset: int, record: Record) -> None:
    # HDF5 wants bytes, and only their number and place matter.
    blank = memoryview(bytes(int(record.sizes.max())))
    write_chunk = images.id.write_direct_chunk
    places = ChunkFormat.of(images).places(record.rows, images.shape[1])
    for (row, plane), nbytes in zip(places.tolist(), record.sizes.tolist(), strict=True):
        log.expect(offset, nbytes)
        write_chunk((row, plane, 0, 0), blank[:nbytes])
        if log.is_expecting:
            raise RuntimeError(f"HDF5 has put row {row} elsewhere than at {offset}, where it is")
        offset += nbytes


def _place_values(images: h5py.Dataset, log: IndexedLog, offset: int, record: Record) -> None:
    """HDF5 gives a dataset without chunks its place when the first of its values are written."""
    row_nbytes = ChunkFormat.of(images).nbytes
    n_rows = min(len(images), SIEVE_NBYTES // row_nbytes + 1)
    log.expect(offset, n_rows * row_nbytes)
    images[:n_rows] = np.zeros((n_rows, *images.shape[1:]), images.dtype)
    images.file.flush()
    if log.is_expecting or images.id.get_offset() != offset:
        raise RuntimeError(f"HDF5 has put the tiles at {images.id.get_offset()} instead of {offset}, where they are")
