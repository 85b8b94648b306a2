"""Arrays of other libraries as arrays that are read by slices: named axes, sparse and masked arrays."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import InputError
from gpu_extract.sources.axes import axis_positions

__all__ = ["ArrangedArray", "SparseArray", "arranged", "check_not_masked", "is_array", "remedy_for"]

# Cheap conversions of what is not an array, by the name of its type.
REMEDIES = {
    "list": "give numpy.array(...) of it",
    "tuple": "give numpy.array(...) of it",
    "memoryview": "give numpy.asarray(...) of it",
    "DataFrame": "give its values: table.to_numpy()",
    "Series": "give its values: column.to_numpy()",
    "Dataset": "give one of its variables, for example dataset['image']",
    "Group": "give one of its arrays, for example group['image']",
    "File": "give one of its datasets, for example file['image']",
    "Image": "give numpy.asarray(...) of it",
}
REMEDY = "give a path or an array (NumPy, Dask, Zarr, HDF5, xarray)"


@dataclass(frozen=True, eq=False)
class ArrangedArray:
    """An array whose axes are read in the order (c, y, x) or (y, x), whatever their order in the array.

    Parameters
    ----------
    array : array
    axes : tuple of int
        Positions of c, if there is one, y and x. Every other axis has length 1.
    names : tuple of str
        Names of the channels, or empty.
    """

    array: Any
    axes: tuple[int, ...]
    names: tuple[str, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "array": picklable(self.array)}

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes, in the order in which they are read."""
        return tuple(self.array.shape[axis] for axis in self.axes)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.axes)

    @property
    def dtype(self) -> Any:
        """Type of the elements."""
        return self.array.dtype

    def __getitem__(self, key: tuple[Any, ...]) -> NDArray[Any]:
        along = _full_key(key, self.ndim)
        inside: list[Any] = [0] * self.array.ndim
        for axis, part in zip(self.axes, along, strict=True):
            inside[axis] = part
        box = _unmasked(self.array[tuple(inside)])
        kept = [axis for axis, part in zip(self.axes, along, strict=True) if isinstance(part, slice)]
        return box.transpose([sorted(kept).index(axis) for axis in kept])


@dataclass(frozen=True, eq=False)
class SparseArray:
    """A sparse array (SciPy or PyData), of which each box is made dense when it is read."""

    array: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return tuple(self.array.shape)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def dtype(self) -> Any:
        """Type of the elements."""
        return self.array.dtype

    def __getitem__(self, key: tuple[Any, ...]) -> NDArray[Any]:
        box = self.array[_full_key(key, self.ndim)]
        return np.asarray(box.todense())


def is_array(candidate: Any) -> bool:
    """Return whether an object can be read by region, as NumPy, Dask, Zarr and h5py arrays can."""
    try:
        return all(hasattr(candidate, name) for name in ("shape", "dtype", "ndim", "__getitem__"))
    except Exception:  # such as ValueError of h5py for a closed file; `arranged` raises our error
        return True


def remedy_for(given: Any) -> str:
    """Return what to give instead of an object that is not an array."""
    if isinstance(given, list | tuple) and any(isinstance(item, str | os.PathLike) or is_array(item) for item in given):
        return "give one path or one array, without a list around it"
    return REMEDIES.get(type(given).__name__, REMEDY)


def arranged(array: Any, subject: str) -> Any:
    """Return an array with axes (c, y, x) or (y, x) that is read by slices; no pixel is read, and none is copied.

    Raises
    ------
    InputError
        If the array is masked, on a GPU, closed, of unknown shape, or its named axes cannot be read.
    """
    _check_readable(array, subject)
    if isinstance(array, ArrangedArray | SparseArray):
        return array
    if isinstance(array, np.ma.MaskedArray):
        check_not_masked(array, subject)
        array = array.data
    if _is_sparse(array):
        return _sparse(array, subject)
    names = _axis_names(array, subject)
    positions = names if isinstance(names, dict) else axis_positions(subject, names, array.shape)
    if positions is None:
        return array
    for axis in sorted(positions.keys() & {"t", "z"}):
        own = next((str(name) for name in getattr(array, "dims", ())[positions[axis] :]), "")
        remedy = f"array.isel({own}=0)" if hasattr(array, "isel") else f"one index of axis {positions[axis]}"
        raise InputError(f"{subject} has the axis {own or axis}; choose one of it first: {remedy}")
    axes = tuple(positions[axis] for axis in "cyx" if axis in positions)
    return ArrangedArray(array, axes, _channel_names(array, positions))


