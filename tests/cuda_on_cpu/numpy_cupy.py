"""A CuPy made of NumPy, whose `RawModule` is `CpuModule`, so that code that imports CuPy runs without a GPU.

It is synchronous, and has only what the package and the benchmarks use. What it lacks raises AttributeError.
"""

import sys
import time
from contextlib import contextmanager, nullcontext
from types import ModuleType, SimpleNamespace

import numpy as np
import scipy.ndimage

from cuda_on_cpu.launcher import SHARED_LIMIT, CpuModule

__all__ = ["install"]

FREE_NBYTES = 64 << 30
MULTIPROCESSORS = 2


def install(monkeypatch):
    """Make ``import cupy`` and ``import cupyx`` return the stand-ins, for the duration of a test."""
    cupy, cupyx = make_cupy(), ModuleType("cupyx")
    cupyx.empty_pinned = np.empty
    cupyx.scipy = SimpleNamespace(ndimage=scipy.ndimage)
    modules = {
        "cupy": cupy,
        "cupy.cuda": cupy.cuda,
        "cupy.cuda.compiler": cupy.cuda.compiler,
        "cupyx": cupyx,
        "cupyx.scipy": cupyx.scipy,
        "cupyx.scipy.ndimage": scipy.ndimage,
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return cupy


class Array(np.ndarray):
    """An array on the device."""

    device = SimpleNamespace(id=0)

    def set(self, array, stream):
        np.copyto(self, array, casting="no")

    def get(self, stream=None, out=None, blocking=True):
        np.copyto(out, self, casting="no")


Array.__module__ = "cupy"  # by which the package recognizes it


class CUDARuntimeError(RuntimeError):
    pass


class OutOfMemoryError(MemoryError):
    pass


class CompileException(Exception):  # noqa: N818, CuPy's name
    pass


class Device(nullcontext):
    def __init__(self, index):
        super().__init__()
        self.id = index


class Stream(nullcontext):
    ptr = 1

    def synchronize(self):
        pass

    def wait_event(self, event):
        pass


class Event:
    ptr = 2

    def __init__(self, block=False, disable_timing=False):
        self.seconds = 0.0

    def record(self, stream=None):
        self.seconds = time.perf_counter()

    def synchronize(self):
        pass


class Pool:
    def set_limit(self, size):
        pass

    def malloc(self, nbytes):
        return SimpleNamespace(nbytes=nbytes)

    def free_all_blocks(self):
        pass


class RawModule:
    def __init__(self, code, options, name_expressions):
        assert options == ("--std=c++17",)
        self._module = CpuModule(code, name_expressions)

    def get_function(self, name):
        return Function(self._module.get_function(name))


class Function:
    """A kernel with the attributes of CuPy's."""

    num_regs, local_size_bytes, shared_size_bytes, preferred_shared_memory_carveout = 80, 0, 2128, -1
    kernel = SimpleNamespace(ptr=0)

    def __init__(self, kernel):
        self._kernel = kernel
        self.max_dynamic_shared_size_bytes = 0

    def __call__(self, grid, block, arguments, shared_mem=0):
        self._kernel.max_dynamic_shared_size_bytes = self.max_dynamic_shared_size_bytes
        self._kernel(grid, block, arguments, shared_mem)


def make_runtime():
    attributes = {"cudaDevAttrMultiProcessorCount": MULTIPROCESSORS}
    attributes["cudaDevAttrMaxSharedMemoryPerBlockOptin"] = SHARED_LIMIT
    properties = {
        "name": b"NVIDIA NumPy",
        "major": 9,
        "minor": 0,
        "multiProcessorCount": MULTIPROCESSORS,
        "totalGlobalMem": FREE_NBYTES,
    }
    return SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        getDeviceCount=lambda: 1,
        memGetInfo=lambda: (FREE_NBYTES, FREE_NBYTES),
        deviceSynchronize=lambda: None,
        deviceGetAttribute=lambda name, index: attributes[name],
        getDeviceProperties=lambda index: properties,
        driverGetVersion=lambda: 13000,
        runtimeGetVersion=lambda: 13000,
        eventRecord=lambda event, stream: None,
        **{name: name for name in attributes},
    )


def make_cupy():
    cupy = ModuleType("cupy")
    cupy.__version__ = "14.2.0"
    cupy.__getattr__ = lambda name: getattr(np, name)  # tile, copyto, where, quantile, ...
    pool, pinned_pool, stream = Pool(), Pool(), Stream()

    def empty(shape, dtype=float):
        array = np.empty(shape, dtype).view(Array)
        array.reshape(-1).view(np.uint8)[...] = 0xCD
        return array

    def asarray(array, dtype=None):
        return np.array(array, dtype).view(Array)

    def pinned_memory(nbytes):
        return bytearray(nbytes)

    @contextmanager
    def using_allocator(malloc):
        assert malloc(1)
        yield

    cuda = ModuleType("cupy.cuda")
    cuda.runtime = make_runtime()
    cuda.nvrtc = SimpleNamespace(getVersion=lambda: (13, 0))
    cuda.driver = SimpleNamespace(occupancyMaxActiveBlocksPerMultiprocessor=lambda pointer, threads, nbytes: 2)
    cuda.memory = SimpleNamespace(
        OutOfMemoryError=OutOfMemoryError,
        Memory=lambda nbytes: SimpleNamespace(nbytes=nbytes),
        MemoryPointer=lambda memory, offset: memory,
    )
    cuda.compiler = SimpleNamespace(CompileException=CompileException)
    cuda.PinnedMemory, cuda.PinnedMemoryPointer = pinned_memory, lambda memory, offset: memory
    cuda.Device, cuda.Stream, cuda.Event, cuda.MemoryPool = Device, Stream, Event, Pool
    cuda.using_allocator = using_allocator
    cuda.get_current_stream = lambda: stream
    cuda.get_elapsed_time = lambda start, end: 1000 * (end.seconds - start.seconds)
    cupy.cuda, cupy.RawModule, cupy.ndarray = cuda, RawModule, Array
    cupy.empty, cupy.asarray, cupy.asnumpy = empty, asarray, lambda array: np.array(array).view(np.ndarray)
    cupy.get_default_memory_pool, cupy.get_default_pinned_memory_pool = lambda: pool, lambda: pinned_pool
    return cupy
