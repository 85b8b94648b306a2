"""Ids that are unique over a file of several slides, for readers that go by id."""

from __future__ import annotations

import anndata
import h5py
import numpy as np
import pytest
from made.cells import fill, make_contents, make_images, make_slide, write

from gpu_extract.errors import OutputError, UnknownCellError
from gpu_extract.store import CellStore, open_cells, verify

SLIDES = (make_slide("A"), make_slide("B"))
IDS = [1, 2, 2**63, 2, 3]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cells.h5sc"


@pytest.fixture
def unique(path):
    return write(path, make_contents(5, SLIDES, n_dropped=1, ids=IDS, unique_ids=True))


def test_cells_are_numbered_from_1_and_keep_their_ids(unique):
    obs = anndata.read_h5ad(unique).obs
    assert obs["scportrait_cell_id"].tolist() == [1, 2, 3, 4, 5]
    assert obs["cell_id"].tolist() == IDS
    assert obs["scportrait_cell_id"].dtype == obs["cell_id"].dtype == np.uint64


def test_cells_are_looked_up_by_the_ids_on_their_slide(unique):
    images = make_images(make_contents(5, SLIDES, ids=IDS)).images
    with open_cells(unique) as cells:
        assert cells.ids.tolist() == IDS
        np.testing.assert_array_equal(cells["B", 2], images[3])
        np.testing.assert_array_equal(cells["A", 2], images[1])
        np.testing.assert_array_equal(cells[3], images[4])
        with pytest.raises(UnknownCellError, match=r"id 2 is in 2 slides \(A, B\); name one, as in cells\['A', 2\]"):
            cells[2]
        with pytest.raises(UnknownCellError, match="no cell 5"):
            cells[5]
        assert cells.dropped["cell_id"].tolist() == [2**40]
        assert cells.info["unique_ids"] == "yes"


def test_a_file_without_them_has_one_column_of_ids(path):
    write(path, make_contents(5, SLIDES, ids=IDS))
    with open_cells(path) as cells:
        assert "cell_id" not in cells.obs
        assert "unique_ids" not in cells.info


def test_a_users_own_column_is_not_taken_for_ids(path):
    write(path, make_contents(3))
    with h5py.File(path, "r+") as file:
        file.copy("obs/center_y", "obs/cell_id")
    with open_cells(path) as cells:
        assert cells.ids.tolist() == [10, 11, 12]


def test_verify_checks_both(unique):
    assert verify(unique).n_cells == 5
    with h5py.File(unique, "r+") as file:
        file["obs/scportrait_cell_id"][4] = 1
    with pytest.raises(OutputError, match=r"row 4 \(cell 1\) is a duplicate"):
        verify(unique)
    with h5py.File(unique, "r+") as file:
        file["obs/scportrait_cell_id"][4] = 5
        file["obs/cell_id"][4] = 2
    with pytest.raises(OutputError, match=r"row 4 .* is a duplicate"):
        verify(unique)


def warnings_of(path, **more):
    contents = make_contents(**more)
    store = CellStore.create(path, contents, layout="sparcspy" if path.suffix == ".h5" else "h5sc")
    fill(store, make_images(contents))
    store.finish()
    return store.warnings


def test_repeating_ids_are_warned_of(path):
    (warning,) = warnings_of(path, n_cells=5, slides=SLIDES, ids=[1, 2, 7, 2, 7])
    assert warning == (
        "2 ids occur on several slides, the first is 2; scPortrait looks cells up by id alone and finds only the last "
        "of them: give --unique-ids (unique_ids=True) to number the cells of all slides"
    )


@pytest.mark.parametrize(
    "more",
    [
        {"n_cells": 5},
        {"n_cells": 4, "slides": SLIDES, "ids": [1, 2, 3, 4]},
        {"n_cells": 4, "slides": SLIDES, "ids": [1, 2, 1, 2], "unique_ids": True},
    ],
)
def test_other_ids_are_not(path, more):
    assert warnings_of(path, **more) == ()


def test_readers_of_the_classic_layout_go_by_row(tmp_path):
    assert warnings_of(tmp_path / "cells.h5", n_cells=4, slides=SLIDES, ids=[1, 2, 1, 2]) == ()
    with pytest.raises(OutputError, match=r"layout 'sparcspy' has no place .*unique_ids, --unique-ids.* use layout"):
        warnings_of(tmp_path / "other.h5", n_cells=4, slides=SLIDES, unique_ids=True)
