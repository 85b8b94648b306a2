"""After a kill, a full disk or a flipped bit, exactly the durable cells are read back."""

from __future__ import annotations

import errno
import os
import random
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from made.cells import fill, make_contents, make_format, make_images, part, write

from gpu_extract.errors import OutputError, RunStoppedError
from gpu_extract.store import CellStore, encode, read_journal
from gpu_extract.store.chunks import checksum
from gpu_extract.store.codecs import CODECS
from gpu_extract.store.hdf5.index import check_index, finished_head
from gpu_extract.store.hdf5.layouts import LAYOUTS
from gpu_extract.store.journal import BlankError, Owner, join


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cells.h5sc"


# Writes batches, each followed by a checkpoint, and prints the number of durable cells.
WRITER = """
import sys
from made.cells import make_contents, make_images, part
from gpu_extract.store import CellStore, encode
contents = make_contents(4000)
images = make_images(contents)
store = CellStore.create(sys.argv[1], contents, layout=sys.argv[2], compression=sys.argv[3])
for start in range(0, 4000, 8):
    store.append(encode(part(images, start, start + 8), store.format))
    if start % 3:
        store._log.checkpoint()
        print(store._log.n_durable, flush=True)
store.finish()
"""


def partial_and_journal(path):
    return Path(f"{path}.partial"), Path(f"{path}.journal")


def assert_payloads_match(path, images, format):
    """Check the chunks of all records in the partial file, and return the number of their cells."""
    partial, journal = partial_and_journal(path)
    found, data = read_journal(journal), partial.read_bytes()
    start = offset = len(found.skeleton)
    assert not any(data[:offset])  # not a valid HDF5 file yet
    for record in found.records:
        expected = encode(part(images, record.rows[0], record.rows[-1] + 1), format)
        np.testing.assert_array_equal(record.limits, images.limits[record.rows])
        if format.is_contiguous:
            offset = start + record.rows[0] * format.nbytes
        for size, crc, chunk in zip(record.sizes, record.checksums, expected.chunks, strict=True):
            assert data[offset : offset + size] == chunk
            assert crc == checksum(chunk)
            offset += size
    return found.n_written


def kill_a_writer(path, layout, compression, seed):
    contents = make_contents(4000)
    dice = random.Random(seed)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])}
    command = [sys.executable, "-c", WRITER, str(path), layout, compression]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        durable = 0
        for _ in range(dice.randrange(1, 200)):
            durable = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        durable = max([durable, *map(int, child.stdout.read().split())])
    assert child.returncode == -signal.SIGKILL
    assert not path.exists()
    found = assert_payloads_match(path, make_images(contents), make_format(contents, layout, compression))
    assert found >= durable > 0


@pytest.mark.parametrize(
    ("seed", "layout", "compression"), [(0, "h5sc", "gzip"), (1, "h5sc", "none"), (2, "sparcspy", "lz4")]
)
def test_a_killed_writer_leaves_all_durable_cells(path, seed, layout, compression):
    kill_a_writer(path, layout, compression, seed)


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["gzip", "none"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(3, 33))
def test_a_killed_writer_leaves_all_durable_cells_many_times(path, seed, layout, compression):
    kill_a_writer(path, layout, compression, seed)


def unfinished_run(path, n_cells=40, batch=10, n_batches=None, **choices):
    """Write some batches, one record each, and keep the unfinished file; return its contents and images."""
    contents = make_contents(n_cells)
    images = make_images(contents)
    store = CellStore.create(path, contents, **choices)
    for start in range(0, n_cells if n_batches is None else n_batches * batch, batch):
        store.append(encode(part(images, start, start + batch), store.format))
        store._log.checkpoint()
    store.keep()
    return contents, images


