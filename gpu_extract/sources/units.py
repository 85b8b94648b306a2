"""Lengths in micrometers, from the numbers and units in files."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["pixel_size", "um_per_unit"]

# The units of OME-XML, OME-Zarr (UDUNITS-2) and ImageJ, in lower case. Anything else, such as "pixel", is not a length.
UM_PER_UNIT = {
    **dict.fromkeys(("pm", "picometer"), 1e-6),
    **dict.fromkeys(("å", "angstrom"), 1e-4),
    **dict.fromkeys(("nm", "nanometer"), 1e-3),
    **dict.fromkeys(("um", "µm", "μm", "\\u00b5m", "micron", "microns", "micrometer"), 1.0),
    **dict.fromkeys(("mm", "millimeter"), 1e3),
    **dict.fromkeys(("cm", "centimeter"), 1e4),
    **dict.fromkeys(("m", "meter"), 1e6),
    **dict.fromkeys(("in", "inch"), 25400.0),
}


def um_per_unit(unit: Any) -> float | None:
    """Return the length of a unit in um; None if it is not a unit of length."""
    return UM_PER_UNIT.get(str(unit).lower())


def pixel_size(y: Any, x: Any, unit_y: Any, unit_x: Any) -> tuple[float, float] | None:
    """Return the size of a pixel (y, x) in um; None if these are not positive lengths."""
    try:
        size = float(y) * UM_PER_UNIT[str(unit_y).lower()], float(x) * UM_PER_UNIT[str(unit_x).lower()]
    except (KeyError, TypeError, ValueError):
        return None
    return size if all(math.isfinite(side) and side > 0 for side in size) else None
