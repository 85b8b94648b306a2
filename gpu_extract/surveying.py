"""Estimate what an extraction needs before it runs: pixel values, label problems, time, memory and file size.

Label problems and pixel values are counted on the label planes and the images. What depends on the machine (time,
compression, memory) is measured by extracting a sample of the plan's cells.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_extract import pipeline
from gpu_extract.backends import Backend
from gpu_extract.components import find_components
from gpu_extract.html_table import html_table
from gpu_extract.matching import find_overlaps
from gpu_extract.messages import announce
from gpu_extract.model import Slide, strips
from gpu_extract.planning import Plan, batches
from gpu_extract.store import CellStore, Contents

__all__ = ["ChannelValues", "LabelProblem", "Survey", "size_histogram", "survey"]

# Of larger images only evenly spaced rows of about this many bytes are read, so that a terabyte takes seconds.
VALUES_NBYTES = 2 << 30
# Pixels of one channel that are read at a time, in whole rows.
STRIP_PIXELS = 4 << 20
# Cells of the trial extraction: enough to give every core several batches.
N_TRIED = 1024
# Memory per cell that a run holds to its end (table rows, journal, index), measured from 7,000 to 110,000 cells.
CELL_NBYTES = 350
# Maximum number of bars of the size histogram, and of ids that are listed as examples of a problem.
N_BARS, N_EXAMPLES = 10, 5
# Remedies for label problems; one that the recipe applies already is not suggested.
BY_OVERLAP = "--match overlap (match='overlap') pairs nuclei and cytosols by their pixels, not by their ids"
LARGEST_COMPONENT = "--pieces largest (pieces='largest') keeps only the largest component"
# Shares of the cells for which the fitting tile size is listed.
SHARES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


@dataclass(frozen=True)
class ChannelValues:
    """Range of the pixel values of a channel over all slides.

    Parameters
    ----------
    name, dtype : str
    lowest, highest : float or None
        Smallest and largest finite pixel value; None if no pixel is finite.
    n_nonfinite : int
        Number of NaN and infinite pixels.
    """

    name: str
    dtype: str
    lowest: float | None
    highest: float | None
    n_nonfinite: int


@dataclass(frozen=True)
class LabelProblem:
    """A problem of the label planes, with the ids of the cells that have it.

    Parameters
    ----------
    problem : str
        Description of the problem.
    count : int
        Number of cells that have it.
    examples : tuple of (str, int)
        Slide name and id of the first cells that have it, at most `N_EXAMPLES`.
    remedy : str
        An option that solves the problem, or ``""``.
    """

    problem: str
    count: int
    examples: tuple[tuple[str, int], ...]
    remedy: str


@dataclass(frozen=True)
class Survey:
    """A plan with what was measured on pixels and by a trial extraction.

    Parameters
    ----------
    plan : Plan
    device : str
    threads : int
    problems : tuple of LabelProblem
    channels : tuple of ChannelValues
    share_read : float
        Share of the pixels that ``channels`` was computed from; less than 1 only for very large images.
    n_tried : int
        Number of cells of the trial extraction, from which the next three are estimated.
    seconds : float
        Estimated duration of the run, from reading the first pixel to the finished file.
    file_nbytes : int
        Estimated size of the file.
    memory_nbytes : int
        Estimated peak memory of the process.
    """

    plan: Plan
    device: str
    threads: int
    problems: tuple[LabelProblem, ...]
    channels: tuple[ChannelValues, ...]
    share_read: float
    n_tried: int
    seconds: float
    file_nbytes: int
    memory_nbytes: int

    def __repr__(self) -> str:
        return (
            f"Survey(n_cells={len(self.plan.cells)}, n_slides={len(self.plan.slides)}, device={self.device!r}, "
            f"threads={self.threads}, seconds={self.seconds:.1f}, file_nbytes={self.file_nbytes}, "
            f"memory_nbytes={self.memory_nbytes}, n_problems={len(self.problems)})"
        )

    def _repr_html_(self) -> str:
        rows = [
            *self.plan.html_rows(),
            *(("problem", f"{each.count:,} x {each.problem}") for each in self.problems),
            ("file", f"about {self.file_nbytes / 1e6:,.1f} MB"),
            ("time", f"about {self.seconds:,.1f} s on device {self.device} with {self.threads} threads"),
            ("memory", f"about {self.memory_nbytes / 1e6:,.0f} MB"),
        ]
        return html_table("Survey", rows)

    def tile_sizes(self) -> dict[float, int]:
        """Return the tile size, in pixels, that holds each of some shares of the cells whole."""
        return {share: self.plan.fitting_tile_size(share) for share in SHARES}

    def histogram(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the `size_histogram` of the plan."""
        return size_histogram(self.plan)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan and the estimates as plain values, for JSON."""
        plan, cells = self.plan, self.plan.cells
        edges, counts = self.histogram()
        return {
            "device": self.device,
            "threads": self.threads,
            "n_cells": len(cells),
            "dropped": cells.dropped.counts(),
            "n_truncated": int(cells.truncated.sum()),
            "tile_size": plan.program.recipe.tile_size,
            "fitting_tile_size": {f"{share:g}": side for share, side in self.tile_sizes().items()},
            "cell_sizes": {"edges": edges.tolist(), "counts": counts.tolist()},
            "slides": [self._slide(index) for index in range(len(plan.slides))],
            "planes": list(plan.plane_names),
            "output_dtype": plan.program.output_dtype.name,
            "label_problems": [asdict(problem) for problem in self.problems],
            "channels": [asdict(channel) for channel in self.channels],
            "share_of_pixels_read": self.share_read,
            "nbytes": plan.nbytes,
            "n_tried": self.n_tried,
            "estimated_file_nbytes": self.file_nbytes,
            "estimated_memory_nbytes": self.memory_nbytes,
            "estimated_seconds": self.seconds,
            "warnings": list(plan.warnings),
            "recipe": plan.program.recipe.to_toml(),
        }

    def _slide(self, index: int) -> dict[str, Any]:
        slide, cells = self.plan.slides[index], self.plan.cells
        dropped = cells.dropped.part(cells.dropped.slide == index)
        return {
            "name": slide.name,
            "metadata": dict(slide.metadata),
            "image": slide.image.source,
            "size": list(slide.size),
            "n_cells": int(np.count_nonzero(cells.slide == index)),
            "dropped": dropped.counts(),
        }


def size_histogram(plan: Plan) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the distribution of the sides of the smallest tiles that hold each cell whole.

    Parameters
    ----------
    plan : Plan

    Returns
    -------
    edges : (n + 1,) int64, pixels
        Of at most `N_BARS` equal ranges, each including its lower edge; the last edge is above the largest side.
    counts : (n,) int64
        Cells in each range.
    """
    sides = plan.fitting_sides()
    if not len(sides):
        return np.zeros(1, np.int64), np.zeros(0, np.int64)
    width = max(2, 2 * -(-int(sides.max() + 1 - sides.min()) // (2 * N_BARS)))
    edges = np.arange(sides.min(), sides.max() + width + 1, width)
    return edges, np.histogram(sides, edges)[0]


def survey(plan: Plan, backend: Backend, threads: int, storage: Mapping[str, Any] = MappingProxyType({})) -> Survey:
    """Read a plan's label planes and images, and extract some of its cells into a temporary file.

    Parameters
    ----------
    plan : Plan
    backend : Backend
    threads : int
    storage : mapping
        ``compression``, ``layout``, ``chunk_cells`` and ``unique_ids``, as for `gpu_extract.extract`; its defaults
        where they are missing.

    Raises
    ------
    InputError
        If the pixels cannot be read.
    """
    announce("surveying labels and images")
    problems = _label_problems(plan)
    start = time.perf_counter()
    channels, share_read = _channel_values(plan.slides)
    pass_seconds = (time.perf_counter() - start) / share_read
    sample = _sample(plan, backend)
    seconds, nbytes = _trial(sample, backend, threads, storage)
    n_tried, n_cells = len(sample.cells), len(plan.cells)
    ratio = n_cells / n_tried if n_tried else 1.0
    memory = _largest_memory() + CELL_NBYTES * (n_cells - n_tried)
    return Survey(
        plan=plan,
        device=backend.device,
        threads=threads,
        problems=problems,
        channels=channels,
        share_read=share_read,
        n_tried=n_tried,
        seconds=seconds * ratio + pass_seconds * _n_passes(plan),
        file_nbytes=nbytes * n_cells // n_tried if n_tried else nbytes,
        memory_nbytes=memory,
    )


def _label_problems(plan: Plan) -> tuple[LabelProblem, ...]:
    """Return the label problems of all slides, one entry for each kind.

    What a run says, too, is left out: cells that are dropped, and ids that a warning of the plan is about.
    """
    found: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for index, slide in enumerate(plan.slides):
        unsure = plan.unsure[index] if plan.unsure else np.zeros(0, np.uint64)
        for kind, ids in [*_without_partner(plan, index), *_problems_of(slide)]:
            found.setdefault(kind, []).extend((slide.name, int(each)) for each in np.setdiff1d(ids, unsure))
    applied = BY_OVERLAP if plan.program.recipe.match == "overlap" else None
    return tuple(
        LabelProblem(problem, len(cells), tuple(cells[:N_EXAMPLES]), "" if remedy == applied else remedy)
        for (problem, remedy), cells in found.items()
        if cells
    )


def _without_partner(plan: Plan, index: int) -> Iterator[tuple[tuple[str, str], NDArray[np.uint64]]]:
    """Yield (problem, remedy) and ids for the cells of a slide that have but one of two masks."""
    cells = plan.cells
    for m, name in enumerate(plan.slides[index].masks):
        yield (f"cell without {name}", BY_OVERLAP), cells.ids[(cells.slide == index) & (cells.areas[:, m] == 0)]


def _problems_of(slide: Slide) -> Iterator[tuple[tuple[str, str], NDArray[np.uint64]]]:
    """Yield (problem, remedy) and the ids of a slide that have the problem."""
    for name, raster in slide.masks.items():
        yield (f"{name} in several components", LARGEST_COMPONENT), find_components(raster).ids
    if len(slide.masks) < 2:
        return
    overlaps = find_overlaps(*slide.masks.values())
    nuclei, holders = overlaps.holders()
    cells, counts = np.unique(holders, return_counts=True)
    yield ("nucleus mostly in a cytosol of another id", BY_OVERLAP), nuclei[nuclei != holders]
    yield ("cytosol that holds several nuclei", BY_OVERLAP), cells[counts > 1]


def _channel_values(slides: tuple[Slide, ...]) -> tuple[tuple[ChannelValues, ...], float]:
    """Return the range of each channel over all slides, and the share of the pixels that were read."""
    first = slides[0]
    n_channels, dtype = first.image.shape[0], first.image.dtype
    nbytes = sum(slide.image.shape[1] * slide.image.shape[2] for slide in slides) * n_channels * dtype.itemsize
    step = max(1, -(-nbytes // VALUES_NBYTES))
    low, high = np.full(n_channels, np.inf), np.full(n_channels, -np.inf)
    bad = np.zeros(n_channels, np.int64)
    n_read = 0
    for _, strip in chain.from_iterable(strips(slide.image, STRIP_PIXELS, step) for slide in slides):
        n_read += strip[0].size
        for c, pixels in enumerate(strip):
            if dtype.kind == "f":
                finite = pixels[np.isfinite(pixels)]
                bad[c] += pixels.size - finite.size
                pixels = finite
            if pixels.size:
                low[c], high[c] = min(low[c], pixels.min()), max(high[c], pixels.max())
    total = sum(slide.size[0] * slide.size[1] for slide in slides)
    channels = []
    for name, lo, hi, n in zip(first.channel_names, low.tolist(), high.tolist(), bad.tolist(), strict=True):
        lowest, highest = (lo, hi) if lo <= hi else (None, None)
        channels.append(ChannelValues(name, dtype.name, lowest, highest, n))
    return tuple(channels), n_read / total


def _sample(plan: Plan, backend: Backend) -> Plan:
    """Return the plan reduced to whole batches, drawn at random, of at least `N_TRIED` cells if there are as many."""
    every = list(batches(plan, backend.batch_size))
    chosen = np.random.default_rng(0).permutation(len(every))
    rows: list[int] = []
    for i in chosen.tolist():
        if len(rows) >= min(N_TRIED, len(plan.cells)):
            break
        rows += every[i].rows.tolist()
    return _part(plan, np.sort(np.array(rows, np.int64)))


def _part(plan: Plan, rows: NDArray[np.int64]) -> Plan:
    """Return the plan reduced to some rows, with a recipe that needs no pass over whole images."""
    table = plan.cells.part(rows, plan.cells.dropped.part(np.zeros(0, np.int64)))
    recipe = plan.program.recipe.replace(nonfinite="zero", quantile_scope="cell")
    return replace(plan, cells=table, program=replace(plan.program, recipe=recipe))


def _trial(sample: Plan, backend: Backend, threads: int, storage: Mapping[str, Any]) -> tuple[float, int]:
    """Extract the sample into a temporary file; return the seconds and the bytes of the file."""
    with tempfile.TemporaryDirectory(prefix="gpu-extract-plan-") as folder:
        # One cell first, so that compilation is not part of the measurement.
        for part, name in ((_part(sample, np.arange(min(1, len(sample.cells)))), "first.h5"), (sample, "sample.h5")):
            contents = Contents(part.cells, part.slides, part.program, planes=part.planes)
            store = CellStore.create(Path(folder, name), contents, **storage)
            report = pipeline.run(part, backend, store, threads)
        return report.seconds, report.path.stat().st_size


def _n_passes(plan: Plan) -> int:
    """Return the number of passes over whole images that a run makes before it extracts."""
    recipe, dtype = plan.program.recipe, plan.program.image_dtype
    n = int(recipe.nonfinite == "error" and dtype.kind == "f")
    if recipe.normalization == "quantile" and recipe.quantile_scope != "cell":
        n += -(-dtype.itemsize // 2)  # a pass determines 16 bits of the exact quantiles
    return n


def _largest_memory() -> int:
    """Return the largest memory, in bytes, that this process has had; 0 on Windows."""
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
