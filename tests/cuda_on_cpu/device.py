"""`ShimDevice`: the package's `Device` on the CPU, as asynchronous as a GPU.

Operations of a stream are deferred until a stream is synchronized; then operations of all streams run in random order.
Device memory is counted and limited. An array that is deleted returns its memory at once, and the next array of the
same stream gets it, as in CuPy's pool: deferred operations do not keep the arrays that they use. Memory is poisoned
before each use, in the order of the stream.
"""

from __future__ import annotations

import itertools
import random
import threading
import weakref
from collections import defaultdict, deque
from functools import cache

import numpy as np

from cuda_on_cpu.launcher import SHARED_LIMIT, CpuModule
from gpu_extract.backends import Backend
from gpu_extract.backends.cuda.batches import DeviceExtraction
from gpu_extract.backends.cuda.device import OutOfDeviceMemoryError
from gpu_extract.backends.cuda.pinned import HostRing
from gpu_extract.backends.cuda.source import kernel_source
from gpu_extract.model import BatchSize

__all__ = ["POISON", "PoisonedRing", "ShimDevice", "ShimGpu", "backend_of", "raw", "shim", "shim_of"]

POISON = 0xCD  # an implausible value in all types
STATIC_SHARED_NBYTES = 4 << 10
ALIGNMENT = 512  # bytes, of each allocation, as CuPy's


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
        self.held = 0  # bytes of all arrays on the device
        self.pinned = self.most_pinned = 0  # bytes of pinned host memory
        self._pinned = {}  # first and last address of each array
        self.n_slow_downloads = 0  # to memory that is not pinned
        self.launched = []
        self.streams = []
        self._dice = random.Random(seed)
        self._lock = threading.RLock()

    def stream(self, nbytes=None):
        """Return a new stream; its arrays take at most ``nbytes`` bytes, by default all of the device's memory."""
        stream = ShimDevice(self, self.nbytes if nbytes is None else nbytes, handle=len(self.streams))
        self.streams.append(stream)
        return stream

    def run_until(self, is_done):
        """Run operations of all streams in random order until ``is_done()``."""
        with self._lock:
            while not is_done():
                ready = [stream for stream in self.streams if stream.waiting and stream.waiting[0].is_ready()]
                if ready:
                    self._dice.choice(ready).waiting.popleft()()

    def reserve(self, stream, nbytes):
        """Count the bytes of an array."""
        with self._lock:
            free = min(self.nbytes - self.held, stream.nbytes - stream.held)
            if nbytes > free:
                raise OutOfDeviceMemoryError(f"{nbytes} bytes requested, {free} free")
            self.held += nbytes
            stream.held += nbytes

    def release(self, stream, block):
        """Return the block of an array that was deleted to its stream."""
        with self._lock:
            self.held -= block.nbytes
            stream.held -= block.nbytes
            stream.free[block.nbytes].append(block)

    def pin(self, array):
        """Count the bytes of an array in pinned memory, until it is deleted."""
        with self._lock:
            self.pinned += array.nbytes
            self.most_pinned = max(self.most_pinned, self.pinned)
            self._pinned[id(array)] = span(array)
        weakref.finalize(array, self._unpin, id(array), array.nbytes)

    def _unpin(self, key, nbytes):
        with self._lock:
            self.pinned -= nbytes
            del self._pinned[key]

    def is_pinned(self, array):
        """Return whether an array is in pinned memory."""
        start, end = span(array)
        with self._lock:
            return any(first <= start and end <= last for first, last in self._pinned.values())


class Operation:
    """A deferred operation of a stream; it runs when its turn has come and ``is_ready()``."""

    def __init__(self, run, is_ready=lambda: True):
        self._run, self.is_ready = run, is_ready
        self.done = False

    def __call__(self):
        self._run()
        self.done = True


