"""Classic SPARCSpy projects: ``segmentation.h5``, the ``input_segmentation.h5`` of a time course, or their folder.

They are recognized by their datasets. A file of one slide has ``channels`` (C, H, W) and ``labels`` (M, H, W). A time
course has ``input_images`` (T, C, H, W) and ``segmentation`` (T, M, H, W). Its ``labels`` (T, 1 + L) are texts: the
index of the image, then L values named by ``label_names`` from the second on. Its ``classes`` (T, ids) are the cells to
extract. The first of the M label planes is the nucleus, the second the cytosol.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import SourceError
from gpu_extract.labels import label_strips
from gpu_extract.listing import listed
from gpu_extract.model import MASK_NAMES, Slide
from gpu_extract.sources.files import SourceFile, file_format, translated
from gpu_extract.sources.hdf5 import TIME_COURSE, opened_hdf5
from gpu_extract.sources.id_lists import read_ids
from gpu_extract.sources.names import cleaned
from gpu_extract.sources.outline_files import outline_format
from gpu_extract.sources.selectors import Location, Selection

__all__ = ["ClassicProject", "classic_project"]

ONE_SLIDE = ("/channels", "/labels")
# The files are in the project's folder or in its folder of the segmentation.
FILES = ("segmentation.h5", "input_segmentation.h5")
FOLDERS = ("", "segmentation")
CLASSES = "classes.csv"
# A file with more labels per image is damaged.
MAX_LABELS = 1000


@dataclass(frozen=True)
class ClassicProject:
    """The locations of the planes of a classic project, and the metadata of its slides.

    Parameters
    ----------
    image, labels : Location
    n_planes : int
        Number of label planes.
    classes : str, optional
        The file with the ids to extract, if the project was given as a folder.
    """

    image: Location
    labels: Location
    n_planes: int
    classes: str | None

    def planes(self) -> dict[str, Location]:
        """Return the label planes by name.

        Raises
        ------
        SourceError
            If there are more than two.
        """
        if self.n_planes > len(MASK_NAMES):
            where = self.labels.source
            raise SourceError(
                f"{self.image} has {self.n_planes} label planes; choose by nucleus=, for example --nucleus {where}#c=0"
            )
        chosen = self.image.selection
        return {
            name: replace(self.labels, plane=name, selection=Selection(c=(c,), t=chosen.t, missing=chosen.missing))
            for c, name in enumerate(MASK_NAMES[: self.n_planes])
        }

    def described(self, slides: Sequence[Slide], *, own_planes: bool) -> tuple[Slide, ...]:
        """Return the slides with the metadata, ids and warnings of the project.

        Time points with empty labels and no listed cell are omitted with a warning, because SPARCSpy skips them too.

        Parameters
        ----------
        slides : sequence of Slide
            The slides of all time points, or of the selected one.
        own_planes : bool
            Whether their label planes are those of the project; its ids do not apply to others.

        Raises
        ------
        InputError, SourceError
            If the tables of labels or ids do not match the images, or no time point has a cell.
        """
        warnings = []
        if slides[0].image.dtype == np.float16:
            warnings.append(
                f"{self.image.path} holds its image as float16, as SPARCSpy's sharded segmentation stores it: whole "
                "numbers above 2,048 are rounded in it, and 65,520 and more are infinite"
            )
        if self.image.inside == TIME_COURSE[0]:
            slides, omitted = self._time_points(slides, own_planes=own_planes)
            warnings += omitted
        if own_planes and self.classes is not None:
            ids = np.array(read_ids(self.classes), np.uint64)
            warnings.append(
                f"only the {len(ids):,} ids in {self.classes} are extracted; give {self.image.path} itself for all"
            )
            slides = [slide.only(ids) for slide in slides]
        return tuple(replace(slide, warnings=(*slide.warnings, *warnings)) for slide in slides)

    def _time_points(self, slides: Sequence[Slide], *, own_planes: bool) -> tuple[list[Slide], list[str]]:
        """Return the slides of time points with their metadata and ids, and a warning about those omitted."""
        file, selected = SourceFile.at(self.image.path, None), self.image.selection.t
        times = range(len(slides)) if selected is None else [selected]
        with opened_hdf5(file) as h5:
            n_times = h5[TIME_COURSE[0]].shape[0]
            metadata = _metadata(file, h5, n_times)
            classes = _table(file, h5, "classes", n_times)
            ids = {t: None if classes is None or not own_planes else _ids(file, classes, t) for t in times}
        kept, omitted = [], []
        for t, slide in zip(times, slides, strict=True):
            own = ids[t]
            if own is not None and not len(own) and _is_empty(slide):
                omitted.append(t)
                continue
            if metadata is not None and t not in metadata:
                raise SourceError(f"{file} has no row for image {t} in its labels; add it, or choose others with #t=")
            kept.append(replace(slide, metadata=slide.metadata if metadata is None else metadata[t], ids=own))
        if not kept:
            raise SourceError(f"{file} has no cell in its labels and classes; segment the images first")
        line = f"time points of {self.image.path} without any cell are omitted: {listed(omitted)}"
        return kept, [line] if omitted else []


def classic_project(location: Location) -> ClassicProject | None:
    """Return the project at the location of an image, a file or a folder; None if there is no project.

    Raises
    ------
    SourceError
        If a folder holds several projects.
    """
    classes = None
    if os.path.isdir(location.path):
        path = _file_in(location)
        if path is None:
            return None
        location = replace(location, path=path)
        beside = os.path.join(os.path.dirname(path), CLASSES)
        classes = beside if os.path.isfile(beside) else None
    if location.inside or not os.path.isfile(location.path):
        return None
    return _project(location, classes)


def _file_in(folder: Location) -> str | None:
    """Return the file of the project in a folder; None if there is none."""
    paths = [os.path.join(folder.path, within, name) for within in FOLDERS for name in FILES]
    found = [path for path in paths if os.path.isfile(path)]
    if len(found) > 1:
        raise SourceError(f"{folder} is a folder with several projects: {', '.join(found)}; give one of them")
    return found[0] if found else None


def _project(location: Location, classes: str | None) -> ClassicProject | None:
    file = SourceFile.at(location.path, None)
    if outline_format(file) is not None or file_format(file) != "hdf5":
        return None
    with opened_hdf5(file) as h5:
        for names, ndim in ((TIME_COURSE, 4), (ONE_SLIDE, 3)):
            found = [_own(h5, name) for name in names]
            if all(dataset is not None and dataset.ndim == ndim for dataset in found):
                break
        else:
            return None
        n_planes = int(found[1].shape[-3])
    image = replace(location, inside=names[0])
    return ClassicProject(image, replace(location, inside=names[1], selection=Selection()), n_planes, classes)


def _own(h5: h5py.File, name: str) -> Any:
    """Return the dataset with that name if it is stored in this file, otherwise None; no other file is opened."""
    link = h5.get(name, getlink=True)
    dataset = h5[name] if isinstance(link, h5py.HardLink) else None
    if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external:
        return None
    return dataset


def _held(file: SourceFile, h5: h5py.File, name: str) -> Any:
    """Return the dataset with that name; None if there is none."""
    dataset = _own(h5, name)
    if dataset is None and h5.get(name, getlink=True) is not None:
        raise SourceError(f"{file} has a link or a group at {name}; copy the dataset itself into the file")
    return dataset


def _table(file: SourceFile, h5: h5py.File, name: str, n_times: int) -> Any:
    """Return a dataset with one row per image; None if there is none."""
    table = _held(file, h5, name)
    if table is not None and (table.ndim not in (1, 2) or table.shape[0] != n_times):
        raise SourceError(f"{file} has {name} of shape {table.shape} for {n_times} images; it must have a row for each")
    return table


def _metadata(file: SourceFile, h5: h5py.File, n_times: int) -> dict[int, dict[str, str]] | None:
    """Return the metadata of each image by its index; None if the file has none."""
    table, names = _table(file, h5, "labels", n_times), _held(file, h5, "label_names")
    if table is None or names is None:
        return None
    if names.ndim != 1 or not 0 < len(names) <= MAX_LABELS or table.shape[1:] != names.shape:
        raise SourceError(f"{file} has label_names of shape {names.shape} for labels of shape {table.shape}")
    with translated(file, "has labels that are not text"):
        keys = [_text(name) for name in names[:]]
        rows = [[_text(value) for value in row] for row in table[:]]
    if len(set(keys)) < len(keys):
        raise SourceError(f"{file} has label_names that are not all different: {cleaned(listed(keys))}")
    labels: dict[int, dict[str, str]] = {}
    for index, *values in rows:
        if not index:
            continue  # SPARCSpy leaves the rows of missing images empty
        if not index.isdecimal() or int(index) >= n_times or int(index) in labels:
            raise SourceError(
                f"{file} has labels of the image {cleaned(index)!r}; their first column must hold the indices of the "
                f"images, 0 to {n_times - 1}, each once"
            )
        labels[int(index)] = dict(zip(keys[1:], values, strict=True))
    return labels


def _ids(file: SourceFile, classes: Any, t: int) -> NDArray[np.uint64]:
    """Return the ids in `classes` of an image, without the background."""
    with translated(file, "has damaged classes"):
        own = np.asarray(classes[t]).ravel()
        with np.errstate(invalid="ignore"):
            ids = own.astype(np.uint64)
        if (own < 0).any() or (ids != own).any():
            raise SourceError(f"{file} has invalid ids in the classes of image {t}; they must be whole numbers from 1")
    return np.setdiff1d(ids, np.zeros(1, np.uint64))


def _is_empty(slide: Slide) -> bool:
    """Return whether all label planes hold only background."""
    return not any(labels.any() for raster in slide.masks.values() for _, labels in label_strips(raster))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
