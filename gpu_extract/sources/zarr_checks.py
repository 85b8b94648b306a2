"""Checks of a Zarr array by its metadata and its files, before any chunk is read."""

from __future__ import annotations

import hashlib
import heapq
import math
import os
import re
import stat
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpu_extract.errors import SourceError
from gpu_extract.listing import listed
from gpu_extract.sources.files import Stamp, stamp_of
from gpu_extract.sources.selectors import Location
from gpu_extract.sources.zarr_access import METADATA

__all__ = ["Listing", "StoredFiles", "check_array", "check_chunks", "check_remote_chunks", "stored_files"]

# Writers make chunks of some MB. Larger ones are malicious, or useless for reading by region.
MAX_CHUNK_NBYTES = 2**30
# The index of a shard has an offset and a length per inner chunk; both are all ones if the chunk is absent.
ABSENT = 2**64 - 1
# Chunks at a URL that are looked for before a run: a second's worth of requests.
MAX_REQUESTED = 64
# Chunks of an array whose bytes are compared when a run is resumed.
N_SAMPLED = 8


def check_array(location: Location, array: Any) -> None:
    """Raise an error for an array of Python objects, without pixels, or in impossibly large chunks.

    Raises
    ------
    SourceError
    """
    if array.dtype.kind not in "biufc":
        raise SourceError(f"{location} has elements of type {array.dtype}, not pixels; save it as numbers")
    if array.ndim < 2 or min(array.shape) < 1:
        raise SourceError(f"{location} has shape {array.shape} and so no pixels; export it again")
    nbytes = math.prod(array.chunks) * array.dtype.itemsize
    if nbytes > MAX_CHUNK_NBYTES:
        raise SourceError(
            f"{location} has chunks of {nbytes} bytes, and at most {MAX_CHUNK_NBYTES} are read; "
            "save it with smaller chunks, for example of 512 x 512 pixels"
        )


@dataclass(frozen=True)
class Listing:
    """A summary of the files of an array in a folder, the same for a copy with the same times.

    Parameters
    ----------
    n_files : int
    nbytes : int
    modified : int, ns
        When the last of them was written.
    digest : str
        Of their names, sizes and times.
    sampled : tuple of str
        Metadata files, and some chunks that their names choose.
    """

    n_files: int
    nbytes: int
    modified: int
    digest: str
    sampled: tuple[str, ...]


@dataclass(frozen=True)
class StoredFiles:
    """The files of an array in a folder.

    Parameters
    ----------
    chunks : set of str
        Their names relative to the folder of the array, without metadata files.
    stamp : str
        A digest of the names and `Stamp` of all files. It changes when any file is rewritten.
    listing : Listing or None
        None if they are in an archive.
    """

    chunks: frozenset[str]
    stamp: str
    listing: Listing | None = None


def stored_files(location: Location, array: Any) -> StoredFiles:
    """Return the files of an array in a folder.

    Raises
    ------
    SourceError
        If one is a link to a target outside the store.
    """
    archive = array.store.archive
    if archive is not None:
        names = (name for name in archive.names(array.path) if name.rpartition("/")[2] not in METADATA)
        return StoredFiles(frozenset(names), repr(archive.stamp))
    chunks, metadata, n_files, total, newest, stamps, listed = set(), [], 0, 0, 0, 0, 0
    for name, stamp in _files(location, os.path.join(location.path, array.path)):
        if name.rpartition("/")[2] in METADATA:
            metadata.append(name)
        else:
            chunks.add(name)
        n_files, total, newest = n_files + 1, total + stamp[1], max(newest, stamp[2])
        # Sums, because folders list their files in any order.
        stamps += _digest(name, *stamp)
        listed += _digest(name, *stamp[1:])
    chosen = heapq.nsmallest(N_SAMPLED, chunks, key=lambda name: (zlib.crc32(os.fsencode(name)), name))
    sampled = (*sorted(metadata), *chosen)
    listing = Listing(n_files, total, newest, f"{listed % 2**128:x}", sampled)
    return StoredFiles(frozenset(chunks), f"{stamps % 2**128:x}", listing)


def _digest(name: str, *facts: int) -> int:
    data = f"{name} {facts}".encode(errors="surrogateescape")
    return int.from_bytes(hashlib.blake2b(data, digest_size=16).digest(), "little")


def check_chunks(location: Location, array: Any, files: Collection[str]) -> tuple[str, ...]:
    """Return a warning if chunks of an array in a folder are absent, because the format lets writers omit empty ones.

    Parameters
    ----------
    location : Location
    array : zarr.Array
    files : set of str
        The existing chunks, or shards; see `StoredFiles`.

    Raises
    ------
    SourceError
        If all chunks are absent, unless ``missing=fill`` is selected; if any is and ``missing=error`` is selected.
    """
    n_chunks = math.prod(_grid(array.shape, array.chunks))
    present = _present(array, files)
    if array.shards:
        folder = f"{array.path}/" if array.path else ""
        n_present = sum(_count_in_shard(location, array, f"{folder}{key}", at) for key, at in present.items())
    else:
        n_present = len(present)
    return _absent_warning(location, n_chunks - n_present, n_chunks, array.fill_value)


