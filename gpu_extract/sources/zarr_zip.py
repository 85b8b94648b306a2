"""Zarr stores in a zip archive: ``.zarr.zip``, ``.ozx`` and the ``cells.zarr.zip`` of Xenium.

Members are read from the archive; nothing is unpacked. An archive of another process or of a copy of a raster is
opened again by its path.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest

from gpu_extract.errors import SourceError
from gpu_extract.sources import caches
from gpu_extract.sources.files import SourceFile, Stamp, absolute_path, stamp_of
from gpu_extract.sources.zips import check_members, store_root

__all__ = ["ZippedStore", "zipped_store"]


@dataclass(frozen=True)
class _Archive:
    """An open archive and the folder in it that is the root of the store; empty or ending with a slash."""

    file: zipfile.ZipFile
    root: str


class ZippedStore(Store):
    """A read-only store in a zip archive.

    It is a value: a path and the file's stamp. The open archive is kept in `caches.OPENED`.

    Parameters
    ----------
    path : str
        Absolute.
    stamp : Stamp
    subject : str
        The archive in messages.
    """

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, path: str, stamp: Stamp, subject: str) -> None:
        super().__init__(read_only=True)
        self.path = path
        self.stamp = stamp
        self._subject = subject

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ZippedStore) and (self.path, self.stamp) == (other.path, other.stamp)

    def __hash__(self) -> int:
        return hash((self.path, self.stamp))

    def names(self, folder: str) -> list[str]:
        """Return the names of all files below a folder of the store, relative to it."""
        archive = self._archive()
        prefix = archive.root + (f"{folder}/" if folder else "")
        names = archive.file.namelist()
        return [name[len(prefix) :] for name in names if name.startswith(prefix) and not name.endswith("/")]

    def open_member(self, key: str) -> BinaryIO:
        """Return a file of the store, opened for reading.

        Raises
        ------
        KeyError
            If there is none of that name.
        """
        archive = self._archive()
        return cast(BinaryIO, archive.file.open(archive.root + key))

    async def get(self, key: str, prototype: Any, byte_range: ByteRequest | None = None) -> Any:
        """See `zarr.abc.store.Store.get`."""
        try:
            member = self.open_member(key)
        except KeyError:
            return None
        with member:
            content = member.read()
        match byte_range:
            case RangeByteRequest(start, end):
                content = content[start:end]
            case OffsetByteRequest(offset):
                content = content[offset:]
            case SuffixByteRequest(suffix):
                content = content[max(0, len(content) - suffix) :]
        return prototype.buffer.from_bytes(content)

    async def get_partial_values(
        self, prototype: Any, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Any]:
        """See `zarr.abc.store.Store.get_partial_values`."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        """See `zarr.abc.store.Store.exists`."""
        archive = self._archive()
        return archive.root + key in archive.file.NameToInfo

    async def set(self, key: str, value: Any) -> None:
        """Raise an error, because the store is read-only."""
        self._check_writable()

    async def delete(self, key: str) -> None:
        """Raise an error, because the store is read-only."""
        self._check_writable()

    async def list(self) -> AsyncIterator[str]:
        """See `zarr.abc.store.Store.list`."""
        for name in self.names(""):
            yield name

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """See `zarr.abc.store.Store.list_prefix`."""
        for name in self.names(""):
            if name.startswith(prefix):
                yield name

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """See `zarr.abc.store.Store.list_dir`."""
        for name in dict.fromkeys(name.partition("/")[0] for name in self.names(prefix.rstrip("/"))):
            yield name

    def _archive(self) -> _Archive:
        if stamp_of(os.stat(self.path)) != self.stamp:
            raise SourceError(f"{self._subject} has changed since it was opened; run again once it is written")
        archive: _Archive = caches.OPENED.get(("zip", self.path, self.stamp), self._open_archive)
        return archive

    def _open_archive(self) -> _Archive:
        file = zipfile.ZipFile(self.path)
        check_members(self._subject, file.infolist())
        root = store_root(file)
        assert root is not None
        return _Archive(file, root)


def zipped_store(path: str, plane: str | None) -> ZippedStore:
    """Return the store in an archive.

    Raises
    ------
    SourceError
        If its members are larger than any chunk, or have names that lead out of a folder.
    """
    file = SourceFile.at(path, plane)
    store = ZippedStore(absolute_path(path), file.stamp, str(file))
    store.names("")  # opens and checks the archive
    return store
