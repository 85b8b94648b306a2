"""Check with scPortrait's own code that it can read, train from and plot a file of cells.

``compat_scportrait.py FILE.h5sc`` prints one line per check and exits with 1 if any failed. It runs in an environment
with scPortrait and does not import gpu_extract: what scPortrait returns is compared with what h5py reads. See
compat_scportrait.sh.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anndata
import h5py
import matplotlib.pyplot as plt
import numpy as np
import scportrait
from scportrait.io import read_h5sc
from scportrait.tools.h5sc import get_image_with_cellid
from scportrait.tools.ml.datasets import H5ScSingleCellDataset, LabelledH5ScSingleCellDataset
from torch.utils.data import DataLoader

N_PLOTTED = 4


@dataclass(frozen=True)
class Expected:
    """The contents of a file as h5py reads them: ids (N,), images (N, K, S, S), K planes, and the number of masks."""

    path: Path
    ids: np.ndarray
    images: np.ndarray
    planes: list[str]
    n_masks: int

    @classmethod
    def read(cls, path: Path) -> Expected:
        """Read the whole file."""
        with h5py.File(path, "r") as file:
            images = file["obsm/single_cell_images"]
            planes = as_text(images.attrs["channel_names"])
            n_masks = int(images.attrs["n_masks"])
            return cls(path, file["obs/scportrait_cell_id"][:], images[:], planes, n_masks)


def check_read_h5sc(expected: Expected) -> str:
    cells = read_h5sc(expected.path)
    images = cells.obsm["single_cell_images"]
    np.testing.assert_array_equal(images[:], expected.images)
    np.testing.assert_array_equal(cells.obs["scportrait_cell_id"], expected.ids)
    described = cells.uns["single_cell_images"]
    assert as_text(described["channel_names"]) == expected.planes, described["channel_names"]
    assert cells.var["channels"].tolist() == expected.planes, cells.var["channels"]
    assert int(described["n_masks"]) == expected.n_masks, described["n_masks"]
    return f"{cells.n_obs} cells, images {images.shape} {images.dtype}, planes {', '.join(expected.planes)}"


def check_read_h5ad(expected: Expected) -> str:
    cells = anndata.read_h5ad(expected.path)
    np.testing.assert_array_equal(cells.obsm["single_cell_images"], expected.images)
    np.testing.assert_array_equal(cells.obs["scportrait_cell_id"], expected.ids)
    return f"anndata {version('anndata')}, {cells.n_obs} cells, obs columns {', '.join(cells.obs.columns)}"


def check_dataset(expected: Expected) -> str:
    dataset = quietly(H5ScSingleCellDataset, dir_list=[expected.path], dir_labels=[1])
    batches = DataLoader(dataset, batch_size=32)
    images, labels, ids = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    np.testing.assert_array_equal(images, expected.images.astype(np.float32))
    np.testing.assert_array_equal(ids.astype(np.uint64), expected.ids)
    assert (labels == 1).all()
    return f"{len(dataset)} tensors of shape {images.shape[1:]} and their ids, in batches of 32"


def check_dataset_selection(expected: Expected) -> str:
    rows, planes = [len(expected.ids) - 1, 0], [0, len(expected.planes) - 1]
    choice = {"index_list": [rows], "select_channel": planes}
    dataset = quietly(H5ScSingleCellDataset, dir_list=[expected.path], dir_labels=[0], **choice)
    assert len(dataset) == len(rows)
    for i, row in enumerate(rows):
        image, _, cell_id = dataset[i]
        np.testing.assert_array_equal(image, expected.images[row][planes].astype(np.float32))
        assert int(cell_id) == expected.ids[row]
    return f"rows {rows}, planes {planes}"


def check_labelled_dataset(expected: Expected) -> str:
    with h5py.File(expected.path, "r") as file:
        columns = {name: item[:] for name, item in file["obs"].items() if isinstance(item, h5py.Dataset)}
    numbers = {name: values for name, values in columns.items() if values.dtype.kind in "iuf"}
    for name, values in numbers.items():
        dataset = quietly(LabelledH5ScSingleCellDataset, dir_list=[expected.path], label_colum=name)
        labels = np.array([float(dataset[row][1]) for row in range(len(dataset))], np.float32)
        np.testing.assert_array_equal(labels, values.astype(np.float32), name)
    return f"{len(expected.ids)} labels each from {', '.join(numbers)}"


def check_image_by_id(expected: Expected) -> str:
    cells = read_h5sc(expected.path)
    rows, ids = plotted(expected)
    np.testing.assert_array_equal(get_image_with_cellid(cells, ids), expected.images[rows])
    n_ids = len(np.unique(expected.ids))
    return f"{len(rows)} cells; {n_ids} of {len(expected.ids)} ids are of one cell"


def check_plot_channel(expected: Expected) -> str:
    rows, ids = plotted(expected)
    plane = len(expected.planes) - 1
    figure = scportrait.pl.cell_grid_single_channel(
        read_h5sc(expected.path), plane, mask_id=0, cell_ids=ids, show_cell_id=True, return_fig=True
    )
    return drawn(figure, expected.images[rows, plane])


def check_plot_all_planes(expected: Expected) -> str:
    rows, ids = plotted(expected)
    figure = scportrait.pl.cell_grid(read_h5sc(expected.path), cell_ids=ids, return_fig=True)
    size = expected.images.shape[-1]
    return drawn(figure, expected.images[rows].reshape(-1, size, size))


def plotted(expected: Expected) -> tuple[list[int], list[int]]:
    """Return the rows and ids of some cells whose ids are unique in the file: scPortrait's plots find cells by id."""
    ids, first, counts = np.unique(expected.ids, return_index=True, return_counts=True)
    rows = np.sort(first[counts == 1])[:N_PLOTTED].tolist()
    assert len(rows) == N_PLOTTED, f"{len(ids)} ids, of which too few are unique"
    return rows, expected.ids[rows].tolist()


