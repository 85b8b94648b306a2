"""Compiled code on disk, kept from one process to the next.

Numba's own cache cannot be used here: without a writable folder it refuses to compile, a damaged file ends every later
run, and its key is the one file of a function, so that it misses changes of what the function calls. Here each compiled
function is one file: a SHA-256, then numba's pickle of the machine code. The name of the file is a hash of everything
that the code depends on. A file that is damaged is removed and the function compiled again; without a folder nothing
is kept. Neither ever fails a run.

Folders, in this order; the first one that can be written to receives new code:

1. ``$GPU_EXTRACT_CACHE/uid-N``, N being the user's number: several users can share a volume.
2. ``__pycache__`` of this package, whose files are as trustworthy as the package itself.
3. ``gpu-extract`` in the user's cache folder: ``$XDG_CACHE_HOME``, or ``~/.cache``.
4. ``gpu-extract-N`` in the folder for temporary files.

A pickle can run code, so 1, 3 and 4 are used only if they belong to the user and nobody else may write to them.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core import serialize
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult

from gpu_extract.messages import announce

__all__ = ["NOT_KEPT", "NO_FOLDER", "VARIABLE", "CodeCache", "folder", "warnings"]

VARIABLE = "GPU_EXTRACT_CACHE"
DIGEST_NBYTES = 32

# Untyped.
_rebuild: Any = CompileResult._rebuild
_dumps: Any = serialize.dumps

REMEDY = f"set {VARIABLE} to a folder that can be written to"
NO_FOLDER = f"no folder for compiled code can be written to, so every run compiles for 15 to 30 s: {REMEDY}"
NOT_KEPT = "compiled code cannot be kept"

# What the user should know, one line each.
warnings: list[str] = []


class CodeCache(NullCache):
    """The cache of one function; numba's dispatcher calls `load_overload` and `save_overload`.

    Parameters
    ----------
    function : callable
        The Python function.
    digest : str
        Hash of all source that it is compiled from.
    """

    def __init__(self, function: Any, digest: str) -> None:
        self._name = function.__name__
        self._digest = digest

    @property
    def cache_path(self) -> str | None:
        """The folder that receives new code, None if there is none."""
        return None if folder() is None else str(folder())

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled function for a signature, None if it is not there."""
        target_context.refresh()
        name = self._file_name(sig, target_context)
        for place in _readable():
            path = place / name
            try:
                return _rebuild(target_context, *_checked(path.read_bytes()))
            except FileNotFoundError:
                continue
            except Exception as error:  # whatever unpickling and LLVM raise on code that does not fit
                with suppress(OSError):
                    path.unlink()
                _warn(f"compiled code in {path} is damaged ({_line(error)}) and is compiled again")
        announce("compiling kernels for these types, once (15 to 30 s)")
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled function; a full or read-only disk is a warning."""
        place = folder()
        if place is None or any(not lifted.can_cache for lifted in data.lifted) or data.library.has_dynamic_globals:
            return
        name = self._file_name(sig, data.target_context)
        try:
            packed = _dumps(data._reduce())
            _write(place / name, hashlib.sha256(packed).digest() + packed)
        except OSError as error:
            _warn(f"{NOT_KEPT} in {place} ({_line(error)}): {REMEDY}")

    def _file_name(self, sig: Any, target_context: Any) -> str:
        facts = (
            str(sig),
            *map(str, target_context.codegen().magic_tuple()),
            self._digest,
            numba.__version__,
            sys.implementation.cache_tag,
        )
        return f"{self._name}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:32]}.gxc"


@cache
def folder() -> Path | None:
    """Return the folder that receives new code, None if no folder can be written to; warns once of that."""
    for place in _candidates():
        with suppress(OSError):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            if _is_safe(place):
                with tempfile.TemporaryFile(dir=place):
                    return place
    _warn(NO_FOLDER)
    return None


def _candidates() -> Iterator[Path]:
    user = os.getuid() if hasattr(os, "getuid") else 0
    given = os.environ.get(VARIABLE)
    if given:
        yield Path(given, f"uid-{user}")
    yield _own_folder()
    with suppress(RuntimeError):  # a user without a home
        yield Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "gpu-extract")
    with suppress(FileNotFoundError):  # no folder for temporary files
        yield Path(tempfile.gettempdir(), f"gpu-extract-{user}")


def _own_folder() -> Path:
    return Path(__file__).parent / "__pycache__"


@cache
def _readable() -> tuple[Path, ...]:
    """Return the folders that code may be loaded from."""
    return tuple(place for place in _candidates() if _is_safe(place))


def _is_safe(place: Path) -> bool:
    """Whether only the user can have written to a folder, or whoever installed the package."""
    if place == _own_folder():
        return place.is_dir()
    try:
        status = os.lstat(place)
    except OSError:
        return False
    if not stat.S_ISDIR(status.st_mode):
        return False
    others_may_write = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not others_may_write)


def _checked(content: bytes) -> Any:
    """Return what was pickled, once its hash has been compared."""
    digest, packed = content[:DIGEST_NBYTES], content[DIGEST_NBYTES:]
    if hashlib.sha256(packed).digest() != digest:
        raise ValueError("its checksum is wrong")
    return pickle.loads(packed)


def _write(path: Path, content: bytes) -> None:
    """Write a file that appears under its name only when it is complete."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def _warn(line: str) -> None:
    if line not in warnings:
        warnings.append(line)


def _line(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.splitlines() or [type(error).__name__])[0]
