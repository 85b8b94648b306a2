"""The instructions that the simulator knows: their operands, and which of their modifiers matter.

What is not in the table is an error that names the instruction. It is never skipped.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from sass.disassembly import Instruction
from sass.encoding import COMBINATIONS, COMPARISONS, EncodedInstruction, EncodedOperand, Flag, Kind
from sass.operands import OperandError, parse_operand, split_operands

__all__ = ["UnknownInstructionError", "encode"]

SIZES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "32": 4, "64": 8, "128": 16}
LOAD = "size U8 S8 U16 S16 | E CONSTANT STRONG SM GPU SYS"
ATOMIC = "size S32 S64 | E U32 STRONG SM GPU SYS"

# Name: operands; modifiers that matter; after the bar, modifiers that do not change the result. Operands: p is a
# predicate, a anything else, ? may be missing, - is always missing, x is not used. `compare`, `combine` and `size`
# stand for COMPARISONS, COMBINATIONS and SIZES. The longest name counts.
TABLE = {
    "NOP": ("", ""),
    "YIELD": ("", ""),
    "ENDCOLLECTIVE": ("", ""),
    "DEPBAR": ("*", "*"),
    "ERRBAR": ("*", "*"),
    "MEMBAR": ("*", "*"),
    "CCTL": ("*", "*"),
    # Integers
    "MOV": ("a a", ""),
    "IADD3": ("a p? p? a a a p? p?", "X"),
    "VIADD": ("a a a", ""),
    "IMAD": ("a p? a a a p?", "X HI WIDE U32 | SHL MOV IADD"),
    "LEA": ("a p? a a - a p?", "X"),
    "LEA.HI": ("a p? a a a a p?", "HI X"),
    "LEA.HI.SX32": ("a p? a a - a p?", "HI X SX32"),
    "LEA.HI.X.SX32": ("a p? a a - a p?", "HI X SX32"),
    "LOP3": ("p? a a a a a p?", "| LUT"),
    "PLOP3": ("p p p p p a a", "| LUT"),
    "ISETP": ("p p a a p p?", "compare combine U32 EX"),
    "VIMNMX": ("a a a p", "U32"),
    "IMNMX": ("a a a p", "U32"),
    "VIMNMX3": ("a a a a p", "U32"),
    "VIADDMNMX": ("a a a a p", "U32"),
    "IABS": ("a a", ""),
    "SHF": ("a a a a", "L HI W U32 S32 U64 S64 | R"),
    "PRMT": ("a a a a", ""),
    "SEL": ("a a a p", ""),
    "BMSK": ("a a a", "W"),
    "SGXT": ("a a a", "W U32"),
    "FLO": ("a a", "U32 SH"),
    "POPC": ("a a", ""),
    "BREV": ("a a", ""),
    "P2R": ("a x a a", "| B1 B2 B3"),
    "R2P": ("x a a", ""),
    # Floats
    "FADD": ("a a a", "FTZ SAT"),
    "FMUL": ("a a a", "FTZ SAT"),
    "FFMA": ("a a a a", "FTZ SAT"),
    "FMNMX": ("a a a p", "FTZ NAN"),
    "FSEL": ("a a a p", ""),
    "FSETP": ("p p a a p", "compare combine FTZ"),
    "FCHK": ("p a a", ""),
    "MUFU.RCP": ("a a", ""),
    "MUFU.RSQ": ("a a", ""),
    "MUFU.EX2": ("a a", ""),
    "MUFU.LG2": ("a a", ""),
    "MUFU.SQRT": ("a a", ""),
    "MUFU.RCP64H": ("a a", ""),
    "MUFU.RSQ64H": ("a a", ""),
    "DADD": ("a a a", ""),
    "DMUL": ("a a a", "RP"),
    "DFMA": ("a a a a", ""),
    "DSETP": ("p p a a p", "compare combine"),
    "HADD2": ("a a a", ""),
    "HADD2.F32": ("a a a", ""),
    "HMUL2": ("a a a", ""),
    "HFMA2": ("a a a a", "| MMA"),
    # Conversions
    "I2F": ("a a", "U8 S8 U16 S16 U32 S32 RP"),
    "I2F.U64": ("a a", "RP"),
    "I2F.S64": ("a a", "S64 RP"),
    "I2F.F64": ("a a", "U8 S8 U16 S16 U32 S32"),
    "I2FP": ("a a", "U32 S32 | F32"),
    "F2I": ("a a", "U32 FLOOR CEIL TRUNC FTZ | NTZ"),
    "F2I.U64": ("a a", "U64 FLOOR CEIL TRUNC"),
    "F2I.S64": ("a a", "FLOOR CEIL TRUNC"),
    "F2I.F64": ("a a", "FLOOR CEIL TRUNC"),
    "F2I.U32.F64": ("a a", "U32 FLOOR CEIL TRUNC"),
    "F2F.F64.F32": ("a a", ""),
    "F2F.F32.F64": ("a a", ""),
    "F2F.F16.F32": ("a a", ""),
    "F2F.F16.F64": ("a a", ""),
    "F2FP.F16.F32": ("a a a", "| PACK_AB"),
    "FRND": ("a a", "FLOOR CEIL TRUNC FTZ"),
    "FRND.F64": ("a a", "FLOOR CEIL TRUNC"),
    # Warps
    "VOTE": ("a? p p", "ALL | ANY"),
    "MATCH": ("a a", "| ANY"),
    "REDUX.MIN": ("a a", "S32"),
    "REDUX.MAX": ("a a", "S32"),
    "REDUX.SUM": ("a a", "| S32"),
    "REDUX.OR": ("a a", ""),
    "REDUX": ("a a", ""),  # AND
    "REDUX.XOR": ("a a", ""),
    "SHFL.IDX": ("p a a a a", ""),
    "SHFL.UP": ("p a a a a", ""),
    "SHFL.DOWN": ("p a a a a", ""),
    "SHFL.BFLY": ("p a a a a", ""),
    "R2UR": ("a a", ""),
    "S2R": ("a a", ""),
    "CS2R": ("a a", ""),
    "CS2R.32": ("a a", ""),
    "LDC": ("a a", "size"),
    "B2R": ("a p", "| RESULT"),
    # Memory
    "LDS": ("a a", LOAD),
    "LDG": ("a a", LOAD),
    "LD": ("a a", LOAD),
    "STS": ("a a", LOAD),
    "STG": ("a a", LOAD),
    "ST": ("a a", LOAD),
    "LDL": ("a a", LOAD),
    "STL": ("a a", LOAD),
    **{f"ATOMS.{name}": ("a a a", ATOMIC) for name in ("ADD", "MIN", "MAX", "OR", "AND", "XOR", "EXCH")},
    "ATOMS.POPC.INC": ("a a", ATOMIC),
    "ATOMS.CAS": ("a a a a", ATOMIC),
    "ATOMS.CAST.SPIN": ("a a a a", ATOMIC),
    **{f"ATOMG.{name}": ("p a a a", ATOMIC) for name in ("ADD", "MIN", "MAX", "OR", "AND", "XOR", "EXCH")},
    "ATOMG.CAS": ("p a a a a", ATOMIC),
    **{f"REDG.{name}": ("a a", ATOMIC) for name in ("ADD", "MIN", "MAX", "OR", "AND", "XOR")},
    # Control
    "BPT.TRAP": ("*", ""),
    "EXIT": ("", ""),
    "BRA": ("p? a", ""),
    "BRA.DIV": ("a a", ""),
    "BSSY": ("a a", ""),
    "BREAK": ("p? a", ""),
    "BSYNC": ("a", ""),
    "WARPSYNC": ("a", ""),
    "WARPSYNC.ALL": ("", ""),
    "WARPSYNC.COLLECTIVE": ("a a", ""),
    "CALL.REL.NOINC": ("a", ""),
    "RET.REL.NODEC": ("a a", ""),
    "BAR.SYNC": ("a a?", "| DEFER_BLOCKING"),
    "BAR.RED.OR": ("a a? p", "| DEFER_BLOCKING"),
}
# Instructions for the scalar unit of a warp, by the name of the same instruction for lanes.
UNIFORM = {
    **{
        f"U{name}": name
        for name in (
            *("MOV", "IADD3", "VIADD", "IMAD", "LEA", "LOP3", "PLOP3", "ISETP", "VIMNMX", "SHF", "PRMT", "SEL"),
            *("BMSK", "SGXT", "FLO", "POPC", "BREV", "LDC"),
        )
    },
    "VOTEU": "VOTE",
    "S2UR": "S2R",
}
GLOBAL = ("LDG", "STG", "LD", "ST", "ATOMG", "REDG")
GUARD = re.compile(r"@(!?)(U?)P(\d|T)\s+")


class UnknownInstructionError(Exception):
    """The machine code has an instruction, a modifier or an operand that the simulator does not know."""


def encode(
    instruction: Instruction, labels: dict[str, int], opcode_of: Callable[[str], int], flag_of: Callable[[str], int]
) -> EncodedInstruction:
    """Return an instruction as the simulator takes it.

    Parameters
    ----------
    instruction : Instruction
    labels : dict
        The index of the instruction at each label.
    opcode_of, flag_of : callable
        The numbers that the simulator gives to names of instructions and of modifiers; -1 if it has none.

    Raises
    ------
    UnknownInstructionError
        Names the instruction with its encoding.
    """
    try:
        return _encode(instruction, labels, opcode_of, flag_of)
    except (LookupError, OperandError) as error:
        reason = error.args[0]
        raise UnknownInstructionError(
            f"{instruction.text} at {instruction.address:#06x}, encoding {instruction.encoding:#034x}: {reason}; "
            "add it to tests/sass/instructions.py and tests/sass/machine/opcodes.cpp"
        ) from None


def _encode(
    instruction: Instruction, labels: dict[str, int], opcode_of: Callable[[str], int], flag_of: Callable[[str], int]
) -> EncodedInstruction:
    encoded = EncodedInstruction(address=instruction.address, guard=7)
    text = instruction.text
    if guard := GUARD.match(text):
        text = text[guard.end() :]
        encoded.guard_inverted, encoded.guard_uniform = bool(guard[1]), bool(guard[2])
        encoded.guard = 7 if guard[3] == "T" else int(guard[3])
    name, _, operands = text.partition(" ")
    base, *modifiers = name.split(".")
    uniform = base in UNIFORM
    base = UNIFORM.get(base, base)
    if base in GLOBAL:
        modifiers = [modifier for modifier in modifiers if modifier != "E"]
    row = _longest(base, modifiers, lambda each: each in TABLE)
    opcode = _longest(base, modifiers, lambda each: opcode_of(each) >= 0)
    encoded.opcode = opcode_of(opcode)
    _set_modifiers(encoded, modifiers, opcode.split(".")[1:], TABLE[row][1], flag_of)
    if uniform:
        encoded.flags |= 1 << flag_of("UNIFORM_DATAPATH")
    parsed = [parse_operand(each, labels, double=_is_double(base, modifiers)) for each in _texts(base, operands)]
    for number, operand in enumerate(_arranged(parsed, TABLE[row][0])):
        if operand.kind == Kind.ADDRESS and base in GLOBAL and not operand.flags & Flag.OFFSET_32:
            operand.flags |= Flag.ADDRESS_64
        encoded.operand[number] = operand
    if base == "P2R":
        encoded.operand[0].part = next((4 + k for k in (1, 2, 3) if f"B{k}" in modifiers), 0)
    _set_schedule(encoded, instruction.encoding)
    return encoded


def _longest(base: str, modifiers: list[str], known: Callable[[str], bool]) -> str:
    """Return the longest known name."""
    names = [".".join([base, *modifiers[:n]]) for n in range(len(modifiers), -1, -1)]
    for name in names:
        if known(name):
            return name
    raise LookupError("the instruction is not known")


def _set_modifiers(
    encoded: EncodedInstruction, modifiers: list[str], in_name: list[str], allowed: str, flag_of: Callable[[str], int]
) -> None:
    """Set what the modifiers say; those of the opcode's own name are known already."""
    matters, ignored = (part.split() for part in allowed.partition("|")[::2])
    encoded.nbytes = 4
    for modifier in modifiers:
        is_size = "size" in matters and modifier in SIZES
        if "compare" in matters and modifier in COMPARISONS:
            encoded.compare = COMPARISONS.index(modifier)
        elif "combine" in matters and modifier in COMBINATIONS:
            encoded.combine = COMBINATIONS.index(modifier)
        elif is_size or modifier in matters or modifier in in_name:
            if is_size:
                encoded.nbytes = SIZES[modifier]
            if flag_of(modifier) >= 0:
                encoded.flags |= 1 << flag_of(modifier)
        elif modifier not in ignored and allowed != "*":
            raise LookupError(f"the modifier {modifier} is not known")


