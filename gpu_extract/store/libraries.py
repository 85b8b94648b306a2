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
    """Return what to say of a library whose import caused an exception; None if no import did.

    A library may fail with any exception while it is imported, for example with an AttributeError where it does not
    fit another one's version.
    """
    for cause in _causes(error):
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
    """Return the library during whose import an exception was raised; of nested imports the outermost but our own."""
    name = ""
    for frame, _ in walk_tb(error.__traceback__):
        name = str(frame.f_globals.get("__name__")).partition(".")[0]
        if frame.f_code.co_name == "<module>" and name != OWN_NAME:
            return name
    # Not every ImportError says which library is missing; who raised it may be asked.
    return (error.name or name).partition(".")[0] if isinstance(error, ImportError) else None


def _message(name: str, error: BaseException) -> str:
    distribution = next(iter(packages_distributions().get(name, [])), name)
    problem = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    install = f"pip install --upgrade '{_requirement(distribution)}'"
    try:
        installed = version(distribution)
    except PackageNotFoundError:
        return f"{name} is not installed ({problem}); {install}"
    return (
        f"{distribution} {installed} cannot be imported ({problem}); run pip check for versions that do not fit each "
        f"other, or {install}"
    )


def _requirement(distribution: str) -> str:
    """Return what this package requires of a distribution, for example ``anndata>=0.12``; its name if nothing."""
    try:
        listed = requires("gpu-extract") or []
    except PackageNotFoundError:
        listed = []  # run from a checkout that is not installed
    for requirement in listed:
        parts = re.match(r"([A-Za-z0-9._-]+)\s*([^;\s]*)\s*(;.*)?", requirement)
        if parts and parts[1].lower() == distribution.lower() and not parts[3]:
            return parts[1] + parts[2]
    return distribution
