"""Placement of images and label planes in a coordinate system, as files and xarray coordinates state it.

Transformations of SpatialData and OME-Zarr, and the coordinates of xarray, say where the pixels of a label plane are
relative to those of the image. `place_labels` compares both. A label plane that is shifted by whole pixels is read at
that shift. Everything else, such as a mirrored, scaled or rotated label plane, is an error.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import LabelError, SourceError
from gpu_extract.listing import listed
from gpu_extract.model import Raster, source_text

__all__ = [
    "COORDINATES",
    "IMPLICIT",
    "Placement",
    "ShiftedRaster",
    "array_placements",
    "check_channels",
    "level_on_image",
    "place_labels",
    "relative",
    "relative_in_common",
    "slice_on_image",
]

# Scales that differ by less are equal: calibrations of image and labels are often rounded differently.
SAME_SCALE = 0.01
# A shift this close to whole pixels, in pixels, is whole: files state offsets as rounded decimals.
WHOLE_SHIFT = 0.05
# A rotation or shear below this moves no pixel of a slide of 10,000 pixels by more than one.
NO_SKEW = 1e-4
# Names of coordinate systems without a name: that of OME-Zarr, and the coordinates of xarray.
IMPLICIT, COORDINATES = "", "coordinates"

REMEDY = (
    "transform the labels to the pixels of the image, or, if they lie pixel on pixel all the same, add "
    "--trust placement (trust='placement')"
)


@dataclass(frozen=True)
class Placement:
    """The affine map from pixel indices (y, x) to a coordinate system.

    Pixel (i, j) is at ``y = scale[0] * i + skew[0] * j + offset[0]``, ``x = skew[1] * i + scale[1] * j + offset[1]``.

    Parameters
    ----------
    scale : (y, x)
        Coordinate units per pixel; negative if mirrored.
    offset : (y, x)
        Coordinates of the first pixel.
    skew : (y, x)
        Off-diagonal elements of the map, for rotations, shears and swapped axes.
    system : str
        Name of the coordinate system.
    um : (y, x), optional
        Micrometers per coordinate unit; None if unknown.
    stated : bool
        False if scale and offset are the defaults of a writer that does not know the pixel size.
    other : str
        Description of a map that is not affine; empty for an affine map.
    z : (scale, offset), optional
        Coordinate units per Z slice, and coordinate of the first slice; None without a Z axis.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)
    skew: tuple[float, float] = (0.0, 0.0)
    system: str = IMPLICIT
    um: tuple[float, float] | None = None
    stated: bool = True
    other: str = ""
    z: tuple[float, float] | None = None

    @property
    def matrix(self) -> NDArray[np.float64]:
        """The map as (2, 3): columns y, x and offset."""
        return np.array(
            [[self.scale[0], self.skew[0], self.offset[0]], [self.skew[1], self.scale[1], self.offset[1]]], np.float64
        )

    @property
    def is_plain_scale(self) -> bool:
        """Whether the first pixel is at the origin and the axes are neither mirrored, swapped nor rotated."""
        return not self.other and self.offset == self.skew == (0, 0) and min(self.scale) > 0


class ShiftedRaster:
    """A label plane whose first pixel is at another pixel of the image; 0 where it has no pixels. See `Raster`.

    Parameters
    ----------
    raster : Raster, (P, h, w)
    shift : (y, x), pixels
        Pixel of the image at which the first pixel of the raster is; may be negative.
    size : (H, W)
        Size of the image.
    """

    def __init__(self, raster: Raster, shift: tuple[int, int], size: tuple[int, int]) -> None:
        self.unshifted, self._shift = raster, shift
        self.shape, self.dtype = (raster.shape[0], *size), raster.dtype
        self.names, self.source = raster.names, raster.source

    @property
    def overlap(self) -> tuple[int, int, int, int]:
        """Box (y0, x0, y1, x1) of the image that the raster covers; empty if y1 <= y0 or x1 <= x0."""
        (dy, dx), (_, H, W), (_, height, width) = self._shift, self.shape, self.unshifted.shape
        return max(dy, 0), max(dx, 0), min(dy + height, H), min(dx + width, W)

    def read(self, y0: int, x0: int, y1: int, x1: int) -> NDArray[Any]:
        """See `Raster.read`."""
        pixels = np.zeros((self.shape[0], y1 - y0, x1 - x0), self.dtype)
        top, left, bottom, right = self.overlap
        top, left, bottom, right = max(top, y0), max(left, x0), min(bottom, y1), min(right, x1)
        if top < bottom and left < right:
            dy, dx = self._shift
            inside = self.unshifted.read(top - dy, left - dx, bottom - dy, right - dx)
            pixels[:, top - y0 : bottom - y0, left - x0 : right - x0] = inside
        return pixels


