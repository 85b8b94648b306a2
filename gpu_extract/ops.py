"""The steps of an extraction by themselves, on stacks of tiles: fill holes, dilate, blur, apply a mask, normalize.

NumPy arrays in, NumPy arrays out; CuPy arrays in, CuPy arrays out, computed on their device on the current stream.
Each tile is worked on by itself: nothing crosses from one to the next. The last two axes are (y, x) and equal in
length; any axes before them count tiles, so ``(n, S, S)`` and ``(n, K, S, S)`` do alike. A mask is bool or uint8, in
which anything but 0 is inside. CuPy arrays must be C-contiguous; NumPy arrays may be views.

Errors are `gpu_extract.InputError`, raised before anything is computed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from gpu_extract.backends.cuda import ops as cuda_ops
from gpu_extract.errors import InputError
from gpu_extract.model import IMAGE_DTYPES
from gpu_extract.recipe import MAX_DILATION, MAX_SIGMA, MAX_TILE_SIZE

__all__ = ["apply_mask", "dilate", "fill_holes", "gaussian_blur", "normalize"]

Array = Any  # numpy.ndarray or cupy.ndarray

BINARY = ("bool", "uint8")
# The kernels number tiles with 32-bit integers; this leaves room to step past the end.
MOST_TILES = 1 << 30
# Neighbours above, below and beside, within a tile.
CROSS = scipy.ndimage.generate_binary_structure(2, 1)[None]


def fill_holes(masks: Array) -> Array:
    """The masks with their holes filled.

    A hole is background that is not connected to the tile's edge through pixels above, below or beside.

    Parameters
    ----------
    masks : (..., S, S) bool or uint8

    Returns
    -------
    (..., S, S), the type of ``masks``
        0 outside, 1 inside.

    Raises
    ------
    InputError
        If ``masks`` are not such an array.
    """
    on_device = _check_stack("masks", masks, BINARY)
    if on_device:
        return _as_masks(cuda_ops.fill_holes(_device_of(masks), _tiles(masks, np.uint8)), masks)
    # Outside the stack counts as reached, but only what CROSS connects: that is within a tile.
    return _as_masks(scipy.ndimage.binary_fill_holes(_tiles(masks) != 0, CROSS), masks)


def dilate(masks: Array, radius: int) -> Array:
    """The masks expanded by the disk ``dy^2 + dx^2 <= radius^2``; nothing comes in from outside the tile.

    Parameters
    ----------
    masks : (..., S, S) bool or uint8
    radius : int, pixels
        0 to 512; 0 changes nothing.

    Returns
    -------
    (..., S, S), the type of ``masks``
        0 outside, 1 inside.

    Raises
    ------
    InputError
        If ``masks`` are not such an array, or the radius is not such a number.
    """
    on_device = _check_stack("masks", masks, BINARY)
    if isinstance(radius, bool) or not isinstance(radius, int | np.integer) or not 0 <= radius <= MAX_DILATION:
        raise InputError(f"radius is {radius!r}; it must be a whole number of pixels from 0 to {MAX_DILATION}")
    if on_device:
        return _as_masks(cuda_ops.dilate(_device_of(masks), _tiles(masks, np.uint8), int(radius)), masks)
    return _as_masks(_dilated(_tiles(masks) != 0, int(radius)), masks)


def gaussian_blur(masks: Array, sigma: float) -> Array:
    """The masks blurred by a Gaussian; the tile's border pixels go on outside of it.

    Separable, with weights ``exp(-x^2 / 2 sigma^2)`` normalised to 1 over ``|x| <= int(4 sigma + 0.5)``.

    Parameters
    ----------
    masks : (..., S, S) bool, uint8 or float32
        In uint8, anything but 0 counts as 1.
    sigma : float, pixels
        0 to 256; 0 changes nothing.

    Returns
    -------
    (..., S, S) float32

    Raises
    ------
    InputError
        If ``masks`` are not such an array, or sigma is not such a number.
    """
    on_device = _check_stack("masks", masks, (*BINARY, "float32"))
    if isinstance(sigma, bool) or not isinstance(sigma, int | float | np.number) or not 0 <= sigma <= MAX_SIGMA:
        raise InputError(f"sigma is {sigma!r}; it must be a number of pixels from 0 to {MAX_SIGMA:g}")
    is_soft = masks.dtype == np.float32
    if on_device:
        stack = _tiles(masks, np.float32 if is_soft else np.uint8)
        return cuda_ops.gaussian_blur(_device_of(masks), stack, float(sigma)).reshape(masks.shape)
    density = _tiles(masks if is_soft else masks != 0).astype(np.float64)
    blurred = scipy.ndimage.gaussian_filter(density, (0, sigma, sigma), mode="nearest", truncate=4.0)
    return blurred.astype(np.float32).reshape(masks.shape)


def apply_mask(images: Array, masks: Array) -> Array:
    """The images cut with masks: pixels outside a binary mask become 0; a soft mask is a factor.

    Parameters
    ----------
    images : (..., S, S), uint8, uint16, int16, uint32, float16, float32 or float64
    masks : bool, uint8 or float32
        Of the shape of ``images``, or without its last axes before (S, S): masks (n, S, S) serve every channel of
        images (n, C, S, S).

    Returns
    -------
    (..., S, S)
        Of the type of ``images`` for a binary mask. For a soft one, their product in float32, or in float64 where
        float32 does not hold every pixel value: for uint32 and float64.

    Raises
    ------
    InputError
        If the arrays are not such, do not fit each other, or are not in the same place.
    """
    on_device = _check_stack("images", images, IMAGE_DTYPES)
    _check_stack("masks", masks, (*BINARY, "float32"))
    if _place(images) != _place(masks):
        raise InputError(f"images are on {_place(images)} and masks on {_place(masks)}; move one to the other")
    lead = masks.shape[:-2]
    if masks.shape[-2:] != images.shape[-2:] or lead != images.shape[: len(lead)] or masks.ndim > images.ndim:
        raise InputError(
            f"masks {masks.shape} do not fit images {images.shape}; "
            "they must have the same shape, or one mask for all channels: (n, S, S) for (n, C, S, S)"
        )
    is_soft = masks.dtype == np.float32
    if on_device:
        stack = _tiles(masks, np.float32 if is_soft else np.uint8)
        return cuda_ops.apply_mask(_device_of(images), _tiles(images), stack).reshape(images.shape)
    masks = masks.reshape(*lead, *(1,) * (images.ndim - masks.ndim), *masks.shape[-2:])
    if is_soft:
        return images.astype(_work_dtype(images)) * masks
    return np.where(masks, images, np.zeros((), images.dtype.newbyteorder("=")))


def normalize(images: Array, lower: Any, upper: Any) -> Array:
    """The images scaled: ``clip((x - lower) / (upper - lower), 0, 1)``; 0 where upper equals lower.

    A NaN pixel stays NaN. Levels on a device are read back, which waits for it.

    Parameters
    ----------
    images : (..., S, S), uint8, uint16, int16, uint32, float16, float32 or float64
    lower, upper : float or array of float
        Of a shape that broadcasts to that of ``images`` without its last two axes: one for all, one for each tile,
        or (C,) for the channels of images (n, C, S, S). ``lower <= upper``.

    Returns
    -------
    (..., S, S) float32, or float64 for uint32 and float64 images

    Raises
    ------
    InputError
        If the images are not such, or the limits do not fit them, are not finite, or are closer to each other or
        further apart than the result's type can tell.
    """
    on_device = _check_stack("images", images, IMAGE_DTYPES)
    lower, upper = _limits("lower", lower, images), _limits("upper", upper, images)
    _check_span(lower, upper, _work_dtype(images))
    if on_device:
        return cuda_ops.normalize(_device_of(images), _tiles(images), lower, upper).reshape(images.shape)
    lo, hi = lower[:, None, None], upper[:, None, None]
    flat = hi == lo
    scaled = np.clip((_tiles(images).astype(np.float64) - lo) / np.where(flat, 1.0, hi - lo), 0.0, 1.0)
    return np.where(flat, 0.0, scaled).astype(_work_dtype(images)).reshape(images.shape)


def _dilated(masks: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Masks (n, S, S) expanded by a disk, row by row of the disk: a run sideways, which is then moved up and down."""
    dilated = np.zeros_like(masks)
    S = masks.shape[2]
    for dy in range(min(radius, S - 1) + 1):
        reach = min(math.isqrt(radius * radius - dy * dy), S - 1)
        wide = scipy.ndimage.maximum_filter1d(masks.view(np.uint8), 2 * reach + 1, axis=2, mode="constant").view(bool)
        dilated[:, dy:] |= wide[:, : S - dy]
        dilated[:, : S - dy] |= wide[:, dy:]
    return dilated


