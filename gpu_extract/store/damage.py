"""Conversion of the errors that a damaged file causes into one-line messages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpu_extract.errors import GpuExtractError, OutputError
from gpu_extract.libraries import library_error

__all__ = ["NotCellsError", "reporting_damage"]


class NotCellsError(Exception):
    """A file is sound, but not one of cells; the message follows its path."""


@contextmanager
def reporting_damage(path: Path, where: str = "") -> Iterator[None]:
    """Convert exceptions of the block, except those of this package, into an OutputError that names the file.

    Parameters
    ----------
    path : Path
    where : str
        The part of the file that is read; follows the path in the message.

    Raises
    ------
    OutputError
    LibraryError
        If a library that reads the file cannot be imported.
    """
    try:
        yield
    except GpuExtractError:
        raise
    except NotCellsError as error:
        raise OutputError(f"{path} {error}") from error
    except BlockingIOError as error:
        raise OutputError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # HDF5 and AnnData raise many types on a damaged file
        unusable = library_error(error)
        if unusable is not None:
            raise unusable from error
        first_line = str(error).partition("\n")[0]
        if isinstance(error, MemoryError):
            raise OutputError(
                f"{path}{where} cannot be read: not enough memory ({first_line or 'MemoryError'}); free some, or check "
                "the file if it cannot be that large"
            ) from error
        raise OutputError(f"{path}{where} is damaged, or not a file of cells: {first_line}") from error