def relative(image: Placement, label: Placement) -> tuple[int, int] | str:
    """Return where the first pixel of a label plane is in the image, or what prevents that.

    Parameters
    ----------
    image, label : Placement
        In the same coordinate system.

    Returns
    -------
    (y, x) in pixels of the image
        (0, 0) if both are placed equally: scales within 1 %, shifts within 0.05 pixels.
    str
        Description of any other relation, such as ``mirrored along y``.
    """
    if replace(image, z=None) == replace(label, z=None):
        return 0, 0
    for each in (image, label):
        if each.other:
            return each.other
    one_unit = (image.um is None) == (label.um is None)
    if image.stated != label.stated and not one_unit and image.is_plain_scale and label.is_plain_scale:
        return 0, 0  # scale 1 of a writer that was not given the pixel size, against um
    first, second = _in_one_unit(image, label)
    if abs(np.linalg.det(first[:, :2])) < np.finfo(float).tiny or not np.isfinite([first, second]).all():
        return "placed by a transformation that cannot be inverted"
    to_image = np.linalg.inv(first[:, :2])
    linear, shift = to_image @ second[:, :2], to_image @ (second[:, 2] - first[:, 2])
    problem = _linear_problem(linear)
    if problem:
        return problem
    whole = np.rint(shift)
    if np.abs(shift - whole).max() > WHOLE_SHIFT:
        return f"shifted by y {shift[0]:.6g}, x {shift[1]:.6g} pixels, which are no whole pixels"
    return int(whole[0]), int(whole[1])


def relative_in_common(image: Sequence[Placement], label: Sequence[Placement]) -> tuple[int, int] | str:
    """Return `relative` in the coordinate systems that two elements have in common.

    Parameters
    ----------
    image, label : sequence of Placement
        One per coordinate system. Where both have only named systems and none in common, or are related differently
        in two systems, that is described. Where nothing can be compared, the result is (0, 0).
    """
    ours, theirs = ({each.system: each for each in placements} for placements in (image, label))
    common = [name for name in ours if name in theirs]
    if not common:
        unnamed = {IMPLICIT, COORDINATES} & {*ours, *theirs}
        if unnamed or not ours or not theirs:
            return 0, 0
        return f"in the coordinate systems {listed(theirs)} and the image in {listed(ours)}, with none in common"
    found = {name: relative(ours[name], theirs[name]) for name in common}
    if len(set(found.values())) == 1:
        return found[common[0]]
    texts = [f"{_text(each)} in {name}" for name, each in found.items()]
    return f"placed differently in the coordinate systems: {listed(texts)}"


def level_on_image(image: Sequence[Placement], levels: Sequence[Sequence[Placement]]) -> int | None:
    """Return the first level of a label pyramid that is placed on whole pixels of the image; None if there is none.

    Parameters
    ----------
    image : sequence of Placement
    levels : sequence of sequence of Placement
    """
    return next((k for k, each in enumerate(levels) if not isinstance(relative_in_common(image, each), str)), None)


