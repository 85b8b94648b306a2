"""The cpu backend against the reference."""

import numpy as np
import pytest
from agreement import assert_agrees
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from slides import MASK_NAMES, as_slide, bare_batch, bare_window, one_batch, small_slide

from gpu_extract import Recipe, demo_data
from gpu_extract.backends import cpu, cpu_kernels, reference


def assert_equals_reference(window, batch, program, levels=None):
    assert_agrees(cpu.extract(window, batch, program, levels), window, batch, program, levels)


@pytest.mark.parametrize("size", [63, 64])
@pytest.mark.parametrize("preset", ["standard", "sparcspy", "scportrait"])
def test_every_preset_on_ht29(preset, size):
    sample = demo_data.paths()
    slide = as_slide(sample.image, sample.nucleus, sample.cytosol)
    assert_equals_reference(*one_batch(slide, Recipe.preset(preset).replace(tile_size=size, border="keep")))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "float16", "float32", "float64"])
@pytest.mark.parametrize("normalization", ["quantile", "none"])
def test_every_pixel_type(dtype, normalization):
    slide = as_slide(*small_slide(1, dtype=dtype))
    assert_equals_reference(*one_batch(slide, Recipe(tile_size=31, normalization=normalization)))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int32", "uint32", "int64", "uint64", ">u4", ">i8"])
def test_every_label_type(dtype):
    slide = as_slide(*small_slide(2, label_dtype=dtype))
    assert_equals_reference(*one_batch(slide, Recipe(tile_size=31)))


def test_ids_beyond_32_bits_that_differ_only_there():
    ids = [5, 2**32 + 5, 2**33 + 5, 2**63 + 5, 2**64 - 1]
    slide = as_slide(*small_slide(3, label_dtype=np.uint64, ids=ids))
    window, batch, program = one_batch(slide, Recipe(tile_size=31, border="keep"))
    assert batch.ids.max() > 2**63
    assert_equals_reference(window, batch, program)


@pytest.mark.parametrize("output", ["float16", "float32", "uint8", "uint16"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"normalization": "range", "value_range": (1000, 30000)},
        {"normalization": "dtype"},
        {"apply_masks": False, "quantile_pixels": "tile"},
        {"cut": "before", "neighbours": "exclude"},
        {"stored_sigma": 1.5, "quantiles": (0.0, 1.0)},
        {"quantiles": (0.3, 0.6), "quantile_pixels": "tile"},
    ],
)
def test_normalisations_and_output_types(output, changes):
    slide = as_slide(*small_slide(4))
    assert_equals_reference(*one_batch(slide, Recipe(tile_size=40, output_dtype=output).replace(**changes)))


@pytest.mark.parametrize("preset", ["standard", "sparcspy", "scportrait"])
def test_negative_pixels(preset):
    """Cut before it is scaled, a channel is not 0 around the cell where its lower level is negative."""
    slide = as_slide(*small_slide(5, dtype=np.int16))
    assert_equals_reference(*one_batch(slide, Recipe.preset(preset).replace(tile_size=32, border="keep")))
    shifted = Recipe.preset(preset).replace(tile_size=32, border="keep", normalization="range", value_range=(-100, 900))
    assert_equals_reference(*one_batch(slide, shifted.replace(minmax=True)))


def test_given_levels():
    slide = as_slide(*small_slide(5))
    recipe = Recipe(tile_size=31, quantile_scope="slide")
    assert_equals_reference(*one_batch(slide, recipe), levels=np.array([[100.0, 5e4], [7, 7], [0, 1]]))


