"""The checks of bench/gpu_checks.py on the machine code for sm_90; the default run has those of a few cells each."""

import re
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from cuda_on_cpu import mutants
from gpu_checks import checks, first_cells, large_mask, sanitizer_checks, small
from made.device_arrays import on_gpu
from made.slides import as_slide, one_batch, small_slide
from sass.building import why_not

from gpu_extract import Recipe
from gpu_extract.backends import Backend
from gpu_extract.backends.cuda import backend as cuda
from gpu_extract.backends.cuda.batches import DeviceExtraction
from gpu_extract.backends.cuda.registry import all_kernels
from gpu_extract.backends.cuda.source import kernel_source
from gpu_extract.model import BatchSize

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"machine code cannot be run: {why_not()}")


class SassGpu:
    """What the checks need of `gpu_evidence.Gpu`, on the simulator."""

    xp = SimpleNamespace(asarray=on_gpu)

    def __init__(self, seed=0):
        self.seed = seed

    def open_stream(self):
        from sass.device import SassDevice

        return SassDevice(seed=self.seed)

    def open_backend(self):
        extraction = DeviceExtraction([self.open_stream() for _ in range(2)], print)
        return Backend("sass", extraction.extract, BatchSize(64), streams=2)

    def to_host(self, array):
        return np.asarray(array)


@pytest.fixture
def check(monkeypatch):
    """Return a function that runs a check with the warps of each block in order or, with a seed, in random order."""

    def call(one, seed=0):
        gpu = SassGpu(seed)
        monkeypatch.setattr(cuda, "device_of", lambda array: gpu.open_stream())
        return one.run(gpu)

    return call


FEW_CELLS = sanitizer_checks()
# Without the reference on CuPy, which uses CuPy's own kernels.
ALL = [one for one in checks(seed=0) if not one.name.startswith("reference on CuPy")]


@pytest.mark.parametrize("one", FEW_CELLS, ids=lambda one: one.name)
def test_a_few_cells(check, one):
    check(one)


@pytest.mark.slow
@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_every_check(check, one):
    check(one)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("one", FEW_CELLS, ids=lambda one: one.name)
def test_a_few_cells_in_random_order(check, one, seed):
    check(one, seed)


# Barriers. The simulator must notice that one is missing, whatever order the warps run in.

FUSED = sorted({kernel.source for kernel in all_kernels() if kernel.source.startswith("extract")})
# What a missing __syncwarp changes happens within a warp, whose lanes run together here.
MUTANTS = {
    f"{file}, {name}": (file, source)
    for file in FUSED
    for name, source in mutants(kernel_source(file))
    if "__syncthreads" in name
}


def tasks(file):
    """Yield tasks that together need every barrier of a fused kernel."""
    labels = "uint64" if file == "extract" else "uint32"  # the general kernel takes all types
    yield small(11, labels=labels, tile_size=32)
    for preset in ("sparcspy", "scportrait"):
        yield small(11, labels=labels, preset=preset, tile_size=40, neighbours="exclude")
    # Without quantiles, there is no barrier between one stretched channel and the next.
    yield small(11, labels=labels, tile_size=32, normalization="range", value_range=(0, 50000), minmax=True)
    # A hole in rows of two warps.
    yield large_mask("sparcspy", 64)
    # With an empty mask there are no pixels for quantiles, so no barrier either.
    image, nucleus, cytosol = small_slide(11, label_dtype=labels)
    recipe = Recipe(tile_size=32, on_mismatch="keep", nuclear_channel=None, border="keep")
    yield one_batch(as_slide(image, nucleus, np.where(cytosol < 4, 0, cytosol)), recipe)


def failure(file, source, seed=0):
    """Return the error of a fused kernel with another source, or None."""
    from sass import device
    from sass.program import MachineError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "kernel_source", lambda name: source if name == file else kernel_source(name))
        patch.setattr(device, "program_of", cache(device.program_of.__wrapped__))
        try:
            for task in tasks(file):
                DeviceExtraction([device.SassDevice(seed=seed)], print).extract(*first_cells(task, 4))
        except MachineError as error:
            return str(error)
    return None


@pytest.mark.parametrize("file", FUSED)
def test_the_fused_kernel_has_all_barriers(file):
    assert failure(file, kernel_source(file), seed=1) is None


@pytest.mark.parametrize("name", list(MUTANTS)[4:5])
def test_a_missing_barrier_is_noticed(name):
    assert re.search("without a barrier in between|was never written", failure(*MUTANTS[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_every_missing_barrier_is_noticed(name):
    assert failure(*MUTANTS[name])
