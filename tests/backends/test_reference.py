"""The reference, compared to cases worked out by hand, SciPy and scikit-image; golden files are in test_golden."""

import numpy as np
import pytest
from made.slides import bare_batch, bare_window
from skimage.filters import gaussian
from skimage.morphology import disk as skimage_disk

from gpu_extract import Recipe
from gpu_extract.backends import reference
from gpu_extract.recipe import MaskSteps

ONE = ("nucleus",)
BOTH = ("nucleus", "cytosol")

# sigma 0.3 has three taps: W1, W0, W1.
RATIO = np.exp(-0.5 / 0.09)
W0, W1 = 1 / (1 + 2 * RATIO), RATIO / (1 + 2 * RATIO)
PLUS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool)


def seven(centre=None):
    plane = np.zeros((7, 7), np.int64 if centre is None else np.asarray(centre).dtype)
    if centre is not None:
        plane[2:5, 2:5] = centre
    return plane


def plus_recipe(**changes):
    return Recipe(tile_size=7, nucleus_dilation=1, nucleus_sigma=0.3, quantiles=(0.25, 0.75), border="keep").replace(
        **changes
    )


def extract_seven(labels, image, recipe, cell_id=1):
    program = recipe.program(ONE, 1, image.dtype)
    batch = bare_batch([cell_id], [(0, 0)], (7, 7))
    cells = reference.extract(bare_window(image[None], labels), batch, program)
    return cells.images[0], cells.limits[0]


def test_a_pixel_dilated_by_radius_1_is_a_plus_with_a_known_blur():
    labels = seven(np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]]))
    mask = reference.cell_mask(labels, 1, MaskSteps(0, True, 1, 0.3))
    assert (mask.dilated[2:5, 2:5] == PLUS).all()
    assert mask.dilated.sum() == 5
    soft = np.zeros((7, 7))
    soft[3, 3] = W0 * W0 + 4 * W0 * W1
    for y, x in ((2, 3), (4, 3), (3, 2), (3, 4)):
        soft[y, x] = W0 * W0 + W0 * W1 + 2 * W1 * W1
    for y, x in ((2, 2), (2, 4), (4, 2), (4, 4)):
        soft[y, x] = 2 * W0 * W1 + W1 * W1
    for y, x in ((1, 3), (5, 3), (3, 1), (3, 5)):
        soft[y, x] = W0 * W1
    for y, x in ((1, 2), (1, 4), (5, 2), (5, 4), (2, 1), (4, 1), (2, 5), (4, 5)):
        soft[y, x] = W1 * W1
    np.testing.assert_allclose(mask.soft, soft, rtol=1e-14, atol=1e-17)


def test_quantiles_normalization_and_mask_of_the_plus():
    labels = seven(np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]]))
    image = np.full((7, 7), 1000, np.uint16)  # bright background, which must not count
    image[2, 3], image[3, 2], image[3, 3], image[3, 4], image[4, 3] = 10, 20, 30, 40, 50
    tile, limits = extract_seven(labels, image, plus_recipe(output_dtype="float32"))
    assert limits.tolist() == [[20.0, 40.0]]  # ranks 1 and 3 of 5
    arm = W0 * W0 + W0 * W1 + 2 * W1 * W1
    assert tile[0].sum() == tile[0, 3, 3] == 1
    np.testing.assert_allclose(tile[1, 3, 3], 0.5 * (W0 * W0 + 4 * W0 * W1), rtol=1e-6)
    np.testing.assert_allclose(tile[1, [2, 3, 3, 4], [3, 2, 4, 3]], [0, 0, arm, arm], rtol=1e-6)
    np.testing.assert_allclose(tile[1, 2, 2], 2 * W0 * W1 + W1 * W1, rtol=1e-6)


