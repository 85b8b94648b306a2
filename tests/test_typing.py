"""What a type checker says of a user's script."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gpu_extract

pytest.importorskip("mypy", reason="needs mypy, which the extra 'test' installs")

CORRECT = """
from pathlib import Path
from typing import Unpack, assert_type

import numpy as np

import gpu_extract as gx

image, labels = np.zeros((2, 90, 90), np.uint16), np.zeros((90, 90), np.uint32)


def planned(**options: Unpack[gx.PlanOptions]) -> gx.Plan:
    return gx.plan([Path("dna.tif"), Path("actin.tif")], nucleus="nuclei.tif", cytosol="cells.tif", **options)


plan = planned(recipe="scportrait", tile_size=64, channels=["DNA", 1], pixel_size=(0.5, 0.5), nuclear_channel="none")
names: list[str] = list(plan.plane_names)
raw: gx.PlanOptions = {"normalization": "none", "apply_masks": False, "quantiles": (0.01, 0.99)}
slides = [{"image": "a.tif", "cytosol": "a_cells.tif", "well": "A1"}, {"image": "b.tif", "cytosol": "b_cells.tif"}]


def progress(written: int, total: int) -> None:
    print(written, total)


report = gx.extract(
    image, nucleus=labels, output="cells.h5sc", compression="zstd", device="cpu", progress=progress, **raw
)
assert_type(report, gx.Report)
assert_type(gx.extract_many(slides, output=Path("a.h5"), layout="sparcspy", planes=[0, 2], seed=1), gx.Report)
assert_type(gx.extract_many([gx.SlideInput(image, labels)], output="b.h5sc", on_bad_slide="skip"), gx.Report)
assert_type(gx.plan_many(slides, scale=0.65, tile_size_um=40), gx.Plan)
assert_type(gx.survey(image, nucleus=labels, output="cells.h5sc", chunk_cells=16), gx.Survey)
assert_type(gx.survey_many(slides, threads=2, overwrite=True), gx.Survey)
with gx.open_cells("cells.h5sc") as cells:
    for batch in gx.iter_cells(image, cytosol=labels, gpu_memory=2.5, ids=cells.ids):
        assert_type(batch, gx.CellImages)
recipe: gx.Recipe = gx.Recipe.preset("standard").replace(tile_size=96)
version: str = gx.__version__
try:
    planned(recipe=recipe, output_dtype="float32")
except gx.UnknownOptionError as error:
    print(error)
"""

# Each comment is the code of the error that the line must have.
WRONG = """
import gpu_extract as gx

gx.plan("image.tif", nucleus="nuclei.tif", tilesize=64)  # call-arg
gx.plan("image.tif", nucleus="nuclei.tif", border="edge")  # arg-type
gx.plan("image.tif", nucleus="nuclei.tif", statistics=len)  # call-arg
gx.plan("image.tif", nucleus=3)  # arg-type
gx.extract("image.tif", output="cells.h5sc", compression="zip")  # arg-type
gx.extract("image.tif", nucleus="nuclei.tif")  # call-arg
gx.extract_many([{"image": "image.tif"}], output="cells.h5sc", devise="cpu")  # call-arg
gx.survey("image.tif", n_cells="all")  # arg-type
gx.iter_cells("image.tif", layout="sparcspy")  # call-arg
gx.extarct("image.tif")  # attr-defined
options: gx.PlanOptions = {"tile_size": "128"}  # typeddict-item
n_cells: str = gx.extract("image.tif", output="cells.h5sc").n_cells  # assignment
"""


def test_mypy_accepts_a_correct_script_and_refuses_wrong_names_and_types(tmp_path):
    scripts = {"correct": CORRECT, "wrong": WRONG}
    for name, text in scripts.items():
        (tmp_path / f"{name}.py").write_text(text)
    # mypy does not follow the finders of editable installs.
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "gpu_extract").symlink_to(Path(gpu_extract.__file__).parent)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--no-color-output",
        "--config-file=",
        "--follow-imports=silent",
    ]
    done = subprocess.run(
        [*command, "--cache-dir", tmp_path / "cache", *(f"{name}.py" for name in scripts)],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(tmp_path / "packages")},
        capture_output=True,
        text=True,
        check=False,
    )
    errors = re.findall(r"^(\w+)\.py:(\d+): error: .*\[([\w-]+)\]$", done.stdout, re.MULTILINE)
    expected = [
        ("wrong", str(n), line.rpartition("# ")[2]) for n, line in enumerate(WRONG.splitlines(), 1) if "# " in line
    ]
    assert errors == expected, done.stdout + done.stderr
