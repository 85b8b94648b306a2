"""The images of a TIFF: which one to read where it holds several, and the levels of its pyramid."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from tifffile import TiffFile, TiffPageSeries

from gpu_extract.errors import SourceError
from gpu_extract.listing import listed
from gpu_extract.sources.files import SourceFile
from gpu_extract.sources.names import cleaned
from gpu_extract.sources.selectors import Location

__all__ = ["ImageInFile", "chosen_series", "image_index", "is_picture", "with_levels"]

# Pictures of the glass slide that scanners (SVS, QPTIFF, NDPI, SCN) store with the image, by their usual names.
PICTURES = frozenset(["thumbnail", "macro", "label", "map", "overview", "reference", "label image", "macro image"])
# A level has the aspect ratio of the image, except for the rounding of its sides.
SAME_ASPECT = 0.02
# Kinds of series in which tifffile leaves reduced pages apart; LSM files have one per plane, a thumbnail.
REDUCED_KINDS = ("generic", "uniform", "lsmreduced")
# Descriptions by ImageJ and tifffile, damaged ones included.
IMAGEJ = re.compile(r"^ImageJ=|^(images|channels|slices|frames)=[0-9]+$", re.MULTILINE)
SHAPED = re.compile(r'^\{.*"(shape|axes)":.*\}$', re.DOTALL)
# Number of images that a message lists.
MAX_LISTED = 8


class ImageInFile(NamedTuple):
    """An image in a file, as messages describe it.

    Parameters
    ----------
    name : str
        Empty if it has none.
    sizes : str
        For example ``C=3 Y=100 X=150``.
    """

    name: str
    sizes: str


def chosen_series(file: SourceFile, location: Location, tif: TiffFile) -> list[TiffPageSeries]:
    """Return the image to read, or the single pages that are its channels.

    Without ``image=``, it must be the only image besides thumbnails, pictures of the glass slide and levels.

    Raises
    ------
    SourceError
        If there is no image, or it is not clear which one to read.
    """
    series = with_levels(tif.series)
    if not series:
        raise SourceError(f"{file} is a TIFF without an image; export it again")
    _check_description(file, tif, series)
    if len(series) > 1 and location.selection.image is None and _are_pages(series):
        return series
    images = [ImageInFile(cleaned(each.name), _sizes(each)) for each in series]
    candidates = [index for index, image in enumerate(images) if not is_picture(image.name)]
    return [series[image_index(location, images, candidates)]]


def image_index(location: Location, images: Sequence[ImageInFile], candidates: Sequence[int]) -> int:
    """Return the index of the image that ``image=`` selects by name or number; by default the only candidate.

    Raises
    ------
    SourceError
        If there is no such image, or there are several candidates.
    """
    wanted, names = location.selection.image, [image.name for image in images]
    if wanted is None:
        if len(candidates or images) == 1:
            return candidates[0] if candidates else 0
        raise SourceError(
            f"{location} holds {len(images)} images: {_listed(images)}; "
            f"choose one by name or number: {location.path}#image=0"
        )
    if names.count(wanted) == 1:
        return names.index(wanted)
    if re.fullmatch("[0-9]{1,6}", wanted) and int(wanted) < len(images):
        return int(wanted)
    raise SourceError(f"{location} does not exist: the file has no image {wanted!r}; there are {_listed(images)}")


def is_picture(name: str) -> bool:
    """Return whether an image of this name is a thumbnail or a picture of the glass slide."""
    return name.lower() in PICTURES


def with_levels(series: Sequence[TiffPageSeries]) -> list[TiffPageSeries]:
    """Return the series without those that are marked as reduced, which become levels of the series before them."""
    images: list[TiffPageSeries] = []
    for each in series:
        if not (images and each.keyframe.is_reduced and each.kind in REDUCED_KINDS):
            images.append(each)
        elif _is_level(each, images[-1]):
            images[-1].levels.append(each)
    return images


def _check_description(file: SourceFile, tif: TiffFile, series: Sequence[TiffPageSeries]) -> None:
    """Refuse several pages whose description by ImageJ or tifffile does not fit, or describes only some of them.

    tifffile would read them as pages of unknown meaning, or ignore the rest.
    """
    n_pages, description = len(tif.pages), tif.pages.first.description
    n_planes = sum(_n_planes(each) for each in tif.series)
    if IMAGEJ.search(description):
        writer, kind = "ImageJ", "imagej"
        fits = n_planes in (n_pages, int((tif.imagej_metadata or {}).get("images", 1)))
    elif SHAPED.search(description):
        writer, kind = "tifffile", "shaped"
        fits = n_planes >= n_pages  # more if one page stands for several planes
    else:
        return
    if n_pages > 1 and not (fits and series[0].kind == kind):
        raise SourceError(
            f"{file} has a description by {writer} that does not fit its {n_pages} pages; "
            "save them again, or give each page as a file of its own"
        )


def _n_planes(series: TiffPageSeries) -> int:
    return math.prod(n for axis, n in zip(series.axes, series.shape, strict=True) if axis not in "YXS")


def _is_level(reduced: TiffPageSeries, full: TiffPageSeries) -> bool:
    if (len(reduced), reduced.dtype, reduced.axes) != (len(full), full.dtype, full.axes):
        return False
    height, width = (full.shape[full.axes.index(axis)] / reduced.shape[reduced.axes.index(axis)] for axis in "YX")
    return min(height, width) > 1 and abs(height / width - 1) < SAME_ASPECT


def _are_pages(series: Sequence[TiffPageSeries]) -> bool:
    """Return whether these are single pages of one kind that tifffile wrote one by one."""
    first = series[0]
    return all(
        each.kind == "shaped" and len(each) == 1 and (each.shape, each.dtype) == (first.shape, first.dtype)
        for each in series
    )


def _listed(images: Sequence[ImageInFile]) -> str:
    texts = [f"{index}: {image.name or 'no name'} ({image.sizes})" for index, image in enumerate(images)]
    return listed(texts, MAX_LISTED)


def _sizes(series: TiffPageSeries) -> str:
    pairs = zip(series.axes, series.shape, strict=True)
    return " ".join(f"{axis}={length}" for axis, length in pairs if length != 1 or axis in "YX")
