"""Exceptions of libraries that cannot be imported, and what to install then."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from traceback import walk_tb

from gpu_extract.errors import GpuExtractError, LibraryError

__all__ = ["library_error", "reporting_libraries"]

OWN_NAME = "gpu_extract"


def library_error(error: Exception) -> LibraryError | None:
    """Return the error to raise if an exception was caused by the import of a library, else None.

    An import may fail with any exception, for example with an AttributeError if the version of another library does
    not fit.
    """
    # The innermost cause is what went wrong; the others say who noticed.
    for cause in reversed(list(_causes(error))):
        name = _imported(cause)
        if name is not None:
            return LibraryError(_message(name, cause))
    return None


@contextmanager
def reporting_libraries() -> Iterator[None]:
    """Turn an exception of the block that comes from an import into a LibraryError; leave all others as they are."""
    try:
        yield
    except GpuExtractError:
        raise
    except Exception as error:
        unusable = library_error(error)
        if unusable is None:
            raise
        raise unusable from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _imported(error: BaseException) -> str | None:
    """Return the library whose import raised an exception: the outermost one, except this package."""
    name = ""
    for frame, _ in walk_tb(error.__traceback__):
        name = str(frame.f_globals.get("__name__")).partition(".")[0]
        if frame.f_code.co_name == "<module>" and name != OWN_NAME:
            return name
    # Not every ImportError names a library; then return the one that raised it.
    return (error.name or name).partition(".")[0] if isinstance(error, ImportError) else None


def _message(name: str, error: BaseException) -> str:
    distribution = next(iter(packages_distributions().get(name, [])), name)
    problem = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    try:
        installed = version(distribution)
    except PackageNotFoundError:
        return f"{name} is not installed ({problem}); pip install '{_requirement(distribution)}'"
    missing = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    first = (
        "run pip check for versions that do not fit each other" if missing in ("", name) else f"pip install {missing}"
    )
    upgrade = f"pip install --upgrade '{_requirement(distribution)}'"
    return f"{distribution} {installed} cannot be imported ({problem}); {first}, or {upgrade}"


def _requirement(distribution: str) -> str:
    """Return this package's requirement of a distribution, for example ``anndata>=0.12``, or its name."""
    try:
        listed = requires("gpu-extract") or []
    except PackageNotFoundError:
        listed = []  # run from a checkout that is not installed
    for requirement in listed:
        parts = re.match(r"([A-Za-z0-9._-]+)\s*([^;\s]*)\s*(;.*)?", requirement)
        if parts and parts[1].lower() == distribution.lower() and not parts[3]:
            return parts[1] + parts[2]
    return distribution
