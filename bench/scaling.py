"""Compare one thread with two: compute and encode the same cells, and for comparison run a loop of arithmetic.

    python -m bench.scaling [--json FILE]

Windows are in memory, and each thread takes the next batch, as in a run. The ratio of the arithmetic loop, which needs
no memory, is the best that the machine can give.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numba
import numpy as np

from bench.machine import machine
from bench.synthetic import make_slide
from gpu_extract.backends import choose
from gpu_extract.planning import batches, make_plan
from gpu_extract.recipe import Recipe
from gpu_extract.sources import open_slide

REPEATS = 25


@numba.njit(nogil=True)
def count(n: int) -> float:
    """Compute dependent sums, all in registers."""
    a = b = 0.5
    for _ in range(n):
        a = a * 0.999 + b
    return a


def main() -> None:
    """Run, print one line per task, and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the results to this file")
    arguments = parser.parse_args()
    slide = make_slide(2048)
    opened = open_slide(slide.image, nucleus=slide.nucleus, cytosol=slide.cytosol)
    tasks: dict[str, list[Callable[[], Any]]] = {"arithmetic": [partial(count, 10**6)] * 20}
    backend = choose("cpu")
    for recipe in ("standard", "scportrait", "sparcspy"):
        plan = make_plan([opened], Recipe.preset(recipe))
        work = [(opened.read(batch.box), batch) for batch in batches(plan, backend.batch_size)]
        given = plan.program, None, plan.program.tile_nbytes  # a chunk is a cell
        tasks[recipe] = [partial(backend.extract_deflated, *each, *given) for each in work]
    results = {}
    for name, task in tasks.items():
        one, two = seconds(task)
        results[name] = {"one_thread_seconds": one, "two_threads_seconds": two, "ratio": one / two}
        print(f"{name:<11} one thread {one * 1e3:7.1f} ms, two {two * 1e3:7.1f} ms: {one / two:.2f} x", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")


def seconds(task: list[Callable[[], Any]]) -> tuple[float, float]:
    """Return the shortest time of a task with one thread and with two, measured in turns."""
    least = [np.inf, np.inf]
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(2) as two:
        for n in range(REPEATS + 1):
            for threads, workers in enumerate((one, two)):
                start = time.perf_counter()
                list(workers.map(lambda part: part(), task))
                if n:  # the first call compiles
                    least[threads] = min(least[threads], time.perf_counter() - start)
    return least[0], least[1]


if __name__ == "__main__":
    main()
