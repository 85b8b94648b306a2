"""The checks of `gpu_evidence.py`: everything that runs on a device is compared with the same on the CPU.

A check is a name and a function that takes a `gpu` (see `gpu_device.Gpu`) and returns figures, or raises `CheckError`
or AssertionError if something is wrong. To add one, add it to `checks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import synthetic
from agreement import GPU_RTOL, LEAST_EQUAL, cancellation
from cucim_oracle import assert_ops_agree, assert_statistics_agree
from made.slides import MASK_NAMES, as_slide, bare_batch, bare_window, one_batch, small_slide
from numpy.typing import NDArray

from gpu_extract import Recipe, demo_data, labels, ops
from gpu_extract.backends import reference
from gpu_extract.backends.cuda import labels as cuda_labels
from gpu_extract.backends.cuda.batches import DeviceExtraction
from gpu_extract.backends.cuda.device import Array, Device
from gpu_extract.backends.cuda.extract import workspace_nbytes
from gpu_extract.backends.cuda.registry import C_TYPES, all_kernels, extract_kernel
from gpu_extract.model import Batch, CellImages, Slide, Window
from gpu_extract.recipe import Program

Figures = dict[str, Any]
Task = tuple[Window, Batch, Program]

PRESETS = ("standard", "sparcspy", "scportrait")
# Odd and even. 98 and 99 need just less than the 48 KiB of shared memory that every kernel may use, not counting its
# own variables. 257 and 512 use global memory on every device.
SIZES = (16, 31, 64, 65, 98, 99, 128, 257, 512)
# Memory is filled with one of these bytes before each of two runs; a value that is not written differs between them.
# 0xff makes a float NaN.
POISONS = (0xCD, 0xFF)
# The same code with two libraries: float64, but sums are taken in another order.
LIBRARIES_RTOL = 1e-12
# Blurred masks of `ops`, float32; the tolerance of tests/backends/cuda/test_ops.py.
BLUR_ATOL = 1e-6


class CheckError(Exception):
    """Raised if a result is wrong; the message says how."""


@dataclass(frozen=True)
class Check:
    """A check with its name; ``run`` takes a `gpu`."""

    name: str
    run: Callable[[Any], Figures]


def checks(seed: int) -> list[Check]:
    """Return all checks, the most important first; ``seed`` chooses the random cells."""
    return [
        *(extraction(f"synthetic, random cells, {name}", partial(random_cells, name, seed)) for name in PRESETS),
        *(extraction(f"HT29, {name}, tile {S}", partial(ht29, name, S)) for S in SIZES for name in PRESETS),
        *(
            extraction(f"HT29, {name}, tile {S}, in global memory", partial(ht29, name, S), shared_nbytes=0)
            for S in (31, 128)
            for name in PRESETS
        ),
        Check("HT29, the largest tile in shared memory", check_largest_tile),
        *awkward_extractions(),
        *(Check(f"label statistics, {kind}", partial(check_labels, plane)) for kind, plane in label_planes().items()),
        *(Check(f"ops, tile {S}", partial(check_ops, S)) for S in (31, 65, 128)),
        *(Check(f"ops against cuCIM, tile {S}", partial(check_ops_by_cucim, S)) for S in (31, 64)),
        Check("label statistics against cuCIM", check_labels_by_cucim),
        *(Check(f"pipeline, every cell, {name}", partial(check_pipeline, name)) for name in PRESETS),
        *(Check(f"reference on CuPy, {name}", partial(check_libraries, name)) for name in PRESETS),
        *every_instance(),
    ]


def few_checks() -> list[Check]:
    """Return checks of every kind, of a few cells, for devices that are slow."""
    return [
        extraction("HT29", lambda: first_cells(ht29("scportrait", 31), 3)),
        extraction("HT29, in global memory", lambda: first_cells(ht29("standard", 31), 2), shared_nbytes=0),
        Check("label statistics", partial(check_labels, lambda: np.arange(600).reshape(20, 30))),
        Check("ops", partial(check_ops, 31)),
        Check("ops against cuCIM", partial(check_ops_by_cucim, 31)),
        Check("label statistics against cuCIM", check_labels_by_cucim),
    ]


def sanitizer_checks() -> list[Check]:
    """Return checks of a few cells with every kind of kernel, for a tool that makes each memory access slow."""
    return [
        *(
            extraction(f"{name}, tile {S}{where}", partial(small, 3, tile_size=S, preset=name), shared_nbytes=nbytes)
            for name in PRESETS
            for S in (32, 48)
            for where, nbytes in (("", None), (", in global memory", 0))
        ),
        extraction("float64", partial(small, 3, dtype="float64", tile_size=32)),
        Check("label statistics", partial(check_labels, lambda: small_slide(3)[2])),
        Check("ops", partial(check_ops, 33)),
    ]


# Extractions


def extraction(name: str, task: Callable[[], Task], **options: Any) -> Check:
    """Return the check of the fused kernel on a task; ``options`` are those of `check_extraction`."""
    return Check(name, lambda gpu: check_extraction(gpu.open_stream, *task(), **options))


def check_extraction(
    open_stream: Callable[[], Device],
    window: Window,
    batch: Batch,
    program: Program,
    limits: NDArray[np.float64] | None = None,
    *,
    shared_nbytes: int | None = None,
) -> Figures:
    """Compare a batch with the reference, in poisoned memory; ``shared_nbytes`` replaces the device's own limit."""
    runs = []
    for poison in POISONS:
        runs.append(extract_on(PoisonedDevice(open_stream(), poison, shared_nbytes), window, batch, program, limits))
    for name in ("images", "limits"):
        if getattr(runs[0], name).tobytes() != getattr(runs[1], name).tobytes():
            raise CheckError(f"{name} depend on what was in memory before: not every element is written")
    return agreement(runs[0], reference.extract(window, batch, program, limits), program)


