"""The fused extraction on a device: a recipe as arrays for ``kernels/extract.cu``, the launch, and whole batches."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpu_extract.backends.cuda import labels as cuda_labels
from gpu_extract.backends.cuda.device import Array, Device, OutOfDeviceMemoryError
from gpu_extract.backends.cuda.registry import extract_kernel
from gpu_extract.backends.program_tables import limits_source, mask_tables
from gpu_extract.errors import DeviceError
from gpu_extract.labels import LabelStatistics, label_statistics
from gpu_extract.model import Batch, CellImages, Raster, Window
from gpu_extract.recipe import Program

__all__ = ["DeviceExtraction", "ProgramArrays", "launch_extract", "program_arrays", "workspace_nbytes"]

# Warps of a block; each blurs a row of a mask at a time.
WARPS = 8


class ProgramArrays(NamedTuple):
    """A program as the arrays that the kernel ``extract`` takes; see there."""

    masks: NDArray[np.int32]  # (k, 4)
    weights: NDArray[np.float32]  # (k, R + 1)
    stored: NDArray[np.int32]  # (M,)
    cut: NDArray[np.int32]  # (C,)
    stretch: NDArray[np.int32]  # (C,)
    options: NDArray[np.int32]  # (6,), enum Option
    numbers: NDArray[np.float64]  # (3,), enum Number
    limits: NDArray[np.float64]  # (C, 2)


def program_arrays(program: Program, limits: NDArray[np.float64] | None) -> ProgramArrays:
    """Return the arrays of a program in host memory; ``limits`` are as for `reference.extract`."""
    recipe, C = program.recipe, len(program.cut)
    limits = program.fixed_limits if limits is None else limits
    masks, weights = mask_tables(program)
    options = (
        recipe.neighbours == "exclude",
        recipe.apply_masks,
        recipe.cut == "before",
        limits_source(program, limits),
        recipe.normalization != "none",
        recipe.flat_channel == "zero",
    )
    return ProgramArrays(
        masks=masks.astype(np.int32),
        weights=weights.astype(np.float32),
        stored=np.array(program.stored, np.int32),
        cut=np.array(program.cut, np.int32),
        stretch=np.array(program.stretched, np.int32),
        options=np.array(options, np.int32),
        numbers=np.array([program.unit, *recipe.quantiles]),
        limits=np.zeros((C, 2)) if limits is None else np.ascontiguousarray(limits, np.float64),
    )


def workspace_nbytes(tile_size: int) -> int:
    """Return the bytes of a block's workspace: four bit masks, a row of floats per warp, and a blurred mask."""
    words = tile_size * ((tile_size + 31) // 32)
    return 4 * (4 * words + WARPS * tile_size + tile_size * tile_size)


def launch_extract(
    device: Device,
    program: Program,
    arrays: ProgramArrays,
    image: Array,
    labels: Array,
    ids: Array,
    corners: Array,
    images: Array,
    used_limits: Array,
) -> None:
    """Launch the extraction of n cells; all arrays, including those of the program, are on the device.

    Parameters
    ----------
    image : (C, h, w), the program's image type
    labels : (M, h, w), unsigned
    ids : (n,) uint64
    corners : (n, 2) int32
        (y, x) of each tile's first pixel in the image; may lie outside it.
    images : (n, K, S, S), the program's output type; written
    used_limits : (n, C, 2) float64; written
    """
    n, S = len(ids), program.recipe.tile_size
    C, h, w = image.shape
    _check(image, (len(program.cut), h, w), program.image_dtype, "image")
    if labels.dtype.kind != "u" or labels.shape[1:] != (h, w) or not labels.flags.c_contiguous:
        raise ValueError(f"labels are {labels.shape} {labels.dtype}; they must be (M, {h}, {w}), unsigned, contiguous")
    _check(ids, (n,), np.uint64, "ids")
    _check(corners, (n, 2), np.int32, "corners")
    _check(images, (n, *program.tile_shape), program.output_dtype, "images")
    _check(used_limits, (n, C, 2), np.float64, "used_limits")
    if n == 0:
        return
    kernel = extract_kernel(program.image_dtype, program.output_dtype)
    n_blocks = min(n, device.multiprocessors * kernel.blocks_per_multiprocessor)
    needed = workspace_nbytes(S)
    fits = needed <= device.shared_nbytes_limit
    scratch = device.empty((1 if fits else n_blocks * needed,), np.uint8)
    arguments = (
        *(image, np.int32(C), np.int32(h), np.int32(w)),
        *(labels.view(np.uint8), np.int32(labels.dtype.itemsize), ids, corners, np.int32(n), np.int32(S)),
        *(arrays.masks, np.int32(len(arrays.masks)), arrays.weights, np.int32(arrays.weights.shape[1])),
        *(arrays.stored, np.int32(len(arrays.stored)), arrays.cut, arrays.stretch),
        *(arrays.options, arrays.numbers, arrays.limits),
        *(scratch, np.uint64(0 if fits else needed), images, used_limits),
    )
    device.launch(kernel, n_blocks, arguments, needed if fits else 0)


def _check(array: Array, shape: tuple[int, ...], dtype: Any, name: str) -> None:
    """Raise ValueError for an array that the kernel would misread."""
    if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
        raise ValueError(f"{name} is {array.shape} {array.dtype}; it must be {shape} {np.dtype(dtype)}, contiguous")


class DeviceExtraction:
    """Extraction of batches on a device; each thread that calls it uses its own stream.

    Streams overlap: while one batch is computed, the next one is uploaded and the previous one downloaded. A batch that
    does not fit in the device's memory is split in halves, and so are later ones.

    Parameters
    ----------
    devices : sequence of Device
        The streams; this many batches are processed concurrently.
    warn : callable
        Called with a warning for the user, one line.
    """

    def __init__(self, devices: Sequence[Device], warn: Callable[[str], None]) -> None:
        self._free: queue.SimpleQueue[Device] = queue.SimpleQueue()
        for device in devices:
            self._free.put(device)
        self._warn = warn
        self._max_cells: int | None = None  # cells that fit at a time, if known

    def extract(
        self, window: Window, batch: Batch, program: Program, limits: NDArray[np.float64] | None = None
    ) -> CellImages:
        """Return the finished tiles of a batch in host memory; parameters are as for `reference.extract`."""
        images, used_limits = None, np.empty((len(batch), len(program.cut), 2))
        device = self._free.get()
        try:
            images = device.empty_host((len(batch), *program.tile_shape), program.output_dtype)
            start = 0
            while start < len(batch):
                end = min(start + (self._max_cells or len(batch)), len(batch))
                try:
                    part = slice(start, end)
                    on_device = _launch_part(device, window, batch, program, limits, part)
                    device.to_host(on_device[0], images[part])
                    device.to_host(on_device[1], used_limits[part])
                    device.synchronize()
                    start = end
                except OutOfDeviceMemoryError:
                    device.synchronize()  # releases the arrays of the failed attempt
                    self._halve(end - start)
        finally:
            self._free.put(device)
        return CellImages(batch.rows, batch.ids, images, used_limits)

    def extract_on_device(
        self, window: Window, batch: Batch, program: Program, limits: NDArray[np.float64] | None = None
    ) -> CellImages:
        """Return the finished tiles of a batch as an array on the device; the limits are in host memory."""
        device = self._free.get()
        try:
            images, on_device = _launch_part(device, window, batch, program, limits, slice(None))
            used_limits = np.empty(on_device.shape)
            device.to_host(on_device, used_limits)
            device.synchronize()
        finally:
            self._free.put(device)
        return CellImages(batch.rows, batch.ids, images, used_limits)

    def statistics(self, raster: Raster, where: str) -> LabelStatistics:
        """Return `labels.label_statistics`, computed on the device, or on the CPU if the device lacks memory."""
        device = self._free.get()
        try:
            return cuda_labels.label_statistics(raster, device, where)
        except OutOfDeviceMemoryError:
            device.synchronize()
            self._warn(f"{where} do not fit in the device's memory; their statistics were computed on the CPU")
            return label_statistics(raster, where)
        finally:
            self._free.put(device)

    def _halve(self, n_cells: int) -> None:
        """Process half as many cells at a time; raise DeviceError if not even one cell fits."""
        if n_cells == 1:
            raise DeviceError(
                "one cell and its window do not fit in the device's memory; "
                "use a smaller tile, more --gpu-memory (gpu_memory=), or --device cpu (device='cpu')"
            )
        self._max_cells = n_cells // 2
        self._warn(f"{n_cells} cells at a time do not fit in the device's memory; continuing with {self._max_cells}")


def _launch_part(
    device: Device,
    window: Window,
    batch: Batch,
    program: Program,
    limits: NDArray[np.float64] | None,
    part: slice,
) -> tuple[Array, Array]:
    """Upload the inputs of a part of a batch and launch its extraction; return images and limits on the device."""
    itemsize = max(plane.dtype.itemsize for plane in window.labels)
    labels = device.empty_host((len(window.labels), *window.labels[0].shape), f"u{itemsize}")
    for target, plane in zip(labels, window.labels, strict=True):
        target[:] = plane
    image = device.empty_host(window.image.shape, program.image_dtype)
    image[:] = window.image
    corners = batch.corners[part] - (window.y0, window.x0)
    arrays = ProgramArrays(*(device.to_device(array) for array in program_arrays(program, limits)))
    n = len(corners)
    images = device.empty((n, *program.tile_shape), program.output_dtype)
    used_limits = device.empty((n, len(program.cut), 2), np.float64)
    launch_extract(
        device,
        program,
        arrays,
        device.to_device(image),
        device.to_device(labels),
        device.to_device(batch.ids[part]),
        device.to_device(corners.astype(np.int32)),
        images,
        used_limits,
    )
    return images, used_limits
