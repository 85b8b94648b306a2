"""The path of the output, and the two files next to it during a run."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from gpu_extract.errors import OutputError
from gpu_extract.store.codecs import choose_codec
from gpu_extract.store.folders import make_folders, nearest_existing, remove_folders
from gpu_extract.store.hdf5.layouts import choose_layout
from gpu_extract.store.journal import BlankError, Journal, Owner, read_journal
from gpu_extract.store.locks import lock, unlock

__all__ = ["START_AGAIN", "Claim", "Target", "check_output", "claim_output", "unfinished"]

# Errors of link(2) on file systems without hard links (FAT, many network and FUSE mounts).
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
# A run that ends removes the folders that it made, perhaps just when another one needs them.
N_TRIES = 10
START_AGAIN = "start again with --overwrite (overwrite=True)"
GO_ON = f"go on with --resume (resume=True), or {START_AGAIN}"


@dataclass(frozen=True)
class Target:
    """The path of a file of cells, and the paths of its unfinished parts.

    Parameters
    ----------
    path : Path
        Final path. `check_output` follows symbolic links.
    overwrite : bool
        Whether a finished file or the remains of an unfinished run may be replaced.
    resume : bool
        Whether the remains of an unfinished run are to be finished.
    """

    path: Path
    overwrite: bool
    resume: bool = False

    @property
    def partial(self) -> Path:
        """Path of the unfinished file: a hole for everything except the tiles, then the tiles."""
        return self.path.with_name(self.path.name + ".partial")

    @property
    def journal(self) -> Path:
        """Path of the journal of `partial`. A lock on it keeps other runs out."""
        return self.path.with_name(self.path.name + ".journal")

    def replaced(self) -> int:
        """Return when the file was written that a run may replace, in ns; 0 if there is none, or it may not."""
        with suppress(FileNotFoundError):
            return self.path.stat().st_mtime_ns if self.overwrite else 0
        return 0

    def check(self) -> None:
        """Check that the path can be written to and is not taken.

        Raises
        ------
        OutputError, OSError
            If not.
        """
        # Missing folders are made by `claim`.
        folder = nearest_existing(self.path.parent)
        if not folder.is_dir() and os.path.lexists(folder):  # another run may have removed it
            raise OutputError(f"{self.path} cannot be written: {folder} is not a folder")
        if self.path.is_dir():
            raise OutputError(f"{self.path} is a folder; give the name of a file")
        for path in (self.path, self.partial, self.journal):
            if not _is_regular_or_absent(path):
                raise OutputError(f"{path} is not a regular file; choose another name")
        if self.path.exists() and not (self.overwrite or self.resume):
            raise OutputError(
                f"{self.path} exists; choose another name, or replace it with --overwrite (overwrite=True)"
            )
        if not os.access(folder, os.W_OK) and folder.exists():
            raise OutputError(f"{self.path} cannot be written: folder {folder} is read-only")
        if _is_locked(self.journal):
            raise self._taken()
        self.check_remains()

    def check_remains(self) -> None:
        """Check that nothing durable would be lost.

        Raises
        ------
        OutputError
            If an unfinished run is neither to be resumed nor to be replaced, or cannot be resumed.
        """
        if self.overwrite:
            return
        journal = self.unfinished_journal()
        if journal is None and self._is_orphaned():
            raise self._orphan()
        if journal is not None and not self.resume:
            raise OutputError(f"{_description(self, journal)}; {GO_ON}")

    def unfinished_journal(self) -> Journal | None:
        """Return the journal of an unfinished run that has durable cells; None if there is none.

        Raises
        ------
        OutputError
            If there is another file in its place, or it is damaged.
        """
        try:
            journal = read_journal(self.journal) if self.journal.exists() else None
        except BlankError:
            return None
        except OutputError as error:
            if isinstance(error.__cause__, FileNotFoundError):  # another run has just removed it
                return None
            raise OutputError(f"{error}; move it away, or {START_AGAIN}") from error
        return journal if journal is not None and journal.n_written and self.partial.exists() else None

    def claim(self) -> Claim:
        """Make missing folders, create a journal or take that of a dead run, lock it, and write this process into it.

        Raises
        ------
        OutputError
            If another run holds the lock, or has left files since `check`.
        OSError
            If a folder or the journal cannot be created.
        """
        for _ in range(N_TRIES):
            with suppress(FileNotFoundError, FileExistsError):
                return self._claim_in_folders()
        return self._claim_in_folders()

    def _claim_in_folders(self) -> Claim:
        with ExitStack() as on_failure:
            made = make_folders(self.path.parent)
            on_failure.callback(remove_folders, made)
            claim = self._claim(made)
            on_failure.pop_all()
        return claim

    def _claim(self, made: tuple[Path, ...]) -> Claim:
        while True:
            with ExitStack() as on_failure:
                journal, is_new = _open_journal(self.journal)
                on_failure.callback(os.close, journal)
                try:
                    is_locked = lock(journal)
                except BlockingIOError as error:
                    raise self._taken() from error
                # If not, the run that held the lock has finished and removed this journal: try again.
                if _is_at(journal, self.journal):
                    if not (is_new or is_locked):
                        self._check_owner()
                    if is_new:
                        on_failure.callback(self.journal.unlink, missing_ok=True)
                    if is_new and self.partial.exists() and not self.overwrite:
                        raise self._orphan()
                    self.check_remains()
                    self._sign(journal)
                    on_failure.pop_all()
                    return Claim(self, journal, is_locked, made)

    def _check_owner(self) -> None:
        """Check, where there are no locks, that the run that wrote the journal has ended.

        Raises
        ------
        OutputError
        """
        owner = Owner.read(self.journal)
        is_here = owner is not None and owner.host == Owner.this().host
        may_be_alive = owner is None or owner.may_be_alive
        if may_be_alive and (is_here or not (self.overwrite or self.resume)):
            raise self._taken()

    def _sign(self, journal: int) -> None:
        """Write this process into the journal, unless it is another kind of file."""
        with suppress(OutputError):
            with suppress(BlankError):
                read_journal(self.journal)
            os.pwrite(journal, Owner.this().pack(), 0)

    def _is_orphaned(self) -> bool:
        # A run creates its journal first and removes it last, so that one which begins or ends now is not meant.
        return not self.journal.exists() and self.partial.exists() and not self.journal.exists()

    def _orphan(self) -> OutputError:
        return OutputError(f"{self.partial} is of a run whose journal is missing; move it away, or {START_AGAIN}")

    def _taken(self) -> OutputError:
        owner = Owner.read(self.journal)
        return OutputError(
            f"another run is writing {self.path}{f' ({owner})' if owner else ''}; wait for it, or choose another name"
        )

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
        # The file is complete. What cannot be removed now, a run with `resume` removes.
        with suppress(OSError):
            self.partial.unlink(missing_ok=True)
            os.unlink(self.journal)
        sync_folder(self.path.parent)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Convert an OSError of the block into an OutputError."""
        try:
            yield
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error.strerror}") from error


