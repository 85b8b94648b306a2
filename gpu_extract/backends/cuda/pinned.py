"""Pinned host memory, from which and to which a GPU copies at full speed, in a fixed number of buffers.

`HostRing` has the buffers of results, and each stream has an `Uploader` with two small ones. The system cannot page
pinned memory out, so other programs lack it; allocating it takes milliseconds.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_extract.backends.cuda.device import Array, Device, Event

__all__ = ["BUFFER_NBYTES", "N_BUFFERS", "STAGING_NBYTES", "HostRing", "Uploader"]

# The tiles of a batch: 409 cells of 5 planes, 128 x 128 pixels, float16; three blocks for each of 132 multiprocessors.
BUFFER_NBYTES = 64 << 20
# Three batches are computed, four wait for the encoder and six are encoded, if there are 16 cores.
N_BUFFERS = 13
# Sizes of buffers: from the largest down to a sixteenth of it.
N_SIZES = 5
# A chunk is copied by a core in about 1 ms. Four streams have two: with the ring that is less than 1 GB.
STAGING_NBYTES = 8 << 20


class HostRing:
    """Reusable buffers for results in pinned memory; each is allocated when it is first needed.

    Tiles without their zeros take a fraction of whole ones, so there are buffers of several sizes: the largest, a half
    of it, and so on.

    Parameters
    ----------
    allocate : callable
        `Device.empty_host`.
    buffer_nbytes : int
        Size of the largest buffer.
    n_buffers : int
        How many of the largest buffers take as much memory as all buffers may take.
    """

    def __init__(
        self,
        allocate: Callable[[tuple[int, ...], Any], NDArray[Any]],
        buffer_nbytes: int = BUFFER_NBYTES,
        n_buffers: int = N_BUFFERS,
    ) -> None:
        self._allocate = allocate
        # Free buffers by their size, smallest first.
        self._free: dict[int, queue.SimpleQueue[NDArray[np.uint8]]] = {
            buffer_nbytes >> halvings: queue.SimpleQueue() for halvings in reversed(range(N_SIZES))
        }
        self._left_nbytes = n_buffers * buffer_nbytes
        self._lock = threading.Lock()

    def empty(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Return an uninitialized array in a buffer, which is free again when the array and its views are deleted.

        The array is in ordinary memory if it is larger than a buffer or no buffer is free, because tiles wait for the
        encoder or the caller collects them. The GPU copies to it more slowly, but nothing has to wait.
        """
        nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        buffer = self._buffer(nbytes) if nbytes else None
        if buffer is None:
            return np.empty(shape, dtype)
        lease = _Lease(buffer, nbytes, self._free[buffer.nbytes])
        array: NDArray[Any] = np.asarray(lease).view(dtype).reshape(shape)
        return array

    def _buffer(self, nbytes: int) -> NDArray[np.uint8] | None:
        """Return a free buffer of at least that size, or a new one, or None if none is free."""
        sizes = [size for size in self._free if size >= nbytes]
        for size in sizes:
            with suppress(queue.Empty):
                return self._free[size].get_nowait()
        with self._lock:
            if not sizes or sizes[0] > self._left_nbytes:
                return None
            self._left_nbytes -= sizes[0]
        return self._allocate((sizes[0],), np.uint8)


class _Lease:
    """The owner of the memory of an array; the buffer is free again when it is deleted."""

    def __init__(self, buffer: NDArray[np.uint8], nbytes: int, free: queue.SimpleQueue[NDArray[np.uint8]]) -> None:
        self._buffer, self._free = buffer, free
        self.__array_interface__ = buffer[:nbytes].__array_interface__

    def __del__(self) -> None:
        self._free.put(self._buffer)


class Uploader:
    """Copies arrays of any size, layout and type to a device, through two pinned buffers that take turns.

    While the device copies from one buffer, the caller's thread fills the other one.

    Parameters
    ----------
    device : Device
    nbytes : int
        Size of a buffer.
    """

    def __init__(self, device: Device, nbytes: int = STAGING_NBYTES) -> None:
        self.device = device
        self._nbytes = nbytes
        self._buffers: list[NDArray[np.uint8]] = []
        self._copied: list[Event | None] = [None, None]
        self._turn = 0

    def copy(self, source: NDArray[Any], out: Array) -> None:
        """Copy a plane (h, w) to a contiguous one on the device, whose type it is converted to.

        The source can be changed or deleted after this returns.
        """
        for part in _parts(source.shape, self._nbytes // out.dtype.itemsize):
            values = source[part]
            staged = self._next_buffer()[: values.size * out.dtype.itemsize].view(out.dtype).reshape(values.shape)
            np.copyto(staged, values, casting="unsafe")  # signed labels are not negative
            self.device.to_device(staged, out[part])
            self._copied[self._turn] = self.device.record()

    def _next_buffer(self) -> NDArray[np.uint8]:
        """Return the buffer whose turn it is, after the device has copied what was in it."""
        while len(self._buffers) < len(self._copied):
            self._buffers.append(self.device.empty_host((self._nbytes,), np.uint8))
        self._turn = 1 - self._turn
        copied = self._copied[self._turn]
        if copied is not None:
            copied.wait()
        return self._buffers[self._turn]


def _parts(shape: tuple[int, ...], n_pixels: int) -> Iterator[tuple[slice, slice]]:
    """Yield the parts of a plane (h, w): as many whole rows as there are in ``n_pixels``, or parts of a row."""
    h, w = shape
    rows, columns = max(1, n_pixels // max(w, 1)), max(1, min(w, n_pixels))
    for y in range(0, h, rows):
        for x in range(0, w, columns):
            yield slice(y, y + rows), slice(x, x + columns)
