"""File systems and systems without file locks."""

import errno
import fcntl
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
from made.cells import make_contents, make_images, part, write

import gpu_extract as gx
from gpu_extract.errors import OutputError
from gpu_extract.store import CellStore, claim_output, encode, verify
from gpu_extract.store.journal import Owner
from gpu_extract.store.locks import NO_LOCKS, lock


@pytest.fixture(params=[*NO_LOCKS, "no fcntl"])
def no_locks(request, monkeypatch):
    """A system on which flock fails, or is missing."""
    if request.param == "no fcntl":
        monkeypatch.setitem(sys.modules, "fcntl", None)
        return

    def flock(descriptor, operation):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_run_goes_on_without_locks_and_says_so(no_locks, tmp_path):
    path = tmp_path / "cells.h5sc"
    contents = make_contents(5)
    store = CellStore.create(path, contents)
    store.append(encode(make_images(contents), store.format))
    store.finish()
    (warning,) = store.warnings
    assert "has no file locks" in warning
    assert os.listdir(tmp_path) == ["cells.h5sc"]
    assert verify(path).n_cells == 5
    with gx.open_cells(path) as cells:
        assert len(cells) == 5


def test_with_locks_there_is_no_warning(tmp_path):
    store = CellStore.create(tmp_path / "cells.h5sc", make_contents(5))
    store.abandon()
    assert store.warnings == ()


def test_a_second_run_is_refused_without_locks(no_locks, tmp_path):
    path, contents = tmp_path / "cells.h5sc", make_contents(5)
    first = CellStore.create(path, contents)
    with pytest.raises(OutputError, match=r"another run is writing .* \(process \d+ on"):
        CellStore.create(path, contents)
    first.append(encode(make_images(contents), first.format))
    assert first.finish() == path


def test_a_run_that_began_between_check_and_claim_is_not_disturbed(no_locks, tmp_path, monkeypatch):
    path = tmp_path / "cells.h5sc"
    first = CellStore.create(path, make_contents(5))
    monkeypatch.setattr("gpu_extract.store.target.Target.check", lambda self: None)
    with pytest.raises(OutputError, match="another run is writing"):
        CellStore.create(path, make_contents(5))
    first.abandon()


def test_a_run_is_resumed_without_locks(no_locks, tmp_path):
    path, contents = tmp_path / "cells.h5sc", make_contents(10)
    images = make_images(contents)
    first = CellStore.create(path, contents)
    first.append(encode(part(images, 0, 5), first.format))
    with pytest.raises(OutputError, match=r"another run is writing .* \(process \d+ on"):
        claim_output(path, resume=True)
    first.keep()
    with claim_output(path, resume=True) as claim:
        store = CellStore.open(claim, contents)
        store.append(encode(part(images, 5, 10), store.format))
        store.finish()
    assert verify(path).n_cells == 10


@pytest.mark.parametrize(("host", "is_taken"), [("elsewhere", True), (None, False)])
def test_without_locks_a_run_is_dead_if_its_process_is(no_locks, tmp_path, host, is_taken):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    path, journal = tmp_path / "cells.h5sc", tmp_path / "cells.h5sc.journal"
    journal.write_bytes(Owner(child.pid, host or Owner.this().host, "2026-01-01 00:00:00 UTC").pack())
    if is_taken:
        with pytest.raises(OutputError, match=r"process .* on elsewhere, since 2026-01-01 00:00:00 UTC"):
            claim_output(path)
        claim_output(path, resume=True).release()  # the user says that the other one has ended
    else:
        claim_output(path).release()
    assert not journal.exists()


