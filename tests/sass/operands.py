"""Operands as the disassembler prints them, such as ``-R3.reuse``, ``c[0x0][0x210]`` or ``desc[UR4][R2.64+0x10]``."""

from __future__ import annotations

import re
import struct

import numpy as np

from sass.encoding import NO_REGISTER, NO_UNIFORM, SPECIAL_REGISTERS, ZERO_REGISTERS, EncodedOperand, Flag, Kind

__all__ = ["OperandError", "parse_operand", "split_operands"]

PARTS = {"H0_H0": 1, "H1_H1": 2, "H0": 1, "H1": 2, "B0": 4, "B1": 5, "B2": 6, "B3": 7}
REGISTER = re.compile(r"(U?)R(\d+|Z)(?:\.(H0_H0|H1_H1|H0|H1|B0|B1|B2|B3))?$")
PREDICATE = re.compile(r"(U?)P(\d|T)$")
BARRIER = re.compile(r"B(\d+)$")
CONSTANT = re.compile(r"c\[0x0\]\[(R\d+|RZ)?\+?(0x[0-9a-f]+)?\]$")
LABEL = re.compile(r"`\((.*)\)$")
ADDRESS = re.compile(r"(?:desc\[UR\d+\])?\[(.*)\]$")
ADDRESS_TERM = re.compile(r"(U?)R(\d+|Z)(\.64|\.U32)?$")
NUMBERS = {"+INF": np.inf, "INF": np.inf, "-INF": -np.inf}
NANS = {"+QNAN": 0x7FFFFFFF, "QNAN": 0x7FFFFFFF, "-QNAN": 0xFFFFFFFF}


class OperandError(ValueError):
    """An operand that the simulator does not know."""


def split_operands(text: str) -> list[str]:
    """Split operands at the commas that are not in brackets."""
    return [part.strip() for part in re.split(r",(?![^\[(]*[\])])", text) if part.strip()]


def parse_operand(text: str, labels: dict[str, int], *, double: bool = False) -> EncodedOperand:
    """Return an operand; decimal numbers are floats or, with ``double``, the upper halves of doubles."""
    rest, flags = _strip_signs(text.replace(".reuse", ""))
    operand = EncodedOperand(flags=flags, reg=NO_REGISTER, base=NO_UNIFORM)
    if match := REGISTER.match(rest):
        operand.kind = Kind.UNIFORM if match[1] else Kind.REGISTER
        operand.reg = _number(match[2], NO_UNIFORM if match[1] else NO_REGISTER)
        operand.part = PARTS[match[3]] if match[3] else 0
    elif match := PREDICATE.match(rest):
        operand.kind = Kind.UNIFORM_PREDICATE if match[1] else Kind.PREDICATE
        operand.reg = 7 if match[2] == "T" else int(match[2])
    elif match := BARRIER.match(rest):
        operand.kind, operand.reg = Kind.BARRIER, int(match[1])
    elif match := CONSTANT.match(rest):
        operand.kind, operand.value = Kind.CONSTANT, int(match[2] or "0", 16)
        operand.reg = NO_REGISTER if match[1] in (None, "RZ") else int(match[1][1:])
    elif match := LABEL.match(rest):
        operand.kind, operand.reg = Kind.LABEL, _label(match[1], labels)
    elif match := ADDRESS.match(rest):
        _parse_address(operand, match[1])
    elif rest in (*SPECIAL_REGISTERS, *ZERO_REGISTERS):
        operand.kind = Kind.SPECIAL
        operand.reg = SPECIAL_REGISTERS.index(rest if rest in SPECIAL_REGISTERS else "SRZ")
    elif rest == "PR":  # all predicates
        operand.kind = Kind.SPECIAL
    else:
        operand.kind, operand.value = Kind.IMMEDIATE, _immediate(rest, double=double)
    return operand


def _strip_signs(text: str) -> tuple[str, int]:
    """Return an operand without ``-``, ``|x|``, ``!`` and ``~``, and the flags that they mean."""
    flags = 0
    if text.startswith(("!", "~")):
        text, flags = text[1:], flags | Flag.INVERTED
    if re.match(r"-[|URc]", text):
        text, flags = text[1:], flags | Flag.NEGATIVE
    if re.match(r"\|.*\|$", text):
        text, flags = text[1:-1], flags | Flag.ABSOLUTE
    return text, flags


def _number(digits: str, zero: int) -> int:
    return zero if digits == "Z" else int(digits)


def _label(name: str, labels: dict[str, int]) -> int:
    if name not in labels:
        raise OperandError(f"the label {name} is not in the kernel")
    return labels[name]


def _parse_address(operand: EncodedOperand, text: str) -> None:
    """Set an operand to the address ``R2.64+UR4+0x10``."""
    operand.kind = Kind.ADDRESS
    offset = 0
    for term in text.replace("+-", "+ -").split("+"):
        match = ADDRESS_TERM.match(term)
        if not match:
            offset += int(term.replace(" ", ""), 16)
        elif match[1]:
            operand.base = _number(match[2], NO_UNIFORM)
        else:
            operand.reg = _number(match[2], NO_REGISTER)
            operand.flags |= {".64": Flag.ADDRESS_64, ".U32": Flag.OFFSET_32, None: 0}[match[3]]
    operand.value = offset & 0xFFFFFFFF


def _immediate(text: str, *, double: bool) -> int:
    if re.match(r"-?0x[0-9a-f]+$", text):
        return int(text, 16) & 0xFFFFFFFF
    if text in NANS:
        return NANS[text] & 0xFFF80000 if double else NANS[text]
    try:
        number = NUMBERS.get(text) or float(text)
    except ValueError:
        raise OperandError(f"the operand {text} is not known") from None
    if double:
        return struct.unpack("<Q", struct.pack("<d", number))[0] >> 32
    return struct.unpack("<I", struct.pack("<f", np.float32(number)))[0]
