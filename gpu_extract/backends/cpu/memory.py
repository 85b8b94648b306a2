"""Memory that a thread reuses from one batch to the next, because allocating new pages is slow."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["per_thread", "per_thread_bytes"]

Value = TypeVar("Value")


class _Pool(threading.local):
    def __init__(self) -> None:
        self.values: dict[Callable[..., Any], tuple[tuple[Any, ...], Any]] = {}
        self.memory: dict[str, NDArray[np.uint8]] = {}


_pool = _Pool()


def per_thread(make: Callable[..., Value], *arguments: Any) -> Value:
    """Return ``make(*arguments)``, or this thread's last result of ``make`` if the arguments have not changed."""
    last = _pool.values.get(make)
    if last is None or last[0] != arguments:
        last = _pool.values[make] = arguments, make(*arguments)
    value: Value = last[1]
    return value


def per_thread_bytes(name: str, nbytes: int) -> NDArray[np.uint8]:
    """Return this thread's memory of that name, (n,) with n at least ``nbytes``, not initialized."""
    memory = _pool.memory.get(name)
    if memory is None or len(memory) < nbytes:
        memory = _pool.memory[name] = np.empty(nbytes, np.uint8)
    return memory
