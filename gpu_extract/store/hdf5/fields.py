"""Fields of an HDF5 file that are filled in at once: its length, and the index of a dataset's chunks, a fixed array.

::

    header       "FAHD", version, client, bytes of an entry, log2 of entries in a page, entries, place of the block
    block        "FADB", version, client, place of the header
                 | entries                       where they fit in one page, or else
                 | a bit of each page | checksum | entries of a page | checksum | ...
    entry        place and size of a chunk, filters that were left out

Each part ends with its checksum (HDF5 File Format Specification 3.0, appendix C, "The Fixed Array Index"). HDF5 itself
is told of one chunk at a time, in microseconds that add up to minutes for the cells of a study.
"""

from __future__ import annotations

import re
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["end_of_file", "fill_index", "set_end_of_file"]

HEADER = struct.Struct("<4sBBBBQQI")
BLOCK = struct.Struct("<4sBBQ")
CHECKSUM = struct.Struct("<I")
# Of the superblock (II.A, version 3): where it says how long the file is, and where its checksum stands.
END_OF_FILE, END_OF_FILE_OFFSET, SUPERBLOCK_NBYTES = struct.Struct("<Q"), 28, 44


def fill_index(head: memoryview, addresses: NDArray[np.uint64], sizes: NDArray[np.uint32]) -> None:
    """Write place and size of each chunk, (m,) in the order of the dataset, into the one index there is in ``head``.

    Raises
    ------
    RuntimeError
        If there is none, or more than one, or one of fewer chunks.
    """
    header = _find_header(head)
    _, _, _, entry_nbytes, page_bits, n, block, _ = HEADER.unpack_from(head, header)
    if n < len(addresses):
        raise RuntimeError(f"HDF5 has made an index of {n} chunks for {len(addresses)}")
    entries = np.zeros((n, entry_nbytes), np.uint8)
    entries[:, :8] = 255  # no chunk
    entries[: len(addresses), :8] = _little_endian(addresses)
    entries[: len(addresses), 8:-4] = _little_endian(sizes)[:, : entry_nbytes - 12]
    per_page = 1 << page_bits
    start = block + BLOCK.size
    if n <= per_page:
        _write_with_checksum(head, block, start, entries)
        return
    is_written = np.packbits(np.ones(-(-n // per_page), bool))
    start = _write_with_checksum(head, block, start, is_written)
    for first in range(0, n, per_page):
        start = _write_with_checksum(head, start, start, entries[first : first + per_page])


def end_of_file(head: bytes) -> int:
    """How many bytes the superblock says that the file has."""
    (end,) = END_OF_FILE.unpack_from(head, END_OF_FILE_OFFSET)
    return int(end)


def set_end_of_file(head: memoryview, end: int) -> None:
    """Make the superblock say that the file has so many bytes."""
    END_OF_FILE.pack_into(head, END_OF_FILE_OFFSET, end)
    CHECKSUM.pack_into(head, SUPERBLOCK_NBYTES, _checksum(head, 0, SUPERBLOCK_NBYTES))


def _find_header(head: memoryview) -> int:
    """Where the one header stands; the same letters in somebody's text are none."""
    found = []
    for match in re.finditer(b"FAHD", head):
        start, end = match.start(), match.start() + HEADER.size - CHECKSUM.size
        if end + CHECKSUM.size <= len(head) and CHECKSUM.unpack_from(head, end)[0] == _checksum(head, start, end):
            found.append(start)
    if len(found) != 1:
        raise RuntimeError(f"{len(found)} indices of chunks in what HDF5 wrote, instead of 1")
    return found[0]


def _write_with_checksum(head: memoryview, first: int, start: int, values: NDArray[np.uint8]) -> int:
    """Write values at ``start``, and behind them the checksum from ``first`` on; gives where that ends."""
    end = start + values.nbytes
    head[start:end] = values.tobytes()
    CHECKSUM.pack_into(head, end, _checksum(head, first, end))
    return end + CHECKSUM.size


def _little_endian(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Numbers as eight bytes each, the lowest first: (m, 8)."""
    return values.astype("<u8").view(np.uint8).reshape(len(values), 8)


def _checksum(head: memoryview, start: int, end: int) -> int:
    """HDF5's checksum of some bytes, one at least."""
    from gpu_extract.store.hdf5.lookup3 import lookup3  # numba takes its time

    n = end - start
    words = np.zeros((-(-n // 12), 3), "<u4")
    words.view(np.uint8).reshape(-1)[:n] = np.frombuffer(head, np.uint8, n, start)
    return int(lookup3(words, n))
