"""The masks in cellpose's ``_seg.npy``, a pickle, read by an unpickler that never runs code from the file.

NumPy's own reconstruction of arrays is not used either: the unpickler records the description of an array, and an
array is created from it only if its type is a plain number and its size is correct.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import LabelError
from gpu_extract.sources import caches
from gpu_extract.sources.arrays import raster_shape, read_box
from gpu_extract.sources.files import SourceFile, translated
from gpu_extract.sources.numpy_files import read_header

__all__ = ["CellposeRaster", "open_cellpose"]

# Types of plain numbers, as NumPy pickles them: boolean, integer or float, and bytes.
PLAIN = re.compile(r"[biuf][0-9]{1,2}")
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
        if not (isinstance(dtype, _Dtype) and PLAIN.fullmatch(str(dtype.text)[:9]) and isinstance(data, bytes)):
            raise TypeError(f"the masks are of type {str(getattr(dtype, 'text', 'unknown'))[:9]}")
        if not all(type(n) is int and n >= 0 for n in shape):  # with anything else, prod() may allocate memory
            raise TypeError("the masks have no shape")
        kind = np.dtype(dtype.text).newbyteorder(">" if dtype.byteorder == ">" else "<")
        if len(data) != math.prod(shape) * kind.itemsize:
            raise ValueError(f"{len(data)} bytes for masks of shape {shape}")
        array = np.frombuffer(data, kind).reshape(shape, order="F" if is_fortran else "C")
        return array.astype(kind.newbyteorder("="), copy=False)


def _path_text(*parts: Any) -> str:
    """Return the text of a path in a pickle."""
    return "/".join(part for part in parts if isinstance(part, str))


def _encoded(text: Any, encoding: Any) -> bytes:
    """Return bytes that protocol 2 stores as text."""
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError("it holds bytes in an unknown encoding")
    return text.encode("latin1")


def _empty_dict(*_: Any) -> dict[str, Any]:
    """Return the dict that an ordered dict in a pickle becomes; its items follow in the pickle."""
    return {}


def _array_of_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    """Return the description of an array that NumPy pickled by protocol 5."""
    array = _Array()
    array.state = None, shape, dtype, order == "F", data
    return array


# What a pickle may call, by module and name. Python 3.13 has its paths in a module of their own.
ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("collections", "OrderedDict"): _empty_dict,
    ("_codecs", "encode"): _encoded,
    **{(f"numpy.{core}.multiarray", name): _Array for core in ("core", "_core") for name in ("_reconstruct", "scalar")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _array_of_buffer for core in ("core", "_core")},
    **{
        (module, f"{pure}{system}Path"): _path_text
        for module in ("pathlib", "pathlib._local")
        for pure in ("", "Pure")
        for system in ("Posix", "Windows")
    },
}
# Opcodes of what only other objects need: sets, whose members are hashed, instances and registered extensions.
REFUSED = b"".join(
    (
        *(pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET),
        *(pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.INST, pickle.OBJ),
        *(pickle.EXT1, pickle.EXT2, pickle.EXT4),
    )
)


class _Unpickler(pickle._Unpickler):
    """Python's unpickler written in Python, restricted to arrays and plain containers.

    The one in C allocates whatever size the pickle claims. This one calls only what `ALLOWED` holds, allocates no more
    than the file has bytes, and takes only texts and integers as keys: hashing a nested tuple that was made for it
    would take forever or exhaust the stack.
    """

    # What the base class has, and typeshed does not know.
    stack: list[Any]
    read: Callable[[int], bytes]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self._n_bytes = len(content)

    def find_class(self, module: str, name: str) -> Any:
        """Return what `ALLOWED` has for a name; nothing is imported."""
        if (module, name) not in ALLOWED:
            raise ValueError(f"it asks for {module}.{name}, and only arrays and plain containers are ever loaded")
        return ALLOWED[module, name]

    def load_long_bytes(self) -> None:
        """Load bytes, or a bytearray as bytes."""
        (n,) = struct.unpack("<Q", self.read(8))
        if n > self._n_bytes:
            raise ValueError(f"it claims {n} bytes, more than the {self._n_bytes} of the file")
        self.append(self.read(n))

    def load_item(self) -> None:
        """Add an item to a dict."""
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def load_items(self) -> None:
        """Add all items since the mark to a dict."""
        self._update(self.pop_mark())

    def load_dict_of_items(self) -> None:
        """Load a dict of all items since the mark."""
        items = self.pop_mark()
        self.append({})
        self._update(items)

    def load_state(self) -> None:
        """Give an array or dtype its state."""
        state = self.stack.pop()
        if type(self.stack[-1]) not in (_Array, _Dtype):
            raise ValueError("it changes an object that is no array")
        self.stack[-1].__setstate__(state)

    def refuse(self) -> None:
        """Refuse an object of any other kind."""
        raise ValueError("it holds a set or another object, and only arrays and plain containers are ever loaded")

    def _update(self, items: list[Any]) -> None:
        keys, target = items[::2], self.stack[-1]
        if type(target) is not dict or not all(type(key) in (str, int) for key in keys):
            raise ValueError("it holds a dict with keys that are no texts")
        target.update(zip(keys, items[1::2], strict=True))

    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        **pickle._Unpickler.dispatch,
        pickle.BYTEARRAY8[0]: load_long_bytes,
        pickle.BINBYTES8[0]: load_long_bytes,
        pickle.SETITEM[0]: load_item,
        pickle.SETITEMS[0]: load_items,
        pickle.DICT[0]: load_dict_of_items,
        pickle.BUILD[0]: load_state,
        **dict.fromkeys(REFUSED, refuse),
    }


def _load(file: SourceFile) -> NDArray[Any]:
    with translated(file, "cannot be read as a _seg.npy of cellpose", REMEDY), file.open() as stream:
        read_header(stream)
        content = _Unpickler(stream.read()).load()
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
