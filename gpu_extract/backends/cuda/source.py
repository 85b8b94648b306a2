"""The source of the CUDA kernels: where the files are, and one text of a kernel and the files it includes.

NVRTC gets one text, because CuPy's cache of compiled kernels does not see included files.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from gpu_extract.errors import DeviceError

__all__ = ["fingerprint", "kernel_files", "kernel_source"]

PACKAGE = Path(__file__).parents[2]
# Installed, or in a checkout. Next to an installed package, `kernels` can be another project's: see _folder.
FOLDERS = (PACKAGE / "kernels", PACKAGE.parent / "kernels")

INCLUDE = re.compile(r'\s*#\s*include\s+"([^"]+)"')
PRAGMA_ONCE = re.compile(r"\s*#\s*pragma\s+once\b")


def kernel_source(name: str) -> str:
    """Return the text of ``kernels/<name>.cu``, each of our own files inserted at its first ``#include``.

    ``#include <...>`` is left as it is. ``#line`` makes the compiler report the original file and line.

    Raises
    ------
    DeviceError
        If the kernel files are not installed.
    FileNotFoundError
        If there is no such file.
    """
    return "".join(_spliced(_folder(), f"{name}.cu", set()))


def kernel_files() -> tuple[Path, ...]:
    """Return the paths of all our CUDA files (``*.cu``, ``*.cuh``), sorted by name."""
    folder = _folder()
    return tuple(sorted([*folder.glob("*.cu"), *folder.glob("*.cuh")]))


def fingerprint() -> dict[str, str]:
    """Return the SHA-256 of each CUDA file by name, to identify the code of a measurement."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in kernel_files()}


def _folder() -> Path:
    for folder in FOLDERS:
        if any(folder.glob("*.cu")):
            return folder
    raise DeviceError(f"no CUDA kernels in {FOLDERS[0]}; the installation is incomplete, install gpu-extract again")


def _spliced(folder: Path, file: str, seen: set[str]) -> list[str]:
    """Return the lines of a file with its includes; `seen` collects the files that were inserted."""
    seen.add(file)
    lines = [f'#line 1 "{file}"\n']
    for number, line in enumerate((folder / file).read_text(encoding="utf-8").splitlines(), start=1):
        include = INCLUDE.match(line)
        if include and include[1] not in seen:
            lines += [*_spliced(folder, include[1], seen), f'#line {number + 1} "{file}"\n']
        elif include or PRAGMA_ONCE.match(line):
            lines.append("\n")  # keeps line numbers
        else:
            lines.append(f"{line}\n")
    return lines
