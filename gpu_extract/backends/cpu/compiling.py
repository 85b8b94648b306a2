"""Compilation by numba. This folder is the unit of compilation: any change in it recompiles all of it."""

import hashlib
from pathlib import Path
from typing import Any

import numba

__all__ = ["compiled", "inner", "inner_allocating"]

njit: Any = numba.njit  # untyped

# Numba's cache key is the file of the function only, not the files of the functions it calls. The digest of the folder
# makes sure that no stale code is run.
FOLDER = Path(__file__).parent
DIGEST = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(FOLDER.glob("*.py")))).hexdigest()

# For functions that only compiled functions call: without wrappers for Python, which take long to compile, and without
# reference counts. Such a function must neither allocate nor return an array, or a tuple with an array.
inner: Any = njit(nogil=True, _nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True)
# The same for functions that do allocate or return arrays.
inner_allocating: Any = njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def compiled(function: Any) -> Any:
    """Compile a function that Python calls, without the GIL; the cache on disk is valid until this folder changes."""
    # The names of the cache files contain the function's name.
    function.__qualname__ = f"{function.__name__}_{DIGEST[:16]}"
    return njit(nogil=True, cache=True)(function)
