"""Properties of the cuda backend only: workspaces, thread orders, streams, memory, checks. test_backends has values."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from agreement import GPU_RTOL, assert_agrees
from cuda_on_cpu.device import ShimGpu, shim, shim_of
from cuda_on_cpu.launcher import CpuModule
from made.slides import as_slide, first_cells, ht29, one_batch, small_slide

from gpu_extract import DeviceError, Recipe, open_cells, pipeline
from gpu_extract.backends import Backend, choose
from gpu_extract.backends.cuda.extract import DeviceExtraction, launch_extract, program_arrays, workspace_nbytes
from gpu_extract.model import BatchSize
from gpu_extract.planning import make_plan
from gpu_extract.store import CellStore, Contents, verify


def test_a_tile_too_large_for_shared_memory_uses_global_memory():
    slide = as_slide(*small_slide(7))
    window, batch, program = first_cells(*one_batch(slide, Recipe(tile_size=132, border="keep")), 6)
    gpu = ShimGpu(shared_nbytes_limit=workspace_nbytes(132) - 1)
    cells = shim_of(gpu).extract(window, batch, program)
    assert [shared for _, _, shared in gpu.launched] == [0]
    assert_agrees(cells, window, batch, program, rtol=GPU_RTOL)
    roomy = ShimGpu()
    same = shim_of(roomy).extract(window, batch, program)
    assert [shared for _, _, shared in roomy.launched] == [workspace_nbytes(132)]
    assert (same.images == cells.images).all()


@pytest.mark.parametrize("size", [128, 257, 512])
def test_large_tiles(size):
    image, nucleus, cytosol = small_slide(8, size=(300, 320), ids=list(range(1, 8)))
    recipe = Recipe.preset("sparcspy").replace(tile_size=size, border="keep")
    task = first_cells(*one_batch(as_slide(image, nucleus, cytosol), recipe), 2)
    assert_agrees(shim().extract(*task), *task, rtol=GPU_RTOL)


@pytest.mark.parametrize("preset", ["standard", "sparcspy", "scportrait"])
def test_the_order_of_threads_does_not_change_a_bit(preset):
    recipe = Recipe.preset(preset).replace(tile_size=48, border="keep")
    task = first_cells(*one_batch(ht29(), recipe), 6)
    results = [shim(order=order).extract(*task) for order in ("forward", "reverse", "shuffled")]
    for cells in results[1:]:
        assert cells.images.tobytes() == results[0].images.tobytes()
        assert cells.limits.tobytes() == results[0].limits.tobytes()


# The pipeline around the kernel


def pipeline_backend(gpu, streams=3, batch_size=None, warnings=None):
    warnings = [] if warnings is None else warnings
    extraction = DeviceExtraction([gpu.stream() for _ in range(streams)], warnings.append)
    batch_size = batch_size or BatchSize(7)
    return Backend(
        "shim",
        extraction.extract,
        batch_size,
        streams=streams,
        statistics=extraction.statistics,
        extract_on_device=extraction.extract_on_device,
        warnings=warnings,
    )


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


def test_a_file_made_on_a_device_equals_the_cpus(tmp_path):
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
    found = in_rows(plan, pipeline_backend(gpu, streams=2, batch_size=BatchSize(3, 20000)))
    assert (found == in_rows(plan, pipeline_backend(ShimGpu()))).all()


def test_out_of_memory_halves_the_batch_and_warns():
    plan = plan_of()
    warnings = []
    gpu = ShimGpu(nbytes=280_000)
    found = in_rows(plan, pipeline_backend(gpu, streams=1, batch_size=BatchSize(64), warnings=warnings))
    assert (found == in_rows(plan, pipeline_backend(ShimGpu()))).all()
    assert warnings
    assert all("do not fit in the device's memory; continuing with" in line for line in warnings)
    assert gpu.held == 0


def test_a_device_without_memory_for_one_cell_is_an_error():
    with pytest.raises(DeviceError, match="one cell and its window do not fit"):
        in_rows(plan_of(), pipeline_backend(ShimGpu(nbytes=1000)))


def test_a_plan_made_on_a_device_equals_the_cpus():
    slide = as_slide(*small_slide(10, size=(200, 230), ids=list(range(1, 60))))
    recipe = Recipe(tile_size=24)
    expected = make_plan([slide], recipe).cells
    warnings = []
    for gpu in (ShimGpu(), ShimGpu(nbytes=1000)):  # the second has too little memory, so the CPU computes
        found = make_plan([slide], recipe, None, shim_of(gpu, warnings.append).statistics).cells
        assert (found.ids == expected.ids).all()
        assert (found.centers == expected.centers).all()
        assert (found.boxes == expected.boxes).all()
        assert (found.areas == expected.areas).all()
        assert found.dropped.counts() == expected.dropped.counts()
    assert len(warnings) == 2
    assert all("their statistics were computed on the CPU" in line for line in warnings)


# Checks on the host before a launch


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
        ("used_limits", lambda a: a.astype(np.float32)),
    ],
)
def test_wrong_arrays_raise_before_launch(name, change):
    window, batch, program = one_batch(as_slide(*small_slide(9)), Recipe(tile_size=24))
    n = len(batch)
    arrays = {
        "image": window.image,
        "labels": np.stack(window.labels),
        "ids": batch.ids,
        "corners": batch.corners.astype(np.int32),
        "images": np.zeros((n, *program.tile_shape), program.output_dtype),
        "used_limits": np.zeros((n, 3, 2)),
    }
    gpu = ShimGpu()
    arrays[name] = change(arrays[name])
    with pytest.raises(ValueError, match=name):
        launch_extract(gpu.stream(), program, program_arrays(program, None), **arrays)
    assert not gpu.launched


def test_the_launcher_knows_the_kernels_signature():
    from gpu_extract.backends.cuda.registry import extract_kernel
    from gpu_extract.backends.cuda.source import kernel_source

    kernel = extract_kernel(np.dtype(np.uint16), np.dtype(np.float16))
    function = CpuModule(kernel_source(kernel.source), [kernel.expression]).get_function(kernel.expression)
    assert len(function.signature) == 27
    with pytest.raises(TypeError):
        function((1,), (kernel.threads,), (np.int32(1),))