def check_not_masked(pixels: Any, subject: str) -> None:
    """Refuse masked pixels: NumPy would read what is below the mask.

    Raises
    ------
    InputError
    """
    if isinstance(pixels, np.ma.MaskedArray) and np.ma.is_masked(pixels):
        n = int(np.count_nonzero(np.ma.getmaskarray(pixels)))
        raise InputError(f"{subject} is masked at {n} pixels, whose values are not valid; give array.filled(0)")


def picklable(array: Any) -> Any:
    """Return a reference if the array is an h5py dataset, otherwise the array itself."""
    if "h5py" not in sys.modules:
        return array
    from gpu_extract.sources.hdf5 import as_reference

    return as_reference(array)


def _check_readable(array: Any, subject: str) -> None:
    try:
        shape = None if _is_h5py(array) and not array else array.shape
    except Exception:  # each library has its own
        shape = None
    if shape is None:
        raise InputError(f"{subject} belongs to a file that is closed; keep the file open, or give its path")
    if not isinstance(shape, Sequence) or any(isinstance(n, float) and math.isnan(n) for n in shape):
        raise InputError(f"{subject} has chunks of unknown size; call array.compute_chunk_sizes() first")
    if hasattr(array, "__cuda_array_interface__"):
        raise InputError(f"{subject} is on a GPU; give it in host memory, for example cupy.asnumpy(array)")
    meta = getattr(array, "_meta", None)  # of Dask: an empty array like its chunks
    if isinstance(meta, np.ma.MaskedArray):
        raise InputError(f"{subject} is a masked Dask array; give dask.array.ma.filled(array, 0)")
    if meta is not None and _is_sparse(meta):
        raise InputError(f"{subject} has sparse chunks; give array.map_blocks(lambda chunk: chunk.todense())")


def _is_h5py(array: Any) -> bool:
    return type(array).__module__.partition(".")[0] == "h5py"


def _is_sparse(array: Any) -> bool:
    module = type(array).__module__
    return (module.startswith("scipy.sparse") or module.partition(".")[0] == "sparse") and hasattr(array, "todense")


def _sparse(array: Any, subject: str) -> SparseArray:
    """Return a sparse array in a format that can be sliced."""
    if hasattr(array, "tocsr") and array.ndim == 2:
        return SparseArray(array.tocsr())
    if type(array).__module__.startswith("scipy.sparse"):
        raise InputError(f"{subject} is a sparse array of shape {tuple(array.shape)}; give one plane (H, W)")
    return SparseArray(array.asformat("coo") if hasattr(array, "asformat") else array)


def _axis_names(array: Any, subject: str) -> Sequence[str] | dict[str, int]:
    """Return the names of an array's axes, or their positions; empty if it has none."""
    if _is_h5py(array):
        from gpu_extract.sources.hdf5_axes import dataset_axes

        return dataset_axes(subject, array, InputError) or ()
    tags = getattr(array, "axistags", None)  # of vigra
    if tags is not None:
        return [str(tag.key) for tag in tags]
    for name in ("dims", "dimensions"):  # of xarray, of netCDF4
        names = getattr(array, name, None)
        if isinstance(names, tuple):
            return [str(each) for each in names]
    if type(array).__module__.partition(".")[0] == "zarr":
        named = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS") or ()
        return ["" if each is None else str(each) for each in named]
    return ()


def _channel_names(array: Any, positions: dict[str, int]) -> tuple[str, ...]:
    """Return the channel names in the coordinates of an xarray array; empty for other arrays."""
    coords = getattr(array, "coords", None)
    if coords is None:
        return ()
    name = array.dims[positions["c"]] if "c" in positions else "c"
    return tuple(str(each) for each in np.atleast_1d(coords[name].values)) if name in coords else ()


def _full_key(key: tuple[Any, ...], ndim: int) -> tuple[Any, ...]:
    """Return a key with one part per axis, from one that may begin with an ellipsis."""
    first, *rest = key
    if not isinstance(first, EllipsisType):
        return key
    return (*[slice(None)] * (ndim - len(rest)), *rest)


def _unmasked(box: Any) -> NDArray[Any]:
    check_not_masked(box, "array")
    return np.asarray(box)
