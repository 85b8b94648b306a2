"""`CpuModule`: `cupy.RawModule` for NumPy arrays on the CPU, with stricter checks of arguments."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from functools import cache

import numpy as np

from cuda_on_cpu.building import build_kernels, build_runtime

__all__ = ["CpuKernel", "CpuModule", "KernelError"]

ORDERS = ("forward", "reverse", "shuffled")
GRID_LIMITS = (2**31 - 1, 65535, 65535)
BLOCK_LIMITS = (1024, 1024, 64)
THREADS_LIMIT = 1024
SHARED_DEFAULT = 48 << 10  # bytes of dynamic shared memory that a kernel can have by default
# The maximum of all devices; tests/nvrtc.py has the maximum of each architecture.
SHARED_LIMIT = 227 << 10


class KernelError(Exception):
    """An error in a kernel; the message names the line, the block and the thread."""


class ShimLaunch(ctypes.Structure):
    """The struct of this name in shim_launch.h."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint64),
        ("order", ctypes.c_uint),
        ("seed", ctypes.c_uint),
        ("threads", ctypes.c_uint),
    )


@cache
def _load_runtime(sanitize: str | None) -> ctypes.CDLL:
    # Global, so that the kernels' libraries find the scheduler's functions.
    return ctypes.CDLL(str(build_runtime(sanitize)), mode=ctypes.RTLD_GLOBAL)


class CpuModule:
    """Kernels compiled for the CPU.

    Parameters
    ----------
    source : str
        CUDA C++ without ``#include`` of our own files, as `kernel_source` returns it.
    name_expressions : sequence of str
        The kernels, as for CuPy: ``"count"``, ``"extract<float, unsigned short>"``.
    sanitize : {None, "thread", "address"}
        For the child process of `run_checked`, which preloads the sanitizer.
    order, seed, threads
        See `config`.
    fuse : bool
        Whether the compiler fuses multiplications and additions, as NVRTC does (not always the same ones).
    """

    def __init__(
        self,
        source: str,
        name_expressions: Sequence[str],
        *,
        sanitize: str | None = None,
        order: str = "forward",
        seed: int = 1,
        threads: int = 1,
        fuse: bool = True,
    ) -> None:
        self.source = source
        self.names = tuple(name_expressions)
        self.sanitize = sanitize
        self.config(order=order, seed=seed, threads=threads)
        _load_runtime(sanitize)
        self._library = ctypes.CDLL(str(build_kernels(source, self.names, sanitize, fuse=fuse)))

    def config(self, *, order: str = "forward", seed: int = 1, threads: int = 1) -> None:
        """Set the order of threads and blocks, its seed, and the number of blocks that run concurrently."""
        if order not in ORDERS:
            raise ValueError(f"order is {order!r}; it must be one of {ORDERS}")
        if threads < 1 or (self.sanitize and threads > 1):
            raise ValueError(f"threads is {threads}; it must be positive, and 1 with a sanitizer")
        self.order, self.seed, self.threads = order, seed, threads

    def get_function(self, name: str) -> CpuKernel:
        """Return the kernel of a name expression."""
        return CpuKernel(self, name, self.names.index(name))


