"""The codecs of tiles. Each one encodes and decodes the chunks of one compression.

=======  ==========================  ==================================================================
name     HDF5 filters                a chunk
=======  ==========================  ==================================================================
gzip     deflate                     a zlib stream
lzf      lzf, which h5py includes    liblzf
lz4      lz4, fletcher32             length, block length, then each block after its length; checksum
zstd     zstd, fletcher32            a frame with the size of its content; checksum
none                                 the values; the dataset has no chunks
=======  ==========================  ==================================================================

Other programs need a plugin (hdf5plugin) to read lz4 and zstd; this package does not. Only gzip includes a checksum.
lz4 and zstd usually decode a flipped bit to wrong values without an error, so their chunks end with HDF5's checksum.
lzf has no checksum, as in the files of scPortrait and SPARCSpy.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import OutputError

__all__ = ["CODECS", "Chunk", "Codec", "choose_codec"]

Chunk = bytes | memoryview

# Identifiers of HDF5 filters.
GZIP, LZF, LZ4, ZSTD, FLETCHER32 = 1, 32000, 32004, 32015, 3
CHECKSUM = struct.Struct("<I")

# imagecodecs annotates bytes only, but accepts arrays too.
_imagecodecs: Any = imagecodecs


class Codec(ABC):
    """One compression: its HDF5 filters, and the functions that encode and decode chunks.

    Attributes
    ----------
    name : str
    filters : tuple of int
        Identifiers of the HDF5 filters, in the order in which they are applied when writing.
    options : dict
        Arguments of `h5py.Group.create_dataset`.
    needs_plugin : bool
        Whether other programs need a plugin to read the file.
    """

    name: ClassVar[str]
    filters: ClassVar[tuple[int, ...]]
    options: ClassVar[dict[str, Any]]
    needs_plugin: ClassVar[bool] = False

    @property
    def has_chunks(self) -> bool:
        """Whether the dataset is chunked; otherwise it is contiguous."""
        return bool(self.filters)

    @abstractmethod
    def encode(self, blocks: NDArray[Any]) -> Sequence[Chunk]:
        """Encode each block of ``blocks``, (n, ...), C-contiguous, as one chunk."""

    def decode(self, chunk: bytes, out: NDArray[np.uint8], filter_mask: int = 0) -> None:
        """Decode a chunk into ``out``, without the GIL.

        Decoding stops at the end of ``out``, however much a chunk claims to hold. The caller provides the memory
        because allocating a tile takes longer than decoding it.

        Parameters
        ----------
        chunk : bytes
        out : (nbytes,) uint8
            Array of exactly the size of the decoded chunk.
        filter_mask : int
            Filter mask of HDF5: bit i is set if filter i was not applied to this chunk.

        Raises
        ------
        ValueError
            If the chunk is damaged or decodes to another number of bytes.
        """
        decoded = _copied if filter_mask & 1 else self._decoded
        try:
            n = decoded(chunk, out)
        except RuntimeError as error:  # base class of all errors of imagecodecs
            raise ValueError(f"its {self.name} stream is damaged or of another size ({error})") from error
        if n != len(out):
            raise ValueError(f"it does not decode to {len(out)} bytes")

    @abstractmethod
    def _decoded(self, chunk: bytes, out: NDArray[np.uint8]) -> int:
        """Decode a chunk into ``out`` and return the number of bytes decoded."""


class Gzip(Codec):
    """A zlib stream."""

    name, filters = "gzip", (GZIP,)
    options: ClassVar = {"compression": "gzip", "compression_opts": 1}

    def encode(self, blocks: NDArray[Any]) -> Sequence[Chunk]:
        """See `Codec.encode`. Blocks that are encoded together share one Huffman code."""
        from gpu_extract.backends.cpu.deflate import deflate  # imports numba, which is slow

        return deflate(blocks)

    def _decoded(self, chunk: bytes, out: NDArray[np.uint8]) -> int:
        # libdeflate decodes zlib streams twice as fast as isal.
        return len(_imagecodecs.deflate_decode(chunk, out=out))


class Lzf(Codec):
    """The LZF filter that is part of h5py."""

    name, filters = "lzf", (LZF,)
    options: ClassVar = {"compression": "lzf"}

    def encode(self, blocks: NDArray[Any]) -> Sequence[Chunk]:
        """See `Codec.encode`."""
        return [_imagecodecs.lzf_encode(block) for block in blocks]

    def _decoded(self, chunk: bytes, out: NDArray[np.uint8]) -> int:
        return len(_imagecodecs.lzf_decode(chunk, out=out))


class _WithChecksum(Codec):
    """A codec whose filter is a plugin and whose chunks end with HDF5's checksum."""

    needs_plugin = True

    def encode(self, blocks: NDArray[Any]) -> Sequence[Chunk]:
        """See `Codec.encode`."""
        chunks = map(self._encoded, blocks)
        return [chunk + fletcher32(chunk) for chunk in chunks]

    def decode(self, chunk: bytes, out: NDArray[np.uint8], filter_mask: int = 0) -> None:
        """See `Codec.decode`; a wrong checksum is an error."""
        if not filter_mask >> 1 & 1:
            chunk, stored = chunk[: -CHECKSUM.size], chunk[-CHECKSUM.size :]
            if fletcher32(chunk) != stored:
                raise ValueError("its checksum is wrong")
        super().decode(chunk, out, filter_mask)

    @abstractmethod
    def _encoded(self, block: NDArray[Any]) -> bytes:
        """Return the data of a chunk, without its checksum."""


