"""Run CUDA kernels on the CPU, for tests: the same source, compiled by g++, with one fiber per CUDA thread."""

from cuda_on_cpu.building import CompileError
from cuda_on_cpu.checked import Launch, run_checked
from cuda_on_cpu.launcher import CpuModule, KernelError
from cuda_on_cpu.mutants import mutants

__all__ = ["CompileError", "CpuModule", "KernelError", "Launch", "mutants", "run_checked"]