def as_text(names: Iterable[str | bytes]) -> list[str]:
    """Return the names as str; scPortrait itself writes bytes."""
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def quietly(make: Callable[..., Any], **arguments: Any) -> Any:
    """Make the dataset without the statistics that scPortrait prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        return make(**arguments)


def drawn(figure: Any, pictures: np.ndarray) -> str:
    """Check that the figure shows these pictures (n, S, S) in this order and can be saved as PNG."""
    shown = [axes.images[0].get_array() for axes in figure.axes[0].child_axes]
    np.testing.assert_array_equal(np.stack(shown), pictures)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "grid.png"
        figure.savefig(path)
        nbytes = path.stat().st_size
    plt.close(figure)
    return f"{len(shown)} pictures, PNG of {nbytes} bytes"


CHECKS = {
    "scportrait.io.read_h5sc": check_read_h5sc,
    "anndata.read_h5ad": check_read_h5ad,
    "H5ScSingleCellDataset": check_dataset,
    "H5ScSingleCellDataset, selected rows and planes": check_dataset_selection,
    "LabelledH5ScSingleCellDataset": check_labelled_dataset,
    "tools.h5sc.get_image_with_cellid": check_image_by_id,
    "plotting.cell_grid_single_channel": check_plot_channel,
    "plotting.cell_grid": check_plot_all_planes,
}


def main() -> int:
    if len(sys.argv) != 2:
        print(f"usage: {Path(sys.argv[0]).name} FILE.h5sc", file=sys.stderr)
        return 2
    expected = Expected.read(Path(sys.argv[1]))
    n_failed = 0
    for name, check in CHECKS.items():
        try:
            print(f"ok    {name}: {check(expected)}")
        except Exception:  # whatever scPortrait raises is a failure of this check
            n_failed += 1
            print(f"FAIL  {name}")
            traceback.print_exc()
    print(f"scPortrait {scportrait.__version__}: {len(CHECKS) - n_failed} of {len(CHECKS)} checks passed")
    return 1 if n_failed else 0


if __name__ == "__main__":
    sys.exit(main())
