"""Checks that the anndata that is installed reads files of cells, and writes to them.

``compat_anndata.py FILE.h5sc...`` prints one line a check and exits with 1 if any failed. It does not import
gpu_extract: anndata is compared with what h5py reads. See compat_anndata.sh.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import traceback
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd

IMAGES = "single_cell_images"


def check_read(path: Path) -> str:
    data = anndata.read_h5ad(path)
    is_as_stored(data, path)
    return f"{data.n_obs} cells, {len(data.obs.columns)} columns"


def check_read_backed(path: Path) -> str:
    data = anndata.read_h5ad(path, backed="r")
    is_as_stored(data, path)
    data.file.close()
    return f"{data.n_obs} cells"


def check_write_backed(path: Path) -> str:
    with tempfile.TemporaryDirectory() as folder:
        if not writes_without_x(Path(folder, "own.h5ad")):
            return "skipped: this anndata cannot do it with its own file without X"
        copy = Path(folder, path.name)
        shutil.copyfile(path, copy)
        data = anndata.read_h5ad(copy, backed="r+")
        data.obs["cluster"] = np.arange(data.n_obs)
        data.write()
        data.file.close()
        again = anndata.read_h5ad(copy)
        is_as_stored(again, path)
        assert again.obs["cluster"].tolist() == list(range(again.n_obs))
    return "a column more"


def writes_without_x(path: Path) -> bool:
    """Whether anndata writes to its own backed file without X; 0.13.4 looks for one."""
    anndata.AnnData(obs=pd.DataFrame(index=["0"]), var=pd.DataFrame(index=["0"])).write_h5ad(path)
    data = anndata.read_h5ad(path, backed="r+")
    try:
        data.write()
    except KeyError:
        return False
    finally:
        data.file.close()
    return True


def check_write_part(path: Path) -> str:
    data = anndata.read_h5ad(path)
    rows = np.arange(data.n_obs)[::-2]
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder, "part.h5ad")
        data[rows].copy().write_h5ad(part)
        with h5py.File(path, "r") as file:
            expected = file[f"obsm/{IMAGES}"][:][rows]
        np.testing.assert_array_equal(anndata.read_h5ad(part).obsm[IMAGES], expected)
    return f"{len(rows)} cells in reverse"


def is_as_stored(data: Any, path: Path) -> None:
    """All columns of obs, images and coordinates are as h5py reads them."""
    with h5py.File(path, "r") as file:
        obs = file["obs"]
        columns = [name.decode() if isinstance(name, bytes) else name for name in obs.attrs["column-order"]]
        assert list(data.obs.columns)[: len(columns)] == columns
        for name in columns:
            if isinstance(obs[name], h5py.Group):
                codes, texts = obs[name]["codes"][:], obs[name]["categories"].asstr()[:]
                assert data.obs[name].cat.codes.tolist() == codes.tolist(), name
                assert data.obs[name].cat.categories.tolist() == texts.tolist(), name
            else:
                assert data.obs[name].dtype == obs[name].dtype, name
                np.testing.assert_array_equal(data.obs[name], obs[name][:], name)
        for name in file["obsm"]:
            np.testing.assert_array_equal(data.obsm[name], file["obsm"][name][:], name)
        n_dropped = len(file["uns/gpu_extract/dropped/cell_id"])
    assert len(data.uns["gpu_extract"]["dropped"]) == n_dropped
    assert data.uns["gpu_extract"]["recipe"].count("tile_size") == 1


CHECKS = {
    "read_h5ad": check_read,
    'read_h5ad(backed="r")': check_read_backed,
    'read_h5ad(backed="r+"), write': check_write_backed,
    "some cells, write_h5ad": check_write_part,
}


def main() -> int:
    """Run all checks on each file."""
    warnings.simplefilter("ignore")
    n_failed = 0
    for path in map(Path, sys.argv[1:]):
        for name, check in CHECKS.items():
            try:
                print(f"ok    {path.name}: {name}: {check(path)}")
            except Exception as error:  # whatever anndata raises is this check's result
                n_failed += 1
                print(f"FAIL  {path.name}: {name}: {''.join(traceback.format_exception_only(error)).strip()}")
    n_checks = len(CHECKS) * len(sys.argv[1:])
    versions = ", ".join(f"{name} {version(name)}" for name in ("anndata", "numpy", "pandas", "h5py"))
    print(f"{versions}: {n_checks - n_failed} of {n_checks} checks passed")
    return 1 if n_failed else 0


if __name__ == "__main__":
    sys.exit(main())
