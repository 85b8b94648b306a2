"""What `gpu_evidence.py` compares the fused kernel with: CuPy and cuCIM by hand, and the reference; and cold starts."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gpu_checks import PRESETS, pick
from gpu_record import Step
from gpu_timings import Bench, Target, entry
from numpy.typing import NDArray

from gpu_extract.backends import reference
from gpu_extract.backends.cuda.device import Array
from gpu_extract.backends.reference import Libraries, disk
from gpu_extract.recipe import Program

Figures = dict[str, Any]

# Tiles that the hand-written version processes at a time.
HAND_WRITTEN_BATCH = 1024
# The hand-written version computes in float32: the error that its values may have, and the share of values that may
# have larger errors (where rounding changes a mask or a quantile).
HAND_WRITTEN_ERROR, HAND_WRITTEN_SHARE = 2e-3, 1e-3


def baseline_steps(bench: Bench) -> list[Step]:
    """Return the timings of all baselines."""
    return [
        *(Step(f"by hand, {name}", partial(lambda p: [by_hand(bench, p)], name)) for name in PRESETS),
        Step("start-up", lambda: start_up(bench.gpu)),
        *(Step(f"reference, {name}", partial(lambda p: [reference_on_device(bench, p)], name)) for name in PRESETS),
    ]


def reference_on_device(bench: Bench, preset: str) -> Figures:
    """Time the reference on the device, one tile at a time, from and to host memory."""
    rows = np.arange(min(bench.size.reference_cells, len(bench.ids)))
    batch, program, libraries = bench.batch(rows), bench.program(preset), bench.gpu.libraries
    window = bench.window(batch.box)
    reference.extract(window, pick(batch, slice(2)), program, libraries=libraries)  # compiles
    seconds = bench.gpu.seconds(lambda: reference.extract(window, batch, program, libraries=libraries), 1, warm_up=0)
    rate = len(rows) / statistics.median(seconds)
    figures = {"cells_per_s": rate, "ratio": _ratio(bench, preset, rate), "seconds": seconds}
    return entry(f"reference, {preset}", figures, Target("ratio", least=50))


def _ratio(bench: Bench, preset: str, rate: float) -> float | None:
    """Return how many times as fast the fused kernel is; None if it was not timed."""
    return bench.fused[preset] / rate if preset in bench.fused else None


def by_hand(bench: Bench, preset: str) -> Figures:
    """Time a version written by hand with CuPy and cuCIM: stacks of tiles, with slide and result on the device."""
    gpu, program = bench.gpu, bench.program(preset)
    gpu.skimage()  # without cuCIM this is skipped
    xp = gpu.xp
    n = min(bench.size.hand_written_cells, len(bench.ids))
    ids, corners = gpu.upload(bench.ids[:n].astype(np.uint32)), gpu.upload(bench.corners[:n])
    out = xp.empty((n, *program.tile_shape), program.output_dtype)

    def work() -> None:
        for start in range(0, n, HAND_WRITTEN_BATCH):
            part = slice(start, start + HAND_WRITTEN_BATCH)
            out[part] = hand_written(gpu.libraries, bench.image, bench.labels, ids[part], corners[part], program)

    seconds = gpu.seconds(work, 3)
    far = _share_far_off(bench, program, gpu.to_host(out[:16]))
    if far > HAND_WRITTEN_SHARE:
        raise ValueError(f"it is not a fair comparison: {far:.2%} of its values are wrong")
    rate = n / statistics.median(seconds)
    ratio = _ratio(bench, preset, rate)
    figures = {"n_cells": n, "cells_per_s": rate, "ratio": ratio, "share_far_off": far, "seconds": seconds}
    return entry(f"CuPy and cuCIM by hand, {preset}", figures, Target("ratio", least=50))


def _share_far_off(bench: Bench, program: Program, images: NDArray[Any]) -> float:
    """Return the share of values in the first tiles with an error above `HAND_WRITTEN_ERROR`."""
    batch = bench.batch(np.arange(len(images)))
    expected = reference.extract(bench.window(batch.box), batch, program).images
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
    n, S, _ = masks.shape
    # One image of all tiles below each other, with a row of mask between them that does not let background connect.
    column = xp.zeros((n, S + 1, S), bool)
    column[:, :S] = ~masks
    parts, n_parts = ndimage.label(column.reshape(n * (S + 1), S))
    parts = parts.reshape(n, S + 1, S)[:, :S]
    open_parts = xp.zeros(n_parts + 1, bool)
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


def start_up(gpu: Any) -> list[Figures]:
    """Time the first batch of a new process: without compiled kernels, and again with them."""
    entries = []
    command = [sys.executable, str(Path(__file__).with_name("gpu_stages.py")), "--case", "start-up"]
    command += [] if gpu.name == "cuda" else ["--shim"]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "CUPY_CACHE_DIR": folder}
        for name, most in (("compile", 10.0), ("warm start", 1.5)):
            start = time.perf_counter()
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
            whole = time.perf_counter() - start
            if done.returncode:
                raise RuntimeError(f"the new process failed: {done.stderr.strip().splitlines()[-1:]}")
            figures = {**json.loads(done.stdout.splitlines()[-1]), "process_seconds": whole}
            entries.append(entry(f"first batch, {name}", figures, Target("first_batch_seconds", most=most)))
    return entries