def check_remote_chunks(location: Location, array: Any) -> tuple[str, ...]:
    """Return a warning if chunks of an array at a URL are absent, as far as `MAX_REQUESTED` chunks can tell.

    Raises
    ------
    SourceError
        If all chunks were requested and none exists. Nothing is requested if ``missing=`` is selected.
    """
    if location.selection.missing is not None:
        return ()
    grid = _grid(array.shape, array.shards or array.chunks)
    n_chunks = math.prod(grid)
    chosen = range(0, n_chunks, math.ceil(n_chunks / MAX_REQUESTED))
    folder = f"{array.path}/" if array.path else ""
    keys = [folder + array.metadata.encode_chunk_key(_index(number, grid)) for number in chosen]
    n_absent = len(keys) - array.store.count(keys)
    if len(keys) == n_chunks:
        return _absent_warning(location, n_absent, n_chunks, array.fill_value)
    if n_absent == 0:
        return ()
    return (
        f"{location} lacks {n_absent} of {len(keys)} chunks that were requested, of {n_chunks}; absent ones are read "
        f"as {array.fill_value}, as its format defines (#missing=error makes this an error)",
    )


def _index(number: int, grid: Sequence[int]) -> tuple[int, ...]:
    """Return the index of a chunk in the grid from its number in C order; the grid may have more than 2**63 chunks."""
    index = []
    for side in reversed(grid):
        number, at = divmod(number, side)
        index.append(at)
    return tuple(reversed(index))


def _present(array: Any, files: Collection[str]) -> dict[str, tuple[int, ...]]:
    """Return the file names of existing chunks, or shards, and their indices; other files are ignored."""
    grid = _grid(array.shape, array.shards or array.chunks)
    first = array.metadata.encode_chunk_key((0,) * array.ndim)
    pattern = re.compile(re.escape(first).replace("0", r"(\d{1,18})"))
    matches = {name: pattern.fullmatch(name) for name in files}
    indices = {name: tuple(map(int, match.groups())) for name, match in matches.items() if match}
    return {name: at for name, at in indices.items() if all(i < n for i, n in zip(at, grid, strict=True))}


def _grid(shape: Sequence[int], chunks: Sequence[int]) -> list[int]:
    """Return the number of chunks along each axis."""
    return [math.ceil(side / chunk) for side, chunk in zip(shape, chunks, strict=True)]


def _absent_warning(location: Location, n_absent: int, n_chunks: int, fill: Any) -> tuple[str, ...]:
    missing, lacks = location.selection.missing, f"{location} lacks {n_absent} of its {n_chunks} chunks"
    if n_absent <= 0 or missing == "fill":
        return ()
    if missing == "error":
        raise SourceError(f"{lacks}, and #missing=error was given; copy or export it again")
    if n_absent >= n_chunks:
        raise SourceError(
            f"{location} has none of its {n_chunks} chunks; copy or export it again, or, if it is empty, add "
            "#missing=fill to the path"
        )
    return (f"{lacks}, which are read as {fill}, as its format defines (#missing=error makes this an error)",)


def _files(location: Location, folder: str) -> Iterator[tuple[str, Stamp]]:
    """Yield the name, relative to the folder, and the stamp of each file in a folder."""
    root = os.path.realpath(location.path)
    if os.path.commonpath([root, os.path.realpath(folder)]) != root:
        raise _outside_store(location, folder)
    for parent, folders, names in os.walk(folder):
        for name in folders:
            _checked_status(location, root, os.path.join(parent, name))
        within = os.path.relpath(parent, folder).replace(os.sep, "/")
        for name in names:
            status = _checked_status(location, root, os.path.join(parent, name))
            yield name if within == "." else f"{within}/{name}", stamp_of(status)


def _checked_status(location: Location, root: str, path: str) -> os.stat_result:
    """Return the status of a file or folder, or of the target of a link; the target must be inside the root."""
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        if os.path.commonpath([root, os.path.realpath(path)]) != root:
            raise _outside_store(location, path)
        with suppress(FileNotFoundError):
            status = os.stat(path)
    return status


def _outside_store(location: Location, path: str) -> SourceError:
    return SourceError(f"{location} contains a link to a target outside the store, {path}; copy the files instead")


def _count_in_shard(location: Location, array: Any, path: str, coordinates: Sequence[int]) -> int:
    """Return the number of chunks in the shard at a path in the store, among those inside the array."""
    sharding = array.metadata.codecs[0]
    codecs = [codec.to_dict()["name"] for codec in sharding.index_codecs]
    if codecs not in (["bytes", "crc32c"], ["bytes"]):
        raise SourceError(f"{location} has a shard index encoded with {listed(codecs)}; save it with zarr's defaults")
    per_shard = [shard // chunk for shard, chunk in zip(array.shards, array.chunks, strict=True)]
    nbytes, checksum = 16 * math.prod(per_shard), 4 * (len(codecs) - 1)
    archive = array.store.archive
    with open(os.path.join(location.path, path), "rb") if archive is None else archive.open_member(path) as stream:
        if sharding.to_dict()["configuration"]["index_location"] == "end":
            stream.seek(-nbytes - checksum, os.SEEK_END)
        index = np.frombuffer(stream.read(nbytes), "<u8").reshape(*per_shard, 2)
    # The last shards extend beyond the array, and have no chunks there.
    inside = tuple(
        slice(math.ceil((side - at * shard) / chunk))
        for side, at, shard, chunk in zip(array.shape, coordinates, array.shards, array.chunks, strict=True)
    )
    return int(np.count_nonzero((index[inside] != ABSENT).any(axis=-1)))
