"""What tells the pixels of a slide from others, in milliseconds: sizes, times and a sample of their bytes.

A run that goes on after another one compares these, since tiles of other pixels must not end in one file. Of files, the
size, the modification time and a digest of their beginning, their end and some blocks between are taken; of a folder of
Zarr the same over all files of the array; of arrays and remote files the pixels of some boxes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, BinaryIO, cast

import numpy as np

from gpu_extract.errors import SourceError
from gpu_extract.model import Raster, Slide
from gpu_extract.sources.arrays import ArrayRaster
from gpu_extract.sources.files import SourceFile, translated
from gpu_extract.sources.zarr_arrays import ZarrPlanes

__all__ = ["slide_fingerprint"]

# Headers, and the directories of most files, are within this many bytes of their beginning or their end.
N_ENDS = 1 << 14
# Blocks between, for all files of a raster together, and bytes of each.
N_BLOCKS, BLOCK = 8, 1 << 12
# Boxes of an array, and their side in pixels.
N_BOXES, SIDE = 8, 64
SEED = 0

Fingerprint = dict[str, Any]


def slide_fingerprint(slide: Slide) -> Fingerprint:
    """Return what is compared of the inputs of a slide, as values for JSON, by ``image`` and names of label planes.

    Raises
    ------
    SourceError
        If a file cannot be read, or has changed since it was opened.
    """
    return {name: _raster(raster) for name, raster in {"image": slide.image, **slide.masks}.items()}


def _raster(raster: Raster) -> Fingerprint:
    found: Fingerprint = {"shape": list(raster.shape), "dtype": raster.dtype.name}
    parts = list(_parts(raster))
    files = {part.path: part for part in parts if isinstance(part, SourceFile)}
    zarrs = [part for part in parts if isinstance(part, ZarrPlanes) and not part.location.is_url]
    n_blocks = max(N_BLOCKS // max(len(files), 1), 1)
    for path, file in files.items():
        found[path] = _file(file, n_blocks)
    for planes in zarrs:
        found[os.path.join(planes.location.path, planes.array.path)] = _folder(planes)
    # Of what is remote or in memory nobody knows when it was changed; outlines are drawn, and kept in memory.
    if not parts or any(isinstance(part, ArrayRaster) or _is_remote(part) for part in parts):
        found["sample"] = _pixels(raster)
    return found


def _parts(value: Any) -> Iterator[SourceFile | ZarrPlanes | ArrayRaster]:
    """Yield the files and arrays that a raster reads. Rasters are values, whose fields hold other rasters and files."""
    if isinstance(value, SourceFile | ArrayRaster):
        yield value
    elif isinstance(value, ZarrPlanes):
        archive = value.array.store.archive
        yield value if archive is None else SourceFile.at(archive.path, value.location.plane)
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _parts(each)
    elif isinstance(value, Mapping):
        yield from _parts(list(value.values()))
    elif type(value).__module__.startswith("gpu_extract."):
        yield from _parts(list(vars(value).values()) if hasattr(value, "__dict__") else [])


def _is_remote(part: SourceFile | ZarrPlanes | ArrayRaster) -> bool:
    return part.is_remote if isinstance(part, SourceFile) else isinstance(part, ZarrPlanes) and part.location.is_url


def _file(file: SourceFile, n_blocks: int) -> Fingerprint:
    _, nbytes, changed = file.stamp
    if file.is_remote:  # instead of the time, what the server says of the version
        return {"bytes": nbytes, "version": f"{changed:x}"}
    with file.open() as stream, translated(file, "cannot be read"):
        return {"bytes": nbytes, "modified": _time(changed), "sample": _sample(stream, nbytes, n_blocks)}


def _folder(planes: ZarrPlanes) -> Fingerprint:
    listing = planes.listing
    assert listing is not None
    folder = os.path.join(cast(tuple[str, ...], planes.key)[0], planes.array.path)
    digest = hashlib.blake2b(digest_size=16)
    with translated(planes.location, "cannot be read"):
        for name in listing.sampled:
            with open(os.path.join(folder, name), "rb") as stream:
                digest.update(_sample(stream, os.fstat(stream.fileno()).st_size, 1).encode())
    return {
        "files": listing.n_files,
        "bytes": listing.nbytes,
        "modified": _time(listing.modified),
        "names, sizes and times": listing.digest,
        "sample": digest.hexdigest(),
    }


def _sample(stream: BinaryIO, nbytes: int, n_blocks: int) -> str:
    """Return a digest of the beginning, the end and some blocks of a file."""
    starts = np.random.default_rng(SEED).integers(0, max(nbytes - BLOCK, 1), n_blocks)
    digest = hashlib.blake2b(digest_size=16)
    for start, n in [(0, N_ENDS), (max(nbytes - N_ENDS, 0), N_ENDS), *((start, BLOCK) for start in starts.tolist())]:
        digest.update(os.pread(stream.fileno(), n, start))
    return digest.hexdigest()


def _pixels(raster: Raster) -> str:
    """Return a digest of the pixels in some boxes."""
    _, H, W = raster.shape
    random = np.random.default_rng(SEED)
    digest = hashlib.blake2b(digest_size=16)
    for _ in range(N_BOXES):
        y0, x0 = (int(random.integers(0, max(length - SIDE, 0) + 1)) for length in (H, W))
        box = raster.read(y0, x0, min(y0 + SIDE, H), min(x0 + SIDE, W))
        digest.update(np.ascontiguousarray(box).data)
    return digest.hexdigest()


def _time(ns: int) -> str:
    seconds, rest = divmod(ns, 10**9)
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{rest:09} UTC"
    except (OverflowError, OSError, ValueError) as error:
        raise SourceError(f"a file has the impossible modification time {ns} ns; touch it") from error
