"""cuCIM under the names of scipy.ndimage, for the reference on a GPU; this module imports neither cuCIM nor CuPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from gpu_extract.backends.cuda.device import Array

__all__ = ["CucimNdimage", "cucim_ndimage"]


class CucimNdimage(NamedTuple):
    """The functions of ``scipy.ndimage`` that the reference uses, and ``label``; arguments and results are SciPy's."""

    binary_fill_holes: Callable[..., Array]
    binary_dilation: Callable[..., Array]
    gaussian_filter: Callable[..., Array]
    label: Callable[..., tuple[Array, int]]


def cucim_ndimage(skimage: Any, ndimage: Any) -> CucimNdimage:
    """Return functions by cuCIM where it has them, otherwise by ``ndimage``.

    cuCIM has no ``binary_fill_holes``: its ``remove_small_holes`` fills background by size, also at the tile's edge.

    Parameters
    ----------
    skimage : module
        ``cucim.skimage`` with its ``filters``, ``measure`` and ``morphology``, or scikit-image, whose functions are the
        same.
    ndimage : module
        ``cupyx.scipy.ndimage`` or ``scipy.ndimage``.
    """

    def binary_dilation(mask: Array, structure: Array) -> Array:
        return skimage.morphology.binary_dilation(mask, structure)

    def gaussian_filter(values: Array, sigma: Any, mode: str = "reflect", truncate: float = 4.0) -> Array:
        return skimage.filters.gaussian(values, sigma, mode=mode, truncate=truncate, preserve_range=True)

    def label(mask: Array) -> tuple[Array, int]:
        parts, n_parts = skimage.measure.label(mask, connectivity=1, return_num=True)
        return parts, int(n_parts)

    return CucimNdimage(ndimage.binary_fill_holes, binary_dilation, gaussian_filter, label)
