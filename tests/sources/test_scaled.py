"""Slides resampled to another pixel size, compared with scikit-image, NumPy and a plain sum over areas."""

import json
from dataclasses import replace

import anndata
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made.slides import small_slide
from skimage.transform import downscale_local_mean

import gpu_extract as gx
from gpu_extract.errors import InputError
from gpu_extract.sources import open_image, open_labels, open_slide
from gpu_extract.sources import scaled as module
from gpu_extract.sources.physical import rescaled
from gpu_extract.sources.scaled import ScaledLabels, ScaledRaster, scaled_length

RNG = np.random.default_rng(5)


def whole(raster):
    return raster.read(0, 0, *raster.shape[1:])


def rounded(values, dtype):
    return (np.rint(values) if np.dtype(dtype).kind in "iu" else values).astype(dtype)


def pixels(dtype, shape=(2, 36, 60), rng=RNG):
    if np.dtype(dtype).kind == "f":
        return rng.normal(100, 30, shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype, endpoint=True)


DTYPES = ["u1", "u2", "i2", "u4", "f2", "f4", "f8"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factors", [(2, 2), (3, 4), (1, 5), (12, 1), (36, 60)])
def test_downsampling_by_integers_equals_local_mean_of_scikit_image(dtype, factors):
    image = pixels(dtype)
    raster = ScaledRaster(open_image(image), (float(factors[0]), float(factors[1])))
    expected = np.stack([downscale_local_mean(plane.astype(np.float64), factors) for plane in image])
    assert raster.dtype == np.dtype(dtype)
    if np.dtype(dtype).kind in "iu":
        np.testing.assert_array_equal(whole(raster), rounded(expected, dtype))
    else:
        np.testing.assert_allclose(whole(raster), expected.astype(dtype), rtol=max(2 * np.finfo(dtype).eps, 1e-13))


def test_halves_are_rounded_to_even():
    image = np.array([[[0, 1, 1, 2, 2, 3]]], np.uint8)
    assert whole(ScaledRaster(open_image(image), (1.0, 2.0))).tolist() == [[[0, 2, 2]]]


def area_mean(row, scale):
    """Return the mean of a row over the area of each new pixel, as a sum over overlaps."""
    means = []
    for j in range(scaled_length(len(row), scale)):
        low, high = j * scale, min((j + 1) * scale, len(row))
        overlaps = [max(min(i + 1, high) - max(i, low), 0) for i in range(len(row))]
        means.append(np.dot(overlaps, row) / (high - low))
    return np.array(means)


@pytest.mark.parametrize("scale", [1.3, 1.5, 2.0, 2.49999, np.pi, 7.7, 50.0])
def test_downsampling_is_the_mean_over_areas(scale):
    row = RNG.normal(0, 1, 53)
    along_x = whole(ScaledRaster(open_image(row[np.newaxis]), (1.0, scale)))[0, 0]
    along_y = whole(ScaledRaster(open_image(row[:, np.newaxis]), (scale, 1.0)))[0, :, 0]
    np.testing.assert_allclose(along_x, area_mean(row, scale), rtol=1e-12, atol=1e-13)
    np.testing.assert_array_equal(along_x, along_y)


@pytest.mark.parametrize("scale", [0.1, 1 / 3, 0.5, 0.77, 0.999])
def test_upsampling_is_linear_interpolation_between_centers(scale):
    row = RNG.normal(0, 1, 23)
    grown = whole(ScaledRaster(open_image(row[np.newaxis]), (1.0, scale)))[0, 0]
    centers = (np.arange(len(grown)) + 0.5) * scale - 0.5
    np.testing.assert_allclose(grown, np.interp(centers, np.arange(23), row), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("dtype", "scale"), [("u2", (0.4, 0.7)), ("u1", (0.5, 0.5)), ("f4", (0.3, 1.0))])
def test_upsampling_in_two_dimensions_equals_map_coordinates(dtype, scale):
    from scipy.ndimage import map_coordinates

    image = pixels(dtype, (1, 14, 19))
    raster = ScaledRaster(open_image(image), scale)
    y, x = (
        np.clip((np.arange(n) + 0.5) * s - 0.5, 0, length - 1)
        for n, s, length in zip(raster.shape[1:], scale, (14, 19), strict=True)
    )
    expected = map_coordinates(image[0].astype(np.float64), np.meshgrid(y, x, indexing="ij"), order=1, mode="nearest")
    off = np.abs(whole(raster)[0].astype(np.float64) - rounded(expected, dtype))
    assert off.max() <= (
        1 if np.dtype(dtype).kind in "iu" else 1e-4
    )  # a half may round differently with the last bit of SciPy
    assert (off > 0).mean() < 0.02


SCALES = st.floats(0.05, 20) | st.sampled_from([0.25, 0.5, 1.0, 2.0, 3.0, 5.0])


@settings(max_examples=150, deadline=None)
@given(
    scale=st.tuples(SCALES, SCALES),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    dtype=st.sampled_from(DTYPES),
    max_values=st.sampled_from([1, 50, 1 << 22]),
    corners=st.tuples(*[st.floats(0, 1)] * 4),
    seed=st.integers(0, 99),
)
def test_values_do_not_depend_on_the_box(scale, size, dtype, max_values, corners, seed):
    rng = np.random.default_rng(seed)
    image = pixels(dtype, (2, *size), rng)
    labels = rng.integers(0, 2**64, size, np.uint64)
    with pytest.MonkeyPatch.context() as patch:
        expected = [
            whole(ScaledRaster(open_image(image), scale)),
            whole(ScaledLabels(open_labels(labels, "nucleus"), scale)),
        ]
        patch.setattr(module, "MAX_VALUES", max_values)
        H, W = expected[0].shape[1:]
        y0, y1 = sorted(int(corner * H) for corner in corners[:2])
        x0, x1 = sorted(int(corner * W) for corner in corners[2:])
        box = (y0, x0, max(y1, y0 + 1) if y0 < H else H, max(x1, x0 + 1) if x0 < W else W)
        for raster, values in (
            (ScaledRaster(open_image(image), scale), expected[0]),
            (ScaledLabels(open_labels(labels, "nucleus"), scale), expected[1]),
        ):
            np.testing.assert_array_equal(raster.read(*box), values[:, box[0] : box[2], box[1] : box[3]])


@settings(max_examples=60, deadline=None)
@given(scale=st.tuples(SCALES, SCALES), size=st.tuples(st.integers(1, 40), st.integers(1, 40)), seed=st.integers(0, 99))
def test_ids_never_mix(scale, size, seed):
    labels = np.random.default_rng(seed).integers(2**60, 2**64, size, np.uint64)
    raster = ScaledLabels(open_labels(labels, "nucleus"), scale)
    y, x = (
        np.minimum(np.floor((np.arange(n) + 0.5) * s), length - 1).astype(int)
        for n, s, length in zip(raster.shape[1:], scale, size, strict=True)
    )
    np.testing.assert_array_equal(whole(raster)[0], labels[np.ix_(y, x)])
    assert raster.dtype == np.uint64


def test_resampling_does_not_move_the_field():
    """A bright block keeps its center in um and its integral."""
    image = np.zeros((1, 60, 80))
    image[0, 10:20, 30:50] = 7
    for scale in (0.5, 1.7, 2.0, 5.0):
        values = whole(ScaledRaster(open_image(image), (scale, scale)))[0]
        y, x = ((np.arange(n) + 0.5) * scale for n in values.shape)
        assert values.sum() * scale**2 == pytest.approx(image.sum(), rel=1e-9)
        assert (values.sum(axis=1) * y).sum() / values.sum() == pytest.approx(15, abs=0.02 * scale)
        assert (values.sum(axis=0) * x).sum() / values.sum() == pytest.approx(40, abs=0.02 * scale)


def test_only_the_needed_region_is_read():
    class Recorded:
        shape, dtype, ndim = (1, 1000, 1000), np.dtype("u2"), 3
        keys = []  # noqa: RUF012

        def __getitem__(self, key):
            self.keys.append(key)
            return np.zeros((1, 1000, 1000), np.uint16)[key]

    ScaledRaster(open_image(Recorded()), (4.0, 2.5)).read(10, 20, 12, 24)
    assert Recorded.keys == [(Ellipsis, slice(40, 48), slice(50, 60))]


def test_nan_spreads_only_to_pixels_that_contain_it():
    image = np.ones((1, 6, 6))
    image[0, 2, 3] = np.nan
    shrunk = whole(ScaledRaster(open_image(image), (2.0, 2.0)))[0]
    assert np.argwhere(np.isnan(shrunk)).tolist() == [[1, 1]]
    grown = whole(ScaledRaster(open_image(image), (1.0, 0.5)))[0]
    assert np.argwhere(np.isnan(grown)).tolist() == [[2, 5], [2, 6], [2, 7], [2, 8]]


def test_the_error_for_nan_gives_the_scale():
    image = np.ones((1, 60, 60), np.float32)
    image[0, 21, 31] = np.nan
    labels = np.zeros((60, 60), np.uint8)
    labels[10:50, 10:50] = 1
    with pytest.raises(InputError, match=r"infinite as resampled, 4 of its pixels to one \(1 in .* at y 5, x 7\)"):
        list(gx.iter_cells(image, nucleus=labels, tile_size=8, pixel_size=0.25, scale=1.0, device="cpu"))


# Slides


IMAGE, NUCLEUS, CYTOSOL = small_slide(3, size=(180, 240))


def test_a_slide_with_the_wanted_pixel_size_is_unchanged():
    slide = open_slide(IMAGE, nucleus=NUCLEUS)
    known = replace(slide, pixel_size=(0.1 + 0.2, 0.3))
    assert rescaled(known, 0.3) is known


def test_a_scale_close_to_an_integer_is_rounded():
    slide = replace(open_slide(IMAGE, nucleus=NUCLEUS), pixel_size=(0.1, 0.6))
    assert rescaled(slide, 0.3).scale == (3.0, 0.5)
    assert rescaled(slide, 0.3).pixel_size == (0.3, 0.3)
    assert rescaled(slide, 0.3).size == (60, 480)


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_extraction_at_a_scale_equals_that_of_the_resampled_slide(tmp_path, device):
    options = {"tile_size": 24, "device": device}
    report = gx.extract(
        IMAGE,
        nucleus=NUCLEUS,
        cytosol=CYTOSOL,
        output=tmp_path / "a.h5sc",
        pixel_size=(0.5, 0.25),
        scale=0.6,
        **options,
    )
    scale = (0.6 / 0.5, 0.6 / 0.25)
    image = whole(ScaledRaster(open_image(IMAGE), scale))
    nucleus, cytosol = (whole(ScaledLabels(open_labels(plane, "nucleus"), scale))[0] for plane in (NUCLEUS, CYTOSOL))
    alone = gx.extract(image, nucleus=nucleus, cytosol=cytosol, output=tmp_path / "b.h5sc", **options)
    with gx.open_cells(report.path) as ours, gx.open_cells(alone.path) as expected:
        assert len(ours) > 5
        np.testing.assert_array_equal(ours.read(range(len(ours))), expected.read(range(len(expected))))
        np.testing.assert_array_equal(ours.obs.to_numpy(), expected.obs.to_numpy())


def test_centers_in_the_file_map_back_to_source_pixels(tmp_path):
    y, x = np.mgrid[:300, :400]
    labels = np.zeros((300, 400), np.uint16)
    for cell_id, (cy, cx) in enumerate(((40.0, 60.0), (150.5, 200.0), (222.0, 333.0)), 1):
        labels[(y - cy) ** 2 + (x - cx) ** 2 < 20**2] = cell_id
    image = RNG.integers(0, 999, (1, 300, 400), np.uint16)
    options = {"nucleus": labels, "tile_size": 24, "n_cells": 3}
    whole_size = gx.extract(image, output=tmp_path / "a.h5sc", **options)
    report = gx.extract(image, output=tmp_path / "b.h5sc", pixel_size=0.2, scale=0.5, **options)
    table = anndata.read_h5ad(report.path)
    (source,) = json.loads(table.uns["gpu_extract"]["sources"])
    assert (source["pixel_size"], source["scale"]) == ([0.5, 0.5], [2.5, 2.5])
    centers = table.obs[["center_y", "center_x"]].to_numpy()
    back = (centers + 0.5) * np.array(source["scale"]) - 0.5
    expected = anndata.read_h5ad(whole_size.path).obs[["center_y", "center_x"]].to_numpy()
    assert np.abs(back - expected).max() <= 2.5 / 2 + 0.5  # half a pixel of each


def test_a_cell_without_pixels_after_resampling_is_dropped(tmp_path):
    labels = np.zeros((80, 80), np.uint64)
    labels[20:60, 20:60] = 2**40
    labels[4, 4] = 3  # between the centers of the new pixels, which are at 2, 6, ...
    labels[6, 6] = 7  # at a center, unless the plane is mirrored
    labels[0:12, 60:70] = 5  # touches the border
    slides = [{"image": np.ones((1, 80, 80), np.uint8), "nucleus": plane} for plane in (labels, labels[::-1])]
    report = gx.extract_many(slides, output=tmp_path / "a.h5sc", pixel_size=0.25, scale=1.0, tile_size=12)
    assert report.n_cells == 3
    touches, vanished = "mask touches the slide's border", "no pixel left after resampling"
    assert report.dropped == {vanished: 3, touches: 2}
    table = anndata.read_h5ad(report.path).uns["gpu_extract"]["dropped"]
    rows = list(zip(table["slide"].cat.codes, table["cell_id"], table["reason"], strict=True))
    assert rows == [(0, 3, vanished), (0, 5, touches), (1, 3, vanished), (1, 5, touches), (1, 7, vanished)]


def test_slides_of_several_pixel_sizes_are_brought_to_one():
    """One field at two magnifications gives the same cells."""
    fine = {
        "image": np.kron(IMAGE, np.ones((1, 2, 2), np.uint16)),
        "nucleus": np.kron(NUCLEUS, np.ones((2, 2), np.uint32)),
    }
    slides = [{"image": IMAGE, "nucleus": NUCLEUS, "pixel_size": 0.6}, fine | {"pixel_size": 0.3}]
    plan = gx.plan_many(slides, scale=0.6, tile_size=24)
    first, second = (plan.cells.slide == 0), (plan.cells.slide == 1)
    np.testing.assert_array_equal(plan.cells.ids[first], plan.cells.ids[second])
    np.testing.assert_array_equal(plan.cells.centers[first], plan.cells.centers[second])
    windows = [slide.read((0, 0, *slide.size)) for slide in plan.slides]
    np.testing.assert_array_equal(windows[0].image, windows[1].image)
    np.testing.assert_array_equal(windows[0].labels[0], windows[1].labels[0])


def test_a_label_of_another_size_is_an_error_before_resampling():
    with pytest.raises(InputError, match=r"looks like a pyramid level, 2 times smaller"):
        gx.plan(IMAGE, nucleus=NUCLEUS[::2, ::2], pixel_size=1.0, scale=2.0)
