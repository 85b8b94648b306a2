"""Label planes that were saved as floating-point numbers, which is safe as long as all are whole and small enough."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import LabelError
from gpu_extract.model import Raster

__all__ = ["WholeNumberLabels", "whole_number_labels"]

# For each type the integers to convert to, and the number from which on whole numbers are rounded to others: every
# whole number below 2^(bits of the significand) is exact.
EXACT = {"float16": (np.int16, 2**11), "float32": (np.int32, 2**24), "float64": (np.int64, 2**53)}


class WholeNumberLabels:
    """A label plane (1, H, W) of floating-point numbers as integers. Every pixel is checked when it is read.

    Parameters
    ----------
    raster : Raster, (1, H, W)
        Its pixels are float16, float32 or float64.
    where : str
        Name of the plane in messages.
    """

    def __init__(self, raster: Raster, where: str) -> None:
        integer, self._limit = EXACT[raster.dtype.name]
        self._raster, self._where = raster, where
        self.shape, self.dtype = raster.shape, np.dtype(integer)
        self.names, self.source = raster.names, raster.source

    def read(self, y0: int, x0: int, y1: int, x1: int) -> NDArray[Any]:
        """See `Raster.read`.

        Raises
        ------
        LabelError
            If a pixel is not a whole number, or so large that it may have been rounded.
        """
        labels, limit = self._raster.read(y0, x0, y1, x1), self._limit
        with np.errstate(invalid="ignore"):  # of NaN and infinity, which equal no integer
            whole = labels.astype(self.dtype)
            is_exact = bool((whole == labels).all()) and -limit < int(whole.min()) and int(whole.max()) < limit
        if not is_exact:
            raise self._first_error(labels, y0, x0)
        return whole

    def _first_error(self, labels: NDArray[Any], y0: int, x0: int) -> LabelError:
        """Return the error for the first pixel that is not an exact whole number."""
        dtype, limit = self._raster.dtype, self._limit
        with np.errstate(invalid="ignore"):
            bad = ~((labels == np.rint(labels)) & (np.abs(labels.astype(np.float64)) < limit))
        at = int(bad.argmax())
        _, y, x = np.unravel_index(at, labels.shape)
        value = labels.ravel()[at]
        reason = "is not a whole number"
        if np.isfinite(value) and value == np.rint(value):
            reason = f"may have been rounded, because {dtype} is exact only below {limit:,}"
        return LabelError(
            f"{self._where} are of type {dtype} and hold {value:.9g} at y {y0 + y}, x {x0 + x}, which {reason}; "
            "save them as integers"
        )


def whole_number_labels(raster: Raster, where: str) -> Raster:
    """Return a label plane of floating-point numbers as integers; any other raster unchanged."""
    return WholeNumberLabels(raster, where) if raster.dtype.name in EXACT else raster
