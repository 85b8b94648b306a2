"""The timings of `gpu_evidence.py`: each figure with its target and the bandwidth measured in the same run.

A timing is a function that takes a `Bench` and returns entries made by `entry`. To add one, add it to `TIMINGS`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import synthetic
from gpu_checks import agreement, pick
from made.slides import as_slide
from numpy.typing import NDArray

from gpu_extract import Recipe, labels, planning
from gpu_extract.backends import reference
from gpu_extract.backends.cuda import labels as cuda_labels
from gpu_extract.backends.cuda.device import Array
from gpu_extract.backends.cuda.extract import launch_extract, program_arrays, workspace_nbytes
from gpu_extract.backends.cuda.registry import extract_kernel
from gpu_extract.backends.reference import Libraries, disk
from gpu_extract.cpus import default_threads
from gpu_extract.model import Batch, BatchSize, CellImages
from gpu_extract.recipe import Program

Figures = dict[str, Any]

PRESETS = ("standard", "sparcspy", "scportrait")
GB = 1e9
# Cells per launch on the resident slide: their tiles are 2.7 GB, much more than any cache.
CELLS_PER_LAUNCH = 16384
# Tiles that the hand-written version processes at a time, and cells that are enough to time the slow versions.
HAND_WRITTEN_BATCH, HAND_WRITTEN_CELLS, REFERENCE_CELLS = 1024, 8192, 96
# The hand-written version computes in float32: the error that its values may have, and the share of values that may
# have larger errors (where rounding changes a mask or a quantile).
HAND_WRITTEN_ERROR, HAND_WRITTEN_SHARE = 2e-3, 1e-3


class Target(NamedTuple):
    """A limit that a figure should meet: at least ``least``, or at most ``most``."""

    figure: str
    least: float | None = None
    most: float | None = None

    def against(self, figures: Figures) -> Figures:
        """Return the target together with the measured value."""
        value = figures.get(self.figure)
        limit = {"at_least": self.least} if self.least is not None else {"at_most": self.most}
        met = None
        if value is not None:
            met = value >= self.least if self.least is not None else value <= (self.most or 0.0)
        return {"figure": self.figure, **limit, "measured": value, "met": met}


def entry(name: str, figures: Figures, *targets: Target) -> Figures:
    """Return one entry of the timings."""
    return {"name": name, **figures, "targets": [target.against(figures) for target in targets]}


def run_timings(bench: Bench, deadline: float) -> list[Figures]:
    """Return the entries of all timings; those not begun at ``deadline`` (of `time.monotonic`) are skipped."""
    entries: list[Figures] = []
    for timing in TIMINGS:
        name = timing.__name__.replace("_", " ")
        if time.monotonic() > deadline:
            entries.append({"name": name, "skipped": "no time left"})
            continue
        print(f"  {name} ...", file=sys.stderr, flush=True)
        start = time.monotonic()
        try:
            found = timing(bench)
        except ModuleNotFoundError as error:
            found = [{"name": name, "skipped": str(error)}]
        except Exception as error:  # a timing that raises has failed; the others go on
            found = [{"name": name, "ok": False, "error": f"{type(error).__name__}: {error}"}]
        found[-1]["took_seconds"] = round(time.monotonic() - start, 1)
        entries += found
        bench.gpu.release()
    return entries


class Bench:
    """The slide on which everything is timed, and the figures with which later timings are compared.

    Parameters
    ----------
    gpu : Gpu
        See `gpu_evidence`.
    base_size : int, pixels
        Side of the synthetic slide, which is repeated.
    repeats : int
        Number of repeats down and across; fewer if memory is short, which is then said in ``notes``.
    tile_size : int
    device : str
        The device with which `gpu_extract.extract` is called.
    """

    def __init__(self, gpu: Any, base_size: int, repeats: int, tile_size: int = 128, device: str = "cuda") -> None:
        self.gpu, self.tile_size, self.device = gpu, tile_size, device
        self.notes: list[str] = []
        self.bandwidth: dict[str, float] = {}  # bytes per second by kind of copy
        self.fused: dict[str, float] = {}  # cells per second of the fused kernel by preset
        fitting = fitting_repeats(base_size, repeats, gpu.free_nbytes(), free_host_nbytes())
        if fitting < repeats:
            self.notes.append(f"memory is short: the slide is {fitting}, not {repeats} times {base_size} pixels wide")
        self.slide = repeated(synthetic.make_slide(base_size), fitting)
        self.plan = planning.make_plan([as_slide(*self.slide)], Recipe(tile_size=tile_size, border="window"))
        # In the order of the pipeline, so that neighboring cells are processed together.
        order = np.concatenate([batch.rows for batch in planning.batches(self.plan, BatchSize(2048, 512 << 20))])
        self.ids, self.centers = self.plan.cells.ids[order], self.plan.cells.centers[order]

    @property
    def about(self) -> str:
        """One line about the slide of the figures."""
        C, H, W = self.slide.image.shape
        return f"slide {H} x {W}, {C} uint16 channels, 2 label planes, {len(self.ids)} cells, tile {self.tile_size}"

    @property
    def corners(self) -> NDArray[np.int32]:
        """First pixel of each tile, (N, 2), cells in the order of processing."""
        return (self.centers - self.tile_size // 2).astype(np.int32)

    def plan_of(self, preset: str) -> planning.Plan:
        """Return the plan with another recipe for the same cells."""
        recipe = Recipe.preset(preset).replace(tile_size=self.tile_size, border="window")
        slide = self.plan.slides[0]
        program = recipe.program(slide.mask_names, slide.image.shape[0], slide.image.dtype)
        return dataclasses.replace(self.plan, program=program)

    @cached_property
    def image(self) -> Array:
        """Image of the slide, on the device."""
        return self.gpu.upload(self.slide.image)

    @cached_property
    def labels(self) -> Array:
        """Label planes of the slide, on the device, (2, H, W)."""
        return self.gpu.upload(np.stack([self.slide.nucleus, self.slide.cytosol]))


def repeated(base: synthetic.Slide, repeats: int) -> synthetic.Slide:
    """Return a slide ``repeats`` times as wide and as high; each repeat has ids of its own."""
    n_ids = max(int(base.nucleus.max()), int(base.cytosol.max()))
    assert n_ids * repeats**2 < 2**32

    def planes(labels: NDArray[np.uint32]) -> NDArray[np.uint32]:
        H, W = labels.shape
        out = np.empty((repeats * H, repeats * W), labels.dtype)
        for k in range(repeats**2):
            y, x = k // repeats * H, k % repeats * W
            out[y : y + H, x : x + W] = np.where(labels, labels + np.uint32(k * n_ids), np.uint32(0))
        return out

    return synthetic.Slide(np.tile(base.image, (1, repeats, repeats)), planes(base.nucleus), planes(base.cytosol))


def fitting_repeats(base_size: int, repeats: int, device_nbytes: int, host_nbytes: int) -> int:
    """Return how many repeats fit in memory: on the device with 4 GB of tiles, and three times in host memory."""

    def fits(n: int) -> bool:
        slide = (n * base_size) ** 2 * (3 * 2 + 2 * 4)
        return slide + (4 << 30) <= 0.9 * device_nbytes and 3 * slide + (8 << 30) <= host_nbytes

    return next((n for n in range(repeats, 1, -1) if fits(n)), 1)


def free_host_nbytes() -> int:
    """Return the bytes of available host memory."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# The timings


