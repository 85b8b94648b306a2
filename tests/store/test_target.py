"""Paths where a file of cells can be written, and protection of the files that exist there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from made.cells import fill, make_contents, make_images, only_file, write

from gpu_extract.errors import OutputError, RunStoppedError
from gpu_extract.store import CellStore, check_output, claim_output, verify
from gpu_extract.store.target import unfinished


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cells.h5sc"


def refused(path, match, **choices):
    """Check that `check_output` and the store refuse a path, with a message of one line."""
    for attempt in (
        lambda: check_output(path, "gzip", **{"overwrite": False, **choices}),
        lambda: CellStore.create(path, make_contents(1), **choices),
    ):
        with pytest.raises(OutputError, match=match) as error:
            attempt()
        assert "\n" not in str(error.value)


def test_an_existing_file_needs_overwrite(path):
    path.write_text("precious")
    refused(path, r"exists; .* --overwrite \(overwrite=True\)$")
    assert path.read_text() == "precious"
    assert only_file(path)


def test_an_existing_file_is_kept_until_the_new_one_is_complete(path):
    path.write_text("precious")
    contents = make_contents(20)
    store = CellStore.create(path, contents, overwrite=True)
    fill(store, make_images(contents))
    assert path.read_text() == "precious"
    store.finish()
    assert verify(path).n_cells == 20
    assert only_file(path)


def test_an_abandoned_run_keeps_the_existing_file(path):
    path.write_text("precious")
    store = CellStore.create(path, make_contents(20), overwrite=True)
    store.abandon()
    store.abandon()
    store.keep()
    assert path.read_text() == "precious"
    assert only_file(path)


@pytest.mark.parametrize("overwrite", [False, True])
def test_paths_that_cannot_be_written_to(tmp_path, overwrite):
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "fifo")
    refused(tmp_path, "is a folder", overwrite=overwrite)
    refused(tmp_path / "file" / "cells.h5sc", "is not a folder", overwrite=overwrite)
    refused(tmp_path / "fifo", "not a regular file", overwrite=overwrite)
    (tmp_path / "broken").symlink_to("nowhere")
    refused(tmp_path / "broken" / "cells.h5sc", "broken is not a folder", overwrite=overwrite)
    refused(tmp_path / ("x" * 245 + ".h5sc"), "File name too long", overwrite=overwrite)
    with pytest.raises(OutputError, match="cannot be written"):
        CellStore.create(Path("/proc/cells.h5sc"), make_contents(1), overwrite=overwrite)


def test_a_read_only_folder(path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *arguments: False)
    refused(path, "is read-only")


def test_a_folder_that_becomes_read_only(path, monkeypatch):
    real = os.open

    def refusing(name, *arguments, **keywords):
        if str(name).endswith(".partial"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(os, "open", refusing)
    store = CellStore.create(path, make_contents(1))
    with pytest.raises(OutputError, match="Read-only file system"):
        store.finish()
    store.keep()
    assert list(path.parent.iterdir()) == []


def test_an_unfinished_run_is_kept_unless_overwritten(path):
    contents = make_contents(20)
    store = CellStore.create(path, contents)
    fill(store, make_images(contents), batch=10)
    store.keep()
    before = {entry.name: entry.read_bytes() for entry in path.parent.iterdir()}
    assert set(before) == {"cells.h5sc.partial", "cells.h5sc.journal"}
    refused(
        path,
        r"cells.h5sc.partial holds 20 of 20 cells of an unfinished run; go on with --resume \(resume=True\), or start "
        r"again with --overwrite \(overwrite=True\)$",
    )
    assert {entry.name: entry.read_bytes() for entry in path.parent.iterdir()} == before
    write(path, contents, overwrite=True)
    assert only_file(path)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("cells.h5sc.partial", "is of a run whose journal is missing; move it away, or start again with --overwrite"),
        ("cells.h5sc.journal", "is not the journal of an unfinished run; move it away, or start again with"),
    ],
)
def test_a_single_file_of_an_unfinished_run(path, name, problem):
    (path.parent / name).write_text("something")
    refused(path, problem)
    assert (path.parent / name).read_text() == "something"
    assert len(list(path.parent.iterdir())) == 1
    write(path, make_contents(2), overwrite=True)
    assert only_file(path)


@pytest.mark.parametrize("name", ["cells.h5sc.partial", "cells.h5sc.journal"])
def test_a_pipe_in_the_place_of_a_file_of_the_run(path, name):
    os.mkfifo(path.parent / name)
    refused(path, "is not a regular file")


@pytest.mark.parametrize("n_bytes", [0, 100, 256, 500, None])
@pytest.mark.parametrize("has_partial", [False, True])
def test_a_dead_run_that_wrote_nothing_is_in_nobodys_way(path, n_bytes, has_partial):
    store = CellStore.create(path.with_name("other.h5sc"), make_contents(3))
    assert store._log.n_durable == 0  # the header is written
    path.with_name("cells.h5sc.journal").write_bytes(path.with_name("other.h5sc.journal").read_bytes()[:n_bytes])
    store.abandon()
    if has_partial:
        path.with_name("cells.h5sc.partial").write_bytes(bytes(5000))
    assert unfinished(path).endswith("is left of a run that has written nothing")
    write(path, make_contents(2))
    assert only_file(path)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_second_run_is_refused(path, overwrite):
    contents = make_contents(2)
    store = CellStore.create(path, contents)
    refused(path, rf"another run is writing .* \(process {os.getpid()} on .*, since .*\); wait", overwrite=overwrite)
    fill(store, make_images(contents))
    assert store.finish() == path
    assert verify(path).n_cells == 2


def test_a_run_between_check_and_lock_is_detected(path, monkeypatch):
    monkeypatch.setattr("gpu_extract.store.target.Target.check", lambda self: None)
    contents = make_contents(20)
    store = CellStore.create(path, contents)
    fill(store, make_images(contents), batch=10)
    store.keep()
    theirs = path.with_name("cells.h5sc.partial").read_bytes()
    with pytest.raises(OutputError, match="holds 20 of 20 cells of an unfinished run"):
        CellStore.create(path, make_contents(1))
    assert path.with_name("cells.h5sc.partial").read_bytes() == theirs


def test_a_claim_that_is_released_leaves_nothing(tmp_path):
    path = tmp_path / "a" / "cells.h5sc"
    with claim_output(path):
        assert os.listdir(path.parent) == ["cells.h5sc.journal"]
        with pytest.raises(OutputError, match="another run is writing"):
            claim_output(path)
    assert list(tmp_path.iterdir()) == []


def test_a_claim_to_overwrite_keeps_what_is_there_until_the_store_is_opened(path):
    contents = make_contents(20)
    store = CellStore.create(path, contents)
    fill(store, make_images(contents), batch=10)
    store.keep()
    with claim_output(path, overwrite=True):
        pass
    assert "20 of 20 cells" in unfinished(path)


@pytest.mark.parametrize("links", [True, False])
def test_a_file_created_during_the_run_is_not_replaced(path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    contents = make_contents(2)
    store = CellStore.create(path, contents)
    fill(store, make_images(contents))
    path.write_text("theirs")
    with pytest.raises(OutputError, match=r"the finished file is .*partial"):
        store.finish()
    store.keep()
    assert path.read_text() == "theirs"
    assert verify(path.with_name("cells.h5sc.partial")).n_cells == 2


def no_links(old, new):
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def test_file_systems_without_links(path, monkeypatch):
    monkeypatch.setattr(os, "link", no_links)
    write(path, make_contents(2))
    assert verify(path).n_cells == 2
    assert only_file(path)


def test_a_symbolic_link_is_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    link = tmp_path / "cells.h5sc"
    link.symlink_to(tmp_path / "disk" / "real.h5sc")
    assert write(link, make_contents(2)) == tmp_path / "disk" / "real.h5sc"
    assert link.is_symlink()
    assert verify(link).n_cells == 2


def test_a_folder_removed_during_the_run(path):
    contents = make_contents(2)
    store = CellStore.create(path, contents)
    fill(store, make_images(contents))
    for entry in path.parent.iterdir():
        entry.unlink()
    path.parent.rmdir()
    with pytest.raises((OutputError, RunStoppedError)):
        store.finish()
    store.keep()


@pytest.mark.parametrize("layout", ["h5sc", "sparcspy"])
@pytest.mark.parametrize("name", ["x.zarr", "x.parquet", "x.tif", "x", ".h5sc", "x.h5sc.gz", "h5", "x.", "x.h5sc "])
def test_the_suffix_of_another_kind_of_file_is_refused(tmp_path, name, layout):
    refused(tmp_path / name, "suffix.*is HDF5: name it .h5", layout=layout)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("layout", "allowed"),
    [("h5sc", {".h5sc", ".h5ad", ".h5", ".hdf5", ".H5"}), ("sparcspy", {".h5sc", ".h5", ".hdf5", ".H5"})],
)
def test_the_suffixes_of_a_layout(tmp_path, layout, allowed):
    def is_allowed(suffix):
        try:
            check_output(tmp_path / f"x{suffix}", "gzip", layout=layout, overwrite=False)
        except OutputError:
            return False
        return True

    given = {".h5sc", ".h5ad", ".h5", ".hdf5", ".H5", ".nc", ".loom", ".zarr"}
    assert set(filter(is_allowed, given)) == allowed


def test_missing_folders_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "cells.h5sc"
    check_output(path, "gzip", overwrite=False)
    assert list(tmp_path.iterdir()) == []
    write(path, make_contents(3))
    assert verify(path).n_cells == 3


def test_folders_are_removed_if_nothing_was_written(tmp_path):
    (tmp_path / "mine").mkdir()
    path = tmp_path / "mine" / "a" / "b" / "cells.h5sc"
    CellStore.create(path, make_contents(3)).abandon()
    assert list((tmp_path / "mine").iterdir()) == []
    store = CellStore.create(path, make_contents(3))
    (tmp_path / "mine" / "a" / "theirs").write_text("")
    store.abandon()
    assert os.listdir(tmp_path / "mine" / "a") == ["theirs"]


def test_folders_are_removed_if_the_journal_cannot_be_created(tmp_path, monkeypatch):
    def refusing(*arguments):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("gpu_extract.store.target._open_journal", refusing)
    with pytest.raises(OutputError, match="Read-only file system"):
        CellStore.create(tmp_path / "a" / "b" / "cells.h5sc", make_contents(1))
    assert list(tmp_path.iterdir()) == []


def test_folders_are_removed_if_one_of_them_cannot_be_made(tmp_path):
    with pytest.raises(OutputError, match="File name too long"):
        CellStore.create(tmp_path / "a" / ("b" * 300) / "cells.h5sc", make_contents(1))
    assert list(tmp_path.iterdir()) == []
