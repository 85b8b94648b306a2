"""From classic projects to classic files, with the values, types, chunks and texts of SPARCSpy's own files."""

import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest
from made.classic_files import (
    CYTOSOL,
    IMAGE,
    LABEL_NAMES,
    NUCLEUS,
    listed_ids,
    time_points,
    write_classes,
    write_segmentation,
    write_time_course,
)
from made.slides import golden, ht29, needs_shared
from made.theirs import CLASSIC, COURSE, assert_is_theirs, extracted, ulps

import gpu_extract as gx
from gpu_extract import cli
from gpu_extract.model import CellImages
from gpu_extract.sources.id_lists import read_ids
from gpu_extract.store import verify


@pytest.fixture
def run(monkeypatch):
    """Call ``gpu-extract run`` in this process; return its exit code."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gpu-extract", "run", *map(str, arguments), "--quiet"])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return exit_.value.code

    return run


@pytest.fixture
def run_classic(run):
    """Call the command that the README shows to users of SPARCSpy."""

    def run_classic(source, ids, output, size, device="cpu"):
        options = ["--recipe", "sparcspy", "--layout", "sparcspy", "--size", size, "--device", device]
        assert run(source, "--ids", ids, *options, "-o", output) == 0

    return run_classic


@needs_shared
@pytest.mark.parametrize("device", ["reference", "cpu"])
@pytest.mark.parametrize(
    ("source", "theirs", "size"),
    [
        (CLASSIC / "segmentation.h5", CLASSIC / "single_cells.s64.h5", 64),
        (COURSE / "input_segmentation.h5", COURSE / "single_cells.s48.h5", 48),
        (COURSE, COURSE / "single_cells.s48.h5", 48),
    ],
)
def test_the_team_s_golden_files(run_classic, tmp_path, source, theirs, size, device):
    run_classic(source, theirs.parent / "classes.csv", tmp_path / "single_cells.h5", size, device)
    assert_is_theirs(tmp_path / "single_cells.h5", theirs, device)


@needs_shared
def test_the_team_s_time_course_as_h5sc(run, tmp_path):
    output = tmp_path / "cells.h5sc"
    source = COURSE / "input_segmentation.h5"
    assert run(source, "--ids", COURSE / "classes.csv", "--recipe", "sparcspy", "--size", 48, "-o", output) == 0
    with gx.open_cells(output) as cells, h5py.File(COURSE / "single_cells.s48.h5") as theirs:
        assert (cells.ids == theirs["single_cell_index"][:, 1]).all()
        assert ulps(cells.read(range(len(cells))), theirs["single_cell_data"]).max() <= 1
        for column, name in enumerate(theirs["label_names"].asstr()[2:], 2):
            assert (cells.obs[name] == theirs["single_cell_index_labelled"].asstr()[:, column]).all()
        dropped = cells.dropped.reason.value_counts().to_dict()
        assert dropped == {"not in the slide's list of ids": 63, "window leaves the slide": 14}


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_the_shipped_sample_gives_sparcspy_s_values(run_classic, tmp_path, device):
    theirs = golden("ht29.sparcspy.s64")
    slide = ht29()
    whole = slide.read((0, 0, *slide.size))
    source = write_segmentation(tmp_path / "segmentation.h5", whole.image, whole.labels)
    ids = theirs["cell_ids"][theirs["rows"]]
    run_classic(source, write_classes(tmp_path / "classes.csv", ids), tmp_path / "single_cells.h5", 64, device)
    with h5py.File(tmp_path / "single_cells.h5") as found:
        data = found["single_cell_data"]
        assert (data.dtype, data.chunks) == (np.float32, (1, 1, 64, 64))
        assert ulps(data, theirs["images"]).max() <= (0 if device == "reference" else 1)
        assert found["single_cell_index"][:].tolist() == [[row, cell_id] for row, cell_id in enumerate(ids)]
        assert set(found) == {"single_cell_data", "single_cell_index"}


def test_a_segmentation_and_its_classes(run_classic, tmp_path):
    ids, images = extracted(IMAGE, NUCLEUS, CYTOSOL, recipe="sparcspy", tile_size=24)
    some = ids[1::2]
    classes = write_classes(tmp_path / "classes.csv", [0, *some[::-1]])
    run_classic(write_segmentation(tmp_path / "segmentation.h5"), classes, tmp_path / "a.h5", 24)
    with h5py.File(tmp_path / "a.h5") as found:
        assert found["single_cell_index"][:, 1].tolist() == some.tolist()
        assert ulps(found["single_cell_data"], images[1::2]).max() <= 1


def test_a_time_course_and_its_classes(run_classic, tmp_path):
    stacks, labels = time_points()
    listed = listed_ids(labels)
    source = write_time_course(tmp_path / "input_segmentation.h5")
    classes = write_classes(tmp_path / "classes.csv", np.concatenate(listed)[2:])
    expected, tiles, rows = [], [], []
    for t, (image, (nucleus, cytosol)) in enumerate(zip(stacks, labels, strict=True)):
        ids, images = extracted(image, nucleus, cytosol, recipe="sparcspy", tile_size=24)
        kept = np.isin(ids, listed[t]) & np.isin(ids, read_ids(classes))
        expected += ids[kept].tolist()
        tiles.append(images[kept])
        rows += [[str(cell_id), f"tile_{t:03}", f"t{t:03}", "Row01_Wéll01"] for cell_id in ids[kept]]
    run_classic(source, classes, tmp_path / "a.h5", 24)
    with h5py.File(tmp_path / "a.h5") as found:
        assert found["single_cell_index"][:].tolist() == [[row, cell_id] for row, cell_id in enumerate(expected)]
        assert found["single_cell_index"].dtype == np.uint64
        assert found["single_cell_data"].dtype == np.float16
        assert ulps(found["single_cell_data"], np.concatenate(tiles)).max() <= 1
        assert found["label_names"].asstr()[:].tolist() == ["index", "cellid", *LABEL_NAMES[1:]]
        labelled = found["single_cell_index_labelled"].asstr()[:].tolist()
        assert labelled == [[str(row), *texts] for row, texts in enumerate(rows)]
    assert verify(tmp_path / "a.h5").n_cells == len(expected)


def test_a_file_of_the_project_is_not_overwritten(run, tmp_path, capsys):
    source = write_segmentation(tmp_path / "segmentation.h5")
    before = source.read_bytes()
    assert run(tmp_path, "-o", source, "--overwrite", "--size", "24") == 1
    assert "is one of the inputs; choose another name" in capsys.readouterr().err
    assert source.read_bytes() == before


def test_planes_are_selected_and_ordered(tmp_path):
    ids, images = extracted(IMAGE, NUCLEUS, CYTOSOL, recipe="sparcspy", tile_size=24)
    options = {"nucleus": NUCLEUS, "cytosol": CYTOSOL, "recipe": "sparcspy", "tile_size": 24, "device": "reference"}
    for planes in ([1, 0, 4, 2, 3], [0, 3], [4]):
        plan = gx.plan(IMAGE, nucleus=NUCLEUS, cytosol=CYTOSOL, tile_size=24, recipe="sparcspy", planes=planes)
        assert plan.nbytes == len(ids) * len(planes) * 24 * 24 * 2
        output = tmp_path / f"{len(planes)}.h5"
        gx.extract(IMAGE, output=output, layout="sparcspy", planes=planes, **options)
        with gx.open_cells(output) as cells:
            assert (cells.ids == ids).all()
            assert (cells.read(range(len(ids))) == images[:, planes]).all()
            names = ("seg_all_nucleus", "seg_all_cytosol", "ch0", "ch1", "ch2")
            assert cells.planes == tuple(names[plane] for plane in planes)
            assert cells.mask_planes == tuple(name for name in cells.planes if name.startswith("seg"))
        assert verify(output).n_cells == len(ids)
        batch = next(gx.iter_cells(IMAGE, planes=planes, **options))
        assert batch.images.shape[1] == len(planes)
        assert batch.images.flags.c_contiguous


def test_selected_planes_keep_their_boxes():
    images = np.arange(2 * 3 * 4 * 4, dtype=np.float16).reshape(2, 3, 4, 4)
    boxes = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    cells = CellImages(np.arange(2), np.arange(2, dtype=np.uint64), images, np.zeros((2, 1, 2)), boxes)
    chosen = cells.chosen([2, 0])
    assert (chosen.images == images[:, [2, 0]]).all()
    assert (chosen.boxes == boxes[:, [2, 0]]).all()
    assert chosen.images.flags.c_contiguous
    assert replace(cells, boxes=None).chosen([1]).boxes is None


def test_planes_are_selected_on_the_command_line(run, tmp_path):
    source = write_segmentation(tmp_path / "segmentation.h5")
    options = ["--size", 24, "--layout", "sparcspy", "--planes", "3, 0"]
    assert run(source, *options, "-o", tmp_path / "a.h5") == 0
    with gx.open_cells(tmp_path / "a.h5") as cells:
        assert cells.planes == ("ch1", "seg_all_nucleus")
        assert cells.mask_planes == ()
    survey = gx.survey_many([{"image": source}], tile_size=24, layout="sparcspy", planes=[3, 0], device="cpu")
    assert survey.to_dict()["planes"] == ["ch1", "nucleus"]
    assert survey.file_nbytes > 0


@pytest.mark.parametrize("planes", [[], [5], [-1], [0, 0], "", "0,", "0 1", "x"])
def test_missing_planes_are_an_error(planes):
    with pytest.raises(gx.InputError, match="give numbers from 0 to 4, each once at most, masks first in counting"):
        gx.plan(IMAGE, nucleus=NUCLEUS, cytosol=CYTOSOL, tile_size=24, planes=planes)


def test_h5sc_keeps_all_planes(tmp_path):
    with pytest.raises(
        gx.GpuExtractError, match=r"layout 'h5sc' keeps all planes, masks first; .* use layout 'sparcspy'"
    ):
        gx.extract(IMAGE, nucleus=NUCLEUS, output=tmp_path / "a.h5sc", tile_size=24, planes=[0], device="cpu")
    assert list(tmp_path.iterdir()) == []
