"""A run that goes on after another one ends with the file that an uninterrupted run would have written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made.cells import make_contents, make_images, make_slide, only_file, part, write
from made.comparing import logical_content

from gpu_extract.errors import OutputError
from gpu_extract.recipe import Recipe
from gpu_extract.store import CellStore, FinishedError, claim_output, encode, read_journal, resuming, verify
from gpu_extract.store.codecs import CODECS
from gpu_extract.store.hdf5.layouts import LAYOUTS
from gpu_extract.store.journal import pack_record

N = 40


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cells.h5sc"


def partial_and_journal(path):
    return Path(f"{path}.partial"), Path(f"{path}.journal")


def files(path):
    return {entry.name: entry.read_bytes() for entry in path.parent.iterdir()}


def append(store, images, first, last, batch=8):
    """Append some rows, with a record for each batch."""
    for start in range(first, last, batch):
        store.append(encode(part(images, start, min(start + batch, last)), store.format))
        store._log.checkpoint()


def stopped(path, contents=None, n=16, first=0, **choices):
    """Write some rows and stop; return the contents and the images."""
    contents = contents or make_contents(N, n_dropped=3)
    images = make_images(contents)
    store = CellStore.create(path, contents, **choices)
    append(store, images, first, first + n)
    store.keep()
    return contents, images


def resume(path, contents, images, **choices):
    """Go on, check which rows are left to do, and finish; return their number."""
    where = {name: choices[name] for name in ("compression", "layout") if name in choices}
    claim = claim_output(path, resume=True, **where)
    try:
        store = CellStore.open(claim, contents, **choices)
    except BaseException:
        claim.release()
        raise
    rows = store.rows_to_do()
    assert store.n_resumed == store.n_kept == len(contents.cells) - len(rows)
    assert store._log.n_durable == store.n_resumed
    for block in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1):
        if len(block):
            append(store, images, block[0], block[-1] + 1)
    store.finish()
    assert only_file(path)
    return len(rows)


@pytest.mark.parametrize(
    ("layout", "compression", "chunk_cells", "first"),
    [
        *(("h5sc", codec, 1, 0) for codec in CODECS),
        ("h5sc", "gzip", 8, 16),
        ("sparcspy", "zstd", 8, 0),
        ("sparcspy", "gzip", 1, 16),
        ("sparcspy", "none", 1, 16),
    ],
)
def test_a_resumed_file_is_that_of_an_uninterrupted_run(tmp_path, layout, compression, chunk_cells, first):
    choices = {"layout": layout, "compression": compression, "chunk_cells": chunk_cells}
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "cells.h5sc"
    contents, images = stopped(path, first=first, **choices)
    assert resume(path, contents, images, **choices) == N - 16
    other = write(tmp_path / "b.h5sc", contents, images, **choices)
    assert logical_content(path) == logical_content(other)
    assert verify(path).n_cells == N


def test_a_run_may_be_resumed_again_and_again(path, tmp_path):
    contents, images = stopped(path)
    with claim_output(path, resume=True) as claim:
        store = CellStore.open(claim, contents)
        append(store, images, 16, 24)
        store.keep()
    with claim_output(path, resume=True) as claim:  # a run that does nothing, and is killed
        CellStore.open(claim, contents).keep()
    assert resume(path, contents, images) == N - 24


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_the_finish_may_be_left(path, layout):
    contents, images = stopped(path, n=N, layout=layout)
    assert resume(path, contents, images, layout=layout) == 0


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_a_torn_journal_and_a_longer_partial_file_are_cut(tmp_path, compression):
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "cells.h5sc"
    contents, images = stopped(path, n=32, compression=compression)
    partial, journal = partial_and_journal(path)
    expected = logical_content(write(tmp_path / "b.h5sc", contents, images, compression=compression))
    whole, chunks = journal.read_bytes(), partial.read_bytes()
    record_nbytes = 16 + 8 * (16 + 2 * 16) + 4
    for cut in (1, record_nbytes, record_nbytes + 20, 4 * record_nbytes):
        journal.write_bytes(whole[: len(whole) - cut])
        partial.write_bytes(chunks + b"torn")
        n_lost = -(-cut // record_nbytes)
        assert resume(path, contents, images, compression=compression) == N - 32 + 8 * n_lost
        assert logical_content(path) == expected
        path.unlink()


@pytest.mark.parametrize("compression", ["gzip", "none"])
@pytest.mark.parametrize(("limit", "damaged", "n_left"), [(1 << 20, 3, 16), (1 << 20, 1, 32), (1, 1, 8), (1, 3, 16)])
def test_damaged_chunks_are_written_again(path, monkeypatch, compression, limit, damaged, n_left):
    monkeypatch.setattr(resuming, "CHECKED_NBYTES", limit)
    contents, images = stopped(path, n=32, compression=compression)
    partial, journal = partial_and_journal(path)
    found = read_journal(journal)
    start = len(found.skeleton) + sum(record.nbytes for record in found.records[:damaged])
    data = bytearray(partial.read_bytes())
    data[start + 30] ^= 4
    partial.write_bytes(data)
    if limit == 1 and damaged == 1:  # too early to be looked at before the end, where it may be found
        with claim_output(path, compression, resume=True) as claim:
            store = CellStore.open(claim, contents, compression=compression)
            assert len(store.rows_to_do()) == n_left
            store.keep()
        return
    assert resume(path, contents, images, compression=compression) == n_left
    assert verify(path).n_cells == N


def test_a_partial_file_that_lost_its_end_is_extended(path):
    contents, images = stopped(path, n=32, compression="none")
    partial, _ = partial_and_journal(path)
    os.truncate(partial, partial.stat().st_size // 2)
    assert resume(path, contents, images, compression="none") > N - 32
    assert verify(path).n_cells == N


def test_nothing_durable_is_begun_anew(path):
    contents = make_contents(N)
    images = make_images(contents)
    assert resume(path, contents, images) == N  # there is nothing at all
    path.unlink()
    for n_bytes in (0, 600):
        store = CellStore.create(path, contents)
        append(store, images, 0, 8)
        partial, journal = partial_and_journal(path)
        left = journal.read_bytes()[:n_bytes], partial.read_bytes()
        store.abandon()
        journal.write_bytes(left[0])
        partial.write_bytes(left[1])
        assert resume(path, contents, images) == N
        path.unlink()


def test_a_journal_without_a_partial_file_is_begun_anew(path):
    contents, images = stopped(path)
    partial_and_journal(path)[0].unlink()
    assert resume(path, contents, images) == N


def test_a_partial_file_without_a_journal_is_not_touched(path):
    contents, images = stopped(path)
    partial_and_journal(path)[1].unlink()
    before = files(path)
    with pytest.raises(OutputError, match="a run whose journal is missing; move it away, or start again"):
        resume(path, contents, images)
    assert files(path) == before


def test_a_finished_file_is_left_alone(path):
    contents, images = stopped(path)
    resume(path, contents, images)
    before = files(path)
    with pytest.raises(FinishedError):
        resume(path, contents, images)
    assert files(path) == before


@pytest.mark.parametrize("step", ["link", "unlink"])
def test_a_run_killed_while_it_is_renamed_is_finished(path, step):
    contents = make_contents(N)
    images = make_images(contents)
    write(path, contents, images)
    stopped(path.with_name("other.h5sc"), contents, n=N)
    for left in partial_and_journal(path.with_name("other.h5sc")):
        left.rename(path.with_name(left.name.replace("other", "cells")))
    partial, _ = partial_and_journal(path)
    partial.unlink()
    if step == "link":
        os.link(path, partial)
    claim = claim_output(path, resume=True)
    with pytest.raises(FinishedError):
        CellStore.open(claim, contents)
    claim.release(discard=True)
    assert only_file(path)
    assert verify(path).n_cells == N


def test_a_run_that_was_to_replace_a_file_replaces_it(path):
    old = make_contents(3)
    write(path, old)
    contents, images = stopped(path, overwrite=True)
    assert verify(path).n_cells == 3
    assert resume(path, contents, images) == N - 16
    assert verify(path).n_cells == N


def test_a_file_that_appeared_is_not_replaced(path):
    contents, images = stopped(path)
    path.write_text("theirs")
    with pytest.raises(OutputError, match="was written after the run began"):
        resume(path, contents, images)
    assert path.read_text() == "theirs"


def test_a_file_that_took_the_place_of_the_one_to_be_replaced_is_not(path):
    write(path, make_contents(3))
    contents, images = stopped(path, overwrite=True)
    path.unlink()
    write(path.with_name("other.h5sc"), make_contents(2))
    path.with_name("other.h5sc").rename(path)
    os.utime(path, ns=(1, 1))
    before = files(path)
    with pytest.raises(OutputError, match="was written after the run began"):
        resume(path, contents, images)
    assert files(path) == before


def test_without_a_file_to_replace_none_is_replaced_later(path):
    contents, images = stopped(path, overwrite=True)
    path.write_text("theirs")
    with pytest.raises(OutputError, match="was written after the run began"):
        resume(path, contents, images)
    assert path.read_text() == "theirs"


def test_what_differs_is_named_and_nothing_is_touched(path, monkeypatch):
    contents, images = stopped(path, compression="gzip")
    before = files(path)
    slide = make_slide(metadata={"dose": "2"})
    recipe = Recipe(tile_size=6, nucleus_dilation=4)
    others = [
        ("compression: lzf now, gzip then", contents, {"compression": "lzf"}),
        ("layout: sparcspy now, h5sc then", contents, {"layout": "sparcspy"}),
        (r"shape of a chunk: \[4, 4, 6, 6\] now, \[1, 4, 6, 6\] then", contents, {"chunk_cells": 4}),
        ("unique ids: yes now, no then", contents, {"unique_ids": True}),
        ("recipe nucleus_dilation: 4 now, 2 then", make_contents(N, n_dropped=3, recipe=recipe), {}),
        ("number of cells: 41 now, 40 then", make_contents(41, n_dropped=3), {}),
        ("digest of the cells' ids, places and sizes", make_contents(N, n_dropped=4), {}),
        ("slide slide metadata dose: 2 now, none then", make_contents(N, [slide], 3), {}),
        ("slide other", make_contents(N, [make_slide("other")], 3), {}),
        ("input of slide image a.tif modified: 2 now, none then", replace(contents, texts=INPUTS), {}),
        ("device: cuda now, unknown then", replace(contents, texts={"device": "cuda"}), {}),
    ]
    for difference, other, choices in others:
        with pytest.raises(OutputError, match=difference) as error:
            resume(path, other, images, **choices)
        assert "cells.h5sc.partial was made from other inputs or in another way" in str(error.value)
        assert "\n" not in str(error.value)
    monkeypatch.setattr("gpu_extract.store.contents._own_version", lambda: "9.9")
    with pytest.raises(OutputError, match=r"version of gpu-extract: 9\.9 now, "):
        resume(path, contents, images)
    after = files(path)
    assert after.keys() == before.keys()
    assert after["cells.h5sc.partial"] == before["cells.h5sc.partial"]
    assert after["cells.h5sc.journal"][256:] == before["cells.h5sc.journal"][256:]


INPUTS = {"inputs": '{"slide": {"image": {"a.tif": {"modified": "2"}}}}'}


def test_warnings_of_another_machine_are_not_compared(path):
    contents = make_contents(N)
    _, images = stopped(path, replace(contents, texts={"notices": "little memory", "device": "cpu"}))
    resume(path, replace(contents, texts={"notices": "much memory", "device": "cpu"}), images)


def test_a_finished_file_of_other_cells_is_named(path):
    write(path, make_contents(3))
    with pytest.raises(OutputError, match=r"cells\.h5sc was made from other inputs .*number of cells: 40 now, 3 then"):
        resume(path, make_contents(N), None)


def test_a_file_of_another_program_is_not_resumed(path):
    path.write_bytes(b"\x89HDF\r\n\x1a\n and so on")
    with pytest.raises(OutputError, match="damaged, or not a file of cells"):
        resume(path, make_contents(N), None)


def test_resume_and_overwrite_exclude_each_other(path):
    with pytest.raises(OutputError, match="resume and overwrite were both given"):
        claim_output(path, resume=True, overwrite=True)


@pytest.mark.parametrize("name", ["ftruncate", "fsync", "posix_fallocate"])
def test_a_resume_that_fails_keeps_what_is_there(path, monkeypatch, name):
    contents, images = stopped(path, compression="none")
    before = files(path)

    def broken(*arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch, claim_output(path, resume=True) as claim:
        patch.setattr(os, name, broken)
        store = CellStore.open(claim, contents, compression="none")
        with pytest.raises(OutputError, match="cannot be written: Input/output error"):
            store.append(encode(part(images, 16, 24), store.format))
        store.keep()
        assert store.n_kept == 16
    assert files(path) == before
    assert resume(path, contents, images, compression="none") == N - 16


def test_a_journal_that_lists_a_cell_twice_is_damaged(path):
    contents, images = stopped(path)
    _, journal = partial_and_journal(path)
    found = read_journal(journal)
    for rows in (found.records[1].rows - 8, found.records[1].rows + 100):
        record = replace(found.records[1], rows=rows)
        journal.write_bytes(journal.read_bytes()[: found.first(1).nbytes] + pack_record(record))
        with pytest.raises(OutputError, match="damaged: it lists cells twice, or that are none; start again"):
            resume(path, contents, images)


def test_a_second_run_cannot_resume_a_living_one(path):
    store = CellStore.create(path, make_contents(N))
    with pytest.raises(OutputError, match=rf"another run is writing .* \(process {os.getpid()} on"):
        claim_output(path, resume=True)
    store.abandon()


# Forks a writer that is killed at its n-th file operation, for each n, and resumes what it left.
EVERY_CALL = """
import itertools, os, shutil, signal, sys
from pathlib import Path
from made.cells import make_contents, make_images, part
from made.comparing import logical_content
from gpu_extract.store import CellStore, FinishedError, claim_output, encode
import gpu_extract.store.writer, gpu_extract.store.hdf5.lookup3, anndata.io

