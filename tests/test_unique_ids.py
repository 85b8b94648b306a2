"""`unique_ids` and `--unique-ids`, from the input to the file."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
from made.slides import small_slide

import gpu_extract as gx

WARNING = "scPortrait looks cells up by id alone"


@pytest.fixture
def slides():
    return [dict(zip(("image", "nucleus", "cytosol"), small_slide(0), strict=True), well=well) for well in ("A1", "B2")]


def test_ids_of_several_slides(slides, tmp_path):
    plain = gx.extract_many(slides, output=tmp_path / "plain.h5sc", tile_size=24, device="reference")
    assert sum(WARNING in line for line in plain.warnings) == 1
    unique = gx.extract_many(slides, output=tmp_path / "unique.h5sc", tile_size=24, device="reference", unique_ids=True)
    assert not any(WARNING in line for line in unique.warnings)
    before, after = (anndata.read_h5ad(report.path).obs for report in (plain, unique))
    assert after["scportrait_cell_id"].tolist() == list(range(1, len(after) + 1))
    np.testing.assert_array_equal(after["cell_id"], before["scportrait_cell_id"])


def test_the_command_line(slides, tmp_path, call):
    for index, slide in enumerate(slides):
        for name in ("image", "nucleus", "cytosol"):
            np.save(tmp_path / f"{name}{index}.npy", slide[name])
    rows = [",".join(f"{name}{index}.npy" for name in ("image", "nucleus", "cytosol")) for index in (0, 1)]
    table, output = tmp_path / "table.csv", tmp_path / "cells.h5sc"
    table.write_text("\n".join(["image,nucleus,cytosol", *rows]))
    common = ("--slides", table, "--size", 24, "--device", "reference")
    code, _, err = call("run", *common, "-o", output)
    assert (code, err.count("give --unique-ids (unique_ids=True)")) == (0, 1)
    code, _, err = call("run", *common, "-o", output, "--unique-ids", "--overwrite")
    assert (code, WARNING in err) == (0, False)
    assert anndata.read_h5ad(output).obs["cell_id"].duplicated().any()
    for command in (("run", "-o", tmp_path / "cells.h5"), ("plan",)):
        code, _, err = call(*command, *common, "--unique-ids", "--layout", "sparcspy")
        assert code == 1
        assert "layout 'sparcspy' has no place for ids that are unique over the file" in err
