"""The timings of `gpu_evidence.py`: each figure with its target, what was predicted, and the measured bandwidth.

A timing is a function that takes a `Bench` and returns entries made by `entry`.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, partial
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import synthetic
from gpu_checks import PRESETS, agreement
from gpu_predictions import predicted
from gpu_record import Step
from made.slides import as_slide
from numpy.typing import NDArray

from gpu_extract import Recipe, backends, labels, planning
from gpu_extract.backends import reference
from gpu_extract.backends.cuda import extract as cuda_extract
from gpu_extract.backends.cuda import labels as cuda_labels
from gpu_extract.backends.cuda.device import Array
from gpu_extract.backends.cuda.extract import launch_extract, program_arrays
from gpu_extract.backends.cuda.registry import Kernel
from gpu_extract.cpus import default_threads
from gpu_extract.model import Batch, CellImages, Window
from gpu_extract.recipe import Program
from gpu_extract.sources.arrays import ArrayRaster

Figures = dict[str, Any]

GB = 1e9
# Pixels between cells of the bench slide, and of one with larger cells.
SPACING, LARGE_SPACING = 49, 110
# Side of the slide that is repeated. The predicted counts are for the same one.
BASE_SIZE = 2048
# Cells per launch on the resident slide: their tiles are 2.7 GB, much more than any cache.
CELLS_PER_LAUNCH = 16384
# The part of the values that should be equal to the reference.
LEAST_EQUAL = 0.9999
LEAST_RATES = {"standard": 4e6, "scportrait": 4e6, "sparcspy": 2e6}  # cells/s
# Shares of a multiprocessor's memory that are tried as shared memory, percent.
CARVE_OUTS = (50, 75, 100)
MEMORY_FOLDER = Path("/dev/shm")


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


class Size(NamedTuple):
    """The size of the bench: real, or as small as the CPU needs."""

    base_size: int = BASE_SIZE
    repeats: int = 8
    tile_size: int = 128
    other_tile_sizes: tuple[int, ...] = (64, 256)
    cells_per_launch: int = CELLS_PER_LAUNCH
    reference_cells: int = 96
    hand_written_cells: int = 8192


SMALL = Size(110, 2, 24, (16,), 10, 3, 16)


class BenchCells(NamedTuple):
    """The cells of a bench, in the order of processing."""

    ids: NDArray[np.uint64]
    centers: NDArray[np.int64]
    boxes: NDArray[np.int64]


class Bench:
    """The slide on which everything is timed, resident on the device, and figures that later timings are compared with.

    Parameters
    ----------
    gpu : Gpu
        See `gpu_device`.
    base : synthetic.Slide
        Is repeated; each repeat has ids of its own.
    size : Size
        The slide has fewer repeats if memory is short.
    seed : int
        Chooses the cells that are compared with the reference.
    known : sequence of entries
        Results of earlier stages: bandwidths and rates.
    """

    def __init__(
        self, gpu: Any, base: synthetic.Slide, size: Size, seed: int = 0, known: Sequence[Figures] = ()
    ) -> None:
        self.gpu, self.base, self.size, self.tile_size = gpu, base, size, size.tile_size
        self.bandwidth = {e["name"].removeprefix("copy, "): e["GB_per_s"] * GB for e in known if "copy, " in e["name"]}
        self.fused = {e["preset"]: e["cells_per_s"] for e in known if e["name"] == f"fused kernel, {e.get('preset')}"}
        self.dice = np.random.default_rng(seed)
        self.repeats = fitting_repeats(len(base.nucleus), size.repeats, gpu.free_nbytes(), free_host_nbytes())

    def about(self) -> list[Figures]:
        """Return one entry about the slide of the figures."""
        C, H, W = self.image.shape
        cells = f"{C} uint16 channels, 2 label planes, {len(self.ids)} cells, tile {self.tile_size}"
        about = f"{H} x {W} pixels, {cells}"
        if self.repeats < self.size.repeats:
            about += f"; {self.repeats}, not {self.size.repeats} repeats, because memory is short"
        return [{"name": "slide", "about": about}]

    def with_tile(self, tile_size: int) -> Bench:
        """Return the same slide with other tiles."""
        other = Bench(self.gpu, self.base, self.size, known=())
        other.__dict__.update({name: value for name, value in self.__dict__.items() if name != "_cells"})
        other.tile_size = tile_size
        return other

    def program(self, preset: str) -> Program:
        """Return the program of a recipe."""
        recipe = Recipe.preset(preset).replace(tile_size=self.tile_size, border="window")
        return recipe.program(("nucleus", "cytosol"), len(self.base.image), self.base.image.dtype)

    @cached_property
    def image(self) -> Array:
        """Image of the slide, on the device."""
        return self.gpu.xp.tile(self.gpu.upload(self.base.image), (1, self.repeats, self.repeats))

    @cached_property
    def labels(self) -> Array:
        """Label planes of the slide, on the device, (2, H, W)."""
        planes = self.gpu.upload(np.stack([self.base.nucleus, self.base.cytosol]))
        return repeated(self.gpu.xp, planes, self.repeats)

    @property
    def ids(self) -> NDArray[np.uint64]:
        """Ids of the cells, in the order of processing."""
        return self._cells.ids

    @property
    def corners(self) -> NDArray[np.int32]:
        """First pixel of each tile, (N, 2), cells in the order of processing."""
        return (self._cells.centers - self.tile_size // 2).astype(np.int32)

    @property
    def boxes(self) -> NDArray[np.int64]:
        """Bounding boxes of the masks, (N, 4), cells in the order of processing."""
        return self._cells.boxes

    @cached_property
    def _cells(self) -> BenchCells:
        plan = planning.make_plan([as_slide(*self.base)], Recipe(tile_size=self.tile_size, border="keep"))
        n, H, n_ids = self.repeats, len(self.base.nucleus), np.uint64(highest_id(self.base))
        places = [(y, x) for y in range(n) for x in range(n)]
        ids = np.concatenate([plan.cells.ids + np.uint64(k) * n_ids for k in range(n * n)])
        centers = np.concatenate([plan.cells.centers + H * np.array(place) for place in places])
        boxes = np.concatenate([plan.cells.boxes + H * np.array(place * 2) for place in places])
        S = self.tile_size
        inside = np.flatnonzero(((centers >= S // 2) & (centers + S - S // 2 <= n * H)).all(axis=1))
        order = inside[processing_order(ids[inside], centers[inside], S)]
        return BenchCells(ids[order], centers[order], boxes[order])

    @cached_property
    def on_host(self) -> synthetic.Slide:
        """The slide in host memory."""
        return synthetic.Slide(self.gpu.to_host(self.image), *self.gpu.to_host(self.labels))

    def window(self, box: tuple[int, int, int, int]) -> Window:
        """Return a part of the slide in host memory."""
        y0, x0, y1, x1 = box
        xp, to_host = self.gpu.xp, self.gpu.to_host
        planes = to_host(xp.ascontiguousarray(self.labels[:, y0:y1, x0:x1]))
        return Window(to_host(xp.ascontiguousarray(self.image[:, y0:y1, x0:x1])), tuple(planes), y0, x0)

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """Return cells, by their position in the order of processing, as one batch with the smallest window."""
        corners = self.corners[rows].astype(np.int64)
        low = np.maximum(corners.min(axis=0), 0)
        high = np.minimum(corners.max(axis=0) + self.tile_size, self.image.shape[1:])
        return Batch(0, rows, self.ids[rows], corners, (*low.tolist(), *high.tolist()))


def highest_id(base: synthetic.Slide) -> int:
    """Return the highest id of a slide."""
    return max(int(base.nucleus.max()), int(base.cytosol.max()))


def repeated(xp: Any, planes: Array, repeats: int) -> Array:
    """Return label planes (M, H, W) ``repeats`` times as wide and as high; each repeat has ids of its own."""
    M, H, W = planes.shape
    n_ids = int(planes.max())
    assert n_ids * repeats**2 < 2**32
    out = xp.empty((M, repeats * H, repeats * W), planes.dtype)
    for k in range(repeats**2):
        y, x = k // repeats * H, k % repeats * W
        out[:, y : y + H, x : x + W] = xp.where(planes > 0, planes + np.uint32(k * n_ids), np.uint32(0))
    return out


def processing_order(ids: NDArray[np.uint64], centers: NDArray[np.int64], tile_size: int) -> NDArray[np.int64]:
    """Return the order of the pipeline: batches from left to right in bands of the slide, by id within a batch."""
    bands = centers[:, 0] // (planning.BAND_TILES * tile_size)
    order = np.lexsort((ids, centers[:, 1], bands))
    ends = np.flatnonzero(np.diff(bands[order])) + 1
    parts = []
    for band in np.split(order, ends):
        for start in range(0, len(band), backends.GPU_CELLS):
            batch = band[start : start + backends.GPU_CELLS]
            parts.append(batch[np.argsort(ids[batch])])
    return np.concatenate(parts)


def fitting_repeats(base_size: int, repeats: int, device_nbytes: int, host_nbytes: int) -> int:
    """Return how many repeats fit in memory: on the device with 8 GB of tiles, and three times in host memory."""

    def fits(n: int) -> bool:
        slide = (n * base_size) ** 2 * (3 * 2 + 2 * 4)
        return 2 * slide + (8 << 30) <= 0.9 * device_nbytes and 3 * slide + (8 << 30) <= host_nbytes

    return next((n for n in range(repeats, 1, -1) if fits(n)), 1)


def free_host_nbytes() -> int:
    """Return the bytes of available host memory."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# Copies and kernels


