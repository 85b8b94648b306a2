"""The checks of bench/gpu_checks.py on the machine code for sm_90; the default run has those of a few cells each."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
from cuda_on_cpu import mutants
from gpu_checks import checks, first_cells, sanitizer_checks, small
from made.device_arrays import on_gpu
from made.slides import as_slide, one_batch, small_slide
from sass.building import cubin_of, why_not

from gpu_extract import Recipe
from gpu_extract.backends import Backend
from gpu_extract.backends.cuda import backend as cuda
from gpu_extract.backends.cuda.batches import DeviceExtraction
from gpu_extract.backends.cuda.registry import extract_kernel
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


def tasks():
    """Yield tasks that together need every barrier of the fused kernel."""
    yield small(11, tile_size=32)
    for preset in ("sparcspy", "scportrait"):
        yield small(11, preset=preset, tile_size=40, neighbours="exclude")
    # Without quantiles, there is no barrier between one stretched channel and the next.
    yield small(11, tile_size=32, normalization="range", value_range=(0, 50000), minmax=True)
    # With an empty mask there are no pixels for quantiles, so no barrier either.
    image, nucleus, cytosol = small_slide(11)
    recipe = Recipe(tile_size=32, on_mismatch="keep", nuclear_channel=None, border="keep")
    yield one_batch(as_slide(image, nucleus, np.where(cytosol < 4, 0, cytosol)), recipe)


def failure(source, seed=0):
    """Return the error of the fused kernel with another source, or None."""
    from sass import device
    from sass.device import program_of
    from sass.program import MachineError, Program

    kernel = extract_kernel(np.dtype("uint16"), np.dtype("float16"), in_shared=True)
    program = Program(cubin_of(source, kernel.expression), kernel.expression)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpu_extract.backends.cuda.extract.is_fast", lambda *program: False)
        patch.setattr(device, "program_of", lambda launched: program if launched == kernel else program_of(launched))
        try:
            for task in tasks():
                DeviceExtraction([device.SassDevice(seed=seed)], print).extract(*first_cells(task, 4))
        except MachineError as error:
            return str(error)
    return None


SOURCE = kernel_source("extract")
# What a missing __syncwarp changes happens within a warp, whose lanes run together here.
MUTANTS = {name: source for name, source in mutants(SOURCE) if "__syncthreads" in name}


def test_the_fused_kernel_has_all_barriers():
    assert failure(SOURCE, seed=1) is None


@pytest.mark.parametrize("name", list(MUTANTS)[4:5])
def test_a_missing_barrier_is_noticed(name):
    assert re.search("without a barrier in between|was never written", failure(MUTANTS[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_every_missing_barrier_is_noticed(name):
    assert failure(MUTANTS[name])
