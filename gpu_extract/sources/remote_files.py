"""Files at http(s):// and s3://, read by ranges through fsspec: only what a box touches is downloaded."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from gpu_extract.errors import SourceError
from gpu_extract.sources.files import SourceFile, translated

__all__ = ["RemoteFile"]

# Seconds without an answer. fsspec tries twice to find out the size of a file, so that 20 s pass at most.
TIMEOUT = 10
# Bytes. The directories of a TIFF are read in blocks of this size, of which the last ones are kept.
BLOCK = 1 << 18
REMEDY = "check the address; https needs pip install fsspec aiohttp, s3 needs s3fs"
S3_REMEDY = f"{REMEDY}; for a public bucket set the environment variable FSSPEC_S3_ANON=true"


@dataclass(frozen=True)
class RemoteFile(SourceFile):
    """A file at a URL, with the state that it had when it was opened first."""

    @classmethod
    def at(cls, path: str, plane: str | None) -> RemoteFile:
        """Return the file at a URL.

        Raises
        ------
        SourceError
            If it cannot be reached, or the server does not tell its size.
        """
        file = cls(path, plane, path, 0, (0, 0, 0))
        with translated(file, "cannot be opened", file.remedy):
            system, inner = file._system()
            info = system.info(inner)
        if not info.get("size"):
            raise SourceError(f"{file} is at a server that does not tell its size; download it and give the file")
        version = [str(info.get(key)) for key in ("ETag", "Last-Modified", "LastModified", "mtime")]
        size = int(info["size"])
        # A server that ignores ranges would send the whole file for each tile.
        with (
            translated(file, "cannot be read by parts", "download it and give the file"),
            system.open(inner, "rb", block_size=1, cache_type="none") as stream,
        ):
            stream.seek(size - 1)
            stream.read(1)
        return cls(path, plane, path, size, (0, size, zlib.crc32(" ".join(version).encode())))

    @property
    def remedy(self) -> str:
        """What to do if it cannot be reached."""
        return S3_REMEDY if self.path.startswith("s3:") else REMEDY

    @property
    def is_remote(self) -> bool:
        """See `SourceFile.is_remote`."""
        return True

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open the file for reading; the stream is seekable and reads by ranges.

        Raises
        ------
        SourceError
        """
        with translated(self, "cannot be read", self.remedy):
            system, inner = self._system()
            stream = system.open(inner, "rb", block_size=BLOCK, cache_type="blockcache")
        with stream:
            yield stream

    def read_at(self, stream: BinaryIO, offset: int, nbytes: int) -> bytes:
        """See `SourceFile.read_at`; the stream is not used, because it is not thread-safe."""
        system, inner = self._system()
        data: bytes = system.cat_file(inner, offset, offset + nbytes)
        if len(data) != nbytes:
            raise ValueError(f"the server sent {len(data)} bytes of {nbytes}")
        return data

    def _system(self) -> tuple[Any, str]:
        """Return the file system of fsspec, which keeps its connections, and the path in it."""
        core = importlib.import_module("fsspec.core")
        system, inner = core.url_to_fs(self.path, **_options(self.path))
        return system, inner


def _options(url: str) -> dict[str, Any]:
    protocol = url.partition(":")[0].lower()
    if protocol in ("http", "https"):
        aiohttp = importlib.import_module("aiohttp")
        timeout = aiohttp.ClientTimeout(total=None, connect=TIMEOUT, sock_connect=TIMEOUT, sock_read=TIMEOUT)
        return {"client_kwargs": {"timeout": timeout}}
    if protocol == "s3":
        limits = {"connect_timeout": TIMEOUT, "read_timeout": TIMEOUT, "retries": {"max_attempts": 1}}
        return {"config_kwargs": limits}
    return {}
