"""Run all benchmarks of the CPU: one table, and the JSON files that it is made from.

    python -m bench [--scportrait VENV/bin/python] [--repeats 5] [--results bench/results]

Takes about twenty minutes on two cores. ``python -m bench.summary`` then puts the table and the plot into the README.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from bench.summary import table

RESULTS = Path(__file__).with_name("results")


def main() -> None:
    """Run the benchmarks one after the other and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scportrait", type=Path, help="the python of a virtual environment that has scPortrait")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON files")
    arguments = parser.parse_args()
    arguments.results.mkdir(parents=True, exist_ok=True)
    repeats = ["--repeats", str(arguments.repeats)]
    peers = ["--scportrait", str(arguments.scportrait)] if arguments.scportrait else []
    for name, figures, options in (
        ("peers", "peers", [*peers, *repeats]),
        ("end_to_end", "end-to-end", ["--sizes", "1536", "4096", *repeats]),
        # 110,000 cells, on a slide of 3 GB.
        ("end_to_end", "end-to-end-large", ["--sizes", "16384", "--recipe", "scportrait", "--repeats", "3"]),
        ("scaling", "scaling", []),
        ("primitives", "primitives", repeats),
        ("writer", "writer", repeats),
        ("read_back", "read-back", []),
    ):
        print(f"== {figures}", flush=True)
        file = arguments.results / f"cpu-{figures}.json"
        subprocess.run([sys.executable, "-m", f"bench.{name}", *options, "--json", str(file)], check=True)
    print("\n".join(table(arguments.results)))


if __name__ == "__main__":
    main()
