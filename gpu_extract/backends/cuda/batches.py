"""The extraction of batches on a device: upload, launch, download, on several streams."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_extract.backends.cuda import labels as cuda_labels
from gpu_extract.backends.cuda.device import Array, Device, OutOfDeviceMemoryError
from gpu_extract.backends.cuda.extract import ProgramArrays, launch_extract, program_arrays
from gpu_extract.backends.cuda.packing import pack, unpacked_index
from gpu_extract.backends.cuda.pinned import HostRing, Uploader
from gpu_extract.backends.cuda.resident import ResidentSlides, ResidentWindow
from gpu_extract.backends.interface import PackedCells
from gpu_extract.errors import DeviceError
from gpu_extract.labels import LabelStatistics, label_statistics
from gpu_extract.model import Batch, CellImages, Raster, Slide, Window
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
    ring : HostRing, optional
        The memory of results; by default they are in ordinary memory.
    resident : Device, optional
        Another stream, whose memory holds slides; without it all windows are uploaded.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        warn: Callable[[str], None],
        ring: HostRing | None = None,
        resident: Device | None = None,
    ) -> None:
        self._free: queue.SimpleQueue[_Stream] = queue.SimpleQueue()
        for device in devices:
            self._free.put(_Stream(device))
        self._warn = warn
        self._ring = ring or HostRing(devices[0].empty_host, n_buffers=0)
        self._resident = ResidentSlides(resident) if resident else None
        self._lock = threading.Lock()
        self._max_cells: int | None = None  # cells that fit at a time, if known

    def extract(
        self, window: Window, batch: Batch, program: Program, limits: NDArray[np.float64] | None = None
    ) -> CellImages:
        """Return the finished tiles of a batch in host memory; parameters are as for `reference.extract`."""
        images = self._ring.empty((len(batch), *program.tile_shape), program.output_dtype)
        used_limits = np.empty((len(batch), len(program.cut), 2))
        with self._stream() as stream:
            for part, on_device in self._parts(stream, window, batch, program, limits):
                (limits_of_part,) = stream.download(on_device.pop())
                stream.device.to_host(on_device.pop(), images[part])
                stream.device.synchronize()
                used_limits[part] = limits_of_part
        return CellImages(batch.rows, batch.ids, images, used_limits)

    def extract_on_device(
        self,
        window: Window,
        batch: Batch,
        program: Program,
        limits: NDArray[np.float64] | None = None,
        planes: Sequence[int] = (),
    ) -> list[CellImages]:
        """Return the finished tiles of a batch as arrays on the device; the limits are in host memory.

        They are in several parts if they do not fit together. ``planes`` are those to keep; all by default.
        """

        def finish(device: Device, images: Array) -> tuple[Array, ...]:
            return (_chosen(device, images, planes) if planes else images,)

        found = []
        with self._stream() as stream:
            for part, on_device in self._parts(stream, window, batch, program, limits, finish):
                (used_limits,) = stream.download(on_device.pop())
                stream.device.synchronize()
                rows, ids, images = batch.rows[part], batch.ids[part], on_device.pop()
                found.append(CellImages(rows, ids, images, used_limits.copy(), wait_for=stream.device.wait_for))
        return found

    def extract_packed(
        self, window: Window, batch: Batch, program: Program, limits: NDArray[np.float64] | None = None
    ) -> list[PackedCells]:
        """Return the finished tiles of a batch in host memory, without zeros around what is in them.

        They are in several parts if they do not fit together on the device.
        """
        found = []
        with self._stream() as stream:
            for part, on_device in self._parts(stream, window, batch, program, limits, pack):
                used_limits, index = stream.download(on_device.pop(), on_device.pop())
                stream.device.synchronize()
                rows, ids, used_limits = batch.rows[part], batch.ids[part], used_limits.copy()
                n_values, boxes, starts = unpacked_index(index, len(rows))
                values = self._ring.empty((n_values,), program.output_dtype)
                stream.device.to_host(on_device.pop()[:n_values], values)
                stream.device.synchronize()
                found.append(PackedCells(rows, ids, used_limits, boxes, starts, values, program.recipe.tile_size))
        return found

    def _parts(
        self,
        stream: _Stream,
        window: Window,
        batch: Batch,
        program: Program,
        limits: NDArray[np.float64] | None,
        finish: Callable[[Device, Array], tuple[Array, ...]] = lambda device, images: (images,),
    ) -> Iterator[tuple[slice, list[Array]]]:
        """Launch the extraction of a batch, in as many parts as fit in the device's memory.

        ``finish`` launches what else is done with the images, and returns the results.

        Yields
        ------
        slice
            The cells of the part.
        list of Array
            Results of ``finish``, and limits, on the device. The caller takes them out of the list, so that their
            memory is free for the next part.
        """
        start = 0
        while start < len(batch):
            part = slice(start, min(start + (self._max_cells or len(batch)), len(batch)))
            try:
                images, used_limits = stream.launch(window, batch, program, limits, part)
                launched = [*finish(stream.device, images), used_limits]
                del images, used_limits
            except OutOfDeviceMemoryError:
                launched = []
            if launched:
                yield part, launched
                start = part.stop
            else:
                stream.device.synchronize()  # copies of the failed attempt may be running
                self._halve(part.stop - part.start)

    def statistics(self, raster: Raster, where: str) -> LabelStatistics:
        """Return `labels.label_statistics`, computed on the device, or on the CPU if the device lacks memory."""
        plane = self._resident.empty_plane(raster) if self._resident else None
        with self._stream() as stream:
            try:
                found = cuda_labels.label_statistics(raster, stream.device, where, upload=stream.upload, plane=plane)
            except OutOfDeviceMemoryError:
                stream.device.synchronize()
                found = None
        if found is None:
            self._warn(f"{where} do not fit in the device's memory; their statistics were computed on the CPU")
            return label_statistics(raster, where)
        if self._resident and plane is not None:
            self._resident.keep(raster, plane)
        return found

    def read(self, slide: Slide, box: tuple[int, int, int, int]) -> Window:
        """Return a window with the pixels of a box: the slide on the device if it fits there, or read from the slide.

        This is for slides that are mostly covered by the tiles of their cells: all pixels above the box are read, too.
        """
        window = self._resident.window(slide, box[2]) if self._resident else None
        return slide.read(box) if window is None else window

    def release(self) -> None:
        """Free the slides on the device; call it when all windows have been read."""
        if self._resident:
            self._resident.release()

    @contextmanager
    def _stream(self) -> Iterator[_Stream]:
        """Lend a stream to the caller; after an error it is synchronized, because copies may still be running."""
        stream = self._free.get()
        try:
            yield stream
        except BaseException:
            with suppress(DeviceError):  # the first error is the one to report
                stream.device.synchronize()
            raise
        finally:
            self._free.put(stream)

    def _halve(self, n_cells: int) -> None:
        """Process half as many cells at a time; raise DeviceError if not even one cell fits."""
        if n_cells == 1:
            raise DeviceError(
                "one cell and its window do not fit in the device's memory beside the tiles that are in use; "
                "use a smaller tile, more --gpu-memory (gpu_memory=), or --device cpu (device='cpu')"
            )
        with self._lock:
            if self._max_cells is not None and self._max_cells < n_cells:
                return  # another stream ran out of memory at the same time
            self._max_cells = n_cells // 2
        self._warn(f"{n_cells} cells at a time do not fit in the device's memory; continuing with {n_cells // 2}")


class _Stream:
    """A stream of a device, and what it keeps from one batch to the next: pinned memory and the arrays of a program."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.upload = Uploader(device)
        self._downloaded: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._program: tuple[Program, NDArray[np.float64] | None, ProgramArrays] | None = None

    def program_arrays(self, program: Program, limits: NDArray[np.float64] | None) -> ProgramArrays:
        """Return the arrays of a program on the device; all batches of a slide have the same."""
        if self._program is None or self._program[0] is not program or self._program[1] is not limits:
            arrays = ProgramArrays(*(self.device.to_device(array) for array in program_arrays(program, limits)))
            self._program = program, limits, arrays
        return self._program[2]

    def download(self, *arrays: Array) -> list[NDArray[Any]]:
        """Start the download of small arrays; results are valid after `Device.synchronize`, until the next call.

        Items have 8 bytes. A copy to memory that is not pinned would wait for the kernel, and occupy a core.
        """
        ends = np.cumsum([array.nbytes for array in arrays]).tolist()
        if self._downloaded.nbytes < ends[-1]:
            self._downloaded = self.device.empty_host((ends[-1],), np.uint8)
        found: list[NDArray[Any]] = []
        for array, end in zip(arrays, ends, strict=True):
            found.append(self._downloaded[end - array.nbytes : end].view(array.dtype).reshape(array.shape))
            self.device.to_host(array, found[-1])
        return found

    def upload_window(self, window: Window, program: Program) -> tuple[Array, Array]:
        """Return image (C, h, w) and labels (M, h, w), unsigned, on the device."""
        if isinstance(window, ResidentWindow):
            return window.image, window.stack
        itemsize = max(plane.dtype.itemsize for plane in window.labels)
        image = self.device.empty(window.image.shape, program.image_dtype)
        labels = self.device.empty((len(window.labels), *window.labels[0].shape), f"u{itemsize}")
        for source, out in ((window.image, image), (window.labels, labels)):
            for plane, target in zip(source, out, strict=True):
                self.upload.copy(plane, target)
        return image, labels

    def launch(
        self,
        window: Window,
        batch: Batch,
        program: Program,
        limits: NDArray[np.float64] | None,
        part: slice,
    ) -> tuple[Array, Array]:
        """Upload the window and launch the extraction of a part of a batch; return images and limits on the device."""
        device = self.device
        arrays = self.program_arrays(program, limits)
        image, labels = self.upload_window(window, program)
        ids, corners = batch.ids[part], batch.corners[part] - (window.y0, window.x0)
        images = device.empty((len(ids), *program.tile_shape), program.output_dtype)
        used_limits = device.empty((len(ids), len(program.cut), 2), np.float64)
        uploaded = device.to_device(ids), device.to_device(corners.astype(np.int32))
        boxes = None if batch.boxes is None else batch.boxes[part]
        launch_extract(device, program, arrays, image, labels, *uploaded, images, used_limits, boxes)
        return images, used_limits


def _chosen(device: Device, images: Array, planes: Sequence[int]) -> Array:
    """Return only these planes of tiles (n, K, S, S), in this order."""
    chosen = device.empty((len(images), len(planes), *images.shape[2:]), images.dtype)
    for position, plane in enumerate(planes):
        device.copy(images[:, plane], chosen[:, position])
    return chosen
