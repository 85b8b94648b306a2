"""The errors that a damaged file causes, as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpu_extract.errors import GpuExtractError, OutputError

__all__ = ["reporting_damage"]


@contextmanager
def reporting_damage(path: Path, where: str = "") -> Iterator[None]:
    """Turn every exception of the block but our own into an OutputError that names the file.

    Parameters
    ----------
    path : Path
    where : str
        What of the file is read, as it follows the path in the message.
    """
    try:
        yield
    except GpuExtractError:
        raise
    except Exception as error:  # HDF5 and AnnData raise nearly anything on a damaged file
        first_line = str(error).partition("\n")[0]
        raise OutputError(f"{path}{where} is damaged, or not a file of cells: {first_line}") from error
