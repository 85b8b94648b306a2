"""TIFF and OME-TIFF, read by region: only the strips and tiles that a box touches are decoded."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from tifffile import TiffFile, TiffPage, TiffPageSeries

from gpu_extract.errors import SourceError
from gpu_extract.parallel import parallel_map
from gpu_extract.sources import tiff_checks
from gpu_extract.sources.arrays import read_box
from gpu_extract.sources.files import SourceFile, translated
from gpu_extract.sources.ome import check_ome_files, ome_channel_names, ome_pixel_size
from gpu_extract.sources.segments import SHARED, SegmentCache
from gpu_extract.sources.selectors import Location
from gpu_extract.sources.stacks import Indices, Stack, out_of_range
from gpu_extract.sources.tiff_plane import TiffPlane, mapped_together
from gpu_extract.sources.units import pixel_size

__all__ = ["TiffRaster", "open_tiff"]

# Without a handler Python prints tifffile's warnings to stderr; what matters among them is refused below.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

# Of plain TIFF, um per pixel. Cameras write 72 to 600 dots per inch, 353 to 42 um, into files that know no better.
MAX_TAGGED_UM = 10.0

Key = tuple["TiffRaster", int, int]  # (raster, plane, segment)


class TiffRaster:
    """The planes of a TIFF, each of H x W pixels of one type.

    Parameters
    ----------
    planes : sequence of TiffPlane
    names : sequence of str
        Names of the planes, or empty.
    source : str
    cache : SegmentCache
        Where decoded segments are kept between reads.
    """

    def __init__(
        self,
        planes: Sequence[TiffPlane],
        names: Sequence[str],
        source: str,
        cache: SegmentCache[Key] = SHARED,
    ) -> None:
        self._planes = tuple(planes)
        self._cache = cache
        self.shape = (len(planes), *planes[0].shape)
        self.dtype = planes[0].dtype
        self.names = tuple(names)
        self.source = source

    def read(self, y0: int, x0: int, y1: int, x1: int) -> NDArray[Any]:
        """See `Raster.read`.

        Raises
        ------
        SourceError
            If a strip or tile cannot be decoded, or the file has changed.
        """
        mapped = mapped_together(self._planes, (y1 - y0) * (x1 - x0))
        if mapped is not None:
            return read_box(mapped, y0, x0, y1, x1)
        pixels = np.empty((len(self._planes), y1 - y0, x1 - x0), self.dtype)
        keys: list[Key] = []
        for index, plane in enumerate(self._planes):
            if plane.is_raw:
                pixels[index] = plane.mapped(pixels[index].size)[y0:y1, x0:x1]
            else:
                keys += [(self, index, segment) for segment in plane.segments(y0, x0, y1, x1)]
        for (_, index, segment), decoded in self._cache.read(keys, self._decode).items():
            self._planes[index].paste(segment, decoded, pixels[index], y0, x0)
        return pixels

    def _decode(self, keys: Sequence[Key]) -> Iterator[NDArray[Any]]:
        for file, keys_of_file in groupby(keys, lambda key: self._planes[key[1]].file):
            with file.open() as stream:
                decode = partial(self._decode_one, stream)
                yield from parallel_map(decode, list(keys_of_file))

    def _decode_one(self, stream: BinaryIO, key: Key) -> NDArray[Any]:
        _, index, segment = key
        return self._planes[index].decode(stream, segment)


def open_tiff(file: SourceFile, location: Location) -> Stack:
    """The planes of a TIFF of any kind; level 0 where it is a pyramid and none is selected.

    Raises
    ------
    SourceError, LabelError
        If the headers show that its pixels cannot be read, or not without a guess.
    """
    location.selection.refuse(str(location), "image", "label", "missing")
    with translated(f"{file} is a damaged TIFF"), TiffFile(file.path) as tif:
        tiff_checks.check_pages(file, tif)
        if tif.ome_metadata:
            check_ome_files(file, tif.ome_metadata)
        tiff_checks.check_series(file, tif.series)
        series = [_level(location, each) for each in tif.series]
        axes, sizes = tiff_checks.plane_axes(file, series)
        planes = np.array(_planes(file, tif, series, math.prod(sizes)), object).reshape(sizes)
        names = _names(tif)
        size = _pixel_size(tif, series[0])

    def raster(indices: Indices, names: tuple[str, ...], source: str) -> TiffRaster:
        return TiffRaster(planes[np.ix_(*indices)].ravel().tolist(), names, source)

    return Stack(location, axes, sizes, names, raster, size)


def _level(location: Location, series: TiffPageSeries) -> TiffPageSeries:
    level = location.selection.level or 0
    if level >= len(series.levels):
        raise out_of_range(location, "level", len(series.levels))
    return series.levels[level]


def _names(tif: TiffFile) -> tuple[str, ...]:
    if tif.ome_metadata:
        return ome_channel_names(tif.ome_metadata)
    labels = (tif.imagej_metadata or {}).get("Labels", [])
    return (labels,) if isinstance(labels, str) else tuple(labels)


def _pixel_size(tif: TiffFile, level: TiffPageSeries) -> tuple[float, float] | None:
    """(y, x) in um, of a level whose field of view is that of the first."""
    full = tif.series[0]
    size = ome_pixel_size(tif.ome_metadata) if tif.ome_metadata else _resolution(tif, full.keyframe)
    if size is None:
        return None
    height, width = (full.shape[full.axes.index(axis)] / level.shape[level.axes.index(axis)] for axis in "YX")
    return size[0] * height, size[1] * width


def _resolution(tif: TiffFile, page: TiffPage) -> tuple[float, float] | None:
    """What the tags of resolution say, where that was measured by a microscope and not set for a printer."""
    ratios = [np.ravel(page.tags.valueof(name, ())) for name in ("YResolution", "XResolution")]
    if any(len(ratio) != 2 or ratio[0] == 0 for ratio in ratios):
        return None
    y, x = (denominator / numerator for numerator, denominator in ratios)
    if tif.imagej_metadata:
        unit = tif.imagej_metadata.get("unit", "")
        return pixel_size(y, x, tif.imagej_metadata.get("yunit", unit), unit)
    unit = {2: "inch", 3: "cm"}.get(page.tags.valueof("ResolutionUnit"))
    size = pixel_size(y, x, unit, unit)
    return size if size and max(size) < MAX_TAGGED_UM else None


def _planes(file: SourceFile, tif: TiffFile, series: Sequence[TiffPageSeries], n_planes: int) -> list[TiffPlane]:
    pages = _full_pages(file, series)
    first = pages[0]
    # One page may stand for all: by samples that are stored apart, or with the other planes right behind it.
    is_whole = len(pages) == 1 and (first.is_final or first.samplesperpixel == n_planes)
    if len(pages) != n_planes and not is_whole:
        raise SourceError(f"{file} has {len(pages)} pages for {n_planes} planes; export it again")
    per_page = n_planes // len(pages)
    planes = []
    for page in pages:
        part = file if page.parent is tif else SourceFile(page.parent.filehandle.path, file.plane)
        offsets, nbytes = (np.array(numbers, np.int64) for numbers in (page.dataoffsets, page.databytecounts))
        tiff_checks.check_page(part, page, first)
        tiff_checks.check_segments(part, page, offsets, nbytes, per_page)
        planes += [TiffPlane(part, page, index, offsets, nbytes) for index in range(per_page)]
    return planes


def _full_pages(file: SourceFile, series: Sequence[TiffPageSeries]) -> list[TiffPage]:
    listed = [page for each in series for page in each]
    pages = [page for page in listed if page is not None]
    if len(pages) < len(listed):
        raise SourceError(f"{file} lacks {len(listed) - len(pages)} of its {len(listed)} planes; export it again")
    for page in pages:
        if page.parent.filehandle.closed:  # the other files of an OME-TIFF; closed again with `tif`
            page.parent.filehandle.open()
    # tifffile takes all pages of a series to be stored as its first one is; read in full, each tells.
    return [page.aspage() for page in pages]
