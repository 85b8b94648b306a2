"""How far a backend may be from the reference."""

import numpy as np

from gpu_extract.backends import reference

# float16 and integers: within one step, and nearly always equal.
LEAST_EQUAL = 0.999
# Wider floats and limits. The cpu backend sums as SciPy does, in float64; measured: equal but for the last bit of a
# division. The GPU's masks are float32, sums of up to 41 x 41 products; measured: 3e-7.
CPU_RTOL, GPU_RTOL = 1e-12, 1e-6


def assert_agrees(cells, window, batch, program, limits=None, *, rtol=CPU_RTOL):
    """The cells of a backend against the reference: types, rows, ids, limits, masks and every value."""
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
    unsure = cancellation(expected.limits, program, rtol)
    assert (difference <= step + unsure).all()
    assert np.count_nonzero(difference > unsure) <= max((1 - LEAST_EQUAL) * difference.size, 2)


def cancellation(limits, program, rtol):
    """How uncertain a value is, (n, K, 1, 1), where products with a soft mask are scaled between two near limits.

    Such a product is known to ``rtol``, and ``(x - lo) / (hi - lo)`` magnifies that by ``lo / (hi - lo)``: of pixels
    that all have one value nothing is left in float32 but the rounding of their mask. Raw pixels are exact.
    """
    unsure = np.zeros((len(limits), program.n_planes, 1, 1))
    if program.recipe.cut == "before" and program.recipe.apply_masks and program.recipe.normalization == "quantile":
        lo, hi = np.moveaxis(limits, 2, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            magnified = np.where(hi > lo, np.minimum(rtol * np.abs(limits).max(axis=2) / (hi - lo), 1), 0)
        unsure[:, len(program.stored) :, 0, 0] = magnified
    return unsure