def kernel_steps(bench: Bench, make_large: Any) -> list[Step]:
    """Return the timings of copies and kernels, the most important first; ``make_large()`` has larger cells."""
    steps = [Step("slide", bench.about), Step("copies", lambda: copy_bandwidth(bench))]
    steps += [Step(f"fused kernel, {preset}", partial(fused_kernel, bench, preset)) for preset in PRESETS]
    if hasattr(cuda_extract, "is_fast"):  # there are two kernels to choose from
        for preset in PRESETS:
            name = f"fused kernel, {preset}, general kernel only"
            steps.append(Step(name, lambda p=preset, n=name: general(bench, p, n)))
    for tile_size in bench.size.other_tile_sizes:
        for preset in PRESETS:
            name = f"fused kernel, {preset}, tile {tile_size}"
            steps.append(Step(name, lambda p=preset, s=tile_size, n=name: fused_kernel(bench.with_tile(s), p, n)))
    for percent in CARVE_OUTS:
        for preset in PRESETS:
            name = f"fused kernel, {preset}, {percent} % shared memory"
            steps.append(Step(name, lambda p=preset, c=percent, n=name: carved(bench, p, c, n)))
    for preset in PRESETS:
        name = f"fused kernel, {preset}, larger cells"
        steps.append(Step(name, lambda p=preset, n=name: fused_kernel(make_large(), p, n)))
    return steps


