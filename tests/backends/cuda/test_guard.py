"""Checks beyond results: kernels compile for all architectures, have no races and access only their arrays.

The checks themselves are tested: they must fail for a kernel with a missing barrier or a wrong index.
"""

from functools import cache

import numpy as np
import pytest
from cuda_on_cpu import CpuModule, Launch, mutants, run_checked
from made.slides import as_slide, one_batch, small_slide
from nvrtc import ARCHITECTURES, CompileCase, violations

from gpu_extract import Recipe
from gpu_extract.backends.cuda.extract import launch_extract, program_arrays, workspace_nbytes
from gpu_extract.backends.cuda.registry import (
    ADD_LABELS,
    BLUR,
    DILATE,
    FILL_HOLES,
    NORMALIZE,
    all_kernels,
    extract_kernel,
)
from gpu_extract.backends.cuda.source import kernel_source

SOURCE = kernel_source("extract")
KERNEL = extract_kernel(np.dtype(np.uint16), np.dtype(np.float16))
# Dynamic shared memory of a tile; on the oldest architecture, such a tile needs global memory instead.
DYNAMIC_SHARED = {arch: min(workspace_nbytes(128), limit - 4096) for arch, limit in ARCHITECTURES.items()}
# One of each kind of arithmetic: float from integers, float from floats, double from either.
USUAL = {("uint16", "float16"), ("float32", "float32"), ("uint32", "uint16"), ("float64", "float64")}


def violations_of(kernels, arch):
    cases = [
        CompileCase(kernel.source, (kernel.expression,), kernel.threads, DYNAMIC_SHARED[arch]) for kernel in kernels
    ]
    return violations(cases, arch)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_usual_instances_compile_without_spills(arch):
    kernels = [extract_kernel(np.dtype(image), np.dtype(output)) for image, output in sorted(USUAL)]
    kernels += [ADD_LABELS["uint32"], FILL_HOLES, DILATE, BLUR["uint8"], NORMALIZE["uint16"]]
    assert violations_of(kernels, arch) == []


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("kernel", all_kernels(), ids=lambda kernel: kernel.expression)
def test_every_instance_compiles_without_spills(kernel, arch):
    assert violations_of([kernel], arch) == []


class Recorder:
    """A device that records launches instead of running them."""

    multiprocessors, shared_nbytes_limit = 1, 1 << 20

    def __init__(self):
        self.launches = []

    def empty(self, shape, dtype):
        return np.zeros(shape, dtype)

    def launch(self, kernel, n_blocks, arguments, shared_nbytes=0):
        self.launches.append(Launch(kernel.expression, (n_blocks,), (kernel.threads,), arguments, shared_nbytes))


def cases():
    """Yield cytosol planes and recipes that together need every barrier of the kernel."""
    _image, nucleus, cytosol = small_slide(11, size=(60, 70))
    # A cell that touches three edges of its tile, but not the right one.
    middle = {i: np.argwhere(nucleus == i)[:, 1].mean() for i in np.unique(nucleus)[1:4]}
    cell_id = max(middle, key=middle.get)
    wide = cytosol.copy()
    wide[(cytosol == 0) & (np.arange(70) < middle[cell_id])] = cell_id
    # Rows of 32 pixels are whole words, rows of 40 pixels are not.
    yield wide, Recipe.preset("standard").replace(tile_size=32)
    for preset in ("sparcspy", "scportrait"):
        yield cytosol, Recipe.preset(preset).replace(tile_size=40, neighbours="exclude")
    # Without quantiles, there is no barrier between one stretched channel and the next.
    yield cytosol, Recipe(tile_size=32, normalization="range", value_range=(0, 50000), minmax=True)
    # With empty masks there are no pixels for quantiles, so no barrier either.
    yield np.where(cytosol == cell_id, 0, cytosol), Recipe(tile_size=32, on_mismatch="keep", nuclear_channel=None)


@cache
def launches():
    """Return the launches of three cells for each case."""
    device = Recorder()
    image, nucleus, _ = small_slide(11, size=(60, 70))
    for cytosol, recipe in cases():
        window, batch, program = one_batch(as_slide(image, nucleus, cytosol), recipe.replace(border="keep"))
        n = 3
        images, used_limits = np.zeros((n, *program.tile_shape), np.float16), np.zeros((n, 3, 2))
        corners = batch.corners[:n].astype(np.int32)
        launch_extract(
            device,
            program,
            program_arrays(program, None),
            window.image,
            np.stack(window.labels),
            batch.ids[:n],
            corners,
            images,
            used_limits,
        )
    return tuple(device.launches)


def outcome(source, check):
    return run_checked(source, [KERNEL.expression], launches(), check, timeout=600)


@pytest.mark.parametrize("check", ["orders", "thread", "address"])
def test_extract_passes_the_checks(check):
    done = outcome(SOURCE, check)
    assert done.returncode == 0, done.stderr[-2000:]


MUTANTS = dict(mutants(SOURCE))


def test_there_is_a_mutant_for_every_barrier():
    assert len(MUTANTS) == sum(
        line.split("//")[0].count(barrier)
        for line in SOURCE.splitlines()
        for barrier in ("__syncthreads();", "__syncwarp();")
    )


def is_caught(name):
    return any(outcome(MUTANTS[name], check).returncode != 0 for check in ("thread", "orders"))


@pytest.mark.parametrize("name", list(MUTANTS)[::6])
def test_some_mutants_without_a_barrier_are_caught(name):
    assert is_caught(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_without_a_barrier_is_caught(name):
    assert is_caught(name)


# Sanitizers do not see the borders between masks within the workspace: such errors must change values.
WRONG = {
    "a row above the mask": ("y > 0 ? reached[i - W] : 0u", "reached[i - W]"),
    "a word too far": ("u32 high = j + 1 >= 0 && j + 1 < W ? row[j + 1] : 0u", "u32 high = row[j + 1]"),
    "a row of the blur beyond its buffer": ("float *row = rows + warp * S;", "float *row = rows + (warp + 1) * S;"),
    "a pixel beyond the slide": ("y0 + y < height &&", "y0 + y <= height &&"),
    "a tile beyond the output": ("out + (size_t)cell *", "out + (size_t)(cell + 1) *"),
    "the wrong width of a label": (
        "case 4: select_labels((const u32 *)plane",
        "case 4: select_labels((const u16 *)plane",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_index_is_caught(name):
    right, wrong = WRONG[name]
    assert SOURCE.count(right) == 1
    mutant = SOURCE.replace(right, wrong)
    caught = [check for check in ("address", "thread") if outcome(mutant, check).returncode != 0]
    assert caught or values(mutant) != values(SOURCE)


def values(source):
    """Return the bytes that the launches write. Run only sources that passed AddressSanitizer."""
    module = CpuModule(source, [KERNEL.expression])
    written = []
    for launch in launches():
        arguments = [each.copy() if isinstance(each, np.ndarray) else each for each in launch.args]
        function = module.get_function(launch.name)
        function(launch.grid, launch.block, arguments, launch.shared_mem)
        written += [arguments[-2].tobytes(), arguments[-1].tobytes()]
    return written
