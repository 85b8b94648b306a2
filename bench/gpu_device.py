"""`Gpu`: the first GPU as the checks and timings use it, by CuPy.

`tests/cuda_on_cpu/evidence.py` has the same on the CPU.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

from gpu_extract import backends
from gpu_extract.backends.cuda import backend as cuda
from gpu_extract.backends.reference import Libraries
from gpu_extract.errors import DeviceError

Figures = dict[str, Any]

# What nvidia-smi knows and CUDA does not: clocks, the PCIe link, and what limits them.
SMI_FIELDS = (
    "driver_version",
    "vbios_version",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "clocks.max.mem",
    "pcie.link.gen.current",
    "pcie.link.gen.max",
    "pcie.link.width.current",
    "power.draw",
    "power.limit",
    "temperature.gpu",
    "ecc.mode.current",
    "persistence_mode",
    "mig.mode.current",
)


class Gpu:
    """The first GPU.

    Attributes
    ----------
    xp : module
        CuPy.
    device : CudaDevice
        One stream, with CuPy's own memory pool; timings measure this stream.
    """

    name = "cuda"

    def __init__(self) -> None:
        reason = cuda.problem()
        if reason:
            raise DeviceError(reason)
        import cupy as cp

        self.xp = self._cp = cp
        self._stream = self._cp.cuda.Stream()
        self.device = cuda.CudaDevice(0, self._cp.get_default_memory_pool(), self._stream)

    @property
    def libraries(self) -> Libraries:
        """The libraries of `reference:cuda`: CuPy, and cuCIM if it is installed; nothing else depends on cuCIM."""
        found: Libraries = cuda.reference_libraries()
        return found

    def open_stream(self) -> cuda.CudaDevice:
        """Open a new `Device` without a pool: each array is an allocation, so that a memory checker sees its bounds."""
        return cuda.CudaDevice(0, _NoPool(self._cp))

    def skimage(self) -> Any:
        """Return `cucim.skimage`.

        Raises
        ------
        ModuleNotFoundError
            If cuCIM is not installed.
        """
        if cuda.cucim_version() is None:
            raise ModuleNotFoundError("cuCIM is not installed: pip install cucim-cu13")
        return cuda.cucim_skimage()

    def open_backend(self) -> backends.Backend:
        """Open the cuda backend as a user gets it."""
        return backends.choose("cuda")

    def upload(self, array: Any) -> Any:
        """Return a copy on the device; the transfer is complete when this returns."""
        copy = self.device.to_device(array)
        self.device.synchronize()
        return copy

    def to_host(self, array: Any) -> Any:
        """Return a copy in host memory."""
        return self._cp.asnumpy(array)

    def seconds(self, work: Callable[[], Any], repeats: int, warm_up: int = 1) -> list[float]:
        """Return how long each repeat took on the device, by events on its stream."""
        for _ in range(warm_up):
            with self._stream:
                work()
        self.device.synchronize()
        times = []
        for _ in range(repeats):
            start, end = self._cp.cuda.Event(), self._cp.cuda.Event()
            with self._stream:
                start.record(self._stream)
                work()
                end.record(self._stream)
            self.device.synchronize()
            times.append(self._cp.cuda.get_elapsed_time(start, end) / 1000)
        return times

    def is_broken(self) -> bool:
        """Return whether CUDA's context is lost: after an illegal access, every call fails until the process ends."""
        try:
            self._cp.cuda.runtime.deviceSynchronize()
        except self._cp.cuda.runtime.CUDARuntimeError:
            return True
        return False

    def free_nbytes(self) -> int:
        """Return the bytes of free device memory."""
        return int(self._cp.cuda.runtime.memGetInfo()[0])

    def release(self) -> None:
        """Free the memory that is kept in pools."""
        self._cp.get_default_memory_pool().free_all_blocks()
        self._cp.get_default_pinned_memory_pool().free_all_blocks()

    def compile(self, kernel: Any) -> Any:
        """Return the compiled kernel, from CuPy's cache on disk if it is there."""
        return cuda.compiled(0, kernel, self.device.shared_nbytes_limit)

    def prefer_shared(self, kernel: Any, percent: int) -> None:
        """Set how much of a multiprocessor's memory should be shared memory instead of cache; -1 is the default."""
        self.compile(kernel).preferred_shared_memory_carveout = percent

    def kernel_facts(self, kernel: Any, shared_nbytes: int) -> Figures:
        """Return the resources of a compiled kernel, and how many of its blocks fit on a multiprocessor."""
        function = self.compile(kernel)
        blocks = self._cp.cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor(
            function.kernel.ptr, kernel.threads, shared_nbytes
        )
        return {
            "kernel": kernel.expression,
            "registers": function.num_regs,
            "local_bytes": function.local_size_bytes,
            "static_shared_bytes": function.shared_size_bytes,
            "dynamic_shared_bytes": shared_nbytes,
            "blocks_per_multiprocessor": blocks,
        }

    def facts(self) -> Figures:
        """Return the properties of the GPU, and the versions of driver and libraries."""
        runtime = self._cp.cuda.runtime
        properties = runtime.getDeviceProperties(0)
        return {
            "gpu": properties["name"].decode(),
            "compute_capability": f"{properties['major']}.{properties['minor']}",
            "multiprocessors": properties["multiProcessorCount"],
            "memory_bytes": properties["totalGlobalMem"],
            "l2_bytes": properties.get("l2CacheSize"),
            "driver_cuda": runtime.driverGetVersion(),
            "runtime_cuda": runtime.runtimeGetVersion(),
            "nvrtc": ".".join(map(str, self._cp.cuda.nvrtc.getVersion())),
            "cupy": self._cp.__version__,
            "cucim": cuda.cucim_version(),
        }

    def smi(self) -> dict[str, str]:
        """Return what nvidia-smi says; fields that it does not know are left out."""
        command = ["nvidia-smi", "--id=0", "--format=csv,noheader"]
        found = {}
        together = _output([*command, f"--query-gpu={','.join(SMI_FIELDS)}"])
        if together is not None:
            return dict(zip(SMI_FIELDS, (value.strip() for value in together.split(",")), strict=False))
        for field in SMI_FIELDS:  # one unknown field fails all of them
            value = _output([*command, f"--query-gpu={field}"])
            if value is not None:
                found[field] = value
        return found


class _NoPool:
    """A replacement for `cupy.cuda.MemoryPool` that allocates directly."""

    def __init__(self, cp: Any) -> None:
        self._cp = cp

    def malloc(self, nbytes: int) -> Any:
        return self._cp.cuda.memory.MemoryPointer(self._cp.cuda.memory.Memory(nbytes), 0)

    def free_all_blocks(self) -> None:
        """Keep nothing, so there is nothing to free; `CudaDevice.empty` calls it when memory is short."""


def _output(command: list[str]) -> str | None:
    """Return the first line that a program prints, or None if it is missing, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else None