def copy_bandwidth(bench: Bench) -> list[Figures]:
    """Time copies of the slide's pixels: within the device (bytes read and written), and from and to pinned memory."""
    gpu = bench.gpu
    pixels = bench.image.reshape(-1)
    n = min(len(pixels), 1 << 29)
    source, target = pixels[:n], gpu.device.empty((n,), pixels.dtype)
    host = gpu.device.empty_host((n,), pixels.dtype)
    host[:] = bench.slide.image.reshape(-1)[:n]
    seconds = {
        "device": gpu.seconds(lambda: gpu.libraries.xp.copyto(target, source), 20),
        "upload": gpu.seconds(lambda: gpu.device.to_device(host), 5),
        "download": gpu.seconds(lambda: gpu.device.to_host(source, host), 5),
    }
    nbytes = {"device": 2 * source.nbytes, "upload": source.nbytes, "download": source.nbytes}
    for name, times in seconds.items():
        bench.bandwidth[name] = nbytes[name] / statistics.median(times)
    return [
        entry(f"copy, {name}", {"nbytes": nbytes[name], "GB_per_s": bench.bandwidth[name] / GB, "seconds": times})
        for name, times in seconds.items()
    ]


def fused_kernel(bench: Bench) -> list[Figures]:
    """Time the fused kernel with the slide resident, for each recipe."""
    return [_fused(bench, preset) for preset in PRESETS]


