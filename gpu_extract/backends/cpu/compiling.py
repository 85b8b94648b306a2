"""Compilation by numba. This folder is its unit: whatever changes in it, all of it is compiled again."""

import hashlib
from pathlib import Path
from typing import Any

import numba

__all__ = ["compiled", "inner"]

njit: Any = numba.njit  # untyped

# Numba's own key for code on disk is the one file of the function; it does not see the files of what is called.
# A list of those could miss one, and users would run stale code.
FOLDER = Path(__file__).parent
DIGEST = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(FOLDER.glob("*.py")))).hexdigest()

# For functions that are called by compiled ones only; what Python would need to call them takes long to compile.
# They count no references: what they work on, their caller holds, and they allocate nothing.
inner: Any = njit(nogil=True, _nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def compiled(function: Any) -> Any:
    """Compile a function that Python calls, without the GIL, and keep the code on disk until this folder changes."""
    # The files of the cache bear the function's name.
    function.__qualname__ = f"{function.__name__}_{DIGEST[:16]}"
    return njit(nogil=True, cache=True)(function)
