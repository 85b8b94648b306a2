"""Checks beyond results: kernels compile for all architectures, have no races and access only their arrays.

The checks themselves are tested: they must fail for a kernel with a missing barrier or a wrong index.
"""

import dataclasses
from functools import cache
from unittest import mock

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
    fast_extract_kernel,
)
from gpu_extract.backends.cuda.source import kernel_source

TYPES = np.dtype(np.uint16), np.dtype(np.float16)
KERNELS = {"extract": extract_kernel(*TYPES), "extract_fast": fast_extract_kernel(*TYPES, 40)}
SOURCES = {name: kernel_source(name) for name in KERNELS}
# Dynamic shared memory of a tile; on the oldest architecture, such a tile needs global memory instead.
DYNAMIC_SHARED = {arch: min(workspace_nbytes(128), limit - 4096) for arch, limit in ARCHITECTURES.items()}
# One of each kind of arithmetic: float from integers, float from floats, double from either.
USUAL = {("uint16", "float16"), ("float32", "float32"), ("uint32", "uint16"), ("float64", "float64")}


def violations_of(kernels, arch):
    cases = [
        CompileCase(kernel.source, (kernel.expression,), kernel.threads, DYNAMIC_SHARED[arch]) for kernel in kernels
    ]
    return violations(cases, arch)


# The oldest, the newest, and the one that tests/sass executes; the slow tests have all.
@pytest.mark.parametrize("arch", [75, 90, 120])
def test_the_usual_instances_compile_without_spills(arch):
    kernels = [extract_kernel(np.dtype(image), np.dtype(output)) for image, output in sorted(USUAL)]
    kernels += [ADD_LABELS["uint32"], FILL_HOLES, DILATE, BLUR["uint8"], NORMALIZE["uint16"]]
    assert violations_of(kernels, arch) == []


def test_the_usual_fast_instance_compiles_without_spills():
    assert violations_of([fast_extract_kernel(*TYPES, 128)], 90) == []


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
        launched = Launch(kernel.expression, (n_blocks,), (kernel.threads,), arguments, shared_nbytes)
        self.launches.append((kernel, launched))


def cases():
    """Yield slides and recipes that together need every barrier of the kernels."""
    image, nucleus, cytosol = small_slide(11, size=(60, 70))
    # A cell that touches three edges of its tile, but not the right one.
    middle = {i: np.argwhere(nucleus == i)[:, 1].mean() for i in np.unique(nucleus)[1:4]}
    cell_id = max(middle, key=middle.get)
    wide = cytosol.copy()
    wide[(cytosol == 0) & (np.arange(70) < middle[cell_id])] = cell_id
    # Rows of 32 pixels are whole words, rows of 40 pixels are not.
    yield image, nucleus, wide, Recipe.preset("standard").replace(tile_size=32)
    # The first cells have a neighbour all around them.
    crowded = np.where(cytosol == 0, cytosol.max(), cytosol)
    for preset, labels in (("sparcspy", cytosol), ("scportrait", crowded)):
        yield image, nucleus, labels, Recipe.preset(preset).replace(tile_size=40, neighbours="exclude")
    # Without quantiles, there is no barrier between one stretched channel and the next, nor between groups of four.
    ranged = Recipe(tile_size=32, normalization="range", value_range=(0, 50000), minmax=True)
    yield np.concatenate([image, image]), nucleus, cytosol, ranged
    # With empty masks there are no pixels for quantiles, so no barrier either.
    empty = np.where(cytosol == cell_id, 0, cytosol)
    yield image, nucleus, empty, Recipe(tile_size=32, on_mismatch="keep", nuclear_channel=None)


def reversed_masks(program):
    """Return a program with its masks in the opposite order: the cut masks come before the stored ones."""
    last = len(program.masks) - 1
    stored, cut = (tuple(last - m for m in indices) for indices in (program.stored, program.cut))
    return dataclasses.replace(program, masks=program.masks[::-1], stored=stored, cut=cut)


@cache
def launches(name):
    """Return the launches of a kernel for three cells of each case."""
    device = Recorder()
    with mock.patch("gpu_extract.backends.cuda.extract.is_fast", return_value=name == "extract_fast"):
        for image, nucleus, cytosol, recipe in cases():
            window, batch, program = one_batch(as_slide(image, nucleus, cytosol), recipe.replace(border="keep"))
            launch(device, window, batch, program)
            if recipe.base == "standard" and recipe.normalization == "quantile":
                launch(device, window, batch, reversed_masks(program))
            if recipe.base == "sparcspy":  # there is no room for the blurred masks
                device.shared_nbytes_limit = 50_000
                launch(device, window, batch, program)
                device.shared_nbytes_limit = Recorder.shared_nbytes_limit
    return tuple(launched for kernel, launched in device.launches if kernel.source == name)


