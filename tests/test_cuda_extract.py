"""The fused CUDA kernel, byte for byte as on a GPU, run on the CPU and held to the reference."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from agreement import GPU_RTOL, assert_agrees
from cuda_on_cpu.device import ShimGpu
from cuda_on_cpu.launcher import CpuModule
from hypothesis import HealthCheck, given, settings
from slides import GOLDEN, MASK_NAMES, as_slide, bare_batch, bare_window, one_batch, small_slide
from test_cpu import blobs, recipes

from gpu_extract import DeviceError, Recipe, demo_data, open_cells, pipeline
from gpu_extract.backends import Backend, choose
from gpu_extract.backends.cuda_extract import DeviceExtraction, launch_extract, program_arrays, workspace_nbytes
from gpu_extract.model import Batch, BatchLimits
from gpu_extract.planning import make_plan
from gpu_extract.store import CellStore, Contents, verify


def shim_of(gpu, tell=lambda line: None):
    return DeviceExtraction([gpu.stream()], tell)


def shim(**gpu):
    return shim_of(ShimGpu(**gpu))


def assert_equals_reference(window, batch, program, levels=None, **gpu):
    cells = shim(**gpu).extract(window, batch, program, levels)
    assert_agrees(cells, window, batch, program, levels, rtol=GPU_RTOL)


def first_cells(window, batch, program, n):
    return window, Batch(0, batch.rows[:n], batch.ids[:n], batch.corners[:n], batch.box), program


def ht29():
    sample = demo_data.paths()
    return as_slide(sample.image, sample.nucleus, sample.cytosol)


@pytest.mark.parametrize("peer", ["scportrait", "sparcspy"])
def test_ht29_is_what_the_peers_wrote(peer):
    golden = np.load(GOLDEN / f"ht29.{peer}.s64.npz")
    window, batch, program = one_batch(ht29(), Recipe.preset(peer).replace(tile_size=64))
    rows = golden["rows"]
    some = Batch(0, rows, batch.ids[rows], batch.corners[rows], batch.box)
    images = shim().extract(window, some, program).images
    ulps = np.abs(images.view(np.int16).astype(int) - golden["images"].view(np.int16).astype(int))
    assert ulps.max() <= 1
    assert (ulps == 0).mean() >= 0.999


@pytest.mark.parametrize("size", [16, 31, 64, 65])
@pytest.mark.parametrize("preset", ["standard", "sparcspy", "scportrait"])
def test_every_preset_on_ht29(preset, size):
    recipe = Recipe.preset(preset).replace(tile_size=size, border="keep")
    assert_equals_reference(*first_cells(*one_batch(ht29(), recipe), 24))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "float16", "float32", "float64"])
@pytest.mark.parametrize("normalization", ["quantile", "none"])
def test_every_pixel_type(dtype, normalization):
    slide = as_slide(*small_slide(1, dtype=dtype))
    assert_equals_reference(*one_batch(slide, Recipe(tile_size=31, normalization=normalization)))


def test_small_contrasts_on_a_high_ground():
    """lo is large and hi - lo small: x - lo must keep its digits."""
    image, nucleus, cytosol = small_slide(2, dtype=np.float32)
    for ground, dtype in ((60000, "uint16"), (1e6, "float32"), (4e9, "uint32"), (1e12, "float64")):
        slide = as_slide((image / 40 + ground).astype(dtype), nucleus, cytosol)
        assert_equals_reference(*one_batch(slide, Recipe(tile_size=31)))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "int64", "uint64"])
def test_every_width_of_labels(dtype):
    slide = as_slide(*small_slide(2, label_dtype=dtype))
    assert_equals_reference(*one_batch(slide, Recipe(tile_size=31)))


def test_ids_beyond_32_bits_that_differ_only_there():
    ids = [5, 2**32 + 5, 2**33 + 5, 2**63 + 5, 2**64 - 1]
    slide = as_slide(*small_slide(3, label_dtype=np.uint64, ids=ids))
    assert_equals_reference(*one_batch(slide, Recipe(tile_size=31, border="keep")))


@pytest.mark.parametrize("output", ["float16", "float32", "uint8", "uint16"])
@pytest.mark.parametrize(
    "changes",
    [
        {"normalization": "range", "value_range": (1000, 30000)},
        {"normalization": "dtype"},
        {"apply_masks": False, "quantile_pixels": "tile"},
        {"cut": "before", "neighbours": "exclude"},
        {"stored_sigma": 1.5, "quantiles": (0.0, 1.0)},
        {"quantiles": (0.3, 0.6), "quantile_pixels": "tile", "minmax": True},
    ],
)
def test_normalisations_and_output_types(output, changes):
    slide = as_slide(*small_slide(4))
    assert_equals_reference(*one_batch(slide, Recipe(tile_size=40, output_dtype=output).replace(**changes)))


@pytest.mark.parametrize("preset", ["standard", "sparcspy", "scportrait"])
def test_negative_pixels(preset):
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
        program = Recipe.preset(preset).replace(tile_size=size).program(MASK_NAMES, 2, image.dtype)
        corners = [(10 - size // 2, 12 - size // 2), (-size // 2, -size // 2)]
        assert_equals_reference(bare_window(image, labels, labels), bare_batch([1, 1], corners, (20, 24)), program)


def test_a_cell_that_is_not_under_its_tile_and_an_empty_batch():
    labels = np.zeros((30, 30), np.uint32)
    labels[3, 3], labels[20, 20] = 1, 2
    window = bare_window(np.ones((1, 30, 30), np.uint16), labels)
    for preset in ("standard", "sparcspy", "scportrait"):
        program = Recipe.preset(preset).replace(tile_size=8).program(("nucleus",), 1, np.dtype(np.uint16))
        assert_equals_reference(window, bare_batch([1], [(16, 16)], (30, 30)), program)
        assert shim().extract(window, bare_batch([], [], (30, 30)), program).images.shape == (0, 2, 8, 8)


def test_a_tile_too_large_for_shared_memory_works_in_global_memory():
    slide = as_slide(*small_slide(7))
    window, batch, program = first_cells(*one_batch(slide, Recipe(tile_size=80, border="keep")), 6)
    gpu = ShimGpu(shared_nbytes_limit=workspace_nbytes(80) - 1)
    cells = shim_of(gpu).extract(window, batch, program)
    assert [shared for _, _, shared in gpu.launched] == [0]
    assert_agrees(cells, window, batch, program, rtol=GPU_RTOL)
    roomy = ShimGpu()
    same = shim_of(roomy).extract(window, batch, program)
    assert [shared for _, _, shared in roomy.launched] == [workspace_nbytes(80)]
    assert (same.images == cells.images).all()


@pytest.mark.parametrize("size", [128, 257, 512])
def test_large_tiles(size):
    image, nucleus, cytosol = small_slide(8, size=(300, 320), ids=list(range(1, 8)))
    recipe = Recipe.preset("sparcspy").replace(tile_size=size, border="keep")
    assert_equals_reference(*first_cells(*one_batch(as_slide(image, nucleus, cytosol), recipe), 2))


@pytest.mark.parametrize("preset", ["standard", "sparcspy", "scportrait"])
def test_the_order_of_threads_does_not_change_a_bit(preset):
    recipe = Recipe.preset(preset).replace(tile_size=48, border="keep")
    task = first_cells(*one_batch(ht29(), recipe), 6)
    results = [shim(order=order).extract(*task) for order in ("forward", "reverse", "shuffled")]
    for cells in results[1:]:
        assert cells.images.tobytes() == results[0].images.tobytes()
        assert cells.levels.tobytes() == results[0].levels.tobytes()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(blobs(), recipes)
def test_any_slide_under_any_recipe(case, recipe):
    image, planes = case
    ids = np.unique(np.concatenate([plane.ravel() for plane in planes]))
    ids = ids[ids != 0]
    centers = [np.argwhere(planes[-1] == i).mean(axis=0).round() if (planes[-1] == i).any() else (0, 0) for i in ids]
    corners = np.array(centers, np.int64).reshape(-1, 2) - recipe.tile_size // 2
    program = recipe.program(MASK_NAMES[: len(planes)], 2, image.dtype)
    assert_equals_reference(bare_window(image, *planes), bare_batch(ids, corners, image.shape[1:]), program)


# The pipeline around the kernel


def pipeline_backend(gpu, streams=3, limits=None, notices=None):
    notices = [] if notices is None else notices
    extraction = DeviceExtraction([gpu.stream() for _ in range(streams)], notices.append)
    limits = limits or BatchLimits(7)
    return Backend("shim", extraction.extract, limits, streams, extraction.extract_on_device, notices)


def plan_of(**changes):
    image, nucleus, cytosol = small_slide(1, size=(200, 230), ids=list(range(1, 60)))
    return make_plan([as_slide(image, nucleus, cytosol)], Recipe(tile_size=24, border="keep").replace(**changes))


def in_rows(plan, backend, **options):
    with ThreadPoolExecutor(2) as workers:
        batches = list(pipeline.tiles(plan, backend, workers, 2, **options))
    order = np.argsort(np.concatenate([cells.rows for cells in batches]))
    return np.concatenate([cells.images for cells in batches])[order]


@pytest.mark.parametrize("seed", range(4))
def test_the_pipeline_with_streams_that_finish_in_any_order(seed):
    plan = plan_of()
    expected = in_rows(plan, choose("cpu"))
    for on_device in (False, True):
        found = in_rows(plan, pipeline_backend(ShimGpu(seed=seed, order="shuffled")), on_device=on_device)
        ulps = np.abs(found.view(np.int16).astype(int) - expected.view(np.int16).astype(int))
        assert ulps.max() <= 1
        assert (ulps == 0).mean() >= 0.999


def test_a_file_made_on_a_device_is_the_cpus(tmp_path):
    plan = plan_of()
    cells = {}
    for name, backend in (("cpu", choose("cpu")), ("shim", pipeline_backend(ShimGpu(seed=9)))):
        store = CellStore.create(tmp_path / f"{name}.h5sc", Contents(plan.cells, plan.slides, plan.program))
        report = pipeline.run(plan, backend, store, 2)
        assert report.device == name
        assert verify(report.path).n_cells == len(plan.cells)
        with open_cells(report.path) as file:
            cells[name] = file.read(range(len(file))), file.obs
    ulps = np.abs(cells["cpu"][0].view(np.int16).astype(int) - cells["shim"][0].view(np.int16).astype(int))
    assert ulps.max() <= 1
    assert (ulps == 0).mean() >= 0.999
    assert cells["cpu"][1].equals(cells["shim"][1])


def test_a_slide_larger_than_the_device_is_streamed():
    plan = plan_of()
    gpu = ShimGpu(nbytes=plan.slides[0].image.read(0, 0, 200, 230).nbytes // 2)
    found = in_rows(plan, pipeline_backend(gpu, streams=2, limits=BatchLimits(3, 20000)))
    assert (found == in_rows(plan, pipeline_backend(ShimGpu()))).all()


def test_out_of_memory_halves_the_batch_and_says_so():
    plan = plan_of()
    notices = []
    gpu = ShimGpu(nbytes=280_000)
    found = in_rows(plan, pipeline_backend(gpu, streams=1, limits=BatchLimits(64), notices=notices))
    assert (found == in_rows(plan, pipeline_backend(ShimGpu()))).all()
    assert notices
    assert all("did not fit in the device's memory; went on with" in line for line in notices)
    assert gpu.held == 0


def test_a_device_without_room_for_one_cell_is_an_error():
    with pytest.raises(DeviceError, match="one cell and its window do not fit"):
        in_rows(plan_of(), pipeline_backend(ShimGpu(nbytes=1000)))


def test_the_plan_made_on_a_device_is_the_plan():
    slide = as_slide(*small_slide(10, size=(200, 230), ids=list(range(1, 60))))
    recipe = Recipe(tile_size=24)
    expected = make_plan([slide], recipe).cells
    notices = []
    for gpu in (ShimGpu(), ShimGpu(nbytes=1000)):  # the second has no room, and the CPU steps in
        found = make_plan([slide], recipe, None, shim_of(gpu, notices.append).statistics).cells
        assert (found.ids == expected.ids).all()
        assert (found.centers == expected.centers).all()
        assert (found.boxes == expected.boxes).all()
        assert (found.areas == expected.areas).all()
        assert found.dropped.counts() == expected.dropped.counts()
    assert len(notices) == 2
    assert all("the CPU took them" in line for line in notices)


# What the host refuses before launch


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("image", lambda a: a.astype(np.int16)),
        ("image", lambda a: a[:2]),
        ("image", lambda a: a[:, :, ::2]),
        ("labels", lambda a: a.astype(np.int32)),
        ("labels", lambda a: a[:, 1:]),
        ("labels", lambda a: np.asfortranarray(a)),
        ("ids", lambda a: a.astype(np.int64)),
        ("corners", lambda a: a.astype(np.int64)),
        ("corners", lambda a: a[:1]),
        ("images", lambda a: a.view(np.uint16)),
        ("images", lambda a: a[:, :4]),
        ("used", lambda a: a.astype(np.float32)),
    ],
)
def test_wrong_arrays_are_refused_before_launch(name, change):
    window, batch, program = one_batch(as_slide(*small_slide(9)), Recipe(tile_size=24))
    n = len(batch)
    arrays = {
        "image": window.image,
        "labels": np.stack(window.labels),
        "ids": batch.ids,
        "corners": batch.corners.astype(np.int32),
        "images": np.empty((n, *program.tile_shape), program.output_dtype),
        "used": np.empty((n, 3, 2)),
    }
    gpu = ShimGpu()
    arrays[name] = change(arrays[name])
    with pytest.raises(ValueError, match=name):
        launch_extract(gpu.stream(), program, program_arrays(program, None), **arrays)
    assert not gpu.launched


def test_the_launcher_knows_the_kernels_signature():
    from gpu_extract.backends.cuda_registry import extract_kernel
    from gpu_extract.backends.cuda_source import kernel_source

    kernel = extract_kernel(np.dtype(np.uint16), np.dtype(np.float16))
    function = CpuModule(kernel_source(kernel.source), [kernel.expression]).get_function(kernel.expression)
    assert len(function.signature) == 25
    with pytest.raises(TypeError):
        function((1,), (kernel.threads,), (np.int32(1),))
