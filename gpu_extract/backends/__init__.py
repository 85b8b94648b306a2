"""The backends, and which one a device name means.

Each backend is a function ``extract(window, batch, program, levels) -> CellImages`` with the same numbers:
`reference` is the definition, `cpu` is fast on every machine, `cuda` on an NVIDIA GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import DeviceError
from gpu_extract.labels import Statistics, label_statistics
from gpu_extract.model import Batch, BatchLimits, CellImages, Window
from gpu_extract.recipe import Program

__all__ = ["DEVICES", "Backend", "Extract", "ExtractInPieces", "choose", "why_not"]

DEVICES = ("auto", "cpu", "cuda", "cuda:N", "reference", "reference:cuda")

# A GPU wants many cells at a time, so that starting a batch costs nothing; a stream's arrays take at most this.
GPU_CELLS = 2048
GPU_NBYTES = 512 << 20

Extract = Callable[[Window, Batch, Program, NDArray[np.float64] | None], CellImages]
ExtractInPieces = Callable[[Window, Batch, Program, NDArray[np.float64] | None], Iterator[CellImages]]


@dataclass(frozen=True)
class Backend:
    """A device that was chosen, and how batches are extracted on it.

    Parameters
    ----------
    device : str
    extract : callable
        From several threads at a time; the result is in host memory.
    limits : BatchLimits
        How large batches should be.
    streams : int or None
        How many batches it works on at a time by itself; None where it uses the caller's threads.
    statistics : callable
        `labels.label_statistics`, or the same on the device.
    extract_on_device : callable or None
        The same with the result left on the device.
    extract_in_pieces : callable or None
        The same, a few cells at a time, each in memory that the next few overwrite.
    is_compiled : bool
        Whether batches are extracted by the kernels of `cpu_cells`.
    notices : list of str
        What happened that the user should know, one line each.
    """

    device: str
    extract: Extract
    limits: BatchLimits = field(default_factory=BatchLimits)
    streams: int | None = None
    statistics: Statistics = label_statistics
    extract_on_device: Extract | None = None
    extract_in_pieces: ExtractInPieces | None = None
    is_compiled: bool = False
    notices: list[str] = field(default_factory=list)


def choose(device: str = "auto", gpu_memory: int | None = None) -> Backend:
    """The backend for a device name; ``auto`` is a GPU where one works, else the cpu.

    Parameters
    ----------
    device : str
    gpu_memory : int, bytes, optional
        How much of a GPU's memory may be taken; by default most of what is free.

    Raises
    ------
    DeviceError
        If the name is unknown, or the device does not work here; the message says why and what to do.
    """
    if gpu_memory is not None and gpu_memory < 1:
        raise DeviceError(f"gpu_memory is {gpu_memory} bytes; it must be positive")
    if device == "auto":
        device = "cpu" if why_not("cuda") else "cuda"
    name, _, number = device.partition(":")
    if name == "cuda" and (not number or number.isdecimal()):
        reason = why_not(device)
        if reason:
            raise DeviceError(f"device {device!r} does not work here: {reason}")
        return _open_cuda(int(number or 0), gpu_memory)
    if device in ("reference", "reference:cuda"):
        from gpu_extract.backends import cuda, reference

        libraries = cuda.reference_libraries() if device == "reference:cuda" else reference.HOST
        return Backend(device, partial(reference.extract, libraries=libraries))
    if device == "cpu":
        from gpu_extract.backends import cpu, cpu_labels

        return Backend(
            device,
            cpu.extract,
            statistics=cpu_labels.label_statistics,
            extract_in_pieces=cpu.extract_in_pieces,
            is_compiled=True,
        )
    raise DeviceError(f"unknown device {device!r}; it must be one of {', '.join(DEVICES)}")


def why_not(device: str) -> str | None:
    """Why a device does not work here and what to do, in one line; None if it does."""
    name, _, number = device.removeprefix("reference:").partition(":")
    if name != "cuda":
        return None
    from gpu_extract.backends import cuda

    reason = cuda.problem()
    if reason is None and int(number or 0) >= cuda.count():
        return f"there are {cuda.count()} GPUs, numbered from 0"
    return reason


def _open_cuda(index: int, gpu_memory: int | None) -> Backend:
    from gpu_extract.backends import cuda

    notices: list[str] = []
    budget = cuda.memory_budget(index, gpu_memory)
    opened = cuda.open_device(index, budget, notices.append)
    return Backend(
        device=f"cuda:{index}",
        extract=opened.extract,
        # Half of a stream's share: the window is there twice while it is widened, and pools keep some slack.
        limits=BatchLimits(GPU_CELLS, min(GPU_NBYTES, budget // (2 * cuda.STREAMS))),
        streams=cuda.STREAMS,
        statistics=opened.statistics,
        extract_on_device=opened.extract_on_device,
        notices=notices,
    )
