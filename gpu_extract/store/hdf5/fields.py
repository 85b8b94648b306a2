"""Direct edits of an HDF5 file: its end-of-file address, and the index of a dataset's chunks, a fixed array.

::

    header       "FAHD", version, client, bytes per entry, log2 of entries per page, entries, address of the block
    block        "FADB", version, client, address of the header
                 | entries                       if they fit in one page, else
                 | one bit per page | checksum | entries of a page | checksum | ...
    entry        address, size and filter mask of a chunk

Each part ends with its checksum (HDF5 File Format Specification 3.0, appendix C, "The Fixed Array Index"). Through the
HDF5 library chunks are added one by one, which takes microseconds each and minutes for the cells of a study.
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
# Superblock version 3 (II.A): offset of the end-of-file address, and offset of the checksum.
END_OF_FILE, END_OF_FILE_OFFSET, SUPERBLOCK_NBYTES = struct.Struct("<Q"), 28, 44


def fill_index(head: memoryview, addresses: NDArray[np.uint64], sizes: NDArray[np.uint32]) -> None:
    """Write the address and size of each chunk, (m,) in the order of the dataset, into the index in ``head``.

    Raises
    ------
    RuntimeError
        If ``head`` does not have exactly one index, or the index is too short.
    """
    header = _find_header(head)
    _, _, _, entry_nbytes, page_bits, n, block, _ = HEADER.unpack_from(head, header)
    if n < len(addresses):
        raise RuntimeError(f"HDF5 has allocated an index of {n} chunks for {len(addresses)}")
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
    """Return the end-of-file address in the superblock."""
    (end,) = END_OF_FILE.unpack_from(head, END_OF_FILE_OFFSET)
    return int(end)


def set_end_of_file(head: memoryview, end: int) -> None:
    """Set the end-of-file address in the superblock."""
    END_OF_FILE.pack_into(head, END_OF_FILE_OFFSET, end)
    CHECKSUM.pack_into(head, SUPERBLOCK_NBYTES, _checksum(head, 0, SUPERBLOCK_NBYTES))


def _find_header(head: memoryview) -> int:
    """Return the offset of the header; the checksum tells it from text with the same letters."""
    found = []
    for match in re.finditer(b"FAHD", head):
        start, end = match.start(), match.start() + HEADER.size - CHECKSUM.size
        if end + CHECKSUM.size <= len(head) and CHECKSUM.unpack_from(head, end)[0] == _checksum(head, start, end):
            found.append(start)
    if len(found) != 1:
        raise RuntimeError(f"HDF5 has written {len(found)} chunk indices instead of 1")
    return found[0]


def _write_with_checksum(head: memoryview, first: int, start: int, values: NDArray[np.uint8]) -> int:
    """Write values at ``start``, then the checksum of the bytes from ``first`` on; return the offset of the end."""
    end = start + values.nbytes
    head[start:end] = values.tobytes()
    CHECKSUM.pack_into(head, end, _checksum(head, first, end))
    return end + CHECKSUM.size


def _little_endian(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return numbers as eight bytes each, least significant first, (m, 8)."""
    return values.astype("<u8").view(np.uint8).reshape(len(values), 8)


def _checksum(head: memoryview, start: int, end: int) -> int:
    """Return HDF5's checksum of a nonempty range of bytes."""
    from gpu_extract.store.hdf5.lookup3 import lookup3  # imports numba, which is slow

    n = end - start
    words = np.zeros((-(-n // 12), 3), "<u4")
    words.view(np.uint8).reshape(-1)[:n] = np.frombuffer(head, np.uint8, n, start)
    return int(lookup3(words, n))
