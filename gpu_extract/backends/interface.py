"""The interface of all backends: `Backend` and the signatures of its functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gpu_extract.labels import Statistics, label_statistics
from gpu_extract.model import Batch, BatchSize, CellImages, Window
from gpu_extract.recipe import Program

__all__ = ["Backend", "Deflated", "Extract", "ExtractDeflated", "ExtractInParts"]

Extract = Callable[[Window, Batch, Program, NDArray[np.float64] | None], CellImages]
ExtractInParts = Callable[[Window, Batch, Program, NDArray[np.float64] | None], Iterator[CellImages]]


@dataclass(frozen=True)
class Deflated:
    """The tiles of a batch as zlib streams.

    Parameters
    ----------
    streams : list of m memoryview
        In the order of cells and planes.
    limits : (n, C, 2) float64
        The lower and upper value that each channel was normalized with.
    seconds : mapping of str to float
        Time spent in the stages ``compute`` and ``encode``.
    """

    streams: list[memoryview]
    limits: NDArray[np.float64]
    seconds: Mapping[str, float]


# The arguments are those of `Extract`, and the number of bytes that each stream encodes: a tile, or some of its planes.
ExtractDeflated = Callable[[Window, Batch, Program, NDArray[np.float64] | None, int], Deflated]


@dataclass(frozen=True)
class Backend:
    """A device and the functions that extract batches on it.

    Parameters
    ----------
    device : str
    extract : callable
        Extracts a batch into host memory; thread-safe.
    batch_size : BatchSize
        The preferred size of batches.
    streams : int or None
        The number of batches that are processed concurrently; None if batches are computed in the caller's thread.
    statistics : callable
        `labels.label_statistics`, or the same on the device.
    extract_on_device : callable or None
        The same as `extract`, but the result stays on the device.
    extract_in_parts : callable or None
        The same as `extract`, a few cells at a time; each part overwrites the memory of the previous one.
    extract_deflated : callable or None
        Extracts and deflates a batch in one call; None if the backend cannot deflate.
    warnings : list of str
        Warnings for the user, one line each; grows during a run.
    """

    device: str
    extract: Extract
    batch_size: BatchSize = field(default_factory=BatchSize)
    streams: int | None = None
    statistics: Statistics = label_statistics
    extract_on_device: Extract | None = None
    extract_in_parts: ExtractInParts | None = None
    extract_deflated: ExtractDeflated | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def numbers(self) -> str:
        """The device without the number of a GPU; backends of equal names compute equal values."""
        return self.device.partition(":")[0] if self.device.startswith("cuda:") else self.device