def test_a_neighbour_is_masked_and_does_not_count():
    labels = seven(np.array([[0, 2, 0], [0, 1, 0], [0, 0, 0]]))
    image = np.full((7, 7), 1000, np.uint16)
    image[2, 3], image[3, 2], image[3, 3], image[3, 4], image[4, 3] = 10, 20, 30, 40, 50
    tile, limits = extract_seven(labels, image, plus_recipe())
    assert limits.tolist() == [[27.5, 42.5]]  # ranks 0.75 and 2.25 of 20, 30, 40, 50
    assert tile[1, 2, 3] == 0
    kept, limits = extract_seven(labels, image, plus_recipe(neighbours="keep", quantiles=(0.25, 0.7499)))
    assert limits[0, 0] == 20
    assert kept[1, 2, 2] > 0


def test_a_neighbour_in_a_hole_of_the_cell_belongs_to_the_cell():
    labels = seven(np.array([[1, 1, 1], [1, 2, 1], [1, 1, 1]]))
    image = np.arange(49, dtype=np.uint16).reshape(7, 7)
    tile, _ = extract_seven(labels, image, plus_recipe())
    assert tile[0, 2:5, 2:5].all()
    assert tile[1, 3, 3] > 0
    open_mask, _ = extract_seven(labels, image, plus_recipe(fill_nucleus=False))
    assert open_mask[0, 3, 3] == 0
    assert open_mask[1, 3, 3] == 0


def test_a_hole_is_background_not_4_connected_to_the_edge():
    ring = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]])  # open only diagonally
    assert reference.cell_mask(seven(ring), 1, MaskSteps(0, True, 0, 0)).filled[3, 3]
    at_edge = np.zeros((7, 7), np.int64)
    at_edge[0, 1], at_edge[1, 0], at_edge[1, 2], at_edge[2, 1] = 1, 1, 1, 1
    assert reference.cell_mask(at_edge, 1, MaskSteps(0, True, 0, 0)).filled[1, 1]
    at_edge[2, 1] = 0
    assert not reference.cell_mask(at_edge, 1, MaskSteps(0, True, 0, 0)).filled[1, 1]
    open_at_edge = at_edge[1:]  # the tile's edge itself is open
    assert not reference.cell_mask(open_at_edge, 1, MaskSteps(0, True, 0, 0)).filled[0, 1]


def test_a_flat_channel_is_0_or_undivided():
    labels = seven(np.ones((3, 3), np.int64))
    image = np.full((7, 7), 5, np.uint16)
    assert not extract_seven(labels, image, plus_recipe())[0][1].any()
    image[0, 0] = 9
    undivided = plus_recipe(flat_channel="undivided", apply_masks=False)
    tile, limits = extract_seven(labels, image, undivided)
    assert limits.tolist() == [[5, 5]]
    assert tile[1].sum() == tile[1, 0, 0] == 1


def test_pixels_outside_the_slide_are_0_and_do_not_count():
    labels = np.zeros((4, 5), np.uint32)
    labels[0, 1] = 3
    image = np.full((1, 4, 5), 7, np.uint16)
    image[0, 0, 1] = 9
    program = plus_recipe(neighbours="keep").program(ONE, 1, image.dtype)
    cells = reference.extract(bare_window(image, labels), bare_batch([3], [(-3, -2)], (4, 5)), program)
    assert cells.images[0, 0, 3, 3] == 1
    assert not cells.images[0, 1, :3].any()
    assert cells.limits[0].tolist() == [[7.0, 7.5]]  # of 7, 7, 7, 9: the upper arm is outside the slide


@pytest.mark.parametrize("radius", [0, 1, 2, 6])
def test_the_disk_equals_scikit_images(radius):
    assert (reference.disk(radius) == skimage_disk(radius)).all()


@pytest.mark.parametrize("sigma", [0.0, 1.0, 5.0])
def test_the_blur_equals_scikit_images(sigma):
    labels = (np.random.default_rng(0).random((41, 40)) < 0.3).astype(np.uint16)
    soft = reference.cell_mask(labels, 1, MaskSteps(0, False, 0, sigma)).soft
    expected = gaussian(labels == 1, sigma=sigma, preserve_range=True, mode="nearest") if sigma else labels
    assert (soft == expected).all()


