"""The text of our CUDA kernels: where the files are, and one file made of a kernel and what it includes.

NVRTC is given one text, because CuPy's cache of compiled kernels does not see the files that a text includes.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from gpu_extract.errors import DeviceError

__all__ = ["fingerprint", "kernel_files", "kernel_source"]

PACKAGE = Path(__file__).parents[2]
# Installed, then in the checkout. Beside an installed package, `kernels` may be another project's: see _folder.
FOLDERS = (PACKAGE / "kernels", PACKAGE.parent / "kernels")

INCLUDE = re.compile(r'\s*#\s*include\s+"([^"]+)"')
PRAGMA_ONCE = re.compile(r"\s*#\s*pragma\s+once\b")


def kernel_source(name: str) -> str:
    """The text of ``kernels/<name>.cu`` with each of our own included files in the place of its first ``#include``.

    ``#include <...>`` stays. ``#line`` makes the compiler name the real file and line.

    Raises
    ------
    DeviceError
        If the kernel files are not installed.
    FileNotFoundError
        If there is no such file among them.
    """
    return "".join(_spliced(_folder(), f"{name}.cu", set()))


def kernel_files() -> tuple[Path, ...]:
    """All our CUDA files (``*.cu``, ``*.cuh``), sorted by name."""
    folder = _folder()
    return tuple(sorted([*folder.glob("*.cu"), *folder.glob("*.cuh")]))


def fingerprint() -> dict[str, str]:
    """The SHA-256 of each CUDA file, by file name: what a measurement on a GPU was made with."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in kernel_files()}


def _folder() -> Path:
    for folder in FOLDERS:
        if any(folder.glob("*.cu")):
            return folder
    raise DeviceError(f"no CUDA kernels in {FOLDERS[0]}; the installation is incomplete, install gpu-extract again")


def _spliced(folder: Path, file: str, seen: set[str]) -> list[str]:
    """The lines of a file; `seen` collects the files already spliced."""
    seen.add(file)
    lines = [f'#line 1 "{file}"\n']
    for number, line in enumerate((folder / file).read_text(encoding="utf-8").splitlines(), start=1):
        include = INCLUDE.match(line)
        if include and include[1] not in seen:
            lines += [*_spliced(folder, include[1], seen), f'#line {number + 1} "{file}"\n']
        elif include or PRAGMA_ONCE.match(line):
            lines.append("\n")  # keeps the count of lines
        else:
            lines.append(f"{line}\n")
    return lines
