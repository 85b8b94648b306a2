"""Access to Zarr stores in folders and at URLs, with control over absent chunks and failed requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any

from zarr.abc.store import RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from gpu_extract.errors import SourceError
from gpu_extract.sources import zarr_remote
from gpu_extract.sources.files import absolute_path
from gpu_extract.sources.selectors import Location
from gpu_extract.sources.zarr_remote import close_at_exit, remote_store
from gpu_extract.sources.zarr_zip import ZippedStore, zipped_store
from gpu_extract.sources.zips import is_zipped_zarr

__all__ = ["METADATA", "StrictStore"]

# Readers request these files to learn whether they exist; every other file that they request is a chunk.
METADATA = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")
# If a server drops one request in ten, only one in a million fails this often in a row.
N_TRIES = 6
# As zarr by default. More at a time overflow the queue of small servers.
N_PARALLEL = 10


class StrictStore(WrapperStore[Store]):
    """A Zarr store that can treat absent chunks as errors, and repeats requests that a server failed.

    Parameters
    ----------
    store : zarr.abc.store.Store
    location : Location

    Attributes
    ----------
    strict : bool
        Whether it is an error to read an absent chunk: if the user selected ``missing=error``, and for arrays that had
        all their chunks when they were opened. Otherwise the format defines that it has the fill value.
    """

    def __init__(self, store: Store, location: Location) -> None:
        super().__init__(store)
        self._location = location
        self.strict = location.selection.missing == "error"

    @classmethod
    def at(cls, location: Location) -> StrictStore:
        """Return the store at a location without accessing it. The store and its arrays can be pickled."""
        if location.is_url:
            return cls(remote_store(location.path), location)
        if is_zipped_zarr(location.path):
            return cls(zipped_store(location.path, location.plane), location)
        return cls(LocalStore(absolute_path(location.path), read_only=True), location)

    @property
    def archive(self) -> ZippedStore | None:
        """The store in a zip archive; None if it is a folder or at a URL."""
        return self._store if isinstance(self._store, ZippedStore) else None

    def _with_store(self, store: Store) -> StrictStore:
        other = StrictStore(store, self._location)
        other.strict = self.strict
        return other

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """Return the bytes of a key; None if it is a metadata file that does not exist."""
        found = await self._request(key, prototype, byte_range)
        is_chunk = key.rpartition("/")[2] not in METADATA
        if found is None and is_chunk and self.strict:
            raise SourceError(
                f"{self._location} lacks the chunk {key}; copy or export it again, or, if its writer leaves out empty "
                "chunks, select #missing=fill"
            )
        return found

    def count(self, keys: Sequence[str]) -> int:
        """Return how many of these keys exist; one byte of each is requested."""
        return sum(sync(self._exist(keys)))

    async def _exist(self, keys: Sequence[str]) -> list[bool]:
        free = asyncio.Semaphore(N_PARALLEL)

        async def exists(key: str) -> bool:
            async with free:
                found = await self._request(key, default_buffer_prototype(), RangeByteRequest(0, 1))
                return found is not None

        return await asyncio.gather(*map(exists, keys))

    async def _request(self, key: str, prototype: Any, byte_range: Any) -> Any:
        if not isinstance(self._store, FsspecStore):
            return await self._store.get(key, prototype, byte_range)
        close_at_exit(self._store)
        start = time.monotonic()
        for n_left in reversed(range(N_TRIES)):
            try:
                return _requested(await self._store.get(key, prototype, byte_range), byte_range)
            except TimeoutError as cause:
                if n_left and time.monotonic() - start < zarr_remote.TIMEOUT * 0.9:
                    continue
                raise SourceError(
                    f"{self._location} did not answer within {zarr_remote.TIMEOUT:g} s; check the address and the "
                    "network"
                ) from cause
            except Exception:  # aiohttp, botocore, ...: each library has its own exceptions
                if n_left == 0 or time.monotonic() - start > zarr_remote.TIMEOUT:
                    raise
        return None

    async def _get_many(self, requests: Iterable[Any]) -> AsyncGenerator[tuple[str, Any], None]:
        for key, prototype, byte_range in requests:
            yield key, await self.get(key, prototype, byte_range)


def _requested(found: Any, byte_range: Any) -> Any:
    """Return the requested range; a server without support of ranges sends the whole file instead."""
    match byte_range:
        case RangeByteRequest(start, end) if found is not None and len(found) > end - start:
            return found[start:end]
        case SuffixByteRequest(suffix) if found is not None and len(found) > suffix:
            return found[len(found) - suffix :]
    return found
