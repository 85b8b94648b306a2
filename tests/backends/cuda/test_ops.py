"""The CUDA primitives: the unmodified source, run on the CPU and compared to the NumPy implementation."""

from types import SimpleNamespace

import numpy as np
import pytest
from cuda_on_cpu import CpuModule, Launch, mutants, run_checked
from cuda_on_cpu.device import ShimGpu
from made.device_arrays import DeviceArray, on_gpu
from made.masks import IMAGE_TYPES, SIZES, awkward_masks, pixels

from gpu_extract import InputError, ops
from gpu_extract.backends.cuda import backend as cuda
from gpu_extract.backends.cuda import device
from gpu_extract.backends.cuda.source import kernel_source

# Sums of float32 products, at most (2 * 80 + 1)^2 of them. Measured: 2.4e-7 for masks.
BLUR_ATOL = 1e-6
# A subtraction, two roundings of its terms and a division in float32. Measured: 2.4e-7.
FLOAT32_RTOL = 5e-7
ORDERS = ("forward", "reverse", "shuffled")


class OtherDeviceArray(DeviceArray):
    __module__ = "cupy"
    device = SimpleNamespace(id=1)


@pytest.fixture
def run(monkeypatch):
    """Return a function that calls a function of `ops` with arrays on a device, and returns the result."""

    def call(function, *arguments, **gpu):
        stream = ShimGpu(**gpu).stream()
        monkeypatch.setattr(cuda, "device_of", lambda array: stream)
        given = [on_gpu(a) if isinstance(a, np.ndarray) and a.ndim > 1 else a for a in arguments]
        result = function(*given)
        stream.synchronize()
        return np.asarray(result)

    return call


def assert_equal(found, expected):
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert np.array_equal(found, expected)


def test_workspaces_in_global_memory_are_limited_by_bytes(run, monkeypatch):
    masks = awkward_masks(33)[:5]
    monkeypatch.setattr(device, "SCRATCH_NBYTES", 1)  # one block computes all tiles
    for function, arguments in ((ops.fill_holes, ()), (ops.dilate, (3,)), (ops.gaussian_blur, (2.0,))):
        found = run(function, masks, *arguments, shared_nbytes_limit=100)
        np.testing.assert_allclose(found, function(masks, *arguments), atol=BLUR_ATOL)


@pytest.mark.parametrize("size", SIZES)
def test_fill_holes(run, size):
    masks = awkward_masks(size)
    assert_equal(run(ops.fill_holes, masks), ops.fill_holes(masks))


@pytest.mark.parametrize("radius", [0, 1, 2, 6, 33])
@pytest.mark.parametrize("size", SIZES)
def test_dilate(run, size, radius):
    masks = awkward_masks(size) & (np.random.default_rng(1).random((size, size)) < 0.1)
    assert_equal(run(ops.dilate, masks, radius), ops.dilate(masks, radius))


@pytest.mark.parametrize("sigma", [0, 0.1, 1, 2.5])
@pytest.mark.parametrize("size", SIZES)
def test_gaussian_blur(run, size, sigma):
    masks = awkward_masks(size)
    soft = run(ops.gaussian_blur, masks, sigma)
    assert soft.dtype == np.float32
    np.testing.assert_allclose(soft, ops.gaussian_blur(masks, sigma), rtol=0, atol=BLUR_ATOL)


def test_gaussian_blur_wider_than_the_tile_and_of_floats(run):
    masks = awkward_masks(33)[:4]
    np.testing.assert_allclose(run(ops.gaussian_blur, masks, 20), ops.gaussian_blur(masks, 20), atol=BLUR_ATOL)
    images = np.random.default_rng(0).random((2, 33, 33), np.float32)
    np.testing.assert_allclose(run(ops.gaussian_blur, images, 1.5), ops.gaussian_blur(images, 1.5), atol=BLUR_ATOL)
    assert_equal(run(ops.gaussian_blur, images, 0), images)


@pytest.mark.parametrize("dtype", IMAGE_TYPES)
def test_apply_mask(run, dtype):
    masks = awkward_masks(33)
    images = pixels(dtype, masks.shape)
    assert_equal(run(ops.apply_mask, images, masks), ops.apply_mask(images, masks))
    soft = ops.gaussian_blur(masks, 1)
    # One product, rounded once. Products below 1e-38, which a GPU flushes to 0, do not occur here.
    assert_equal(run(ops.apply_mask, images, soft), ops.apply_mask(images, soft))


