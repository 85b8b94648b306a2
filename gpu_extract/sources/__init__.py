"""Anything a user has for a slide -> `Slide`, read lazily by region.

`selectors` parses paths: where the pixels are, and what of a file is meant. `label_planes` finds the labels that
belong to an image, `opening` opens each, and `stacks` takes the planes that are meant. There is one family of formats
a module: `arrays`, `numpy_files`, `cellpose`, `tiff`, `zarr_arrays`, `hdf5`, `vendor`; `classic` knows SPARCSpy's
projects, which are HDF5. `scaled` and `physical` bring slides to one pixel size. A file that cannot be extracted is
refused when it is opened, from its headers; damage that only its pixels can show, when they are read.

A slide is a value: it can be pickled, and read in another process. Its rasters hold paths, types, offsets and
selections; open files, decoded pixels and whatever else belongs to the process are in `caches`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gpu_extract.channels import channel_indices
from gpu_extract.errors import InputError
from gpu_extract.model import MASK_NAMES, Raster, Slide
from gpu_extract.sources.arrays import ArrayRaster, StackedRaster
from gpu_extract.sources.label_planes import label_planes
from gpu_extract.sources.names import cleaned, file_stem, unique_names
from gpu_extract.sources.opening import opened
from gpu_extract.sources.selectors import Location, parse_input
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
    channels: Sequence[int | str] | None = None,
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
    channels : sequence of int or str, optional
        The channels to read, by index or name, in that order; the others are never read. Default: all.
    name : str, optional
        Default: the (first) image's file name without its extension, else ``slide``.

    Raises
    ------
    InputError
        Or one of its kinds, `SourceError` and `LabelError`: with one line that says what to do.
    """
    given = _opened(image, nucleus, cytosol, channel_names, channels)
    return given.described([given.slide(cleaned(name or given.stem), None)])[0]


