"""The single steps of an extraction, on stacks of tiles: fill holes, dilate, blur, apply a mask, normalize.

For NumPy arrays, the result is a NumPy array. For CuPy arrays, it is a CuPy array, computed on their device in the
current stream. Tiles are processed independently of each other. The last two axes are (y, x) and have the same length;
all axes before them are batch axes, so ``(n, S, S)`` and ``(n, K, S, S)`` are both accepted. A mask is bool or uint8,
where any value but 0 is inside. CuPy arrays must be C-contiguous; NumPy arrays may be views.

Invalid arguments raise `gpu_extract.InputError` before anything is computed.
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
# The kernels index tiles by 32-bit integers that may go past the end by the stride of the grid.
MAX_TILES = 1 << 30
# 4-connectivity within each tile of a stack.
CROSS = scipy.ndimage.generate_binary_structure(2, 1)[None]


def fill_holes(masks: Array) -> Array:
    """Return masks with their holes filled.

    A hole is background that is not 4-connected to the tile's edge.

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
        If ``masks`` is not such an array.
    """
    on_device = _check_stack("masks", masks, BINARY)
    if on_device:
        return _as_masks(cuda_ops.fill_holes(_device_of(masks), _tiles(masks, np.uint8)), masks)
    # CROSS does not connect tiles, so each tile is filled on its own.
    return _as_masks(scipy.ndimage.binary_fill_holes(_tiles(masks) != 0, CROSS), masks)


def dilate(masks: Array, radius: int) -> Array:
    """Return masks dilated by the disk ``dy^2 + dx^2 <= radius^2``; pixels outside the tile are 0.

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
        If ``masks`` is not such an array, or the radius is not such a number.
    """
    on_device = _check_stack("masks", masks, BINARY)
    if isinstance(radius, bool) or not isinstance(radius, int | np.integer) or not 0 <= radius <= MAX_DILATION:
        raise InputError(f"radius is {radius!r}; it must be a whole number of pixels from 0 to {MAX_DILATION}")
    if on_device:
        return _as_masks(cuda_ops.dilate(_device_of(masks), _tiles(masks, np.uint8), int(radius)), masks)
    return _as_masks(_dilated(_tiles(masks) != 0, int(radius)), masks)


def gaussian_blur(masks: Array, sigma: float) -> Array:
    """Return masks blurred by a Gaussian; the tile's border is replicated.

    The weights are ``exp(-x^2 / 2 sigma^2)`` for ``|x| <= int(4 sigma + 0.5)``, normalized to a sum of 1, along each
    axis.

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
        If ``masks`` is not such an array, or sigma is not such a number.
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
    """Return images multiplied by masks: a binary mask sets the pixels outside to 0, a soft mask is a factor.

    Parameters
    ----------
    images : (..., S, S), uint8, uint16, int16, uint32, float16, float32 or float64
    masks : bool, uint8 or float32
        The shape of ``images``, or without its last axes before (S, S): masks (n, S, S) apply to all channels of
        images (n, C, S, S).

    Returns
    -------
    (..., S, S)
        For a binary mask, the type of ``images``. For a soft mask, float32, or float64 if ``images`` are uint32 or
        float64, whose values float32 cannot represent.

    Raises
    ------
    InputError
        If the arrays are not such arrays, their shapes do not match, or they are on different devices.
    """
    on_device = _check_stack("images", images, IMAGE_DTYPES)
    _check_stack("masks", masks, (*BINARY, "float32"))
    if _location(images) != _location(masks):
        raise InputError(f"images are on {_location(images)} and masks on {_location(masks)}; move one to the other")
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
    """Return scaled images: ``clip((x - lower) / (upper - lower), 0, 1)``, or 0 if ``upper == lower``.

    NaN pixels stay NaN. Limits on a device are copied to the host, which synchronizes.

    Parameters
    ----------
    images : (..., S, S), uint8, uint16, int16, uint32, float16, float32 or float64
    lower, upper : float or array of float
        A shape that broadcasts to that of ``images`` without its last two axes: a scalar, one value per tile, or
        (C,) for the channels of images (n, C, S, S). ``lower <= upper``.

    Returns
    -------
    (..., S, S) float32, or float64 for uint32 and float64 images

    Raises
    ------
    InputError
        If ``images`` is not such an array, or limits do not match its shape, are not finite, or differ by an amount
        that the result's type cannot represent.
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
    """Return masks (n, S, S) dilated by a disk: for each row of the disk, dilate along x and shift along y."""
    dilated = np.zeros_like(masks)
    S = masks.shape[2]
    for dy in range(min(radius, S - 1) + 1):
        reach = min(math.isqrt(radius * radius - dy * dy), S - 1)
        wide = scipy.ndimage.maximum_filter1d(masks.view(np.uint8), 2 * reach + 1, axis=2, mode="constant").view(bool)
        dilated[:, dy:] |= wide[:, : S - dy]
        dilated[:, : S - dy] |= wide[:, dy:]
    return dilated


def _is_cupy(array: Any) -> bool:
    """Return whether an array is a CuPy array, without importing CuPy."""
    return type(array).__module__.partition(".")[0] == "cupy"


def _device_of(array: Array) -> Any:
    from gpu_extract.backends.cuda import backend as cuda

    return cuda.device_of(array)


def _location(array: Array) -> str:
    """Return where an array is, for messages."""
    return f"GPU {array.device.id}" if _is_cupy(array) else "the host"


def _check_stack(name: str, array: Any, dtypes: tuple[str, ...]) -> bool:
    """Raise InputError unless an array is a stack of tiles of one of these types; return whether it is on a device."""
    on_device = _is_cupy(array)
    if not on_device and not isinstance(array, np.ndarray):
        raise InputError(f"{name} is a {type(array).__name__}; it must be a NumPy or CuPy array")
    if array.dtype.name not in dtypes:
        raise InputError(f"{name} are of type {array.dtype}; they must be {' or '.join(dtypes)}: convert them")
    if array.ndim < 2 or array.shape[-1] != array.shape[-2] or not 1 <= array.shape[-1] <= MAX_TILE_SIZE:
        raise InputError(
            f"{name} have the shape {array.shape}; it must be (..., S, S), S from 1 to {MAX_TILE_SIZE} pixels"
        )
    if math.prod(array.shape[:-2]) > MAX_TILES:
        raise InputError(f"{name} are {math.prod(array.shape[:-2])} tiles; give at most {MAX_TILES} at a time")
    if on_device and not array.flags.c_contiguous:
        raise InputError(f"{name} are not C-contiguous; pass cupy.ascontiguousarray({name})")
    return on_device


def _tiles(array: Array, dtype: Any = None) -> Array:
    """Return an array as (n, S, S), without a copy if it is contiguous, optionally as a view of another type."""
    S = array.shape[-1]
    tiles = array.reshape(math.prod(array.shape[:-2]), S, S)
    return tiles if dtype is None else tiles.view(dtype)


def _as_masks(stack: Array, masks: Array) -> Array:
    """Return a stack (n, S, S) of bool, or of bytes 0 and 1, in the shape and type of ``masks``."""
    return stack.view(masks.dtype).reshape(masks.shape)


def _work_dtype(images: Array) -> np.dtype[Any]:
    """Return float32, or float64 if float32 cannot represent all values of the images' type."""
    work: np.dtype[Any] = np.result_type(images.dtype, np.float32)
    return work


def _limits(name: str, values: Any, images: Array) -> NDArray[np.float64]:
    """Return limits as (n,), one per tile, in host memory."""
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
    """Raise InputError for limits in the wrong order, or whose difference is not 0 or a normal number of ``work``."""
    reversed_ = np.count_nonzero(lower > upper)
    if reversed_:
        raise InputError(f"lower is above upper for {reversed_} of {lower.size} tiles; exchange them")
    info = np.finfo(work)
    with np.errstate(over="ignore"):
        span = upper - lower
    bad = ((span != 0) & (span < info.tiny)) | (np.maximum(span, np.maximum(-lower, upper)) > info.max)
    if bad.any():
        raise InputError(
            f"lower and upper are too close or too far apart for {work} for {np.count_nonzero(bad)} of {bad.size} "
            f"tiles; upper - lower must be 0, or from {info.tiny:.2g} to {info.max:.2g}"
        )
