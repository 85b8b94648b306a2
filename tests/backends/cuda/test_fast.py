"""The fast kernel: which programs it takes, and that it equals the reference and the general kernel."""

import dataclasses
import re
from unittest import mock

import numpy as np
import pytest
from agreement import GPU_RTOL, assert_agrees, cancellation
from cuda_on_cpu.device import ShimGpu, shim_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made.slides import as_slide, bare_batch, bare_window, first_cells, one_batch, small_slide

from gpu_extract import Recipe
from gpu_extract.backends import reference
from gpu_extract.backends.cuda.extract import FAST_SHARED_NBYTES, blur_profile, blur_tables
from gpu_extract.backends.cuda.registry import all_kernels, fast_extract_kernel, is_fast
from gpu_extract.backends.cuda.source import kernel_source
from gpu_extract.recipe import gaussian_weights

IS_FAST = "gpu_extract.backends.cuda.extract.is_fast"


class RecordingGpu(ShimGpu):
    """A device that keeps the marks of the cells that the fast kernel leaves to the general one."""

    def __init__(self, **options):
        super().__init__(**options)
        self.marks = []

    def stream(self):
        stream = super().stream()
        launch = stream.launch

        def recorded(kernel, n_blocks, arguments, shared_nbytes=0):
            if kernel.source == "extract_fast":
                self.marks.append(arguments[-1])
            launch(kernel, n_blocks, arguments, shared_nbytes)

        stream.launch = recorded
        return stream


def both(task, **gpu):
    """Return the cells of the fast kernel alone, of both kernels, and how many cells are computed again."""
    recording = RecordingGpu(**gpu)
    cells = shim_of(recording).extract(*task)
    with mock.patch(IS_FAST, return_value=False):
        general = shim_of(ShimGpu(**gpu)).extract(*task)
    return cells, general, int(sum(marks.sum() for marks in recording.marks))


def assert_equal(cells, general, program):
    """Compare the kernels: binary masks bit for bit, other values within a step of the type."""
    M = len(program.stored)
    if program.recipe.stored_sigma == 0:
        assert (cells.images[:, :M] == general.images[:, :M]).all()
    found, wanted = cells.images.astype(np.float64), general.images.astype(np.float64)
    step = np.ones_like(found)
    if program.output_dtype.kind == "f":
        step = np.spacing(np.maximum(np.abs(cells.images), np.abs(general.images))).astype(np.float64)
    # Each can be one step from the exact value.
    assert (np.abs(found - wanted) <= 2 * (step + cancellation(general.limits, program, GPU_RTOL))).all()
    largest = np.abs(general.limits).max()
    np.testing.assert_allclose(cells.limits, general.limits, rtol=GPU_RTOL, atol=GPU_RTOL * largest)


def check(slide, recipe, n=4, redone=0, **gpu):
    task = first_cells(*one_batch(slide, recipe.replace(border="keep")), n)
    cells, general, n_redone = both(task, **gpu)
    assert_agrees(cells, *task, rtol=GPU_RTOL)
    assert_equal(cells, general, task[2])
    assert n_redone == redone
    return cells


# Which programs are fast


def program_of(recipe, dtype=np.uint16):
    image, nucleus, cytosol = small_slide(3)
    return one_batch(as_slide(image.astype(dtype), nucleus, cytosol), recipe.replace(border="keep"))[2]


@pytest.mark.parametrize("preset", ["standard", "sparcspy", "scportrait"])
def test_presets_are_fast(preset):
    program = program_of(Recipe.preset(preset))
    assert is_fast(program, 4)
    assert not is_fast(program, 8)
    kernel = fast_extract_kernel(program.image_dtype, program.output_dtype, 128)
    assert (kernel.expression, kernel.blocks_per_multiprocessor) == ("extract_fast<u16, __half, 128>", 3)


@pytest.mark.parametrize(
    ("changes", "fast"),
    [
        ({"tile_size": 4}, True),
        ({"tile_size": 132}, False),
        ({"tile_size": 66}, False),
        ({"nucleus_dilation": 31}, True),
        ({"nucleus_dilation": 32}, False),
        ({"cytosol_sigma": 7.8}, True),
        ({"cytosol_sigma": 7.9}, False),
        ({"stored_sigma": 8.0}, False),
        ({"quantiles": (0.0, 1.0)}, True),
        ({"quantiles": (0.01, 0.99)}, True),
        ({"quantiles": (0.05, 0.999)}, False),
        ({"quantiles": (0.001, 0.75)}, False),
        ({"quantiles": (0.01, 0.99), "quantile_pixels": "tile"}, False),
        ({"quantiles": (0.01, 0.99), "quantile_pixels": "tile", "tile_size": 60}, True),
        ({"quantiles": (0.05, 0.95), "quantile_scope": "slide"}, True),
        ({"quantiles": (0.05, 0.95), "normalization": "range", "value_range": (0, 9)}, True),
        ({"normalization": "none", "neighbours": "keep"}, True),
    ],
)
def test_the_fast_kernel_has_limits(changes, fast):
    assert is_fast(program_of(Recipe(**changes)), 4) is fast


