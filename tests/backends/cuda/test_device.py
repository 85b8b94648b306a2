"""The cuda backend on a GPU, and its messages if there is none.

The first part needs a GPU: see the fixture ``gpu``.
"""

import re
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from agreement import GPU_RTOL, assert_agrees
from made.slides import as_slide, one_batch, small_slide

import gpu_extract as gx
from gpu_extract import Recipe, demo_data, pipeline
from gpu_extract.backends import choose, try_device, why_not
from gpu_extract.backends.cpu.packed import unpacked
from gpu_extract.backends.cuda import backend as cuda
from gpu_extract.backends.cuda.device import OutOfDeviceMemoryError
from gpu_extract.backends.cuda.registry import DILATE, FILL_HOLES
from gpu_extract.planning import make_plan


def ht29():
    sample = demo_data.paths()
    return as_slide(sample.image, sample.nucleus, sample.cytosol)


@pytest.mark.parametrize("size", [31, 64, 128, 300])
@pytest.mark.parametrize("preset", ["standard", "sparcspy", "scportrait"])
def test_every_preset_on_a_gpu(gpu, preset, size):
    task = one_batch(ht29(), Recipe.preset(preset).replace(tile_size=size, border="keep"))
    assert_agrees(gpu.extract(*task, None), *task, rtol=GPU_RTOL)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "float16", "float32", "float64"])
def test_every_pixel_type_on_a_gpu(gpu, dtype):
    task = one_batch(as_slide(*small_slide(1, dtype=dtype)), Recipe(tile_size=31))
    assert_agrees(gpu.extract(*task, None), *task, rtol=GPU_RTOL)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "float64"])
def test_packed_tiles_on_a_gpu(gpu, dtype):
    """In the image's own type, so that all sizes of pixels are packed."""
    task = one_batch(as_slide(*small_slide(1, dtype=dtype)), Recipe(tile_size=31, normalization="none"))
    expected = gpu.extract(*task, None)
    (packed,) = gpu.extract_packed(*task, None)
    assert unpacked(packed).images.tobytes() == expected.images.tobytes()
    assert (packed.limits == expected.limits).all()


def test_a_slide_that_stays_on_a_gpu(gpu):
    slide = as_slide(*small_slide(4, size=(200, 230), ids=list(range(1, 60))))
    recipe = Recipe(tile_size=32, border="keep")
    plan = make_plan([slide], recipe, None, gpu.statistics)
    assert pipeline.covered(plan) == [True]
    window, batch, program = one_batch(slide, recipe)
    expected = gpu.extract(window, batch, program, None)
    with ThreadPoolExecutor(2) as workers:
        for cells in pipeline.tiles(plan, gpu, workers, 2):
            assert (cells.images == expected.images[cells.rows]).all()


def test_the_reference_on_a_gpu_equals_the_reference(gpu):
    task = one_batch(as_slide(*small_slide(2)), Recipe(tile_size=31))
    assert_agrees(choose("reference:cuda").extract(*task, None), *task, rtol=1e-9)


def test_a_gpu_that_is_tried_works(gpu):
    assert try_device("cuda") is None
    assert try_device("reference:cuda") is None


def test_iter_cells_leaves_the_tiles_on_the_gpu(gpu):
    image, nucleus, cytosol = small_slide(3)
    for cells in gx.iter_cells(image, nucleus=nucleus, cytosol=cytosol, tile_size=24, device="cuda"):
        assert type(cells.images).__module__.startswith("cupy")
        torch = pytest.importorskip("torch")
        tensor = torch.from_dlpack(cells.images)
        assert tensor.data_ptr() == cells.images.data.ptr
        assert (tensor.cpu().numpy() == cells.images.get()).all()


def test_a_file_made_on_a_gpu(gpu, tmp_path):
    image, nucleus, cytosol = small_slide(4)
    found = {}
    for device in ("cpu", "cuda"):
        path = tmp_path / f"{device}.h5sc"
        gx.extract(image, nucleus=nucleus, cytosol=cytosol, output=path, tile_size=24, device=device)
        with gx.open_cells(path) as cells:
            found[device] = cells.read(range(len(cells)))
    ulps = np.abs(found["cpu"].view(np.int16).astype(int) - found["cuda"].view(np.int16).astype(int))
    assert ulps.max() <= 1
    assert (ulps == 0).mean() >= 0.999


# Messages without a GPU


def fake_cupy(count=1, nvrtc_error=None):
    """Return the part of CuPy that `cuda.problem` uses."""

    class CUDARuntimeError(RuntimeError):
        pass

    def device_count():
        if isinstance(count, str):
            raise CUDARuntimeError(count)
        return count

    def version():
        if nvrtc_error:
            raise nvrtc_error
        return (13, 0)

    runtime = SimpleNamespace(getDeviceCount=device_count, CUDARuntimeError=CUDARuntimeError)
    return SimpleNamespace(cuda=SimpleNamespace(runtime=runtime, nvrtc=SimpleNamespace(getVersion=version)))


