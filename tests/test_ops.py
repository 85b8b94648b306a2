"""The public primitives on NumPy arrays, compared to the reference tile by tile, and their errors."""

import numpy as np
import pytest
import scipy.ndimage
from made.masks import IMAGE_TYPES, SIZES, awkward_masks, pixels

from gpu_extract import InputError, ops
from gpu_extract.backends.reference import disk


def filled(masks):
    return np.stack([scipy.ndimage.binary_fill_holes(mask) for mask in masks])


def dilated(masks, radius):
    return np.stack([scipy.ndimage.binary_dilation(mask, disk(radius)) for mask in masks])


def blurred(masks, sigma):
    return np.stack([scipy.ndimage.gaussian_filter(m.astype(float), sigma, mode="nearest", truncate=4) for m in masks])


@pytest.mark.parametrize("size", SIZES)
def test_fill_holes_processes_tiles_independently(size):
    masks = awkward_masks(size)
    assert np.array_equal(ops.fill_holes(masks), filled(masks))


def test_adjacent_tiles_do_not_close_a_ring():
    masks = np.zeros((3, 9, 9), bool)
    masks[::2] = True
    masks[1, 2:7, 2:7] = True
    masks[1, 4, 4:] = False
    assert np.array_equal(ops.fill_holes(masks)[1], masks[1])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("radius", [0, 1, 2, 6, 33])
def test_dilate_processes_tiles_independently(size, radius):
    masks = awkward_masks(size) & (np.random.default_rng(1).random((size, size)) < 0.1)
    assert np.array_equal(ops.dilate(masks, radius), dilated(masks, radius))


def test_the_largest_disk_covers_a_tile():
    mask = np.zeros((1, 40, 40), bool)
    mask[0, 0, 0] = True
    assert ops.dilate(mask, 512).all()
    assert not ops.dilate(~mask & mask, 512).any()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sigma", [0, 0.1, 1, 2.5, 20])
def test_gaussian_blur_processes_tiles_independently(size, sigma):
    masks = awkward_masks(size)
    soft = ops.gaussian_blur(masks, sigma)
    assert soft.dtype == np.float32
    assert np.array_equal(soft, blurred(masks, sigma).astype(np.float32))


def test_gaussian_blur_of_floats():
    images = pixels("float32", (3, 20, 20))
    assert np.array_equal(ops.gaussian_blur(images, 1.5), blurred(images, 1.5).astype(np.float32))


@pytest.mark.parametrize("function", [ops.fill_holes, lambda masks: ops.dilate(masks, 2)])
def test_masks_keep_their_type_and_become_0_or_1(function):
    masks = awkward_masks(33)
    expected = function(masks)
    assert expected.dtype == bool
    bytes_ = function(masks * np.uint8(255))
    assert bytes_.dtype == np.uint8
    assert np.array_equal(bytes_, expected.astype(np.uint8))


def test_any_nonzero_byte_is_inside():
    masks = awkward_masks(33)
    assert np.array_equal(ops.gaussian_blur(masks * np.uint8(7), 1), ops.gaussian_blur(masks, 1))
    images = pixels("uint16", masks.shape)
    assert np.array_equal(ops.apply_mask(images, masks * np.uint8(7)), ops.apply_mask(images, masks))


@pytest.mark.parametrize("dtype", IMAGE_TYPES)
def test_a_binary_mask_chooses_pixels(dtype):
    masks = awkward_masks(17)
    images = pixels(dtype, masks.shape)
    if images.dtype.kind == "f":
        images[:, 3, 3] = np.nan
    cut = ops.apply_mask(images, masks)
    assert cut.dtype == images.dtype
    assert np.array_equal(cut[masks], images[masks], equal_nan=True)
    assert (cut[~masks] == 0).all()


@pytest.mark.parametrize("dtype", IMAGE_TYPES)
def test_a_soft_mask_is_a_factor(dtype):
    soft = ops.gaussian_blur(awkward_masks(17), 1)
    images = pixels(dtype, soft.shape)
    cut = ops.apply_mask(images, soft)
    assert cut.dtype == (np.float64 if dtype in ("uint32", "float64") else np.float32)
    assert np.array_equal(cut, images.astype(cut.dtype) * soft)


