"""Creation and inspection of the dataset of tiles."""

from __future__ import annotations

from math import ceil, prod

import h5py
import numpy as np

from gpu_extract.errors import OutputError
from gpu_extract.store.chunks import ChunkFormat
from gpu_extract.store.codecs import CODECS, Codec

__all__ = ["check_chunks", "codec_of", "compression_of", "create_images", "format_of"]


def create_images(file: h5py.File, name: str, n_cells: int, n_planes: int, format: ChunkFormat) -> h5py.Dataset:
    """Create a dataset (n_cells, n_planes, S, S) of this format, without any chunks."""
    shape = (n_cells, n_planes, *format.shape[2:])
    if format.is_contiguous:
        # HDF5 must not write fill values, since the tiles are written without it.
        return file.create_dataset(name, shape, format.dtype, track_times=False, fill_time="never")
    # HDF5 creates no index for a dataset that is limited to one chunk.
    maxshape = (max(n_cells, format.shape[0] + 1), *shape[1:])
    return file.create_dataset(
        name,
        shape,
        format.dtype,
        chunks=format.shape,
        maxshape=maxshape,
        track_times=False,
        **format.codec.options,
    )


def codec_of(images: h5py.Dataset) -> Codec | None:
    """Return the codec of a dataset, or None if no codec has its filters."""
    properties = images.id.get_create_plist()
    filters = tuple(properties.get_filter(i)[0] for i in range(properties.get_nfilters()))
    return next((codec for codec in CODECS.values() if codec.filters == filters), None)


def compression_of(images: h5py.Dataset) -> str:
    """Return the name of a dataset's codec, ``other filters`` if it has none."""
    codec = codec_of(images)
    return "other filters" if codec is None else codec.name


def format_of(images: h5py.Dataset) -> ChunkFormat:
    """Return the format of a dataset created by `create_images`."""
    codec = codec_of(images)
    assert codec is not None
    return ChunkFormat(images.chunks or (1, *images.shape[1:]), images.dtype, codec.name)


def check_chunks(images: h5py.Dataset) -> None:
    """Check that every chunk exists, since HDF5 reads missing chunks as zeros without an error.

    Raises
    ------
    OutputError
        If a chunk is missing. The message has the first row without one.
    """
    if images.chunks is None:
        return
    per_row = prod(ceil(n / c) for n, c in zip(images.shape[1:], images.chunks[1:], strict=True))
    rows_per_chunk = images.chunks[0]
    found = np.zeros(ceil(images.shape[0] / rows_per_chunk), np.int64)

    def count(chunk: h5py.h5d.StoreInfo) -> None:
        found[chunk.chunk_offset[0] // rows_per_chunk] += 1

    images.id.chunk_iter(count)
    missing = np.flatnonzero(found != per_row)
    if len(missing):
        raise OutputError(
            f"row {missing[0] * rows_per_chunk} was never written ({found.sum()} of {per_row * len(found)} "
            "chunks are there); the run that wrote the file did not finish"
        )
