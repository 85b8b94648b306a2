"""Work that several threads share, in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["default_threads", "in_order", "parallel_map"]

In = TypeVar("In")
Out = TypeVar("Out")


def default_threads() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def in_order(workers: Executor, function: Callable[[In], Out], items: Iterable[In], ahead: int) -> Iterator[Out]:
    """``function`` of each item, computed by ``workers`` up to ``ahead`` items ahead, yielded in order.

    When the consumer stops, or an item fails, what has not begun is cancelled.
    """
    waiting: deque[Future[Out]] = deque()
    try:
        for item in items:
            waiting.append(workers.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def parallel_map(function: Callable[[In], Out], items: Sequence[In]) -> Iterator[Out]:
    """``function`` of each item in order, as many at a time as there are cores.

    For what takes milliseconds without the GIL, as decoding does; starting the threads costs a tenth of one. What an
    item raises is raised in its turn.
    """
    threads = min(len(items), default_threads())
    if threads < 2:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads, "gpu-extract-decode") as workers:
        yield from workers.map(function, items)
