"""Compile the kernels ahead, so that the first run does not have to."""

from __future__ import annotations

import time
from pathlib import Path

from gpu_extract.backends.cpu import code_cache
from gpu_extract.backends.cpu.backend import extract, extract_deflated
from gpu_extract.backends.cpu.labels import strip_statistics
from gpu_extract.backends.tiny import tiny_batch
from gpu_extract.errors import OutputError

__all__ = ["IMAGE_DTYPES", "LABEL_DTYPES", "warm", "writable_folder"]

# The usual types. Signed labels share their code with unsigned ones of the same size.
IMAGE_DTYPES = ("uint8", "uint16", "float32")
LABEL_DTYPES = ("uint16", "int32", "uint32", "int64")


def writable_folder() -> Path:
    """Return the folder that receives compiled code.

    Raises
    ------
    OutputError
        If no folder can be written to.
    """
    place = code_cache.folder()
    if place is None:
        raise OutputError(code_cache.NO_FOLDER)
    return place


def warm(image_dtype: str, label_dtype: str) -> float:
    """Compile the kernels for a type of images and of labels, or load them, and return the seconds that it took.

    Raises
    ------
    OutputError
        If the code cannot be kept, for example because the disk is full.
    """
    start = time.perf_counter()
    window, batch, program = tiny_batch(image_dtype, label_dtype)
    extract(window, batch, program)
    extract_deflated(window, batch, program, None, program.tile_nbytes)
    strip_statistics(0, window.labels[0], window.image.shape)
    for line in code_cache.warnings:
        if line.startswith(code_cache.NOT_KEPT):
            raise OutputError(line)
    return time.perf_counter() - start
