"""Everything that a process keeps of files between reads.

A raster is a value: it holds paths, types, offsets and selections, and neither open files nor pixels of a file.
What would be slow to make again for each window is kept here instead, once for the whole process:

``SEGMENTS``
    Decoded strips, tiles and chunks, up to 512 MiB, the least recently used dropped first.
``MAPS``
    Memory maps of files whose pixels are stored as they are, the oldest dropped first.
``WHOLE``
    Arrays that cannot be read by region (.npz, ``_seg.npy``), as long as a raster that read them exists.
``OPENED``
    What it takes a look into a file to make, such as the decoder of a TIFF page; the last 256.

A raster's ``read`` asks for what it needs by a key made of values: the file's path, its `Stamp`, and the part that is
meant. Copies of a raster, other rasters of the same planes, and rasters that were unpickled therefore share what is
kept, while a file that was written again has another stamp and so other keys. A store behind a URL has no stamp;
each opening of it gets keys of its own. Another process starts with empty caches and fills them as it reads.

All methods are safe to call from several threads.
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
    """Decoded segments, the least recently used dropped first.

    The boxes of successive batches overlap, and share segments even where their pixels do not overlap. With this
    cache, each segment is decoded about once while boxes sweep over a slide.

    Parameters
    ----------
    max_nbytes : int, bytes
        What is kept between reads. The segments of a single read are all kept, even if they exceed this.
    """

    def __init__(self, max_nbytes: int) -> None:
        self._max_nbytes = max_nbytes
        self._segments: OrderedDict[Key, NDArray[Any]] = OrderedDict()  # the least recently used first
        self._nbytes = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes that are kept now."""
        return self._nbytes

    def read(
        self, wanted: Mapping[Key, Item], decode: Callable[[Sequence[Item]], Iterable[NDArray[Any]]]
    ) -> list[NDArray[Any]]:
        """Return the wanted segments, in their order.

        Decoding happens outside the lock: threads may decode a segment twice but never wait for each other.

        Parameters
        ----------
        wanted : mapping
            For each key what `decode` needs to make the segment.
        decode : callable
            Makes the segments that are not kept, in the order in which it is given them.
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
    """Whole files as memory maps, a few at a time.

    Mapping a page costs as much as copying it. Boxes that sweep over a slide share pages, so one map serves many of
    them. What has been mapped counts as memory of the process, so maps are dropped in time. A view of a map stays
    valid after the map was dropped.

    Parameters
    ----------
    max_nbytes : int, bytes
        What may be read through all maps before the oldest is dropped.
    max_files : int
        Each map holds a file open.
    """

    def __init__(self, max_nbytes: int, max_files: int) -> None:
        self._max_nbytes = max_nbytes
        self._max_files = max_files
        self._maps: dict[Hashable, tuple[NDArray[np.uint8], int]] = {}  # the oldest first, with bytes read
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._maps)

    @property
    def nbytes(self) -> int:
        """Bytes that were read through the maps that are kept."""
        return sum(read for _, read in self._maps.values())

    def map(self, path: str, stamp: Hashable, nbytes: int) -> NDArray[np.uint8]:
        """Return the whole of a file, (n,), read-only.

        Parameters
        ----------
        path : str
        stamp : hashable
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


class WholeCache:
    """Arrays that were loaded whole, each kept as long as one of the objects that read it exists.

    A bound in bytes would not do: a slide whose arrays exceed it would load all of them again for each window.
    """

    def __init__(self) -> None:
        self._of_reader: WeakKeyDictionary[Any, NDArray[Any]] = WeakKeyDictionary()
        self._by_key: WeakValueDictionary[Hashable, NDArray[Any]] = WeakValueDictionary()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._by_key)

    def read(self, reader: Any, key: Hashable, load: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """Return the array of a key; `load` makes it where it is not kept, and other threads wait for that.

        Parameters
        ----------
        reader : object
            The array is kept as long as this exists. It always reads the same key.
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
    """Objects that were made with a look into a file, the least recently used dropped first.

    Parameters
    ----------
    max_items : int
    """

    def __init__(self, max_items: int) -> None:
        self._max_items = max_items
        self._items: OrderedDict[Hashable, Any] = OrderedDict()  # the least recently used first
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._items)

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return the object of a key; `make` makes it where it is not kept, outside the lock."""
        with self._lock:
            found = self._items.get(key)
        item = make() if found is None else found
        with self._lock:
            self._items[key] = item
            self._items.move_to_end(key)
            while len(self._items) > self._max_items:
                self._items.popitem(last=False)
        return item


# One for all slides: a run over a thousand fields would fill the memory if each kept its own. The size holds
# a row of 512-pixel tiles of an image with ten 16-bit channels, 50,000 pixels wide.
SEGMENTS: SegmentCache[Any] = SegmentCache(512 * 2**20)
# A band of windows across a slide of 16,384 pixels, with five planes of 16 and 32 bits, reads about 90 MB.
MAPS = MapCache(max_nbytes=128 << 20, max_files=32)
WHOLE = WholeCache()
# Usually one for each file. They are small, and made in milliseconds.
OPENED = OpenedCache(256)