def _fused(bench: Bench, preset: str) -> Figures:
    gpu, program = bench.gpu, bench.plan_of(preset).program
    image, planes = bench.image, bench.labels
    ids, corners = gpu.upload(bench.ids), gpu.upload(bench.corners)
    arrays = type(program_arrays(program, None))(*(gpu.upload(array) for array in program_arrays(program, None)))
    n, most = len(ids), min(len(ids), CELLS_PER_LAUNCH)
    images = gpu.device.empty((most, *program.tile_shape), program.output_dtype)
    images[...] = np.nan  # a value that is not written fails the comparison below
    used = gpu.device.empty((most, len(program.cut), 2), np.float64)

    def work() -> None:
        for start in range(0, n, most):
            part = slice(start, min(start + most, n))
            m = part.stop - part.start
            cells = ids[part], corners[part], images[:m], used[:m]
            launch_extract(gpu.device, program, arrays, image, planes, *cells)

    seconds = gpu.seconds(work, 5)
    last = np.arange(n - n % most if n % most else n - most, n)
    _compare_some(bench, program, last, gpu.to_host(images[: len(last)]), gpu.to_host(used[: len(last)]))

    rate = n / statistics.median(seconds)
    slide_nbytes = image.nbytes + planes.nbytes
    tile_nbytes = int(np.prod(program.tile_shape)) * program.output_dtype.itemsize
    ideal = tiles_nbytes(program, planes.dtype.itemsize, image.dtype.itemsize)
    bench.fused[preset] = rate
    kernel = extract_kernel(program.image_dtype, program.output_dtype)
    figures = {
        "n_cells": n,
        "cells_per_s": rate,
        "bytes_per_cell": ideal,  # each pixel of a tile is read once and written once
        "GB_per_s": rate * ideal / GB,
        "share_of_copy": rate * ideal / bench.bandwidth["device"],
        # The bytes that must go through memory if the cache serves the pixels that several tiles share.
        "least_bytes_per_cell": tile_nbytes + slide_nbytes / n,
        "least_share_of_copy": rate * (tile_nbytes + slide_nbytes / n) / bench.bandwidth["device"],
        "kernel": gpu.kernel_facts(kernel, workspace_nbytes(bench.tile_size)),
        "seconds": seconds,
    }
    return entry(
        f"fused kernel, {preset}", figures, Target("cells_per_s", least=1e6), Target("share_of_copy", least=0.4)
    )


def tiles_nbytes(program: Program, label_nbytes: int, pixel_nbytes: int) -> int:
    """Return the bytes of one cell: labels and pixels under its tile, and the tile that is written."""
    area = program.recipe.tile_size**2
    M, C = len(program.stored), len(program.cut)
    return area * (M * label_nbytes + C * pixel_nbytes + (M + C) * program.output_dtype.itemsize)


def _batch(bench: Bench, rows: NDArray[np.int64]) -> Batch:
    """Return cells, by their position in the order of processing, as one batch with the smallest window."""
    corners = bench.corners[rows].astype(np.int64)
    low = np.maximum(corners.min(axis=0), 0)
    high = np.minimum(corners.max(axis=0) + bench.tile_size, bench.plan.slides[0].size)
    return Batch(0, rows, bench.ids[rows], corners, (*low.tolist(), *high.tolist()))


def _compare_some(
    bench: Bench, program: Program, rows: NDArray[np.int64], images: NDArray[Any], used: NDArray[np.float64]
) -> None:
    """Compare a few of the tiles that were timed with the reference."""
    some = np.random.default_rng().choice(len(rows), min(8, len(rows)), replace=False)
    for k in some.tolist():
        batch = _batch(bench, rows[k : k + 1])
        expected = reference.extract(bench.plan.slides[0].read(batch.box), batch, program)
        agreement(CellImages(batch.rows, batch.ids, images[k : k + 1], used[k : k + 1]), expected, program)