def test_one_mask_applies_to_all_channels_of_a_tile():
    masks = awkward_masks(17)
    images = pixels("uint16", (len(masks), 3, 17, 17))
    for mask in (masks, ops.gaussian_blur(masks, 1)):
        cut = ops.apply_mask(images, mask)
        for c in range(3):
            assert np.array_equal(cut[:, c], ops.apply_mask(images[:, c], mask))


@pytest.mark.parametrize("dtype", IMAGE_TYPES)
def test_normalize_clips_and_scales(dtype):
    images = pixels(dtype, (4, 17, 17))
    lower, upper = np.quantile(images.astype(float), [0.1, 0.9], axis=(1, 2))
    upper[2] = lower[2]
    scaled = ops.normalize(images, lower, upper)
    assert scaled.dtype == (np.float64 if dtype in ("uint32", "float64") else np.float32)
    assert not scaled[2].any()
    for n in (0, 1, 3):
        expected = np.clip((images[n].astype(float) - lower[n]) / (upper[n] - lower[n]), 0, 1)
        assert np.array_equal(scaled[n], expected.astype(scaled.dtype))


def test_limits_broadcast_over_batch_axes():
    images = pixels("uint16", (4, 3, 8, 8))
    each = ops.normalize(images, np.zeros((4, 3)), np.tile([100.0, 2000, 60000], (4, 1)))
    assert np.array_equal(ops.normalize(images, 0, [100, 2000, 60000]), each)
    assert np.array_equal(ops.normalize(images[2, 1], 0, 2000), each[2, 1])


def test_a_nan_pixel_stays_nan():
    images = np.full((2, 3, 3), np.nan, np.float32)
    scaled = ops.normalize(images, 0, [1, 0])
    assert np.isnan(scaled[0]).all()
    assert not scaled[1].any()


def test_views_byte_orders_and_read_only_arrays_are_accepted():
    images = pixels("uint16", (5, 2, 16, 16))
    masks = awkward_masks(16)[:5]
    planes = np.repeat(masks[:, None], 2, axis=1)
    planes.flags.writeable = False
    assert np.array_equal(ops.fill_holes(planes[:, 1]), ops.fill_holes(masks))
    assert np.array_equal(ops.dilate(masks[:, ::-1, ::-1], 2), ops.dilate(masks, 2)[:, ::-1, ::-1])
    swapped = ops.apply_mask(images.astype(">u2")[:, 1], masks)
    assert swapped.dtype.isnative
    assert np.array_equal(swapped, ops.apply_mask(images[:, 1], masks))
    assert np.array_equal(ops.normalize(images.astype(">u2"), 0, 9), ops.normalize(images, 0, 9))


def test_arguments_are_not_changed():
    masks = awkward_masks(16)
    before = masks.copy()
    for result in (
        ops.fill_holes(masks),
        ops.dilate(masks, 0),
        ops.dilate(masks, 3),
        ops.apply_mask(masks * 1.0, masks),
    ):
        assert not np.shares_memory(result, masks)
    soft = masks.astype(np.float32)
    assert not np.shares_memory(ops.gaussian_blur(soft, 0), soft)
    assert np.array_equal(masks, before)


def test_batch_axes():
    masks = awkward_masks(16)[:6]
    for function in (ops.fill_holes, lambda m: ops.dilate(m, 2), lambda m: ops.gaussian_blur(m, 1)):
        assert np.array_equal(function(masks.reshape(2, 3, 16, 16)), function(masks).reshape(2, 3, 16, 16))
        assert np.array_equal(function(masks[4]), function(masks)[4])


@pytest.mark.parametrize("shape", [(0, 8, 8), (0, 3, 8, 8), (3, 0, 8, 8)])
def test_an_empty_stack(shape):
    masks, images = np.zeros(shape, bool), np.zeros(shape, np.uint16)
    assert ops.fill_holes(masks).shape == shape
    assert ops.dilate(masks, 2).shape == shape
    assert ops.gaussian_blur(masks, 1).shape == shape
    assert ops.apply_mask(images, masks).shape == shape
    assert ops.apply_mask(images, masks.astype(np.float32)).shape == shape
    assert ops.normalize(images, 0, 1).shape == shape


