"""PNG and JPEG: images of one channel or in RGB, and label planes in grayscale PNG.

They cannot be read by region, so a picture is decoded whole on the first read and cached in `caches.WHOLE`. Its header
is read here first, so that nothing is allocated for a size that is impossible or too large.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import LabelError, SourceError
from gpu_extract.sources import caches
from gpu_extract.sources.arrays import read_box
from gpu_extract.sources.files import SourceFile, translated
from gpu_extract.sources.selectors import Location
from gpu_extract.sources.stacks import Stack, raster_stack

__all__ = ["PictureRaster", "open_picture"]

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
# Samples per pixel of a PNG by its color type; 3 is a palette.
PNG_SAMPLES = {0: 1, 2: 3, 4: 2, 6: 4}
PNG_PALETTE = 3
# The markers of JPEG that begin a frame: baseline, extended, progressive, lossless, and their arithmetic variants.
JPEG_FRAMES = frozenset([0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA, 0xCB])
JPEG_SCAN = 0xDA
# Markers of JPEG without content.
JPEG_BARE = frozenset([0x01, *range(0xD0, 0xD9)])
# Deflate decodes one byte to at most 1032.
MAX_DEFLATE_RATIO = 1032
# Bytes. Larger pictures do not belong in a format that must be decoded whole.
MAX_NBYTES = 4 << 30
GRAY, RGB = 1, 3


@dataclass(frozen=True)
class Header:
    """The header of a picture.

    Parameters
    ----------
    kind : str
        ``PNG`` or ``JPEG``.
    size : (H, W)
    n_samples : int
        Samples per pixel, transparency included.
    bits : int
        Per sample.
    is_palette : bool
    """

    kind: str
    size: tuple[int, int]
    n_samples: int
    bits: int
    is_palette: bool = False

    @property
    def has_alpha(self) -> bool:
        """Whether the last sample is transparency."""
        return self.kind == "PNG" and self.n_samples in (2, 4)

    @property
    def n_channels(self) -> int:
        """Number of samples besides transparency."""
        return self.n_samples - self.has_alpha

    @property
    def nbytes(self) -> int:
        """Size of the decoded picture, in bytes."""
        return math.prod(self.size) * self.n_samples * self.bits // 8


@dataclass(frozen=True, eq=False)
class PictureRaster:
    """A PNG or JPEG.

    Parameters
    ----------
    file : SourceFile
    header : Header
    """

    file: SourceFile
    header: Header

    @property
    def shape(self) -> tuple[int, int, int]:
        """See `Raster.shape`."""
        return self.header.n_channels, *self.header.size

    @property
    def dtype(self) -> np.dtype[Any]:
        """See `Raster.dtype`."""
        return np.dtype(f"u{self.header.bits // 8}")

    @property
    def names(self) -> tuple[str, ...]:
        """See `Raster.names`."""
        return ("R", "G", "B") if self.header.n_channels == RGB else ()

    @property
    def source(self) -> str:
        """See `Raster.source`."""
        return self.file.path

    def read(self, y0: int, x0: int, y1: int, x1: int) -> NDArray[Any]:
        """See `Raster.read`.

        Raises
        ------
        SourceError
            If it is damaged.
        """
        return read_box(caches.WHOLE.read(self, self.file.key, self._load), y0, x0, y1, x1)

    def _load(self) -> NDArray[Any]:
        import imagecodecs

        decode = imagecodecs.png_decode if self.header.kind == "PNG" else imagecodecs.jpeg8_decode
        with translated(self.file, f"is a damaged {self.header.kind}"), self.file.open() as stream:
            pixels = np.atleast_3d(np.asarray(decode(stream.read())))
        # A decoder may add transparency that is stored besides the pixels.
        if pixels.shape[:2] != self.header.size or pixels.shape[2] < self.header.n_channels:
            raise SourceError(f"{self.file} is damaged: its pixels are {pixels.shape}; export it again")
        if pixels.dtype != self.dtype:
            raise SourceError(f"{self.file} is damaged: its pixels are {pixels.dtype}; export it again")
        return np.ascontiguousarray(np.moveaxis(pixels[..., : self.header.n_channels], -1, 0))


def open_picture(file: SourceFile, location: Location) -> Stack:
    """Return the channels of a PNG or JPEG.

    Raises
    ------
    InputError, SourceError, LabelError
        If it is damaged or too large, has a palette, or is not lossless grayscale where a label plane is needed.
    """
    with translated(file, "is a damaged picture"), file.open() as stream:
        header = _png_header(stream) if stream.read(len(PNG_MAGIC)) == PNG_MAGIC else _jpeg_header(stream)
    _check_size(file, header)
    if file.plane is not None:
        _check_labels(file, header)
    if header.is_palette:
        raise SourceError(f"{file} is a PNG with a color palette; save it in grayscale or RGB, or as TIFF")
    if header.bits not in (8, 16):
        raise SourceError(f"{file} has {header.bits} bits per pixel; save it with 8 or 16, or as TIFF")
    if header.n_channels not in (GRAY, RGB):
        raise SourceError(f"{file} is a picture of {header.n_channels} colors (CMYK?); save it as RGB, or as TIFF")
    return replace(raster_stack(PictureRaster(file, header), location), warnings=_warnings(file, location, header))


def _warnings(file: SourceFile, location: Location, header: Header) -> tuple[str, ...]:
    """Return a line about colors, transparency and losses."""
    said = []
    if header.n_channels == RGB and location.selection.c is None:
        said.append("is an RGB picture, read as the channels R, G and B (#c=R,G,B behind its path chooses)")
    if header.has_alpha:
        said.append("has transparency, which is ignored")
    if header.kind == "JPEG":
        said.append("is a JPEG, whose compression has changed the intensities")
    return (f"{file} {'; it '.join(said)}",) if said else ()


def _check_labels(file: SourceFile, header: Header) -> None:
    if header.kind == "JPEG":
        raise LabelError(f"{file} is a JPEG, which changes ids; export the labels as TIFF or as PNG of 16 bits")
    if header.is_palette or header.n_channels != GRAY or header.has_alpha:
        kind = "a color palette" if header.is_palette else "colors" if header.n_channels > 1 else "transparency"
        raise LabelError(
            f"{file} is a PNG with {kind}, and a label plane has one integer id per pixel; "
            "export the ids as TIFF or as grayscale PNG of 16 bits"
        )


def _check_size(file: SourceFile, header: Header) -> None:
    if min(header.size) < 1 or (header.kind == "PNG" and header.nbytes > MAX_DEFLATE_RATIO * file.nbytes):
        raise SourceError(
            f"{file} is damaged: it claims {header.size[0]} x {header.size[1]} pixels, "
            f"more than {file.nbytes} bytes can hold; export it again"
        )
    if header.nbytes > MAX_NBYTES:
        raise SourceError(
            f"{file} has {header.nbytes} bytes of pixels, and at most {MAX_NBYTES} are read from a {header.kind}; "
            "save it as tiled TIFF"
        )


def _png_header(stream: BinaryIO) -> Header:
    head = stream.read(18)
    if head[4:8] != b"IHDR":
        raise ValueError("it does not begin with its header")
    width, height = int.from_bytes(head[8:12], "big"), int.from_bytes(head[12:16], "big")
    bits, color = head[16], head[17]
    if color == PNG_PALETTE:
        return Header("PNG", (height, width), 1, bits, is_palette=True)
    return Header("PNG", (height, width), PNG_SAMPLES[color], bits)


def _jpeg_header(stream: BinaryIO) -> Header:
    """Return the header of a JPEG, which stands in its first frame."""
    stream.seek(2)
    while True:
        byte, marker = stream.read(1), stream.read(1)
        while marker == b"\xff":  # padding
            marker = stream.read(1)
        if byte != b"\xff" or not marker or marker[0] == JPEG_SCAN:
            raise ValueError("it has no header")
        if marker[0] in JPEG_BARE:
            continue
        length = int.from_bytes(stream.read(2), "big")
        if length < 2:
            raise ValueError("a segment has no length")
        content = stream.read(length - 2)
        if marker[0] in JPEG_FRAMES:
            height, width = int.from_bytes(content[1:3], "big"), int.from_bytes(content[3:5], "big")
            return Header("JPEG", (height, width), content[5], content[0])