@dataclass
class Claim:
    """The lock on an output; release it, or use it in a ``with`` statement.

    Parameters
    ----------
    target : Target
    journal : int
        Descriptor of the journal; closing it releases the lock.
    is_locked : bool
        Whether a lock keeps other runs out; False on file systems without locks.
    made : tuple of Path
        The folders that were made for the output, outermost first.
    """

    target: Target
    journal: int
    is_locked: bool
    made: tuple[Path, ...] = ()
    _is_held: bool = True

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *failure: object) -> None:
        self.release()

    def clear(self) -> None:
        """Remove the remains of an earlier run.

        Raises
        ------
        OSError
        """
        self.target.partial.unlink(missing_ok=True)
        os.ftruncate(self.journal, 0)
        os.pwrite(self.journal, Owner.this().pack(), 0)

    def release(self, *, discard: bool = False) -> None:
        """Give the output up; with ``discard`` remove the partial file, the journal and the folders made for them.

        A journal without a partial file is removed in any case. Later calls do nothing.
        """
        if not self._is_held:
            return
        self._is_held = False
        target = self.target
        try:
            if discard:
                target.partial.unlink(missing_ok=True)
            if _is_at(self.journal, target.journal) and _is_ours(target.journal):
                if target.partial.exists():
                    with suppress(OSError):
                        os.pwrite(self.journal, Owner.nobody(), 0)
                else:
                    target.journal.unlink(missing_ok=True)
            remove_folders(self.made)
        finally:
            unlock(self.journal)
            os.close(self.journal)