def test_one_mask_applies_to_all_channels_of_a_tile(run):
    masks = awkward_masks(16)
    images = pixels("uint16", (len(masks), 3, 16, 16))
    for mask in (masks, masks * np.uint8(255), ops.gaussian_blur(masks, 1)):
        assert_equal(run(ops.apply_mask, images, mask), ops.apply_mask(images, mask))


@pytest.mark.parametrize("dtype", IMAGE_TYPES)
def test_normalize(run, dtype):
    images = pixels(dtype, (4, 33, 33))
    if images.dtype.kind == "f":
        images[0, 3, 3] = np.nan
    lower, upper = np.nanquantile(images.astype(float), [0.1, 0.9], axis=(1, 2))
    upper[2] = lower[2]
    scaled, expected = run(ops.normalize, images, lower, upper), ops.normalize(images, lower, upper)
    assert scaled.dtype == expected.dtype
    rtol = FLOAT32_RTOL if scaled.dtype == np.float32 else 1e-15
    np.testing.assert_allclose(scaled, expected, rtol=rtol, atol=0)
    assert not scaled[2].any()


def test_normalize_is_precise_for_a_small_span_of_large_values(run):
    images = (1e6 + np.random.default_rng(0).random((1, 16, 16))).astype(np.float32)
    scaled, expected = run(ops.normalize, images, 1e6 + 0.01, 1e6 + 0.97), ops.normalize(images, 1e6 + 0.01, 1e6 + 0.97)
    np.testing.assert_allclose(scaled, expected, rtol=FLOAT32_RTOL, atol=0)


def test_limits_may_be_on_the_device(run):
    images = pixels("uint16", (4, 3, 16, 16))
    lower, upper = np.zeros((4, 3)), np.tile([100.0, 2000, 60000], (4, 1))
    np.testing.assert_allclose(
        run(ops.normalize, images, lower, upper), ops.normalize(images, lower, upper), rtol=FLOAT32_RTOL
    )


def test_tiles_too_large_for_shared_memory_use_global_memory(run):
    masks = awkward_masks(65)
    small = {"shared_nbytes_limit": 16, "multiprocessors": 1}  # two blocks loop over eleven tiles
    assert_equal(run(ops.fill_holes, masks, **small), ops.fill_holes(masks))
    assert_equal(run(ops.dilate, masks, 3, **small), ops.dilate(masks, 3))
    assert_equal(run(ops.gaussian_blur, masks, 1, **small), run(ops.gaussian_blur, masks, 1))


def test_the_order_of_threads_does_not_change_a_bit(run):
    masks = awkward_masks(45)
    images = pixels("float32", masks.shape)
    soft = ops.gaussian_blur(masks, 1)
    calls = [
        (ops.fill_holes, masks),
        (ops.dilate, masks, 4),
        (ops.gaussian_blur, masks, 1.7),
        (ops.gaussian_blur, images, 1.7),
        (ops.apply_mask, images, masks),
        (ops.apply_mask, images, soft),
        (ops.normalize, images, -30.0, 77.7),
    ]
    for call in calls:
        first, *others = (
            run(*call, order=order, shared_nbytes_limit=limit) for order in ORDERS for limit in (16, 1 << 16)
        )
        assert all(first.tobytes() == other.tobytes() for other in others)


def test_masks_keep_their_type(run):
    masks = awkward_masks(16)
    for function in (ops.fill_holes, lambda m: ops.dilate(m, 2)):
        assert run(function, masks).dtype == bool
        assert_equal(run(function, masks * np.uint8(255)), function(masks).astype(np.uint8))


@pytest.mark.parametrize("shape", [(0, 8, 8), (3, 0, 8, 8)])
def test_an_empty_stack_launches_nothing(monkeypatch, shape):
    gpu = ShimGpu()
    monkeypatch.setattr(cuda, "device_of", lambda array: gpu.stream())
    masks, images = on_gpu(np.zeros(shape, bool)), on_gpu(np.zeros(shape, np.uint16))
    for result in (
        ops.fill_holes(masks),
        ops.dilate(masks, 2),
        ops.gaussian_blur(masks, 1),
        ops.apply_mask(images, masks),
        ops.apply_mask(images, masks.astype(np.float32)),
        ops.normalize(images, 0, 1),
    ):
        assert result.shape == shape
    assert not gpu.launched


