"""The structures of ``machine/machine.h``: how operands and instructions are passed to the simulator."""

from __future__ import annotations

import ctypes
from enum import IntEnum, IntFlag

__all__ = [
    "COMBINATIONS",
    "COMPARISONS",
    "NO_REGISTER",
    "NO_UNIFORM",
    "SPECIAL_REGISTERS",
    "ZERO_REGISTERS",
    "Counter",
    "EncodedInstruction",
    "EncodedOperand",
    "Failure",
    "Flag",
    "Kind",
    "Launch",
    "Range",
]

NO_REGISTER, NO_UNIFORM = 255, 63
OPERANDS = 9


class Kind(IntEnum):
    """What an operand is."""

    NONE = 0
    REGISTER = 1
    UNIFORM = 2
    IMMEDIATE = 3
    CONSTANT = 4
    PREDICATE = 5
    UNIFORM_PREDICATE = 6
    ADDRESS = 7
    LABEL = 8
    SPECIAL = 9
    BARRIER = 10


class Flag(IntFlag):
    """What is done to an operand before it is used; how an address is made."""

    NEGATIVE = 1
    ABSOLUTE = 2
    INVERTED = 4
    ADDRESS_64 = 8
    OFFSET_32 = 16


SPECIAL_REGISTERS = ("SR_TID.X", "SR_CTAID.X", "SR_LANEID", "SR_SWINHI", "SRZ", "SR_LTMASK")
# Always 0: blocks and grids have one dimension, and clusters have one block.
ZERO_REGISTERS = ("SR_CgaCtaId", "SR_TID.Y", "SR_TID.Z", "SR_CTAID.Y", "SR_CTAID.Z")
COMPARISONS = ("F", "LT", "EQ", "LE", "GT", "NE", "GE", "NUM", "NAN", "LTU", "EQU", "LEU", "GTU", "NEU", "GEU", "T")
COMBINATIONS = ("AND", "OR", "XOR")


class EncodedOperand(ctypes.Structure):
    """`Operand`."""

    _fields_ = [
        ("kind", ctypes.c_int32),
        ("flags", ctypes.c_int32),
        ("reg", ctypes.c_int32),
        ("value", ctypes.c_uint32),
        ("base", ctypes.c_int32),
        ("part", ctypes.c_int32),
    ]


class EncodedInstruction(ctypes.Structure):
    """`Instruction`."""

    _fields_ = [
        ("opcode", ctypes.c_int32),
        ("address", ctypes.c_int32),
        ("flags", ctypes.c_uint64),
        ("compare", ctypes.c_int32),
        ("combine", ctypes.c_int32),
        ("nbytes", ctypes.c_int32),
        ("guard", ctypes.c_int32),
        ("guard_inverted", ctypes.c_int32),
        ("guard_uniform", ctypes.c_int32),
        ("stall", ctypes.c_int32),
        ("write_counter", ctypes.c_int32),
        ("read_counter", ctypes.c_int32),
        ("wait_counters", ctypes.c_int32),
        ("operand", EncodedOperand * OPERANDS),
        ("unused", ctypes.c_int32),
    ]


class Range(ctypes.Structure):
    """`Range`: an array that a kernel may access."""

    _fields_ = [("begin", ctypes.c_uint64), ("end", ctypes.c_uint64), ("argument", ctypes.c_uint64)]


class Launch(ctypes.Structure):
    """`Launch`."""

    _fields_ = [
        ("constants", ctypes.c_uint64),
        ("constants_nbytes", ctypes.c_uint64),
        ("ranges", ctypes.c_uint64),
        ("n_ranges", ctypes.c_uint64),
        ("threads", ctypes.c_uint32),
        ("blocks", ctypes.c_uint32),
        ("shared_nbytes", ctypes.c_uint32),
        ("local_nbytes", ctypes.c_uint32),
        ("seed", ctypes.c_uint32),
        ("unused", ctypes.c_uint32),
    ]


class Counter(ctypes.Structure):
    """`Counter`."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in ("warps", "lanes", "shared_wavefronts", "bank_conflicts", "sectors_read", "sectors_written")
    ]


class Failure(ctypes.Structure):
    """`Failure`."""

    _fields_ = [
        ("instruction", ctypes.c_int32),
        ("block", ctypes.c_int32),
        ("warp", ctypes.c_int32),
        ("lane", ctypes.c_int32),
        ("message", ctypes.c_char * 512),
    ]
