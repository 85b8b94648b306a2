"""Maps over items by several threads, with results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from gpu_extract.cpus import default_threads
from gpu_extract.errors import InputError

__all__ = ["as_threads", "in_order", "parallel_map", "worker_threads"]

In = TypeVar("In")
Out = TypeVar("Out")


@contextmanager
def worker_threads(n_threads: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """Open a pool of threads, and wait for their calls at the end of the block, except after a KeyboardInterrupt.

    A call may compile kernels for 15 to 30 s, which cannot be interrupted; it then ends in the background.
    """
    workers, waits = ThreadPoolExecutor(n_threads, name), True
    try:
        yield workers
    except KeyboardInterrupt:
        waits = False
        raise
    finally:
        workers.shutdown(wait=waits, cancel_futures=not waits)


def as_threads(threads: int | None) -> int:
    """Return a valid number of threads; None becomes the number of cores that this process may use."""
    if threads is None:
        return default_threads()
    if threads < 1:
        raise InputError(f"threads is {threads}; it must be 1 or more")
    return threads


def in_order(workers: Executor, function: Callable[[In], Out], items: Iterable[In], ahead: int) -> Iterator[Out]:
    """Yield ``function(item)`` for each item in order, computed by ``workers`` up to ``ahead`` items ahead.

    If ``items`` raises an error, the results of the items before come first. If the consumer stops or a call fails,
    calls that have not started are cancelled.
    """
    waiting: deque[Future[Out]] = deque()
    failure: Exception | None = None
    remaining = iter(items)
    try:
        while failure is None:
            try:
                waiting.append(workers.submit(function, next(remaining)))
            except StopIteration:
                break
            except Exception as error:
                failure = error
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
        if failure is not None:
            raise failure
    finally:
        # The frames of the error, with a slide in a GPU's memory, would live until the next collection of garbage.
        failure = None
        for future in waiting:
            future.cancel()


def parallel_map(function: Callable[[In], Out], items: Sequence[In]) -> Iterator[Out]:
    """Yield ``function(item)`` for each item in order, computed by as many threads as there are cores.

    Meant for calls that take milliseconds and release the GIL, such as decoding; starting the threads takes 0.1 ms.
    The exception of an item is raised at its position in the order.
    """
    threads = min(len(items), default_threads())
    if threads < 2:
        yield from map(function, items)
        return
    with worker_threads(threads, "gpu-extract-decode") as workers:
        yield from workers.map(function, items)