def _plugin_options(identifier: int, option: int) -> dict[str, Any]:
    # HDF5 never applies the filter here, so it need not be available.
    return {
        "compression": identifier,
        "compression_opts": (option,),
        "allow_unknown_filter": True,
        "fletcher32": True,
    }


class Lz4(_WithChecksum):
    """The LZ4 blocks of HDF5's filter 32004."""

    name, filters = "lz4", (LZ4, FLETCHER32)
    options: ClassVar = _plugin_options(LZ4, 0)

    def _encoded(self, block: NDArray[Any]) -> bytes:
        acceleration = 4  # a third faster than 1, with 2 % larger output
        data: bytes = _imagecodecs.lz4h5_encode(block, acceleration)
        return data

    def _decoded(self, chunk: bytes, out: NDArray[np.uint8]) -> int:
        return len(_imagecodecs.lz4h5_decode(chunk, out=out))


class Zstd(_WithChecksum):
    """A Zstandard frame of HDF5's filter 32015."""

    name, filters = "zstd", (ZSTD, FLETCHER32)
    options: ClassVar = _plugin_options(ZSTD, 1)

    def _encoded(self, block: NDArray[Any]) -> bytes:
        data: bytes = _imagecodecs.zstd_encode(block, 1)
        return data

    def _decoded(self, chunk: bytes, out: NDArray[np.uint8]) -> int:
        return len(_imagecodecs.zstd_decode(chunk, out=out))


class Uncompressed(Codec):
    """The values, stored as they are in a contiguous dataset."""

    name, filters = "none", ()
    options: ClassVar[dict[str, Any]] = {}

    def encode(self, blocks: NDArray[Any]) -> Sequence[Chunk]:
        """See `Codec.encode`."""
        return [block.tobytes() for block in blocks]

    def _decoded(self, chunk: bytes, out: NDArray[np.uint8]) -> int:
        return _copied(chunk, out)


CODECS: dict[str, Codec] = {codec.name: codec for codec in (Gzip(), Lzf(), Lz4(), Zstd(), Uncompressed())}


def choose_codec(compression: str) -> Codec:
    """Return the codec of that name.

    Raises
    ------
    OutputError
        If there is none.
    """
    if compression not in CODECS:
        raise OutputError(f"unknown compression {compression!r}; it must be one of {', '.join(CODECS)}")
    return CODECS[compression]


def _copied(chunk: bytes, out: NDArray[np.uint8]) -> int:
    """Copy a chunk that no filter was applied to, if its size is right, and return its size."""
    if len(chunk) == len(out):
        out[:] = np.frombuffer(chunk, np.uint8)
    return len(chunk)


def fletcher32(data: bytes) -> bytes:
    """Return the Fletcher-32 checksum of ``data`` that HDF5 appends to a chunk, 4 bytes."""
    return CHECKSUM.pack(imagecodecs.h5checksum_fletcher32(data))