def cupy_reference(bench: Bench) -> list[Figures]:
    """Time the reference on CuPy, one tile at a time, from and to host memory."""
    rows = np.arange(min(REFERENCE_CELLS, len(bench.ids)))
    batch = _batch(bench, rows)
    window = bench.plan.slides[0].read(batch.box)

    def one(preset: str) -> Figures:
        program = bench.plan_of(preset).program
        reference.extract(window, pick(batch, slice(2)), program, libraries=bench.gpu.libraries)  # compiles
        seconds = bench.gpu.seconds(
            lambda: reference.extract(window, batch, program, libraries=bench.gpu.libraries), 3, warm_up=0
        )
        rate = len(rows) / statistics.median(seconds)
        figures = {"cells_per_s": rate, "ratio": _ratio(bench, preset, rate), "seconds": seconds}
        return entry(f"CuPy reference, {preset}", figures, Target("ratio", least=50))

    return [one(preset) for preset in PRESETS]


def _ratio(bench: Bench, preset: str, rate: float) -> float | None:
    """Return how many times as fast the fused kernel is; None if it was not timed."""
    return bench.fused[preset] / rate if preset in bench.fused else None


def hand_written_cupy(bench: Bench) -> list[Figures]:
    """Time a hand-written CuPy version: stacks of tiles, with slide and result on the device."""
    gpu = bench.gpu
    xp = gpu.libraries.xp
    n = min(HAND_WRITTEN_CELLS, len(bench.ids))
    ids, corners = gpu.upload(bench.ids[:n].astype(np.uint32)), gpu.upload(bench.corners[:n])

    def one(preset: str) -> Figures:
        program = bench.plan_of(preset).program
        out = xp.empty((n, *program.tile_shape), program.output_dtype)

        def work() -> None:
            for start in range(0, n, HAND_WRITTEN_BATCH):
                part = slice(start, start + HAND_WRITTEN_BATCH)
                out[part] = hand_written(gpu.libraries, bench.image, bench.labels, ids[part], corners[part], program)

        seconds = gpu.seconds(work, 3)
        far = _share_far_off(bench, program, gpu.to_host(out[:16]))
        if far > HAND_WRITTEN_SHARE:
            raise ValueError(f"the hand-written {preset} is not a fair comparison: {far:.2%} of its values are wrong")
        rate = n / statistics.median(seconds)
        ratio = _ratio(bench, preset, rate)
        figures = {"n_cells": n, "cells_per_s": rate, "ratio": ratio, "share_far_off": far, "seconds": seconds}
        return entry(f"hand-written CuPy, {preset}", figures, Target("ratio", least=10))

    return [one(preset) for preset in PRESETS]


def _share_far_off(bench: Bench, program: Program, images: NDArray[Any]) -> float:
    """Return the share of values in the first tiles with an error above `HAND_WRITTEN_ERROR`."""
    batch = _batch(bench, np.arange(len(images)))
    expected = reference.extract(bench.plan.slides[0].read(batch.box), batch, program).images
    return float((np.abs(images.astype(np.float32) - expected.astype(np.float32)) > HAND_WRITTEN_ERROR).mean())


