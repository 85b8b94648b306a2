"""The interface of a device: `backend.CudaDevice` implements it with CuPy, the tests implement it on the CPU."""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray

from gpu_extract.backends.cuda.registry import Kernel

__all__ = ["Array", "Device", "Event", "OutOfDeviceMemoryError", "scratch_blocks"]

Array = Any  # an array on the device: cupy.ndarray, or numpy.ndarray if the device is the CPU


# Global memory that takes the place of shared memory in one launch. Three streams need no more than the least working
# memory; see `backend.WORKING_NBYTES`.
SCRATCH_NBYTES = 512 << 20


def scratch_blocks(n_blocks: int, workspace_nbytes: int) -> int:
    """Return how many of the blocks of a launch to start if each has a workspace in global memory; at least 1.

    A tile of 4096 pixels takes 75 MB, and a GPU can run 264 blocks. The kernels work with any number.
    """
    return max(1, min(n_blocks, SCRATCH_NBYTES // workspace_nbytes))


class OutOfDeviceMemoryError(MemoryError):
    """The device does not have enough memory for an array."""


class Event(Protocol):
    """A point in the order of a stream's operations."""

    def wait(self) -> None:
        """Wait until all operations before it are done.

        Raises
        ------
        DeviceError
            If an operation failed.
        """


class Device(Protocol):
    """One stream of a device: operations are asynchronous and run in the order of the calls.

    A `Device` is used by one thread at a time. Arrays in host memory that it copies from or to must not be changed or
    read until `synchronize`; the device keeps them alive until then. Arrays on the device can be deleted at any time:
    their memory is reused by later operations of the same stream.
    """

    @property
    def multiprocessors(self) -> int:
        """The number of multiprocessors."""

    @property
    def shared_nbytes_limit(self) -> int:
        """The bytes of dynamic shared memory that a block can have."""

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return an uninitialized array on the device.

        Raises
        ------
        OutOfDeviceMemoryError
        """

    def empty_host(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Return an uninitialized array in pinned host memory, of exactly these bytes; they are freed with it.

        This takes milliseconds; see `pinned`.
        """

    def to_device(self, array: NDArray[Any], out: Array | None = None) -> Array:
        """Return a copy of a host array on the device: ``out``, if given, of the same shape and type.

        Raises
        ------
        OutOfDeviceMemoryError
        """

    def to_host(self, array: Array, out: NDArray[Any]) -> None:
        """Copy a device array into a host array of the same shape and type."""

    def copy(self, array: Array, out: Array) -> None:
        """Copy a device array into another one of the same shape, whose type it is converted to."""

    def launch(self, kernel: Kernel, n_blocks: int, arguments: tuple[Any, ...], shared_nbytes: int = 0) -> None:
        """Launch a kernel; arrays are on the device, scalars are NumPy's, each of exactly the kernel's type."""

    def record(self) -> Event:
        """Return the event of all operations so far."""

    def wait_for(self, stream: int) -> None:
        """Make all later operations wait for the current work of another stream, given by its handle.

        Unlike the other methods, this can be called by any thread at any time.
        """

    def synchronize(self) -> None:
        """Wait until all operations are done.

        Raises
        ------
        DeviceError
            If an operation failed; the message names the last kernel.
        """