@pytest.mark.parametrize(
    ("cupy", "message"),
    [
        (None, "CuPy cannot be imported .*pip install cupy-cuda13x nvidia-cuda-nvrtc nvidia-cuda-runtime, or "),
        (fake_cupy(0), "there is no NVIDIA GPU"),
        (fake_cupy("driver too old"), "driver too old.*update the NVIDIA driver"),
        (fake_cupy(1, OSError("libnvrtc.so.13")), "NVRTC is missing .*libnvrtc.so.13.*pip install"),
    ],
)
def test_each_cause_names_a_remedy(monkeypatch, cupy, message):
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    with pytest.raises(gx.DeviceError, match=message) as caught:
        choose("cuda")
    assert "\n" not in str(caught.value)
    with pytest.raises(gx.DeviceError, match=message):
        cuda.reference_libraries()
    assert choose("auto").device == "cpu"


def test_a_gpu_that_fails_when_it_is_tried(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(1))  # it has no memory, among others
    assert why_not("cuda") is None
    remedy = re.escape("; reinstall CuPy, or use --device cpu (device='cpu')")
    assert re.fullmatch(f"it fails with AttributeError: .*{remedy}", try_device("cuda"))


def test_a_missing_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(2))
    assert why_not("cuda:1") is None
    with pytest.raises(gx.DeviceError, match="there are 2 GPUs, numbered from 0"):
        choose("cuda:2")


# Compiling, with a CuPy that is not there


def compiling_cupy(compile):
    """Return the part of CuPy that `cuda.compiled` uses; ``compile`` is called with the expression of a kernel."""

    class RawModule:
        def __init__(self, code, options, name_expressions):
            (self.expression,) = name_expressions

        def get_function(self, expression):
            compile(expression)
            return SimpleNamespace(expression=expression)

    return SimpleNamespace(RawModule=RawModule)


@pytest.fixture
def nothing_compiled(monkeypatch):
    for name in ("_functions", "_locks"):
        monkeypatch.setattr(cuda, name, {})


def test_different_kernels_compile_at_the_same_time(monkeypatch, nothing_compiled):
    both = threading.Barrier(2)  # broken unless two threads wait at it
    monkeypatch.setitem(sys.modules, "cupy", compiling_cupy(lambda expression: both.wait(timeout=60)))
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda kernel: cuda.compiled(0, kernel, 1000), (FILL_HOLES, DILATE)))
    assert [function.expression for function in found] == [FILL_HOLES.expression, DILATE.expression]
    assert {function.max_dynamic_shared_size_bytes for function in found} == {1000}


def test_a_kernel_that_several_streams_need_is_compiled_once(monkeypatch, nothing_compiled):
    compiles = []
    monkeypatch.setitem(sys.modules, "cupy", compiling_cupy(compiles.append))
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: cuda.compiled(0, DILATE, 1000), range(8)))
    assert compiles == [DILATE.expression]
    assert all(function is found[0] for function in found)


# `CudaDevice`, with a CuPy whose arrays are in host memory and whose operations are done at once


class FakeArray(np.ndarray):
    """The methods of `cupy.ndarray` that `CudaDevice` uses."""

    def set(self, array, stream):
        assert array.flags.c_contiguous
        self[...] = array

    def get(self, stream, out, blocking):
        assert not blocking
        out[...] = self


class FakeMemory(bytearray):
    """`PinnedMemory` and the pointer to it."""


class FakeEvent:
    def __init__(self, log, **options):
        self.log, self.ptr, self.options = log, 7, options

    def record(self, stream):
        self.log.append("record")

    def synchronize(self):
        self.log.append("wait")


class FakePool:
    """A pool without memory, but for the blocks that it frees."""

    def __init__(self, n_free=0):
        self.n_free, self.n_left = n_free, 0

    def set_limit(self, size):
        assert size > 0  # 0 would be no limit
        self.limit = size

    def malloc(self, nbytes):
        raise NotImplementedError

    def free_all_blocks(self):
        self.n_left, self.n_free = self.n_free, 0


class OutOfMemoryError(MemoryError):
    pass


