"""TIFF and OME-TIFF, read by region: only the strips and tiles that a box touches are decoded."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from tifffile import TiffFile, TiffPage, TiffPageSeries

from gpu_extract.errors import SourceError
from gpu_extract.model import Raster
from gpu_extract.parallel import parallel_map
from gpu_extract.sources import caches, tiff_checks
from gpu_extract.sources.arrays import read_box
from gpu_extract.sources.files import SourceFile, translated
from gpu_extract.sources.ome import (
    OmeImage,
    check_described,
    chosen_image,
    companion_xml,
    ome_channel_names,
    ome_pixel_size,
    ome_xml,
)
from gpu_extract.sources.selectors import Location
from gpu_extract.sources.stacks import Indices, Stack, out_of_range
from gpu_extract.sources.tiff_axes import PlaneAxes, plane_axes, unknown_axis_warning
from gpu_extract.sources.tiff_images import chosen_series
from gpu_extract.sources.tiff_names import page_names
from gpu_extract.sources.tiff_plane import CodedPlane, RawPlanes, joined, opened_tiff
from gpu_extract.sources.tiff_resolution import Resolution, tagged_resolution

__all__ = ["RawTiffRaster", "TiffPlanes", "TiffRaster", "open_companion", "open_tiff"]

# Without a handler Python prints tifffile's warnings to stderr. The checks below raise an error for those that matter.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

# Bytes. Uncompressed pixels of a remote file are requested in strips of about this size.
REMOTE_STRIP = 1 << 19

Plane = RawPlanes | CodedPlane
Part = tuple[CodedPlane, int]  # a strip or tile: its plane and its index in the plane


@dataclass(frozen=True)
class RawTiffRaster:
    """The planes of a TIFF that form one array in the file.

    Parameters
    ----------
    planes : RawPlanes
    names : tuple of str
        Names of the planes, or empty.
    source : str
    """

    planes: RawPlanes
    names: tuple[str, ...]
    source: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """See `Raster.shape`."""
        return self.planes.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """See `Raster.dtype`."""
        return self.planes.dtype

    def read(self, y0: int, x0: int, y1: int, x1: int) -> NDArray[Any]:
        """See `Raster.read`.

        Raises
        ------
        SourceError
            If the file has changed.
        """
        return read_box(self.planes.mapped((y1 - y0) * (x1 - x0)), y0, x0, y1, x1)


@dataclass(frozen=True, eq=False)
class TiffRaster:
    """The planes of a TIFF, each of H x W pixels of one type.

    Parameters
    ----------
    planes : tuple of RawPlanes or CodedPlane
        Single planes.
    names : tuple of str
        Names of the planes, or empty.
    source : str
    """

    planes: tuple[Plane, ...]
    names: tuple[str, ...]
    source: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """See `Raster.shape`."""
        H, W = self.planes[0].shape[-2:]
        return len(self.planes), H, W

    @property
    def dtype(self) -> np.dtype[Any]:
        """See `Raster.dtype`."""
        return self.planes[0].dtype

    def read(self, y0: int, x0: int, y1: int, x1: int) -> NDArray[Any]:
        """See `Raster.read`.

        Raises
        ------
        SourceError
            If a strip or tile cannot be decoded, or the file has changed.
        """
        pixels = np.empty((len(self.planes), y1 - y0, x1 - x0), self.dtype)
        targets: dict[tuple[Any, int], list[tuple[int, CodedPlane]]] = {}
        for index, plane in enumerate(self.planes):
            if isinstance(plane, RawPlanes):
                pixels[index] = plane.mapped(pixels[index].size)[0, y0:y1, x0:x1]
                continue
            for segment in plane.segments(y0, x0, y1, x1):
                targets.setdefault((plane.key, segment), []).append((index, plane))
        parts = {key: (planes[0][1], key[1]) for key, planes in targets.items()}
        decoded = caches.SEGMENTS.read(parts, _decode)
        for ((_, segment), planes), segment_pixels in zip(targets.items(), decoded, strict=True):
            for index, plane in planes:  # several if the samples of a pixel are interleaved
                plane.paste(segment, segment_pixels, pixels[index], y0, x0)
        return pixels


@dataclass(frozen=True, eq=False)
class TiffPlanes:
    """All planes of a TIFF; see `stacks.Planes`.

    Parameters
    ----------
    planes : tuple of RawPlanes or CodedPlane
        Single planes, in the order of the file.
    sizes : tuple of int
        Lengths of the axes of the planes.
    """

    planes: tuple[Plane, ...]
    sizes: tuple[int, ...]

    def raster(self, indices: Indices, names: tuple[str, ...], source: str) -> Raster:
        """See `stacks.Planes.raster`."""
        numbers = np.arange(len(self.planes)).reshape(self.sizes)[np.ix_(*indices)].ravel()
        planes = tuple(self.planes[number] for number in numbers)
        raw = joined(planes)
        return TiffRaster(planes, names, source) if raw is None else RawTiffRaster(raw, names, source)


def _decode(parts: Sequence[Part]) -> Iterator[NDArray[Any]]:
    for file, parts_of_file in groupby(parts, lambda part: part[0].file):
        with file.open() as stream:
            yield from parallel_map(partial(_decode_one, stream), list(parts_of_file))


def _decode_one(stream: BinaryIO, part: Part) -> NDArray[Any]:
    plane, segment = part
    return plane.decode(stream, segment)


def open_tiff(file: SourceFile, location: Location) -> Stack:
    """Return the planes of a TIFF of any kind; those of level 0 if it is a pyramid and no level is selected.

    Raises
    ------
    SourceError, LabelError
        If the headers show that the pixels cannot be read, or are ambiguous.
    """
    location.selection.refuse(str(location), "label", "missing")
    with translated(file, "is a damaged TIFF"):
        with opened_tiff(file) as tif:
            tiff_checks.check_pages(file, tif)
            xml = ome_xml(file, tif)
            if xml is None:
                return _stack(file, location, tif, chosen_series(file, location, tif))
        return _open_ome(file, location, chosen_image(file, location, xml))


def open_companion(file: SourceFile, location: Location) -> Stack:
    """Return the planes of an OME-TIFF that is given by its companion file.

    Raises
    ------
    SourceError, LabelError
        As of `open_tiff`.
    """
    location.selection.refuse(str(location), "label", "missing")
    with translated(file, "is damaged OME-XML"):
        image = chosen_image(file, location, companion_xml(file))
        first = SourceFile.at(os.path.join(os.path.dirname(file.path), min(image.files)), file.plane)
        return _open_ome(first, location, image)


def _open_ome(file: SourceFile, location: Location, image: OmeImage) -> Stack:
    """Return the planes of an image that OME-XML describes; the file is one of its files."""
    # Micro-Manager's files have an index as well, in which all positions are one image.
    with opened_tiff(file, omexml=image.xml, is_ome=True, is_mmstack=False) as tif:
        check_described(file, tif, image, tif.series)
        return _stack(file, location, tif, list(tif.series), image)


def _stack(
    file: SourceFile, location: Location, tif: TiffFile, full: list[TiffPageSeries], image: OmeImage | None = None
) -> Stack:
    """Return the planes of an image, or of single pages that are its channels."""
    tiff_checks.check_series(file, full[0])
    series = [_level(location, each) for each in full]
    axes = plane_axes(file, location, series)
    pages = _full_pages(file, series)
    planes = tuple(_planes(file, tif, pages, axes))
    names = axes.names or (page_names(tif, pages) if image is None else ome_channel_names(image.xml))
    warnings = list(axes.warnings)
    if len(names) != axes.n_channels:
        warnings += unknown_axis_warning(location, series, axes.n_channels)
    said = (
        tagged_resolution(tif, full[0].keyframe)
        if image is None
        else Resolution(ome_pixel_size(image.xml), source="OME-XML")
    )
    if file.plane is None:
        warnings += said.warnings
    size = _pixel_size(said.size, full[0], series[0])
    source = "" if size is None else said.source
    return Stack(
        location,
        axes.axes,
        axes.sizes,
        names,
        TiffPlanes(planes, axes.sizes),
        size,
        tuple(warnings),
        pixel_size_source=source,
    )


def _level(location: Location, series: TiffPageSeries) -> TiffPageSeries:
    level = location.selection.level or 0
    if level >= len(series.levels):
        raise out_of_range(location, "level", len(series.levels))
    return series.levels[level]


def _pixel_size(
    size: tuple[float, float] | None, full: TiffPageSeries, level: TiffPageSeries
) -> tuple[float, float] | None:
    """Return (y, x) in um, of a level that shows the same field of view as the full resolution."""
    if size is None:
        return None
    height, width = (full.shape[full.axes.index(axis)] / level.shape[level.axes.index(axis)] for axis in "YX")
    return size[0] * height, size[1] * width


def _planes(file: SourceFile, tif: TiffFile, pages: Sequence[TiffPage], axes: PlaneAxes) -> list[Plane]:
    first, n_stored = pages[0], axes.n_stored if axes.is_interleaved else axes.n_stored * axes.n_samples
    # One page may hold all planes: as separate samples, or with the other planes right behind it in the file.
    is_whole = len(pages) == 1 and (first.is_final or (not axes.is_interleaved and first.samplesperpixel == n_stored))
    separate = 1 if axes.is_interleaved else axes.n_samples
    if len(pages) * separate != n_stored and not is_whole:
        raise SourceError(f"{file} has {len(pages)} pages for {n_stored} planes; export it again")
    files = {tif.filehandle.path: file}
    codings: dict[tuple[str, int], int] = {}  # for each coding, the directory of the first page that has it
    planes: list[Plane] = []
    for page in pages:
        path = page.parent.filehandle.path
        if path not in files:  # another file of an OME-TIFF
            files[path] = SourceFile.at(path, file.plane)
        coding = codings.setdefault((path, page.hash), page.offset)
        planes += _planes_of_page(files[path], page, first, coding, n_stored // len(pages), axes)
    return planes


def _planes_of_page(
    file: SourceFile, page: TiffPage, first: TiffPage, coding: int, n_stored: int, axes: PlaneAxes
) -> list[Plane]:
    """Check a page and return its planes, with a plane for each of the interleaved samples that are read."""
    offsets, nbytes = (np.array(numbers, np.int64) for numbers in (page.dataoffsets, page.databytecounts))
    tiff_checks.check_page(file, page, first)
    tiff_checks.check_segments(file, page, offsets, nbytes, n_stored)
    H, W, dtype = page.imagelength, page.imagewidth, np.dtype(page.dtype)
    if axes.is_interleaved:
        step = axes.n_samples
        chosen = [(index, sample) for index in range(n_stored) for sample in axes.samples]
    else:  # separate samples change fastest among the planes
        step = 1
        chosen = [(index, 0) for index in range(n_stored) if index % axes.n_samples in axes.samples]
    if page.is_final:  # uncompressed and contiguous, one plane after the other
        stored, start = dtype.newbyteorder(page.parent.byteorder), int(offsets[0])
        size = H * W * step * dtype.itemsize
        if file.is_remote:
            return [_strips(file, page, start + index * size, stored, step, sample) for index, sample in chosen]
        starts = [start + index * size + sample * dtype.itemsize for index, sample in chosen]
        return [RawPlanes(file, begin, 0, (1, H, W), stored, step) for begin in starts]
    height, width = page.chunks[:2]
    per_plane = math.ceil(H / height) * math.ceil(W / width)
    plane = CodedPlane(
        file=file,
        page=page.index,
        directory=page.offset,
        coding=coding,
        is_tiled=page.is_tiled,
        shape=(H, W),
        dtype=dtype,
        segment_shape=(height, width),
        first=0,
        offsets=offsets,
        nbytes=nbytes,
        jpegtables=page.jpegtables,
    )
    return [replace(plane, first=index * per_plane, sample=sample) for index, sample in chosen]


def _strips(
    file: SourceFile, page: TiffPage, start: int, stored: np.dtype[Any], n_samples: int, sample: int
) -> CodedPlane:
    """Return an uncompressed plane of a remote file, to be read in strips."""
    H, W = page.imagelength, page.imagewidth
    row = W * n_samples * stored.itemsize
    height = min(max(REMOTE_STRIP // row, 1), H)
    tops = np.arange(0, H, height)
    return CodedPlane(
        file=file,
        page=page.index,
        directory=start,
        coding=page.offset,
        is_tiled=False,
        shape=(H, W),
        dtype=stored.newbyteorder("="),
        segment_shape=(height, W),
        first=0,
        offsets=start + tops * row,
        nbytes=(np.minimum(tops + height, H) - tops) * row,
        jpegtables=None,
        sample=sample,
        stored_dtype=stored,
    )


def _full_pages(file: SourceFile, series: Sequence[TiffPageSeries]) -> list[TiffPage]:
    listed = [page for each in series for page in each]
    pages = [page for page in listed if page is not None]
    if len(pages) < len(listed):
        raise SourceError(f"{file} lacks {len(listed) - len(pages)} of its {len(listed)} planes; export it again")
    for page in pages:
        if page.parent.filehandle.closed:  # another file of an OME-TIFF; closed together with `tif`
            page.parent.filehandle.open()
    # tifffile assumes that all pages of a series are stored as the first one is. Reading each in full shows the truth.
    return [page.aspage() for page in pages]
