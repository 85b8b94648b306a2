"""The single kernels of the cpu backend; test_backends tests the whole backend."""

import numpy as np
import pytest
import scipy.ndimage
from agreement import assert_agrees
from hypothesis import given, settings
from hypothesis import strategies as st
from made.slides import as_slide, first_cells, one_batch, small_slide
from numba import njit

from gpu_extract import Recipe
from gpu_extract.backends.cpu import backend as cpu
from gpu_extract.backends.cpu import blur as cpu_blur
from gpu_extract.backends.cpu import masks as cpu_masks
from gpu_extract.backends.cpu import planes as cpu_planes
from gpu_extract.backends.cpu import quantiles as cpu_quantiles
from gpu_extract.backends.cpu.simd import LANES
from gpu_extract.backends.cpu.windows import Plane
from gpu_extract.model import BatchSize, Window
from gpu_extract.planning import batches, make_plan
from gpu_extract.recipe import gaussian_weights

# Python cannot call `inner` functions, so these compiled functions call them.
store, quantile_pair, bounds = cpu_planes.store, cpu_quantiles.quantile_pair, cpu_planes.bounds
select, bounding_box, fill_holes, dilate = (
    cpu_masks.select,
    cpu_masks.bounding_box,
    cpu_masks.fill_holes,
    cpu_masks.dilate,
)
blur, BLOCK = cpu_blur.blur, cpu_blur.BLOCK


@njit
def call_store(values, box, outside, output, converted, plane, filled):
    store(values, box, outside, output, converted, plane, filled)


@njit
def call_quantile_pair(pixels, zeros, lower, upper, scratch):
    return quantile_pair(pixels, zeros, lower, upper, scratch)


@njit
def call_copy_pixels(plane, y0, x0, box):
    pixels = np.empty(plane.data.shape, plane.data.dtype)
    return pixels[: cpu_planes.copy_pixels(plane, y0, x0, box, pixels)]


@njit
def call_bounds(values, low, high):
    return bounds(values, low, high)


@njit
def call_select(plane, y, x, label, part, mask, box):
    select(plane, y, x, label, part, mask)
    bounding_box(mask, part, box)


@njit
def call_fill(mask, box, scratch):
    fill_holes(mask, box, scratch)


@njit
def call_dilate(mask, box, radius, row, dilated, dilated_box):
    dilate(mask, box, radius, row, dilated, dilated_box)


@njit
def call_blur(mask, box, taps, buffer, soft, soft_box):
    blur(mask, box, taps, buffer, soft, soft_box)


