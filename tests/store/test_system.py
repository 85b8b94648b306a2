"""Preallocation of disk space ahead of the chunks, and its release."""

import ctypes
import os

import pytest
from made.cells import make_contents, make_images, part, write

from gpu_extract.store import CellStore, chunk_log, encode, verify
from gpu_extract.store.chunk_log import PREALLOCATE_NBYTES
from gpu_extract.store.system import preallocate_beyond_end, trim_beyond_end, trim_heap


def on_disk(path):
    return 512 * path.stat().st_blocks


@pytest.fixture
def file(tmp_path):
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    if not preallocate_beyond_end(descriptor, 0, 1 << 20):
        pytest.skip("this file system does not preallocate")
    yield tmp_path / "file", descriptor
    os.close(descriptor)


def test_space_is_preallocated_beyond_the_end_of_the_file(file):
    path, descriptor = file
    os.pwrite(descriptor, b"text", 0)
    assert (path.read_bytes(), on_disk(path)) == (b"text", 1 << 20)
    trim_beyond_end(descriptor)
    assert path.read_bytes() == b"text"
    assert on_disk(path) < 1 << 16


def test_no_preallocated_space_is_left(tmp_path, file):
    contents = make_contents(40)
    images = make_images(contents)
    for name in ("finished", "kept"):
        path = tmp_path / f"{name}.h5sc"
        store = CellStore.create(path, contents)
        store.append(encode(images, store.format))
        partial = next(tmp_path.glob(f"{name}.*partial"))
        assert on_disk(partial) > PREALLOCATE_NBYTES
        store.finish() if name == "finished" else store.keep()
        assert on_disk(path if name == "finished" else partial) < PREALLOCATE_NBYTES / 2
    verify(tmp_path / "finished.h5sc")


def test_room_for_a_record_is_taken_before_its_chunks_are_written(tmp_path, file, monkeypatch):
    contents = make_contents(40)
    images = make_images(contents)
    monkeypatch.setattr(chunk_log, "JOURNAL_NBYTES", 2000)
    store = CellStore.create(tmp_path / "cells.h5sc", contents)
    assert store._log.n_durable == 0  # the header is written
    journal = tmp_path / "cells.h5sc.journal"
    real = os.pwritev
    written = []

    def full(descriptor, chunks, offset):
        header = journal.stat().st_size - sum(written)
        assert on_disk(journal) >= header + sum(written) + 16 + 8 * (16 + 2 * 16) + 4
        written.append(0)
        return real(descriptor, chunks, offset)

    monkeypatch.setattr(os, "pwritev", full)
    for start in range(0, 40, 8):
        store.append(encode(part(images, start, start + 8), store.format))
    assert len(written) == 5
    store.keep()
    assert on_disk(journal) < 1 << 16


@pytest.mark.parametrize("missing", [OSError("no such library"), TypeError("None is not the name of a library")])
def test_systems_without_preallocation(tmp_path, monkeypatch, missing):
    def no_library(name):
        raise missing

    monkeypatch.setattr(ctypes, "CDLL", no_library)
    with open(tmp_path / "file", "w+b") as file:
        assert not preallocate_beyond_end(file.fileno(), 0, 1 << 20)
    trim_heap()
    contents = make_contents(4)
    path = tmp_path / "cells.h5sc"
    write(path, contents, make_images(contents))
    verify(path)


def test_a_refused_preallocation_returns_false(tmp_path):
    (tmp_path / "file").write_bytes(b"text")
    with open(tmp_path / "file", "rb") as file:
        assert not preallocate_beyond_end(file.fileno(), 0, 1 << 20)
