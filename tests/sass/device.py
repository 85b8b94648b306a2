"""`SassDevice`: the package's `Device` on the CPU, which executes the machine code that NVRTC makes for a GPU."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvrtc import ARCHITECTURES

from gpu_extract.backends.cuda.registry import Kernel
from gpu_extract.backends.cuda.source import kernel_source
from sass.building import cubin_of
from sass.program import Program

__all__ = ["ARCH", "SassDevice", "program_of"]

ARCH = 90
POISON = 0xCD  # an implausible value in all types
ALIGNMENT = 512  # of arrays, as CUDA's
STATIC_SHARED_NBYTES = 4 << 10


class SassDevice:
    """One stream of a device; operations run at once.

    Parameters
    ----------
    multiprocessors : int
    seed : int
        If it is not 0, the warps of a block run in random order.

    Attributes
    ----------
    launches : list of tuple
        (kernel, blocks, bytes of dynamic shared memory, `Run`) of each launch.
    resident : int
        If it is not 0, time is modelled; see `Program.run`.
    """

    shared_nbytes_limit = ARCHITECTURES[ARCH] - STATIC_SHARED_NBYTES

    def __init__(self, *, multiprocessors: int = 2, seed: int = 0, resident: int = 0) -> None:
        self.multiprocessors, self.seed, self.resident = multiprocessors, seed, resident
        self.launches: list[tuple[Any, ...]] = []

    def empty(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """See `Device.empty`; the memory is poisoned."""
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = np.full(nbytes + ALIGNMENT, POISON, np.uint8)
        begin = -memory.ctypes.data % ALIGNMENT
        return memory[begin : begin + nbytes].view(dtype).reshape(shape)

    empty_host = empty

    def to_device(self, array: NDArray[Any]) -> NDArray[Any]:
        """See `Device.to_device`."""
        copy = self.empty(array.shape, array.dtype)
        copy[...] = array
        return copy

    def to_host(self, array: NDArray[Any], out: NDArray[Any]) -> None:
        """See `Device.to_host`."""
        np.copyto(out, array, casting="no")

    def launch(self, kernel: Kernel, n_blocks: int, arguments: tuple[Any, ...], shared_nbytes: int = 0) -> None:
        """See `Device.launch`."""
        assert shared_nbytes <= self.shared_nbytes_limit
        done = program_of(kernel).run(
            kernel.threads, n_blocks, arguments, shared_nbytes, seed=self.seed, resident=self.resident
        )
        self.launches.append((kernel, n_blocks, shared_nbytes, done))

    def synchronize(self) -> None:
        """See `Device.synchronize`."""


@cache
def program_of(kernel: Kernel) -> Program:
    """Return the machine code of a kernel."""
    return Program(cubin_of(kernel_source(kernel.source), kernel.expression, ARCH), kernel.expression)