def launch(device, window, batch, program, n=3):
    """Launch the extraction of the first cells of a batch."""
    launch_extract(
        device,
        program,
        program_arrays(program, None),
        window.image,
        np.stack(window.labels),
        batch.ids[:n],
        batch.corners[:n].astype(np.int32),
        np.zeros((n, *program.tile_shape), np.float16),
        np.zeros((n, len(program.cut), 2)),
    )


def outcome(name, source, check):
    return run_checked(source, [KERNELS[name].expression], launches(name), check, timeout=600)


# AddressSanitizer takes a quarter of a minute to compile the fast kernel.
CHECKS = [(name, check) for name in KERNELS for check in ("orders", "thread", "address")]
CHECKS[-1] = pytest.param(*CHECKS[-1], marks=pytest.mark.slow)


@pytest.mark.parametrize(("name", "check"), CHECKS)
def test_kernels_pass_the_checks(name, check):
    done = outcome(name, SOURCES[name], check)
    assert done.returncode == 0, done.stderr[-2000:]


MUTANTS = {(name, mutant): text for name, source in SOURCES.items() for mutant, text in mutants(source)}


@pytest.mark.parametrize("name", KERNELS)
def test_there_is_a_mutant_for_every_barrier(name):
    assert len([key for key in MUTANTS if key[0] == name]) == sum(
        line.split("//")[0].count(barrier)
        for line in SOURCES[name].splitlines()
        for barrier in ("__syncthreads();", "__syncwarp();")
    )


def is_caught(name, mutant):
    return any(outcome(name, MUTANTS[name, mutant], check).returncode != 0 for check in ("thread", "orders"))


@pytest.mark.parametrize(("name", "mutant"), list(MUTANTS)[::11])
def test_some_mutants_without_a_barrier_are_caught(name, mutant):
    assert is_caught(name, mutant)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mutant"), MUTANTS)
def test_every_mutant_without_a_barrier_is_caught(name, mutant):
    assert is_caught(name, mutant)


# Sanitizers do not see the borders between masks within the workspace: such errors must change values.
WRONG = {
    "a row above the mask": ("y > 0 ? reached[i - W] : 0u", "reached[i - W]"),
    "a word too far": ("u32 high = j + 1 >= 0 && j + 1 < W ? row[j + 1] : 0u", "u32 high = row[j + 1]"),
    "a row of the blur beyond its buffer": ("float *row = rows + warp * S;", "float *row = rows + (warp + 1) * S;"),
    "a pixel beyond the slide": ("y0 + y < height &&", "y0 + y <= height &&"),
    "a tile beyond the output": ("out + (size_t)cell *", "out + (size_t)(cell + 1) *"),
    "the wrong width of a label": (
        "case 4: select((const u32 *)plane",
        "case 4: select((const u16 *)plane",
    ),
}


# The same for the fast kernel.
WRONG_FAST = {
    "a row above the mask": ("if (y + dy >= 0 && y + dy < S) sum", "if (y + dy < S) sum"),
    "a row beyond the slide": (
        "y0 + y >= 0 && y0 + y < height;\n        Label",
        "y0 + y >= 0 && y0 + y <= height;\n        Label",
    ),
    "a strip of the blur beyond the box": ("        if (x >= box.x1) continue;\n", ""),
    "a tile beyond the output": (
        "Out *planes = out + (size_t)shared.cell.n *",
        "Out *planes = out + (size_t)(shared.cell.n + 1) *",
    ),
}
EVERY_WRONG = [("extract", what) for what in WRONG]
EVERY_WRONG += [pytest.param("extract_fast", what, marks=pytest.mark.slow) for what in WRONG_FAST]


@pytest.mark.parametrize(("name", "what"), EVERY_WRONG)
def test_a_wrong_index_is_caught(name, what):
    right, wrong = (WRONG if name == "extract" else WRONG_FAST)[what]
    source = SOURCES[name]
    assert source.count(right) == 1
    mutant = source.replace(right, wrong)
    caught = any(outcome(name, mutant, check).returncode != 0 for check in ("address", "thread"))
    assert caught or values(name, mutant) != values(name, source)


def values(name, source):
    """Return the bytes that the launches write. Run only sources that passed AddressSanitizer."""
    module = CpuModule(source, [KERNELS[name].expression])
    written = []
    for launch in launches(name):
        arguments = [each.copy() if isinstance(each, np.ndarray) else each for each in launch.args]
        function = module.get_function(launch.name)
        function.max_dynamic_shared_size_bytes = launch.shared_mem
        function(launch.grid, launch.block, arguments, launch.shared_mem)
        written += [each.tobytes() for each in arguments if isinstance(each, np.ndarray)]
    return written
