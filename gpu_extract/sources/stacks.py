"""The planes of a file along T, C and Z, and the selection that turns them into a raster."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gpu_extract.channels import channel_indices
from gpu_extract.errors import LabelError, SourceError
from gpu_extract.listing import listed
from gpu_extract.model import Raster
from gpu_extract.sources.names import unique_names
from gpu_extract.sources.placement import Placement
from gpu_extract.sources.selectors import Location

__all__ = [
    "Indices",
    "MaxRaster",
    "Planes",
    "PlanesOf",
    "Stack",
    "absent",
    "out_of_range",
    "raster_stack",
    "selector",
]

Indices = tuple[tuple[int, ...], ...]  # the selected ones along each axis


class Planes(Protocol):
    """All planes of a file. Like the rasters made of them, it is a value that pickles."""

    def raster(self, indices: Indices, names: tuple[str, ...], source: str) -> Raster:
        """Return the raster of the selected planes, in the order of the axes, with the last axis changing fastest.

        Parameters
        ----------
        indices : tuple of tuple of int
            Selected indices along each axis.
        names : tuple of str, length P or 0
        source : str
        """


@dataclass(frozen=True, eq=False)
class Stack:
    """All planes of a file and the selection that makes a raster of them; no pixel is read.

    Parameters
    ----------
    location : Location
        It has the selection.
    axes : str
        The axes of the planes: some of ``t``, ``c`` and ``z``, in the order of the file.
    sizes : tuple of int
        Lengths of the axes.
    names : tuple of str
        Channel names; ignored if their number differs from that of the channels.
    planes : Planes
    pixel_size : (y, x), um, optional
        Size of a pixel, if the file has it.
    placements : tuple of Placement
        One per coordinate system in which the file places the planes.
    levels : tuple
        Placements of all levels of the pyramid that the planes are a level of.
    pixel_size_source : str
        Where in the file the pixel size is; empty if there is only one place for it.
    """

    location: Location
    axes: str
    sizes: tuple[int, ...]
    names: tuple[str, ...]
    planes: Planes
    pixel_size: tuple[float, float] | None = None
    warnings: tuple[str, ...] = ()
    placements: tuple[Placement, ...] = ()
    levels: tuple[tuple[Placement, ...], ...] = ()
    pixel_size_source: str = ""

    def size(self, axis: str) -> int:
        """Return the length of an axis; 1 if the file does not have it."""
        return self.sizes[self.axes.index(axis)] if axis in self.axes else 1

    @property
    def n_times(self) -> int:
        """Number of selected time points: 1 if one is selected, otherwise all."""
        return self.size("t") if self.location.selection.t is None else 1

    def at(self, t: int) -> Stack:
        """Return the stack with one time point selected."""
        return self._selecting(t=t)

    def with_channels(self, indices: tuple[int, ...]) -> Stack:
        """Return the stack with some of its selected channels, in this order; the others are never read."""
        selected = self._chosen("c")
        return self._selecting(c=tuple(selected[index] for index in indices))

    def _selecting(self, **keys: Any) -> Stack:
        selection = replace(self.location.selection, **keys)
        return replace(self, location=replace(self.location, selection=selection))

    def raster(self) -> Raster:
        """Return the raster of the selected planes.

        Raises
        ------
        SourceError, LabelError
            If the selected planes do not exist, or none of several Z slices or time points is selected.
        """
        chosen = {axis: self._chosen(axis) for axis in "tcz"}
        names = tuple(self.names[i] for i in chosen["c"]) if len(self.names) == self.size("c") else ()
        slices = []
        for z in chosen["z"]:
            indices = tuple((z,) if axis == "z" else chosen[axis] for axis in self.axes)
            slices.append(self.planes.raster(indices, names, self.location.source))
        return slices[0] if len(slices) == 1 else MaxRaster(tuple(slices))

    def _chosen(self, axis: str) -> tuple[int, ...]:
        size, selected = self.size(axis), getattr(self.location.selection, axis)
        if selected == "max" or (selected is None and axis == "c"):
            indices = tuple(range(size))
        elif selected is None:
            if size > 1:
                raise self._unchosen(axis, size)
            return (0,)
        elif axis == "c":
            named = unique_names(self.names, size) if len(self.names) == size else [""] * size
            indices = channel_indices(selected, named, str(self.location))
        else:
            indices = (selected,)
        if max(indices) >= size:
            raise out_of_range(self.location, axis, size)
        if axis == "c" and len(indices) > 1 and self.location.plane is not None:
            raise self._several_planes(indices)
        return indices

    def _several_planes(self, indices: tuple[int, ...]) -> LabelError:
        size = self.size("c")
        one = f"#c=0 to #c={size - 1} to its path"
        if len(self.names) == size and any(self.names):
            names = unique_names(self.names, size)
            one = f"#c=NAME to its path, with one of {listed([names[index] for index in indices])}"
        return LabelError(f"{self.location} holds {len(indices)} planes; give one plane (H, W), or add {one}")

    def _unchosen(self, axis: str, size: int) -> SourceError:
        kind, other = {
            "z": ("Z slices", "or #z=max for their maximum projection"),
            "t": ("time points", "or make each a slide of a time course with open_slides"),
        }[axis]
        return SourceError(
            f"{self.location} has {size} {kind}; add #{axis}=0 to #{axis}={size - 1} to its path for one, {other}"
        )


@dataclass(frozen=True, eq=False)
class MaxRaster:
    """The maximum projection of Z slices. They are read one by one, so that only two are in memory at a time.

    Parameters
    ----------
    slices : tuple of Raster, all of one shape and type
    """

    slices: tuple[Raster, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """See `Raster.shape`."""
        return self.slices[0].shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """See `Raster.dtype`."""
        return self.slices[0].dtype

    @property
    def names(self) -> tuple[str, ...]:
        """See `Raster.names`."""
        return self.slices[0].names

    @property
    def source(self) -> str:
        """See `Raster.source`."""
        return self.slices[0].source

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know of the slices if they are drawn outlines; empty if not."""
        return tuple(dict.fromkeys(line for each in self.slices for line in getattr(each, "warnings", ())))

    def read(self, y0: int, x0: int, y1: int, x1: int) -> NDArray[Any]:
        """See `Raster.read`."""
        highest = np.array(self.slices[0].read(y0, x0, y1, x1))
        for each in self.slices[1:]:
            np.maximum(highest, each.read(y0, x0, y1, x1), out=highest)
        return highest