def copy_bandwidth(bench: Bench) -> list[Figures]:
    """Time copies of the slide's pixels: within the device (bytes read and written), and from and to pinned memory."""
    gpu = bench.gpu
    pixels = bench.image.reshape(-1)
    n = min(len(pixels), 1 << 29)
    source, target = pixels[:n], gpu.device.empty((n,), pixels.dtype)
    host = gpu.device.empty_host((n,), pixels.dtype)
    host[:] = 1
    seconds = {
        "device": gpu.seconds(lambda: gpu.xp.copyto(target, source), 20),
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


def carved(bench: Bench, preset: str, percent: int, name: str) -> list[Figures]:
    """Time the fused kernel with a preferred share of shared memory."""
    kernels = [kernel for kernel, _ in Launches(bench, bench.program(preset)).kernels()]
    for kernel in kernels:
        bench.gpu.prefer_shared(kernel, percent)
    try:
        return fused_kernel(bench, preset, name)
    finally:
        for kernel in kernels:
            bench.gpu.prefer_shared(kernel, -1)


def general(bench: Bench, preset: str, name: str) -> list[Figures]:
    """Time the kernel that computes all programs, also where the launcher prefers the fast one."""
    is_fast = cuda_extract.is_fast
    cuda_extract.is_fast = lambda *_: False
    try:
        return fused_kernel(bench, preset, name)
    finally:
        cuda_extract.is_fast = is_fast


def fused_kernel(bench: Bench, preset: str, name: str | None = None) -> list[Figures]:
    """Time the fused kernel with the slide resident, and compare some of its tiles with the reference."""
    gpu, program = bench.gpu, bench.program(preset)
    launches = Launches(bench, program)
    seconds = gpu.seconds(launches.run, 5)
    n, rate = len(bench.ids), len(bench.ids) / statistics.median(seconds)
    if name is None:
        bench.fused[preset] = rate
    tile_nbytes = int(np.prod(program.tile_shape)) * program.output_dtype.itemsize
    least = tile_nbytes + (bench.image.nbytes + bench.labels.nbytes) / n
    ideal = tiles_nbytes(program, bench.labels.dtype.itemsize, bench.image.dtype.itemsize)
    figures = {
        "preset": preset,
        "n_cells": n,
        "cells_per_s": rate,
        "bytes_per_cell": ideal,  # each pixel of a tile is read once and written once
        "GB_per_s": rate * ideal / GB,
        # The bytes that must go through memory if the cache serves the pixels that several tiles share.
        "least_bytes_per_cell": least,
        **shares(bench, share_of_copy=rate * ideal, least_share_of_copy=rate * least),
        "kernels": [gpu.kernel_facts(kernel, nbytes) for kernel, nbytes in launches.kernels()],
        "compared": launches.compare_some(),
        "seconds": seconds,
    }
    if name is not None:
        return [entry(name, figures)]
    model = predicted(preset)
    figures |= {"equal": figures["compared"]["equal"], "predicted": model}
    if model and model["cells_per_s"]:
        figures["measured_by_predicted"] = rate / model["cells_per_s"]
    targets = Target("cells_per_s", least=LEAST_RATES[preset]), Target("equal", least=LEAST_EQUAL)
    return [entry(f"fused kernel, {preset}", figures, *targets)]


class RecordingDevice:
    """A `Device` that notes what is launched: kernels with their bytes of dynamic shared memory.

    Parameters
    ----------
    device : Device
    multiprocessors : int, optional
        Replaces the device's own number.
    """

    def __init__(self, device: Any, multiprocessors: int | None = None) -> None:
        self._device = device
        self.multiprocessors = multiprocessors or device.multiprocessors
        self.launched: list[tuple[Kernel, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def launch(self, kernel: Kernel, n_blocks: int, arguments: tuple[Any, ...], shared_nbytes: int = 0) -> None:
        """Launch a kernel as `Device.launch` does."""
        self.launched.append((kernel, shared_nbytes))
        self._device.launch(kernel, n_blocks, arguments, shared_nbytes)


class Launches:
    """The launches of the fused kernel for all cells of a bench, whose tiles overwrite those of the launch before."""

    def __init__(self, bench: Bench, program: Program) -> None:
        gpu = bench.gpu
        self.bench, self.program, self.n = bench, program, len(bench.ids)
        self.most = min(self.n, bench.size.cells_per_launch * 128**2 // max(bench.tile_size, 128) ** 2)
        arrays = program_arrays(program, None)
        self._arrays = type(arrays)(*(gpu.upload(array) for array in arrays))
        self._cells = gpu.upload(bench.ids), gpu.upload(bench.corners)
        self._images = gpu.device.empty((self.most, *program.tile_shape), program.output_dtype)
        self._images[...] = np.nan  # a value that is not written fails the comparison
        self._used = gpu.device.empty((self.most, len(program.cut), 2), np.float64)

    def run(self, device: Any = None) -> None:
        """Launch the kernel for all cells, by default on the device whose operations are timed."""
        image, planes = self.bench.image, self.bench.labels
        for start in range(0, self.n, self.most):
            part = slice(start, start + self.most)
            ids, corners = (array[part] for array in self._cells)
            found = self._images[: len(ids)], self._used[: len(ids)]
            # A launcher that knows the boxes lets more blocks run at a time.
            boxes = {"boxes": self.bench.boxes[part]} if "boxes" in signature(launch_extract).parameters else {}
            arguments = self.program, self._arrays, image, planes, ids, corners, *found
            launch_extract(device or self.bench.gpu.device, *arguments, **boxes)

    def kernels(self) -> list[tuple[Kernel, int]]:
        """Return the kernels that are launched for a part of the cells, and their bytes of dynamic shared memory."""
        device = RecordingDevice(self.bench.gpu.device)
        self.run(device)
        self.bench.gpu.device.synchronize()
        return list(dict.fromkeys(device.launched))

    def compare_some(self) -> Figures:
        """Compare a few tiles of the last launch with the reference, together, and return how much they differ."""
        bench = self.bench
        first = (self.n - 1) // self.most * self.most
        images, used = (bench.gpu.to_host(array[: self.n - first]) for array in (self._images, self._used))
        some = np.sort(bench.dice.choice(len(images), min(8, len(images)), replace=False))
        batches = [bench.batch(np.array([first + k])) for k in some.tolist()]  # each with a small window
        parts = [reference.extract(bench.window(batch.box), batch, self.program) for batch in batches]
        names = ("rows", "ids", "images", "limits")
        expected = CellImages(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
        return agreement(CellImages(expected.rows, expected.ids, images[some], used[some]), expected, self.program)


def shares(bench: Bench, **rates: float) -> Figures:
    """Return bytes per second as shares of the bandwidth within the device, if that was measured."""
    if "device" not in bench.bandwidth:
        return {}
    return {name: rate / bench.bandwidth["device"] for name, rate in rates.items()}


def tiles_nbytes(program: Program, label_nbytes: int, pixel_nbytes: int) -> int:
    """Return the bytes of one cell: labels and pixels under its tile, and the tile that is written."""
    area = program.recipe.tile_size**2
    M, C = len(program.stored), len(program.cut)
    return area * (M * label_nbytes + C * pixel_nbytes + (M + C) * program.output_dtype.itemsize)


# Label statistics


def label_steps(bench: Bench) -> list[Step]:
    """Return the timings of label statistics."""
    return [
        Step("label statistics", lambda: [label_statistics(bench)]),
        Step("label statistics from host memory", lambda: [label_statistics_from_host(bench)]),
    ]


def label_statistics(bench: Bench) -> Figures:
    """Time label statistics of a plane that is resident on the device."""
    gpu, plane = bench.gpu, bench.labels[1]
    H, W = plane.shape
    capacity = 1 << int(np.ceil(np.log2(H * W / cuda_labels.PIXELS_PER_ENTRY)))

    def work() -> None:
        cuda_labels.LabelTable(gpu.device, (H, W), capacity).add(plane)

    seconds = gpu.seconds(work, 7)
    rate = plane.nbytes / statistics.median(seconds)
    figures = {
        "nbytes": plane.nbytes,
        "GB_per_s": rate / GB,
        **shares(bench, share_of_copy=rate),
        "seconds": seconds,  # includes making an empty table
    }
    return entry("label statistics", figures, Target("share_of_copy", least=0.7))


def label_statistics_from_host(bench: Bench) -> Figures:
    """Time label statistics of a plane in host memory on the device and on the CPU, and compare them."""
    raster = ArrayRaster(bench.gpu.to_host(bench.labels[1]), "cytosol")
    start = time.perf_counter()
    expected = labels.label_statistics(raster)
    on_cpu = time.perf_counter() - start
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        found = cuda_labels.label_statistics(raster, bench.gpu.device)
        seconds.append(time.perf_counter() - start)
    for name in ("ids", "counts", "sums", "boxes", "touches"):
        if not np.array_equal(getattr(found, name), getattr(expected, name)):
            raise ValueError(f"{name} differ from those on the CPU")
    H, W = raster.shape[1:]
    rate = H * W * raster.dtype.itemsize / statistics.median(seconds)
    figures = {"labels": len(expected), "GB_per_s": rate / GB, "seconds": seconds, "cpu_seconds": on_cpu}
    return entry("label statistics from host memory", figures)


# The pipeline


def host_steps(bench: Bench) -> list[Step]:
    """Return the timings of the pipeline, from the slide in host memory to tiles there, and to a file."""
    return [
        Step("host to host, standard", lambda: [host_to_host(bench, "standard")]),
        Step("host to file in memory", lambda: host_to_file_in_memory(bench)),
        Step("host to file on disk", lambda: [host_to_file(bench, "on disk", None)]),
        *(Step(f"host to host, {name}", partial(lambda p: [host_to_host(bench, p)], name)) for name in PRESETS[1:]),
    ]


def host_to_host(bench: Bench, preset: str) -> Figures:
    """Time the pipeline from the slide in host memory to tiles in host memory; the plan is timed apart."""
    from gpu_extract import pipeline

    recipe = Recipe.preset(preset).replace(tile_size=bench.tile_size, border="window")
    backend, threads = bench.gpu.open_backend(), default_threads()
    slide = as_slide(*bench.on_host)
    start = time.perf_counter()
    plan = planning.make_plan([slide], recipe, statistics=backend.statistics)
    planned = time.perf_counter() - start

    def seconds() -> float:
        start = time.perf_counter()
        n = sum(len(part) for part in pipeline.tiles(plan, backend, workers, threads))
        assert n == len(plan.cells)
        return time.perf_counter() - start

    with ThreadPoolExecutor(threads) as workers:
        first, *times = [seconds() for _ in range(4)]
    rate = len(plan.cells) / statistics.median(times)
    downloaded = rate * plan.nbytes / len(plan.cells)
    figures = {
        "preset": preset,
        "n_cells": len(plan.cells),
        "cells_per_s": rate,
        "GB_per_s": downloaded / GB,
        **({"share_of_download": downloaded / bench.bandwidth["download"]} if "download" in bench.bandwidth else {}),
        "plan_seconds": planned,
        "first_seconds": first,  # includes the allocation of pinned memory
        "seconds": times,
        "warnings": backend.warnings,
    }
    return entry(f"host to host, {preset}", figures, Target("share_of_download", least=0.9))


def host_to_file_in_memory(bench: Bench) -> list[Figures]:
    """Time `host_to_file` without a disk, if there is a folder in memory with enough room; containers limit it."""
    name, needed = "host to gzip file in memory, standard", len(bench.ids) * bench.program("standard").tile_nbytes
    free = shutil.disk_usage(MEMORY_FOLDER).free if MEMORY_FOLDER.is_dir() else 0
    if free < needed:
        return [{"name": name, "skipped": f"{MEMORY_FOLDER} has {free / GB:.1f} GB free, not {needed / GB:.1f}"}]
    return [host_to_file(bench, "in memory", MEMORY_FOLDER)]


def host_to_file(bench: Bench, where: str, folder: Path | None) -> Figures:
    """Time `extract` from the slide in host memory to a gzip .h5sc, including planning."""
    from gpu_extract import api

    image, nucleus, cytosol = bench.on_host
    runs = []
    with tempfile.TemporaryDirectory(dir=folder) as work, device_named(bench.gpu):
        free = shutil.disk_usage(work).free
        nbytes = len(bench.ids) * bench.program("standard").tile_nbytes
        # Compressed it is about a third of that, but this is not guaranteed.
        most = None if nbytes < 0.8 * free else int(0.8 * free / nbytes * len(bench.ids))
        for k in range(2):
            path = Path(work, f"{k}.h5sc")
            options = {"tile_size": bench.tile_size, "n_cells": most, "border": "window", "device": "cuda"}
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
        "file_GB_per_s": file_nbytes / best["seconds"] / GB,
        "threads": report.threads,
        "cores": len(os.sched_getaffinity(0)),
        "disk_is_short": most is not None,
        "runs": runs,
        "warnings": list(report.warnings),
    }
    targets = [Target("cells_per_s", least=150_000)] if folder else []
    return entry(f"host to gzip file {where}, standard", figures, *targets)


@contextmanager
def device_named(gpu: Any) -> Iterator[None]:
    """Make the device "cuda" of the package the backend of ``gpu``; it is already, unless that is a stand-in."""
    if gpu.name == "cuda":
        yield
        return
    choose = backends.choose
    backends.choose = lambda device="auto", gpu_memory=None: gpu.open_backend()
    try:
        yield
    finally:
        backends.choose = choose
