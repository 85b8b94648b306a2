"""Datasets of HDF5 files, read by region. No other file is ever opened for a dataset."""

from __future__ import annotations

import importlib
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import SourceError
from gpu_extract.hdf5_files import open_to_read
from gpu_extract.listing import listed
from gpu_extract.sources.arrays import raster_shape
from gpu_extract.sources.files import SourceFile, absolute_path, translated
from gpu_extract.sources.hdf5_axes import dataset_axes, has_axis_names
from gpu_extract.sources.names import cleaned
from gpu_extract.sources.selectors import Location
from gpu_extract.sources.stacks import Indices, Stack, absent
from gpu_extract.sources.tiles import Box, TiledPlanes, tile_size
from gpu_extract.sources.units import pixel_size

__all__ = ["TIME_COURSE", "DatasetReference", "Hdf5Planes", "as_reference", "open_hdf5", "opened_hdf5"]

# Image and labels of a classic SPARCSpy time course, (T, C, H, W). The fourth axis of any other dataset is unknown.
TIME_COURSE = ("/input_images", "/segmentation")

# Larger chunks are malicious, or too large to be read by region. The limit is the same in all formats.
MAX_CHUNK_NBYTES = 2**30
# Tiles of a dataset without chunks, which can be read in any rectangle.
UNCHUNKED_TILE = (512, 512)
# Channels whose names are read; no image has more.
MAX_NAMES = 10_000
# Maximum length of a chain of links. No valid file has more, and a cycle of links ends there.
MAX_LINKS = 32


class Piece(NamedTuple):
    """A part of the selected indices along an axis that is read in one slice.

    Parameters
    ----------
    to : slice
        Position among the selected indices.
    of : slice
        Position in the dataset.
    order : list of int
        Positions, within what is read, of the selected indices.
    """

    to: slice
    of: slice
    order: list[int]


@dataclass(frozen=True, eq=False)
class Hdf5Planes(TiledPlanes):
    """The planes of a dataset.

    Parameters
    ----------
    key, size, tile, dtype
        See `TiledPlanes`.
    file : SourceFile
    path : str
        Path of the dataset in the file, without links.
    axes : tuple of int
        Positions of the axes of planes, then of y and x. All other axes have length 1.
    ndim : int
        Number of axes of the dataset.
    """

    file: SourceFile
    path: str
    axes: tuple[int, ...]
    ndim: int

    def read_boxes(self, indices: Indices, boxes: Sequence[Box]) -> Iterator[NDArray[Any]]:
        """See `TiledPlanes.read_boxes`."""
        *outer, y, x = self.axes
        # A chunk holds many planes of an axis behind y or x; these are read at once, not one after the other.
        pieces = [
            _pieces(along, at_once=axis > min(y, x)) for axis, along in zip(outer, indices[: len(outer)], strict=True)
        ]
        with opened_hdf5(self.file) as h5:
            dataset = h5[self.path]
            for y0, x0, y1, x1 in boxes:
                pixels = np.empty((*(len(along) for along in indices[: len(outer)]), y1 - y0, x1 - x0), self.dtype)
                for parts in itertools.product(*pieces):
                    read = self._read(dataset, [*(part.of for part in parts), slice(y0, y1), slice(x0, x1)])
                    for axis, part in enumerate(parts):
                        read = read.take(part.order, axis)
                    pixels[tuple(part.to for part in parts)] = read
                yield pixels.reshape(-1, y1 - y0, x1 - x0)

    def _read(self, dataset: Any, along: Sequence[slice]) -> NDArray[Any]:
        """Return a rectangle of the dataset, with its axes in the order of `axes`."""
        inside: list[Any] = [0] * self.ndim
        for axis, part in zip(self.axes, along, strict=True):
            inside[axis] = part
        read: NDArray[Any] = dataset[tuple(inside)]
        return read.transpose([sorted(self.axes).index(axis) for axis in self.axes])


@dataclass(frozen=True)
class DatasetReference:
    """A reference to a dataset that the user opened with h5py; another process opens the file for each read.

    Parameters
    ----------
    file : str
        Absolute path of the file.
    path : str
        Path of the dataset in the file.
    shape : tuple of int
    dtype : numpy.dtype
    """

    file: str
    path: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __getitem__(self, box: Any) -> NDArray[Any]:
        with (
            translated(f"array {self.file}:{self.path}", "cannot be read"),
            open_to_read(self.file) as h5,
        ):
            pixels: NDArray[Any] = h5[self.path][box]
            return pixels


