"""The index of chunks that is written directly is identical to that of HDF5."""

from __future__ import annotations

import io
from math import ceil

import h5py
import numpy as np
import pytest

from gpu_extract.store.hdf5.fields import end_of_file, fill_index, set_end_of_file
from gpu_extract.store.hdf5.layouts import LIBVER
from gpu_extract.store.hdf5.lookup3 import lookup3


def hash_bytes(data):
    words = np.zeros((ceil(len(data) / 12), 3), "<u4")
    words.view(np.uint8).reshape(-1)[: len(data)] = np.frombuffer(data, np.uint8)
    return lookup3(words, len(data))


def test_the_hash_is_jenkins():
    # A value from the comments of lookup3.c, driver5, for hashlittle with initial values of 0.
    assert hash_bytes(b"Four score and seven years ago") == 0x17770551
    assert lookup3(np.empty((0, 3), "<u4"), 0) != hash_bytes(b"\0")


def file_of(n_cells, chunks, sizes, note=""):
    """Write chunks with HDF5, and return the bytes of the file and those after its first chunk."""
    memory, first = io.BytesIO(), b""
    n_planes, S = 4, chunks[2]
    with h5py.File(memory, "w", libver=LIBVER) as file:
        file.attrs["note"] = note
        shape, most = (n_cells, n_planes, S, S), (max(n_cells, chunks[0] + 1), n_planes, S, S)
        images = file.create_dataset(
            "images", shape, np.float16, chunks=chunks, maxshape=most, compression="gzip", track_times=False
        )
        offsets = np.indices([ceil(n / c) for n, c in zip(shape, chunks, strict=True)]).reshape(4, -1).T * chunks
        for k, size in enumerate(sizes):
            images.id.write_direct_chunk(tuple(offsets[k].tolist()), bytes(size))
            if k == 0:
                file.flush()
                first = memory.getvalue()
    return memory.getvalue(), first


@pytest.mark.parametrize(
    ("n_cells", "chunks"),
    [
        (1, (1, 4, 8, 8)),
        (2, (1, 4, 8, 8)),
        (1024, (1, 4, 8, 8)),
        (1025, (1, 4, 8, 8)),
        (9000, (1, 4, 8, 8)),
        (700, (1, 1, 8, 8)),
        (1, (1, 1, 8, 8)),
        (50, (50, 4, 8, 8)),
        (50, (20, 4, 8, 8)),
        (3, (1, 4, 200, 200)),
    ],
)
def test_the_index_is_that_of_hdf5(n_cells, chunks):
    sizes = np.random.default_rng(0).integers(1, 300, ceil(n_cells / chunks[0]) * (4 // chunks[1])).astype(np.uint32)
    expected, _ = file_of(n_cells, chunks, sizes)
    with h5py.File(io.BytesIO(expected)) as file:
        found = [file["images"].id.get_chunk_info(k) for k in range(len(sizes))]
    head = bytearray(expected)
    fill_index(head, np.array([chunk.byte_offset for chunk in found], np.uint64), sizes)
    assert head == expected  # the same index is written again

    # Into an index with one chunk, whose pages are uninitialized.
    _, first = file_of(n_cells, chunks, sizes)
    addresses = np.uint64(1 << 20) + np.cumsum(sizes, dtype=np.uint64)
    head = bytearray(first.ljust(1 << 20, b"\xaa"))
    fill_index(head, addresses, sizes)
    end = int(addresses[-1] + sizes[-1])
    set_end_of_file(head, end)
    assert end_of_file(head) == end
    with h5py.File(io.BytesIO(head.ljust(end, b"\0"))) as file:
        images = file["images"].id
        assert images.get_num_chunks() == len(sizes)
        chunks_found = [images.get_chunk_info(k) for k in range(len(sizes))]
    assert [chunk.byte_offset for chunk in chunks_found] == addresses.tolist()
    assert [chunk.size for chunk in chunks_found] == sizes.tolist()
    assert {chunk.filter_mask for chunk in chunks_found} == {0}


def test_text_with_the_signature_of_an_index_is_ignored():
    sizes = np.array([5, 6], np.uint32)
    expected, _ = file_of(2, (1, 4, 8, 8), sizes, note="FAHD" * 20)
    head = bytearray(expected)
    fill_index(head, np.array([4000, 5000], np.uint64), sizes)
    with h5py.File(io.BytesIO(head)) as file:
        assert file["images"].id.get_chunk_info(1).byte_offset == 5000


def test_an_index_of_fewer_chunks_is_refused():
    expected, _ = file_of(2, (1, 4, 8, 8), np.array([5, 6], np.uint32))
    with pytest.raises(RuntimeError, match="2 chunks for 3"):
        fill_index(bytearray(expected), np.zeros(3, np.uint64), np.ones(3, np.uint32))


def test_a_file_without_an_index_is_refused():
    memory = io.BytesIO()
    with h5py.File(memory, "w", libver=LIBVER) as file:
        file["x"] = 1
    with pytest.raises(RuntimeError, match="0 chunk indices"):
        fill_index(bytearray(memory.getvalue()), np.zeros(1, np.uint64), np.ones(1, np.uint32))