def test_every_prefix_of_a_journal_is_a_whole_number_of_records(path, tmp_path):
    unfinished_run(path)
    _, journal = partial_and_journal(path)
    whole, data, cut = read_journal(journal), journal.read_bytes(), tmp_path / "cut"
    assert whole.nbytes == len(data)
    record_nbytes = 16 + 10 * (16 + 2 * 16) + 4
    header_nbytes = len(data) - 4 * record_nbytes
    for n in range(len(data)):
        cut.write_bytes(data[:n])
        if n < header_nbytes:
            with pytest.raises(OutputError, match="cut"):
                read_journal(cut)
        else:
            found = read_journal(cut)
            assert len(found.records) == (n - header_nbytes) // record_nbytes
            assert found.nbytes == header_nbytes + len(found.records) * record_nbytes
            for one, other in zip(found.records, whole.records, strict=False):
                np.testing.assert_array_equal(one.rows, other.rows)
                np.testing.assert_array_equal(one.limits, other.limits)


def test_a_flipped_bit_ends_the_journal_at_its_record(path):
    unfinished_run(path)
    _, journal = partial_and_journal(path)
    data = bytearray(journal.read_bytes())
    record_nbytes = 16 + 10 * (16 + 2 * 16) + 4
    first = len(data) - 4 * record_nbytes
    for position in range(first, len(data)):
        data[position] ^= 1 << position % 8
        journal.write_bytes(data)
        assert len(read_journal(journal).records) == (position - first) // record_nbytes
        data[position] ^= 1 << position % 8


def test_a_damaged_header_is_refused(path):
    unfinished_run(path, n_batches=1)
    _, journal = partial_and_journal(path)
    data = bytearray(journal.read_bytes())
    for position in (0, 8, 256, 270, 280, 290, 700):
        data[position] ^= 1
        journal.write_bytes(data)
        with pytest.raises(OutputError, match="journal") as raised:
            read_journal(journal)
        assert not isinstance(raised.value, BlankError)
        data[position] ^= 1


def test_a_power_failure_before_the_header_is_durable_leaves_a_blank_journal(path):
    unfinished_run(path, n_batches=1)
    _, journal = partial_and_journal(path)
    record_nbytes = 16 + 10 * (16 + 2 * 16) + 4
    header = journal.read_bytes()[:-record_nbytes]
    for torn in (b"", bytes(len(header)), header[:256] + bytes(len(header) - 256), header[:600] + bytes(100)):
        journal.write_bytes(torn)
        with pytest.raises(BlankError):
            read_journal(journal)


def test_a_journal_names_its_run(path):
    store = CellStore.create(path, make_contents(3))
    owner = Owner.read(partial_and_journal(path)[1])
    assert (owner.pid, owner.host) == (os.getpid(), Owner.this().host)
    assert owner.may_be_alive
    assert re.fullmatch(r"process \d+ on .*, since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC", str(owner))
    store.abandon()
    assert Owner.read(partial_and_journal(path)[1]) is None


def test_a_process_that_has_ended_is_known_to_be_dead():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert not Owner(child.pid, Owner.this().host, "").may_be_alive
    assert Owner(child.pid, "another host", "").may_be_alive