def extract_on(stream: Device, *task: Any) -> CellImages:
    """Extract a batch on one stream of a device; the other arguments are those of `reference.extract`."""
    return DeviceExtraction([stream], print).extract(*task)


def check_largest_tile(gpu: Any) -> Figures:
    """Check a tile that uses all of a block's shared memory."""
    limit = gpu.open_stream().shared_nbytes_limit
    tile_size = max(size for size in range(1, 300) if workspace_nbytes(size) <= limit)
    return {"tile_size": tile_size, **check_extraction(gpu.open_stream, *ht29("standard", tile_size))}


class PoisonedDevice:
    """A `Device` whose new arrays, on the device and in host memory, are filled with one byte."""

    def __init__(self, device: Device, poison: int, shared_nbytes_limit: int | None = None) -> None:
        self._device, self._poison = device, poison
        self.multiprocessors = device.multiprocessors
        self.shared_nbytes_limit = device.shared_nbytes_limit if shared_nbytes_limit is None else shared_nbytes_limit

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return an array as `Device.empty` does, filled with the byte."""
        return self._device.to_device(self.empty_host(shape, dtype))

    def empty_host(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Return an array as `Device.empty_host` does, filled with the byte."""
        array = self._device.empty_host(shape, dtype)
        array.reshape(-1).view(np.uint8)[:] = self._poison
        return array


def agreement(found: CellImages, expected: CellImages, program: Program) -> Figures:
    """Return how much cells differ from the reference, by the criteria of tests/agreement.py.

    Raises
    ------
    CheckError
        If they differ too much.
    """
    M, dtype = len(program.stored), program.output_dtype
    if found.images.dtype != expected.images.dtype or found.images.shape != expected.images.shape:
        raise CheckError(f"tiles are {found.images.shape} {found.images.dtype}, not {expected.images.shape} {dtype}")
    if not (np.array_equal(found.rows, expected.rows) and np.array_equal(found.ids, expected.ids)):
        raise CheckError("rows or ids differ")
    if dtype.kind == "f" and not np.isfinite(found.images).all():
        raise CheckError(f"{np.count_nonzero(~np.isfinite(found.images))} values are not finite")
    if program.recipe.stored_sigma == 0 and not np.array_equal(found.images[:, :M], expected.images[:, :M]):
        raise CheckError("binary masks differ")
    one, other = found.images.astype(np.float64), expected.images.astype(np.float64)
    difference = np.abs(one - other)
    uncertain = cancellation(expected.limits, program, GPU_RTOL)
    largest = np.abs(expected.limits).max(initial=0.0)
    figures = {
        "cells": len(found),
        "equal": float(1.0 - np.count_nonzero(difference) / max(difference.size, 1)),
        "level_error": float(np.abs(found.limits - expected.limits).max(initial=0.0) / (largest or 1.0)),
    }
    if dtype.kind == "f" and dtype.itemsize > 2:
        figures["max_error"] = float((difference / np.maximum(1.0, np.abs(other))).max(initial=0.0))
        good = figures["max_error"] <= max(GPU_RTOL, float(np.finfo(dtype).eps))
    else:
        step: Any = 1.0
        if dtype.kind == "f":
            step = np.spacing(np.maximum(np.abs(found.images), np.abs(expected.images))).astype(np.float64)
        excess = np.maximum(difference - uncertain, 0)
        figures["max_ulp"] = float((excess / step).max(initial=0.0))
        figures["cancellation"] = float(uncertain.max(initial=0.0))
        few = np.count_nonzero(excess) <= max((1 - LEAST_EQUAL) * difference.size, 2)
        good = figures["max_ulp"] <= 1 and bool(few)
    if not good or not figures["level_error"] <= 2 * GPU_RTOL:
        raise CheckError(f"too far from the reference: {figures}")
    return figures


