"""`SassDevice`: the package's `Device` on the CPU, which executes the machine code that NVRTC makes for a GPU."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from nvrtc import ARCHITECTURES

from gpu_extract.backends.cuda.registry import Kernel
from gpu_extract.backends.cuda.source import kernel_source
from sass.building import cubin_of
from sass.program import Program, Run

__all__ = ["ARCH", "Launched", "SassDevice", "program_of"]

ARCH = 90
POISON = 0xCD  # an implausible value in all types
ALIGNMENT = 512  # of arrays, as CUDA's
STATIC_SHARED_NBYTES = 4 << 10


class Launched(NamedTuple):
    """A launch, with the blocks that fit on a multiprocessor at a time and what they did."""

    kernel: Kernel
    program: Program
    n_blocks: int
    shared_nbytes: int
    resident: int
    run: Run


class Done:
    """The event of operations that have run."""

    def wait(self) -> None:
        """See `Event.wait`."""


class SassDevice:
    """One stream of a device; operations run at once.

    Parameters
    ----------
    multiprocessors : int
    seed : int
        If it is not 0, the warps of a block run in random order.

    timed : bool
        Model the time of one multiprocessor, with as many blocks at a time as fit on it.

    Attributes
    ----------
    launches : list of Launched
        What each launch did.
    """

    shared_nbytes_limit = ARCHITECTURES[ARCH] - STATIC_SHARED_NBYTES

    def __init__(self, *, multiprocessors: int = 2, seed: int = 0, timed: bool = False) -> None:
        self.multiprocessors, self.seed, self.timed = multiprocessors, seed, timed
        self.launches: list[Launched] = []

    def empty(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """See `Device.empty`; the memory is poisoned."""
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = np.full(nbytes + ALIGNMENT, POISON, np.uint8)
        begin = -memory.ctypes.data % ALIGNMENT
        return memory[begin : begin + nbytes].view(dtype).reshape(shape)

    empty_host = empty

    def to_device(self, array: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """See `Device.to_device`."""
        copy = self.empty(array.shape, array.dtype) if out is None else out
        copy[...] = array
        return copy

    def to_host(self, array: NDArray[Any], out: NDArray[Any]) -> None:
        """See `Device.to_host`."""
        np.copyto(out, array, casting="no")

    def copy(self, array: NDArray[Any], out: NDArray[Any]) -> None:
        """See `Device.copy`."""
        np.copyto(out, array, casting="unsafe")

    def record(self) -> Done:
        """See `Device.record`."""
        return Done()

    def wait_for(self, stream: int) -> None:
        """See `Device.wait_for`."""

    def launch(self, kernel: Kernel, n_blocks: int, arguments: tuple[Any, ...], shared_nbytes: int = 0) -> None:
        """See `Device.launch`."""
        assert shared_nbytes <= self.shared_nbytes_limit
        program = program_of(kernel)
        resident = program.resident_blocks(kernel.threads, shared_nbytes)
        done = program.run(
            kernel.threads, n_blocks, arguments, shared_nbytes, seed=self.seed, resident=resident if self.timed else 0
        )
        self.launches.append(Launched(kernel, program, n_blocks, shared_nbytes, resident, done))

    def synchronize(self) -> None:
        """See `Device.synchronize`."""


@cache
def program_of(kernel: Kernel) -> Program:
    """Return the machine code of a kernel."""
    return Program(cubin_of(kernel_source(kernel.source), kernel.expression, ARCH), kernel.expression)
