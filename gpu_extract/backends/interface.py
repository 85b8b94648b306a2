"""The interface of all backends: `Backend` and the signatures of its functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_extract.labels import Statistics, label_statistics
from gpu_extract.model import Batch, BatchSize, CellImages, Slide, Window
from gpu_extract.recipe import Program

__all__ = [
    "Backend",
    "Deflated",
    "Extract",
    "ExtractDeflated",
    "ExtractInParts",
    "ExtractOnDevice",
    "ExtractPacked",
    "PackedCells",
]

Extract = Callable[[Window, Batch, Program, NDArray[np.float64] | None], CellImages]
ExtractInParts = Callable[[Window, Batch, Program, NDArray[np.float64] | None], Iterator[CellImages]]
# The last argument are the planes of a tile to keep, in this order; all if empty.
ExtractOnDevice = Callable[[Window, Batch, Program, NDArray[np.float64] | None, Sequence[int]], list[CellImages]]


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


@dataclass(frozen=True)
class PackedCells:
    """Finished tiles without the zeros around what is in them, as a device sends them.

    Parameters
    ----------
    rows : (n,) int64
    ids : (n,) uint64
    limits : (n, C, 2) float64
        The lower and upper value that each channel was normalized with.
    boxes : (n, K, 4) int64, pixels of the tile
        Box (y0, x0, y1, x1) outside which each plane is 0.
    starts : (n, K) int64
        Where the pixels of each box start in ``values``, row by row.
    values : (N,), the output type
    tile_size : int, pixels
    """

    rows: NDArray[np.int64]
    ids: NDArray[np.uint64]
    limits: NDArray[np.float64]
    boxes: NDArray[np.int64]
    starts: NDArray[np.int64]
    values: NDArray[Any]
    tile_size: int

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, cells: slice) -> PackedCells:
        """Return some of the cells."""
        rows, ids, limits = self.rows[cells], self.ids[cells], self.limits[cells]
        return PackedCells(rows, ids, limits, self.boxes[cells], self.starts[cells], self.values, self.tile_size)

    def chosen(self, planes: Sequence[int]) -> PackedCells:
        """Return the cells with only these planes of their tiles, in this order."""
        order = list(planes)
        return replace(self, boxes=self.boxes.take(order, axis=1), starts=self.starts.take(order, axis=1))


# The arguments are those of `Extract`, and the number of bytes that each stream encodes: a tile, or some of its planes.
ExtractDeflated = Callable[[Window, Batch, Program, NDArray[np.float64] | None, int], Deflated]


ExtractPacked = Callable[[Window, Batch, Program, NDArray[np.float64] | None], list[PackedCells]]


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
    read : callable or None
        Reads the window of a box of a slide, perhaps with all pixels above it, so that each pixel is read once; None if
        the backend has no better way than `Slide.read`.
    release : callable
        Frees what `statistics` and `read` keep for later windows.
    extract_packed : callable or None
        The same as `extract`, but the result has no zeros around what is in the tiles, in one or more parts.
    extract_on_device : callable or None
        The same as `extract`, but the result stays on the device, in one or more parts.
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
    read: Callable[[Slide, tuple[int, int, int, int]], Window] | None = None
    release: Callable[[], None] = lambda: None
    extract_packed: ExtractPacked | None = None
    extract_on_device: ExtractOnDevice | None = None
    extract_in_parts: ExtractInParts | None = None
    extract_deflated: ExtractDeflated | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def numbers(self) -> str:
        """The device without the number of a GPU; backends of equal names compute equal values."""
        return self.device.partition(":")[0] if self.device.startswith("cuda:") else self.device