@pytest.mark.parametrize(
    ("dtype", "fast"), [("uint8", True), ("int16", True), ("uint32", False), ("float32", False), ("float64", False)]
)
def test_pixel_types_of_the_fast_kernel(dtype, fast):
    assert is_fast(program_of(Recipe(), dtype), 2) is fast


@pytest.mark.parametrize(("fill_cytosol", "fast"), [(True, True), (False, False)])
def test_a_plane_that_is_filled_for_some_masks_only_is_not_fast(fill_cytosol, fast):
    program = Recipe(fill_cytosol=fill_cytosol).program(("nucleus",), 3, np.dtype(np.uint16))
    assert is_fast(program, 4) is fast


def test_all_fast_instances_are_known():
    kernels = [kernel for kernel in all_kernels() if kernel.source == "extract_fast"]
    assert len(kernels) == len(set(kernels)) == 2 * (4 + 4 + 5)
    for image in ("uint8", "uint16", "int16"):
        for output in ("float16", "float32", "uint8", "uint16", image):
            for size in (40, 128):
                assert fast_extract_kernel(np.dtype(image), np.dtype(output), size) in kernels


def test_the_host_knows_the_size_of_the_kernels_shared_memory():
    (nbytes,) = re.findall(r"sizeof\(Shared\) == (\d+)", kernel_source("extract_fast"))
    assert int(nbytes) == FAST_SHARED_NBYTES


# Tables of the blur


@pytest.mark.parametrize("sigma", [0.2, 1.0, 1.2, 2.0, 5.0, 7.8])
def test_tables_and_profiles_blur_as_the_weights_do(sigma):
    weights = gaussian_weights(sigma)
    radius = len(weights) - 1
    pixels = np.random.default_rng(1).integers(0, 2, 2 * radius + 1)
    kernel = weights[abs(np.arange(-radius, radius + 1))]
    first, tables = blur_tables(np.array([0, radius, radius]), np.stack([weights] * 3))
    assert first == [0, 0, 0]
    assert len(tables) % 2 == 1
    bits = np.zeros(9 * len(tables), int)
    bits[: len(pixels)] = pixels
    indices = bits.reshape(len(tables), 9) @ (1 << np.arange(9))
    np.testing.assert_allclose(tables[np.arange(len(tables)), indices].sum(), kernel @ pixels, rtol=1e-6)
    profile = blur_profile(np.pad(weights, (0, 40)))
    np.testing.assert_allclose(profile[56 - radius : 57 + radius], kernel, rtol=1e-6)
    assert (profile[: 56 - radius] == 0).all()
    assert (profile[57 + radius : 104] == 0).all()
    np.testing.assert_allclose(profile[104 : 104 + radius], [weights[d + 1 :].sum() for d in range(radius)], rtol=1e-6)
    assert (profile[104 + radius :] == 0).all()


# Agreement


def blocks(image, labels):
    """Return a slide with the same labels in both planes."""
    return as_slide(image, labels, labels)


def noise(shape, seed=0, high=65536):
    return np.random.default_rng(seed).integers(0, high, shape).astype(np.uint16)


@pytest.mark.parametrize("where", ["top left", "top", "right", "bottom right", "all"])
def test_masks_at_the_edges_of_a_tile_with_radius_20(where):
    labels = np.zeros((140, 150), np.uint32)
    labels[50:90, 55:95] = 1
    grown = {
        "top left": np.s_[20:60, 30:60],
        "top": np.s_[20:52, 60:80],
        "right": np.s_[60:80, 90:150],
        "bottom right": np.s_[88:140, 90:150],
        "all": np.s_[:, :],
    }
    cytosol = labels.copy()
    cytosol[grown[where]] = 1
    recipe = Recipe.preset("sparcspy").replace(tile_size=64, neighbours="exclude")
    check(as_slide(noise((3, 140, 150)), labels, cytosol), recipe, 1)


