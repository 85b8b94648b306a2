"""`ShimDevice`: the package's `Device` on the CPU, as asynchronous as a GPU.

Operations of a stream are deferred until a stream is synchronized; then operations of all streams run in random order.
Memory is poisoned when it is allocated, counted, and limited.
"""

from __future__ import annotations

import random
import threading
import weakref
from collections import deque
from functools import cache

import numpy as np

from cuda_on_cpu.launcher import SHARED_LIMIT, CpuModule
from gpu_extract.backends.cuda.batches import DeviceExtraction
from gpu_extract.backends.cuda.device import OutOfDeviceMemoryError
from gpu_extract.backends.cuda.source import kernel_source

__all__ = ["ShimDevice", "ShimGpu", "shim", "shim_of"]

POISON = 0xCD  # an implausible value in all types
STATIC_SHARED_NBYTES = 4 << 10


class ShimGpu:
    """A device: the memory and the scheduler that its streams share.

    Parameters
    ----------
    nbytes : int
        Device memory.
    multiprocessors : int
    shared_nbytes_limit : int
        Dynamic shared memory of a block.
    seed : int
        Of the random order of operations of different streams.
    order : {"forward", "reverse", "shuffled"}
        The order in which threads of a block run.
    """

    def __init__(self, *, nbytes=1 << 32, multiprocessors=2, shared_nbytes_limit=None, seed=0, order="forward"):
        self.nbytes, self.multiprocessors, self.order = nbytes, multiprocessors, order
        self.shared_nbytes_limit = shared_nbytes_limit or SHARED_LIMIT - STATIC_SHARED_NBYTES
        self.held = 0
        self.launched = []
        self.streams = []
        self._dice = random.Random(seed)
        self._lock = threading.RLock()

    def stream(self):
        """Return a new stream."""
        stream = ShimDevice(self)
        self.streams.append(stream)
        return stream

    def run_until_done(self, stream):
        """Run operations of all streams in random order until those of `stream` are done."""
        with self._lock:
            while stream.waiting:
                self._dice.choice([each for each in self.streams if each.waiting]).waiting.popleft()()

    def allocate(self, shape, dtype):
        """Return a poisoned array that counts as device memory until it is deleted."""
        array = np.empty(shape, dtype)
        with self._lock:
            if self.held + array.nbytes > self.nbytes:
                raise OutOfDeviceMemoryError(f"{array.nbytes} bytes requested, {self.nbytes - self.held} free")
            self.held += array.nbytes
        poisoned = array.reshape(-1).view(np.uint8)
        poisoned[:] = POISON
        weakref.finalize(array, self._release, array.nbytes)
        return array

    def _release(self, nbytes):
        with self._lock:
            self.held -= nbytes


class ShimDevice:
    """One stream of a `ShimGpu`; see `gpu_extract.backends.cuda.device.Device`."""

    def __init__(self, gpu):
        self._gpu = gpu
        self.multiprocessors = gpu.multiprocessors
        self.shared_nbytes_limit = gpu.shared_nbytes_limit
        self.waiting = deque()

    def empty(self, shape, dtype):
        return self._gpu.allocate(shape, dtype)

    def empty_host(self, shape, dtype):
        array = np.empty(shape, dtype)
        array.reshape(-1).view(np.uint8)[:] = POISON
        return array

    def to_device(self, array):
        copy = self.empty(array.shape, array.dtype)
        self.waiting.append(lambda: np.copyto(copy, array, casting="no"))
        return copy

    def to_host(self, array, out):
        assert out.shape == array.shape
        self.waiting.append(lambda: np.copyto(out, array, casting="no"))

    def launch(self, kernel, n_blocks, arguments, shared_nbytes=0):
        function = compiled(kernel.source, kernel.expression).get_function(kernel.expression)
        assert shared_nbytes <= self.shared_nbytes_limit
        function.max_dynamic_shared_size_bytes = SHARED_LIMIT
        self._gpu.launched.append((kernel, n_blocks, shared_nbytes))
        # The closure keeps the arguments alive until then, as a stream's memory pool does.
        self.waiting.append(
            lambda: function((n_blocks,), (kernel.threads,), arguments, shared_nbytes, order=self._gpu.order)
        )

    def synchronize(self):
        self._gpu.run_until_done(self)


@cache
def compiled(source, expression):
    """Return the module of one kernel instance."""
    return CpuModule(kernel_source(source), [expression])


def shim_of(gpu, warn=lambda line: None):
    """Return the extraction on one stream of a device."""
    return DeviceExtraction([gpu.stream()], warn)


def shim(**gpu):
    """Return the extraction on one stream of a new `ShimGpu`."""
    return shim_of(ShimGpu(**gpu))
