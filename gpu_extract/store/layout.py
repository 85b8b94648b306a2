"""The HDF5 file without its tiles, in either layout."""

from __future__ import annotations

import io
from math import prod
from typing import Protocol

import h5py

from gpu_extract.errors import OutputError
from gpu_extract.store.codecs import ChunkFormat
from gpu_extract.store.contents import Contents
from gpu_extract.store.h5sc import H5sc
from gpu_extract.store.hdf5_fields import end_of_file
from gpu_extract.store.sparcspy import Sparcspy

__all__ = ["LAYOUTS", "LIBVER", "Layout", "choose_layout", "layout_of", "skeleton"]

# HDF5 1.10's format, which every h5py of today reads; "latest" would be HDF5 2.0's, which h5py 3.14 does not.
LIBVER = ("v110", "v110")


class Layout(Protocol):
    """Where things stand in a file of cells."""

    @property
    def images(self) -> str:
        """Name of the dataset of tiles, (N, K, S, S)."""

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the datasets of lower and upper values, (N, C) each, known only at the end; or none."""

    def format(self, contents: Contents, compression: str, chunk_cells: int = 1) -> ChunkFormat:
        """How its tiles are stored, so many cells in a chunk.

        Raises
        ------
        OutputError
            If the contents cannot be held in this layout.
        """

    def write(self, file: h5py.File, contents: Contents, format: ChunkFormat) -> None:
        """Everything but the tiles, whose dataset is made and empty; levels are 0."""


LAYOUTS: dict[str, Layout] = {"h5sc": H5sc(), "sparcspy": Sparcspy()}


def choose_layout(name: str) -> Layout:
    """The layout of that name.

    Raises
    ------
    OutputError
    """
    if name not in LAYOUTS:
        raise OutputError(f"unknown layout {name!r}; it must be {' or '.join(map(repr, LAYOUTS))}")
    return LAYOUTS[name]


def layout_of(file: h5py.File) -> Layout:
    """The layout of an open file.

    Raises
    ------
    OutputError
        If it has none of the datasets in which tiles are kept.
    """
    for layout in LAYOUTS.values():
        if layout.images in file:
            return layout
    raise OutputError(f"it has no {' and no '.join(layout.images for layout in LAYOUTS.values())}")


def skeleton(contents: Contents, layout: Layout, format: ChunkFormat) -> bytes:
    """The whole HDF5 file but for its tiles, which are to follow its end, and their index; levels are 0."""
    memory = io.BytesIO()
    with h5py.File(memory, "w", libver=LIBVER) as file:
        layout.write(file, contents, format)
        if not format.is_contiguous:
            _allocate_index(file[layout.images])
    written = memory.getvalue()
    # HDF5 counts space that it has not written; BytesIO does not.
    return written[: end_of_file(written)].ljust(end_of_file(written), b"\0")


def _allocate_index(images: h5py.Dataset) -> None:
    """Make HDF5 allocate the whole index of the tiles, which it does at the first one; then remove that one."""
    n_cells = len(images)
    images.id.write_direct_chunk((0, 0, 0, 0), bytes(images.dtype.itemsize * prod(images.chunks)))
    images.resize(0, axis=0)
    images.resize(n_cells, axis=0)
