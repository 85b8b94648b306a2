"""The machine code of a kernel as a list of instructions, by NVIDIA's disassembler `nvdisasm`."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["DisassemblyError", "Frame", "Instruction", "disassemble", "find_nvdisasm"]

OPTIONS = ("--print-code", "--print-instruction-encoding", "--print-line-info-inline")
SECTION = re.compile(r"\s*\.section\s+(\S+?),")
LABEL = re.compile(r"([.$\w]+):\s*$")
SOURCE = re.compile(r'\s*//## File "([^"]+)", line (\d+)(?: inlined at "([^"]+)", line (\d+))?')
INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]+)\*/\s+(.*?)\s*;\s*/\* 0x([0-9a-f]{16}) \*/")
COMMENT = re.compile(r"\s*\(\*.*?\*\)")  # what the disassembler knows about an instruction
SECOND_WORD = re.compile(r"\s+/\* 0x([0-9a-f]{16}) \*/")


class DisassemblyError(Exception):
    """The disassembler is missing, or prints something unexpected."""


@dataclass(frozen=True)
class Frame:
    """A line of source code."""

    file: str
    line: int


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes
    ----------
    address : int
        Byte offset in the function.
    text : str
        With guard, name and operands, such as ``@!P0 IADD3 R1, R2, R3, RZ``.
    encoding : int
        128 bits, the first word in the lower half.
    frames : tuple of Frame
        The source line, and the lines at which its function and the functions around it were inlined.
    """

    address: int
    text: str
    encoding: int
    frames: tuple[Frame, ...]

    @property
    def place(self) -> str:
        """The source line as ``file:line``; empty if it is not known."""
        return f"{self.frames[0].file}:{self.frames[0].line}" if self.frames else ""


@cache
def find_nvdisasm() -> str:
    """Return the path of the disassembler: of the wheel ``nvidia-cuda-nvdisasm``, or of a CUDA toolkit.

    Raises
    ------
    DisassemblyError
    """
    spec = importlib.util.find_spec("nvidia")
    roots = (spec.submodule_search_locations or ()) if spec else ()
    wheels = [path for root in roots for path in Path(root).glob("*/bin/nvdisasm")]
    found = str(wheels[0]) if wheels else shutil.which("nvdisasm")
    if not found:
        raise DisassemblyError("nvdisasm is missing: pip install nvidia-cuda-nvdisasm")
    return found


def disassemble(cubin: bytes, kernel: str) -> tuple[list[Instruction], dict[str, int]]:
    """Return the instructions of a kernel by its mangled name, and its labels as indices of instructions."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([find_nvdisasm(), *OPTIONS, file.name], capture_output=True, text=True)
    if done.returncode:
        raise DisassemblyError(done.stderr.strip())
    instructions, labels = parse(section(done.stdout.splitlines(), f".text.{kernel}"))
    if not instructions:
        raise DisassemblyError(f"the cubin has no kernel {kernel}")
    return instructions, labels


def section(lines: list[str], name: str) -> Iterator[str]:
    """Yield the lines of a section."""
    inside = False
    for line in lines:
        header = SECTION.match(line)
        if header:
            inside = header[1] == name
        elif inside:
            yield line


def parse(lines: Iterator[str]) -> tuple[list[Instruction], dict[str, int]]:
    """Return the instructions and labels in the lines of a section."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    # Source lines hold until the next ones; `new` is whether the next source line begins a new list.
    frames: list[Frame] = []
    new = True
    first: re.Match[str] | None = None
    for line in lines:
        if label := LABEL.match(line):
            labels[label[1]] = len(instructions)
            if label[1].startswith("$"):  # a function of NVIDIA's library
                frames, new = [], True
        elif source := SOURCE.match(line):
            frames = [] if new else frames
            frames.append(Frame(source[1].rpartition("/")[2], int(source[2])))
            new = False
        elif first and (second := SECOND_WORD.match(line)):
            encoding = int(second[1], 16) << 64 | int(first[3], 16)
            text = COMMENT.sub("", first[2])
            instructions.append(Instruction(int(first[1], 16), text, encoding, tuple(frames)))
            first, new = None, True
        else:
            first = INSTRUCTION.match(line) or first
    return instructions, labels
