"""Checks of the headers of a TIFF, before any memory is allocated for its pixels."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tifffile import PHOTOMETRIC, PLANARCONFIG, TiffFile, TiffFrame, TiffPage, TiffPageSeries

from gpu_extract.errors import LabelError, SourceError
from gpu_extract.sources.files import SourceFile, translated

__all__ = ["check_page", "check_pages", "check_segments", "check_series"]

# Codecs that are or may be lossy, by the number in the TIFF tag: a rounded label is another cell.
LOSSY = {
    6: "JPEG",
    7: "JPEG",
    33007: "JPEG",
    34892: "JPEG",
    33003: "JPEG 2000",
    33004: "JPEG 2000",
    33005: "JPEG 2000",
    34712: "JPEG 2000",
    22610: "JPEG XR",
    34934: "JPEG XR",
    34887: "LERC",
    34927: "WebP",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
# The tags that define the type, size and position of the pixels, and the description, 270, in which OME and ImageJ
# store the axes. Resolution, dates and so on are not needed.
DECISIVE_TAGS = frozenset(
    [256, 257, 258, 259, 262, 266, 270, 273, 277, 278, 279, 284, 317, 322, 323, 324, 325, 330, 338, 339, 347]
)
DESCRIPTION = 270
# The types of a text in a tag: bytes, ASCII, undefined and UTF-8.
TEXT_TYPES = (1, 2, 7, 129)
# Maximum number of bytes that are decoded from one stored byte: no compression, PackBits, Deflate (two numbers). The
# other codecs have no useful limit: a blank tile takes a few bytes.
MAX_RATIO = {1: 1, 32773: 64, 8: 1032, 32946: 1032}
# Writers make segments of a few MB. Larger ones are malicious, or cannot be read by region.
MAX_SEGMENT_NBYTES = 2**30


def check_pages(file: SourceFile, tif: TiffFile) -> None:
    """Refuse a file whose first page or chain of pages is damaged; tifffile would read a part of it silently."""
    n_pages = len(tif.pages)
    if n_pages == 0:
        raise SourceError(f"{file} is a TIFF without pages, perhaps truncated; copy or export it again")
    _check_tags(file, tif.pages.first)
    _, next_page = _directory(tif.pages[n_pages - 1])
    if next_page != 0:
        raise SourceError(
            f"{file} is truncated or damaged: the page that follows page {n_pages - 1} cannot be read; "
            "copy or export it again"
        )


def check_series(file: SourceFile, series: TiffPageSeries) -> None:
    """Refuse an image whose pixels are computed from those in the file."""
    if series.transform is not None:
        raise SourceError(f"{file} stores its pixels by a formula ({series.kind}); convert it to OME-TIFF")


def check_page(file: SourceFile, page: TiffPage, first: TiffPage) -> None:
    """Refuse a page that differs from the first, is stored inverted, or cannot be decoded."""
    _check_tags(file, page)
    if min(page.imagelength, page.imagewidth) < 1:
        raise SourceError(f"{file} is damaged: page {page.index} has no pixels; export it again")
    if page.dtype is None:
        raise SourceError(
            f"{file} has samples of {page.bitspersample} bits, which are not read; export it with 8, 16 or 32"
        )
    if (page.imagelength, page.imagewidth, page.dtype) != (first.imagelength, first.imagewidth, first.dtype):
        raise SourceError(f"{file} has pages that differ in size or type (page {page.index}); save one image per file")
    if page.photometric == PHOTOMETRIC.MINISWHITE:
        raise SourceError(f"{file} is stored inverted (MinIsWhite); save it as MinIsBlack, where 0 is dark")
    if file.plane is not None and page.compression in LOSSY:
        raise LabelError(
            f"{file} is compressed with {LOSSY[page.compression]}, which may change ids; "
            "export the labels again with Deflate or LZW"
        )
    with translated(
        file,
        "has a compression that cannot be read",
        "pip install --upgrade imagecodecs, or export it with Deflate or LZW",
    ):
        page.decode(None, 0)  # decodes nothing; fails if the codec or pixel type is unsupported


def check_segments(
    file: SourceFile, page: TiffPage, offsets: NDArray[np.int64], nbytes: NDArray[np.int64], n_planes: int
) -> None:
    """Refuse a page whose strips or tiles are missing, beyond the end of the file, or impossibly large.

    Parameters
    ----------
    offsets, nbytes : (n,) int64, bytes
        Position and length of the strips or tiles in the file.
    n_planes : int
        Number of planes that the page holds, without the interleaved samples of a pixel.
    """
    expected = math.prod(page.chunked)
    if not len(offsets) == len(nbytes) == expected:
        raise SourceError(
            f"{file} is damaged: page {page.index} lists {len(offsets)} of {expected} strips or tiles; export it again"
        )
    n_absent = np.count_nonzero((offsets <= 0) | (nbytes <= 0))
    if n_absent:
        raise SourceError(
            f"{file} is sparse: {n_absent} of {expected} strips or tiles are absent on page {page.index} and "
            "would read as zeros; export it with all of them"
        )
    if page.is_final:  # the planes are contiguous, whatever the headers say of their strips
        needed = np.array([n_planes * page.imagelength * _nbytes(page, page.imagewidth * _n_interleaved(page))])
        offsets = offsets[:1]
    else:
        needed = nbytes
        _check_decoded_size(file, page, int(nbytes.sum()))
    # Do not add the two: in a damaged file the sum can exceed int64.
    if np.any(needed > file.nbytes - offsets):
        raise SourceError(
            f"{file} is truncated: page {page.index} reaches beyond the {file.nbytes} bytes that are there; "
            "copy or export it again"
        )


def _check_tags(file: SourceFile, page: TiffPage) -> None:
    tags, _ = _directory(page)
    # tifffile skips a tag that it cannot read and uses the default value instead.
    unread = [code for code in tags if code in DECISIVE_TAGS and code not in page.tags]
    description = page.tags.get(DESCRIPTION)
    if description is not None and description.dtype not in TEXT_TYPES:
        unread.append(DESCRIPTION)
    if unread:
        raise SourceError(
            f"{file} is truncated or damaged: tag {unread[0]} of page {page.index} cannot be read; "
            "copy or export it again"
        )


def _directory(page: TiffPage | TiffFrame) -> tuple[list[int], int]:
    """Return the codes of a page's tags and the offset of the next page, as stored in the file."""
    tiff, handle = page.parent.tiff, page.parent.filehandle
    byteorder: Literal["little", "big"] = "little" if page.parent.byteorder == "<" else "big"
    handle.seek(page.offset)
    n_tags = int.from_bytes(handle.read(tiff.tagnosize), byteorder)
    entries = handle.read(n_tags * tiff.tagsize)
    codes = [int.from_bytes(entries[at : at + 2], byteorder) for at in range(0, len(entries), tiff.tagsize)]
    return codes, int.from_bytes(handle.read(tiff.offsetsize), byteorder)


def _check_decoded_size(file: SourceFile, page: TiffPage, stored: int) -> None:
    claimed = page.samplesperpixel * page.imagelength * _nbytes(page, page.imagewidth)
    if claimed > stored * MAX_RATIO.get(page.compression, math.inf):
        raise SourceError(
            f"{file} is damaged: page {page.index} claims {claimed} bytes of pixels, more than the {stored} "
            "bytes stored for it can hold; export it again"
        )
    segment = _nbytes(page, math.prod(page.chunks))
    if segment > MAX_SEGMENT_NBYTES:
        raise SourceError(
            f"{file} has strips or tiles of {segment} bytes, and at most {MAX_SEGMENT_NBYTES} are read; "
            "export it with tiles, for example of 512 x 512 pixels"
        )


def _nbytes(page: TiffPage, n_pixels: int) -> int:
    return -(-n_pixels * page.bitspersample // 8)


def _n_interleaved(page: TiffPage) -> int:
    return 1 if page.planarconfig == PLANARCONFIG.SEPARATE else page.samplesperpixel
