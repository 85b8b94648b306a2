"""Compiled label statistics: `gpu_extract.labels.label_statistics` with a hash table instead of sorting."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_extract import labels
from gpu_extract.backends.cpu.compiling import compiled, inner, inner_allocating
from gpu_extract.backends.cpu.simd import LANES, ctz, eq_word
from gpu_extract.cpus import default_threads
from gpu_extract.labels import LabelStatistics, label_strips, merge
from gpu_extract.model import Raster
from gpu_extract.parallel import in_order, worker_threads

__all__ = ["label_statistics", "strip_statistics"]

SMALLEST_TABLE = 1 << 12
# Fields of a label: pixel count, sums of y and x, box (y0, x0, y1, x1).
COUNT, SUM_Y, SUM_X, TOP, LEFT, BOTTOM, RIGHT, N_FIELDS = range(8)
# 2^64 over the golden ratio: multiplicative hashing, which separates consecutive ids (Knuth, TAOCP 6.4).
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def label_statistics(raster: Raster, where: str = "labels") -> LabelStatistics:
    """Return the same as `gpu_extract.labels.label_statistics`, and raise the same errors, three times as fast."""

    def statistics(strip: tuple[int, NDArray[Any]]) -> LabelStatistics | None:
        return strip_statistics(*strip, raster.shape)

    threads = default_threads()
    with worker_threads(threads, "gpu-extract-labels") as workers:
        parts = list(in_order(workers, statistics, label_strips(raster), ahead=threads))
    found = [part for part in parts if part is not None]
    if len(found) < len(parts):
        return labels.label_statistics(raster, where)  # counts all negative pixels and raises
    return merge(found)


def strip_statistics(y0: int, strip: NDArray[Any], shape: tuple[int, ...]) -> LabelStatistics | None:
    """Return the statistics of a strip of a plane that starts at row ``y0``; None if it has a negative label."""
    _, H, W = shape
    largest = np.iinfo(strip.dtype).max
    unsigned = np.ascontiguousarray(strip).view(f"u{strip.dtype.itemsize}")
    unsigned.flags.writeable = False  # numba compiles separate code for read-only and writable arrays
    n, keys, fields = build_table(unsigned, unsigned.dtype.type(largest), y0)
    if n < 0:
        return None
    order = np.argsort(keys)[len(keys) - n :]
    found = fields[order]
    boxes = found[:, TOP:]
    return LabelStatistics(
        ids=keys[order],
        counts=found[:, COUNT],
        sums=found[:, SUM_Y : SUM_X + 1],
        boxes=boxes,
        touches=(boxes[:, :2] == 0).any(axis=1) | (boxes[:, 2:] == (H, W)).any(axis=1),
    )


@inner
def run_end(row, x, label):
    """Return the first pixel right of ``x`` that has another label; the end of the row if there is none."""
    W = row.shape[0]
    while x + LANES <= W:
        others = ~eq_word(row, x, label)
        if others != 0:
            return x + ctz(others)
        x += LANES
    while x < W and row[x] == label:
        x += 1
    return x


@inner
def find_entry(key, keys):
    """Return the index of a key in the table, or of the empty entry where it would be inserted."""
    mask = keys.shape[0] - 1
    at = np.int64((key * MULTIPLIER) >> np.uint64(32)) & mask
    while keys[at] != 0 and keys[at] != key:
        at = (at + 1) & mask
    return at


@inner_allocating
def grown(keys, fields):
    """Return a copy of the table with four times as many entries."""
    more_keys = np.zeros(4 * keys.shape[0], np.uint64)
    more_fields = np.zeros((4 * keys.shape[0], N_FIELDS), np.int64)
    for i in range(keys.shape[0]):
        if keys[i] != 0:
            at = find_entry(keys[i], more_keys)
            more_keys[at] = keys[i]
            more_fields[at] = fields[i]
    return more_keys, more_fields


@inner
def add_runs(row, x, largest, y, n, keys, fields):
    """Add the runs of row ``y`` from ``x`` on to a table of ``n`` labels.

    Returns
    -------
    n : int
        The new number of labels; -1 if a label is above ``largest``.
    x : int
        Where to continue with a larger table; the end of the row if all runs were added.
    """
    W = row.shape[0]
    while x < W:
        label, first = row[x], x
        x = run_end(row, first, label)
        if label == 0:
            continue
        if label > largest:
            return -1, x
        at = find_entry(np.uint64(label), keys)
        if keys[at] == 0:
            if 2 * n >= keys.shape[0]:
                return n, first
            n += 1
            keys[at] = label
            fields[at, TOP], fields[at, LEFT] = y, first
        length = x - first
        fields[at, COUNT] += length
        fields[at, SUM_Y] += y * length
        # The sum of x over n pixels from x on is n x + n (n - 1) / 2.
        fields[at, SUM_X] += first * length + length * (length - 1) // 2
        fields[at, LEFT] = min(fields[at, LEFT], first)
        fields[at, BOTTOM] = y + 1
        fields[at, RIGHT] = max(fields[at, RIGHT], x)
    return n, x


@compiled
def build_table(strip, largest, y0):
    """Return a hash table of the labels of a strip (h, W) of unsigned ids, which starts at row ``y0``.

    Returns
    -------
    n : int
        The number of labels; -1 if a label is above ``largest``.
    keys, fields : (m,) uint64, (m, N_FIELDS) int64
        The labels and their fields; the key of an empty entry is 0.
    """
    keys, fields = np.zeros(SMALLEST_TABLE, np.uint64), np.zeros((SMALLEST_TABLE, N_FIELDS), np.int64)
    n = 0
    for y in range(strip.shape[0]):
        x = 0
        while x < strip.shape[1]:
            n, x = add_runs(strip[y], x, largest, y0 + y, n, keys, fields)
            if n < 0:
                return n, keys, fields
            if x < strip.shape[1]:
                keys, fields = grown(keys, fields)
    return n, keys, fields
