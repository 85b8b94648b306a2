"""The backends, and which one a device name means.

Each backend is a function ``extract(window, batch, program, levels) -> CellImages`` with the same numbers:
`reference` is the definition, `cpu` is fast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import DeviceError
from gpu_extract.model import Batch, CellImages, Window
from gpu_extract.recipe import Program

__all__ = ["DEVICES", "Backend", "choose"]

DEVICES = ("auto", "cpu", "cuda", "cuda:N", "reference")

Extract = Callable[[Window, Batch, Program, NDArray[np.float64] | None], CellImages]


@dataclass(frozen=True)
class Backend:
    """A device that was chosen, and the function that extracts a batch on it."""

    device: str
    extract: Extract


def choose(device: str = "auto") -> Backend:
    """The backend for a device name; ``auto`` is the fastest one that works here.

    Raises
    ------
    DeviceError
        If the name is unknown, or the device does not work here.
    """
    name = device.partition(":")[0]
    if name == "cuda":
        raise DeviceError(f"device {device!r} is not there: this version has no CUDA path yet; use 'cpu' or 'auto'")
    if device == "reference":
        from gpu_extract.backends import reference

        return Backend(device, reference.extract)
    if device in ("auto", "cpu"):
        from gpu_extract.backends import cpu

        return Backend("cpu", cpu.extract)
    raise DeviceError(f"unknown device {device!r}; it must be one of {', '.join(DEVICES)}")