def _is_cupy(array: Any) -> bool:
    """Whether an array is CuPy's, found out without importing CuPy."""
    return type(array).__module__.partition(".")[0] == "cupy"


def _device_of(array: Array) -> Any:
    from gpu_extract.backends.cuda import backend as cuda

    return cuda.device_of(array)


def _place(array: Array) -> str:
    """Where an array is, in words."""
    return f"GPU {array.device.id}" if _is_cupy(array) else "the host"


def _check_stack(name: str, array: Any, dtypes: tuple[str, ...]) -> bool:
    """Refuse what is no stack of tiles of one of these types; say whether it is on a device."""
    on_device = _is_cupy(array)
    if not on_device and not isinstance(array, np.ndarray):
        raise InputError(f"{name} is a {type(array).__name__}; it must be a NumPy or CuPy array")
    if array.dtype.name not in dtypes:
        raise InputError(f"{name} are of type {array.dtype}; they must be {' or '.join(dtypes)}: convert them")
    if array.ndim < 2 or array.shape[-1] != array.shape[-2] or not 1 <= array.shape[-1] <= MAX_TILE_SIZE:
        raise InputError(
            f"{name} have the shape {array.shape}; it must be (..., S, S), S from 1 to {MAX_TILE_SIZE} pixels"
        )
    if math.prod(array.shape[:-2]) > MOST_TILES:
        raise InputError(f"{name} are {math.prod(array.shape[:-2])} tiles; give at most {MOST_TILES} at a time")
    if on_device and not array.flags.c_contiguous:
        raise InputError(f"{name} are not C-contiguous; pass cupy.ascontiguousarray({name})")
    return on_device


