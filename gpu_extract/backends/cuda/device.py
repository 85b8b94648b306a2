"""What the GPU path needs of a device; CuPy gives it in `cuda`, and the tests give it on the CPU."""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray

from gpu_extract.backends.cuda.registry import Kernel

__all__ = ["Array", "Device", "OutOfDeviceMemoryError"]

Array = Any  # of the device: cupy.ndarray, or numpy.ndarray where the device is the CPU


class OutOfDeviceMemoryError(MemoryError):
    """The device has no room for an array."""


class Device(Protocol):
    """One stream of work on a device: what is asked of it happens later, in the order asked.

    A `Device` is used by one thread at a time. Arrays in host memory that it copies from or to must stay as they
    are until `synchronize`.
    """

    @property
    def multiprocessors(self) -> int:
        """How many multiprocessors run blocks side by side."""

    @property
    def shared_nbytes_limit(self) -> int:
        """Bytes of dynamic shared memory that a block may have."""

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """An array on the device, its content undefined.

        Raises
        ------
        OutOfDeviceMemoryError
        """

    def empty_host(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """An array in host memory that the device copies from and to at full speed, its content undefined."""

    def to_device(self, array: NDArray[Any]) -> Array:
        """A copy of a host array on the device.

        Raises
        ------
        OutOfDeviceMemoryError
        """

    def to_host(self, array: Array, out: NDArray[Any]) -> None:
        """Copy a device array into a host array of the same shape and type."""

    def launch(self, kernel: Kernel, n_blocks: int, arguments: tuple[Any, ...], shared_nbytes: int = 0) -> None:
        """Start a kernel; arrays are the device's, scalars NumPy's, each of exactly the type the kernel takes."""

    def synchronize(self) -> None:
        """Wait until all that was asked has happened.

        Raises
        ------
        DeviceError
            If something of it failed; the message names the last kernel.
        """
