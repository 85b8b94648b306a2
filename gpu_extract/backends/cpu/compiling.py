"""Compilation by numba. This folder is the unit of compilation: any change in it recompiles all of it."""

import hashlib
from pathlib import Path
from typing import Any

import numba

from gpu_extract.backends.cpu.code_cache import CodeCache

__all__ = ["compile_tiny", "compiled", "inner", "inner_allocating"]

njit: Any = numba.njit  # untyped

# The key of compiled code on disk. A function's own file would not do, because it calls functions of other files.
FOLDER = Path(__file__).parent
DIGEST = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(FOLDER.glob("*.py")))).hexdigest()

# For functions that only compiled functions call: without wrappers for Python, which take long to compile, and without
# reference counts. Such a function must neither allocate nor return an array, or a tuple with an array.
inner: Any = njit(nogil=True, _nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True)
# The same for functions that do allocate or return arrays.
inner_allocating: Any = njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def compiled(function: Any) -> Any:
    """Compile a function that Python calls, without the GIL; its code on disk is valid until its source changes."""
    own = Path(function.__code__.co_filename)
    digest = DIGEST if own.parent == FOLDER else hashlib.sha256(DIGEST.encode() + own.read_bytes()).hexdigest()
    dispatcher = njit(nogil=True)(function)
    dispatcher._cache = CodeCache(function, digest)
    return dispatcher


def compile_tiny() -> None:
    """Compile and run a function of one line, without the code on disk, to see whether numba works."""
    if njit(nogil=True)(_successor)(1) != 2:
        raise RuntimeError("1 + 1 is not 2 in compiled code")


def _successor(n: int) -> int:
    return n + 1
