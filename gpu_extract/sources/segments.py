"""The decoded strips and tiles that were read last."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Generic, TypeVar

from numpy.typing import NDArray

__all__ = ["SHARED", "SegmentCache"]

Key = TypeVar("Key", bound=Hashable)


class SegmentCache(Generic[Key]):
    """Decoded segments, the least recently used dropped first; safe to use from several threads.

    The boxes of successive batches overlap, and overlap within a segment even where their pixels do not: with
    this, each segment is decoded about once while boxes sweep over a slide.

    Parameters
    ----------
    max_nbytes : int, bytes
        What is kept between reads. One read that touches more is kept until the next.
    """

    def __init__(self, max_nbytes: int) -> None:
        self._max_nbytes = max_nbytes
        self._segments: dict[Key, NDArray[Any]] = {}  # the order of insertion is the order of use
        self._nbytes = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes that are kept now."""
        return self._nbytes

    def read(
        self, keys: Sequence[Key], decode: Callable[[Sequence[Key]], Iterable[NDArray[Any]]]
    ) -> dict[Key, NDArray[Any]]:
        """The segments of these keys; `decode` makes those that are not kept, in the order it is given.

        Decoding happens outside the lock: threads may decode a segment twice but never wait for each other.
        """
        with self._lock:
            segments = {key: self._segments[key] for key in keys if key in self._segments}
        missing = [key for key in keys if key not in segments]
        segments.update(zip(missing, decode(missing), strict=True))
        with self._lock:
            self._keep(segments)
        return segments

    def _keep(self, segments: dict[Key, NDArray[Any]]) -> None:
        for key, segment in segments.items():
            replaced = self._segments.pop(key, None)
            self._nbytes += segment.nbytes - (0 if replaced is None else replaced.nbytes)
            self._segments[key] = segment
        while self._nbytes > self._max_nbytes and len(self._segments) > len(segments):
            oldest = next(iter(self._segments))
            self._nbytes -= self._segments.pop(oldest).nbytes


# One for all slides: a run over a thousand fields would fill the memory if each kept its own. The size holds
# a row of 512-pixel tiles of an image with ten 16-bit channels, 50,000 pixels wide.
SHARED: SegmentCache[Any] = SegmentCache(512 * 2**20)
