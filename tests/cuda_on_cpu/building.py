"""Compile CUDA source to a shared library for this machine, cached by content."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path

__all__ = ["CompileError", "build_kernels", "build_runtime"]

HERE = Path(__file__).parent

# With gnu-unique, modules that instantiate the same template would share its __shared__ arrays.
COMMON_FLAGS = (
    "-std=gnu++17",
    "-march=x86-64-v3",
    "-fPIC",
    "-shared",
    "-w",
    "-fvisibility=hidden",
    "-fno-gnu-unique",
    "-fcf-protection=none",
)
KERNEL_FLAGS = {
    None: ("-O2",),
    "thread": ("-O1", "-g", "-DSHIM_SANITIZE", "-fsanitize=thread"),
    "address": ("-O1", "-g", "-DSHIM_SANITIZE", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
}
# The scheduler is not instrumented; it calls the sanitizer's library, which is preloaded.
RUNTIME_FLAGS = {None: ("-O2",), "thread": ("-O2", "-DSHIM_TSAN"), "address": ("-O2", "-DSHIM_ASAN")}

# extern __shared__ T name[];   an array whose size is a launch parameter
DYNAMIC_SHARED = re.compile(
    r"extern\s+__shared__\s+(?:(?:__align__|alignas)\s*\(\w+\)\s*)?([\w:<> ]+?)\s+(\w+)\s*\[\s*\]\s*;"
)


class CompileError(Exception):
    """g++ cannot compile the source; the message is its output."""


def build_kernels(source: str, names: tuple[str, ...], sanitize: str | None, *, fuse: bool) -> Path:
    """Return the library of the kernels `names` (name expressions) of `source`, compiled if necessary."""
    text, n_dynamic = DYNAMIC_SHARED.subn(r"\1* const \2 = (\1*)shim::self->block->dynamic_shared;", source)
    if len(re.findall(r"extern\s+__shared__", source)) != n_dynamic:
        raise ValueError("an `extern __shared__` declaration is not of the form `extern __shared__ T name[];`")
    entries = "".join(f"SHIM_KERNEL({number}, {name})\n" for number, name in enumerate(names))
    text = f'#include "cuda_shim.h"\n#line 1 "kernel.cu"\n{text}\n#line 1 "name expressions"\n{entries}'
    contract = "-ffp-contract=fast" if fuse else "-ffp-contract=off"
    return _build(text, (*KERNEL_FLAGS[sanitize], contract))


def build_runtime(sanitize: str | None) -> Path:
    """Return the library of the scheduler, compiled if necessary."""
    return _build(f'#include "{HERE / "cuda_shim.cpp"}"\n', (*RUNTIME_FLAGS[sanitize], f"-I{HERE}", "-pthread"))


def cache_folder() -> Path:
    """Return ``GPU_EXTRACT_SHIM_CACHE``, or a folder in the user's cache."""
    named = os.environ.get("GPU_EXTRACT_SHIM_CACHE")
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(named) if named else user / "gpu-extract" / "cuda_on_cpu"


@cache
def _shim_text() -> str:
    files = sorted(path for pattern in ("*.cpp", "*.h", "include/*.h") for path in HERE.glob(pattern))
    compiler = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout
    return compiler + "".join(path.read_text(encoding="utf-8") for path in files)


def _build(text: str, flags: tuple[str, ...]) -> Path:
    flags = (*COMMON_FLAGS, *flags)
    key = hashlib.sha256("\0".join((_shim_text(), text, *flags)).encode()).hexdigest()[:24]
    folder = cache_folder()
    library = folder / f"{key}.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        source, built = Path(work, "source.cpp"), Path(work, "built.so")
        source.write_text(text, encoding="utf-8")
        command = ["g++", *flags, f"-I{HERE / 'include'}", str(source), "-o", str(built)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise CompileError(done.stderr)
        os.replace(built, library)  # atomic, because tests run in several processes
    return library
