"""Which metadata of slides become numbers in obs."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from made.cells import make_contents, make_slide, write

from gpu_extract.store import open_cells
from gpu_extract.store.metadata_numbers import as_numbers

NAN = np.nan


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["0", "24", "-3", "+5"], [0, 24, -3, 5]),
        (["9223372036854775807"], [2**63 - 1]),
        (["0", "10", "10"], [0, 10, 10]),
    ],
)
def test_whole_numbers(texts, expected):
    numbers = as_numbers(texts)
    assert numbers.dtype == np.int64
    assert numbers.tolist() == expected


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["0", "0.5", "-1.25"], [0, 0.5, -1.25]),
        (["1.0", "2.0"], [1, 2]),
        ([".5", "5."], [0.5, 5]),
        (["1e-06", "2.5E-07", "1.00E+03"], [1e-6, 2.5e-7, 1000]),
        (["1", None, ""], [1, NAN, NAN]),
        (["9007199254740992", None], [2.0**53, NAN]),
        (["0.10", "0.25"], [0.1, 0.25]),
    ],
)
def test_numbers_with_decimals_or_missing_ones(texts, expected):
    numbers = as_numbers(texts)
    assert numbers.dtype == np.float64
    np.testing.assert_array_equal(numbers, expected)


@pytest.mark.parametrize(
    "texts",
    [
        [],
        ["", None],
        ["D03"],
        ["1", "control"],
        ["007"],
        ["01", "02"],
        ["00.5"],
        ["-01"],
        ["0,5"],
        ["1,000"],
        ["1 000"],
        ["10 nM"],
        ["1E3"],  # well E3 of plate 1
        ["1e3"],
        ["0x10"],
        ["1_000"],
        ["nan"],
        ["inf"],
        ["NA"],
        ["True"],
        ["٣"],  # a digit of another script
        ["1\n"],
        ["-"],
        ["."],
        ["1e+999"],
        ["1.1", "1.10"],  # sections, perhaps
        ["1", "1.0"],
        ["12345678901234567890"],  # a barcode
        ["9007199254740993", None],
        ["9007199254740993", "0.5", "9007199254740992"],
    ],
)
def test_texts(texts):
    assert as_numbers(texts) is None


@pytest.fixture
def path(tmp_path):
    slides = (
        make_slide("A", {"well": "01", "dose": "0", "hours": "24", "time": "1e-06", "drug": "DMSO", "passage": "7"}),
        make_slide("B", {"well": "02", "dose": "0.5", "hours": "48", "time": "0.5", "drug": "", "passage": ""}),
        make_slide("C", {"well": "03", "dose": "10", "hours": "0", "time": "2", "note": ""}),
    )
    return write(tmp_path / "cells.h5sc", make_contents(6, slides))


def test_obs_has_numbers_and_categories(path):
    obs = anndata.read_h5ad(path).obs
    assert {name: str(obs[name].dtype) for name in ("dose", "hours", "time", "passage")} == {
        "dose": "float64",
        "hours": "int64",
        "time": "float64",
        "passage": "float64",
    }
    assert obs["dose"].tolist() == [0, 0, 0.5, 0.5, 10, 10]
    assert obs["hours"].tolist() == [24, 24, 48, 48, 0, 0]
    np.testing.assert_array_equal(obs["passage"], [7, 7, NAN, NAN, NAN, NAN])
    for name, categories in {"well": ["01", "02", "03"], "drug": ["DMSO"], "note": []}.items():
        assert isinstance(obs[name].dtype, pd.CategoricalDtype)
        assert list(obs[name].cat.categories) == categories
    assert obs["drug"].isna().tolist() == [False, False, True, True, True, True]
    assert obs["note"].isna().all()


def test_the_sources_keep_the_texts(path):
    with open_cells(path) as cells:
        assert '"time": "1e-06"' in cells.info["sources"]
        assert '"dose": "0"' in cells.info["sources"]


def test_the_classic_layout_keeps_the_texts(tmp_path):
    slides = (make_slide("A", {"dose": "0.5"}), make_slide("B", {"dose": "10"}))
    path = write(tmp_path / "cells.h5", make_contents(2, slides), layout="sparcspy")
    with open_cells(path) as cells:
        assert cells.obs["dose"].tolist() == ["0.5", "10"]
