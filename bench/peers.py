"""Compare gpu-extract with its peers on the same slide in the same run: cells per second, and agreement of values.

    python -m bench.peers --scportrait VENV/bin/python [--size 4096] [--repeats 5] [--threads 2] [--json FILE]

The peers are scPortrait 1.8.0 in a virtual environment of its own (`bench/compat_scportrait.sh VENV` makes one),
SPARCSpy's recipe as its documentation describes it, and a plain loop with scikit-image (`bench/peer_loops.py`). For
scPortrait, the time is the one that `Project.extract` reports; for the loops, it is that of the whole function. For
gpu-extract, it is the time of one call of `gpu_extract.extract`, from files on disk to a finished gzip .h5sc, in a
process that has called it once before, because scPortrait's process has also loaded all its modules. The first call is
reported separately. gpu-extract and the peer take turns, each in a new process, so that changes of the machine's speed
affect both alike. Ratios are ratios of medians.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bench import ours
from bench.machine import machine
from bench.peer_loops import extract
from gpu_extract import open_cells

# Number of cells whose values are compared.
N_COMPARED = 500


def main() -> None:
    """Run everything, print one line per peer, and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=4096, help="side of the slide in pixels")
    parser.add_argument("--repeats", type=int, default=5, help="turns of gpu-extract and of each peer")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scportrait", type=Path, help="the python of a virtual environment that has scPortrait")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-m", "bench.synthetic", name, str(arguments.size), "npy"], check=True)
        bench = Bench(folder, arguments.threads, arguments.repeats)
        results = []
        if arguments.scportrait:
            results.append(bench.compare("scportrait", "scportrait", lambda: bench.scportrait(arguments.scportrait)))
        for recipe, peer in (("sparcspy", "SPARCSpy's recipe, NumPy"), ("standard", "scikit-image loop")):
            results.append(bench.compare(peer, recipe, lambda recipe=recipe: bench.loop(recipe)))
    if arguments.json:
        head = {"machine": machine(), "slide": f"{arguments.size} x {arguments.size} x 3 uint16, tile {ours.TILE_SIZE}"}
        arguments.json.write_text(
            json.dumps({**head, "threads": arguments.threads, "results": results}, indent=1) + "\n"
        )


class Bench:
    """The slide in a folder, and the programs that extract it."""

    def __init__(self, folder: Path, threads: int, repeats: int) -> None:
        self.folder, self.threads, self.repeats = folder, threads, repeats

    def compare(self, peer: str, recipe: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Run gpu-extract and the peer in turns; return times, ratios of medians, and the agreement of values."""
        ours, theirs = zip(*((self.ours(recipe), run()) for _ in range(self.repeats)), strict=True)
        seconds = statistics.median(call for turn in ours for call in turn["call_seconds"])
        first_call = statistics.median(turn["first_call_seconds"] for turn in ours)
        total, loop = (statistics.median(turn[name] for turn in theirs) for name in ("seconds", "loop_seconds"))
        result = {
            "peer": peer,
            "recipe": recipe,
            "n_cells": theirs[0]["n_cells"],
            "seconds": total,
            "our_seconds": seconds,
            "ratio": total / seconds,
            "ratio_without_set_up": loop / seconds,
            "ratio_of_first_call": total / first_call,
            **self.agreement(Path(theirs[-1]["file"])),
            "ours": ours,
            "theirs": theirs,
        }
        speeds = [result["n_cells"] / each for each in (total, loop, seconds)]
        print(
            f"{peer}: {speeds[0]:,.0f} cells/s ({speeds[1]:,.0f} without setup), gpu-extract {speeds[2]:,.0f}: "
            f"{result['ratio']:.0f} x ({result['ratio_without_set_up']:.0f} x without setup; first call "
            f"{result['ratio_of_first_call']:.0f} x); {result['share_equal']:.4%} of values equal, "
            f"largest difference {result['largest_ulp']} ulp",
            flush=True,
        )
        return result

    def ours(self, recipe: str) -> dict[str, Any]:
        """Return the results of gpu-extract: three calls in a new process, after a first one."""
        return ours.run(self.folder, "npy", recipe, "window", self.threads, repeats=3)

    def scportrait(self, python: Path) -> dict[str, Any]:
        """Return the results of scPortrait's `Project.extract`, with the times that it reports."""
        script = Path(__file__).with_name("peer_scportrait.py")
        output = self.folder / "scportrait"
        shutil.rmtree(output, ignore_errors=True)
        done = subprocess.run(
            [str(python), str(script), str(self.folder), str(output), str(self.threads), str(ours.TILE_SIZE)],
            check=True,
            capture_output=True,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        )
        figures = json.loads(done.stdout.splitlines()[-1])
        return {
            "file": figures["file"],
            "n_cells": figures["n_cells"],
            "seconds": figures["reported_total_seconds"],
            "loop_seconds": figures["reported_extraction_seconds"],
            "file_bytes_per_cell": Path(figures["file"]).stat().st_size / figures["n_cells"],
        }

    def loop(self, recipe: str) -> dict[str, Any]:
        """Return the results of a loop over cells in a pool of processes."""
        file = self.folder / f"{recipe}.h5"
        file.unlink(missing_ok=True)
        return {"file": str(file), **extract(recipe, self.folder, file, self.threads, ours.TILE_SIZE)}

    def agreement(self, theirs: Path) -> dict[str, Any]:
        """Return the share of equal values in some cells, and the largest difference."""
        with h5py.File(theirs) as file, open_cells(self.folder / "ours.h5sc") as cells:
            images = file["images"] if "images" in file else file["obsm/single_cell_images"]
            ids = (file["ids"] if "ids" in file else file["obs/scportrait_cell_id"])[:].astype(np.uint64)
            assert set(ids.tolist()) == set(cells.ids.tolist())
            rows = np.sort(np.random.default_rng(0).permutation(len(ids))[:N_COMPARED])
            ulps = [distance(images[row], cells[int(ids[row])]) for row in rows.tolist()]
        every = np.concatenate([one.ravel() for one in ulps])
        return {"n_compared": len(rows), "share_equal": float((every == 0).mean()), "largest_ulp": int(every.max())}


def distance(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return how many float16 steps lie between values; they must not be negative."""
    return np.abs(one.view(np.int16).astype(int) - other.view(np.int16).astype(int))


if __name__ == "__main__":
    main()