def as_reference(array: Any) -> Any:
    """Return a reference to a named h5py dataset in a file; any other array unchanged."""
    if not isinstance(array, h5py.Dataset) or array.name is None or not os.path.isfile(array.file.filename):
        return array
    return DatasetReference(absolute_path(array.file.filename), array.name, array.shape, array.dtype)


def open_hdf5(file: SourceFile, location: Location) -> Stack:
    """Return the planes of a dataset: that at the given path, or the only one in the file.

    Its axes are those that it names (see `hdf5_axes`), otherwise (C, H, W) or (H, W). The datasets of a classic
    SPARCSpy time course are (T, C, H, W).

    Raises
    ------
    SourceError
        If the dataset does not exist, is stored outside the file, or cannot be decoded.
    """
    location.selection.refuse(str(location), "level")
    with opened_hdf5(file) as h5:
        path = _resolved(location, h5, location.inside) if location.inside else _chosen_dataset(location, h5)
        dataset = h5[path]
        if not isinstance(dataset, h5py.Dataset):
            raise SourceError(f"{location} is a group, not a dataset; it holds {_listed(_datasets(location, dataset))}")
        if not _is_pixels(dataset):
            raise SourceError(
                f"{location} is a dataset of shape {dataset.shape} and type {dataset.dtype}; it must hold "
                f"{'numbers' if location.plane is None else 'integers'}, (C, H, W) or (H, W), or name its axes"
            )
        positions = dataset_axes(str(location), dataset) or _default_axes(location, dataset)
        letters = sorted(positions.keys() - {"y", "x"}, key=positions.__getitem__)
        axes = tuple(positions[axis] for axis in (*letters, "y", "x"))
        *sizes, H, W = (dataset.shape[axis] for axis in axes)
        raster_shape((math.prod(sizes), H, W), str(location), named=True)
        _check_storage(location, dataset)
        tile = tile_size([dataset.chunks[axis] for axis in axes]) if dataset.chunks else UNCHUNKED_TILE
        planes = Hdf5Planes(
            key=(*file.key, path),
            size=(H, W),
            tile=tile,
            dtype=dataset.dtype.newbyteorder("="),
            file=file,
            path=path,
            axes=axes,
            ndim=dataset.ndim,
        )
        names = _channel_names(dataset, positions)
        return Stack(location, "".join(letters), tuple(sizes), names, planes, _pixel_size(dataset))


def _default_axes(location: Location, dataset: Any) -> dict[str, int]:
    """Return the positions of the axes of a dataset that does not name them."""
    if dataset.ndim < 4:
        raster_shape(dataset.shape, str(location))
    return {axis: index for index, axis in enumerate("tcyx"[-dataset.ndim :])}


def _channel_names(dataset: Any, positions: dict[str, int]) -> tuple[str, ...]:
    """Return the texts of the scale of the channel axis; empty if it has none."""
    scales: Any = dataset.dims[positions["c"]] if "c" in positions else ()
    if not len(scales) or h5py.check_string_dtype(scales[0].dtype) is None:
        return ()
    if scales[0].ndim != 1 or scales[0].external or scales[0].is_virtual:  # reading it would open another file
        return ()
    return tuple(cleaned(name) for name in scales[0].asstr(errors="replace")[:MAX_NAMES])


def _pieces(along: tuple[int, ...], *, at_once: bool) -> list[Piece]:
    """Return the slices in which the selected indices along an axis are read."""
    first, n = min(along), len(along)
    span = max(along) + 1 - first
    if at_once or span == n:
        return [Piece(slice(None), slice(first, first + span), [index - first for index in along])]
    return [Piece(slice(at, at + 1), slice(index, index + 1), [0]) for at, index in enumerate(along)]


def _pixel_size(dataset: Any) -> tuple[float, float] | None:
    """Return (y, x) in um from the attribute (z, y, x) that the HDF5 plugins of ImageJ and ilastik write."""
    stated = np.asarray(dataset.attrs.get("element_size_um", ()))
    return pixel_size(stated[-2], stated[-1], "um", "um") if stated.shape == (3,) else None


@contextmanager
def opened_hdf5(file: SourceFile) -> Iterator[h5py.File]:
    """Open a file with h5py; any exception inside the block becomes a `SourceError`."""
    # Opening the stream checks that the file has not changed.
    with translated(file, "is a damaged HDF5 file"), file.open(), open_to_read(file.absolute) as h5:
        yield h5


