"""The masks in cellpose's ``_seg.npy``, a pickle, read by an unpickler that never runs code from the file.

NumPy's own reconstruction of arrays is not used either: the unpickler records the description of an array, and an
array is created from it only if its type is a plain number and its size is correct.
"""

from __future__ import annotations

import io
import math
import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import LabelError
from gpu_extract.sources import caches
from gpu_extract.sources.arrays import raster_shape, read_box
from gpu_extract.sources.files import SourceFile, translated
from gpu_extract.sources.numpy_files import read_header

__all__ = ["CellposeRaster", "open_cellpose"]

REMEDY = "give the masks as TIFF (cellpose: _cp_masks.tif)"


@dataclass(frozen=True, eq=False)
class CellposeRaster:
    """The label plane of a ``_seg.npy``, its ``masks``, (H, W); cached in `caches.WHOLE`.

    Parameters
    ----------
    file : SourceFile
    shape : (1, H, W)
    dtype : numpy.dtype, in the machine's byte order
    """

    file: SourceFile
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    names: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """See `Raster.source`."""
        return self.file.path

    def read(self, y0: int, x0: int, y1: int, x1: int) -> NDArray[Any]:
        """See `Raster.read`."""
        return read_box(caches.WHOLE.read(self, self.file.key, self._load), y0, x0, y1, x1)

    def _load(self) -> NDArray[Any]:
        return _load(self.file)


def open_cellpose(file: SourceFile) -> CellposeRaster:
    """Load the masks and return their raster.

    Raises
    ------
    SourceError, LabelError
        If the pickle holds anything but arrays and plain containers, or has no masks.
    """
    masks = _load(file)
    raster = CellposeRaster(file, raster_shape(masks.shape, str(file)), masks.dtype)
    caches.WHOLE.read(raster, file.key, lambda: masks)
    return raster


class _Dtype:
    """The description of a dtype in a pickle."""

    def __init__(self, text: str, *_: Any) -> None:
        self.text = text
        self.byteorder = "="

    def __setstate__(self, state: Any) -> None:
        self.byteorder = state[1]


class _Array:
    """The description of an array in a pickle, or of a scalar, which is never used."""

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self) -> NDArray[Any]:
        """Return the array.

        Raises
        ------
        TypeError, ValueError
            If it does not hold plain numbers, or not as many as its shape says.
        """
        _, shape, dtype, is_fortran, data = self.state
        if dtype.text[:1] not in "biuf" or not isinstance(data, bytes):
            raise TypeError(f"the masks are of type {dtype.text}")
        kind = np.dtype(dtype.text).newbyteorder("=" if dtype.byteorder == "|" else dtype.byteorder)
        if len(data) != math.prod(shape) * kind.itemsize:
            raise ValueError(f"{len(data)} bytes for masks of shape {shape}")
        array = np.frombuffer(data, kind).reshape(shape, order="F" if is_fortran else "C")
        return array.astype(kind.newbyteorder("="), copy=False)


class _Unpickler(pickle._Unpickler):
    """Python's unpickler written in Python; the one in C allocates whatever size the pickle claims."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "dtype" and module == "numpy":
            return _Dtype
        is_array = (module, name) == ("numpy", "ndarray") or (
            module in ("numpy._core.multiarray", "numpy.core.multiarray") and name in ("_reconstruct", "scalar")
        )
        if is_array:
            return _Array
        raise ValueError(f"it asks for {module}.{name}, and only arrays and plain containers are ever loaded")


def _load(file: SourceFile) -> NDArray[Any]:
    with translated(f"{file} cannot be read as a _seg.npy of cellpose", REMEDY), file.open() as stream:
        read_header(stream)
        content = _Unpickler(io.BytesIO(stream.read())).load()
        return _masks(file, content)


def _masks(file: SourceFile, content: Any) -> NDArray[Any]:
    if isinstance(content, _Array) and content.state is not None:
        # numpy.save stores a dict as an array without dimensions.
        _, shape, _, _, data = content.state
        if tuple(shape) == () and isinstance(data, list) and len(data) == 1:
            content = data[0]
    masks = content.get("masks") if isinstance(content, dict) else None
    if not isinstance(masks, _Array):
        raise LabelError(
            f"{file} is a pickle without masks, so it is not from cellpose; save the labels with numpy.save"
        )
    return masks.array()