MASKS = np.zeros((2, 8, 8), bool)
IMAGES = np.zeros((2, 8, 8), np.uint16)
REFUSED = {
    "masks is a list; it must be a NumPy or CuPy array": lambda: ops.fill_holes([[1]]),
    "masks are of type float64; they must be bool or uint8: convert": lambda: ops.fill_holes(MASKS * 1.0),
    "masks are of type int64; .* bool or uint8 or float32": lambda: ops.gaussian_blur(MASKS * 1, 1),
    r"masks have the shape \(2, 8, 7\); it must be \(..., S, S\)": lambda: ops.dilate(MASKS[..., :7], 1),
    r"masks have the shape \(8,\)": lambda: ops.dilate(MASKS[0, 0], 1),
    r"masks have the shape \(2, 0, 0\)": lambda: ops.fill_holes(MASKS[:, :0, :0]),
    r"\(1, 4097, 4097\); .* S from 1 to 4096": lambda: ops.fill_holes(np.zeros((1, 4097, 4097), bool)),
    "masks are 1073741825 tiles": lambda: ops.fill_holes(np.broadcast_to(False, (2**30 + 1, 1, 1))),
    "radius is -1; it must be a whole number of pixels from 0 to 512": lambda: ops.dilate(MASKS, -1),
    "radius is 513;": lambda: ops.dilate(MASKS, 513),
    "radius is 1.5;": lambda: ops.dilate(MASKS, 1.5),
    "radius is True;": lambda: ops.dilate(MASKS, True),
    "sigma is -0.5; it must be a number of pixels from 0 to 256": lambda: ops.gaussian_blur(MASKS, -0.5),
    "sigma is nan;": lambda: ops.gaussian_blur(MASKS, float("nan")),
    "sigma is '1';": lambda: ops.gaussian_blur(MASKS, "1"),
    "images are of type int32;": lambda: ops.apply_mask(IMAGES.astype(np.int32), MASKS),
    "masks are of type uint16;": lambda: ops.apply_mask(IMAGES, IMAGES),
    r"masks \(1, 8, 8\) do not fit images \(2, 8, 8\)": lambda: ops.apply_mask(IMAGES, MASKS[:1]),
    r"masks \(2, 4, 4\) do not fit": lambda: ops.apply_mask(IMAGES, MASKS[:, :4, :4]),
    r"masks \(1, 2, 8, 8\) do not fit": lambda: ops.apply_mask(IMAGES, MASKS[None]),
    r"lower has the shape \(3,\); it must be a number or broadcast to \(2,\)": lambda: ops.normalize(
        IMAGES, [0] * 3, 1
    ),
    r"lower has the shape \(2, 1\)": lambda: ops.normalize(IMAGES, [[0], [0]], 1),
    "upper is 'high'; it must be a number": lambda: ops.normalize(IMAGES, 0, "high"),
    "upper is 1j;": lambda: ops.normalize(IMAGES, 0, 1j),
    "upper is not finite for 2 of 2 tiles": lambda: ops.normalize(IMAGES, 0, np.inf),
    "lower is above upper for 1 of 2 tiles; exchange": lambda: ops.normalize(IMAGES, [0, 2], 1),
    "too close or too far apart for float32 for 1 of 2": lambda: ops.normalize(IMAGES, 0, [1, 1e-40]),
    "upper - lower must be 0, or from 1.2e-38 to 3.4e[+]38": lambda: ops.normalize(IMAGES, -3e38, 3e38),
    "too far apart for float64": lambda: ops.normalize(IMAGES * 1.0, -1.7e308, 1.7e308),
}


@pytest.mark.parametrize("message", REFUSED)
def test_invalid_arguments_raise(message):
    with pytest.raises(InputError, match=message) as error:
        REFUSED[message]()
    assert "\n" not in str(error.value)
