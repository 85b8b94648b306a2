"""The compressions of tiles: how HDF5 names each of them, and the bytes of a chunk back to values.

=======  ==========================  ==================================================================
name     HDF5's filters              a chunk
=======  ==========================  ==================================================================
gzip     deflate                     a zlib stream
lzf      lzf, which comes with h5py  liblzf
lz4      lz4, fletcher32             length, block length, then the blocks, each after its own; checksum
zstd     zstd, fletcher32            a frame with its content's size; checksum
none                                 the values; a dataset without chunks
=======  ==========================  ==================================================================

lz4 and zstd need a plugin in other readers (hdf5plugin); we decode them without. Only gzip checks itself: lz4 and
zstd mostly turn a flipped bit into wrong values without a word, so HDF5's own checksum follows them. lzf is as
scPortrait and SPARCSpy have it, without.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import h5py
import imagecodecs
from isal import isal_zlib
from isal.igzip_lib import IsalError

from gpu_extract.errors import OutputError

__all__ = ["COMPRESSIONS", "FILTERS", "PLUGINS", "check_compression", "compression_of", "decompress", "fletcher32"]

GZIP, LZF, LZ4, ZSTD, FLETCHER32 = 1, 32000, 32004, 32015, 3
# The identifiers of HDF5's filters, in the order in which a chunk passes them when it is written.
FILTERS: dict[str, tuple[int, ...]] = {
    "gzip": (GZIP,),
    "lzf": (LZF,),
    "lz4": (LZ4, FLETCHER32),
    "zstd": (ZSTD, FLETCHER32),
    "none": (),
}
COMPRESSIONS = tuple(FILTERS)
# What other programs read only with a plugin.
PLUGINS = ("lz4", "zstd")

ZLIB_STREAM = 15  # zlib's wbits: a zlib header around a window of 32 KiB
CHECKSUM = struct.Struct("<I")


def check_compression(compression: str) -> None:
    """Refuse a compression that is not written.

    Raises
    ------
    OutputError
    """
    if compression not in COMPRESSIONS:
        raise OutputError(f"compression {compression!r} is not written; it must be one of {', '.join(COMPRESSIONS)}")


def compression_of(images: h5py.Dataset) -> str | None:
    """The compression of a dataset, None if it has other filters than any of ours."""
    properties = images.id.get_create_plist()
    filters = tuple(properties.get_filter(i)[0] for i in range(properties.get_nfilters()))
    return next((name for name, ours in FILTERS.items() if ours == filters), None)


def decompress(compression: str, chunk: bytes, nbytes: int, skipped: int = 0) -> bytes:
    """The values of a chunk, as bytes; a chunk that claims to hold more is never unpacked further.

    Parameters
    ----------
    compression : str
    chunk : bytes
    nbytes : int, bytes
        What the chunk must hold.
    skipped : int
        HDF5's filter mask: bit i is set where filter i was not applied to this chunk.

    Raises
    ------
    ValueError
        If the chunk is damaged or holds another number of bytes.
    """
    filters = FILTERS[compression]
    for i in reversed(range(len(filters))):
        if not skipped >> i & 1:
            chunk = UNDO[filters[i]](chunk, nbytes)
    if len(chunk) != nbytes:
        raise ValueError(f"it does not hold {nbytes} bytes")
    return chunk


def fletcher32(data: bytes) -> bytes:
    """HDF5's checksum of some bytes, 4 bytes that follow them in a chunk."""
    return CHECKSUM.pack(imagecodecs.h5checksum_fletcher32(data))


def _without_checksum(chunk: bytes, nbytes: int) -> bytes:
    data, told = chunk[: -CHECKSUM.size], chunk[-CHECKSUM.size :]
    if fletcher32(data) != told:
        raise ValueError("its checksum is wrong")
    return data


def _gunzip(chunk: bytes, nbytes: int) -> bytes:
    stream = isal_zlib.decompressobj(ZLIB_STREAM)
    try:
        data: bytes = stream.decompress(chunk, nbytes + 1)
    except IsalError as error:  # type: ignore[misc]  # isal's stubs call the class an instance
        raise ValueError(f"its gzip stream is damaged ({error})") from error
    # Only at its end has the stream been compared with its checksum.
    if len(data) <= nbytes and not stream.eof:
        raise ValueError("its gzip stream is cut short")
    return data


def _by(name: str, decode: Callable[..., Any]) -> Callable[[bytes, int], bytes]:
    def undo(chunk: bytes, nbytes: int) -> bytes:
        try:
            data: bytes = decode(chunk, out=nbytes)
        except RuntimeError as error:  # what all errors of imagecodecs are
            raise ValueError(f"its {name} block is damaged or of another size ({error})") from error
        return data

    return undo


UNDO: dict[int, Callable[[bytes, int], bytes]] = {
    GZIP: _gunzip,
    LZF: _by("lzf", imagecodecs.lzf_decode),
    LZ4: _by("lz4", imagecodecs.lz4h5_decode),
    ZSTD: _by("zstd", imagecodecs.zstd_decode),
    FLETCHER32: _without_checksum,
}
