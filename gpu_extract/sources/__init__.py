"""Anything a user has for a slide -> `Slide`, read lazily by region.

`selectors` tells where the pixels are and what of a file is meant, `label_planes` which labels belong to an image,
`opening` opens each, and `stacks` takes the planes that are meant. There is one family of formats a module: `arrays`,
`numpy_files`, `cellpose`, `tiff`, `zarr_arrays`, `hdf5`; `classic` knows SPARCSpy's projects, which are HDF5. A file
that cannot be extracted is refused when it is opened, from its headers; damage that only its pixels can show, when
they are read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gpu_extract.errors import InputError
from gpu_extract.model import MASK_NAMES, Raster, Slide
from gpu_extract.sources.arrays import StackedRaster
from gpu_extract.sources.label_planes import label_planes
from gpu_extract.sources.names import cleaned, file_stem, unique_names
from gpu_extract.sources.opening import opened
from gpu_extract.sources.selectors import located
from gpu_extract.sources.stacks import Stack

if TYPE_CHECKING:
    from gpu_extract.sources.classic import ClassicProject

__all__ = ["open_image", "open_labels", "open_slide", "open_slides"]


def open_slide(
    image: Any,
    *,
    nucleus: Any = None,
    cytosol: Any = None,
    channel_names: Sequence[str] | None = None,
    name: str | None = None,
) -> Slide:
    """The slide of an image and its label planes; no pixel is read yet.

    Parameters
    ----------
    image : array, path, or sequence of them
        See `open_image`.
    nucleus, cytosol : array, path or name, optional
        See `open_labels`; or the name of a label in the image's own Zarr store. At least one is needed, unless the
        store has labels of the usual names: ``seg_all_nucleus`` or ``nucleus``, ``seg_all_cytosol`` or ``cytosol``;
        or the image is a classic SPARCSpy project.
    channel_names : sequence of str, length C, optional
        Default: the names in the files, else ``ch0``, ``ch1``, ...
    name : str, optional
        Default: the (first) image's file name without its extension, else ``slide``.

    Raises
    ------
    InputError
        Or one of its kinds, `SourceError` and `LabelError`: with one line that says what to do.
    """
    channels, planes, project = _opened_planes(image, nucleus, cytosol)
    raster = _stacked(image, [_raster(channel) for channel in channels])
    masks = {plane: _raster(labels) for plane, labels in planes.items()}
    slide = _slide(raster, masks, channel_names, _slide_name(image, name))
    return _described(project, [slide], nucleus, cytosol)[0]


def open_slides(
    image: Any,
    *,
    nucleus: Any = None,
    cytosol: Any = None,
    channel_names: Sequence[str] | None = None,
    name: str | None = None,
) -> tuple[Slide, ...]:
    """The slides of an image, one for each of its time points, as `open_slide` makes one.

    The slide of time point 3 is named ``<name>_t3`` and labelled ``{"timepoint": "3"}``. An image of one time point,
    or with one selected (``#t=3``), is one slide, the same as that of `open_slide`. A classic SPARCSpy time course
    labels its slides itself, and those without any cell are left out.

    Raises
    ------
    InputError
        As of `open_slide`; also if label planes have not as many time points as the image.
    """
    channels, planes, project = _opened_planes(image, nucleus, cytosol)
    n_times = _n_times([*channels, *planes.values()])
    times: Sequence[int | None] = range(n_times) if n_times > 1 else [None]
    base = _slide_name(image, name)
    slides = []
    for t in times:
        raster = _stacked(image, [_raster(channel, t) for channel in channels])
        masks = {plane: _raster(labels, t) for plane, labels in planes.items()}
        slide = _slide(raster, masks, channel_names, base if t is None else f"{base}_t{t}")
        slides.append(slide if t is None else replace(slide, labels={"timepoint": str(t)}))
    return _described(project, slides, nucleus, cytosol)


def open_image(image: Any) -> Raster:
    """The (C, H, W) raster of an image.

    Parameters
    ----------
    image : array, path, or sequence of them
        (C, H, W) or (H, W): NumPy, Dask, xarray, Zarr or HDF5 arrays, or a path to OME-Zarr (also by URL),
        SpatialData, TIFF, OME-TIFF, HDF5 (``file.h5:/path/to/dataset``), .npy or .npz. The items of a list or tuple
        are the channels, in that order, each of one plane. Where a file holds more than one thing, selectors behind
        its path say what is meant: ``image.zarr#level=1,c=0,2``, ``stack.tif#z=max``, ``movie.tif#t=3``,
        ``store.zarr#image=NAME``; see `gpu_extract.sources.selectors`.

    Raises
    ------
    InputError, SourceError
    """
    return _stacked(image, [_raster(opened(item, None)) for item in _items(image)])


def open_labels(labels: Any, plane: str) -> Raster:
    """The (1, H, W) raster of a label plane.

    Parameters
    ----------
    labels : array or path
        (H, W) or (1, H, W), the formats of `open_image`, and cellpose's ``_seg.npy``; a label in a Zarr store is
        ``store.zarr#label=NAME``.
    plane : str
        ``nucleus`` or ``cytosol``; used in messages, and to choose an array of an .npz file.

    Raises
    ------
    InputError, SourceError, LabelError
    """
    assert plane in MASK_NAMES
    return _raster(opened(labels, plane))


def _opened_planes(
    image: Any, nucleus: Any, cytosol: Any
) -> tuple[list[Raster | Stack], dict[str, Raster | Stack], ClassicProject | None]:
    """The channels and the label planes of an image, and the classic project that it is, if it is one."""
    project = _classic_project(image)
    own = project is not None and nucleus is None and cytosol is None
    planes = project.planes() if project and own else label_planes(image, nucleus, cytosol)
    channels = [opened(item, None) for item in ([project.image] if project else _items(image))]
    return channels, {plane: opened(labels, plane) for plane, labels in planes.items()}, project


def _classic_project(image: Any) -> ClassicProject | None:
    """The classic project that an image is, if it is one."""
    items = _items(image)
    if len(items) > 1 or not isinstance(items[0], (str, os.PathLike)):
        return None
    from gpu_extract.sources.classic import classic_project

    return classic_project(located(os.fsdecode(items[0]), None))


def _described(project: ClassicProject | None, slides: list[Slide], nucleus: Any, cytosol: Any) -> tuple[Slide, ...]:
    """The slides with what their project says of them, if they are of one."""
    if project is None:
        return tuple(slides)
    return project.described(slides, own_planes=nucleus is None and cytosol is None)


def _items(image: Any) -> list[Any]:
    if not isinstance(image, (list, tuple)):
        return [image]
    if not image:
        raise InputError("the list of images is empty; give one image, or one file per channel")
    return list(image)


def _stacked(image: Any, channels: Sequence[Raster]) -> Raster:
    """The rasters of an image as one, its channels those of several files where there are several."""
    if len(channels) == 1:
        return channels[0]
    own_names = ["".join(raster.names) for raster in channels]  # of one plane, or StackedRaster refuses it
    return StackedRaster(channels, [name or _file_name(item) for name, item in zip(own_names, image, strict=True)])


def _slide(image: Raster, masks: dict[str, Raster], channel_names: Sequence[str] | None, name: str) -> Slide:
    if isinstance(channel_names, str):
        raise InputError(f"channel_names is the text {channel_names!r}; give a list with one name per channel")
    if channel_names is None:
        names = unique_names(image.names, image.shape[0])
    else:
        names = tuple(cleaned(channel) for channel in channel_names)
    return Slide(image, masks, names, name=name)


def _slide_name(image: Any, name: str | None) -> str:
    return cleaned(name or _file_name(_items(image)[0]) or "slide")


def _n_times(sources: Sequence[Raster | Stack]) -> int:
    """How many time points all of them have.

    Raises
    ------
    InputError
        If they differ in it.
    """
    counts = {_subject(each): each.n_times if isinstance(each, Stack) else 1 for each in sources}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{subject} {n}" for subject, n in counts.items())
        raise InputError(f"the time points of an image and its labels must be equal in number, and are: {listed}")
    return next(iter(counts.values()))


def _subject(source: Raster | Stack) -> str:
    return str(source.location) if isinstance(source, Stack) else source.source


def _raster(source: Raster | Stack, t: int | None = None) -> Raster:
    """The raster of what was opened, of a time point if one is given."""
    if not isinstance(source, Stack):
        return source
    return (source if t is None else source.at(t)).raster()


def _file_name(item: Any) -> str:
    if not isinstance(item, (str, os.PathLike)):
        return ""
    return file_stem(located(os.fsdecode(item), None).path.rstrip("/"))
