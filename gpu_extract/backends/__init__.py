"""The backends, and the choice of a backend by device name.

All backends compute the same numbers: `reference` is the definition, `cpu` is fast on every machine, and `cuda` runs
on an NVIDIA GPU. See `interface.Backend`.
"""

from __future__ import annotations

from functools import partial

from gpu_extract.backends.interface import Backend, Deflated, Extract, ExtractInParts, PackedCells
from gpu_extract.errors import DeviceError
from gpu_extract.model import BatchSize

__all__ = [
    "DEVICES",
    "Backend",
    "Deflated",
    "Extract",
    "ExtractInParts",
    "PackedCells",
    "choose",
    "cucim_version",
    "try_device",
    "why_not",
]

DEVICES = ("auto", "cpu", "cuda", "cuda:N", "reference", "reference:cuda")

# For a device that fails when it is tried; the others are GPUs.
REMEDIES = {
    "cpu": "pip install --force-reinstall numba llvmlite",
    "reference": "pip install --force-reinstall numpy scipy",
}

# Cells of a batch on a GPU: enough that the fixed cost of a batch is negligible.
GPU_CELLS = 2048


def choose(device: str = "auto", gpu_memory: int | None = None) -> Backend:
    """Return the backend for a device name; ``auto`` is a GPU if one works, otherwise the CPU.

    Parameters
    ----------
    device : str
    gpu_memory : int, bytes, optional
        How much of a GPU's memory may be used; by default most of what is free.

    Raises
    ------
    DeviceError
        If the name is unknown or the device does not work here; the message says why and what to do.
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
        from gpu_extract.backends import reference
        from gpu_extract.backends.cuda import backend as cuda

        libraries = cuda.reference_libraries() if device == "reference:cuda" else reference.HOST
        return Backend(device, partial(reference.extract, libraries=libraries))
    if device == "cpu":
        from gpu_extract.backends.cpu import backend as cpu

        return cpu.open_backend()
    raise DeviceError(f"unknown device {device!r}; it must be one of {', '.join(DEVICES)}")


def why_not(device: str) -> str | None:
    """Return why a device does not work here and what to do, in one line; None if it works."""
    name, _, number = device.removeprefix("reference:").partition(":")
    if name != "cuda":
        return None
    from gpu_extract.backends.cuda import backend as cuda

    reason = cuda.problem()
    if reason is None and int(number or 0) >= cuda.count():
        return f"there are {cuda.count()} GPUs, numbered from 0"
    return reason


def cucim_version() -> str | None:
    """Return the version of cuCIM, which `reference:cuda` uses if it is installed; None if it is not."""
    from gpu_extract.backends.cuda import backend as cuda

    return cuda.cucim_version()


def try_device(device: str) -> str | None:
    """Return why a device does not work here, in one line; None if it does.

    Unlike `why_not`, this runs it: one cell of 8 x 8 pixels, or on the CPU, whose kernels compile for 15 to 30 s, a
    compiled function of one line.
    """
    reason = why_not(device)
    if reason:
        return reason
    try:
        if device == "cpu":
            from gpu_extract.backends.cpu.compiling import compile_tiny

            compile_tiny()
            choose(device)
        else:
            from gpu_extract.backends.tiny import tiny_batch

            choose(device).extract(*tiny_batch("uint16", "uint32"), None)
    except DeviceError as error:  # it says what to do
        return str(error)
    except Exception as error:  # whatever a broken installation raises
        line = (str(error).splitlines() or [""])[0]
        remedy = REMEDIES.get(device, "reinstall CuPy, or use --device cpu (device='cpu')")
        return f"it fails with {type(error).__name__}: {line}; {remedy}"
    return None


def _open_cuda(index: int, gpu_memory: int | None) -> Backend:
    from gpu_extract.backends.cuda import backend as cuda
    from gpu_extract.backends.cuda.pinned import BUFFER_NBYTES

    warnings: list[str] = []
    budget = cuda.memory_budget(index, gpu_memory)
    opened = cuda.open_device(index, budget, warnings.append)
    return Backend(
        device=f"cuda:{index}",
        extract=opened.extract,
        # A stream holds a window, tiles, and room for the same without zeros. Or, with `iter_cells`, it holds a window
        # and tiles, and the tiles of some more batches wait for the caller.
        batch_size=BatchSize(GPU_CELLS, min(BUFFER_NBYTES, cuda.working_nbytes(budget) // (4 * cuda.STREAMS))),
        streams=cuda.STREAMS,
        statistics=opened.statistics,
        read=opened.read,
        release=opened.release,
        extract_packed=opened.extract_packed,
        extract_on_device=opened.extract_on_device,
        warnings=warnings,
    )
