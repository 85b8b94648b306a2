"""Power failures, simulated: pages that were written after the last sync of their file are lost or not."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
from made.cells import make_contents, make_images, part, write
from made.comparing import logical_content

from gpu_extract.store import CellStore, FinishedError, claim_output, encode

N = 40
PAGE = 4096


class Recorder:
    """Records what is written to the files of a folder, and when they are synced."""

    def __init__(self, patch, folder):
        self.events = []
        self._folder = folder
        self._wrap(patch, "pwrite", lambda fd, data, offset: ("write", offset, bytes(data)))
        self._wrap(patch, "pwritev", lambda fd, data, offset: ("write", offset, b"".join(map(bytes, data))))
        self._wrap(patch, "ftruncate", lambda fd, n: ("size", n))
        self._wrap(patch, "posix_fallocate", lambda fd, start, n: ("extend", start + n))
        self._wrap(patch, "fsync", lambda fd: ("sync",))
        self._wrap(patch, "fdatasync", lambda fd: ("sync",))
        self._wrap(patch, "unlink", lambda path, **more: ("unlink",))

    def _wrap(self, patch, name, described):
        real = getattr(os, name)

        def call(target, *arguments, **keywords):
            result = real(target, *arguments, **keywords)
            path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else target
            if Path(path).parent == self._folder:
                self.events.append((Path(path).name, *described(target, *arguments, **keywords)))
            return result

        patch.setattr(os, name, call)


def after_a_failure(events, files, dice):
    """Return the files that are found after a power failure, by name."""
    found = {}
    for name in {*files, *(event[0] for event in events)}:
        durable, pending = bytearray(files.get(name, b"")), []
        is_there = name in files
        for _, kind, *values in (event for event in events if event[0] == name):
            is_there = kind != "unlink"
            if kind in ("sync", "unlink"):
                for change in pending:
                    _apply(durable, *change)
                pending = []
            else:
                pending.append((kind, *values))
            if kind == "unlink":
                durable = bytearray()
        for kind, *values in pending:
            if kind == "write":
                offset, data = values
                for first in range(offset - offset % PAGE, offset + len(data), PAGE):
                    start, stop = max(first, offset), min(first + PAGE, offset + len(data))
                    if dice.random() < 0.5:
                        _apply(durable, "write", start, data[start - offset : stop - offset])
                if dice.random() < 0.3:
                    _apply(durable, "extend", offset + len(data))
            elif dice.random() < 0.5:
                _apply(durable, kind, *values)
        if is_there:
            found[name] = bytes(durable)
    return found


def _apply(content, kind, at, data=b""):
    if kind != "size" or at > len(content):
        content.extend(bytes(max(at + len(data) - len(content), 0)))
    if kind == "size":
        del content[at:]
    content[at : at + len(data)] = data


def run(path, contents, images, compression):
    """Write what is missing, with many checkpoints; return the number of cells that were there."""
    with claim_output(path, compression, resume=True) as claim:
        try:
            store = CellStore.open(claim, contents, compression=compression)
        except FinishedError:
            claim.release(discard=True)
            return N
        for start in range(store.n_resumed, N, 5):
            store.append(encode(part(images, start, start + 5), store.format))
            if start % 3:
                store._log.checkpoint()
        store.finish()
        return store.n_resumed


def fail_twice(tmp_path, monkeypatch, compression, seeds):
    contents = make_contents(N)
    images = make_images(contents)
    expected = logical_content(write(tmp_path / "whole.h5sc", contents, images, compression=compression))
    n_resumed = set()
    for seed in seeds:
        dice, files = random.Random(seed), {}
        folder = tmp_path / str(seed)
        for is_last in (False, False, True):
            folder.mkdir()
            for name, content in files.items():
                (folder / name).write_bytes(content)
            with monkeypatch.context() as patch:
                recorder = Recorder(patch, folder)
                n_resumed.add(run(folder / "cells.h5sc", contents, images, compression))
            assert logical_content(folder / "cells.h5sc") == expected
            assert os.listdir(folder) == ["cells.h5sc"]
            shutil.rmtree(folder)
            # The rename comes after all syncs; what is lost of it is tested by killing a run.
            names = [event[:2] for event in recorder.events]
            end = names.index(("cells.h5sc.journal", "unlink")) if ("cells.h5sc.journal", "unlink") in names else None
            events = recorder.events[:end]
            if not is_last:
                files = after_a_failure(events[: dice.randrange(len(events) + 1)], files, dice)
                files.pop("cells.h5sc", None)
    assert {0, N} < n_resumed


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_a_run_is_resumed_after_a_power_failure(tmp_path, monkeypatch, compression):
    fail_twice(tmp_path, monkeypatch, compression, range(3))


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_a_run_is_resumed_after_many_power_failures(tmp_path, monkeypatch, compression):
    fail_twice(tmp_path, monkeypatch, compression, range(4, 104))