@pytest.mark.parametrize("compression", CODECS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_journal_is_sufficient_to_finish_the_file(path, tmp_path, layout, compression):
    choices = {"layout": layout, "compression": compression}
    contents, images = unfinished_run(path, **choices)
    uninterrupted = write(tmp_path / "uninterrupted.h5sc", contents, images, **choices)
    partial, journal = partial_and_journal(path)
    found = read_journal(journal)
    assert (found.n_cells, found.n_written) == (40, 40)
    head = finished_head(found)
    assert bytes(head) + partial.read_bytes()[len(head) :] == uninterrupted.read_bytes()
    partial.write_bytes(uninterrupted.read_bytes())
    check_index(partial, found)


def failing(monkeypatch, name, nth, code=errno.ENOSPC):
    """Make an ``os`` function fail after ``nth`` calls; return a list of its calls."""
    real, calls = getattr(os, name), []

    def function(*arguments, **keywords):
        calls.append(name)
        if len(calls) > nth:
            raise OSError(code, os.strerror(code))
        return real(*arguments, **keywords)

    monkeypatch.setattr(os, name, function)
    return calls


def test_a_full_disk_keeps_what_was_written(path, monkeypatch):
    contents = make_contents(40)
    images = make_images(contents)
    store = CellStore.create(path, contents)
    failing(monkeypatch, "pwritev", 2)
    with pytest.raises(RunStoppedError, match=r"No space left on device; 20 of 40 cells are kept in .*\.partial"):
        fill(store, images, batch=10)
    store.keep()
    store.abandon()  # no effect, since the store is closed
    assert not path.exists()
    assert assert_payloads_match(path, images, store.format) == 20


def test_a_short_write_is_continued(path, monkeypatch):
    real = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, chunks, offset: real(fd, [b"".join(chunks)[:100]], offset))
    contents = make_contents(20)
    images = make_images(contents)
    store = CellStore.create(path, contents)
    fill(store, images, batch=10)
    store.keep()
    assert assert_payloads_match(path, images, store.format) == 20


def test_a_failed_sync_in_the_thread_is_raised_by_append(path, monkeypatch):
    contents = make_contents(40)
    images = make_images(contents)
    store = CellStore.create(path, contents)
    store.append(encode(part(images, 0, 10), store.format))
    store._log.checkpoint()
    tried = threading.Event()

    def broken(descriptor):
        tried.set()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", broken)
    store.append(encode(part(images, 10, 20), store.format))
    store._log._due.set()
    assert tried.wait(30)
    with store._log._sync_lock:  # wait until the thread has stored the error
        pass
    with pytest.raises(RunStoppedError, match="Input/output error; 10 of 40 cells are kept"):
        store.append(encode(part(images, 20, 30), store.format))
    assert assert_payloads_match(path, images, store.format) == 10


@pytest.mark.parametrize("name", ["pwrite", "fdatasync", "fsync", "link"])
def test_a_finish_that_fails_anywhere_leaves_no_half_file(tmp_path, monkeypatch, name):
    contents = make_contents(20)
    images = make_images(contents)
    expected = write(tmp_path / "expected.h5sc", contents, images).read_bytes()
    for nth in range(20):
        path = tmp_path / f"{nth}.h5sc"
        store = CellStore.create(path, contents)
        fill(store, images, batch=10)
        with monkeypatch.context() as patch:
            failing(patch, name, nth)
            try:
                store.finish()
            except RunStoppedError:
                assert not path.exists()
                continue
        assert path.read_bytes() == expected
        assert not Path(f"{path}.journal").exists()
        break
    assert 0 < nth < 19


def test_missing_cells_are_an_error(path):
    contents = make_contents(40)
    store = CellStore.create(path, contents)
    fill(store, part(make_images(contents), 0, 30), batch=10)
    with pytest.raises(OutputError, match="30 of 40 cells were written"):
        store.finish()
    store.keep()
    assert not path.exists()


def test_a_store_without_cells_is_neither_finished_nor_kept(path):
    store = CellStore.create(path, make_contents(2))
    with pytest.raises(OutputError, match="0 of 2 cells"):
        store.finish()
    store.keep()
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("compression", CODECS)
def test_a_chunk_that_changed_on_disk_is_detected_before_the_rename(path, compression):
    contents = make_contents(20)
    store = CellStore.create(path, contents, compression=compression)
    fill(store, make_images(contents), batch=10)
    store._log.checkpoint()
    partial, _ = partial_and_journal(path)
    with open(partial, "r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"\0\1\2\3\4")
    with pytest.raises(OutputError, match="row 19 differs from what was written"):
        store.finish()
    store.abandon()
    assert list(path.parent.iterdir()) == []


def test_records_join_in_order(path):
    unfinished_run(path)
    record = join(read_journal(partial_and_journal(path)[1]).records)
    np.testing.assert_array_equal(record.rows, np.arange(40))
    assert record.limits.shape == (40, 2, 2)
