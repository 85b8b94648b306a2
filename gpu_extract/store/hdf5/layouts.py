"""The layouts by name, and the HDF5 file of a layout without its tiles."""

from __future__ import annotations

import io
from math import prod
from typing import TYPE_CHECKING

import h5py

from gpu_extract.errors import OutputError
from gpu_extract.store.chunks import ChunkFormat
from gpu_extract.store.damage import NotCellsError
from gpu_extract.store.hdf5.fields import end_of_file
from gpu_extract.store.hdf5.h5sc import H5sc
from gpu_extract.store.hdf5.layout import Layout
from gpu_extract.store.hdf5.sparcspy import Sparcspy

if TYPE_CHECKING:
    from gpu_extract.store.contents import Contents

__all__ = ["LAYOUTS", "LIBVER", "choose_layout", "layout_of", "skeleton"]

# The format of HDF5 1.10, which every h5py in use can read. "latest" could be that of HDF5 2.0, which h5py 3.14 cannot.
LIBVER = ("v110", "v110")

LAYOUTS: dict[str, Layout] = {"h5sc": H5sc(), "sparcspy": Sparcspy()}


def choose_layout(name: str) -> Layout:
    """Return the layout of that name.

    Raises
    ------
    OutputError
        If there is none.
    """
    if name not in LAYOUTS:
        raise OutputError(f"unknown layout {name!r}; it must be {' or '.join(map(repr, LAYOUTS))}")
    return LAYOUTS[name]


def layout_of(file: h5py.File) -> Layout:
    """Return the layout of an open file.

    Raises
    ------
    NotCellsError
        If the file does not have the dataset of tiles of any layout.
    """
    for layout in LAYOUTS.values():
        if layout.images in file:
            return layout
    if file.attrs.get("encoding-type") == "anndata" or {"obs", "var"} <= set(file):
        raise NotCellsError(f"is an AnnData file without single-cell images ({H5sc.images})")
    missing = " and no ".join(layout.images for layout in LAYOUTS.values())
    raise NotCellsError(f"is not a file of cells: it has no {missing}")


def skeleton(contents: Contents, layout: Layout, format: ChunkFormat) -> bytes:
    """Return the HDF5 file without its tiles, which are stored after its end.

    The index of chunks is allocated and empty, and limits are 0.
    """
    memory = io.BytesIO()
    with h5py.File(memory, "w", libver=LIBVER) as file:
        layout.write(file, contents, format)
        if len(contents.cells) and not format.is_contiguous:
            _allocate_index(file[layout.images])
    written = memory.getvalue()
    # The end-of-file address of HDF5 includes allocated space that was never written; BytesIO ends earlier.
    return written[: end_of_file(written)].ljust(end_of_file(written), b"\0")


def _allocate_index(images: h5py.Dataset) -> None:
    """Make HDF5 allocate the whole index of the tiles, by writing a first chunk and removing it."""
    n_cells = len(images)
    images.id.write_direct_chunk((0, 0, 0, 0), bytes(images.dtype.itemsize * prod(images.chunks)))
    images.resize(0, axis=0)
    images.resize(n_cells, axis=0)