def _resolved(location: Location, h5: h5py.File, path: str) -> str:
    """Return the path of an object without links. HDF5 does not resolve them, because it would open other files too."""
    parts, n_links = _parts(path), 0
    done: list[str] = []
    while parts:
        part = parts.pop(0)
        here = h5["/" + "/".join(done)]
        link = here.get(part, getlink=True) if isinstance(here, h5py.Group) else None
        if link is None:
            there = _listed(_datasets(location, h5))
            raise SourceError(f"{location} does not exist: the file has no {cleaned(path)}; it holds {there}")
        if isinstance(link, h5py.ExternalLink):
            raise SourceError(f"{location} is a link to another file, {cleaned(link.filename)}; give that file")
        if isinstance(link, h5py.SoftLink):
            n_links += 1
            if n_links > MAX_LINKS:
                raise SourceError(f"{location} leads through more than {MAX_LINKS} links; give the dataset itself")
            parts = _parts(link.path) + parts
            done = [] if link.path.startswith("/") else done
        else:
            done.append(part)
    return "/" + "/".join(done)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _chosen_dataset(location: Location, h5: h5py.File) -> str:
    """Return the path of the only dataset, or of the one that a selector names."""
    found = _datasets(location, h5)
    name = location.selection.label or location.selection.image
    if name is not None:
        named = [path for path in found if path.strip("/") == name.strip("/") or path.rpartition("/")[2] == name]
        if len(named) != 1:
            n = "several datasets" if named else "no dataset"
            raise SourceError(f"{location} has {n} of that name; it holds {_listed(named or found)}")
        return named[0]
    if len(found) == 1:
        return found[0]
    wanted = "(C, H, W) or (H, W)"
    if not found:
        raise SourceError(f"{location} holds no dataset of pixels, {wanted}; give another file")
    raise SourceError(f"{location} holds the datasets {_listed(found)}; choose one: {location.path}:{found[0]}")


def _datasets(location: Location, group: Any) -> list[str]:
    """Return the paths of all datasets that can be planes; links to other files are not followed.

    Label planes are datasets of integers, or of floating-point numbers if there is none of integers.
    """
    found: dict[str, str] = {}

    def visit(_: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and _is_pixels(node):
            found[node.name] = node.dtype.kind

    group.visititems(visit)
    integers = [path for path, kind in found.items() if kind in "iu"]
    return sorted(integers if integers and location.plane is not None else found)


def _is_pixels(dataset: Any) -> bool:
    if dataset.dtype.kind not in "iuf" or dataset.ndim < 2:
        return False
    most = 4 if dataset.name in TIME_COURSE else 3
    return dataset.ndim <= most or has_axis_names(dataset)


def _listed(paths: list[str]) -> str:
    return listed([cleaned(path) for path in paths]) or "no dataset of pixels"


def _check_storage(location: Location, dataset: Any) -> None:
    """Refuse a dataset whose pixels are in another file, absent, in chunks that are too large, or not decodable."""
    if dataset.external or dataset.is_virtual:
        kind = "a virtual dataset, made of other datasets" if dataset.is_virtual else "stored in another file"
        raise SourceError(f"{location} is {kind}; other files are not opened: copy its pixels into one file (ds[...])")
    _check_filters(location, dataset)
    itemsize = dataset.dtype.itemsize
    if dataset.chunks:
        if math.prod(dataset.chunks) * itemsize > MAX_CHUNK_NBYTES:
            raise SourceError(
                f"{location} has chunks of {math.prod(dataset.chunks) * itemsize} bytes, and at most "
                f"{MAX_CHUNK_NBYTES} are allowed; save it with smaller chunks, for example of 512 x 512 pixels"
            )
        grid = (math.ceil(side / chunk) for side, chunk in zip(dataset.shape, dataset.chunks, strict=True))
        n_absent, unit = math.prod(grid) - dataset.id.get_num_chunks(), "chunks"
    else:
        n_absent, unit = dataset.size * itemsize - dataset.id.get_storage_size(), "bytes"
    if n_absent > 0 and location.selection.missing != "fill":
        raise absent(location, n_absent, unit, dataset.fillvalue)


def _check_filters(location: Location, dataset: Any) -> None:
    settings = dataset.id.get_create_plist()
    numbers = [settings.get_filter(index)[0] for index in range(settings.get_nfilters())]
    for number in numbers:
        if not h5py.h5z.filter_avail(number):
            try:
                importlib.import_module("hdf5plugin")  # registers its filters
            except ModuleNotFoundError:
                raise _no_filter(location, number) from None
            if not h5py.h5z.filter_avail(number):
                raise _no_filter(location, number)


def _no_filter(location: Location, number: int) -> SourceError:
    return SourceError(
        f"{location} is compressed with HDF5 filter {number}, which is not installed; pip install hdf5plugin, "
        "or save it with gzip"
    )