class ShimDevice:
    """One stream of a `ShimGpu`; see `gpu_extract.backends.cuda.device.Device`."""

    def __init__(self, gpu, nbytes, handle):
        self._gpu, self.nbytes, self.held, self.handle = gpu, nbytes, 0, handle
        self.multiprocessors = gpu.multiprocessors
        self.shared_nbytes_limit = gpu.shared_nbytes_limit
        self.waiting = deque()
        self.free = defaultdict(list)  # blocks of deleted arrays, by their bytes

    def empty(self, shape, dtype):
        nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        self._gpu.reserve(self, nbytes)
        if self.free[nbytes]:
            block = self.free[nbytes].pop()
            self.defer(lambda: block.fill(POISON))
        else:
            block = aligned(nbytes)
            block.fill(POISON)
        return np.asarray(Lease(block, self._gpu, self)).view(dtype).reshape(shape)

    def empty_host(self, shape, dtype):
        array = np.empty(shape, dtype)
        array.reshape(-1).view(np.uint8)[:] = POISON
        self._gpu.pin(array)
        return array

    def to_device(self, array, out=None):
        copy = self.empty(array.shape, array.dtype) if out is None else out
        assert copy.shape == array.shape
        assert copy.flags.c_contiguous
        target = raw(copy)
        self.defer(lambda: np.copyto(target, array, casting="no"))
        return copy

    def to_host(self, array, out):
        assert out.shape == array.shape
        self._gpu.n_slow_downloads += not self._gpu.is_pinned(out)
        source = raw(array)
        self.defer(lambda: np.copyto(out, source, casting="no"))

    def copy(self, array, out):
        assert array.shape == out.shape
        source, target = raw(array), raw(out)
        self.defer(lambda: np.copyto(target, source, casting="unsafe"))

    def launch(self, kernel, n_blocks, arguments, shared_nbytes=0):
        function = compiled(kernel.source, kernel.expression).get_function(kernel.expression)
        assert shared_nbytes <= self.shared_nbytes_limit
        function.max_dynamic_shared_size_bytes = SHARED_LIMIT
        self._gpu.launched.append((kernel, n_blocks, shared_nbytes))
        given = tuple(raw(each) if isinstance(each, np.ndarray) else each for each in arguments)
        grid, block = (n_blocks,), (kernel.threads,)
        self.defer(lambda: function(grid, block, given, shared_nbytes, order=self._gpu.order))

    def record(self):
        return ShimEvent(self._gpu, self.defer(lambda: None))

    def wait_for(self, stream):
        marker = self._gpu.streams[stream].defer(lambda: None)
        self.waiting.append(Operation(lambda: None, lambda: marker.done))

    def synchronize(self):
        self._gpu.run_until(lambda: not self.waiting)

    def defer(self, run, slow=0):
        """Append an operation to the stream; it is ready when it has been asked ``slow`` times."""
        polls = itertools.count()
        operation = Operation(run, lambda: next(polls) >= slow)
        self.waiting.append(operation)
        return operation


class ShimEvent:
    """The event of a stream's operations up to a deferred one."""

    def __init__(self, gpu, operation):
        self._gpu, self._operation = gpu, operation

    def wait(self):
        self._gpu.run_until(lambda: self._operation.done)


class Lease:
    """The owner of an array on the device; its block is free when the array and its views are deleted."""

    def __init__(self, block, gpu, stream):
        self.block, self._gpu, self._stream = block, gpu, stream
        self.__array_interface__ = block.__array_interface__

    def __del__(self):
        self._gpu.release(self._stream, self.block)


class Raw:
    """The memory of an array on the device, as a kernel sees it: it does not keep the array."""

    def __init__(self, array, block):
        self._block = block
        self.__array_interface__ = array.__array_interface__


def raw(array):
    """Return an array of the same memory that does not keep ``array``, if it is one of `ShimDevice.empty`."""
    owner = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    return np.asarray(Raw(array, owner.block)) if isinstance(owner, Lease) else array


def span(array):
    """Return the first address of a contiguous array and the one after its end."""
    return array.ctypes.data, array.ctypes.data + array.nbytes


def aligned(nbytes):
    """Return uninitialized bytes at an aligned address."""
    memory = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + nbytes]


@cache
def compiled(source, expression):
    """Return the module of one kernel instance."""
    return CpuModule(kernel_source(source), [expression])


class PoisonedRing(HostRing):
    """A ring whose buffers are poisoned before each use."""

    def empty(self, shape, dtype):
        array = super().empty(shape, dtype)
        array.reshape(-1).view(np.uint8)[:] = POISON
        return array


def shim_of(gpu, warn=lambda line: None, streams=1, resident=None, **ring):
    """Return the extraction on streams of a device.

    ``resident`` is the memory for slides, in bytes; ``ring`` are the sizes of the `HostRing`.
    """
    devices = [gpu.stream() for _ in range(streams)]
    slides = None if resident is None else gpu.stream(resident)
    return DeviceExtraction(devices, warn, PoisonedRing(devices[0].empty_host, **ring), slides)


def backend_of(extraction, streams, batch_size=None, warnings=None):
    """Return the backend of an extraction; its batches have at most 7 cells by default."""
    return Backend(
        "shim",
        extraction.extract,
        batch_size or BatchSize(7),
        streams=streams,
        statistics=extraction.statistics,
        read=extraction.read,
        release=extraction.release,
        extract_packed=extraction.extract_packed,
        extract_on_device=extraction.extract_on_device,
        warnings=[] if warnings is None else warnings,
    )


def shim(**gpu):
    """Return the extraction on one stream of a new `ShimGpu`."""
    return shim_of(ShimGpu(**gpu))