@pytest.mark.parametrize("radius", [1, 2, 5, 9, 31])
@pytest.mark.parametrize("size", [44, 128])
def test_dilation_of_pixels_at_the_edges_of_a_tile(size, radius):
    labels = np.zeros((size, size), np.uint32)
    labels[[0, 3, size - 1, size - 2], [0, size - 1, size // 2, 1]] = [1, 2, 3, 4]
    recipe = Recipe(
        tile_size=size,
        nucleus_dilation=radius,
        nucleus_sigma=0.0,
        neighbours="keep",
        normalization="range",
        value_range=(0, 1),
    )
    program = recipe.program(("nucleus",), 1, np.dtype(np.uint16))
    corners = np.zeros((4, 2), int)
    task = (
        bare_window(np.ones((1, size, size), np.uint16), labels),
        bare_batch(range(1, 5), corners, (size, size)),
        program,
    )
    cells, general, _ = both(task)
    expected = reference.extract(*task)
    assert (cells.images == expected.images).all()
    assert (general.images == expected.images).all()


@pytest.mark.parametrize("preset", ["standard", "sparcspy", "scportrait"])
@pytest.mark.parametrize("size", [4, 36, 128])
def test_tiles_that_are_half_outside_the_slide(size, preset):
    labels = np.zeros((70, 90), np.uint16)
    for n, (y, x) in enumerate([(0, 0), (0, 78), (58, 0), (58, 78), (30, 40)], start=1):
        labels[y : y + 12, x : x + 12] = n
        labels[y + 4 : y + 7, x + 4 : x + 7] = 0
    check(blocks(noise((3, 70, 90)), labels), Recipe.preset(preset).replace(tile_size=size), 5)


@pytest.mark.parametrize("source", ["mask", "tile"])
@pytest.mark.parametrize("cut", ["before", "after"])
@pytest.mark.parametrize("extremes", [0, 17, 18])
def test_ties(source, cut, extremes):
    """Constant channels, channels of zeros, and ranks at the last of equal extreme values."""
    labels = np.zeros((70, 70), np.uint32)
    labels[10:60, 10:60] = 7
    image = np.stack([np.full((70, 70), 500), np.zeros((70, 70), int), np.full((70, 70), 65535)]).astype(np.uint16)
    dice = np.random.default_rng(2)
    spots = dice.permutation(30 * 30)[: 3 * extremes]
    for channel, values in ((0, (3, 4, 60000)), (1, (1, 2, 3)), (2, (0, 1, 2))):
        image[channel, 15 + spots // 30, 15 + spots % 30] = np.resize(np.repeat(values, extremes or 1), len(spots))
    quantiles = (18 / (64 * 64 - 1), 1 - 17.5 / (64 * 64 - 1))
    recipe = Recipe(tile_size=64, quantile_pixels=source, cut=cut, quantiles=quantiles)
    if cut == "before":  # factors of 0 and 1 keep equal products equal
        recipe = recipe.replace(minmax=True, nucleus_sigma=0.0, cytosol_sigma=0.0)
    check(blocks(image, labels), recipe, 1)


@pytest.mark.parametrize("flat_channel", ["zero", "undivided"])
def test_int16_below_zero(flat_channel):
    image = (noise((3, 70, 70)).astype(int) - 32768).astype(np.int16)
    image[2] = -5
    labels = np.zeros((70, 70), np.uint32)
    labels[20:50, 15:45] = 3
    for cut in ("before", "after"):
        recipe = Recipe(tile_size=64, quantile_pixels="tile", cut=cut, flat_channel=flat_channel, minmax=True)
        check(blocks(image, labels), recipe, 1)


def test_a_cell_with_too_many_extreme_pixels_is_computed_again():
    # One bright spot of 20 x 20 pixels: it lies in the pixels of few threads.
    labels = np.zeros((140, 140), np.uint32)
    labels[40:100, 40:100] = 1
    image = noise((3, 140, 140), high=50)
    image[:, 60:80, 60:80] += noise((3, 20, 20), 1, high=30000) + 1000
    quantiles = (0.0, 1 - 38 / (128 * 128))
    check(blocks(image, labels), Recipe(quantile_pixels="tile", quantiles=quantiles), 1, redone=0)
    image[:, 60:80, 60:80] = 0
    image[:, 64 : 64 + 33, 64:72] = noise((3, 33, 8), 1, high=30000) + 1000
    check(blocks(image, labels), Recipe(quantile_pixels="tile", quantiles=quantiles), 1, redone=1)


def test_a_mask_that_is_larger_than_shared_memory_is_computed_again():
    labels = np.zeros((80, 80), np.uint32)
    labels[5:75, 5:75] = 1
    slide = blocks(noise((3, 80, 80)), labels)
    check(slide, Recipe(tile_size=64), 1, redone=1, shared_nbytes_limit=49152)
    check(slide, Recipe(tile_size=64), 1)


def test_without_memory_for_its_tables_the_general_kernel_computes_all():
    labels = np.zeros((80, 80), np.uint32)
    labels[25:45, 25:45] = 1
    gpu = ShimGpu(shared_nbytes_limit=30000)
    task = first_cells(*one_batch(blocks(noise((3, 80, 80)), labels), Recipe(tile_size=32)), 1)
    assert_agrees(shim_of(gpu).extract(*task), *task, rtol=GPU_RTOL)
    assert [kernel.source for kernel, _, _ in gpu.launched] == ["extract"]


def test_small_masks_let_more_blocks_run():
    """With known boxes, three blocks share a multiprocessor; without, a block has memory for a whole tile."""
    slide = as_slide(*small_slide(7))
    window, batch, program = first_cells(*one_batch(slide, Recipe(border="keep")), 6)
    boxes = np.concatenate([batch.corners + 50, batch.corners + 78], axis=1)
    for known, n_blocks in ((None, 2), (boxes, 3)):
        gpu = ShimGpu(multiprocessors=1)
        shim_of(gpu).extract(window, dataclasses.replace(batch, boxes=known), program)
        assert gpu.launched[0][1] == n_blocks
        assert n_blocks * (gpu.launched[0][2] + 1024) <= gpu.shared_nbytes_limit


def test_many_channels_and_label_widths():
    image, nucleus, cytosol = small_slide(12)
    image = np.concatenate([image, image[::-1], image])  # nine channels: three groups
    for dtype in (np.uint8, np.uint16, np.uint32):
        slide = as_slide(image, nucleus.astype(dtype), cytosol.astype(dtype))
        check(slide, Recipe(tile_size=40, minmax=True, quantile_pixels="tile"), 2)
    check(as_slide(image, nucleus, cytosol), Recipe(tile_size=40, apply_masks=False, minmax=True), 2)
    check(as_slide(image[:4], nucleus, cytosol), Recipe(tile_size=40, normalization="none"), 2)


@pytest.mark.parametrize("sigmas", [(1.0, 1.1, 1.1), (1.1, 0.0, 1.0), (1.12, 1.0, 0.9)])
def test_blurs_of_the_same_radius_are_told_apart(sigmas):
    """A Gaussian reaches 4 sigma, rounded: 4 pixels for a sigma of 0.9 to 1.12."""
    nucleus, cytosol, stored = sigmas
    recipe = Recipe(tile_size=40, nucleus_sigma=nucleus, cytosol_sigma=cytosol, stored_sigma=stored)
    check(as_slide(*small_slide(12)), recipe, 3)


# Random slides


@st.composite
def tasks(draw):
    """Return the window, batch and program of cells with holes and neighbours, anywhere in and around their tiles."""
    dice = np.random.default_rng(draw(st.integers(0, 1 << 16)))
    height, width = dice.integers(20, 90, 2)
    planes = draw(st.sampled_from([("nucleus", "cytosol"), ("nucleus",), ("cytosol",)]))
    labels = np.zeros((len(planes), height, width), draw(st.sampled_from([np.uint8, np.uint16, np.uint32])))
    for plane in labels:
        for cell in range(1, 5):
            (y, x), (h, w) = dice.integers(0, (height - 8, width - 8)), dice.integers(2, 60, 2)
            plane[y : y + h, x : x + w] = cell
        plane[dice.random((height, width)) < draw(st.sampled_from([0.0, 0.02, 0.4]))] = 0
    dtype, high = draw(st.sampled_from([(np.uint16, 2), (np.uint16, 300), (np.uint16, 65536)]))
    image = dice.integers(0, high, (draw(st.integers(1, 5)), height, width)).astype(dtype)
    cut = draw(st.sampled_from(["after", "before"]))
    choice = {
        "tile_size": [8, 32, 44, 64],
        "fill_cytosol": [True, False],
        "stored_sigma": [0.0, 1.0],
        "nucleus_dilation": [0, 2, 9],
        "cytosol_dilation": [0, 3],
        "nucleus_sigma": [0.0, 1.0, 5.0],
        "cytosol_sigma": [0.0, 0.6, 2.0],
        "neighbours": ["exclude", "keep"],
        "apply_masks": [True, True, False],
        "quantile_pixels": ["mask", "tile"],
        "quantiles": [(0.0, 1.0), (0.001, 0.999), (0.004, 0.9951)],
        "flat_channel": ["zero", "undivided"],
        "minmax": [True, False] if cut == "after" else [False],  # it would amplify rounding errors
    }
    recipe = Recipe(cut=cut, **{name: draw(st.sampled_from(values)) for name, values in choice.items()})
    corners = dice.integers(-recipe.tile_size, (height, width), (4, 2))
    program = recipe.program(planes, len(image), image.dtype)
    return bare_window(image, *labels), bare_batch([1, 2, 3, 4], corners, (height, width)), program


def agree(task):
    cells, general, _ = both(task)
    assert_agrees(cells, *task, rtol=GPU_RTOL)
    assert_equal(cells, general, task[2])


FEW = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
MANY = settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))


@FEW
@given(tasks())
def test_both_kernels_agree(task):
    agree(task)


@pytest.mark.slow
@MANY
@given(tasks())
def test_both_kernels_agree_on_many_slides(task):
    agree(task)