class CpuKernel:
    """A kernel; call it with a grid, a block and the arguments.

    As in CuPy, more than 48 KiB of dynamic shared memory must be requested by `max_dynamic_shared_size_bytes`.
    """

    def __init__(self, module: CpuModule, name: str, number: int) -> None:
        self.name = name
        self.max_dynamic_shared_size_bytes = SHARED_DEFAULT
        self._module = module
        self._launch = module._library[f"shim_launch_{number}"]
        text = ctypes.create_string_buffer(4096)
        module._library[f"shim_signature_{number}"](text)
        self.signature = tuple(text.value.decode().split())
        self._parameters = _parameter_names(module.source, name, len(self.signature))

    def __call__(self, grid, block, args, shared_mem=0, *, order=None, seed=None):
        """Run the kernel.

        Parameters
        ----------
        grid, block : tuple of int
            One to three numbers each.
        args : sequence of ndarray and NumPy scalars
            Of exactly the kernel's types; arrays are C-contiguous.
        shared_mem : int
            Bytes of dynamic shared memory.
        order, seed
            By default those of the module.

        Raises
        ------
        TypeError, ValueError
            If a GPU would misread an argument or reject the launch.
        KernelError
            If the kernel has an error.
        """
        module = self._module
        grid = _extent("grid", grid, GRID_LIMITS)
        block = _extent("block", block, BLOCK_LIMITS)
        if np.prod(block) > THREADS_LIMIT:
            raise ValueError(f"{self.name}: block {block} has {np.prod(block)} threads; the limit is {THREADS_LIMIT}")
        allowed = min(self.max_dynamic_shared_size_bytes, SHARED_LIMIT)
        if not 0 <= shared_mem <= allowed:
            raise ValueError(
                f"{self.name}: shared_mem is {shared_mem} bytes; the kernel may have {allowed} "
                f"(max_dynamic_shared_size_bytes, at most {SHARED_LIMIT})"
            )
        held = self._checked(args)
        pointers = (ctypes.c_void_p * len(held))(*(ctypes.addressof(value) for value in held))
        shape = ShimLaunch(
            grid,
            block,
            shared_mem,
            ORDERS.index(order or module.order),
            module.seed if seed is None else seed,
            module.threads,
        )
        message = ctypes.create_string_buffer(2048)
        if self._launch(ctypes.byref(shape), pointers, message, ctypes.c_size_t(len(message))):
            raise KernelError(message.value.decode())

    def _checked(self, args):
        """Return the arguments as C values: the address of an array, the bytes of a scalar."""
        if len(args) != len(self.signature):
            raise TypeError(f"{self.name} takes {len(self.signature)} arguments {self.signature}; {len(args)} given")
        held = []
        for number, (value, code) in enumerate(zip(args, self.signature, strict=True)):
            where = f"{self.name}: argument {number} ({self._parameters[number]})"
            if isinstance(value, np.ndarray):
                _check_array(where, value, code)
                held.append(ctypes.c_void_p(value.ctypes.data))
            elif isinstance(value, np.generic):
                _check_scalar(where, value, code)
                held.append(ctypes.create_string_buffer(value.tobytes(), value.itemsize))
            else:
                raise TypeError(f"{where} is a {type(value).__name__}; it must be a NumPy array or a NumPy scalar")
        return held


def _extent(what, numbers, limits):
    numbers = (*numbers, 1, 1)[: max(3, len(numbers))]
    if len(numbers) != 3 or not all(0 < number <= limit for number, limit in zip(numbers, limits, strict=False)):
        raise ValueError(f"{what} is {numbers}; it must be up to three numbers from 1 to {limits}")
    return tuple(int(number) for number in numbers)


def _code(dtype: np.dtype) -> str:
    return f"{dtype.kind}{dtype.itemsize}"


def _check_array(where: str, array: np.ndarray, code: str) -> None:
    given = _code(array.dtype)
    wanted = code.lstrip("*c")
    if not code.startswith("*"):
        raise TypeError(f"{where} is an array; the kernel takes a number ({code})")
    if wanted[0] == "V":  # a struct, or void: any whole number of elements
        if array.nbytes % max(1, int(wanted[1:])):
            raise TypeError(f"{where} has {array.nbytes} bytes; the kernel takes structs of {wanted[1:]}")
    elif given != wanted and (given, wanted) != ("b1", "u1"):  # every bool is a valid byte, but not vice versa
        raise TypeError(f"{where} is an array of {given}; the kernel takes {wanted}")
    if not array.dtype.isnative or not array.flags.c_contiguous:
        raise TypeError(f"{where} is not C-contiguous in native byte order")
    if not array.flags.writeable and not code.startswith("*c"):
        raise TypeError(f"{where} is read-only; the kernel may write to it")


def _check_scalar(where: str, value: np.generic, code: str) -> None:
    given = _code(value.dtype)
    if given != code:
        raise TypeError(f"{where} is a number of {given}; the kernel takes {code}")


def _parameter_names(source: str, name: str, count: int) -> list[str]:
    """Return the names of a kernel's parameters for messages, or their numbers if parsing the source fails."""
    source = re.sub(r"//[^\n]*|/\*.*?\*/", " ", source, flags=re.DOTALL)
    function = re.escape(name.partition("<")[0].rpartition("::")[2].strip())
    for found in re.finditer(rf"\b{function}\s*\(([^()]*)\)\s*\{{", source):
        names = [re.split(r"[\s*&]+", part.strip())[-1] for part in found[1].split(",")]
        if len(names) == count:
            return names
    return [f"number {number}" for number in range(count)]
