"""Properties of the cuda backend only: workspaces, thread orders, streams, memory, checks. test_backends has values."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from agreement import GPU_RTOL, assert_agrees
from cuda_on_cpu.device import ShimGpu, backend_of, raw, shim, shim_of
from cuda_on_cpu.launcher import CpuModule
from made.slides import as_slide, first_cells, ht29, one_batch, small_slide

from gpu_extract import DeviceError, Recipe, open_cells, pipeline
from gpu_extract.backends import GPU_CELLS, Backend, choose
from gpu_extract.backends.cpu.packed import unpacked
from gpu_extract.backends.cuda import backend as cuda
from gpu_extract.backends.cuda import device, pinned
from gpu_extract.backends.cuda.batches import DeviceExtraction
from gpu_extract.backends.cuda.extract import launch_extract, program_arrays, workspace_nbytes
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


@pytest.mark.parametrize(("n_workspaces", "n_blocks"), [(0.5, 1), (2.9, 2), (100, 4)])
def test_workspaces_in_global_memory_are_limited_by_bytes(monkeypatch, n_workspaces, n_blocks):
    """The blocks that there are compute the cells of the others."""
    monkeypatch.setattr(device, "SCRATCH_NBYTES", int(n_workspaces * workspace_nbytes(24)))
    task = first_cells(*one_batch(as_slide(*small_slide(7)), Recipe(tile_size=24, border="keep")), 7)
    gpu = ShimGpu(shared_nbytes_limit=1000)
    cells = shim_of(gpu).extract(*task)
    assert [n for _, n, _ in gpu.launched] == [n_blocks]
    assert_agrees(cells, *task, rtol=GPU_RTOL)


def test_a_tile_of_4096_pixels_leaves_memory_for_other_streams():
    nbytes = workspace_nbytes(4096)
    assert device.scratch_blocks(264, nbytes) * nbytes * cuda.STREAMS <= cuda.WORKING_NBYTES


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


def pipeline_backend(gpu, streams=3, batch_size=None, warnings=None, **options):
    warnings = [] if warnings is None else warnings
    return backend_of(shim_of(gpu, warnings.append, streams, **options), streams, batch_size, warnings)


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


@pytest.mark.parametrize("n_buffers", [0, 1, 4])
def test_results_are_in_a_fixed_number_of_buffers(tmp_path, monkeypatch, n_buffers):
    """Buffers are reused while earlier batches are encoded, and all are freed at the end."""
    monkeypatch.setattr(pinned.Uploader.__init__, "__defaults__", (10_000,))
    plan, gpu = plan_of(), ShimGpu(seed=3)
    nbytes = 7 * plan.program.tile_nbytes
    backend = pipeline_backend(gpu, buffer_nbytes=nbytes, n_buffers=n_buffers)
    store = CellStore.create(tmp_path / "cells.h5sc", Contents(plan.cells, plan.slides, plan.program))
    report = pipeline.run(plan, backend, store, 2)
    small = 2 * 8 * 7 * (3 * 2 + 5 * 5 + 1)  # limits and index; a larger array is allocated before the smaller is freed
    assert gpu.most_pinned <= n_buffers * nbytes + 3 * (2 * 10_000 + small)
    assert gpu.most_pinned >= min(n_buffers, 1) * nbytes
    with open_cells(report.path) as cells:
        assert (cells.read(range(len(cells))) == in_rows(plan, pipeline_backend(ShimGpu()))).all()
    del backend
    assert gpu.pinned == 0
    assert gpu.held == 0


def test_less_than_a_gigabyte_is_pinned():
    streams = cuda.STREAMS + 1
    limits = GPU_CELLS * (10 * 2 + 12 * 5) * 8  # of 10 channels, and the index of 12 planes
    assert pinned.N_BUFFERS * pinned.BUFFER_NBYTES + streams * (2 * pinned.STAGING_NBYTES + limits) <= 1e9


@pytest.mark.parametrize("on_device", [False, True])
def test_no_thread_occupies_a_core_while_it_waits(on_device):
    """Copies to memory that is not pinned would, because they wait for the kernel."""
    plan, gpu = plan_of(), ShimGpu()
    in_rows(plan, pipeline_backend(gpu, n_buffers=100), on_device=on_device)
    assert gpu.n_slow_downloads == 0


@pytest.mark.parametrize("threads", [1, 2, 16, 64])
def test_few_batches_are_encoded_at_a_time(threads):
    plan = plan_of(tile_size=128)
    backend = Backend("shim", choose("cpu").extract, BatchSize(GPU_CELLS, pinned.BUFFER_NBYTES), streams=cuda.STREAMS)
    n = pipeline.part_cells(plan, backend, threads)
    assert 1 <= n <= pipeline.ENCODE_CELLS
    nbytes = (threads + 1) * n * plan.program.tile_nbytes
    # The parts being encoded, the rest of their last batch, and the batches that are computed or wait.
    assert nbytes <= (pinned.N_BUFFERS - (cuda.STREAMS + 2) - 2) * pinned.BUFFER_NBYTES


def test_out_of_memory_halves_the_batch_and_warns():
    plan = plan_of()
    warnings = []
    gpu = ShimGpu(nbytes=280_000)
    found = in_rows(plan, pipeline_backend(gpu, streams=1, batch_size=BatchSize(64), warnings=warnings))
    assert (found == in_rows(plan, pipeline_backend(ShimGpu()))).all()
    assert warnings
    assert all("do not fit in the device's memory; continuing with" in line for line in warnings)
    assert gpu.held == 0


@pytest.mark.parametrize("on_device", [False, True])
def test_a_device_without_memory_for_one_cell_is_an_error(on_device):
    gpu = ShimGpu(nbytes=1000)
    with pytest.raises(DeviceError, match="one cell and its window do not fit"):
        in_rows(plan_of(), pipeline_backend(gpu), on_device=on_device)
    assert gpu.held == 0


@pytest.mark.parametrize("planes", [(), (3, 0)])
def test_tiles_on_the_device_are_in_parts_if_memory_runs_out(planes):
    task = one_batch(as_slide(*small_slide(9)), Recipe(tile_size=24))
    expected = shim().extract(*task).images
    expected = expected[:, planes] if planes else expected
    gpu, warnings = ShimGpu(nbytes=1 << 20), []
    others = [gpu.stream().empty((900_000,), np.uint8)]  # what other streams hold at first

    def warn(line):
        warnings.append(line)
        others.clear()

    found = shim_of(gpu, warn).extract_on_device(*task, planes=planes)
    n = len(task[1])
    assert [len(cells) for cells in found] == [n // 2] * 2 + [1] * (n % 2)
    assert (np.concatenate([cells.images for cells in found]) == expected).all()
    assert (np.concatenate([cells.rows for cells in found]) == task[1].rows).all()
    assert warnings == [f"{n} cells at a time do not fit in the device's memory; continuing with {n // 2}"]
    assert gpu.held == sum(cells.images.nbytes for cells in found)


def test_packed_tiles_are_in_parts_if_memory_runs_out():
    task = one_batch(as_slide(*small_slide(9)), Recipe(tile_size=24))
    gpu, warnings = ShimGpu(nbytes=1 << 20), []
    others = [gpu.stream().empty((850_000,), np.uint8)]

    def warn(line):
        warnings.append(line)
        others.clear()

    found = shim_of(gpu, warn).extract_packed(*task)
    assert [len(cells) for cells in found[:2]] == [len(task[1]) // 2] * 2
    assert (np.concatenate([unpacked(cells).images for cells in found]) == shim().extract(*task).images).all()
    assert len(warnings) == 1
    assert gpu.held == 0


def test_streams_that_run_out_of_memory_together_halve_once():
    warnings = []
    extraction = shim_of(ShimGpu(), warnings.append)
    for n_cells in (64, 64, 32, 64):
        extraction._halve(n_cells)
    assert warnings == [
        "64 cells at a time do not fit in the device's memory; continuing with 32",
        "32 cells at a time do not fit in the device's memory; continuing with 16",
    ]


def read_later(stream, cells):
    """Return the images of cells after a slow kernel of another stream, which does not keep them, has read them."""
    found, memory = np.empty_like(cells.images), raw(cells.images)
    stream.defer(lambda: np.copyto(found, memory), slow=100)
    return found


def read_on_another_stream(plan, seed, *, record):
    """Return the tiles as a consumer sees them that reads them on a stream of its own and drops them at once."""
    gpu = ShimGpu(seed=seed)
    backend, consumer = pipeline_backend(gpu), gpu.stream()
    found = np.empty((len(plan.cells), *plan.program.tile_shape), plan.program.output_dtype)
    parts = []
    with ThreadPoolExecutor(2) as workers:
        for cells in pipeline.tiles(plan, backend, workers, 2, on_device=True):
            parts.append((cells.rows, read_later(consumer, cells)))
            if record:
                cells.record_stream(consumer.handle)
            del cells
    consumer.synchronize()
    for rows, images in parts:
        found[rows] = images
    return found


def test_tiles_that_another_stream_reads_are_not_overwritten():
    plan = plan_of()
    expected = in_rows(plan, pipeline_backend(ShimGpu()))
    for seed in range(5):
        assert (read_on_another_stream(plan, seed, record=True) == expected).all()
    # Without the call they are, so that the test is able to fail.
    assert not all((read_on_another_stream(plan, seed, record=False) == expected).all() for seed in range(5))


def test_record_stream_has_no_effect_on_tiles_in_host_memory():
    task = one_batch(as_slide(*small_slide(9)), Recipe(tile_size=24))
    gpu = ShimGpu()
    cells = shim_of(gpu).extract(*task)
    cells.record_stream(gpu.stream().handle)
    choose("cpu").extract(*task, None).record_stream(0)
    assert not any(stream.waiting for stream in gpu.streams)


@pytest.mark.parametrize("on_device", [False, True])
def test_chosen_planes(on_device):
    plan = replace(plan_of(), planes=(3, 0))
    expected = in_rows(plan_of(), pipeline_backend(ShimGpu()))[:, [3, 0]]
    for seed in range(3):
        found = in_rows(plan, pipeline_backend(ShimGpu(seed=seed)), on_device=on_device)
        assert (found == expected).all()


@pytest.mark.parametrize("operation", ["to_device", "to_host", "launch"])
@pytest.mark.parametrize("method", ["extract", "extract_packed", "extract_on_device", "statistics"])
def test_after_an_error_no_copy_is_running_when_the_stream_is_used_again(monkeypatch, operation, method):
    def fail(*args, **kwargs):
        operations.append(len(stream.waiting))
        raise DeviceError("CUDA failed")

    slide = as_slide(*small_slide(9))
    task = one_batch(slide, Recipe(tile_size=24))
    gpu, operations = ShimGpu(), []
    stream = gpu.stream()
    extraction = DeviceExtraction([stream], print)
    monkeypatch.setattr(stream, operation, fail)
    arguments = (slide.masks["nucleus"], "labels") if method == "statistics" else task
    with pytest.raises(DeviceError, match="CUDA failed"):
        getattr(extraction, method)(*arguments)
    assert operations
    assert not stream.waiting
    monkeypatch.undo()
    assert_agrees(extraction.extract(*task), *task, rtol=GPU_RTOL)


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
