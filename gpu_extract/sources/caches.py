"""Caches of file content, shared by all rasters of a process.

A raster is a value: it holds paths, types, offsets and selections, but neither open files nor pixels. Whatever would be
slow to create again for each window is cached here, once per process:

``SEGMENTS``
    Decoded strips, tiles and chunks, up to 512 MiB; the least recently used are evicted first.
``MAPS``
    Memory maps of files with uncompressed pixels; the oldest are evicted first.
``WHOLE``
    Arrays that cannot be read by region (.npz, ``_seg.npy``), as long as a raster of them exists.
``OPENED``
    Objects that are created from a file, such as the decoder of a TIFF page; the 256 most recently used.

The keys are made of values: the file's path, its `Stamp`, and the part of the file. Copies of a raster, other rasters
of the same planes, and unpickled rasters therefore share the cached content. A file that is written again has another
stamp and so other keys. A store at a URL has no stamp; it gets new keys each time it is opened. A new process starts
with empty caches.

All methods are thread-safe.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAPS", "OPENED", "SEGMENTS", "WHOLE", "MapCache", "OpenedCache", "SegmentCache", "WholeCache"]

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")


class SegmentCache(Generic[Key]):
    """Decoded segments; the least recently used are evicted first.

    The boxes of successive batches share segments, even if the boxes do not overlap. With this cache, each segment is
    decoded about once while the boxes move over a slide.

    Parameters
    ----------
    max_nbytes : int, bytes
        Maximum size between reads. The segments of a single read are all kept, even if they exceed it.
    """

    def __init__(self, max_nbytes: int) -> None:
        self._max_nbytes = max_nbytes
        self._segments: OrderedDict[Key, NDArray[Any]] = OrderedDict()  # ordered from least to most recently used
        self._nbytes = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Size of the cached segments, in bytes."""
        return self._nbytes

    def read(
        self, wanted: Mapping[Key, Item], decode: Callable[[Sequence[Item]], Iterable[NDArray[Any]]]
    ) -> list[NDArray[Any]]:
        """Return the segments of the given keys, in order.

        Segments are decoded outside the lock: two threads may decode the same segment, but they never wait for each
        other.

        Parameters
        ----------
        wanted : mapping
            The argument of `decode` for each key.
        decode : callable
            Decodes the segments that are not cached, in the order of its arguments.
        """
        keys = list(wanted)
        with self._lock:
            segments: list[Any] = [self._segments.get(key) for key in keys]
        missing = [index for index, segment in enumerate(segments) if segment is None]
        if missing:
            made = decode([wanted[keys[index]] for index in missing])
            for index, segment in zip(missing, made, strict=True):
                segments[index] = segment
        with self._lock:
            self._keep(keys, segments)
        return segments

    def _keep(self, keys: Sequence[Key], segments: Sequence[NDArray[Any]]) -> None:
        for key, segment in zip(keys, segments, strict=True):
            try:
                self._segments.move_to_end(key)
            except KeyError:
                self._segments[key] = segment
                self._nbytes += segment.nbytes
        while self._nbytes > self._max_nbytes and len(self._segments) > len(keys):
            _, oldest = self._segments.popitem(last=False)
            self._nbytes -= oldest.nbytes


class MapCache:
    """Memory maps of whole files, a few at a time.

    Mapping a page of memory costs as much as copying it. Successive boxes share pages, so a map is used for many of
    them. Mapped pages count as memory of the process, so old maps are evicted. A view of a map remains valid after the
    map was evicted.

    Parameters
    ----------
    max_nbytes : int, bytes
        Maximum number of bytes read through all maps before the oldest is evicted.
    max_files : int
        Maximum number of maps; each keeps a file open.
    """

    def __init__(self, max_nbytes: int, max_files: int) -> None:
        self._max_nbytes = max_nbytes
        self._max_files = max_files
        self._maps: dict[Hashable, tuple[NDArray[np.uint8], int]] = {}  # oldest first, with the number of bytes read
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._maps)

    @property
    def nbytes(self) -> int:
        """Number of bytes that were read through the cached maps."""
        return sum(read for _, read in self._maps.values())

    def map(self, path: str, stamp: Hashable, nbytes: int) -> NDArray[np.uint8]:
        """Return the bytes of a whole file, (n,), read-only.

        Parameters
        ----------
        path : str
        stamp : hashable
            Must differ if the file has changed.
        nbytes : int, bytes
            Number of bytes that are about to be read.
        """
        key = (path, stamp)
        with self._lock:
            mapped, before = self._maps.get(key) or (np.memmap(path, np.uint8, "r"), 0)
            self._maps[key] = (mapped, before + nbytes)
            while len(self._maps) > self._max_files or self.nbytes > self._max_nbytes:
                del self._maps[next(iter(self._maps))]
        return mapped


class WholeCache:
    """Arrays that are loaded whole, each kept as long as one of its readers exists.

    A limit in bytes would not work: a slide with larger arrays would load all of them again for each window.
    """

    def __init__(self) -> None:
        self._of_reader: WeakKeyDictionary[Any, NDArray[Any]] = WeakKeyDictionary()
        self._by_key: WeakValueDictionary[Hashable, NDArray[Any]] = WeakValueDictionary()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._by_key)

    def read(self, reader: Any, key: Hashable, load: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """Return the array of a key. If it is not cached, call `load` while other threads wait.

        Parameters
        ----------
        reader : object
            The array is kept as long as this object exists. It must always use the same key.
        key : hashable
        load : callable
        """
        kept = self._of_reader.get(reader)
        if kept is not None:
            return kept
        with self._lock:
            pixels = self._by_key.get(key)
            if pixels is None:
                pixels = self._by_key[key] = load()
            self._of_reader[reader] = pixels
            return pixels


class OpenedCache:
    """Objects that are created from files; the least recently used are evicted first.

    Parameters
    ----------
    max_items : int
    """

    def __init__(self, max_items: int) -> None:
        self._max_items = max_items
        self._items: OrderedDict[Hashable, Any] = OrderedDict()  # ordered from least to most recently used
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._items)

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return the object of a key. If it is not cached, call `make`, outside the lock."""
        with self._lock:
            found = self._items.get(key)
        item = make() if found is None else found
        with self._lock:
            self._items[key] = item
            self._items.move_to_end(key)
            while len(self._items) > self._max_items:
                self._items.popitem(last=False)
        return item


# Shared by all slides: with a cache per slide, a run over a thousand fields would fill the memory. The size is enough
# for a row of 512-pixel tiles of an image with ten 16-bit channels, 50,000 pixels wide.
SEGMENTS: SegmentCache[Any] = SegmentCache(512 * 2**20)
# A row of windows across a slide of 16,384 pixels, with five planes of 16 and 32 bits, reads about 90 MB.
MAPS = MapCache(max_nbytes=128 << 20, max_files=32)
WHOLE = WholeCache()
# Usually one object per file. They are small and are created within milliseconds.
OPENED = OpenedCache(256)
