"""An `.h5sc` file is one that anndata 0.9 and later, and HDF5's own tools, take; CI has one anndata only."""

from __future__ import annotations

import shutil
import subprocess
from importlib.metadata import version

import anndata
import h5py
import numpy as np
import pytest
from made.cells import make_contents, make_images, make_slide, write

from gpu_extract.store import verify
from gpu_extract.store.codecs import CODECS

# Of anndata 0.9's registry, what tables such as these are made of. Later versions write more, which 0.9 cannot read:
# null, nullable-string-array, awkward-array.
ANNDATA_0_9 = {
    ("anndata", "0.1.0"),
    ("dict", "0.1.0"),
    ("dataframe", "0.2.0"),
    ("array", "0.2.0"),
    ("string-array", "0.2.0"),
    ("categorical", "0.2.0"),
    ("numeric-scalar", "0.2.0"),
    ("string", "0.2.0"),
}

PLATE = (
    make_slide("A", {"well": "D03", "dose": "0.5", "day": "1", "note": ""}),
    make_slide("B", {"well": "D04", "dose": "", "day": "2"}),
)
CONTENTS = {
    "one slide": {"n_cells": 3},
    "several slides": {"n_cells": 4, "slides": PLATE},
    "dropped cells": {"n_cells": 4, "slides": PLATE, "n_dropped": 2, "texts": {"command": "gpu-extract run"}},
    "unique ids": {"n_cells": 4, "slides": PLATE, "ids": [1, 2, 1, 2], "unique_ids": True},
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cells.h5sc"


def elements(path):
    """(name, item) of the root and everything below it."""
    with h5py.File(path) as file:
        yield "/", file
        found = []
        file.visititems(lambda name, item: found.append((name, item)))
        yield from found


@pytest.mark.parametrize("contents", CONTENTS)
def test_every_element_is_one_that_anndata_0_9_knows(path, contents):
    write(path, make_contents(**CONTENTS[contents]))
    for name, item in elements(path):
        encoding = item.attrs.get("encoding-type"), item.attrs.get("encoding-version")
        assert encoding in ANNDATA_0_9, name


@pytest.mark.parametrize("contents", CONTENTS)
def test_there_is_no_raw(path, contents):
    """anndata 0.12 says so with a null dataset, which earlier ones cannot read."""
    write(path, make_contents(**CONTENTS[contents]))
    with h5py.File(path) as file:
        assert set(file) == {"layers", "obs", "obsm", "obsp", "uns", "var", "varm", "varp"}
    for name, item in elements(path):
        assert not isinstance(item, h5py.Dataset) or item.shape is not None, name


@pytest.mark.parametrize("contents", CONTENTS)
def test_no_empty_dataset_is_in_one_piece(path, contents):
    """`h5repack -f` would make a chunk of the whole, which cannot be of length 0."""
    write(path, make_contents(**CONTENTS[contents]))
    n_of_dropped = 0
    for name, item in elements(path):
        if isinstance(item, h5py.Dataset) and item.size == 0:
            assert item.chunks is not None, name
            n_of_dropped += name.startswith("uns/gpu_extract/dropped/")
    assert (n_of_dropped > 0) == (contents != "dropped cells")


def test_an_empty_table_is_read_as_one(path):
    write(path, make_contents(3))
    dropped = anndata.read_h5ad(path).uns["gpu_extract"]["dropped"]
    assert list(dropped.columns) == ["slide", "cell_id", "reason"]
    assert len(dropped) == 0
    assert dropped["cell_id"].dtype == np.uint64


@pytest.mark.parametrize("contents", CONTENTS)
def test_a_backed_file_can_be_written_to(path, contents):
    made = make_contents(**CONTENTS[contents])
    images = make_images(made).images
    write(path, made)
    if version("anndata").startswith("0.13."):
        pytest.skip("anndata 0.13 writes to no backed file without X, not even to its own")
    data = anndata.read_h5ad(path, backed="r+")
    data.obs["cluster"] = np.arange(data.n_obs)
    data.write()
    data.file.close()
    again = anndata.read_h5ad(path)
    assert again.obs["cluster"].tolist() == list(range(len(again)))
    np.testing.assert_array_equal(again.obsm["single_cell_images"], images)


@pytest.mark.parametrize("compression", [name for name in CODECS if name in ("gzip", "none")])
@pytest.mark.parametrize("contents", CONTENTS)
def test_h5repack_compresses_it_again(path, tmp_path, contents, compression):
    if not shutil.which("h5repack"):
        pytest.skip("h5repack is not installed (Debian: hdf5-tools)")
    write(path, make_contents(**CONTENTS[contents]), compression=compression)
    packed = tmp_path / "packed.h5sc"
    subprocess.run(["h5repack", "-f", "GZIP=4", path, packed], check=True, capture_output=True)
    subprocess.run(["h5diff", path, packed], check=True, capture_output=True)
    assert verify(packed).is_own
