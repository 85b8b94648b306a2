import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from made.slides import small_slide
from skimage.measure import label

from gpu_extract.components import LargestComponents, find_components
from gpu_extract.sources import open_labels


def largest_by_scikit_image(labels):
    """Return each label's largest 8-connected component, ties to the first in row-major order, and {id: number}."""
    kept, counts = np.zeros_like(labels), {}
    for cell_id in np.unique(labels[labels != 0]):
        components = label(labels == cell_id, connectivity=2)  # numbered in row-major order
        counts[int(cell_id)] = int(components.max())
        kept[components == np.bincount(components.ravel())[1:].argmax() + 1] = cell_id
    return kept, counts


def check(labels):
    raster = open_labels(labels, "nucleus")
    components = find_components(raster)
    expected, counts = largest_by_scikit_image(labels)
    assert dict(zip(components.ids.tolist(), components.counts.tolist(), strict=True)) == {
        cell_id: n for cell_id, n in counts.items() if n > 1
    }
    kept = LargestComponents(raster, components)
    H, W = labels.shape
    np.testing.assert_array_equal(kept.read(0, 0, H, W)[0], expected)
    np.testing.assert_array_equal(kept.read(H // 3, W // 4, H, W - W // 4)[0], expected[H // 3 :, W // 4 : W - W // 4])


@given(
    arrays(
        np.uint64, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.sampled_from([0, 0, 1, 7, 2**64 - 1])
    )
)
@settings(deadline=None)
def test_components_equal_those_of_scikit_image(labels):
    check(labels)


@pytest.mark.parametrize("strip", [1, 300, 1 << 22])
def test_components_do_not_depend_on_the_strips(monkeypatch, strip):
    monkeypatch.setattr("gpu_extract.labels.STRIP_PIXELS", strip)
    _, _, cytosol = small_slide(5)
    check(cytosol)


def test_reading_does_not_change_the_labels_of_the_caller():
    labels = np.zeros((5, 9), np.uint32)
    labels[0, :3], labels[4, 5] = 3, 3
    raster = open_labels(labels, "nucleus")
    LargestComponents(raster, find_components(raster)).read(0, 0, 5, 9)
    assert labels[4, 5] == 3