def open_slides(
    image: Any,
    *,
    nucleus: Any = None,
    cytosol: Any = None,
    channel_names: Sequence[str] | None = None,
    channels: Sequence[int | str] | None = None,
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
    given = _opened(image, nucleus, cytosol, channel_names, channels)
    n_times, base = _n_times([*given.channels, *given.planes.values()]), cleaned(name or given.stem)
    if n_times == 1:
        return given.described([given.slide(base, None)])
    slides = [replace(given.slide(f"{base}_t{t}", t), metadata={"timepoint": str(t)}) for t in range(n_times)]
    return given.described(slides)


@dataclass(frozen=True)
class _Opened:
    """The files or arrays of a slide.

    Parameters
    ----------
    channels : list
        One that holds all channels, or one for each.
    planes : dict
        The label planes by name.
    names : sequence of str, length C, or None
        Of the channels; None for their own.
    stem : str
        The slide's name, unless it is given another.
    project : ClassicProject or None
        The classic project that they are of.
    own_planes : bool
        Whether the label planes are the project's.
    """

    channels: Sequence[ArrayRaster | Stack]
    planes: Mapping[str, ArrayRaster | Stack]
    names: tuple[str, ...] | None
    stem: str
    project: ClassicProject | None = None
    own_planes: bool = False

    def described(self, slides: list[Slide]) -> tuple[Slide, ...]:
        """The slides with what their project says of them, if they are of one."""
        if self.project is None:
            return tuple(slides)
        return self.project.described(slides, own_planes=self.own_planes)

    def slide(self, name: str, t: int | None) -> Slide:
        """The slide, of a time point if one is given."""
        image = self.image(t)
        masks = {plane: _raster(labels, t) for plane, labels in self.planes.items()}
        return Slide(
            image,
            masks,
            self.channel_names(image),
            name=name,
            pixel_size=_pixel_size(self.channels),
            warnings=_warnings([*self.channels, *self.planes.values()]),
            pixel_size_source=next((each.pixel_size_source for each in self.channels if isinstance(each, Stack)), ""),
        )

    def image(self, t: int | None) -> Raster:
        """The image alone."""
        return _stacked(self.channels, t)

    def channel_names(self, image: Raster) -> tuple[str, ...]:
        """The names of the channels of that image."""
        return unique_names(image.names, image.shape[0]) if self.names is None else self.names


def _opened(
    image: Any,
    nucleus: Any,
    cytosol: Any,
    channel_names: Sequence[str] | None,
    channels: Sequence[int | str] | None,
) -> _Opened:
    if isinstance(channel_names, str):
        raise InputError(f"channel_names is the text {channel_names!r}; give a list with one name per channel")
    if isinstance(channels, str):
        raise InputError(f"channels is the text {channels!r}; give a list of names or indices")
    images = _parsed_images(image)
    masks = {"nucleus": nucleus, "cytosol": cytosol}
    planes = {plane: parse_input(at, plane) for plane, at in masks.items() if at is not None}
    project = _classic_project(images)
    own_planes = project is not None and not planes
    labels = project.planes() if project and own_planes else label_planes(images, planes)
    given = _Opened(
        channels=[opened(item, None) for item in ([project.image] if project else images)],
        planes={plane: opened(at, plane) for plane, at in labels.items()},
        names=None if channel_names is None else tuple(cleaned(channel) for channel in channel_names),
        stem=_stem(images[0]) or "slide",
        project=project,
        own_planes=own_planes,
    )
    return _with_channels(given, channels)


def _with_channels(given: _Opened, channels: Sequence[int | str] | None) -> _Opened:
    """The same with the chosen channels only."""
    if channels is None:
        return given
    image = given.image(0 if _n_times(given.channels) > 1 else None)
    every = given.channel_names(image)
    if len(every) != image.shape[0]:
        return given  # which `Slide` refuses
    indices = channel_indices(channels, every, f"image {image.source}")
    names = tuple(every[index] for index in indices)
    if len(given.channels) > 1:
        return replace(given, channels=[given.channels[index] for index in indices], names=names)
    return replace(given, channels=[given.channels[0].with_channels(indices)], names=names)


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
    return _stacked([opened(item, None) for item in _parsed_images(image)], None)


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
    return _raster(opened(parse_input(labels, plane), plane))


def _classic_project(images: Sequence[Any]) -> ClassicProject | None:
    """Return the classic project that an image is, if it is one."""
    if len(images) > 1 or not isinstance(images[0], Location):
        return None
    from gpu_extract.sources.classic import classic_project

    return classic_project(images[0])


def _parsed_images(image: Any) -> list[Any]:
    """Return the locations and arrays that are the image, one that holds all channels or one for each channel."""
    items = list(image) if isinstance(image, (list, tuple)) else [image]
    if not items:
        raise InputError("the list of images is empty; give one image, or one file per channel")
    return [parse_input(item, None) for item in items]


def _stacked(channels: Sequence[ArrayRaster | Stack], t: int | None) -> Raster:
    """The image of a time point as one raster, its channels those of several files where there are several."""
    rasters = [_raster(channel, t) for channel in channels]
    if len(rasters) == 1:
        return rasters[0]
    own_names = ["".join(raster.names) for raster in rasters]  # of one plane, or StackedRaster refuses it
    stems = [_stem(each.location) if isinstance(each, Stack) else "" for each in channels]
    return StackedRaster(rasters, [name or stem for name, stem in zip(own_names, stems, strict=True)])


def _pixel_size(channels: Sequence[ArrayRaster | Stack]) -> tuple[float, float] | None:
    """What the files of a slide say of the size of a pixel; None where they say nothing, or not the same."""
    said = {channel.pixel_size for channel in channels if isinstance(channel, Stack)}
    return said.pop() if len(said) == 1 else None


def _warnings(sources: Sequence[ArrayRaster | Stack]) -> tuple[str, ...]:
    """Return the warnings about the files of a slide, each once."""
    return tuple(dict.fromkeys(line for each in sources if isinstance(each, Stack) for line in each.warnings))


def _n_times(sources: Sequence[ArrayRaster | Stack]) -> int:
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


def _subject(source: ArrayRaster | Stack) -> str:
    return str(source.location) if isinstance(source, Stack) else source.source


def _raster(source: ArrayRaster | Stack, t: int | None = None) -> Raster:
    """The raster of what was opened, of a time point if one is given."""
    if not isinstance(source, Stack):
        return source
    return (source if t is None else source.at(t)).raster()


def _stem(given: Any) -> str:
    """Return the file name of a location without its extension, empty for an array."""
    return file_stem(given.path.rstrip("/")) if isinstance(given, Location) else ""
