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
import numpy as np
from numpy.typing import NDArray

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

CHECKSUM = struct.Struct("<I")
# libdeflate takes half of isal's time for a zlib stream.
DECODERS: dict[str, Callable[..., Any]] = {
    "gzip": imagecodecs.deflate_decode,
    "lzf": imagecodecs.lzf_decode,
    "lz4": imagecodecs.lz4h5_decode,
    "zstd": imagecodecs.zstd_decode,
}


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


def decompress(compression: str, chunk: bytes, out: NDArray[np.uint8], skipped: int = 0) -> None:
    """Fill ``out`` with the values of a chunk, as bytes; without the GIL where the time goes.

    A chunk that claims to hold more is never unpacked further. The memory is the caller's, since new memory of the size
    of a tile takes longer than decoding it.

    Parameters
    ----------
    compression : str
    chunk : bytes
    out : (nbytes,) uint8
        As many bytes as the chunk must hold.
    skipped : int
        HDF5's filter mask: bit i is set where filter i was not applied to this chunk.

    Raises
    ------
    ValueError
        If the chunk is damaged or holds another number of bytes.
    """
    filters = FILTERS[compression]
    if FLETCHER32 in filters and not skipped >> 1 & 1:
        chunk = _without_checksum(chunk)
    if not filters or skipped & 1:
        n = len(chunk)
        if n == len(out):
            out[:] = np.frombuffer(chunk, np.uint8)
    else:
        try:
            n = len(DECODERS[compression](chunk, out=out))
        except RuntimeError as error:  # what all errors of imagecodecs are
            raise ValueError(f"its {compression} stream is damaged or of another size ({error})") from error
    if n != len(out):
        raise ValueError(f"it does not hold {len(out)} bytes")


def fletcher32(data: bytes) -> bytes:
    """HDF5's checksum of some bytes, 4 bytes that follow them in a chunk."""
    return CHECKSUM.pack(imagecodecs.h5checksum_fletcher32(data))


def _without_checksum(chunk: bytes) -> bytes:
    data, told = chunk[: -CHECKSUM.size], chunk[-CHECKSUM.size :]
    if fletcher32(data) != told:
        raise ValueError("its checksum is wrong")
    return data