def hand_written(
    libraries: Libraries, image: Array, planes: Array, ids: Array, corners: Array, program: Program
) -> Array:
    """Return the tiles (n, K, S, S) of cells whose windows lie within the slide; float32, each step on whole stacks."""
    xp, ndimage = libraries
    recipe, n, S = program.recipe, len(ids), program.recipe.tile_size
    y = corners[:, 0, None, None] + xp.arange(S)[:, None]
    x = corners[:, 1, None, None] + xp.arange(S)
    tiles = [plane[y, x] for plane in planes]
    soft, dilated, free = [], [], []
    for steps in program.masks:
        own = tiles[steps.plane] == ids[:, None, None]
        mask = without_holes(own, libraries) if steps.fill_holes else own
        free.append((tiles[steps.plane] == 0) | own | mask)
        if steps.dilation:
            mask = ndimage.binary_dilation(mask, disk(steps.dilation, xp)[None])
        dilated.append(mask)
        sigmas = (0, steps.sigma, steps.sigma)
        soft.append(ndimage.gaussian_filter(mask.astype(np.float32), sigmas, mode="nearest") if steps.sigma else mask)
    out = xp.empty((n, *program.tile_shape), program.output_dtype)
    for k, m in enumerate(program.stored):
        out[:, k] = soft[m]
    for c, m in enumerate(program.cut):
        values = image[c][y, x].astype(np.float32)
        exclude = recipe.neighbours == "exclude"
        cut = soft[m] * free[m] if exclude else soft[m]
        if recipe.cut == "before":
            values = values * cut
        if recipe.quantile_pixels == "mask":
            lo, hi = masked_quantiles(values, dilated[m] & free[m] if exclude else dilated[m], recipe.quantiles, xp)
        else:
            lo, hi = xp.quantile(values.reshape(n, -1), np.array(recipe.quantiles), axis=1).astype(np.float32)
        lo, span = lo[:, None, None], (hi - lo)[:, None, None]
        values = xp.clip((values - lo) / xp.where(span == 0, np.float32(1), span), 0, 1)
        if recipe.flat_channel == "zero":
            values = values * (span != 0)
        if recipe.cut == "after":
            values = values * cut
        if program.stretched[c]:
            low, high = values.min(axis=(1, 2), keepdims=True), values.max(axis=(1, 2), keepdims=True)
            values = xp.where(high > low, (values - low) / xp.where(high > low, high - low, np.float32(1)), values)
        out[:, len(program.stored) + c] = values
    return out


def without_holes(masks: Array, libraries: Libraries) -> Array:
    """Return masks (n, S, S) with holes filled: background components that do not reach the edge of their tile."""
    xp, ndimage = libraries
    in_plane = np.zeros((3, 3, 3), bool)
    in_plane[1] = [[0, 1, 0], [1, 1, 1], [0, 1, 0]]
    parts, n_parts = ndimage.label(~masks, in_plane)
    open_parts = xp.zeros(int(n_parts) + 1, bool)
    for edge in (parts[:, 0], parts[:, -1], parts[:, :, 0], parts[:, :, -1]):
        open_parts[edge] = True
    open_parts[0] = False  # the masks themselves
    return ~open_parts[parts]


def masked_quantiles(values: Array, masks: Array, quantiles: tuple[float, float], xp: Any) -> tuple[Array, Array]:
    """Return the quantiles (n,) of each tile's values within its mask; all other values are sorted to the end."""
    n = len(values)
    ranked = xp.sort(xp.where(masks, values, np.float32(np.inf)).reshape(n, -1), axis=1)
    count = masks.reshape(n, -1).sum(axis=1)
    rows, found = xp.arange(n), []
    for quantile in quantiles:
        position = quantile * (count - 1)
        below = xp.floor(position).astype(np.int64)
        low, high = ranked[rows, below], ranked[rows, xp.minimum(below + 1, count - 1)]
        found.append((low + (high - low) * (position - below)).astype(np.float32))
    return found[0], found[1]


def label_statistics(bench: Bench) -> list[Figures]:
    """Time label statistics of one plane: resident, from host memory, and on the CPU."""
    gpu, plane = bench.gpu, bench.labels[1]
    H, W = plane.shape
    capacity = 1 << int(np.ceil(np.log2(H * W / cuda_labels.PIXELS_PER_ENTRY)))

    def work() -> None:
        cuda_labels.LabelTable(gpu.device, (H, W), capacity).add(plane)

    seconds = gpu.seconds(work, 7)
    raster = bench.plan.slides[0].masks["cytosol"]
    start = time.perf_counter()
    expected = labels.label_statistics(raster)
    on_cpu = time.perf_counter() - start
    from_host = []
    for _ in range(3):
        start = time.perf_counter()
        found = cuda_labels.label_statistics(raster, gpu.device)
        from_host.append(time.perf_counter() - start)
    if not (np.array_equal(found.ids, expected.ids) and np.array_equal(found.sums, expected.sums)):
        raise ValueError("label statistics differ from those on the CPU")
    bandwidth = plane.nbytes / statistics.median(seconds)
    figures = {
        "labels": len(expected),
        "nbytes": plane.nbytes,
        "GB_per_s": bandwidth / GB,
        "share_of_copy": bandwidth / bench.bandwidth["device"],
        "seconds": seconds,  # includes making an empty table
        "from_host_seconds": from_host,
        "cpu_seconds": on_cpu,
    }
    return [entry("label statistics", figures, Target("share_of_copy", least=0.6))]


