"""The cuda backend: `Device` implemented with CuPy, and the diagnosis if it does not work.

This is the only module that imports CuPy. `problem` works without it; everything else needs a GPU.
"""

from __future__ import annotations

import functools
import importlib.util
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_extract.backends.cuda.batches import DeviceExtraction
from gpu_extract.backends.cuda.cucim_ndimage import cucim_ndimage
from gpu_extract.backends.cuda.device import Array, OutOfDeviceMemoryError
from gpu_extract.backends.cuda.pinned import HostRing
from gpu_extract.backends.cuda.registry import Kernel
from gpu_extract.backends.cuda.source import kernel_source
from gpu_extract.errors import DeviceError
from gpu_extract.messages import announce

__all__ = [
    "CudaDevice",
    "compiled",
    "count",
    "cucim_version",
    "device_of",
    "memory_budget",
    "open_device",
    "problem",
    "reference_libraries",
    "working_nbytes",
]

# Batches that are processed concurrently: one is uploaded, one computed, one downloaded.
STREAMS = 3
# Shared memory reserved for the kernels' static variables; the largest kernel uses 2.2 KiB.
STATIC_SHARED_NBYTES = 4 << 10
# Memory that is not used for slides, even if there is little: windows and tiles of the streams, large tiles, and tables
# of labels, which take 1 byte per pixel of a slide.
WORKING_NBYTES = 2 << 30
# Fraction of the free memory that is used; the rest is for the compiler, other programs and the pool's fragmentation.
MEMORY_SHARE = 0.8
# CuPy does not install NVRTC and the CUDA headers, which compile the kernels.
INSTALL = (
    "pip install cupy-cuda13x nvidia-cuda-nvrtc nvidia-cuda-runtime, or for drivers before 580 "
    "pip install cupy-cuda12x nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12"
)


def problem() -> str | None:
    """Return why no CUDA device can be used here and what to do, in one line; None if one can be used."""
    try:
        import cupy as cp
    except (ImportError, OSError) as error:  # OSError: CuPy creates its cache folder, which can fail
        return f"CuPy cannot be imported ({error}); {INSTALL}"
    try:
        if cp.cuda.runtime.getDeviceCount() == 0:
            return "there is no NVIDIA GPU; use --device cpu (device='cpu')"
    except cp.cuda.runtime.CUDARuntimeError as error:
        return f"CUDA does not start ({error}); install or update the NVIDIA driver, or {INSTALL}"
    try:
        cp.cuda.nvrtc.getVersion()
    except Exception as error:  # CuPy's loader raises ImportError, OSError or RuntimeError
        return f"CUDA's compiler NVRTC is missing ({error}); {INSTALL}"
    return None


def count() -> int:
    """Return the number of CUDA devices."""
    import cupy as cp

    return int(cp.cuda.runtime.getDeviceCount())


def memory_budget(index: int, limit: int | None = None) -> int:
    """Return the bytes of device memory that a run may use: most of what is free, or ``limit`` if that is less."""
    import cupy as cp

    with cp.cuda.Device(index):
        free, _ = cp.cuda.runtime.memGetInfo()
    budget = int(free * MEMORY_SHARE)
    return budget if limit is None else min(budget, limit)


def open_device(index: int, budget: int, warn: Callable[[str], None]) -> DeviceExtraction:
    """Return the extraction on one GPU with `STREAMS` streams and, if the memory suffices, one for whole slides.

    They use at most ``budget`` bytes of the GPU's memory.
    """
    working = working_nbytes(budget)
    streams = _streams(index, working, STREAMS)
    resident = _streams(index, budget - working, 1)[0] if budget > working else None
    return DeviceExtraction(streams, warn, HostRing(streams[0].empty_host), resident)