@pytest.mark.parametrize("preset", ["standard", "sparcspy", "scportrait"])
def test_a_mask_larger_than_its_tile_and_a_tile_larger_than_the_slide(preset):
    labels = np.ones((20, 24), np.uint32)
    labels[8:12, 8:12] = 0
    image = np.random.default_rng(6).integers(0, 999, (2, 20, 24)).astype(np.uint16)
    for size in (1, 2, 9, 64):
        recipe = Recipe.preset(preset).replace(tile_size=size)
        program = recipe.program(MASK_NAMES, 2, image.dtype)
        corners = [(10 - size // 2, 12 - size // 2), (-size // 2, -size // 2)]
        assert_equals_reference(bare_window(image, labels, labels), bare_batch([1, 1], corners, (20, 24)), program)


def test_a_cell_that_is_not_under_its_tile_has_empty_masks():
    labels = np.zeros((30, 30), np.uint32)
    labels[3, 3], labels[20, 20] = 1, 2
    image = np.ones((1, 30, 30), np.uint16)
    for preset in ("standard", "sparcspy", "scportrait"):
        program = Recipe.preset(preset).replace(tile_size=8).program(("nucleus",), 1, image.dtype)
        assert_equals_reference(bare_window(image, labels), bare_batch([1], [(16, 16)], (30, 30)), program)


def test_an_empty_batch():
    image, labels = np.ones((1, 9, 9), np.uint16), np.ones((9, 9), np.uint32)
    program = Recipe(tile_size=8).program(("nucleus",), 1, image.dtype)
    for backend in (cpu, reference):
        cells = backend.extract(bare_window(image, labels), bare_batch([], [], (9, 9)), program)
        assert cells.images.shape == (0, 2, 8, 8)


recipes = st.builds(
    lambda preset, **changes: Recipe.preset(preset).replace(**changes),
    st.sampled_from(["standard", "sparcspy", "scportrait"]),
    tile_size=st.integers(1, 48),
    border=st.sampled_from(["keep", "mask"]),
    fill_nucleus=st.booleans(),
    fill_cytosol=st.booleans(),
    stored_sigma=st.sampled_from([0.0, 1.0]),
    nuclear_channel=st.sampled_from([None, 0, 1]),
    nucleus_dilation=st.integers(0, 5),
    cytosol_dilation=st.integers(0, 9),
    nucleus_sigma=st.sampled_from([0.0, 0.4, 1.0, 3.0]),
    cytosol_sigma=st.sampled_from([0.0, 1.0, 7.0]),
    neighbours=st.sampled_from(["exclude", "keep"]),
    apply_masks=st.booleans(),
    cut=st.sampled_from(["after", "before"]),
    quantiles=st.sampled_from([(0.001, 0.999), (0.0, 1.0), (0.2, 0.21), (0.5, 0.9)]),
    quantile_pixels=st.sampled_from(["mask", "tile"]),
    flat_channel=st.sampled_from(["zero", "undivided"]),
    minmax=st.booleans(),
)


@st.composite
def blobs(draw):
    """Label planes of random rectangles: touching, overlapping, in pieces, with holes and cells in the holes."""
    H, W = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    ids = draw(st.sampled_from([[1, 2, 3, 9], [4, 2**40, 2**40 + 4, 2**63]]))
    planes = []
    for _ in MASK_NAMES[: draw(st.integers(1, 2))]:
        plane = np.zeros((H, W), np.uint64)
        for _ in range(draw(st.integers(1, 8))):
            y, x = draw(st.integers(0, H - 1)), draw(st.integers(0, W - 1))
            h, w = draw(st.integers(1, 25)), draw(st.integers(1, 25))
            plane[y : y + h, x : x + w] = draw(st.sampled_from([0, *ids]))
        planes.append(plane)
    dtype, low, high = draw(st.sampled_from([("uint16", 0, 2), ("uint16", 0, 3000), ("int16", -1500, 1500)]))
    image = np.random.default_rng(draw(st.integers(0, 99))).integers(low, high, (2, H, W))
    return image.astype(dtype), planes


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(blobs(), recipes)
def test_any_slide_under_any_recipe(case, recipe):
    image, planes = case
    ids = np.unique(np.concatenate([plane.ravel() for plane in planes]))
    ids = ids[ids != 0]
    corners = [np.argwhere(planes[-1] == i).mean(axis=0).round() if (planes[-1] == i).any() else (0, 0) for i in ids]
    corners = np.array(corners, np.int64).reshape(-1, 2) - recipe.tile_size // 2
    program = recipe.program(MASK_NAMES[: len(planes)], 2, image.dtype)
    assert_equals_reference(bare_window(image, *planes), bare_batch(ids, corners, image.shape[1:]), program)


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
