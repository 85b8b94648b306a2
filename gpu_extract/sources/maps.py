"""Memory maps of the files that were read last, kept for the next read."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

__all__ = ["SHARED", "MapCache"]


class MapCache:
    """Whole files as memory maps, few at a time; safe to use from several threads.

    A page costs as much to map as to copy. Boxes that sweep over a slide share pages, so a map serves for many of
    them; but what it has mapped counts as the process's memory, so it is let go in time. Whoever still has a view
    of it may go on reading.

    Parameters
    ----------
    max_nbytes : int, bytes
        What may be read through all maps before the oldest goes.
    max_files : int
        Each map holds a file open.
    """

    def __init__(self, max_nbytes: int, max_files: int) -> None:
        self._max_nbytes = max_nbytes
        self._max_files = max_files
        self._maps: dict[tuple[str, int], tuple[NDArray[np.uint8], int]] = {}  # the oldest first, with bytes read
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._maps)

    @property
    def nbytes(self) -> int:
        """Bytes that were read through the maps that are kept."""
        return sum(read for _, read in self._maps.values())

    def map(self, path: str, stamp: int, nbytes: int) -> NDArray[np.uint8]:
        """The whole of a file, (n,), read-only.

        Parameters
        ----------
        path : str
        stamp : int
            Different for a file that has changed.
        nbytes : int, bytes
            How much of it is about to be read.
        """
        key = (path, stamp)
        with self._lock:
            mapped, before = self._maps.get(key) or (np.memmap(path, np.uint8, "r"), 0)
            self._maps[key] = (mapped, before + nbytes)
            while len(self._maps) > self._max_files or self.nbytes > self._max_nbytes:
                del self._maps[next(iter(self._maps))]
        return mapped


# A band of windows across a slide of 16,384 pixels, with five planes of 16 and 32 bits, reads about 90 MB.
SHARED = MapCache(max_nbytes=128 << 20, max_files=32)