def as_bits(mask):
    """Return a mask (S, S) as a bit mask, and its bounding box."""
    S = len(mask)
    padded = np.zeros((S, -(-S // 64) * 64), bool)
    padded[:, :S] = mask
    y, x = np.nonzero(mask)
    box = np.array([y.min(), x.min(), y.max() + 1, x.max() + 1] if len(y) else [0] * 4)
    return np.packbits(padded, axis=1, bitorder="little").view("<u8").astype(np.uint64), box


def as_mask(bits, box=None):
    """Return a bit mask as (S, S) bool; rows outside ``box`` are ignored."""
    S = len(bits)
    mask = np.unpackbits(bits.astype("<u8").view(np.uint8), axis=1, bitorder="little").astype(bool)
    assert not mask[slice(None) if box is None else slice(box[0], box[2]), S:].any()
    if box is not None:
        mask[: box[0]] = mask[box[2] :] = False
    return mask[:, :S]


@st.composite
def masks(draw):
    """Draw masks with disks, rings and noise anywhere in a tile and across its border."""
    S = draw(st.sampled_from([1, 2, 9, 63, 64, 65, 130]))
    mask = np.zeros((S, S), bool)
    y, x = np.mgrid[:S, :S]
    for _ in range(draw(st.integers(0, 6))):
        cy, cx = draw(st.integers(0, S)), draw(st.integers(0, S))
        r = draw(st.integers(0, S))
        away = (y - cy) ** 2 + (x - cx) ** 2
        mask[away <= r * r] = draw(st.booleans())
        mask[away == r * r] = True
    speckle = np.random.default_rng(draw(st.integers(0, 99))).random((S, S))
    return mask ^ (speckle < draw(st.sampled_from([0.0, 0.01, 0.3])))


@given(masks())
@settings(deadline=None)
def test_fill_holes_equals_scipys(mask):
    bits, box = as_bits(mask)
    call_fill(bits, box, np.full_like(bits, 0x5555))
    assert (as_mask(bits) == scipy.ndimage.binary_fill_holes(mask)).all()


def test_a_spiral_has_no_hole():
    S = 70
    mask = np.zeros((S, S), bool)
    y, x, dy, dx, steps = 0, 0, 0, 1, S - 1
    mask[0, 0] = True
    for turn in range(2 * S // 2 - 2):
        for _ in range(steps):
            y, x = y + dy, x + dx
            mask[y, x] = True
        dy, dx = dx, -dy
        steps -= 2 if turn and turn % 2 == 0 else 0
        if steps <= 0:
            break
    expected = scipy.ndimage.binary_fill_holes(mask)
    bits, box = as_bits(mask)
    call_fill(bits, box, np.empty_like(bits))
    assert (as_mask(bits) == expected).all()


@given(masks(), st.integers(0, 12))
@settings(deadline=None)
def test_dilate_equals_scipys(mask, radius):
    bits, box = as_bits(mask)
    dilated, dilated_box = np.full_like(bits, 0x5555), np.empty(4, np.int64)
    call_dilate(bits, box, radius, np.empty(bits.shape[1], np.uint64), dilated, dilated_box)
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    expected = scipy.ndimage.binary_dilation(mask, y * y + x * x <= radius * radius)
    assert (as_mask(dilated, dilated_box) == expected).all()


@given(masks(), st.sampled_from([0.0, 0.4, 1.0, 3.0, 7.0, 40.0]))
@settings(deadline=None)
def test_blur_equals_scipys(mask, sigma):
    S, weights = len(mask), gaussian_weights(sigma)
    bits, box = as_bits(mask)
    soft, soft_box = np.full(S * S + BLOCK, np.nan), np.empty(4, np.int64)
    taps = cpu_blur.Taps(weights, len(weights) - 1, cpu_blur.edge_tables(weights[None], S)[0])
    call_blur(bits, box, taps, np.full((S + 1) * (S + BLOCK), np.nan), soft, soft_box)
    top, left, bottom, right = soft_box
    found = np.zeros((S, S))
    found[top:bottom, left:right] = soft[: (bottom - top) * (right - left)].reshape(bottom - top, right - left)
    expected = scipy.ndimage.gaussian_filter(mask.astype(float), sigma, mode="nearest", truncate=4.0)
    if sigma == 0:
        assert (found == mask).all()
    # Sums of up to 641 x 641 products of order 1, in a different order.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)
    if mask.all():
        assert (found == found[0, 0]).all()


@given(
    st.sampled_from([1, 40, 64, 100, 130]),
    st.integers(-150, 150),
    st.integers(-150, 150),
    st.sampled_from([np.uint8, np.uint16, np.uint32, np.uint64]),
    st.integers(0, 9),
)
@settings(deadline=None)
def test_select_reads_only_its_box_and_the_slide(S, y, x, dtype, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, (90, 140)).astype(dtype)
    tile = np.zeros((S, S), dtype)
    rows, columns = np.arange(y, y + S), np.arange(x, x + S)
    inside = np.ix_((rows >= 0) & (rows < 90), (columns >= 0) & (columns < 140))
    tile[inside] = labels[max(y, 0) : max(y + S, 0), max(x, 0) : max(x + S, 0)]
    ends = np.sort(rng.integers(0, S + 1, (2, 2)), axis=0)
    part = ends.ravel()
    bits, box = np.full((S, -(-S // 64)), 0x5555, np.uint64), np.empty(4, np.int64)
    plane = Plane(labels.ravel(), 0, 140, 90, 140)
    for value in (0, 1):
        call_select(plane, y, x, dtype(value), part, bits, box)
        found, expected = as_mask(bits, part), tile == value if value else tile != 0
        top, left, bottom, right = part
        assert (found[top:bottom, left:right] == expected[top:bottom, left:right]).all()
        assert not (found & ~expected).any()
        assert (box == as_bits(found)[1]).all()


def test_half_bits_equals_numpys_float16():
    rng = np.random.default_rng(7)
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    every = np.sort(every[np.isfinite(every)].astype(np.float64))
    ties = (every[1:] + every[:-1]) / 2
    near = np.nextafter(ties, np.inf)
    values = np.concatenate([every, ties, near, -near, rng.random(1 << 16), [65519.9, 65520.0, 1e300, 1e-300, -0.0]])
    S = int(np.sqrt(len(values))) + 1
    values = np.append(values, np.zeros(S * S + 1 - len(values)))
    converted, output = np.empty(S * S + LANES, np.uint16), cpu_planes.Output(cpu_planes.OUTPUT_HALF, 1.0)
    out, box = np.empty((S, S), np.uint16), np.array([0, 0, S, S])
    call_store(values, box, 0.0, output, converted, out, np.zeros(4, np.int64))
    with np.errstate(over="ignore"):
        expected = values[:-1].astype(np.float16)
    assert (out.ravel() == expected.view(np.uint16)).all()


@given(
    st.lists(st.integers(-50, 50), max_size=60),
    st.integers(0, 900),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from([1, 5, 97]),
    st.booleans(),
)
@settings(deadline=None)
def test_quantiles_equal_numpys(values, zeros, lower, upper, repeats, ordered):
    values = np.array(values * repeats, np.float64) / 7
    if ordered:
        values.sort()
    everything = np.concatenate([values, np.zeros(zeros)])
    scratch = np.empty(len(everything) + cpu_quantiles.SCRATCH)
    for pair in ((lower, upper), (0.001, 0.999)):
        found = call_quantile_pair(values, zeros, *pair, scratch)
        assert found == (tuple(np.quantile(everything, pair)) if len(everything) else (0.0, 0.0))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "uint32", "float32", "float64"])
def test_quantiles_of_pixels_equal_numpys(dtype):
    rng = np.random.default_rng(3)
    info = np.finfo(dtype) if np.dtype(dtype).kind == "f" else np.iinfo(dtype)
    for n in (1, 300, 4480, 5200, 11097):
        low, high = max(info.min, -40000), min(info.max, 70000) + 1
        pixels = rng.integers(low, high, n).astype(dtype)
        pixels[rng.random(n) < 0.3] = low
        for zeros in (0, 1, 50):
            everything = np.concatenate([pixels.astype(np.float64), np.zeros(zeros)])
            scratch = np.empty(len(everything) + cpu_quantiles.SCRATCH)
            for pair in ((0.001, 0.999), (0.0, 1.0), (0.3, 0.5)):
                found = call_quantile_pair(pixels, zeros, *pair, scratch)
                assert found == tuple(np.quantile(everything, pair))


def test_copy_pixels():
    image = np.arange(90 * 140, dtype=np.uint16).reshape(90, 140)
    plane = Plane(image.ravel(), 140, 140, 89, 140)  # from row 1 on
    for top, left, bottom, right in ((0, 0, 89, 140), (2, 3, 2, 9), (5, 0, 81, 137), (4, 7, 5, 8), (3, 9, 6, 8)):
        found = call_copy_pixels(plane, -2, 3, (top + 2, left - 3, bottom + 2, right - 3))
        assert (found == image[1:][top:bottom, left:right].ravel()).all()


@given(st.lists(st.integers(-50, 50), max_size=300))
@settings(deadline=None)
def test_bounds_are_minimum_and_maximum(values):
    values = np.array(values, np.float64)
    assert call_bounds(values, 3.0, 4.0) == (min(values.min(initial=3), 3), max(values.max(initial=4), 4))


@pytest.mark.parametrize("preset", ["standard", "sparcspy", "scportrait"])
@pytest.mark.parametrize("dtype", ["uint16", "int16"])
def test_parts_equal_the_batch_and_are_0_outside_their_boxes(monkeypatch, preset, dtype):
    """The memory of a part is reused, so the previous part must be erased."""
    monkeypatch.setattr(cpu, "PART_CELLS", 5)
    recipe = Recipe.preset(preset).replace(tile_size=31, border="keep")
    window, batch, program = one_batch(as_slide(*small_slide(8, dtype=dtype)), recipe)
    whole = cpu.extract(window, batch, program)
    start = 0
    for cells in cpu.extract_in_parts(window, batch, program):
        part = slice(start, start + len(cells))
        assert (cells.rows == batch.rows[part]).all()
        assert (cells.images == whole.images[part]).all()
        assert (cells.limits == whole.limits[part]).all()
        start += len(cells)
    assert start == len(batch)
    for image, boxes in zip(whole.images, whole.boxes, strict=True):
        for plane, (y0, x0, y1, x1) in zip(image.copy(), boxes, strict=True):
            plane[y0:y1, x0:x1] = 0
            assert not plane.any()


def test_label_boxes_do_not_change_the_result():
    slide = as_slide(*small_slide(9, size=(200, 230), ids=range(1, 60)))
    plan = make_plan([slide], Recipe(tile_size=16, border="keep"))
    assert plan.cells.truncated.any()
    for batch in batches(plan, BatchSize(n_cells=16)):
        assert batch.boxes is not None
        window = plan.slides[0].read(batch.box)
        assert_agrees(cpu.extract(window, batch, plan.program), window, batch, plan.program)


def strided(array):
    wide = np.zeros((*array.shape[:-2], array.shape[-2] + 3, array.shape[-1] + 5), array.dtype)
    wide[..., 1:-2, 2:-3] = array
    return wide[..., 1:-2, 2:-3]


def unaligned(array):
    memory = np.zeros(array.nbytes + 1, np.uint8)
    moved = memory[1:].view(array.dtype).reshape(array.shape)
    moved[...] = array
    return moved


@pytest.mark.parametrize(
    "laid_out", [strided, unaligned, np.asfortranarray, lambda array: array[..., ::-1].copy()[..., ::-1]]
)
def test_windows_of_any_memory_layout(laid_out):
    recipe = Recipe(tile_size=31)
    window, batch, program = first_cells(*one_batch(as_slide(*small_slide(8)), recipe), 5)
    expected = cpu.extract(window, batch, program)
    other = Window(laid_out(window.image), tuple(map(laid_out, window.labels)), 0, 0)
    assert (cpu.extract(other, batch, program).images == expected.images).all()


def test_label_planes_of_different_types():
    image, nucleus, cytosol = small_slide(8, label_dtype=np.uint8)
    window, batch, program = one_batch(as_slide(image, nucleus, cytosol.astype(np.int64)), Recipe(tile_size=31))
    assert_agrees(cpu.extract(window, batch, program), window, batch, program)
