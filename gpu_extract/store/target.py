"""The path of the output, and the two files next to it during a run."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gpu_extract.errors import OutputError
from gpu_extract.store.codecs import choose_codec
from gpu_extract.store.folders import make_folders, nearest_existing, remove_folders
from gpu_extract.store.hdf5.layouts import choose_layout
from gpu_extract.store.journal import read_journal
from gpu_extract.store.locks import lock

__all__ = ["Target", "check_output", "unfinished"]

# Errors of link(2) on file systems without hard links (FAT, many network and FUSE mounts).
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)


class Claim(NamedTuple):
    """The journal of a run that has begun.

    Parameters
    ----------
    journal : int
        Its descriptor; closing it releases the lock.
    is_locked : bool
        Whether a lock keeps other runs out; False on file systems without locks.
    made : tuple of Path
        The folders that were made for the output, outermost first.
    """

    journal: int
    is_locked: bool
    made: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Target:
    """The path of a file of cells, and the paths of its unfinished parts.

    Parameters
    ----------
    path : Path
        Final path. `check_output` follows symbolic links.
    overwrite : bool
        Whether a finished file or the remains of an unfinished run may be replaced.
    """

    path: Path
    overwrite: bool

    @property
    def partial(self) -> Path:
        """Path of the unfinished file: a hole for everything except the tiles, then the tiles."""
        return self.path.with_name(self.path.name + ".partial")

    @property
    def journal(self) -> Path:
        """Path of the journal of `partial`. A lock on it keeps other runs out."""
        return self.path.with_name(self.path.name + ".journal")

    def check(self) -> None:
        """Check that the path can be written to and is not taken.

        Raises
        ------
        OutputError, OSError
            If not.
        """
        # Missing folders are made by `claim`.
        folder = nearest_existing(self.path.parent)
        if not folder.is_dir():
            raise OutputError(f"{self.path} cannot be written: {folder} is not a folder")
        if self.path.is_dir():
            raise OutputError(f"{self.path} is a folder; give the name of a file")
        if self.path.exists() and not self.path.is_file():
            raise OutputError(f"{self.path} is not a regular file; choose another name")
        if self.path.exists() and not self.overwrite:
            raise OutputError(
                f"{self.path} exists; choose another name, or replace it with --overwrite (overwrite=True)"
            )
        if not os.access(folder, os.W_OK):
            raise OutputError(f"{self.path} cannot be written: folder {folder} is read-only")
        if _is_locked(self.journal):
            raise OutputError(f"another run is writing {self.path}")
        remains = unfinished(self.path)
        if remains and not self.overwrite:
            raise OutputError(f"{remains}; start again with --overwrite (overwrite=True)")

    def claim(self) -> Claim:
        """Make missing folders, create an empty journal and lock it.

        Raises
        ------
        OutputError
            If another run holds the lock, or has left files since `check`.
        OSError
            If a folder or the journal cannot be created.
        """
        with ExitStack() as on_failure:
            made = make_folders(self.path.parent)
            on_failure.callback(remove_folders, made)
            claim = self._claim()._replace(made=made)
            on_failure.pop_all()
        return claim

    def _claim(self) -> Claim:
        while True:
            with ExitStack() as on_failure:
                journal, is_new = _open_journal(self.journal)
                on_failure.callback(os.close, journal)
                try:
                    is_locked = lock(journal)
                except BlockingIOError as error:
                    raise OutputError(f"another run is writing {self.path}") from error
                # If not, the run that held the lock has finished and removed this journal: try again.
                if _is_at(journal, self.journal):
                    if not (is_locked or is_new or self.overwrite):
                        raise OutputError(f"another run has just begun to write {self.path}")
                    self._clear(journal)
                    on_failure.pop_all()
                    return Claim(journal, is_locked)

    def publish(self) -> None:
        """Rename the finished partial file to its final path, and remove the journal.

        Raises
        ------
        OutputError
            If the path was created in the meantime and ``overwrite`` is false.
        OSError
            If the file system fails.
        """
        if self.overwrite:
            os.replace(self.partial, self.path)
        else:
            try:
                _rename_new(self.partial, self.path)
            except FileExistsError as error:
                raise OutputError(
                    f"{self.path} was created by another program in the meantime; the finished file is {self.partial}"
                ) from error
        sync_folder(self.path.parent)
        os.unlink(self.journal)
        sync_folder(self.path.parent)

    def discard(self, made: tuple[Path, ...] = ()) -> None:
        """Remove the partial file, its journal, and the folders that were made for them."""
        self.partial.unlink(missing_ok=True)
        self.journal.unlink(missing_ok=True)
        remove_folders(made)

    def _clear(self, journal: int) -> None:
        if not self.overwrite and (os.fstat(journal).st_size or self.partial.exists()):
            raise OutputError(f"another run has just written next to {self.path}; start again")
        self.partial.unlink(missing_ok=True)
        os.ftruncate(journal, 0)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Convert an OSError of the block into an OutputError."""
        try:
            yield
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error.strerror}") from error