def check_output(
    path: str | os.PathLike[str], compression: str, *, layout: str = "h5sc", overwrite: bool, resume: bool = False
) -> Target:
    """Check the path, layout and compression of a new file of cells, without writing anything.

    Raises
    ------
    OutputError
        If the compression or the layout is unknown, the suffix is that of another kind of file, the path cannot be
        written to, or it has a file or an unfinished run already.
    """
    choose_codec(compression)
    suffixes = choose_layout(layout).suffixes
    if overwrite and resume:
        raise OutputError(
            "resume and overwrite were both given (--resume, --overwrite); give resume to go on with what is there, or "
            "overwrite to start again"
        )
    if not hasattr(os, "pwritev"):
        raise OutputError("files of cells are written on Linux and macOS only; on Windows use WSL")
    path = Path(path)
    # What is in the way, such as a folder, is reported by `Target.check`.
    if path.suffix.lower() not in suffixes and (os.path.isfile(path) or not os.path.exists(path)):
        given = f"the suffix {path.suffix}" if path.suffix else "no suffix"
        allowed = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"
        raise OutputError(f"output {path} has {given}; layout {layout!r} is HDF5: name it {allowed}")
    target = Target(path.resolve() if path.is_symlink() else path, overwrite, resume)
    with target.writing():
        target.check()
    return target


def claim_output(
    path: str | os.PathLike[str],
    compression: str = "gzip",
    *,
    layout: str = "h5sc",
    overwrite: bool = False,
    resume: bool = False,
) -> Claim:
    """Check an output as `check_output` does, and lock it against other runs. Missing folders are made.

    Raises
    ------
    OutputError
        As for `check_output`; also if another run has it.
    """
    target = check_output(path, compression, layout=layout, overwrite=overwrite, resume=resume)
    with target.writing():
        return target.claim()


def unfinished(path: Path) -> str | None:
    """Describe the remains of an unfinished run next to a path; None if there are none."""
    target = Target(path, overwrite=False)
    if not (target.partial.exists() or target.journal.exists()):
        return None
    if _is_locked(target.journal):
        return f"another run is writing {path}"
    try:
        journal = target.unfinished_journal()
    except OutputError as error:
        return str(error)
    if journal is not None:
        return _description(target, journal)
    if not target.journal.exists():
        return f"{target.partial} is of a run whose journal is missing"
    left = target.partial if target.partial.exists() else target.journal
    return f"{left} is left of a run that has written nothing"


def _description(target: Target, journal: Journal) -> str:
    return f"{target.partial} holds {journal.n_written:,} of {journal.n_cells:,} cells of an unfinished run"


def sync_folder(folder: Path) -> None:
    """Make the entries of a folder durable, if the file system supports it."""
    # Some network file systems do not. The contents of the files are synced separately.
    with suppress(OSError), ExitStack() as stack:
        descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        stack.callback(os.close, descriptor)
        os.fsync(descriptor)


def _is_regular_or_absent(path: Path) -> bool:
    """Return whether a path is a regular file, or does not exist; another run may create or remove it meanwhile."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return not path.is_symlink()  # a broken one


def _is_locked(journal: Path) -> bool:
    try:
        with open(journal, "rb") as file:
            lock(file.fileno(), shared=True)
    except BlockingIOError:
        return True
    except OSError:
        return False  # no journal
    return False


def _is_ours(journal: Path) -> bool:
    """Return whether a file is a journal, or empty."""
    try:
        read_journal(journal)
    except BlankError:
        return True
    except OutputError:
        return False
    return True


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
    """Give a file a new name, or raise FileExistsError if that exists; the old name may remain."""
    try:
        os.link(old, new)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        # Without links there is a race: a file created between these two calls is replaced.
        if os.path.lexists(new):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(new)) from error
        os.rename(old, new)
