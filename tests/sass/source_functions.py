"""The functions of the CUDA sources by line, to say of an instruction which part of a kernel it belongs to."""

from __future__ import annotations

import re
from functools import cache

from gpu_extract.backends.cuda.source import kernel_files
from sass.disassembly import Instruction

__all__ = ["functions_in", "stage"]

# Functions that are inlined in the kernel, one within the other, whose names make the name of a stage.
DEPTH = 2
NOT_PART_OF_A_NAME = re.compile(r"//.*$|__launch_bounds__\s*\([^()]*\)|\btemplate\s*<.*?>(?=\s)")
NAME = re.compile(r"struct\s+(\w+)|(\w+)\s*(?:<[^<>()]*>)?\s*\(")


def stage(instruction: Instruction) -> str:
    """Return the part of a kernel that an instruction belongs to: the outermost functions inlined in the kernel."""
    names: list[str] = []
    for frame in reversed(instruction.frames):
        name = _functions_of(frame.file).get(frame.line)
        if name and name not in names:
            names.append(name)
    if not names:
        return "NVIDIA's library"
    return " / ".join(names[1 : 1 + DEPTH]) or "kernel"


@cache
def _functions_of(file: str) -> dict[int, str]:
    """Return the name of the function or struct at each line of a file in ``kernels/``."""
    paths = {path.name: path for path in kernel_files()}
    return functions_in(paths[file].read_text(encoding="utf-8")) if file in paths else {}


def functions_in(text: str) -> dict[int, str]:
    """Return the name of the function or struct at each line of a source.

    A definition begins in the first column. It ends on the same line, or with a brace in the first column.
    """
    names: dict[int, str] = {}
    definition, begin = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        if not definition and re.match(r"\w", line):
            begin = number
        elif not definition:
            continue
        definition += " " + NOT_PART_OF_A_NAME.sub("", line).rstrip()
        ends_here = definition.endswith((";", "}")) and (begin == number or "{" not in definition)
        if ends_here or line.startswith("}"):
            name = NAME.search(definition)
            if name and "{" in definition:
                names.update(dict.fromkeys(range(begin, number + 1), name[1] or name[2]))
            definition = ""
    return names