def test_with_one_plane_the_nucleus_masks_all_channels():
    labels, image = seven(np.ones((3, 3), np.uint8)), np.arange(98).reshape(2, 7, 7).astype(np.uint8)
    recipe = Recipe(tile_size=7, nucleus_dilation=0, nucleus_sigma=0, cytosol_dilation=1, cytosol_sigma=0)
    program = recipe.program(ONE, 2, image.dtype)
    tile = reference.extract(bare_window(image, labels), bare_batch([1], [(0, 0)], (7, 7)), program).images[0]
    assert tile.shape == (3, 7, 7)
    assert (tile[1] > 0).sum() == 8  # the 9 pixels of the mask except the smallest
    assert (tile[2] > 0).sum() == 20  # the mask and its 12 edge neighbours except the smallest


def raw_case(dtype):
    rng = np.random.default_rng(1)
    labels = seven(np.array([[1, 1, 0], [1, 1, 2], [0, 2, 2]], np.uint16))
    low = -100 if np.dtype(dtype).kind in "if" else 0
    return labels, rng.integers(low, 100, (7, 7)).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "float16", "float32", "float64"])
def test_raw_values_keep_their_type_and_value(dtype):
    labels, image = raw_case(dtype)
    hard = plus_recipe(normalization="none", nucleus_dilation=0, nucleus_sigma=0)
    tile, limits = extract_seven(labels, image, hard)
    assert tile.dtype == dtype
    assert (tile[1] == image * (labels == 1)).all()
    assert limits.tolist() == [[0, 1]]
    whole, _ = extract_seven(labels, image, hard.replace(apply_masks=False))
    assert (whole[1] == image).all()


def test_raw_integers_under_a_soft_mask_are_rounded():
    labels, image = raw_case(np.int16)
    soft, _ = extract_seven(labels, image, plus_recipe(normalization="none", output_dtype="float32"))
    rounded, _ = extract_seven(labels, image, plus_recipe(normalization="none"))
    assert (rounded == np.rint(soft)).all()


@pytest.mark.parametrize(("changes", "limits"), [({"normalization": "dtype"}, (0, 65535)), ({}, (10, 60))])
def test_range_and_dtype(changes, limits):
    labels, image = raw_case(np.uint16)
    recipe = plus_recipe(normalization="range", value_range=(10, 60), apply_masks=False, output_dtype="float32")
    recipe = recipe.replace(**changes)
    program = recipe.program(ONE, 1, image.dtype)
    batch = bare_batch([1], [(0, 0)], (7, 7))
    cells = reference.extract(bare_window(image[None], labels), batch, program)
    lo, hi = limits
    assert cells.limits[0].tolist() == [[lo, hi]]
    np.testing.assert_allclose(cells.images[0, 1], np.clip((image - float(lo)) / (hi - lo), 0, 1), rtol=1e-6)


@pytest.mark.parametrize(("dtype", "top"), [("uint8", 255), ("uint16", 65535)])
def test_normalized_integers_use_the_full_range_of_their_type(dtype, top):
    labels, image = raw_case(np.uint16)
    tile, _ = extract_seven(labels, image, plus_recipe(output_dtype=dtype))
    exact, _ = extract_seven(labels, image, plus_recipe(output_dtype="float32"))
    assert tile.dtype == dtype
    assert tile[0].max() == top
    assert (abs(tile / top - exact) <= 0.5 / top + 1e-7).all()


def test_minmax_stretches_all_channels_but_the_exempt_one():
    rng = np.random.default_rng(2)
    labels, image = seven(np.ones((3, 3), np.uint8)), rng.integers(0, 99, (3, 7, 7)).astype(np.uint8)
    recipe = Recipe.preset("sparcspy").replace(tile_size=7, border="keep", cytosol_dilation=0, cytosol_sigma=1.0)
    cells = reference.extract(
        bare_window(image, labels), bare_batch([1], [(0, 0)], (7, 7)), recipe.program(ONE, 3, image.dtype)
    )
    tops = cells.images[0, 1:].max(axis=(1, 2))
    assert tops[0] == tops[2] == 1
    assert 0 < tops[1] < 1
