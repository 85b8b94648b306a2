"""The extraction of batches on a device: upload, launch, download, on several streams."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import numpy as np
from numpy.typing import NDArray

from gpu_extract.backends.cuda import labels as cuda_labels
from gpu_extract.backends.cuda.device import Array, Device, OutOfDeviceMemoryError
from gpu_extract.backends.cuda.extract import ProgramArrays, launch_extract, program_arrays
from gpu_extract.errors import DeviceError
from gpu_extract.labels import LabelStatistics, label_statistics
from gpu_extract.model import Batch, CellImages, Raster, Window
from gpu_extract.recipe import Program

__all__ = ["DeviceExtraction"]


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
        used_limits = np.empty((len(batch), len(program.cut), 2))
        with self._stream() as device:
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
        return CellImages(batch.rows, batch.ids, images, used_limits)

    def extract_on_device(
        self, window: Window, batch: Batch, program: Program, limits: NDArray[np.float64] | None = None
    ) -> CellImages:
        """Return the finished tiles of a batch as an array on the device; the limits are in host memory."""
        with self._stream() as device:
            images, on_device = _launch_part(device, window, batch, program, limits, slice(None))
            used_limits = np.empty(on_device.shape)
            device.to_host(on_device, used_limits)
            device.synchronize()
        return CellImages(batch.rows, batch.ids, images, used_limits)

    def statistics(self, raster: Raster, where: str) -> LabelStatistics:
        """Return `labels.label_statistics`, computed on the device, or on the CPU if the device lacks memory."""
        with self._stream() as device:
            try:
                return cuda_labels.label_statistics(raster, device, where)
            except OutOfDeviceMemoryError:
                device.synchronize()
        self._warn(f"{where} do not fit in the device's memory; their statistics were computed on the CPU")
        return label_statistics(raster, where)

    @contextmanager
    def _stream(self) -> Iterator[Device]:
        """Lend a stream to the caller; after an error it is synchronized, because copies may still be running."""
        device = self._free.get()
        try:
            yield device
        except BaseException:
            with suppress(DeviceError):  # the first error is the one to report
                device.synchronize()
            raise
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
