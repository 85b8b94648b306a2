"""Slides that stay on a device: each pixel is uploaded once, for the statistics of labels and for all batches.

Windows of neighboring batches overlap, and cells of a batch share them, so that uploading windows reads and copies each
row about 1.5 times, after the statistics have read all labels once. A slide that fits in the device's memory is
uploaded in strips from top to bottom, as far as the next batch needs it, while earlier batches are computed.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpu_extract.backends.cuda.device import Array, Device, OutOfDeviceMemoryError
from gpu_extract.backends.cuda.pinned import Uploader
from gpu_extract.errors import DeviceError
from gpu_extract.model import Raster, Slide, Window

__all__ = ["ResidentSlides", "ResidentWindow", "unsigned"]

# Bytes of a strip, which is in host memory while it is uploaded.
STRIP_NBYTES = 64 << 20


@dataclass(frozen=True)
class ResidentWindow(Window):
    """A whole slide on the device; rows below the box of its batch may not have been uploaded yet.

    Parameters
    ----------
    image : (C, H, W), on the device
    labels : tuple of M arrays, (H, W), on the device
    y0, x0 : int
        0.
    stack : (M, H, W), unsigned, on the device
        The labels as one array.
    """

    stack: Array


class ResidentSlides:
    """The slide that is extracted and label planes of others, on a device.

    Parameters
    ----------
    device : Device
        A stream whose memory is used for nothing else.
    """

    def __init__(self, device: Device) -> None:
        self._device, self._upload = device, Uploader(device)
        self._planes: dict[int, tuple[Raster, Array]] = {}  # by the identity of the raster, which is kept
        self._slide: _ResidentSlide | None = None
        self._previous: Callable[[], ResidentWindow | None] = lambda: None  # a weak reference
        self._lock = threading.Lock()

    def empty_plane(self, raster: Raster) -> Array | None:
        """Return an uninitialized array (H, W) for a label plane, or None if it does not fit."""
        with self._lock:
            try:
                plane = self._device.empty(raster.shape[1:], unsigned([raster]))
            except OutOfDeviceMemoryError:
                return None
            self._device.synchronize()  # other streams may use the array from now on
            return plane

    def keep(self, raster: Raster, plane: Array) -> None:
        """Keep the pixels of a label plane for `window`."""
        with self._lock:
            self._planes[id(raster)] = raster, plane

    def window(self, slide: Slide, n_rows: int) -> ResidentWindow | None:
        """Return a slide of which the first ``n_rows`` rows are on the device, or None if it does not fit.

        The slide before is forgotten. Its memory is free when its last batch is done, so a slide that does not fit now
        may fit later.
        """
        with self._lock:
            if self._slide and self._slide.slide is not slide:
                self._previous = weakref.ref(self._slide.window)
                self._slide = None
            if self._slide is None:
                self._slide = self._open(slide)
            if self._slide is None:
                return None
            if self._slide.n_rows < n_rows:
                self._fill(self._slide, n_rows)
            return self._slide.window

    def release(self) -> None:
        """Forget all slides and planes."""
        with self._lock:
            self._planes.clear()
            self._slide = None

    def _open(self, slide: Slide) -> _ResidentSlide | None:
        """Return a slide with the label planes that are on the device already."""
        arrays = self._empty(slide)
        while arrays is None and self._planes:
            if self._previous() is not None:
                return None  # there may be room for the planes when the batches of the slide before are done
            self._forget_plane(slide)
            arrays = self._empty(slide)
        if arrays is None:
            return None
        image, labels = arrays
        missing = [(slide.image, image)]
        kept = [self._planes.pop(id(raster), None) for raster in slide.masks.values()]
        for m, (raster, plane) in enumerate(zip(slide.masks.values(), kept, strict=True)):
            if plane is None:
                missing.append((raster, labels[m : m + 1]))
            else:
                self._device.copy(plane[1], labels[m])
        self._device.synchronize()
        return _ResidentSlide(slide, missing, ResidentWindow(image, tuple(labels), 0, 0, labels))

    def _empty(self, slide: Slide) -> tuple[Array, Array] | None:
        """Return uninitialized arrays for the image and the labels of a slide, or None if they do not fit."""
        planes = list(slide.masks.values())
        try:
            image = self._device.empty(slide.image.shape, slide.image.dtype)
            return image, self._device.empty((len(planes), *slide.size), unsigned(planes))
        except OutOfDeviceMemoryError:
            return None

    def _forget_plane(self, slide: Slide) -> None:
        """Forget one label plane: the last one of another slide, or one of this slide if there is no other."""
        own = set(map(id, slide.masks.values()))
        others = [key for key in self._planes if key not in own]
        del self._planes[others[-1] if others else next(iter(self._planes))]

    def _fill(self, slide: _ResidentSlide, n_rows: int) -> None:
        """Upload strips of a slide until its first ``n_rows`` rows are on the device."""
        try:
            while slide.n_rows < n_rows:
                slide.upload_strip(self._upload)
            self._device.synchronize()
        except BaseException:
            with suppress(DeviceError):  # the first error is the one to report
                self._device.synchronize()
            raise


@dataclass
class _ResidentSlide:
    """A slide on the device.

    Parameters
    ----------
    slide : Slide
    missing : list of (Raster, Array)
        What is uploaded strip by strip, and where to.
    window : ResidentWindow
    n_rows : int
        Rows that have been uploaded.
    """

    slide: Slide
    missing: list[tuple[Raster, Array]]
    window: ResidentWindow
    n_rows: int = 0

    def upload_strip(self, upload: Uploader) -> None:
        """Read the next strip and start its upload."""
        H, W = self.slide.size
        pixel_nbytes = sum(raster.shape[0] * raster.dtype.itemsize for raster, _ in self.missing)
        end = min(self.n_rows + max(1, STRIP_NBYTES // (W * pixel_nbytes)), H)
        for raster, target in self.missing:
            for plane, out in zip(raster.read(self.n_rows, 0, end, W), target, strict=True):
                upload.copy(plane, out[self.n_rows : end])
        self.n_rows = end


def unsigned(planes: Sequence[Raster]) -> np.dtype[Any]:
    """Return the unsigned type of label planes that are one array on the device."""
    return np.dtype(f"u{max(plane.dtype.itemsize for plane in planes)}")
