"""Compile the simulator by g++, and kernels by NVRTC; both are cached by content."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from cuda_on_cpu.building import cache_folder
from nvrtc import Cubin, compile_cubin, version

__all__ = ["build_simulator", "cubin_of", "why_not"]

MACHINE = Path(__file__).parent / "machine"
FLAGS = ("-std=c++17", "-O2", "-march=x86-64-v3", "-ffp-contract=off", "-fPIC", "-shared")


def why_not() -> str | None:
    """Return what the simulator lacks on this machine and how to install it, or None."""
    from sass.disassembly import DisassemblyError, find_nvdisasm

    if not shutil.which("g++"):
        return "g++ is missing: apt-get install g++"
    try:
        version()
        find_nvdisasm()
    except (ModuleNotFoundError, DisassemblyError) as error:
        return str(error)
    return None


@cache
def build_simulator() -> Path:
    """Return the library of the simulator, compiled if necessary."""
    compiler = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout
    files = sorted(MACHINE.iterdir())
    key = _key(compiler, *FLAGS, *(path.read_text(encoding="utf-8") for path in files))
    library = cache_folder() / f"sass-{key}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as work:
            built = Path(work, "built.so")
            sources = [str(path) for path in files if path.suffix == ".cpp"]
            subprocess.run(["g++", *FLAGS, *sources, "-o", str(built)], check=True)
            os.replace(built, library)  # atomic, because tests run in several processes
    return library


def cubin_of(source: str, expression: str, arch: int = 90) -> Cubin:
    """Return a compiled kernel; ``source`` is its whole text."""
    file = cache_folder() / f"cubin-{_key(source, expression, str(arch), version())}.pickle"
    if file.exists():
        cubin: Cubin = pickle.loads(file.read_bytes())
        return cubin
    cubin = compile_cubin(source, arch, expression)
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as work:
        written = Path(work, "cubin")
        written.write_bytes(pickle.dumps(cubin))
        os.replace(written, file)
    return cubin


def _key(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:24]
