"""Label statistics on a device, by ``kernels/labels.cu``: the same as `gpu_extract.labels.label_statistics`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_extract import labels
from gpu_extract.backends.cuda.device import Array, Device
from gpu_extract.backends.cuda.pinned import Uploader
from gpu_extract.backends.cuda.registry import ADD_LABELS, CLEAR_LABELS, COLLECT_LABELS, Kernel
from gpu_extract.errors import LabelError
from gpu_extract.labels import LabelStatistics
from gpu_extract.model import Raster

__all__ = ["LabelTable", "label_statistics"]

# Pixels of a strip of a label plane: enough to keep a device busy.
STRIP_PIXELS = 16 << 20
# Pixels per entry of the first table, which takes one byte per pixel and is at most half full unless cells are smaller
# than 128 pixels. If a table overflows, the statistics start again with a table GROWTH times larger.
PIXELS_PER_ENTRY = 64
SMALLEST_TABLE = 1 << 12
GROWTH = 8
# Blocks of the grid per block that fits on the device: blocks with many labels take longer, which others balance.
BLOCK_WAVES = 8
# Side of a label plane, pixels. The kernel's coordinates are 32-bit integers that may go past the end.
MAX_SIDE = 1 << 30

# Enums Field and Counter of kernels/labels.cu.
KEY, COUNT, SUM_Y, SUM_X, FROM_BOTTOM, FROM_RIGHT, END_Y, END_X, N_FIELDS = range(9)
N_LABELS, OVERFLOW, N_COUNTERS = range(3)


def label_statistics(
    raster: Raster,
    device: Device,
    where: str = "labels",
    *,
    upload: Uploader | None = None,
    plane: Array | None = None,
) -> LabelStatistics:
    """Return count, coordinate sums, box and border contact of each label of a plane (1, H, W) except 0.

    The numbers are those of `gpu_extract.labels.label_statistics`. A strip of rows is read while the device processes
    the previous one. The device's memory holds a table of 64 bytes per entry, and two strips or ``plane``.

    Parameters
    ----------
    raster : Raster
    device : Device
    where : str
        Name of the plane in messages.
    upload : Uploader, optional
        The device's; by default a new one.
    plane : (H, W), unsigned, on the device, optional
        Filled with the labels.

    Raises
    ------
    LabelError
        If a label is negative.
    OutOfDeviceMemoryError
        If a strip or the table does not fit.
    """
    _, H, W = raster.shape
    upload = upload or Uploader(device)
    n_filled = 0  # rows of the plane
    capacity = SMALLEST_TABLE
    while capacity * PIXELS_PER_ENTRY < H * W:
        capacity *= 2
    while True:
        table = LabelTable(device, (H, W), capacity)
        rows = max(1, STRIP_PIXELS // W)
        for y0 in range(0, H, rows):
            y1 = min(y0 + rows, H)
            strip = device.empty((y1 - y0, W), f"u{raster.dtype.itemsize}") if plane is None else plane[y0:y1]
            if plane is None or y1 > n_filled:
                pixels = raster.read(y0, 0, y1, W)[0]
                if pixels.dtype.kind == "i" and pixels.min() < 0:
                    return labels.label_statistics(raster, where)  # counts all negative pixels and raises
                upload.copy(pixels, strip)
                n_filled = y1
            table.add(strip, y0)
        statistics = table.statistics()
        if statistics is not None:
            return statistics
        capacity *= GROWTH


class LabelTable:
    """Incremental statistics of a label plane, in a hash table on the device.

    Parameters
    ----------
    device : Device
    size : (H, W), pixels
        Of the whole slide.
    capacity : int
        Entries of the table, a power of two. A table that is more than half full is slow and can overflow.
    """

    def __init__(self, device: Device, size: tuple[int, int], capacity: int) -> None:
        if not all(0 < length <= MAX_SIDE for length in size):
            raise LabelError(f"a label plane is {size[0]} x {size[1]} pixels; a side must be 1 to {MAX_SIDE}")
        if capacity < 1 or capacity & (capacity - 1):
            raise ValueError(f"capacity is {capacity}; it must be a power of two")
        self._device, self._size, self._capacity = device, size, capacity
        self._table = device.empty((capacity, N_FIELDS), np.uint64)
        self._counters = device.empty((N_COUNTERS,), np.uint64)
        self._launch(CLEAR_LABELS, np.uint64(capacity), self._table, self._counters)

    def add(self, labels: Array, y0: int = 0) -> None:
        """Add rows of the slide, starting at ``y0``: (h, W) on the device, uint8 to uint64, C-contiguous."""
        H, W = self._size
        if labels.dtype.name not in ADD_LABELS or not labels.dtype.isnative or not labels.flags.c_contiguous:
            raise ValueError(
                f"labels are {labels.dtype}; they must be {', '.join(ADD_LABELS)}, native and C-contiguous"
            )
        if labels.ndim != 2 or labels.shape[1] != W or not 0 <= y0 <= y0 + labels.shape[0] <= H:
            raise ValueError(f"labels {labels.shape} from row {y0} on do not lie on a slide of {H} x {W} pixels")
        if labels.shape[0]:
            size = np.int32(labels.shape[0]), np.int32(W), np.int32(y0), np.int32(H)
            self._launch(
                ADD_LABELS[labels.dtype.name], labels, *size, np.uint64(self._capacity), self._table, self._counters
            )

    def statistics(self) -> LabelStatistics | None:
        """Return the statistics of all rows added so far, or None if the table overflowed: a larger one is needed."""
        counters = self._to_host(self._counters)
        if counters[OVERFLOW]:
            return None
        entries = self._device.empty((int(counters[N_LABELS]), N_FIELDS), np.uint64)
        if len(entries):
            collected = self._device.to_device(np.zeros(1, np.uint64))
            self._launch(COLLECT_LABELS, self._table, np.uint64(self._capacity), collected, entries)
        return _statistics(self._to_host(entries), self._size)

    def _launch(self, kernel: Kernel, *arguments: Any) -> None:
        n_blocks = BLOCK_WAVES * self._device.multiprocessors * kernel.blocks_per_multiprocessor
        self._device.launch(kernel, n_blocks, arguments)

    def _to_host(self, array: Array) -> NDArray[np.uint64]:
        out = np.empty(array.shape, np.uint64)
        if out.size:
            self._device.to_host(array, out)
        self._device.synchronize()
        return out


def _statistics(entries: NDArray[np.uint64], size: tuple[int, int]) -> LabelStatistics:
    """Convert the entries of a table (n, N_FIELDS), in any order, to statistics."""
    H, W = size
    entries = entries[np.argsort(entries[:, KEY])]
    numbers = entries.astype(np.int64)  # all fields but the ids fit
    y0, x0 = H - numbers[:, FROM_BOTTOM], W - numbers[:, FROM_RIGHT]
    y1, x1 = numbers[:, END_Y], numbers[:, END_X]
    return LabelStatistics(
        ids=entries[:, KEY].copy(),
        counts=numbers[:, COUNT].copy(),
        sums=numbers[:, [SUM_Y, SUM_X]],
        boxes=np.stack([y0, x0, y1, x1], axis=1),
        touches=(y0 == 0) | (x0 == 0) | (y1 == H) | (x1 == W),
    )
