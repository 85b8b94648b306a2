"""The functions of `gpu_extract.ops` on a device, by ``kernels/ops.cu``.

Stacks are (n, S, S) arrays on the device, C-contiguous. `gpu_extract.ops` checks shapes, types and devices; here they
are only asserted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_extract.backends.cuda.device import Array, Device, scratch_blocks
from gpu_extract.backends.cuda.registry import APPLY_MASK, BLUR, DILATE, FILL_HOLES, MULTIPLY, NORMALIZE, Kernel
from gpu_extract.recipe import gaussian_weights

__all__ = ["apply_mask", "dilate", "fill_holes", "gaussian_blur", "normalize"]


def fill_holes(device: Device, masks: Array) -> Array:
    """Return masks (n, S, S) uint8 with their holes filled, 0 or 1."""
    out = device.empty(masks.shape, np.uint8)
    _launch(device, FILL_HOLES, (masks,), (), out, workspace_nbytes=3 * _bit_mask_nbytes(masks.shape[2]))
    return out


def dilate(device: Device, masks: Array, radius: int) -> Array:
    """Return masks (n, S, S) uint8 dilated by a disk, 0 or 1."""
    out = device.empty(masks.shape, np.uint8)
    _launch(device, DILATE, (masks,), (np.int32(radius),), out, workspace_nbytes=2 * _bit_mask_nbytes(masks.shape[2]))
    return out


def gaussian_blur(device: Device, masks: Array, sigma: float) -> Array:
    """Return masks (n, S, S), uint8 or float32, blurred, as float32."""
    weights = gaussian_weights(sigma).astype(np.float32)
    kernel = BLUR[masks.dtype.name]
    out = device.empty(masks.shape, np.float32)
    arguments = device.to_device(weights), np.int32(len(weights) - 1)
    _launch(device, kernel, (masks,), arguments, out, workspace_nbytes=4 * kernel.threads // 32 * masks.shape[2])
    return out


def apply_mask(device: Device, images: Array, masks: Array) -> Array:
    """Return images (n, S, S) masked by masks (m, S, S), each of which applies to n / m consecutive images.

    uint8 masks set the pixels outside to 0, and the result has the type of the images. float32 masks are factors, and
    the result has the type of the product.
    """
    images_per_mask = (np.int32(len(images) // max(1, len(masks))),)
    if masks.dtype == np.float32:
        out = device.empty(images.shape, np.result_type(images.dtype, masks.dtype))
        _launch(device, MULTIPLY[images.dtype.name], (images, masks), images_per_mask, out)
        return out
    out = device.empty(images.shape, images.dtype)
    nbytes = images.dtype.itemsize
    bits = np.dtype(f"u{nbytes}")
    _launch(device, APPLY_MASK[nbytes], (images.view(bits), masks), images_per_mask, out.view(bits))
    return out


def normalize(device: Device, images: Array, lower: NDArray[np.float64], upper: NDArray[np.float64]) -> Array:
    """Return images (n, S, S) scaled such that lower (n,) becomes 0 and upper (n,) 1; the limits are in host memory."""
    out = device.empty(images.shape, np.result_type(images.dtype, np.float32))
    limits = device.to_device(lower), device.to_device(upper)
    _launch(device, NORMALIZE[images.dtype.name], (images, *limits), (), out)
    return out


def _bit_mask_nbytes(tile_size: int) -> int:
    """Return the bytes of a bit mask."""
    return 4 * tile_size * ((tile_size + 31) // 32)


def _launch(
    device: Device,
    kernel: Kernel,
    inputs: tuple[Array, ...],
    numbers: tuple[Any, ...],
    out: Array,
    workspace_nbytes: int = 0,
) -> None:
    """Launch a kernel for the tiles of ``out``; each block has a workspace of ``workspace_nbytes`` bytes."""
    n, S, _ = out.shape
    assert all(array.flags.c_contiguous for array in (*inputs, out))
    if n == 0:
        return
    arguments: tuple[Any, ...] = (*inputs, np.int32(n), np.int32(S), *numbers)
    if not workspace_nbytes:
        device.launch(kernel, n, (*arguments, out))
    elif workspace_nbytes <= device.shared_nbytes_limit:
        unused = device.empty((1,), np.uint8)
        device.launch(kernel, n, (*arguments, unused, np.uint64(0), out), workspace_nbytes)
    else:
        n_blocks = min(n, device.multiprocessors * kernel.blocks_per_multiprocessor)
        n_blocks = scratch_blocks(n_blocks, workspace_nbytes)
        scratch = device.empty((n_blocks * workspace_nbytes,), np.uint8)
        device.launch(kernel, n_blocks, (*arguments, scratch, np.uint64(workspace_nbytes), out))
