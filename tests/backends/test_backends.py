"""All fast backends compared to the reference, on the same cases.

``cuda`` is the unmodified CUDA source, compiled for the CPU.
"""

import numpy as np
import pytest
from agreement import CPU_RTOL, GPU_RTOL, assert_agrees
from cuda_on_cpu.device import shim
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made.slides import (
    MASK_NAMES,
    as_slide,
    bare_batch,
    bare_window,
    first_cells,
    ht29,
    one_batch,
    small_slide,
)

from gpu_extract import Recipe
from gpu_extract.backends.cpu import backend as cpu

on_both = pytest.mark.parametrize("device", ["cpu", "cuda"])


def extract(device, window, batch, program, limits=None):
    backend = cpu.extract if device == "cpu" else shim().extract
    return backend(window, batch, program, limits)


def assert_equals_reference(device, window, batch, program, limits=None):
    cells = extract(device, window, batch, program, limits)
    assert_agrees(cells, window, batch, program, limits, rtol=CPU_RTOL if device == "cpu" else GPU_RTOL)


@on_both
@pytest.mark.parametrize("size", [16, 31, 64, 65])
@pytest.mark.parametrize("preset", ["standard", "sparcspy", "scportrait"])
def test_every_preset_on_ht29(device, preset, size):
    recipe = Recipe.preset(preset).replace(tile_size=size, border="keep")
    n = 24 if device == "cuda" else None  # the shim is slow
    assert_equals_reference(device, *first_cells(*one_batch(ht29(), recipe), n))


@on_both
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "float16", "float32", "float64"])
@pytest.mark.parametrize("normalization", ["quantile", "none"])
def test_every_pixel_type(device, dtype, normalization):
    slide = as_slide(*small_slide(1, dtype=dtype))
    assert_equals_reference(device, *one_batch(slide, Recipe(tile_size=31, normalization=normalization)))


@on_both
def test_small_contrasts_on_a_bright_background(device):
    """If lo is large and hi - lo is small, x - lo must not lose precision."""
    image, nucleus, cytosol = small_slide(2, dtype=np.float32)
    for background, dtype in ((60000, "uint16"), (1e6, "float32"), (4e9, "uint32"), (1e12, "float64")):
        slide = as_slide((image / 40 + background).astype(dtype), nucleus, cytosol)
        assert_equals_reference(device, *one_batch(slide, Recipe(tile_size=31)))


@on_both
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int32", "uint32", "int64", "uint64", ">u4", ">i8"])
def test_every_label_type(device, dtype):
    slide = as_slide(*small_slide(2, label_dtype=dtype))
    assert_equals_reference(device, *one_batch(slide, Recipe(tile_size=31)))


@on_both
def test_ids_beyond_32_bits_that_differ_only_there(device):
    ids = [5, 2**32 + 5, 2**33 + 5, 2**63 + 5, 2**64 - 1]
    slide = as_slide(*small_slide(3, label_dtype=np.uint64, ids=ids))
    window, batch, program = one_batch(slide, Recipe(tile_size=31, border="keep"))
    assert batch.ids.max() > 2**63
    assert_equals_reference(device, window, batch, program)


@on_both
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
def test_normalizations_and_output_types(device, output, changes):
    slide = as_slide(*small_slide(4))
    assert_equals_reference(device, *one_batch(slide, Recipe(tile_size=40, output_dtype=output).replace(**changes)))


@on_both
@pytest.mark.parametrize("preset", ["standard", "sparcspy", "scportrait"])
def test_negative_pixels(device, preset):
    """If a channel is masked before it is scaled and its lower limit is negative, it is not 0 outside the cell."""
    slide = as_slide(*small_slide(5, dtype=np.int16))
    assert_equals_reference(device, *one_batch(slide, Recipe.preset(preset).replace(tile_size=32, border="keep")))
    shifted = Recipe.preset(preset).replace(tile_size=32, border="keep", normalization="range", value_range=(-100, 900))
    assert_equals_reference(device, *one_batch(slide, shifted.replace(minmax=True)))


@on_both
def test_given_limits(device):
    slide = as_slide(*small_slide(5))
    recipe = Recipe(tile_size=31, quantile_scope="slide")
    assert_equals_reference(device, *one_batch(slide, recipe), limits=np.array([[100.0, 5e4], [7, 7], [0, 1]]))


@on_both
@pytest.mark.parametrize("preset", ["standard", "sparcspy", "scportrait"])
def test_a_mask_larger_than_its_tile_and_a_tile_larger_than_the_slide(device, preset):
    labels = np.ones((20, 24), np.uint32)
    labels[8:12, 8:12] = 0
    image = np.random.default_rng(6).integers(0, 999, (2, 20, 24)).astype(np.uint16)
    for size in (1, 2, 9, 64):
        recipe = Recipe.preset(preset).replace(tile_size=size)
        program = recipe.program(MASK_NAMES, 2, image.dtype)
        corners = [(10 - size // 2, 12 - size // 2), (-size // 2, -size // 2)]
        assert_equals_reference(
            device, bare_window(image, labels, labels), bare_batch([1, 1], corners, (20, 24)), program
        )


@on_both
def test_a_cell_outside_its_tile_and_an_empty_batch(device):
    labels = np.zeros((30, 30), np.uint32)
    labels[3, 3], labels[20, 20] = 1, 2
    window = bare_window(np.ones((1, 30, 30), np.uint16), labels)
    for preset in ("standard", "sparcspy", "scportrait"):
        program = Recipe.preset(preset).replace(tile_size=8).program(("nucleus",), 1, np.dtype(np.uint16))
        assert_equals_reference(device, window, bare_batch([1], [(16, 16)], (30, 30)), program)
        assert extract(device, window, bare_batch([], [], (30, 30)), program).images.shape == (0, 2, 8, 8)


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
    """Draw label planes of random rectangles: touching, overlapping, split, with holes and with cells in the holes."""
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


@on_both
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(blobs(), recipes)
def test_any_slide_under_any_recipe(device, case, recipe):
    image, planes = case
    ids = np.unique(np.concatenate([plane.ravel() for plane in planes]))
    ids = ids[ids != 0]
    corners = [np.argwhere(planes[-1] == i).mean(axis=0).round() if (planes[-1] == i).any() else (0, 0) for i in ids]
    corners = np.array(corners, np.int64).reshape(-1, 2) - recipe.tile_size // 2
    program = recipe.program(MASK_NAMES[: len(planes)], 2, image.dtype)
    assert_equals_reference(device, bare_window(image, *planes), bare_batch(ids, corners, image.shape[1:]), program)