def first_cells(task: Task, n: int) -> Task:
    """Return a task with its first n cells only."""
    window, batch, program = task
    return window, pick(batch, slice(n)), program


def pick(batch: Batch, rows: Any) -> Batch:
    """Return some cells of a batch."""
    return replace(batch, rows=batch.rows[rows], ids=batch.ids[rows], corners=batch.corners[rows])


@cache
def demo_slide() -> Slide:
    """Return the HT29 sample that ships with the package."""
    sample = demo_data.paths()
    return as_slide(sample.image, sample.nucleus, sample.cytosol)


@cache
def synthetic_slide() -> Slide:
    """Make a slide of 2048 x 2048 pixels with bench/synthetic.py: 1,700 cells."""
    return as_slide(*synthetic.make_slide(2048))


def ht29(preset: str, tile_size: int) -> Task:
    """Return cells of the demo data; fewer if tiles are large, because the reference is slow."""
    recipe = Recipe.preset(preset).replace(tile_size=tile_size, border="keep")
    return first_cells(one_batch(demo_slide(), recipe), max(2, 24 * 64**2 // max(tile_size, 64) ** 2))


def random_cells(preset: str, seed: int, n: int = 48) -> Task:
    """Return random cells of the synthetic slide."""
    window, batch, program = one_batch(synthetic_slide(), Recipe.preset(preset))
    dice = np.random.default_rng((seed, PRESETS.index(preset)))
    return window, pick(batch, np.sort(dice.choice(len(batch), n, replace=False))), program


def small(
    seed: int,
    *,
    preset: str = "standard",
    dtype: str = "uint16",
    labels: str = "uint32",
    ids: list[int] | None = None,
    ground: float | None = None,
    **changes: Any,
) -> Task:
    """Return a small slide of difficult cells; with ``ground``, with low contrast on that background intensity."""
    image, *planes = small_slide(seed, dtype=dtype if ground is None else "float32", label_dtype=labels, ids=ids)
    if ground is not None:
        image = (image / 40 + ground).astype(dtype)
    return one_batch(as_slide(image, *planes), Recipe.preset(preset).replace(**{"tile_size": 31, **changes}))


def large_mask(preset: str, tile_size: int) -> Task:
    """Return a mask larger than its tile, or a tile larger than the slide."""
    plane = np.ones((20, 24), np.uint32)
    plane[8:12, 8:12] = 0
    image = np.random.default_rng(6).integers(0, 999, (2, 20, 24)).astype(np.uint16)
    program = Recipe.preset(preset).replace(tile_size=tile_size).program(MASK_NAMES, 2, image.dtype)
    corners = [(10 - tile_size // 2, 12 - tile_size // 2), (-tile_size // 2, -tile_size // 2)]
    return bare_window(image, plane, plane), bare_batch([1, 1], corners, (20, 24)), program


NORMALISATIONS: dict[str, dict[str, Any]] = {
    "range": {"normalization": "range", "value_range": (1000, 30000)},
    "dtype": {"normalization": "dtype"},
    "not cut": {"apply_masks": False, "quantile_pixels": "tile"},
    "cut before": {"cut": "before", "neighbours": "exclude"},
    "soft masks": {"stored_sigma": 1.5, "quantiles": (0.0, 1.0)},
    "middle quantiles": {"quantiles": (0.3, 0.6), "quantile_pixels": "tile", "minmax": True},
}


def awkward_extractions() -> Iterator[Check]:
    """Yield checks of pixel types, label types, normalizations, outputs, large ids, backgrounds, masks, and limits."""
    for dtype in C_TYPES:
        for preset in PRESETS:
            yield extraction(f"{dtype} pixels, {preset}", partial(small, 1, dtype=dtype, preset=preset))
        yield extraction(f"{dtype} pixels, raw", partial(small, 1, dtype=dtype, normalization="none"))
    for dtype in ("uint8", "int16", "uint32", "int64", "uint64"):
        yield extraction(f"{dtype} labels", partial(small, 2, labels=dtype))
    ids = [5, 2**32 + 5, 2**33 + 5, 2**63 + 5, 2**64 - 1]
    yield extraction("ids above 2^32", partial(small, 3, labels="uint64", ids=ids, border="keep"))
    for name, changes in NORMALISATIONS.items():
        for output in ("float16", "float32", "uint8", "uint16"):
            task = partial(small, 4, tile_size=40, output_dtype=output, **changes)
            yield extraction(f"{name} to {output}", task)
    for dtype, ground in (("uint16", 60000), ("float32", 1e6), ("uint32", 4e9), ("float64", 1e12)):
        yield extraction(f"small contrasts, {dtype}", partial(small, 2, dtype=dtype, ground=ground))
    for preset in PRESETS:
        for S in (1, 2, 9, 64):
            yield extraction(f"mask larger than the tile, {preset}, tile {S}", partial(large_mask, preset, S))
    given = np.array([[100.0, 5e4], [7, 7], [0, 1]])
    yield extraction("given limits", partial(small, 5, quantile_scope="slide"), limits=given)


def every_instance() -> Iterator[Check]:
    """Yield checks of the fused kernel instances that no other check uses; they take long to compile."""
    for image in C_TYPES:
        for output in ("float16", "float32", "uint8", "uint16"):
            if extract_kernel(np.dtype(image), np.dtype(output)) in all_kernels():
                task = partial(small, 1, dtype=image, output_dtype=output)
                yield extraction(f"{image} pixels to {output}", task)
    task = partial(small, 1, dtype="uint8", normalization="none", output_dtype="uint16")
    yield extraction("uint8 pixels, raw, to uint16", task)


# Other parts


def check_pipeline(preset: str, gpu: Any) -> Figures:
    """Compare every cell of the synthetic slide, through the real pipeline, with the cpu backend."""
    from gpu_extract import backends, planning

    plan = planning.make_plan([synthetic_slide()], Recipe.preset(preset).replace(tile_size=64))
    found, expected = (all_cells(plan, backend) for backend in (gpu.open_backend(), backends.choose("cpu")))
    return agreement(found, expected, plan.program)


def all_cells(plan: Any, backend: Any) -> CellImages:
    """Return all cells of a plan, in the order of rows."""
    from gpu_extract import pipeline

    with ThreadPoolExecutor(4) as workers:
        parts = list(pipeline.tiles(plan, backend, workers, 4))
    order = np.argsort(np.concatenate([part.rows for part in parts]))
    names = ("rows", "ids", "images", "limits")
    return CellImages(*(np.concatenate([getattr(part, name) for part in parts])[order] for name in names))


def check_libraries(preset: str, gpu: Any) -> Figures:
    """Compare the reference on CuPy with the same code on NumPy."""
    task = ht29(preset, 64)
    found = reference.extract(*task, libraries=gpu.libraries)
    figures = agreement(found, reference.extract(*task), task[2])
    if figures["level_error"] > LIBRARIES_RTOL:
        raise CheckError(f"limits differ: {figures}")
    return figures


def label_planes() -> dict[str, Callable[[], NDArray[Any]]]:
    """Return label planes by what is special about them."""
    rng = np.random.default_rng(0)
    planes: dict[str, Callable[[], NDArray[Any]]] = {
        "HT29": lambda: demo_slide().masks["cytosol"].read(0, 0, *demo_slide().size)[0],
        "synthetic": lambda: synthetic_slide().masks["cytosol"].read(0, 0, *synthetic_slide().size)[0],
        "high bits": lambda: np.arange(1, 6001, dtype=np.uint64).reshape(60, 100) << np.uint64(48),
        "every pixel its own": lambda: rng.permutation(200 * 301).astype(np.uint32).reshape(200, 301),
        "no label": lambda: np.zeros((40, 50), np.uint16),
    }
    for dtype in ("uint8", "int16", "uint32", "int64", "uint64"):
        planes[dtype] = lambda dtype=dtype: small_slide(3, label_dtype=dtype)[2]
    return planes


def check_labels(plane: Callable[[], NDArray[Any]], gpu: Any) -> Figures:
    """Compare label statistics; they are integers and must be equal."""
    from gpu_extract.sources.arrays import ArrayRaster

    raster = ArrayRaster(plane(), "cytosol")
    expected = labels.label_statistics(raster)
    for poison in POISONS:
        found = cuda_labels.label_statistics(raster, PoisonedDevice(gpu.open_stream(), poison))
        for name in ("ids", "counts", "sums", "boxes", "touches"):
            if not np.array_equal(getattr(found, name), getattr(expected, name)):
                raise CheckError(f"{name} differ")
    return {"labels": len(expected)}


def some_tiles(tile_size: int) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    """Return masks (n, S, S) of cells, every other one with a hole, and their images (n, C, S, S)."""
    window, batch, _ = one_batch(demo_slide(), Recipe(tile_size=tile_size, border="keep"))
    some = list(zip(batch.ids[:20], batch.corners[:20], strict=True))
    masks = np.stack([reference.cut_tile(window.labels[1], *corner, tile_size) == i for i, corner in some])
    images = np.stack([reference.cut_tile(window.image, *corner, tile_size) for _, corner in some])
    masks[::2, tile_size // 2, tile_size // 2] = False
    return masks, images


def check_ops_by_cucim(tile_size: int, gpu: Any) -> Figures:
    """Compare functions of `gpu_extract.ops` on arrays of the device with cuCIM."""
    masks, images = some_tiles(tile_size)
    assert_ops_agree(masks, images[:, 0], gpu.skimage(), gpu.xp, gpu.to_host)
    return {"tiles": len(masks)}


def check_labels_by_cucim(gpu: Any) -> Figures:
    """Compare label statistics on the device with cuCIM."""
    from gpu_extract.sources.arrays import ArrayRaster

    plane = demo_slide().masks["cytosol"].read(0, 0, *demo_slide().size)[0]
    found = cuda_labels.label_statistics(ArrayRaster(plane, "cytosol"), gpu.open_stream())
    assert_statistics_agree(plane, found, gpu.skimage(), gpu.xp, gpu.to_host)
    return {"labels": len(found)}


def check_ops(tile_size: int, gpu: Any) -> Figures:
    """Compare each function of `gpu_extract.ops` on arrays of the device with the same on NumPy arrays."""
    masks, images = some_tiles(tile_size)
    calls: dict[str, tuple[Callable[..., Array], tuple[Any, ...], float]] = {
        "fill_holes": (ops.fill_holes, (masks,), 0.0),
        "dilate": (partial(ops.dilate, radius=3), (masks,), 0.0),
        "gaussian_blur": (partial(ops.gaussian_blur, sigma=2.5), (masks,), BLUR_ATOL),
        "apply_mask": (ops.apply_mask, (images, masks), 0.0),
        "apply_mask, soft": (ops.apply_mask, (images, masks / np.float32(3)), 0.0),
        "normalize": (partial(ops.normalize, lower=3.0, upper=200.0), (images,), GPU_RTOL),
    }
    errors = {}
    for name, (function, arrays, most) in calls.items():
        expected = function(*arrays)
        on_device = function(*(gpu.xp.asarray(array) for array in arrays))
        found = gpu.to_host(on_device)
        if found.dtype != expected.dtype or found.shape != expected.shape:
            raise CheckError(f"{name} gives {found.shape} {found.dtype}, not {expected.shape} {expected.dtype}")
        errors[name] = float(np.abs(found.astype(np.float64) - expected.astype(np.float64)).max())
        if not errors[name] <= most:
            raise CheckError(f"{name} is off by {errors[name]}, more than {most}")
    return {"max_errors": errors}