def check_output(path: str | os.PathLike[str], compression: str, *, layout: str = "h5sc", overwrite: bool) -> Target:
    """Check the path, layout and compression of a new file of cells, without writing anything.

    Raises
    ------
    OutputError
        If the compression or the layout is unknown, the suffix is that of another kind of file, the path cannot be
        written to, or it has a file or an unfinished run already.
    """
    choose_codec(compression)
    suffixes = choose_layout(layout).suffixes
    if not hasattr(os, "pwritev"):
        raise OutputError("files of cells are written on Linux and macOS only; on Windows use WSL")
    path = Path(path)
    # What is in the way, such as a folder, is reported by `Target.check`.
    if path.suffix.lower() not in suffixes and (os.path.isfile(path) or not os.path.exists(path)):
        given = f"the suffix {path.suffix}" if path.suffix else "no suffix"
        allowed = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"
        raise OutputError(f"output {path} has {given}; layout {layout!r} is HDF5: name it {allowed}")
    target = Target(path.resolve() if path.is_symlink() else path, overwrite)
    with target.writing():
        target.check()
    return target


def unfinished(path: Path) -> str | None:
    """Describe the remains of an unfinished run next to a path; None if there are none."""
    target = Target(path, overwrite=False)
    if not (target.partial.exists() or target.journal.exists()):
        return None
    if _is_locked(target.journal):
        return f"another run is writing {path}"
    try:
        n_written = read_journal(target.journal).n_written
    except OutputError:
        n_written = 0  # killed before the header was written, or not a journal
    return f"{target.partial} holds {n_written} cells of an unfinished run"


def sync_folder(folder: Path) -> None:
    """Make the entries of a folder durable, if the file system supports it."""
    # Some network file systems do not. The contents of the files are synced separately.
    with suppress(OSError), ExitStack() as stack:
        descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        stack.callback(os.close, descriptor)
        os.fsync(descriptor)


def _is_locked(journal: Path) -> bool:
    try:
        with open(journal, "rb") as file:
            lock(file.fileno(), shared=True)
    except BlockingIOError:
        return True
    except OSError:
        return False  # no journal
    return False


def _open_journal(path: Path) -> tuple[int, bool]:
    """Open a journal for writing; return its descriptor, and whether it was created."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
    try:
        return os.open(path, flags | os.O_EXCL, 0o666), True
    except FileExistsError:
        return os.open(path, flags, 0o666), False


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _rename_new(old: Path, new: Path) -> None:
    """Rename a file, or raise FileExistsError if the new name exists."""
    try:
        os.link(old, new)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        # Without links there is a race: a file created between these two calls is replaced.
        if os.path.lexists(new):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(new)) from error
        os.rename(old, new)
    else:
        os.unlink(old)
