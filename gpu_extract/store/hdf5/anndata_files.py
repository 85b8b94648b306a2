"""Writer of AnnData files that anndata 0.9 and later can read, and h5repack can compress."""

from __future__ import annotations

import anndata
import h5py

__all__ = ["write_anndata"]


def write_anndata(file: h5py.File, data: anndata.AnnData) -> None:
    """Write an AnnData object at the root of an HDF5 file.

    Parameters
    ----------
    file : h5py.File
        Open for writing, and empty.
    data : anndata.AnnData
        Without ``X`` and ``raw``.
    """
    from anndata.io import write_elem

    write_elem(file, "/", data)
    for name, dataset in _datasets(file).items():
        if dataset.shape is None:
            # anndata 0.12 stores a null dataset for a missing ``raw``, 0.12.0 for ``X`` too. Earlier versions cannot
            # read one, and no version can then write to the file (``backed="r+"``).
            del file[name]
        elif 0 in dataset.shape:
            _chunk_empty(file, name)


def _datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Return all datasets of a file by name."""
    found: dict[str, h5py.Dataset] = {}

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item

    file.visititems(visit)
    return found


def _chunk_empty(file: h5py.File, name: str) -> None:
    """Replace an empty dataset by a chunked one.

    ``h5repack -f`` stores a contiguous dataset as one chunk, and fails if that chunk has length 0.
    """
    empty = file[name]
    attributes = dict(empty.attrs)
    shape, dtype = empty.shape, empty.dtype
    del file[name]
    chunked = file.create_dataset(
        name,
        shape,
        dtype,
        chunks=tuple(max(n, 1) for n in shape),
        maxshape=tuple(n or None for n in shape),  # no axis is shorter than its chunk
        track_times=False,
    )
    chunked.attrs.update(attributes)
