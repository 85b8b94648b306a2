"""The axes of the planes of a TIFF, and what the samples of a pixel are: channels, colors or transparency."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC, TiffPage, TiffPageSeries

from gpu_extract.errors import LabelError, SourceError
from gpu_extract.sources.files import SourceFile
from gpu_extract.sources.selectors import Location

__all__ = ["PlaneAxes", "colors_warning", "plane_axes", "unknown_axis_warning"]

# Axes of unknown meaning: pages (I) and whatever a writer did not name (Q).
UNKNOWN_AXES = "IQ"
# A stack with more pages of unknown meaning is likely a Z stack or a movie.
MAX_UNKNOWN = 8
COLORS = ("R", "G", "B")
# What other samples are; read as RGB they would be wrong colors.
OTHER_COLORS: dict[int, str] = {
    PHOTOMETRIC.SEPARATED: "CMYK",
    PHOTOMETRIC.YCBCR: "YCbCr",
    PHOTOMETRIC.CIELAB: "CIELAB",
    PHOTOMETRIC.ICCLAB: "ICC L*a*b*",
    PHOTOMETRIC.ITULAB: "ITU L*a*b*",
}
# Codecs that decode YCbCr to RGB.
CODECS_OF_YCBCR = (COMPRESSION.JPEG, COMPRESSION.OJPEG, COMPRESSION.ALT_JPEG)


@dataclass(frozen=True)
class PlaneAxes:
    """The axes of the planes of an image.

    Parameters
    ----------
    axes : str
        Some of ``t``, ``c`` and ``z``, in their order in the file.
    sizes : tuple of int
        Their lengths.
    n_samples : int
        Samples per pixel in the file.
    samples : tuple of int
        Those that are read.
    is_interleaved : bool
        Whether the samples of a pixel are adjacent in the file.
    names : tuple of str
        Names of the channels if they are colors, or empty.
    warnings : tuple of str
    """

    axes: str
    sizes: tuple[int, ...]
    n_samples: int = 1
    samples: tuple[int, ...] = (0,)
    is_interleaved: bool = False
    names: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def n_channels(self) -> int:
        """Length of the channel axis."""
        return self.sizes[self.axes.index("c")] if "c" in self.axes else 1

    @property
    def n_stored(self) -> int:
        """Number of planes in the file, without the samples of a pixel."""
        return math.prod(self.sizes) // len(self.samples)


def plane_axes(file: SourceFile, location: Location, series: list[TiffPageSeries]) -> PlaneAxes:
    """Return the axes of the planes.

    An axis of unknown meaning becomes Z or T if the user selects along that (``#z=``, ``#t=``), else channels.

    Parameters
    ----------
    series : list of TiffPageSeries
        The series of one image, or the single pages that are its channels.

    Raises
    ------
    SourceError, LabelError
        If there are other axes, or colors that cannot be read as R, G and B.
    """
    first = series[0]
    outer = [(axis, n) for axis, n in zip(first.axes, first.shape, strict=True) if axis not in "YX" and n != 1]
    if len(series) > 1:
        outer.insert(0, ("I", len(series)))
    unknown = _meaning(location, {axis for axis, _ in outer})
    kinds = ["c" if axis in "CS" else unknown if axis in UNKNOWN_AXES else axis.lower() for axis, _ in outer]
    if not set(kinds) <= set("tcz") or len(set(kinds)) < len(kinds):
        sizes = " ".join(f"{axis}={n}" for axis, n in zip(first.axes, first.shape, strict=True) if n != 1)
        raise SourceError(
            f"{file} has the axes {sizes}; only T, C, Z, Y and X are read, each once: save one image a file"
        )
    found = PlaneAxes("".join(kinds) or "c", tuple(n for _, n in outer) or (1,))
    if any(axis == "S" for axis, _ in outer):
        return _with_samples(file, location, found, first)
    return found


def unknown_axis_warning(location: Location, series: list[TiffPageSeries], n_channels: int) -> list[str]:
    """Return a warning if many pages of unknown meaning are read as channels and the user did not choose among them."""
    is_unknown = len(series) > 1 or bool(set(series[0].axes) & set(UNKNOWN_AXES))
    selection = location.selection
    if not is_unknown or n_channels <= MAX_UNKNOWN or location.plane is not None or selection.c is not None:
        return []
    return [
        f"{location} does not say what its {n_channels} pages are; they are read as channels: choose some with "
        f"#c=0,1 behind its path, or, if they are Z slices, one with #z=0 or their maximum with #z=max, "
        "or, if they are time points, one with #t=0"
    ]


def colors_warning(subject: str, dropped: str = "") -> str:
    """Return the warning about an image that is read as red, green and blue."""
    return (
        f"{subject} is an RGB picture, read as the channels R, G and B{dropped}; "
        "choose with #c=R,G,B behind its path, and mind that colors are rarely measurements"
    )


def _meaning(location: Location, axes: set[str]) -> str:
    """Return what an axis of unknown meaning is by the user's selection."""
    selection = location.selection
    if "S" in axes:
        return "z" if selection.t is None else "t"  # the channels are the samples
    if selection.z is not None and "Z" not in axes:
        return "z"
    if selection.t is not None and "T" not in axes:
        return "t"
    return "c"


def _with_samples(file: SourceFile, location: Location, found: PlaneAxes, series: TiffPageSeries) -> PlaneAxes:
    """Return the axes with the samples that are read, and their names if they are colors."""
    page = series.keyframe
    n = series.shape[series.axes.index("S")]
    found = replace(found, n_samples=n, samples=tuple(range(n)), is_interleaved=series.axes[-1] == "S")
    is_rgb = page.photometric == PHOTOMETRIC.RGB or (
        page.photometric == PHOTOMETRIC.YCBCR and page.compression in CODECS_OF_YCBCR
    )
    if file.plane is not None and (is_rgb or page.photometric in OTHER_COLORS):
        raise LabelError(
            f"{file} is a picture with {n} colors per pixel (RGB), and a label plane has one integer id; "
            "export the ids instead of their colors"
        )
    if not is_rgb:
        if page.photometric in OTHER_COLORS:
            raise SourceError(f"{file} is a picture in {OTHER_COLORS[page.photometric]} colors; save it as RGB")
        return found
    kept, dropped = _without_alpha(page, found.samples)
    return replace(
        found,
        sizes=tuple(len(kept) if axis == "c" else size for axis, size in zip(found.axes, found.sizes, strict=True)),
        samples=kept,
        names=tuple(COLORS[sample] if sample < len(COLORS) else f"ch{sample}" for sample in kept),
        warnings=() if location.selection.c is not None else (colors_warning(str(file), dropped),),
    )


def _without_alpha(page: TiffPage, samples: tuple[int, ...]) -> tuple[tuple[int, ...], str]:
    """Return the samples that are not transparency, and words about those that are."""
    alpha = {
        len(COLORS) + index
        for index, kind in enumerate(page.extrasamples)
        if kind in (EXTRASAMPLE.ASSOCALPHA, EXTRASAMPLE.UNASSALPHA)
    }
    kept = tuple(sample for sample in samples if sample not in alpha)
    return kept, " without its alpha channel" if len(kept) < len(samples) else ""
