"""Zip archives that hold a Zarr store: ``.zarr.zip``, ``.ozx`` and the ``cells.zarr.zip`` of Xenium."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Iterable

from gpu_extract.errors import SourceError
from gpu_extract.sources import caches
from gpu_extract.sources.files import absolute_path, stamp_of
from gpu_extract.sources.names import cleaned

__all__ = ["check_members", "is_zipped_zarr", "store_root"]

MAGIC = b"PK\x03\x04"
ZARR_KEYS = ("zarr.json", ".zarray", ".zgroup")
# As for chunks in folders: larger members cannot be read by region.
MAX_MEMBER_NBYTES = 2**30
# Deflate makes at most 1032 bytes of one (zlib's technical notes). Zstandard and others could make more, but Zarr
# compresses its chunks itself, so that zips of Zarr hold members as they are, or deflated by a general zip program.
MAX_RATIO = 1032
# Methods that zipfile reads on all supported versions of Python.
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def is_zipped_zarr(path: str) -> bool:
    """Return whether a path is a zip archive that holds a Zarr store, in its root or in its only folder."""
    absolute = absolute_path(path)
    try:
        status = os.stat(absolute)
        if not stat.S_ISREG(status.st_mode):
            return False
        with open(absolute, "rb") as stream:
            if stream.read(len(MAGIC)) != MAGIC:
                return False
    except (OSError, ValueError):
        return False
    # The list of members may be long.
    return bool(caches.OPENED.get(("is_zipped_zarr", absolute, stamp_of(status)), lambda: _holds_store(absolute)))


def _holds_store(path: str) -> bool:
    try:
        with zipfile.ZipFile(path) as file:
            return store_root(file) is not None
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def store_root(file: zipfile.ZipFile) -> str | None:
    """Return the folder of the archive that is the root of a store; None if there is none."""
    names = file.namelist()
    if any(key in file.NameToInfo for key in ZARR_KEYS):
        return ""
    folders = {name.partition("/")[0] for name in names}
    if len(folders) == 1 and any(f"{(folder := next(iter(folders)))}/{key}" in file.NameToInfo for key in ZARR_KEYS):
        return f"{folder}/"
    return None


def check_members(subject: str, members: Iterable[zipfile.ZipInfo]) -> None:
    """Raise an error if members have names that lead out of the archive, or sizes that no chunk has.

    Raises
    ------
    SourceError
    """
    for member in members:
        name = cleaned(member.filename)
        if member.filename.startswith("/") or "\\" in member.filename or ".." in member.filename.split("/"):
            raise SourceError(f"{subject} has a member named {name!r}, which leads out of the archive; zip it again")
        if member.flag_bits & 1 or member.compress_type not in METHODS:
            raise SourceError(
                f"{subject} has members that are encrypted or compressed by method {member.compress_type}; "
                "zip it again without, or unzip it and give the folder"
            )
        if member.file_size > MAX_MEMBER_NBYTES or member.file_size > MAX_RATIO * max(member.compress_size, 1):
            raise SourceError(
                f"{subject} has the member {name} of {member.file_size} bytes, from {member.compress_size} in the "
                f"archive, and at most {MAX_MEMBER_NBYTES} are read; save it with smaller chunks"
            )