def place_labels(
    image: Raster,
    image_placements: Sequence[Placement],
    masks: Mapping[str, Raster],
    placements: Mapping[str, Sequence[Placement]],
    trust: Collection[str] = (),
) -> tuple[dict[str, Raster], tuple[str, ...]]:
    """Return the label planes as they lie on the image, and a warning for each that is shifted.

    Parameters
    ----------
    image : Raster
    image_placements : sequence of Placement
        Of the image, one per coordinate system.
    masks : mapping of str to Raster
    placements : mapping of str to sequence of Placement
        Of each label plane.
    trust : collection of str
        With ``placement``, nothing is compared.

    Raises
    ------
    LabelError
        If a label plane is not placed on whole pixels of the image, or entirely outside it.
    """
    placed, warnings = dict(masks), []
    if "placement" in trust:
        return placed, ()
    if not image_placements:
        _check_equal(masks, placements)
    for name, raster in masks.items():
        found = relative_in_common(image_placements, placements[name])
        if isinstance(found, str):
            raise LabelError(
                f"{name} labels {raster.source} are {found}, relative to image {source_text(image)}; {REMEDY}"
            )
        if found == (0, 0):
            continue
        shifted = ShiftedRaster(raster, found, (image.shape[1], image.shape[2]))
        y0, x0, y1, x1 = shifted.overlap
        where = f"{name} labels {raster.source} begin at y {found[0]}, x {found[1]} of image {source_text(image)}"
        if y1 <= y0 or x1 <= x0:
            _, H, W = shifted.shape
            raise LabelError(f"{where}, outside its {H} x {W} pixels (H x W); {REMEDY}")
        warnings.append(
            f"{where}, as their transformation or coordinates say, and are read so: they cover {y1 - y0} x {x1 - x0} "
            "of its pixels, and cells at their edge may be cut (--trust placement, trust='placement': do not shift)"
        )
        placed[name] = shifted
    return placed, tuple(warnings)


def slice_on_image(image: Sequence[Placement], label: Sequence[Placement], z: int) -> float:
    """Return the Z slice of a label stack, as a fraction, that is at slice ``z`` of the image; ``z`` if unknown.

    Parameters
    ----------
    image, label : sequence of Placement
        One per coordinate system; the first in common counts.
    z : int
    """
    theirs = {each.system: each for each in label}
    for ours in image:
        other = theirs.get(ours.system)
        if other is not None and ours.z is not None and other.z is not None and other.z[0]:
            return (ours.z[0] * z + ours.z[1] - other.z[1]) / other.z[0]
    return float(z)


def check_channels(
    sources: Sequence[str], placements: Sequence[Sequence[Placement]], trust: Collection[str] = ()
) -> None:
    """Raise an error if the images that are the channels of a slide are placed differently.

    Parameters
    ----------
    sources : sequence of str
        Names of the images, for the message.
    placements : sequence of sequence of Placement
        Of each image, one per coordinate system.
    trust : collection of str
        With ``placement``, nothing is compared.

    Raises
    ------
    SourceError
    """
    if "placement" in trust:
        return
    for source, each in zip(sources[1:], placements[1:], strict=True):
        found = relative_in_common(placements[0], each)
        if found != (0, 0):
            raise SourceError(
                f"image {source} is {_text(found)}, relative to {sources[0]}; the channels of a slide must lie pixel "
                "on pixel: transform it, or, if they do all the same, add --trust placement (trust='placement')"
            )


def array_placements(array: Any) -> tuple[Placement, ...]:
    """Return the placements of an xarray.DataArray by its coordinates y and x; none for any other array.

    The transformations that SpatialData keeps in ``attrs["transform"]`` follow the coordinates; without such
    transformations, the coordinates are the only system.
    """
    if not hasattr(array, "coords"):
        return ()
    coordinates = _coordinates_placement(array)
    transformations = getattr(array, "attrs", {}).get("transform")
    if not isinstance(transformations, Mapping):
        return () if coordinates is None else (coordinates,)
    pixels = Placement() if coordinates is None else coordinates
    # SpatialData gives pixel centers the coordinates 0.5, 1.5, ..., and transforms indices.
    half = 0.5 if coordinates is not None else 0.0
    offset = pixels.offset[0] - half * pixels.scale[0], pixels.offset[1] - half * pixels.scale[1]
    centered = replace(pixels, offset=offset)
    return tuple(_transformed(centered, each, str(name)) for name, each in transformations.items())


