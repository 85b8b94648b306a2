"""Compile CUDA for all architectures without a GPU, a driver or CuPy, by NVIDIA's compiler library and ctypes."""

from __future__ import annotations

import ctypes
import importlib.util
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

from gpu_extract.backends.cuda.source import kernel_source

__all__ = [
    "ARCHITECTURES",
    "CompileCase",
    "Cubin",
    "NvrtcError",
    "Resources",
    "compile",
    "compile_cubin",
    "version",
    "violations",
]

KiB = 1024
# Shared memory of a block, by compute capability (CUDA programming guide, technical specifications).
ARCHITECTURES = {75: 64 * KiB, 80: 163 * KiB, 86: 99 * KiB, 89: 99 * KiB, 90: 227 * KiB, 100: 227 * KiB, 120: 99 * KiB}
STATIC_SHARED_LIMIT = 48 * KiB
REGISTERS = 65536  # of a block, on all architectures

# The options of CuPy; with -v, the assembler reports the resources of each kernel.
OPTIONS = ("-std=c++17", "-ftz=true", "--ptxas-options=-v")

USES = re.compile(
    r"Compiling entry function '(?P<kernel>\S+)'.*?(?P<stack>\d+) bytes stack frame, "
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


class NvrtcError(Exception):
    """NVRTC cannot compile the source; the message is its log."""


@dataclass(frozen=True)
class Resources:
    """Resources of a kernel: registers and bytes per thread (spills, stack), and bytes per block (static_shared)."""

    registers: int
    spills: int
    stack: int
    static_shared: int


@dataclass(frozen=True)
class Cubin:
    """A compiled kernel: machine code as an ELF file, the kernel's mangled name in it, and its resources."""

    code: bytes
    name: str
    resources: Resources


@dataclass(frozen=True)
class CompileCase:
    """Kernels with the same launch parameters; `source` is the name of a file in kernels/, without .cu."""

    source: str
    expressions: tuple[str, ...]
    threads: int
    dynamic_shared: int = 0


def violations(cases: Iterable[CompileCase], arch: int, load: Callable[[str], str] = kernel_source) -> list[str]:
    """Return what is wrong with kernels on an architecture, one line each: spills, stack, registers, memory."""
    found = []
    for case in cases:
        for name, uses in compile(load(case.source), arch, case.expressions).items():
            shared = uses.static_shared + case.dynamic_shared
            rules = {
                f"spills {uses.spills} bytes": uses.spills > 0,
                f"keeps {uses.stack} bytes on a stack": uses.stack > 0,
                f"needs {uses.registers} registers x {case.threads} threads": uses.registers * case.threads > REGISTERS,
                f"has {uses.static_shared} bytes of static shared memory": uses.static_shared > STATIC_SHARED_LIMIT,
                f"needs {shared} bytes of shared memory": shared > ARCHITECTURES[arch],
            }
            found += [f"{case.source}: {name} on sm_{arch} {rule}" for rule, broken in rules.items() if broken]
    return found


def compile(source: str, arch: int, name_expressions: Sequence[str]) -> dict[str, Resources]:
    """Compile kernels for an architecture (``90`` is sm_90) and return their resources.

    Raises
    ------
    NvrtcError
        If the source does not compile.
    ModuleNotFoundError
        If NVIDIA's wheels are not installed. They are in the ``test`` extra, so this is a failure, not a skip.
    """
    with _compiled(source, arch, name_expressions) as (program, log):
        uses = {match["kernel"]: _resources(match) for match in USES.finditer(log)}
        return {name: uses[_lowered(program, name)] for name in name_expressions}


def compile_cubin(source: str, arch: int, name_expression: str) -> Cubin:
    """Compile a kernel for an architecture, with source lines; see `compile`."""
    nvrtc, size = _nvrtc()[0], ctypes.c_size_t()
    with _compiled(source, arch, [name_expression], "-lineinfo") as (program, log):
        _check(nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)))
        code = ctypes.create_string_buffer(size.value)
        _check(nvrtc.nvrtcGetCUBIN(program, code))
        name = _lowered(program, name_expression)
        (resources,) = (_resources(match) for match in USES.finditer(log) if match["kernel"] == name)
        return Cubin(code.raw, name, resources)


@contextmanager
def _compiled(
    source: str, arch: int, name_expressions: Sequence[str], *more_options: str
) -> Iterator[tuple[ctypes.c_void_p, str]]:
    """Compile kernels; yield NVRTC's program and log."""
    nvrtc, includes = _nvrtc()
    program = ctypes.c_void_p()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None))
    try:
        for name in name_expressions:
            _check(nvrtc.nvrtcAddNameExpression(program, name.encode()))
        options = [f"--gpu-architecture=sm_{arch}", *OPTIONS, *more_options, *(f"-I{folder}" for folder in includes)]
        texts = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = nvrtc.nvrtcCompileProgram(program, len(options), texts)
        log = _log(program)
        _check(status, log)
        yield program, log
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def version() -> str:
    """Return the version of the compiler, such as 13.5.37."""
    _nvrtc()
    names = ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12")
    return next(distribution.version for name in names for distribution in distributions(name=name))


def _resources(match: re.Match[str]) -> Resources:
    shared = re.search(r"(\d+) bytes smem", match["rest"])
    return Resources(
        registers=int(match["registers"]),
        spills=int(match["stores"]) + int(match["loads"]),
        stack=int(match["stack"]),
        static_shared=int(shared[1]) if shared else 0,
    )


@cache
def _nvrtc() -> tuple[ctypes.CDLL, list[Path]]:
    """Return the library, and the folders of CUDA's headers."""
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(root) for root in (spec.submodule_search_locations or ())] if spec else []
    # Wheels of CUDA 13 and of CUDA 12.
    libraries = [
        path for root in roots for kit in ("cu13", "cuda_nvrtc") for path in root.glob(f"{kit}/lib/libnvrtc.so.*")
    ]
    headers = [root / kit / "include" for root in roots for kit in ("cu13", "cuda_runtime")]
    headers = [folder for folder in headers if (folder / "cuda_fp16.h").exists()]
    if not libraries or not headers:
        raise ModuleNotFoundError(
            "nvidia-cuda-nvrtc and nvidia-cuda-runtime are not installed; the tests of the kernels need them: "
            "pip install '.[test]'"
        )
    for builtins in libraries[0].parent.glob("libnvrtc-builtins.so.*"):
        ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)  # NVRTC 13.0 does not find it
    nvrtc = ctypes.CDLL(str(libraries[0]))
    nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
    return nvrtc, headers[:1]


def _check(status: int, log: str = "") -> None:
    if status:
        raise NvrtcError(f"{_nvrtc()[0].nvrtcGetErrorString(status).decode()}\n{log}")


def _log(program: ctypes.c_void_p) -> str:
    nvrtc, size = _nvrtc()[0], ctypes.c_size_t()
    _check(nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
    text = ctypes.create_string_buffer(size.value)
    _check(nvrtc.nvrtcGetProgramLog(program, text))
    return text.value.decode()


def _lowered(program: ctypes.c_void_p, name: str) -> str:
    lowered = ctypes.c_char_p()
    _check(_nvrtc()[0].nvrtcGetLoweredName(program, name.encode(), ctypes.byref(lowered)))
    assert lowered.value is not None
    return lowered.value.decode()
