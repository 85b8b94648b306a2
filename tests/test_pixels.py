import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made.slides import as_slide, small_slide

from gpu_extract import InputError, Recipe, pixels
from gpu_extract.pixels import check_finite, image_quantiles, slide_limits
from gpu_extract.sources import open_image


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "float16", "float32", "float64"])
@pytest.mark.parametrize("strip", [100, 1 << 22])
def test_quantiles_of_an_image_equal_those_of_numpy(monkeypatch, dtype, strip):
    monkeypatch.setattr(pixels, "STRIP_PIXELS", strip)
    image = small_slide(1, dtype=dtype)[0]
    image[1] = image[1] > 100
    if np.dtype(dtype).kind != "u":
        image[2] = -image[2]
    for q in [(0.001, 0.999), (0.0, 1.0), (0.25, 0.5)]:
        found = image_quantiles([open_image(image)], q)
        assert (found == np.quantile(image.astype(np.float64), q, axis=(1, 2)).T).all()


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=30), st.floats(0, 0.5), st.floats(0.5, 1))
@settings(deadline=None)
def test_quantiles_of_any_pixels(values, lower, upper):
    image = np.array(values, np.uint32).reshape(1, 1, -1)
    expected = np.quantile(image.astype(np.float64), (lower, upper))
    assert (image_quantiles([open_image(image)], (lower, upper))[0] == expected).all()


def test_limits_of_each_slide_and_of_the_dataset():
    images = [small_slide(seed)[0] for seed in (1, 2)]
    images[1] //= 2
    slides = [as_slide(image, *small_slide(1)[1:]) for image in images]

    def limits(scope):
        return slide_limits(slides, Recipe(quantile_scope=scope).program(("nucleus",), 3, np.dtype(np.uint16)))

    q = (0.001, 0.999)
    for found, image in zip(limits("slide"), images, strict=True):
        assert (found == np.quantile(image.astype(float), q, axis=(1, 2)).T).all()
    both = np.quantile(np.stack(images, axis=1).astype(float), q, axis=(1, 2, 3)).T
    assert all((found == both).all() for found in limits("dataset"))
    assert limits("cell") == [None, None]


def test_nan_and_infinite_pixels_are_counted_and_located(monkeypatch):
    monkeypatch.setattr(pixels, "STRIP_PIXELS", 110 * 20)
    image, nucleus, _ = small_slide(3, dtype=np.float32)
    check_finite(as_slide(image, nucleus))
    image[1, 70, 5], image[1, 80, 6], image[2, 0, 0] = np.nan, np.inf, -np.inf
    with pytest.raises(InputError) as caught:
        check_finite(as_slide(image, nucleus))
    message = str(caught.value)
    assert "2 in channel ch1, the first at y 70, x 5; 1 in channel ch2, the first at y 0, x 0" in message
    assert "nonfinite" in message
    image[~np.isfinite(image)] = 0
    dirty = image.copy()
    dirty[image == 0] = np.nan
    assert (image_quantiles([open_image(dirty)], (0.0, 0.5)) == image_quantiles([open_image(image)], (0.0, 0.5))).all()
