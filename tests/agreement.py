"""The tolerances for backends compared to the reference."""

import numpy as np

from gpu_extract.backends import reference

# float16 and integers: at most one step apart, and at least this fraction equal.
LEAST_EQUAL = 0.999
# Wider floats and limits. The cpu backend sums in the order of SciPy, in float64; measured: equal except for the last
# bit of a division. On a GPU, masks are float32 sums of up to 41 x 41 products; measured: 3e-7.
CPU_RTOL, GPU_RTOL = 1e-12, 1e-6


def assert_agrees(cells, window, batch, program, limits=None, *, rtol=CPU_RTOL):
    """Compare the cells of a backend to the reference: types, rows, ids, limits, masks and all values."""
    expected = reference.extract(window, batch, program, limits)
    M = len(program.stored)
    assert cells.images.dtype == expected.images.dtype
    assert (cells.rows == expected.rows).all()
    assert (cells.ids == expected.ids).all()
    largest = np.abs(expected.limits).max(initial=0.0)
    np.testing.assert_allclose(cells.limits, expected.limits, rtol=rtol, atol=rtol * largest)
    if program.recipe.stored_sigma == 0:
        assert (cells.images[:, :M] == expected.images[:, :M]).all()
    found, wanted = cells.images.astype(np.float64), expected.images.astype(np.float64)
    difference = np.abs(found - wanted)
    if program.output_dtype.kind == "f" and program.output_dtype.itemsize > 2:
        assert (difference <= max(rtol, np.finfo(program.output_dtype).eps) * np.maximum(1, np.abs(wanted))).all()
        return
    step = np.ones_like(wanted)
    if program.output_dtype.kind == "f":
        assert np.isfinite(cells.images).all()
        step = np.spacing(np.maximum(np.abs(cells.images), np.abs(expected.images))).astype(np.float64)
    uncertain = cancellation(expected.limits, program, rtol)
    assert (difference <= step + uncertain).all()
    assert np.count_nonzero(difference > uncertain) <= max((1 - LEAST_EQUAL) * difference.size, 2)


def cancellation(limits, program, rtol):
    """Return the error by cancellation, (n, K, 1, 1), if products with a soft mask are scaled between close limits.

    The relative error of such a product is ``rtol``, and ``(x - lo) / (hi - lo)`` amplifies it by ``lo / (hi - lo)``.
    If all pixels have the same value, only the rounding errors of the mask remain. Raw pixels are exact.
    """
    uncertain = np.zeros((len(limits), program.n_planes, 1, 1))
    if program.recipe.cut == "before" and program.recipe.apply_masks and program.recipe.normalization == "quantile":
        lo, hi = np.moveaxis(limits, 2, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            amplified = np.where(hi > lo, np.minimum(rtol * np.abs(limits).max(axis=2) / (hi - lo), 1), 0)
        uncertain[:, len(program.stored) :, 0, 0] = amplified
    return uncertain
