"""The cuda backend on a GPU, and its messages if there is none.

The first part needs a GPU: see the fixture ``gpu``.
"""

import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from agreement import GPU_RTOL, assert_agrees
from made.slides import as_slide, one_batch, small_slide

import gpu_extract as gx
from gpu_extract import Recipe, demo_data
from gpu_extract.backends import choose, try_device, why_not
from gpu_extract.backends.cuda import backend as cuda


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