def _tiles(array: Array, dtype: Any = None) -> Array:
    """An array as (n, S, S), without a copy where it is contiguous; optionally its bytes as another type."""
    S = array.shape[-1]
    tiles = array.reshape(math.prod(array.shape[:-2]), S, S)
    return tiles if dtype is None else tiles.view(dtype)


def _as_masks(stack: Array, masks: Array) -> Array:
    """A stack (n, S, S) of bool, or of bytes 0 and 1, in the shape and the type of ``masks``."""
    return stack.view(masks.dtype).reshape(masks.shape)


def _work_dtype(images: Array) -> np.dtype[Any]:
    """The smaller of float32 and float64 that holds every pixel value of the images' type."""
    work: np.dtype[Any] = np.result_type(images.dtype, np.float32)
    return work


def _limits(name: str, values: Any, images: Array) -> NDArray[np.float64]:
    """Levels as (n,), one for each tile, in host memory."""
    if _is_cupy(values):
        device, on_host = _device_of(values), np.empty(values.shape, values.dtype)
        device.to_host(values, on_host)
        device.synchronize()
        values = on_host
    lead = images.shape[:-2]
    try:
        limits = np.asarray(values).astype(np.float64, casting="same_kind")
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} is {values!r}; it must be a number or an array of numbers") from error
    try:
        limits = np.broadcast_to(limits, lead)
    except ValueError as error:
        raise InputError(
            f"{name} has the shape {limits.shape}; it must be a number or broadcast to {lead}, one for each tile"
        ) from error
    if not np.isfinite(limits).all():
        raise InputError(f"{name} is not finite for {np.count_nonzero(~np.isfinite(limits))} of {limits.size} tiles")
    return np.ascontiguousarray(limits).reshape(-1)


def _check_span(lower: NDArray[np.float64], upper: NDArray[np.float64], work: np.dtype[Any]) -> None:
    """Refuse limits in the wrong order, and those whose distance is no normal number of the type ``work``."""
    reversed_ = np.count_nonzero(lower > upper)
    if reversed_:
        raise InputError(f"lower is above upper for {reversed_} of {lower.size} tiles; exchange them")
    limits = np.finfo(work)
    with np.errstate(over="ignore"):
        span = upper - lower
    bad = ((span != 0) & (span < limits.tiny)) | (np.maximum(span, np.maximum(-lower, upper)) > limits.max)
    if bad.any():
        raise InputError(
            f"lower and upper are too close or too far apart for {work} for {np.count_nonzero(bad)} of {bad.size} "
            f"tiles; upper - lower must be 0, or from {limits.tiny:.2g} to {limits.max:.2g}"
        )
