"""Compile the simulator by g++, and kernels by NVRTC; both are cached by content."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pickle
import shutil
import subprocess
import tempfile
from collections.abc import Callable
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
    sources = [str(path) for path in files if path.suffix == ".cpp"]
    key = _key(compiler, *FLAGS, *(path.read_text(encoding="utf-8") for path in files))

    def build(file: Path) -> None:
        subprocess.run(["g++", *FLAGS, *sources, "-o", str(file)], check=True)

    return _made(f"sass-{key}.so", build)


def cubin_of(source: str, expression: str, arch: int = 90) -> Cubin:
    """Return a compiled kernel; ``source`` is its whole text."""

    def build(file: Path) -> None:
        file.write_bytes(pickle.dumps(compile_cubin(source, arch, expression)))

    cubin: Cubin = pickle.loads(
        _made(f"cubin-{_key(source, expression, str(arch), version())}.pickle", build).read_bytes()
    )
    return cubin


def _made(name: str, build: Callable[[Path], None]) -> Path:
    """Return a file of the cache; `build` writes it if it is not there. Other processes wait for it."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    with open(folder / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed, or the process ends
        if not file.exists():
            with tempfile.TemporaryDirectory(dir=folder) as work:
                build(Path(work, name))
                os.replace(Path(work, name), file)
    return file


def _key(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:24]