def host_to_host(bench: Bench) -> list[Figures]:
    """Time the pipeline from the slide in host memory to tiles in host memory, without planning."""
    from gpu_extract import pipeline

    def seconds(plan: planning.Plan) -> float:
        start = time.perf_counter()
        n = sum(len(part) for part in pipeline.tiles(plan, backend, workers, threads))
        assert n == len(plan.cells)
        return time.perf_counter() - start

    entries, threads = [], default_threads()
    for preset in PRESETS:
        plan = bench.plan_of(preset)
        backend = bench.gpu.open_backend()
        with ThreadPoolExecutor(threads) as workers:
            first, *times = [seconds(plan) for _ in range(4)]
        rate = len(plan.cells) / statistics.median(times)
        figures = {
            "n_cells": len(plan.cells),
            "cells_per_s": rate,
            "GB_per_s": rate * plan.nbytes / len(plan.cells) / GB,
            "share_of_download": rate * plan.nbytes / len(plan.cells) / bench.bandwidth["download"],
            "first_seconds": first,  # includes the allocation of pinned memory
            "seconds": times,
            "warnings": backend.warnings,
        }
        entries.append(entry(f"host to host, {preset}", figures, Target("share_of_download", least=0.7)))
    return entries


def host_to_file(bench: Bench) -> list[Figures]:
    """Time `extract` from the slide in host memory to a gzip .h5sc on disk, including planning."""
    from gpu_extract import api

    image, nucleus, cytosol = bench.slide
    most = None
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        free = shutil.disk_usage(folder).free
        if 0.8 * free < bench.plan.nbytes:  # compressed it is about a third of that, but this is not guaranteed
            most = int(0.8 * free / (bench.plan.nbytes / len(bench.ids)))
            bench.notes.append(f"disk space is short: only {most} cells are written")
        for k in range(2):
            path = Path(folder, f"{k}.h5sc")
            options = {"tile_size": bench.tile_size, "n_cells": most, "border": "window", "device": bench.device}
            start = time.perf_counter()
            report = api.extract(image, nucleus=nucleus, cytosol=cytosol, output=path, **options)
            whole = time.perf_counter() - start
            runs.append({"seconds": whole, "pipeline_seconds": report.seconds, "stages": report.stage_seconds})
            file_nbytes = path.stat().st_size
            path.unlink()
    best = min(runs, key=lambda run: run["seconds"])
    figures = {
        "n_cells": report.n_cells,
        "cells_per_s": report.n_cells / best["seconds"],
        "cells_per_s_without_plan": report.n_cells / best["pipeline_seconds"],
        "file_bytes_per_cell": file_nbytes / report.n_cells,
        "threads": report.threads,
        "cores": len(os.sched_getaffinity(0)),
        "runs": runs,
        "warnings": list(report.warnings),
    }
    return [entry("host to gzip file, standard", figures, Target("cells_per_s", least=50_000))]


def start_up(bench: Bench) -> list[Figures]:
    """Time the first batch of a new process: without compiled kernels, and again with them."""
    entries = []
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "CUPY_CACHE_DIR": folder}
        for name, most in (("compile", 10.0), ("warm start", 1.0)):
            command = [sys.executable, str(Path(__file__).with_name("gpu_evidence.py")), "--start-up"]
            start = time.perf_counter()
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
            whole = time.perf_counter() - start
            if done.returncode:
                raise RuntimeError(f"the new process failed: {done.stderr.strip().splitlines()[-1:]}")
            figures = {**json.loads(done.stdout.splitlines()[-1]), "process_seconds": whole}
            entries.append(entry(f"first batch, {name}", figures, Target("first_batch_seconds", most=most)))
    return entries


TIMINGS: tuple[Callable[[Bench], list[Figures]], ...] = (
    copy_bandwidth,
    fused_kernel,
    label_statistics,
    host_to_host,
    host_to_file,
    hand_written_cupy,
    cupy_reference,
    start_up,
)
