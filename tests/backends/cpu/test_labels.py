"""Compiled label statistics, compared to the NumPy implementation."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from made.slides import small_slide

from gpu_extract import LabelError, labels
from gpu_extract.backends.cpu import labels as cpu_labels
from gpu_extract.sources import open_labels


def assert_same(plane):
    raster = open_labels(plane, "nucleus")
    found, expected = cpu_labels.label_statistics(raster), labels.label_statistics(raster)
    for field in fields(expected):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other, field.name)


@given(
    arrays(
        st.sampled_from(["u1", "i2", "u4", "i8", "u8"]),
        st.tuples(st.integers(1, 9), st.integers(1, 9)),
        elements=st.integers(0, 100),
    )
)
@settings(deadline=None)
def test_any_plane(plane):
    assert_same(plane)


@pytest.mark.parametrize("strip", [1, 300, 1 << 22])
def test_strips(monkeypatch, strip):
    monkeypatch.setattr("gpu_extract.labels.STRIP_PIXELS", strip)
    assert_same(small_slide(3)[1])


def test_more_labels_than_the_table_holds_at_first():
    rng = np.random.default_rng(0)
    plane = rng.integers(0, 2**64 - 1, (300, 200), np.uint64, endpoint=True)  # nearly every pixel has its own label
    plane[0, :5] = 2**64 - 1, 2**63, 1, 0, 2**63
    assert len(np.unique(plane)) > 10 * cpu_labels.SMALLEST_TABLE
    assert_same(plane)
    assert_same(plane[:, ::2])  # not contiguous
    assert_same(np.arange(60_000, dtype=">u4").reshape(300, 200))  # consecutive ids


def test_a_plane_without_labels():
    assert_same(np.zeros((4, 5), np.uint16))


def test_negative_labels_raise():
    plane = np.zeros((6, 7), np.int32)
    plane[2, 3:5], plane[5, 6] = -4, -9
    with pytest.raises(LabelError, match=r"nuclei hold 3 negative pixels \(lowest -9\)"):
        cpu_labels.label_statistics(open_labels(plane, "nucleus"), "nuclei")
