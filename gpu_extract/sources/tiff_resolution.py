"""The pixel size of a TIFF without OME-XML, from its resolution tags, as far as they can be believed."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from tifffile import TiffFile, TiffPage

from gpu_extract.sources.units import pixel_size

__all__ = ["Resolution", "tagged_resolution"]

# um per pixel. Software that does not know the pixel size writes the 72 to 600 dots per inch of a screen or printer,
# 353 to 42 um.
MAX_TAGGED_UM = 10.0
# um. The pixels of cameras are 3.45 to 16 um wide; those of images at magnifications of 2x and more are below 5.
MIN_CAMERA_UM = 5.0
# Software that stores the camera's pixels, whatever the magnification: Revvity's Operetta and Opera Phenix.
CAMERA_SOFTWARE = re.compile(r"harmony|operetta|phenix|columbus", re.IGNORECASE)


TAG = "the resolution tag of a TIFF"


class Resolution(NamedTuple):
    """A pixel size, and a warning about it.

    Parameters
    ----------
    size : (y, x), um, or None
        None if it is not given, or not to be believed.
    warnings : tuple of str
    source : str
        Where it is in the file.
    """

    size: tuple[float, float] | None
    warnings: tuple[str, ...] = ()
    source: str = ""


def tagged_resolution(tif: TiffFile, page: TiffPage) -> Resolution:
    """Return the pixel size in the resolution tags of a page, in the unit of the tag or of ImageJ.

    The resolution of a screen or printer is ignored. That of a camera is ignored with a warning, since the size of
    its pixels is not the size of the pixels in the image.
    """
    ratios = [np.ravel(page.tags.valueof(name, ())) for name in ("YResolution", "XResolution")]
    if any(len(ratio) != 2 or ratio[0] == 0 for ratio in ratios):
        return Resolution(None)
    y, x = (denominator / numerator for numerator, denominator in ratios)
    if tif.imagej_metadata:
        unit = tif.imagej_metadata.get("unit", "")
        size = pixel_size(y, x, tif.imagej_metadata.get("yunit", unit), unit)
        # ImageJ takes the resolution of a screen over from a plain TIFF, in inches.
        is_measured = str(unit).lower() not in ("inch", "in", "cm")
        is_used = is_measured or (size is not None and max(size) < MAX_TAGGED_UM)
        return Resolution(size if is_used else None, source="the metadata of ImageJ")
    tag_unit = {2: "inch", 3: "cm"}.get(page.tags.valueof("ResolutionUnit"))
    size = pixel_size(y, x, tag_unit, tag_unit)
    if size is None or max(size) >= MAX_TAGGED_UM:
        return Resolution(None)
    if max(size) > MIN_CAMERA_UM or CAMERA_SOFTWARE.search(page.software):
        said = f"{size[0]:.4g}" if f"{size[0]:.4g}" == f"{size[1]:.4g}" else f"{size[0]:.4g} x {size[1]:.4g}"
        # Without the file's name, so that a plate of a thousand fields has one line.
        line = (
            f"pixel size {said} um, from the TIFF's resolution tag, is probably that of the camera and not used; "
            "give that of the image with --pixel-size (pixel_size=), the camera's over the magnification"
        )
        return Resolution(None, (line,))
    return Resolution(size, source=TAG)
