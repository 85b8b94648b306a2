"""`Program`: the machine code of a kernel, which `run` executes on NumPy arrays."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from nvrtc import Cubin

from sass.building import build_simulator
from sass.disassembly import Instruction, disassemble
from sass.encoding import Counter, EncodedInstruction, Failure, Launch, Range
from sass.instructions import encode

__all__ = ["COUNTS", "MachineError", "Program", "Run"]

# Constant bank 0 of sm_90: size of the block and of the grid, the stack, and the parameters.
BLOCK_SIZE, GRID_SIZE, STACK, PARAMETERS = 0x0, 0xC, 0x28, 0x210
COUNTS = [name for name, _ in Counter._fields_]
# The instruction cache reads ahead; parameters are padded so that wide loads of them stay inside the bank.
PADDING = 16
# A multiprocessor of sm_90. Each block takes some shared memory for the system.
REGISTERS, MAX_THREADS, SHARED_NBYTES, SYSTEM_SHARED_NBYTES = 65536, 2048, 228 << 10, 1 << 10
# L1 cache and shared memory of a multiprocessor are one memory.
L1_AND_SHARED_NBYTES = 256 << 10


class MachineError(Exception):
    """A kernel did something that is an error on a GPU; the message names kernel, instruction and address."""


class Run(NamedTuple):
    """What a launch did: counts (instructions, `COUNTS`) and, if time was modelled, cycles of one multiprocessor."""

    counts: NDArray[np.int64]
    cycles: int | None


@cache
def _simulator() -> ctypes.CDLL:
    library = ctypes.CDLL(str(build_simulator()))
    library.sass_run.restype = ctypes.c_bool
    library.sass_instruction_nbytes.restype = ctypes.c_uint64
    assert library.sass_instruction_nbytes() == ctypes.sizeof(EncodedInstruction)
    return library


@cache
def _opcode(name: str) -> int:
    return _simulator().sass_opcode(name.encode())


@cache
def _flag(name: str) -> int:
    return _simulator().sass_flag(name.encode())


class Program:
    """A kernel as machine code; raises `UnknownInstructionError` if it has an instruction that is not known.

    Parameters
    ----------
    cubin : Cubin
    title : str
        The kernel's name in messages.
    """

    def __init__(self, cubin: Cubin, title: str) -> None:
        self.title = title
        self.instructions: list[Instruction]
        self.instructions, labels = disassemble(cubin.code, cubin.name)
        encoded = [encode(instruction, labels, _opcode, _flag) for instruction in self.instructions]
        _mark_loads_of_atomics(encoded)
        self._code = (EncodedInstruction * len(encoded))(*encoded)
        self.resources = cubin.resources

    def run(
        self,
        threads: int,
        blocks: int,
        arguments: Sequence[Any],
        shared_nbytes: int = 0,
        *,
        seed: int = 0,
        resident: int = 0,
    ) -> Run:
        """Run a launch: `blocks` blocks of `threads` threads with `shared_nbytes` bytes of dynamic shared memory.

        Parameters
        ----------
        arguments : sequence of arrays and NumPy scalars
            Arrays are read and written in place. A kernel may access nothing else.
        seed : int
            If it is not 0, warps run in random order.
        resident : int
            If it is not 0, time is modelled, with this many blocks at a time on one multiprocessor.

        Raises
        ------
        MachineError
        """
        constants = _constants(threads, blocks, arguments, self.resources.stack)
        ranges = _ranges(arguments)
        # Dynamic shared memory follows the static variables at a multiple of 16.
        static = self.resources.static_shared
        shared = -(-static // 16) * 16 + shared_nbytes if shared_nbytes else static
        launch = Launch(
            constants=ctypes.addressof(constants),
            constants_nbytes=len(constants),
            ranges=ctypes.addressof(ranges),
            n_ranges=len(ranges),
            threads=threads,
            blocks=blocks,
            shared_nbytes=shared,
            local_nbytes=self.resources.stack,
            seed=seed,
        )
        counters, failure, cycles = (Counter * len(self._code))(), Failure(), ctypes.c_uint64()
        l1_nbytes = max(0, L1_AND_SHARED_NBYTES - max(resident, 1) * (shared + SYSTEM_SHARED_NBYTES))
        good = _simulator().sass_run(
            self._code, ctypes.c_uint64(len(self._code)), ctypes.byref(launch), counters,
            ctypes.c_uint32(resident), ctypes.c_uint64(l1_nbytes), ctypes.byref(cycles), ctypes.byref(failure),
        )  # fmt: skip
        if not good:
            raise MachineError(self._message(failure))
        counts = np.frombuffer(counters, np.int64).reshape(len(self._code), len(COUNTS)).copy()
        return Run(counts, cycles.value if resident else None)

    def resident_blocks(self, threads: int, shared_nbytes: int) -> int:
        """Return how many blocks fit on a multiprocessor of sm_90, by threads, registers and shared memory."""
        registers = -(-self.resources.registers // 8) * 8 * threads
        shared = self.resources.static_shared + shared_nbytes + SYSTEM_SHARED_NBYTES
        return min(MAX_THREADS // threads, REGISTERS // registers, SHARED_NBYTES // shared)

    def _message(self, failure: Failure) -> str:
        """Return where and why the kernel failed, in one line."""
        why = failure.message.decode()
        if failure.instruction < 0:
            return f"{self.title}: {why}"
        instruction = self.instructions[failure.instruction]
        line = f" ({instruction.place})" if instruction.place else ""
        lane = f"lane {failure.lane} of " if failure.lane >= 0 else ""
        return (
            f"{self.title}: {instruction.text} at {instruction.address:#06x}{line} {why}; "
            f"{lane}warp {failure.warp} of block {failure.block}"
        )


def _mark_loads_of_atomics(code: list[EncodedInstruction]) -> None:
    """Mark the loads that begin an atomic operation which the compiler makes of a loop of load and compare-and-swap.

    Such a load needs no barrier: the swap fails if the value has changed. It loads what the swap compares with.
    """
    swaps = (_opcode("ATOMS.CAS"), _opcode("ATOMS.CAST.SPIN"))
    for number, swap in enumerate(code):
        for load in code[max(0, number - 16) : number] if swap.opcode in swaps else ():
            if load.opcode == _opcode("LDS") and load.operand[0].reg == swap.operand[2].reg:
                load.flags |= 1 << _flag("OF_ATOMIC")


def _constants(threads: int, blocks: int, arguments: Sequence[Any], stack: int) -> ctypes.Array[ctypes.c_char]:
    """Return constant bank 0."""
    parameters = b""
    for argument in arguments:
        value = struct.pack("<Q", argument.ctypes.data) if isinstance(argument, np.ndarray) else argument.tobytes()
        parameters += b"\0" * (-len(parameters) % len(value)) + value
    bank = bytearray(PARAMETERS) + parameters + bytes(PADDING)
    struct.pack_into("<3I", bank, BLOCK_SIZE, threads, 1, 1)
    struct.pack_into("<3I", bank, GRID_SIZE, blocks, 1, 1)
    struct.pack_into("<I", bank, STACK, stack)  # it grows downward
    return ctypes.create_string_buffer(bytes(bank), len(bank))


def _ranges(arguments: Sequence[Any]) -> ctypes.Array[Range]:
    """Return the arrays among the arguments."""
    arrays = [(number, each) for number, each in enumerate(arguments) if isinstance(each, np.ndarray)]
    assert all(array.flags.c_contiguous for _, array in arrays)
    found = [Range(array.ctypes.data, array.ctypes.data + array.nbytes, number) for number, array in arrays]
    return (Range * len(found))(*found)