def _check_equal(masks: Mapping[str, Raster], placements: Mapping[str, Sequence[Placement]]) -> None:
    """Raise an error if label planes of an image without placement are placed differently."""
    first, *others = [name for name in masks if placements[name]] or [""]
    for name in others:
        found = relative_in_common(placements[first], placements[name])
        if found != (0, 0):
            raise LabelError(
                f"{name} labels {masks[name].source} are {_text(found)}, relative to {first} labels "
                f"{masks[first].source}, and the image does not say where it is; {REMEDY}"
            )


def _transformed(pixels: Placement, transformation: Any, system: str) -> Placement:
    """Return a placement after a transformation object of SpatialData."""
    if pixels.other:
        return replace(pixels, system=system)
    try:
        affine = np.asarray(transformation.to_affine_matrix(("y", "x"), ("y", "x")), np.float64)
    except Exception as cause:  # a class of another library, for which there are no rules
        return Placement(system=system, other=f"placed by a transformation that cannot be read ({cause})"[:200])
    (yy, yx, y), (xy, xx, x) = (affine @ np.vstack([pixels.matrix, [0, 0, 1]]))[:2].tolist()
    return Placement((yy, xx), (y, x), (yx, xy), system)


def _coordinates_placement(array: Any) -> Placement | None:
    coordinates = getattr(array, "coords", {})
    values = {}
    for axis in ("y", "x"):
        names = [name for name in getattr(array, "dims", ()) if str(name).lower() == axis and name in coordinates]
        found = np.asarray(coordinates[names[0]].values) if names else None
        if found is None or found.ndim != 1 or found.dtype.kind not in "iuf" or len(found) < 2:
            return None
        values[axis] = found.astype(np.float64)
    steps = {axis: (at[-1] - at[0]) / (len(at) - 1) for axis, at in values.items()}
    for axis, at in values.items():
        uneven = np.abs(at - (at[0] + steps[axis] * np.arange(len(at)))).max()
        if not uneven <= WHOLE_SHIFT * abs(steps[axis]) or steps[axis] == 0:
            return Placement(system=COORDINATES, other=f"at coordinates that are not evenly spaced along {axis}")
    return Placement(
        (float(steps["y"]), float(steps["x"])), (float(values["y"][0]), float(values["x"][0])), system=COORDINATES
    )


def _in_one_unit(image: Placement, label: Placement) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both maps in um if their units are known, else as they are stated."""
    if image.um is None or label.um is None:
        return image.matrix, label.matrix
    return image.matrix * np.array(image.um)[:, None], label.matrix * np.array(label.um)[:, None]


def _linear_problem(linear: NDArray[np.float64]) -> str:
    """Describe a map from label pixels to image pixels that is not the identity; empty if it is."""
    (yy, yx), (xy, xx) = linear.tolist()
    if max(abs(yx), abs(xy)) > NO_SKEW * max(abs(yy), abs(xx), abs(yx), abs(xy)):
        swapped = max(abs(yy), abs(xx)) <= NO_SKEW * max(abs(yx), abs(xy))
        rows = f"[{yy:.4g}, {yx:.4g}], [{xy:.4g}, {xx:.4g}]"
        return "placed with y and x swapped" if swapped else f"rotated or sheared by the matrix {rows} (y, x)"
    mirrored = [axis for axis, factor in (("y", yy), ("x", xx)) if factor < 0]
    if mirrored:
        return f"mirrored along {' and '.join(mirrored)}"
    if abs(yy - 1) > SAME_SCALE or abs(xx - 1) > SAME_SCALE:
        return f"scaled by y {yy:.6g}, x {xx:.6g}"
    return ""


def _text(found: tuple[int, int] | str) -> str:
    return found if isinstance(found, str) else f"shifted by y {found[0]}, x {found[1]} pixels"
