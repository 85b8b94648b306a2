"""Open the files and arrays of a user as a `Slide`, which is read lazily by region.

`selectors` parses paths: the file, and which part of it to read. `label_planes` finds the labels of an image,
`opening` opens each input, and `stacks` takes the selected planes. There is one module per family of formats:
`arrays`, `numpy_files`, `cellpose`, `tiff`, `zarr_arrays`, `hdf5`, `vendor`. `classic` reads SPARCSpy's projects,
which are HDF5. `scaled` and `physical` resample slides to one pixel size. A file that cannot be extracted is refused
when it is opened if its headers show this, otherwise when its pixels are read.

A slide is a value: it can be pickled and read in another process. Its rasters hold paths, types, offsets and
selections. Open files, decoded pixels and everything else that belongs to the process are in `caches`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from gpu_extract.channels import channel_indices
from gpu_extract.errors import InputError, LabelError
from gpu_extract.listing import listed
from gpu_extract.model import MASK_NAMES, Raster, Slide, source_text
from gpu_extract.sources.arrays import ArrayRaster, StackedRaster
from gpu_extract.sources.label_planes import label_planes
from gpu_extract.sources.names import cleaned, file_stem, unique_names
from gpu_extract.sources.opening import opened
from gpu_extract.sources.physical import stated_pixel_size
from gpu_extract.sources.placement import check_channels, level_on_image, place_labels, slice_on_image
from gpu_extract.sources.plates import fields_error, plate_fields, plate_inputs
from gpu_extract.sources.selectors import Location, parse_input
from gpu_extract.sources.slide_table import SlideInput
from gpu_extract.sources.stacks import Stack
from gpu_extract.sources.whole_numbers import whole_number_labels

if TYPE_CHECKING:
    from gpu_extract.sources.classic import ClassicProject
    from gpu_extract.sources.outline_files import Canvas

__all__ = ["open_image", "open_labels", "open_slide", "open_slides"]


def open_slide(
    image: Any,
    *,
    nucleus: Any = None,
    cytosol: Any = None,
    channel_names: Sequence[str] | None = None,
    channels: Sequence[int | str] | None = None,
    name: str | None = None,
    pixel_size: tuple[float, float] | None = None,
    trust: Collection[str] = (),
) -> Slide:
    """Return the slide of an image and its label planes, without reading any pixel.

    Parameters
    ----------
    image : array, path, or sequence of them
        See `open_image`.
    nucleus, cytosol : array, path or name, optional
        See `open_labels`; or the name of a label in the image's own Zarr store; or outlines of cells: GeoJSON (nuclei
        and cells may be in one file, as QuPath writes it), ImageJ ROIs (.roi, .zip), boundaries of Xenium (.parquet,
        .csv.gz) and MERSCOPE (.parquet), shapes of SpatialData or GeoParquet. At least one is needed, unless the
        store has labels with the usual names (``seg_all_nucleus`` or ``nucleus``, ``seg_all_cytosol`` or ``cytosol``)
        or the image is a classic SPARCSpy project.
    channel_names : sequence of str, length C, optional
        Default: the names in the files, else ``ch0``, ``ch1``, ...
    channels : sequence of int or str, optional
        Channels to read, by index or name, in this order. The others are never read. Default: all.
    name : str, optional
        Default: the (first) image's file name without its extension, else ``slide``.
    pixel_size : (y, x), um, optional
        Size of a pixel of the image, for outlines in um. Default: what the image says, else a file beside the outlines.
    trust : collection of str
        With ``placement``, labels are used as they are, wherever their file places them.

    Raises
    ------
    InputError
        If the input cannot be extracted; also its subclasses `SourceError` and `LabelError`.
    """
    images, planes = _parsed(image, nucleus, cytosol)
    fields = plate_fields(images)
    if len(fields) > 1:
        raise InputError(f"{images[0]} is a plate of {len(fields)} fields; give one, such as {fields[0].location.path}")
    images = [fields[0].location] if fields else images
    given = _opened(images, planes, channel_names, channels, pixel_size, trust)
    return given.described([given.slide(cleaned(name or given.stem), None)])[0]


def open_slides(
    image: Any,
    *,
    nucleus: Any = None,
    cytosol: Any = None,
    channel_names: Sequence[str] | None = None,
    channels: Sequence[int | str] | None = None,
    name: str | None = None,
    pixel_size: tuple[float, float] | None = None,
    trust: Collection[str] = (),
) -> tuple[Slide, ...]:
    """Return the slides of an image, one for each time point; see `open_slide`.

    A plate of OME-Zarr, or a well, is one slide for each field, named ``<well>_<field>``, with the metadata ``well``,
    ``row``, ``column`` and ``field``.

    The slide of time point 3 is named ``<name>_t3`` and has the metadata ``{"timepoint": "3"}``. An image with one
    time point, or with one selected (``#t=3``), is a single slide, the same as that of `open_slide`. The slides of a
    classic SPARCSpy time course have the metadata in its file, and time points without any cell are omitted.

    Raises
    ------
    InputError
        As for `open_slide`; also if image and label planes differ in their number of time points.
    """
    images, planes = _parsed(image, nucleus, cytosol)
    whole = SlideInput(images[0] if len(images) == 1 else images, **planes, name=name)
    fields = plate_inputs(whole)
    if fields[0] is not whole:
        return _open_plate(whole.image, fields, channel_names, channels, pixel_size, trust)
    given = _opened(images, planes, channel_names, channels, pixel_size, trust)
    n_times, base = _n_times([*given.channels, *given.planes.values()]), cleaned(name or given.stem)
    if n_times == 1:
        return given.described([given.slide(base, None)])
    slides = [replace(given.slide(f"{base}_t{t}", t), metadata={"timepoint": str(t)}) for t in range(n_times)]
    return given.described(slides)


def _parsed(image: Any, nucleus: Any, cytosol: Any) -> tuple[list[Any], dict[str, Any]]:
    """Return the images and the given label planes of a slide, each path as a `Location`."""
    planes = {"nucleus": nucleus, "cytosol": cytosol}
    return _parsed_images(image), {plane: parse_input(at, plane) for plane, at in planes.items() if at is not None}


def _parsed_images(image: Any) -> list[Any]:
    """Return the locations and arrays of an image: one for all channels, or one per channel."""
    items = list(image) if isinstance(image, (list, tuple)) else [image]
    if not items:
        raise InputError("the list of images is empty; give one image, or one file per channel")
    return [parse_input(item, None) for item in items]


def _open_plate(
    image: Any,
    fields: Sequence[SlideInput],
    channel_names: Sequence[str] | None,
    channels: Sequence[int | str] | None,
    pixel_size: tuple[float, float] | None,
    trust: Collection[str],
) -> tuple[Slide, ...]:
    """Return the slides of all fields of a plate."""
    slides: list[Slide] = []
    errors: dict[str, InputError] = {}
    for each in fields:
        try:
            found = open_slides(
                each.image,
                nucleus=each.nucleus,
                cytosol=each.cytosol,
                channel_names=channel_names,
                channels=channels,
                name=each.name,
                pixel_size=pixel_size,
                trust=trust,
            )
            slides += [replace(slide, metadata={**each.metadata, **slide.metadata}) for slide in found]
        except InputError as error:
            errors[each.image] = error
    if errors:
        raise fields_error(image, len(fields), errors)
    return tuple(slides)


@dataclass(frozen=True)
class _Opened:
    """The files or arrays of a slide.

    Parameters
    ----------
    channels : list
        One source of all channels, or one source per channel.
    planes : dict
        Label planes by name.
    names : sequence of str, length C, or None
        Channel names; None for those in the files.
    stem : str
        Default name of the slide.
    project : ClassicProject or None
        The classic project that the files belong to.
    own_planes : bool
        Whether the label planes are those of the project.
    trust : collection of str
        See `open_slide`.
    """

    channels: Sequence[ArrayRaster | Stack]
    planes: Mapping[str, ArrayRaster | Stack]
    names: tuple[str, ...] | None
    stem: str
    project: ClassicProject | None = None
    own_planes: bool = False
    trust: Collection[str] = ()

    def described(self, slides: list[Slide]) -> tuple[Slide, ...]:
        """Return the slides with the metadata, ids and warnings of their project, if they belong to one."""
        if self.project is None:
            return tuple(slides)
        return self.project.described(slides, own_planes=self.own_planes)

    def slide(self, name: str, t: int | None) -> Slide:
        """Return the slide, of one time point if ``t`` is given."""
        image = self.image(t)
        masks = {plane: _labels(labels, plane, t) for plane, labels in self.planes.items()}
        masks, shifts = place_labels(
            image,
            self.channels[0].placements,
            masks,
            {plane: labels.placements for plane, labels in self.planes.items()},
            self.trust,
        )
        size, contradictions = stated_pixel_size(_pixel_sizes(self.channels), _pixel_sizes(self.planes.values()))
        # Drawing outlines finds problems with them; other rasters have no warnings.
        drawn = [line for raster in masks.values() for line in getattr(raster, "warnings", ())]
        warnings = (*_warnings([*self.channels, *self.planes.values()]), *drawn, *shifts, *contradictions)
        source = next((each.pixel_size_source for each in self.channels if isinstance(each, Stack)), "")
        return Slide(
            image,
            masks,
            self.channel_names(image),
            name=name,
            pixel_size=size,
            warnings=warnings,
            pixel_size_source="" if size is None else source,
        )

    def image(self, t: int | None) -> Raster:
        """Return the image, of one time point if ``t`` is given."""
        return _stacked(self.channels, t, self.trust)

    def channel_names(self, image: Raster) -> tuple[str, ...]:
        """Return the channel names of the image."""
        return unique_names(image.names, image.shape[0]) if self.names is None else self.names


def _opened(
    images: list[Any],
    planes: Mapping[str, Any],
    channel_names: Sequence[str] | None,
    channels: Sequence[int | str] | None,
    pixel_size: tuple[float, float] | None,
    trust: Collection[str],
) -> _Opened:
    """Open the images and label planes of a slide, as `_parsed` returns them."""
    if isinstance(channel_names, str):
        raise InputError(f"channel_names is the text {channel_names!r}; give a list with one name per channel")
    if isinstance(channels, str):
        raise InputError(f"channels is the text {channels!r}; give a list of names or indices")
    project = _classic_project(images)
    own_planes = project is not None and not planes
    labels = project.planes() if project and own_planes else label_planes(images, planes)
    channels_opened = [opened(item, None) for item in ([project.image] if project else images)]
    canvas = partial(_canvas, channels_opened, pixel_size)
    given = _Opened(
        channels=channels_opened,
        planes={plane: _on_image(channels_opened[0], opened(at, plane, canvas)) for plane, at in labels.items()},
        names=None if channel_names is None else tuple(cleaned(channel) for channel in channel_names),
        stem=_stem(images[0]) or "slide",
        project=project,
        own_planes=own_planes,
        trust=trust,
    )
    return _with_channels(given, channels)


def _on_image(image: ArrayRaster | Stack, labels: ArrayRaster | Stack) -> ArrayRaster | Stack:
    """Return the level of labels that has the scale of the image, unless another level was selected for the labels."""
    if not isinstance(image, Stack) or not isinstance(labels, Stack):
        return labels
    _check_slice(image, labels)
    level = labels.location.selection.level
    if level_on_image(image.placements, [labels.placements]) == 0 or level not in (
        None,
        image.location.selection.level,
    ):
        return labels
    found = level_on_image(image.placements, labels.levels)
    if found is None:
        return labels
    selection = replace(labels.location.selection, level=found)
    other = opened(replace(labels.location, selection=selection), labels.location.plane)
    assert isinstance(other, Stack)
    line = f"{other.location} is read at level {found}, which has the scale of {image.location}"
    return replace(other, warnings=(*other.warnings, line))


def _check_slice(image: Stack, labels: Stack) -> None:
    """Raise an error if the Z slice that is selected for both is at different places in image and labels."""
    z = image.location.selection.z
    if not isinstance(z, int) or labels.location.selection.z != z:
        return
    other = slice_on_image(image.placements, labels.placements, z)
    if abs(other - z) > 0.5:
        raise LabelError(
            f"{labels.location} is at another place along z than {image.location}: slice {z} of the image is slice "
            f"{other:g} of the labels; select it by itself, #z= behind the labels"
        )


def _with_channels(given: _Opened, channels: Sequence[int | str] | None) -> _Opened:
    """Return what was opened, with only the chosen channels."""
    if channels is None:
        return given
    image = given.image(0 if _n_times(given.channels) > 1 else None)
    every = given.channel_names(image)
    if len(every) != image.shape[0]:
        return given  # `Slide` raises the error
    indices = channel_indices(channels, every, f"image {source_text(image)}")
    names = tuple(every[index] for index in indices)
    if len(given.channels) > 1:
        return replace(given, channels=[given.channels[index] for index in indices], names=names)
    return replace(given, channels=[given.channels[0].with_channels(indices)], names=names)


def open_image(image: Any) -> Raster:
    """Return the (C, H, W) raster of an image.

    Parameters
    ----------
    image : array, path, or sequence of them
        (C, H, W) or (H, W): NumPy, Dask, xarray, Zarr or HDF5 arrays, or a path to OME-Zarr (also by URL),
        SpatialData, TIFF, OME-TIFF, HDF5 (``file.h5:/path/to/dataset``), .npy or .npz. The items of a list or tuple
        are the channels, in this order, each with one plane. Selectors after a path choose a part of the file:
        ``image.zarr#level=1,c=0,2``, ``stack.tif#z=max``, ``movie.tif#t=3``, ``store.zarr#image=NAME``; see
        `gpu_extract.sources.selectors`.

    Raises
    ------
    InputError, SourceError
    """
    return _stacked([opened(item, None) for item in _parsed_images(image)], None)


def open_labels(labels: Any, plane: str) -> Raster:
    """Return the (1, H, W) raster of a label plane.

    Parameters
    ----------
    labels : array or path
        (H, W) or (1, H, W), in any format of `open_image` or cellpose's ``_seg.npy``. A label in a Zarr store is
        ``store.zarr#label=NAME``. Floating-point numbers are converted to integers, and checked when they are read.
        Outlines of cells are drawn over an image, and so are opened by `open_slide` only.
    plane : str
        ``nucleus`` or ``cytosol``; used in messages, and to choose an array of an .npz file.

    Raises
    ------
    InputError, SourceError, LabelError
    """
    assert plane in MASK_NAMES
    return _labels(opened(parse_input(labels, plane), plane), plane)


def _classic_project(images: Sequence[Any]) -> ClassicProject | None:
    """Return the classic project at the location of an image, or None."""
    if len(images) > 1 or not isinstance(images[0], Location):
        return None
    from gpu_extract.sources.classic import classic_project

    return classic_project(images[0])


def _stacked(channels: Sequence[ArrayRaster | Stack], t: int | None, trust: Collection[str] = ()) -> Raster:
    """Return the image of a time point as one raster; several sources are stacked as its channels."""
    rasters = [_raster(channel, t) for channel in channels]
    if len(rasters) == 1:
        return rasters[0]
    own_names = ["".join(raster.names) for raster in rasters]  # StackedRaster refuses more than one plane each
    stems = [_stem(each.location) if isinstance(each, Stack) else "" for each in channels]
    check_channels([raster.source for raster in rasters], [channel.placements for channel in channels], trust)
    return StackedRaster(rasters, [name or stem for name, stem in zip(own_names, stems, strict=True)])


def _pixel_sizes(sources: Iterable[ArrayRaster | Stack]) -> dict[str, tuple[float, float] | None]:
    """Return the pixel sizes that files state, by their names."""
    return {str(each.location): each.pixel_size for each in sources if isinstance(each, Stack)}


def _warnings(sources: Sequence[ArrayRaster | Stack]) -> tuple[str, ...]:
    """Return the warnings about the files of a slide, each once."""
    return tuple(dict.fromkeys(line for each in sources if isinstance(each, Stack) for line in each.warnings))


def _canvas(channels: Sequence[ArrayRaster | Stack], pixel_size: tuple[float, float] | None) -> Canvas:
    """Return what outlines must know of the image that they are drawn over."""
    from gpu_extract.sources.outline_files import Canvas

    image = _stacked(channels, 0 if _n_times(channels) > 1 else None)
    first = channels[0]
    location = first.location if isinstance(first, Stack) else None
    stated, _ = stated_pixel_size(_pixel_sizes(channels), {})
    return Canvas(image.shape[1:], pixel_size or stated, location)


def _n_times(sources: Sequence[ArrayRaster | Stack]) -> int:
    """Return the number of time points, which all sources share.

    Raises
    ------
    InputError
        If they differ.
    """
    counts = {_subject(each): each.n_times if isinstance(each, Stack) else 1 for each in sources}
    if len(set(counts.values())) > 1:
        have = listed([f"{subject} {n}" for subject, n in counts.items()])
        raise InputError(f"an image and its labels must have the same number of time points; they have: {have}")
    return next(iter(counts.values()))


def _subject(source: ArrayRaster | Stack) -> str:
    return str(source.location) if isinstance(source, Stack) else source_text(source)


def _raster(source: ArrayRaster | Stack, t: int | None = None) -> Raster:
    """Return the raster of an opened source, of one time point if ``t`` is given."""
    if not isinstance(source, Stack):
        return source
    return (source if t is None else source.at(t)).raster()


def _labels(source: ArrayRaster | Stack, plane: str, t: int | None = None) -> Raster:
    """Return the raster of a label plane, as integers."""
    raster = _raster(source, t)
    return whole_number_labels(raster, f"{plane} labels {raster.source}")


def _stem(given: Any) -> str:
    """Return the file name of a location without its extension; empty for an array."""
    return file_stem(given.path.rstrip("/")) if isinstance(given, Location) else ""