def device_cupy(monkeypatch, pool):
    """Install a CuPy with one device and return the log of its streams and events."""
    log = []

    def empty(shape, dtype):
        if pool.n_left == 0:
            raise OutOfMemoryError("no memory")
        pool.n_left -= 1
        return np.empty(shape, dtype).view(FakeArray)

    class Device(nullcontext):
        def __init__(self, index):
            super().__init__()
            self.id = index

    class Stream(nullcontext):
        def wait_event(self, event):
            log.append(("wait_event", event.ptr))

    runtime = SimpleNamespace(
        cudaDevAttrMultiProcessorCount=0,
        cudaDevAttrMaxSharedMemoryPerBlockOptin=1,
        deviceGetAttribute=lambda number, index: (132, 227 << 10)[number],
        eventRecord=lambda event, stream: log.append(("eventRecord", event, stream)),
    )
    cupy_cuda = SimpleNamespace(
        Device=Device,
        Stream=Stream,
        Event=lambda **options: FakeEvent(log, **options),
        MemoryPool=FakePool,
        PinnedMemory=FakeMemory,
        PinnedMemoryPointer=lambda memory, offset: memory,
        memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        using_allocator=lambda allocator: nullcontext(),
        runtime=runtime,
    )
    compiler = SimpleNamespace(CompileException=type("CompileException", (Exception,), {}))
    for name, module in (
        ("cupy", SimpleNamespace(cuda=cupy_cuda, empty=empty)),
        ("cupy.cuda", cupy_cuda),
        ("cupy.cuda.compiler", compiler),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    cuda._attributes.cache_clear()
    return log


@pytest.fixture
def device(monkeypatch):
    log = device_cupy(monkeypatch, pool := FakePool(100))
    opened = cuda.CudaDevice(0, pool)
    yield SimpleNamespace(device=opened, log=log)
    cuda._attributes.cache_clear()


def test_memory_that_the_pool_keeps_free_is_used_before_it_runs_out(monkeypatch):
    for n_free in (0, 1):
        pool = FakePool(n_free)
        device_cupy(monkeypatch, pool)
        stream = cuda.CudaDevice(0, pool)
        if n_free:
            assert stream.empty((3,), np.uint8).shape == (3,)
        with pytest.raises(OutOfDeviceMemoryError):
            stream.empty((3,), np.uint8)


@pytest.mark.parametrize(("budget", "working", "slides"), [(1, 1, None), (2, 2, None), (4, 2, 2), (64, 16, 48)])
def test_the_memory_of_batches_and_slides(device, budget, working, slides):
    """In GiB; with little memory all slides are read in windows."""
    extraction = cuda.open_device(0, budget << 30, print)
    streams = [extraction._free.get_nowait().device for _ in range(cuda.STREAMS)]
    assert {stream._pool.limit for stream in streams} == {working << 30}
    assert len({id(stream._pool) for stream in streams}) == 1
    found = extraction._resident and extraction._resident._device._pool.limit
    assert found == (slides and slides << 30)


def test_the_gpu_backend_has_all_functions(device, monkeypatch):
    monkeypatch.setattr(cuda, "problem", lambda: None)
    monkeypatch.setattr(cuda, "count", lambda: 1)
    monkeypatch.setattr(cuda, "memory_budget", lambda index, limit: limit)
    backend = choose("cuda", gpu_memory=600 << 20)
    assert backend.batch_size.nbytes == 50 << 20
    assert choose("cuda", gpu_memory=64 << 30).batch_size.nbytes == 64 << 20
    assert all([backend.read, backend.release, backend.statistics, backend.extract, backend.extract_on_device])


def test_pinned_memory_has_exactly_the_bytes_of_the_array(device):
    array = device.device.empty_host((3, 5), np.uint16)
    assert (array.shape, array.dtype, array.nbytes) == ((3, 5), np.uint16, 30)
    assert len(array.base) == 30


def test_host_arrays_are_kept_until_their_copies_are_done(device):
    source, target = np.arange(6, dtype=np.uint16), np.zeros(6, np.uint16)
    kept = [weakref.ref(source), weakref.ref(target)]
    on_device = device.device.to_device(source)
    into = device.device.to_device(source + 1, out=device.device.empty((6,), np.uint16))
    device.device.to_host(into, target)
    assert target.tolist() == [1, 2, 3, 4, 5, 6]
    assert on_device.tolist() == [0, 1, 2, 3, 4, 5]
    del source, target
    assert all(reference() is not None for reference in kept)
    device.device.synchronize()
    assert all(reference() is None for reference in kept)
    assert device.log == ["record", "wait"]


def test_events_and_other_streams(device):
    event = device.device.record()
    event.wait()
    device.device.wait_for(42)
    assert device.log == ["record", "wait", ("eventRecord", 7, 42), ("wait_event", 7)]


def test_copies_on_the_device_convert(device):
    out = device.device.empty((2, 2), np.uint32)
    device.device.copy(np.array([[1, 2], [3, 4]], np.uint16), out)
    assert out.tolist() == [[1, 2], [3, 4]]


def test_errors_of_the_device_name_the_operation(device, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered")

    monkeypatch.setattr(sys.modules["cupy"].cuda.runtime, "eventRecord", fail)
    with pytest.raises(gx.DeviceError, match="CUDA failed at the work of stream 42: cudaErrorIllegalAddress"):
        device.device.wait_for(42)
