"""The end of a run: the skeleton becomes the head of an HDF5 file, with an index that points to the chunks.

The partial file starts with a hole of the size of the skeleton, followed by the chunks. Chunks are not copied, and a
kill leaves the partial file as usable as before.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import h5py
import numpy as np

from gpu_extract.errors import OutputError
from gpu_extract.hdf5_files import open_to_read
from gpu_extract.store.chunks import ChunkFormat, checksum
from gpu_extract.store.hdf5.datasets import format_of
from gpu_extract.store.hdf5.fields import fill_index, set_end_of_file
from gpu_extract.store.hdf5.layouts import LIBVER, layout_of
from gpu_extract.store.journal import Journal, Record, join

__all__ = ["check_index", "finished_head"]

# HDF5 buffers smaller writes, and then writes more than requested.
SIEVE_NBYTES = 64 << 10
# Number of chunks that are read back before the file is renamed. `verify` reads all.
N_CHECKED = 64


def finished_head(journal: Journal) -> memoryview:
    """Return the bytes that turn a partial file into an HDF5 file when written into its hole.

    Parameters
    ----------
    journal : Journal
        Journal with records of all chunks.

    Raises
    ------
    OutputError
        If a row is missing.
    """
    if not journal.n_cells:  # the skeleton is the whole file
        return memoryview(journal.skeleton)
    record, n_head = _join_complete(journal), len(journal.skeleton)
    memory = io.BytesIO(journal.skeleton)
    with h5py.File(memory, "r+", libver=LIBVER) as file:
        layout, order = layout_of(file), np.argsort(record.rows)
        for i, name in enumerate(layout.limits):
            file[name][...] = record.limits[order, :, i]
        images = file[layout.images]
        format, n_planes = format_of(images), images.shape[1]
        if format.is_contiguous:
            _allocate_values(images, n_head)
    head = memory.getbuffer()[:n_head]
    if not format.is_contiguous:
        order = np.lexsort(format.chunk_offsets(record.rows, n_planes).T[::-1])
        ends = n_head + np.cumsum(record.sizes, dtype=np.uint64)
        fill_index(head, (ends - record.sizes)[order], record.sizes[order])
    set_end_of_file(head, n_head + record.nbytes)
    return head


def check_index(path: Path, journal: Journal) -> None:
    """Open a finished file and compare some of its chunks with the journal.

    Raises
    ------
    OutputError
        If the file does not have the chunks that were written.
    """
    if not journal.n_cells:
        return
    record = join(journal.records)
    with open_to_read(path) as file:
        images = file[layout_of(file).images]
        format = format_of(images)
        offsets = format.chunk_offsets(record.rows, images.shape[1])
        n_found = len(offsets) if images.chunks is None else images.id.get_num_chunks()
        if n_found != len(offsets) or len(offsets) != len(record.sizes):
            raise OutputError(f"{path} has {n_found} of {len(offsets)} chunks")
        values = np.empty(format.nbytes, np.uint8)
        for i in np.unique(np.linspace(0, len(offsets) - 1, N_CHECKED).astype(int)):
            row, plane = offsets[i].tolist()
            chunk = _read_stored(images, format, row, plane)
            if checksum(chunk) != record.checksums[i]:
                raise OutputError(f"{path}: row {row} differs from what was written; check the disk")
            try:
                format.codec.decode(chunk, values)
            except ValueError as error:
                raise OutputError(f"{path}: row {row} cannot be decoded: {error}") from error


def _read_stored(images: h5py.Dataset, format: ChunkFormat, row: int, plane: int) -> bytes:
    if format.is_contiguous:
        start = images.id.get_offset() + row * format.nbytes
        return os.pread(images.file.id.get_vfd_handle(), format.nbytes, start)
    chunk: bytes = images.id.read_direct_chunk((row, plane, 0, 0))[1]
    return chunk


def _join_complete(journal: Journal) -> Record:
    """Join the records of a file, after checking that each row occurs once."""
    rows = np.concatenate([record.rows for record in journal.records] or [np.empty(0, np.int64)])
    if not np.array_equal(np.sort(rows), np.arange(journal.n_cells)):
        raise OutputError(f"{len(np.unique(rows))} of {journal.n_cells} cells were written; the file is unfinished")
    return join(journal.records)


def _allocate_values(images: h5py.Dataset, start: int) -> None:
    """Make HDF5 allocate a contiguous dataset at the end of the file, by writing its first values.

    Raises
    ------
    RuntimeError
        If the dataset does not start at ``start``.
    """
    row = np.zeros((1, *images.shape[1:]), images.dtype)
    images[: SIEVE_NBYTES // row.nbytes + 1] = row
    images.file.flush()
    if images.id.get_offset() != start:
        raise RuntimeError(f"HDF5 has placed the tiles at {images.id.get_offset()}; they are at {start}")