folder, layout, compression, step = Path(sys.argv[1]), *sys.argv[2:4], int(sys.argv[4])
CALLS = ("open", "close", "pwrite", "pwritev", "fsync", "fdatasync", "ftruncate", "link", "unlink", "posix_fallocate")
contents = make_contents(24)
images = make_images(contents)

def run(path):
    with claim_output(path, compression, layout=layout, resume=True) as claim:
        try:
            store = CellStore.open(claim, contents, layout=layout, compression=compression)
        except FinishedError:
            claim.release(discard=True)
            return 24
        rows = store.rows_to_do()
        for start in range(len(contents.cells) - len(rows), 24, 8):
            store.append(encode(part(images, start, start + 8), store.format))
            store._log.checkpoint()
        store.finish()
        return store.n_resumed

def killed_at(n, path):
    def patched(name):
        real = getattr(os, name)
        def call(*arguments, **keywords):
            if next(counter) == n:
                if name == "pwrite":  # torn
                    real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2], arguments[2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **keywords)
        setattr(os, name, call)
    counter = itertools.count()
    for name in CALLS:
        patched(name)
    run(path)
    os._exit(0)

run(folder / "whole.h5sc")
expected = logical_content(folder / "whole.h5sc")
for n in itertools.count(0, step):
    path = folder / str(n) / "cells.h5sc"
    path.parent.mkdir()
    child = os.fork()
    if not child:
        killed_at(n, path)
    is_killed = os.waitpid(child, 0)[1] != 0
    if path.exists():
        assert logical_content(path) == expected, n
    n_resumed = run(path)
    assert logical_content(path) == expected, n
    assert os.listdir(path.parent) == ["cells.h5sc"], n
    shutil.rmtree(path.parent)
    if not is_killed:
        break
    print(n, n_resumed)
"""


def resumed_after_every_call(tmp_path, layout, compression, step):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])}
    command = [sys.executable, "-c", EVERY_CALL, str(tmp_path), layout, compression, str(step)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    resumed = [int(line.split()[1]) for line in done.stdout.splitlines()]
    assert len(resumed) * step > 25
    assert resumed == sorted(resumed)
    assert {0, 24} <= set(resumed)


def test_a_run_killed_at_any_file_operation_is_resumed(tmp_path):
    resumed_after_every_call(tmp_path, "h5sc", "gzip", 7)


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["gzip", "none"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_killed_at_every_file_operation_is_resumed(tmp_path, layout, compression):
    resumed_after_every_call(tmp_path, layout, compression, 1)
