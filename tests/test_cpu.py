"""The parts of the cpu backend by themselves; as a whole it is in test_backends."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_extract.backends import cpu_kernels


def test_half_bits_is_numpys_float16():
    rng = np.random.default_rng(7)
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    every = np.sort(every[np.isfinite(every)].astype(np.float64))
    ties = (every[1:] + every[:-1]) / 2
    near = np.nextafter(ties, np.inf)
    values = np.concatenate([every, ties, near, -near, rng.random(1 << 16), [65519.9, 65520.0, 1e300]])
    out = np.empty((1, len(values)), np.uint16)
    box = np.array([0, 0, 1, len(values)])
    cpu_kernels.store_plane(values[None], box, 0.0, 1.0, cpu_kernels.OUTPUT_HALF, out)
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    assert (out[0].view(np.float16) == expected).all()


@given(
    st.lists(st.integers(-50, 50), max_size=60),
    st.integers(0, 900),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from([1, 5, cpu_kernels.INSERTION_LIMIT]),
)
@settings(deadline=None)
def test_quantiles_are_numpys(values, zeros, lower, upper, repeats):
    values = np.array(values * repeats, np.float64) / 7
    everything = np.concatenate([values, np.zeros(zeros)])
    pool = np.empty(len(everything) + 1)
    pool[: len(values)] = values
    pair = cpu_kernels.quantile_pair(pool, len(values), zeros, lower, upper)
    assert pair == (tuple(np.quantile(everything, (lower, upper))) if len(everything) else (0.0, 0.0))
