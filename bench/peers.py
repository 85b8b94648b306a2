"""gpu-extract and its peers on the same slide in the same run: cells per second, and every value compared.

    python -m bench.peers --scportrait VENV/bin/python [--size 4096] [--repeats 5] [--threads 2] [--json FILE]

The peers are scPortrait 1.8.0 in a virtual environment of its own (`bench/compat_scportrait.sh VENV` makes one),
SPARCSpy's recipe as its documentation states it, and a plain loop with scikit-image (`bench/peer_loops.py`). Theirs
is `Project.extract` by its own clock, and the loop; ours a call of `gpu_extract.extract`, files on disk to finished
gzip .h5sc, in a process where it was called once before, as scPortrait's process has loaded all it needs. The first
call is told beside it. Ours and the peer take turns, each in a new process, so that a machine whose speed changes from
minute to minute is as fast for the one as for the other; ratios are of medians.
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

# Cells whose values are compared.
N_COMPARED = 500


def main() -> None:
    """Run everything, print a line per peer, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=4096, help="side of the slide in pixels")
    parser.add_argument("--repeats", type=int, default=5, help="turns of ours and of each peer")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scportrait", type=Path, help="the python of a virtual environment that has scPortrait")
    parser.add_argument("--json", type=Path, help="write the figures here")
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
        """Ours and the peer in turns; figures, ratio of medians, and how far the values agree."""
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
            f"{peer}: {speeds[0]:,.0f} cells/s ({speeds[1]:,.0f} without set-up), ours {speeds[2]:,.0f}: "
            f"{result['ratio']:.0f} x ({result['ratio_without_set_up']:.0f} x; first call "
            f"{result['ratio_of_first_call']:.0f} x); {result['share_equal']:.4%} of values equal, "
            f"largest difference {result['largest_ulp']} ulp",
            flush=True,
        )
        return result

    def ours(self, recipe: str) -> dict[str, Any]:
        """Figures of three calls in a new process, and of one before them."""
        return ours.run(self.folder, "npy", recipe, "window", self.threads, repeats=3)

    def scportrait(self, python: Path) -> dict[str, Any]:
        """Figures of scPortrait's `Project.extract`, by its own clock."""
        script = Path(__file__).with_name("peer_scportrait.py")
        output = self.folder / "scportrait"
        shutil.rmtree(output, ignore_errors=True)
        told = subprocess.run(
            [str(python), str(script), str(self.folder), str(output), str(self.threads), str(ours.TILE_SIZE)],
            check=True,
            capture_output=True,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        )
        figures = json.loads(told.stdout.splitlines()[-1])
        return {
            "file": figures["file"],
            "n_cells": figures["n_cells"],
            "seconds": figures["reported_total_seconds"],
            "loop_seconds": figures["reported_extraction_seconds"],
            "file_bytes_per_cell": Path(figures["file"]).stat().st_size / figures["n_cells"],
        }

    def loop(self, recipe: str) -> dict[str, Any]:
        """A loop over cells in a pool of processes."""
        file = self.folder / f"{recipe}.h5"
        file.unlink(missing_ok=True)
        return {"file": str(file), **extract(recipe, self.folder, file, self.threads, ours.TILE_SIZE)}

    def agreement(self, theirs: Path) -> dict[str, Any]:
        """How many values of some cells are the same, and how far the others are apart."""
        with h5py.File(theirs) as file, open_cells(self.folder / "ours.h5sc") as cells:
            images = file["images"] if "images" in file else file["obsm/single_cell_images"]
            ids = (file["ids"] if "ids" in file else file["obs/scportrait_cell_id"])[:].astype(np.uint64)
            assert set(ids.tolist()) == set(cells.ids.tolist())
            rows = np.sort(np.random.default_rng(0).permutation(len(ids))[:N_COMPARED])
            ulps = [distance(images[row], cells[int(ids[row])]) for row in rows.tolist()]
        every = np.concatenate([one.ravel() for one in ulps])
        return {"n_compared": len(rows), "share_equal": float((every == 0).mean()), "largest_ulp": int(every.max())}


def distance(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """How many float16 numbers lie between values that are not negative."""
    return np.abs(one.view(np.int16).astype(int) - other.view(np.int16).astype(int))


if __name__ == "__main__":
    main()