MASKS, IMAGES = on_gpu(np.zeros((2, 8, 8), bool)), on_gpu(np.zeros((2, 8, 8), np.uint16))
REFUSED = {
    "masks are of type int32": lambda: ops.fill_holes(MASKS.astype(np.int32)),
    r"masks have the shape \(2, 8, 7\)": lambda: ops.fill_holes(on_gpu(MASKS[..., 1:])),
    r"not C-contiguous; pass cupy.ascontiguousarray\(masks\)": lambda: ops.fill_holes(MASKS[:, ::-1]),
    r"not C-contiguous; pass cupy.ascontiguousarray\(images\)": lambda: ops.normalize(IMAGES[:, ::-1], 0, 1),
    "images are on GPU 0 and masks on the host": lambda: ops.apply_mask(IMAGES, np.asarray(MASKS)),
    "images are on the host and masks on GPU 0": lambda: ops.apply_mask(np.asarray(IMAGES), MASKS),
    "images are on GPU 0 and masks on GPU 1": lambda: ops.apply_mask(IMAGES, MASKS.view(OtherDeviceArray)),
    "radius is 600": lambda: ops.dilate(MASKS, 600),
    "sigma is 300": lambda: ops.gaussian_blur(MASKS, 300),
    "lower is above upper": lambda: ops.normalize(IMAGES, 1, 0),
}


@pytest.mark.parametrize("message", REFUSED)
def test_wrong_arguments_raise_before_the_device_is_used(monkeypatch, message):
    monkeypatch.setattr(cuda, "device_of", lambda array: pytest.fail("the device was asked for"))
    with pytest.raises(InputError, match=message):
        REFUSED[message]()


def launches(size=33):
    """Return a launch of each kind of kernel, in shared and in global memory."""
    masks = awkward_masks(size).astype(np.uint8)
    n, S = np.int32(len(masks)), np.int32(size)
    words = 4 * size * ((size + 31) // 32)
    weights = np.array([0.4, 0.2, 0.1], np.float32)
    images = pixels("uint16", masks.shape)
    none = np.zeros(1, np.uint8), np.uint64(0)

    def out(dtype):
        return np.zeros(masks.shape, dtype)

    def scratch(nbytes):
        return np.zeros(2 * nbytes, np.uint8), np.uint64(nbytes)

    def launch(name, *args, shared=0):
        return Launch(name, (2,), (256,), args, shared)

    return [
        launch("fill_holes_tiles", masks, n, S, *none, out(np.uint8), shared=3 * words),
        launch("fill_holes_tiles", masks, n, S, *scratch(3 * words), out(np.uint8)),
        launch("blur_tiles<u8>", masks, n, S, weights, np.int32(2), *scratch(32 * size), out(np.float32)),
        launch("dilate_tiles", masks, n, S, np.int32(3), *none, out(np.uint8), shared=2 * words),
        launch("blur_tiles<u8>", masks, n, S, weights, np.int32(2), *none, out(np.float32), shared=32 * size),
        launch("apply_mask_tiles<u16>", images, masks, n, S, np.int32(1), out(np.uint16)),
        launch("multiply_tiles<u16>", images, masks.astype(np.float32), n, S, np.int32(1), out(np.float32)),
        launch("normalize_tiles<u16>", images, np.zeros(n), np.ones(n), n, S, out(np.float32)),
    ]


def names(calls):
    return tuple(dict.fromkeys(call.name for call in calls))


@pytest.mark.parametrize("check", ["orders", "thread", "address"])
def test_no_races_and_no_invalid_memory_accesses(check):
    calls = launches()
    done = run_checked(kernel_source("ops"), names(calls), calls, check)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("number", [1, 2])
def test_each_block_has_its_own_part_of_the_scratch_memory(number):
    # Here blocks run one after the other; on a GPU they would overwrite each other's data.
    call = launches()[number]
    scratch = np.full_like(call.args[-3], 0xCD)
    module = CpuModule(kernel_source("ops"), [call.name])
    module.get_function(call.name)(call.grid, call.block, (*call.args[:-3], scratch, *call.args[-2:]))
    first, second = scratch.reshape(2, -1)
    assert (first != 0xCD).any()
    assert (second != 0xCD).any()
    assert len(scratch) == 2 * call.args[-2]


@pytest.mark.slow
def test_a_missing_barrier_is_caught():
    calls = launches()
    found = [(name, source) for name, source in mutants(kernel_source("ops")) if name.startswith("ops.cu")]
    assert len(found) == 3
    for name, source in found:
        for check in ("orders", "thread"):
            assert run_checked(source, names(calls), calls, check).returncode, (name, check)


@pytest.mark.slow
@pytest.mark.parametrize("size", [255, 512])
def test_large_tiles(run, size):
    masks = awkward_masks(size)
    assert_equal(run(ops.fill_holes, masks), ops.fill_holes(masks))
    assert_equal(run(ops.dilate, masks, 20), ops.dilate(masks, 20))
    np.testing.assert_allclose(run(ops.gaussian_blur, masks, 20), ops.gaussian_blur(masks, 20), atol=BLUR_ATOL)