def working_nbytes(budget: int) -> int:
    """Return the part of the memory that is for batches and tables; the rest is for slides."""
    return max(min(budget, WORKING_NBYTES), budget // 4)


def _streams(index: int, nbytes: int, n_streams: int) -> list[CudaDevice]:
    """Return streams of a GPU that share ``nbytes`` bytes of its memory."""
    import cupy as cp

    with cp.cuda.Device(index):
        pool = cp.cuda.MemoryPool()
        pool.set_limit(size=nbytes)
    return [CudaDevice(index, pool) for _ in range(n_streams)]


def device_of(array: Array) -> CudaDevice:
    """Return the device of a CuPy array; it uses the caller's current stream."""
    import cupy as cp

    with cp.cuda.Device(array.device.id):
        return CudaDevice(array.device.id, cp.get_default_memory_pool(), cp.cuda.get_current_stream())


def reference_libraries() -> Any:
    """Return the libraries with which `reference.extract` runs on a GPU: CuPy, with cuCIM if it is installed.

    Raises
    ------
    DeviceError
        If no GPU can be used, or if cuCIM is installed and cannot be imported.
    """
    reason = problem()
    if reason:
        raise DeviceError(f"the reference does not run on a GPU: {reason}")
    import cupy as cp
    import cupyx.scipy.ndimage

    from gpu_extract.backends.reference import Libraries

    if cucim_version() is None:
        return Libraries(cp, cupyx.scipy.ndimage)
    return Libraries(cp, cucim_ndimage(cucim_skimage(), cupyx.scipy.ndimage))


def cucim_skimage() -> Any:
    """Return the module ``cucim.skimage`` with the parts that are used.

    Raises
    ------
    DeviceError
        If it cannot be imported.
    """
    try:
        import cucim.skimage
        import cucim.skimage.exposure
        import cucim.skimage.filters
        import cucim.skimage.measure
        import cucim.skimage.morphology
    except (ImportError, OSError, RuntimeError) as error:  # RuntimeError: CuPy's for libraries of another CUDA
        cause = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DeviceError(
            f"cuCIM cannot be imported ({cause}); pip install cucim-cu13 (cucim-cu12 for CUDA 12), or uninstall it: "
            "without cuCIM, reference:cuda uses cupyx"
        ) from error
    return cucim.skimage


def cucim_version() -> str | None:
    """Return the version of cuCIM, without importing it; None if it is not installed."""
    if importlib.util.find_spec("cucim") is None:
        return None
    for package in ("cucim-cu13", "cucim-cu12", "cucim"):  # the last one is conda's name
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return "unknown"


class CudaDevice:
    """A `Device`: one stream of one GPU.

    Parameters
    ----------
    index : int
        CUDA's number of the GPU.
    pool : cupy.cuda.MemoryPool
        Allocates the arrays.
    stream : cupy.cuda.Stream, optional
        By default a new one. It synchronizes with the default stream, on which a caller may still read earlier results;
        for other streams there is `wait_for`.
    """

    def __init__(self, index: int, pool: Any, stream: Any = None) -> None:
        import cupy as cp

        self._device, self._pool = cp.cuda.Device(index), pool
        with self._device:
            self._stream = cp.cuda.Stream() if stream is None else stream
        self.multiprocessors, shared_nbytes = _attributes(index)
        self.shared_nbytes_limit = shared_nbytes - STATIC_SHARED_NBYTES
        self._held: list[NDArray[Any]] = []  # host arrays whose copies may be running
        self._last_operation = "a copy"

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """See `Device.empty`."""
        import cupy as cp

        with self._device, self._stream, cp.cuda.using_allocator(self._pool.malloc):
            try:
                return cp.empty(shape, dtype)
            except cp.cuda.memory.OutOfMemoryError:
                # Free blocks of other sizes count against the pool's limit.
                self._pool.free_all_blocks()
            try:
                return cp.empty(shape, dtype)
            except cp.cuda.memory.OutOfMemoryError as error:
                raise OutOfDeviceMemoryError(str(error)) from error

    def empty_host(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """See `Device.empty_host`. CuPy's pool is not used: it rounds up to powers of two and never shrinks."""
        import cupy as cp

        nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        with self._device, _convert_errors(f"{nbytes} bytes of pinned memory"):
            memory = cp.cuda.PinnedMemoryPointer(cp.cuda.PinnedMemory(nbytes), 0)
        return np.ndarray(shape, dtype, buffer=memory)

    def to_device(self, array: NDArray[Any], out: Array | None = None) -> Array:
        """See `Device.to_device`."""
        copy = self.empty(array.shape, array.dtype) if out is None else out
        host = np.ascontiguousarray(array)
        self._held.append(host)
        with self._device, _convert_errors(self._last_operation):
            copy.set(host, stream=self._stream)
        return copy

    def to_host(self, array: Array, out: NDArray[Any]) -> None:
        """See `Device.to_host`."""
        self._held.append(out)
        with self._device, _convert_errors(self._last_operation):
            array.get(stream=self._stream, out=out, blocking=False)

    def copy(self, array: Array, out: Array) -> None:
        """See `Device.copy`."""
        with self._device, self._stream, _convert_errors("a copy on the device"):
            out[...] = array

    def launch(self, kernel: Kernel, n_blocks: int, arguments: tuple[Any, ...], shared_nbytes: int = 0) -> None:
        """See `Device.launch`."""
        self._last_operation = (
            f"{kernel.expression}, {n_blocks} blocks of {kernel.threads} threads, {shared_nbytes} bytes shared"
        )
        with self._device, self._stream, _convert_errors(self._last_operation):
            function = compiled(self._device.id, kernel, self.shared_nbytes_limit)
            function((n_blocks,), (kernel.threads,), arguments, shared_mem=shared_nbytes)

    def record(self) -> CudaEvent:
        """See `Device.record`."""
        with self._device, _convert_errors(self._last_operation):
            return CudaEvent(self._stream, self._last_operation)

    def wait_for(self, stream: int) -> None:
        """See `Device.wait_for`."""
        import cupy as cp

        with self._device, _convert_errors(f"the work of stream {stream}"):
            event = cp.cuda.Event(disable_timing=True)
            cp.cuda.runtime.eventRecord(event.ptr, stream)
            self._stream.wait_event(event)

    def synchronize(self) -> None:
        """See `Device.synchronize`."""
        try:
            self.record().wait()  # `Stream.synchronize` would occupy a core, which the encoder can use
        finally:
            self._held.clear()


class CudaEvent:
    """An `Event` of a stream.

    Parameters
    ----------
    stream : cupy.cuda.Stream
    what : str
        The last operation, for the message if it failed.
    """

    def __init__(self, stream: Any, what: str) -> None:
        import cupy as cp

        self._what = what
        self._event = cp.cuda.Event(block=True, disable_timing=True)  # waiting leaves the core to other threads
        self._event.record(stream)

    def wait(self) -> None:
        """See `Event.wait`."""
        with _convert_errors(self._what):
            self._event.synchronize()


@contextmanager
def _convert_errors(what: str) -> Iterator[None]:
    """Convert CUDA's errors to a DeviceError that names the operation."""
    try:
        yield
    except DeviceError:
        raise
    # CuPy's errors are RuntimeErrors, except the compiler's; a missing header or library can raise any of these.
    except (RuntimeError, OSError, _compile_error()) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        cause = next((line for line in lines if "error" in line.lower()), lines[0])
        raise DeviceError(
            f"CUDA failed at {what}: {cause.strip()}; run 'gpu-extract doctor' to see what is missing"
        ) from error


def _compile_error() -> type[Exception]:
    from cupy.cuda.compiler import CompileException

    kind: type[Exception] = CompileException
    return kind


@functools.cache
def _attributes(index: int) -> tuple[int, int]:
    """Return the number of multiprocessors of a GPU, and the bytes of shared memory that a block can request."""
    from cupy.cuda import runtime

    numbers = (runtime.cudaDevAttrMultiProcessorCount, runtime.cudaDevAttrMaxSharedMemoryPerBlockOptin)
    multiprocessors, shared_nbytes = (int(runtime.deviceGetAttribute(number, index)) for number in numbers)
    return multiprocessors, shared_nbytes


_compiling = threading.Lock()  # of the two dictionaries; each kernel has a lock of its own
_locks: dict[tuple[int, Kernel], threading.Lock] = {}
_functions: dict[tuple[int, Kernel], Any] = {}


def compiled(device: int, kernel: Kernel, shared_nbytes: int) -> Any:
    """Return the compiled kernel on a device, with that many bytes of dynamic shared memory allowed.

    NVRTC compiles it once per process, for the first stream that needs it; CuPy caches it on disk. Different kernels
    compile at the same time, because one takes seconds.
    """
    key = device, kernel
    with _compiling:
        lock = _locks.setdefault(key, threading.Lock())
    with lock:
        if key not in _functions:
            _functions[key] = _compile(kernel, shared_nbytes)
        return _functions[key]


def _compile(kernel: Kernel, shared_nbytes: int) -> Any:
    import cupy as cp

    announce("loading CUDA kernels; the first time they are compiled, which takes seconds")
    module = cp.RawModule(
        code=kernel_source(kernel.source), options=("--std=c++17",), name_expressions=(kernel.expression,)
    )
    function = module.get_function(kernel.expression)
    function.max_dynamic_shared_size_bytes = shared_nbytes
    return function