def _is_double(base: str, modifiers: list[str]) -> bool:
    """Return whether the immediates of an instruction are doubles."""
    return (
        base in ("DADD", "DMUL", "DFMA", "DSETP")
        or (base in ("F2I", "FRND") and "F64" in modifiers)
        or (base == "F2F" and modifiers[1:2] == ["F64"])
        or (base == "MUFU" and modifiers[0].endswith("64H"))
    )


def _texts(base: str, operands: str) -> list[str]:
    """Return the texts of the operands; two halves become one immediate."""
    if base == "RET":
        operands = operands.replace(" `", ", `")
    texts = split_operands(operands)
    two_numbers = len(texts) > 2 and all(re.match(r"[-+]?[\d.]", each) for each in texts[-2:])
    if base in ("HADD2", "HMUL2", "HFMA2") and two_numbers:
        high, low = (int(np.float16(float(each)).view(np.uint16)) for each in texts[-2:])
        texts = [*texts[:-2], hex(high << 16 | low)]
    return texts


def _arranged(operands: list[EncodedOperand], pattern: str) -> list[EncodedOperand]:
    """Return the operands at the places that the pattern gives them; see `TABLE`."""
    if pattern == "*":
        return []
    rest, placed = list(operands), []
    for place in pattern.split():
        is_predicate = bool(rest) and rest[0].kind in (Kind.PREDICATE, Kind.UNIFORM_PREDICATE)
        if place == "-" or (place.endswith("?") and (not rest or is_predicate != (place[0] == "p"))):
            placed.append(EncodedOperand())
        elif not rest or (place[0] == "p") != is_predicate:
            raise LookupError(f"its operands are not {pattern}")
        else:
            operand = rest.pop(0)
            placed += [] if place == "x" else [operand]
    if rest:
        raise LookupError(f"it has more operands than {pattern}")
    return placed


def _set_schedule(encoded: EncodedInstruction, encoding: int) -> None:
    """Set what the compiler decided about scheduling: 21 bits at the end of the encoding."""
    control = encoding >> 105
    encoded.stall = control & 15
    encoded.write_counter = control >> 5 & 7
    encoded.read_counter = control >> 8 & 7
    encoded.wait_counters = control >> 11 & 63
