"""Files of outlines as label planes: GeoJSON, ImageJ ROIs, and tables of boundaries.

A file is recognized by its first bytes. Its outlines are drawn when the size of the image is known; see `polygons`.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, Literal

import numpy as np

from gpu_extract.errors import LabelError, SourceError
from gpu_extract.model import Raster
from gpu_extract.sources.files import SourceFile, translated
from gpu_extract.sources.outlines import EVERY, Outlines
from gpu_extract.sources.polygons import draw
from gpu_extract.sources.selectors import Location
from gpu_extract.sources.stacks import Indices, Stack

__all__ = ["Canvas", "OutlineFormat", "open_outlines", "outline_format"]

OutlineFormat = Literal["GeoJSON", "ImageJ ROIs", "CSV", "Parquet"]

# Bytes at the beginning that tell the format of text: names of GeoJSON, the header of a table.
N_HEAD = 4096
GEOJSON = (b'"Feature', b'"features"', b'"geometr', b'"coordinates"')
ZIP, GZIP = b"PK\x03\x04", b"\x1f\x8b"
# JSON takes some three times its size in memory while it is parsed.
MAX_TEXT = 4 << 30
MAX_ROI = 16 << 20
# Sizes of a pixel that differ by less are one: files round them.
SAME_SIZE = 0.01


@dataclass(frozen=True)
class Canvas:
    """The image that outlines are drawn over.

    Parameters
    ----------
    size : (H, W)
    pixel_size : (y, x), um, or None
        Of the image as it is read.
    location : Location or None
        Where it is; None for an array.
    """

    size: tuple[int, int]
    pixel_size: tuple[float, float] | None = None
    location: Location | None = None


@dataclass(frozen=True, eq=False)
class OutlinePlanes:
    """The outlines of a file as planes along time and Z; see `stacks.Planes`.

    Parameters
    ----------
    outlines : Outlines
    axes : str
        Those along which a choice is needed: some of ``t`` and ``z``.
    location : Location
    canvas : callable
        Returns the image.
    """

    outlines: Outlines
    axes: str
    location: Location
    canvas: Callable[[], Canvas]

    def raster(self, indices: Indices, names: tuple[str, ...], source: str) -> Raster:
        """Return the label plane of a time point and a Z slice."""
        chosen = np.ones(len(self.outlines), bool)
        for axis, wanted in zip(self.axes, indices, strict=True):
            at = self.outlines.planes[:, "tz".index(axis)]
            chosen &= (at == EVERY) | (at == wanted[0])
        image = self.canvas()
        placed = _placed(self.outlines.part(chosen), self.location, image)
        return draw(placed, image.size, str(self.location), source)


def outline_format(file: SourceFile) -> OutlineFormat | None:
    """Return the format of a file of outlines by its content; None if it is none."""
    with file.open() as stream:
        head = stream.read(N_HEAD)
        if head.startswith(b"Iout"):
            return "ImageJ ROIs"
        if head.startswith(b"PAR1"):
            return "Parquet"
        if head.startswith(ZIP):
            return _zip_format(stream)
        if head.startswith(GZIP):
            stream.seek(0)
            with translated(file, "is a damaged gzip file"):
                head = _unzipped(stream).read(N_HEAD)
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith((b"{", b"[")):
        return "GeoJSON" if any(name in head for name in GEOJSON) else None
    return "CSV" if b"vertex_x" in start.partition(b"\n")[0] else None


def open_outlines(
    file: SourceFile, location: Location, kind: OutlineFormat, canvas: Callable[[], Canvas] | None
) -> Stack:
    """Open the outlines of a file as the planes of a label plane.

    They have an axis of time or of Z where the outlines of the file are in several time points or Z slices.

    Parameters
    ----------
    file : SourceFile
    location : Location
    kind : OutlineFormat
    canvas : callable
        Returns the image; None if there is none.

    Raises
    ------
    InputError, SourceError, LabelError
        If the file is damaged or given as an image.
    """
    if file.plane is None:
        raise SourceError(
            f"{file} holds outlines ({kind}), not pixels; give it as label plane (--nucleus, --cytosol; "
            "nucleus=, cytosol=)"
        )
    if canvas is None:
        raise LabelError(f"{file} holds outlines ({kind}), which are drawn over an image; open it with the image")
    location.selection.refuse(str(location), "level", "c", "image", "label", "missing")
    outlines = _read(file, kind)
    if location.selection.unit is not None:
        outlines = replace(outlines, unit=location.selection.unit)
    sizes = {axis: _size(outlines, axis, location) for axis in "tz"}
    axes = "".join(axis for axis, size in sizes.items() if size)
    counts = tuple(filter(None, sizes.values()))
    return Stack(location, axes, counts, (), OutlinePlanes(outlines, axes, location, canvas))


def _size(outlines: Outlines, axis: str, location: Location) -> int:
    """Return the length of an axis; 0 if no choice along it is needed or made."""
    found = outlines.planes[:, "tz".index(axis)]
    found = found[found != EVERY]
    is_chosen = getattr(location.selection, axis) is not None
    return int(found.max()) + 1 if len(found) and (is_chosen or found.min() < found.max()) else 0


def _read(file: SourceFile, kind: OutlineFormat) -> Outlines:
    # What reads each format is imported where it is needed, so that nobody waits for the others.
    if kind == "GeoJSON":
        from gpu_extract.sources.geojson import read_geojson

        return read_geojson(_text(file), str(file), file.plane or "")
    if kind == "ImageJ ROIs":
        from gpu_extract.sources.imagej_roi import read_rois

        return read_rois(_rois(file), str(file))
    from gpu_extract.sources.boundaries import read_csv_boundaries, read_parquet_outlines

    return read_csv_boundaries(_text(file), file) if kind == "CSV" else read_parquet_outlines(file)


def _placed(outlines: Outlines, location: Location, image: Canvas) -> Outlines:
    """Return the outlines in pixels of the image, with a warning where that may be wrong.

    Raises
    ------
    LabelError, SourceError
        If the size of a pixel is needed and not known, or the image has no place in the coordinates of the outlines.
    """
    if outlines.unit == "um":
        return _in_pixels(outlines, location, image)
    from gpu_extract.sources.shapes import shapes_to_pixels

    placed = shapes_to_pixels(location, image.location)
    if placed is not None:
        return outlines.transformed(placed[0]).warning(*placed[1])
    if image.location is not None and image.location.selection.level:
        line = "its outlines are in pixels and are drawn as they are on level"
        level = image.location.selection.level
        return outlines.warning(f"{location}: {line} {level}; leave #level= out if they are of the full resolution")
    if location.selection.unit is None and _look_like_um(outlines, image):
        line = "its coordinates are taken for pixels, and may be um by what they span"
        return outlines.warning(f"{location}: {line}; add #unit=um to its path if they are, #unit=px if not")
    return outlines


def _in_pixels(outlines: Outlines, location: Location, image: Canvas) -> Outlines:
    size = image.pixel_size or outlines.pixel_size
    if size is None:
        raise LabelError(
            f"{location} is in um, and the pixel size of the image is not known; give --pixel-size in um (pixel_size=)"
        )
    stated = outlines.pixel_size
    drawn = outlines.in_pixels(size)
    if stated is None or all(_is_multiple(one / other) for one, other in zip(size, stated, strict=True)):
        return drawn
    line = f"its outlines are drawn with pixels of {size[0]:g} x {size[1]:g} um (y, x), the size of the image's"
    return drawn.warning(f"{location}: {line}, and the settings beside it state {stated[0]:g} um")


def _is_multiple(ratio: float) -> bool:
    """Whether one size of a pixel is the other, or that of a lower level of its pyramid."""
    return ratio > 1 - SAME_SIZE and abs(ratio / round(ratio) - 1) < SAME_SIZE


def _look_like_um(outlines: Outlines, image: Canvas) -> bool:
    """Whether outlines would span the image if they were in um, and span a part of it as they are."""
    if image.pixel_size is None or not len(outlines):
        return False
    span = outlines.vertices.max(axis=0) / image.size
    um = np.array(image.pixel_size)
    return bool(((span < 0.7) & (span > 0.7 * um) & (span < 1.02 * um)).all())


def _zip_format(stream: BinaryIO) -> OutlineFormat | None:
    try:
        with zipfile.ZipFile(stream) as archive:
            names = [name.lower() for name in archive.namelist()]
    except Exception:  # whoever reads archives of arrays says what is wrong with it
        return None
    if any(name.endswith(".roi") for name in names):
        return "ImageJ ROIs"
    return "GeoJSON" if len(names) == 1 and names[0].endswith(".geojson") else None


def _text(file: SourceFile) -> bytes:
    """Return the text of a file, decompressed.

    Raises
    ------
    SourceError
    """
    with translated(file, "is damaged"), file.open() as stream:
        head = stream.read(len(ZIP))
        stream.seek(0)
        if head.startswith(ZIP):
            with zipfile.ZipFile(stream) as archive, archive.open(archive.namelist()[0]) as member:
                content = member.read(MAX_TEXT + 1)
        else:
            content = (_unzipped(stream) if head.startswith(GZIP) else stream).read(MAX_TEXT + 1)
    if len(content) > MAX_TEXT:
        raise SourceError(
            f"{file} has more than {MAX_TEXT >> 30} GB of text; export it without measurements, or as a label image"
        )
    return content


def _unzipped(stream: BinaryIO) -> io.BufferedIOBase:
    from isal import igzip

    gzip_file: Any = igzip.IGzipFile
    unzipped: io.BufferedIOBase = gzip_file(fileobj=stream, mode="rb")
    return unzipped


def _rois(file: SourceFile) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of each ROI of a file.

    Raises
    ------
    SourceError
    """
    with file.open() as stream:
        if stream.read(len(ZIP)) != ZIP:
            stream.seek(0)
            yield file.path, stream.read(MAX_ROI)
            return
        with translated(file, "is a damaged zip archive"), zipfile.ZipFile(stream) as archive:
            for info in archive.infolist():
                if info.filename.lower().endswith(".roi"):
                    with archive.open(info) as member:
                        content = member.read(MAX_ROI)
                    yield info.filename, content