def test_another_error_of_a_lock_is_an_error(tmp_path, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    with open(tmp_path / "file", "wb") as file, pytest.raises(OSError, match="Input/output"):
        lock(file.fileno())


@pytest.fixture
def hdf5_cannot_lock(monkeypatch):
    """HDF5 on a file system without locks."""
    original = h5py.File

    def opened(path, mode="r", **options):
        if options.get("locking", True):
            raise OSError(
                37, "Unable to synchronously open file (unable to lock file, errno = 37, error message = 'x')"
            )
        return original(path, mode, **options)

    monkeypatch.setattr(h5py, "File", opened)


def test_files_are_read_where_hdf5_cannot_lock(tmp_path, request):
    path, image = write(tmp_path / "cells.h5sc", make_contents(5)), tmp_path / "image.h5"
    with h5py.File(image, "w") as file:
        file["image"], file["nuclei"] = np.ones((2, 20, 20), np.uint16), np.eye(20, dtype=np.uint16)
    request.getfixturevalue("hdf5_cannot_lock")
    assert verify(path).n_cells == 5
    with gx.open_cells(path) as cells:
        assert cells.read([0]).shape[0] == 1
    assert len(gx.plan(f"{image}:/image", nucleus=f"{image}:/nuclei", tile_size=8, border="keep").cells) == 1


def test_a_file_that_is_written_is_not_called_damaged(tmp_path):
    path = write(tmp_path / "cells.h5sc", make_contents(5))
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for read in (verify, gx.open_cells):
            with pytest.raises(OutputError, match="is open for writing in another program"):
                read(path)
        with pytest.raises(gx.SourceError, match="is open for writing in another program"):
            gx.plan(f"{path}:/obsm/spatial", nucleus=f"{path}:/obsm/spatial")


def test_a_file_may_be_open_twice_in_one_process(tmp_path):
    path = write(tmp_path / "cells.h5sc", make_contents(5))
    with gx.open_cells(path), h5py.File(path), gx.open_cells(path) as cells:
        assert len(cells) == 5
    with h5py.File(path), gx.open_cells(path) as cells:
        assert len(cells) == 5


# Several processes claim one output again and again, leave it in different states, and must never be in it together.
RACE = """
import os, random, sys, time
from gpu_extract.errors import OutputError
from gpu_extract.store import claim_output

folder, seconds = sys.argv[1], float(sys.argv[2])
path, mutex = f"{folder}/made/cells.h5sc", f"{folder}/mutex"

def race(seed):
    dice, n_claimed, end = random.Random(seed), 0, time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with claim_output(path, **dice.choice([{}, {"resume": True}, {"overwrite": True}])) as claim:
                os.close(os.open(mutex, os.O_CREAT | os.O_EXCL))
                if dice.random() < 0.5:
                    claim.clear()
                if dice.random() < 0.3:
                    open(f"{path}.partial", "wb").close()
                os.unlink(mutex)
                n_claimed += 1
                claim.release(discard=dice.random() < 0.7)
        except OutputError as error:
            assert "another run is writing" in str(error), error
    assert n_claimed

children = []
for seed in range(4):
    child = os.fork()
    if not child:
        try:
            race(seed)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    children.append(child)
sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
"""


def never_two_at_once(tmp_path, seconds):
    command = [sys.executable, "-c", RACE, str(tmp_path), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_only_one_of_several_processes_has_an_output(tmp_path):
    never_two_at_once(tmp_path, 0.5)


@pytest.mark.slow
def test_only_one_of_several_processes_has_an_output_for_long(tmp_path):
    never_two_at_once(tmp_path, 20)


POSIX_ONLY = ("fcntl", "resource", "pwd", "grp", "termios")
OS_NAMES = (
    *("pwritev", "preadv", "fdatasync", "posix_fallocate", "sched_getaffinity", "getuid"),
    *("O_NOFOLLOW", "O_DIRECTORY", "O_CLOEXEC"),
)
WINDOWS = f"""
import os, sys
import numpy, h5py, pandas, anndata, scipy.sparse, zarr, tifffile, typer, rich, numba, imagecodecs, isal.isal_zlib

for name in {POSIX_ONLY}:
    sys.modules[name] = None
for name in {OS_NAMES}:
    delattr(os, name)

import importlib, pkgutil
import gpu_extract as gx

for module in pkgutil.walk_packages(gx.__path__, "gpu_extract."):
    if "kernels" not in module.name:
        importlib.import_module(module.name)
print(gx.plan(numpy.ones((30, 30), "u1"), nucleus=numpy.pad(numpy.ones((4, 4), "u1"), 13), tile_size=8).nbytes)
try:
    gx.extract(numpy.ones((30, 30), "u1"), nucleus=numpy.pad(numpy.ones((4, 4), "u1"), 13), tile_size=8, output="a")
except gx.OutputError as error:
    print(error)
"""


def test_without_posix_everything_imports_and_writing_says_what_is_missing(tmp_path):
    done = subprocess.run([sys.executable, "-c", WINDOWS], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    nbytes, message = done.stdout.splitlines()
    assert int(nbytes) == 2 * 8 * 8 * 2
    assert message == "files of cells are written on Linux and macOS only; on Windows use WSL"


def test_macos_writes_with_what_it_has(tmp_path, monkeypatch):
    for name in ("fdatasync", "posix_fallocate", "sched_getaffinity"):
        monkeypatch.delattr(os, name)
    for compression in ("gzip", "none"):
        path = write(tmp_path / f"{compression}.h5sc", make_contents(5), compression=compression)
        assert verify(path).n_cells == 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_of_the_process_does_not_keep_the_lock(tmp_path):
    path = tmp_path / "cells.h5sc"
    claim = claim_output(path)
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        os.close(theirs)
        os.read(ours, 1)  # until the parent closes its end
        os._exit(0)
    try:
        claim.release(discard=True)
        claim_output(path).release(discard=True)
    finally:
        os.close(theirs)
        os.close(ours)
        os.waitpid(child, 0)