@dataclass(frozen=True, eq=False)
class PlanesOf:
    """Some planes of a raster that can only be read with all its planes.

    Parameters
    ----------
    whole : Raster
    planes : tuple of int
    names : tuple of str, length of `planes` or 0
    source : str
    """

    whole: Raster
    planes: tuple[int, ...]
    names: tuple[str, ...]
    source: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """See `Raster.shape`."""
        return len(self.planes), *self.whole.shape[1:]

    @property
    def dtype(self) -> np.dtype[Any]:
        """See `Raster.dtype`."""
        return self.whole.dtype

    def read(self, y0: int, x0: int, y1: int, x1: int) -> NDArray[Any]:
        """See `Raster.read`."""
        return self.whole.read(y0, x0, y1, x1)[list(self.planes)]


@dataclass(frozen=True, eq=False)
class _PlanesOfRaster:
    """`Planes` of a raster, along one axis."""

    whole: Raster

    def raster(self, indices: Indices, names: tuple[str, ...], source: str) -> Raster:
        """See `Planes.raster`."""
        (planes,) = indices
        if planes == tuple(range(self.whole.shape[0])):
            return self.whole
        return PlanesOf(self.whole, planes, names, source)


def raster_stack(raster: Raster, location: Location) -> Stack:
    """Return the stack of a raster whose planes are channels.

    Raises
    ------
    InputError
        If a selector does not apply.
    """
    location.selection.refuse(str(location), "level", "image", "label", "missing")
    return Stack(location, "c", raster.shape[:1], raster.names, _PlanesOfRaster(raster))


def out_of_range(location: Location, key: str, n: int) -> SourceError:
    """Return the error for a selector that is out of range."""
    return SourceError(
        f"{location} does not exist: {key}= can be {f'0 to {n - 1}' if n > 1 else 'only 0'} in this file"
    )


def absent(location: Location, n: int, unit: str, fill: Any) -> SourceError:
    """Return the error for pixels that are not stored, because a copy is incomplete or a writer omitted empty ones."""
    return SourceError(
        f"{location} lacks {n} of its {unit}, which would read as {fill}; copy or export it again, or "
        "add #missing=fill to the path if its writer omitted empty ones"
    )


def selector(indices: tuple[int, ...]) -> slice | list[int]:
    """Return a slice if the indices are consecutive, because it is read faster; otherwise a list."""
    first, n = indices[0], len(indices)
    return slice(first, first + n) if indices == tuple(range(first, first + n)) else list(indices)
