"""Write the speed table and plot of the README from ``bench/results``.

python -m bench.summary          writes both; needs matplotlib
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
README, PLOT = HERE.parent / "README.md", HERE.parent / "docs" / "speed.png"
BEGIN, END = "<!-- speed: made by `python -m bench.summary` -->\n", "<!-- end of speed -->\n"
NAMES = {"scportrait": "scPortrait 1.8.0"}
# Readers in the results of `read_back`; those of our files are "ours, " and the compression.
READERS = {
    "scPortrait's, ours": "scPortrait's file with `open_cells`",
    "scPortrait's, h5py": "scPortrait's file with h5py",
}


def main() -> None:
    """Write the table into the README and draw the plot."""
    before, _, rest = README.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(before + BEGIN + "\n" + "\n".join(table(HERE / "results")) + "\n\n" + END + after)
    plot(HERE / "results")


def table(results: Path) -> list[str]:
    """Return the results of all benchmarks as lines of Markdown; benchmarks that were not run are left out."""
    lines = ["| from files on disk to a finished file | cells/s | KiB per cell | peak memory |", "|---|---|---|---|"]
    runs = [one for name in ("end-to-end", "end-to-end-large") for one in loaded(results, name).get("results", [])]
    for one in runs:
        lines.append(
            f"| gpu-extract, `{one['recipe']}`, {one['n_cells']:,} cells | {one['cells_per_second']:,.0f} | "
            f"{one['file_bytes_per_cell'] / 1024:.1f} | {one['peak_memory_mb']:,.0f} MB |"
        )
    for one in loaded(results, "peers").get("results", []):
        file_nbytes = one["theirs"][-1].get("file_bytes_per_cell")
        size = f"{file_nbytes / 1024:.1f}" if file_nbytes else ""
        faster, faster_loop = one["ratio"], one["ratio_without_set_up"]
        ratios = f"gpu-extract is {faster:.0f} times as fast ({faster_loop:.0f} without the peer's setup)"
        speed = one["n_cells"] / one["seconds"]
        lines.append(f"| {NAMES.get(one['peer'], one['peer'])}: {ratios} | {speed:,.0f} | {size} | |")
    writer, read = (
        loaded(results, "writer").get("results", []),
        loaded(results, "read-back").get("seconds_per_cell", {}),
    )
    speeds = ", ".join(f"`{one['compression']}` {one['raw_mb_per_second'] / 1000:.1f}" for one in writer)
    times = ", ".join(f"{reader(name)} {ways['one at random'] * 1e6:.0f}" for name, ways in read.items())
    lines += ["", f"The writer alone, from memory, in GB/s of raw tiles: {speeds}.", ""]
    return [*lines, f"Reading one cell at random, in microseconds: {times}."]


def reader(name: str) -> str:
    """Return the text for a reader in the results of `read_back`."""
    return READERS.get(name, f"`{name.removeprefix('ours, ')}`")


def loaded(results: Path, name: str) -> dict[str, Any]:
    """Return the results of a benchmark; empty if it was not run."""
    file = results / f"cpu-{name}.json"
    figures: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return figures


def plot(results: Path) -> None:
    """Plot the cells per second of each peer, and of gpu-extract on the same slide in the same run."""
    import matplotlib.pyplot as plt

    peers = loaded(results, "peers")["results"]
    figure, axes = plt.subplots(figsize=(8, 0.7 + 0.75 * len(peers)), layout="constrained")
    for n, one in enumerate(peers):
        ours, theirs = (one["n_cells"] / one[name] for name in ("our_seconds", "seconds"))
        for offset, speed, color, label in (
            (-0.19, theirs, "#b0b7c3", NAMES.get(one["peer"], one["peer"])),
            (0.19, ours, "#2563a8", f"gpu-extract, {one['recipe']}"),
        ):
            axes.barh(n + offset, speed, height=0.36, color=color)
            axes.text(speed, n + offset, f" {speed:,.0f}  {label}", va="center", fontsize=9)
    axes.set_xlim(0, axes.get_xlim()[1] * 1.3)
    axes.set_yticks([])
    axes.invert_yaxis()
    axes.set_xlabel("cells per second on the same slide, two cores")
    for edge in ("top", "right", "left"):
        axes.spines[edge].set_visible(False)
    figure.savefig(PLOT, dpi=150)


if __name__ == "__main__":
    main()
