"""Scripts written for SPARCSpy's extraction classes."""

import os
import runpy

import h5py
import numpy as np
import pytest
import scipy.ndimage
from made.classic_files import (
    CYTOSOL,
    IMAGE,
    NUCLEUS,
    listed_ids,
    time_points,
    write_classes,
    write_segmentation,
    write_time_course,
)
from made.slides import needs_shared
from made.theirs import CLASSIC, COURSE, assert_is_theirs, extracted, ulps

import gpu_extract as gx
from gpu_extract.compat import HDF5CellExtraction, TimecourseHDF5CellExtraction
from gpu_extract.store import verify

# From the config.yml of SPARCSpy's documentation.
CONFIG = {
    "compression": True,
    "threads": 80,
    "image_size": 24,
    "cache": "/mnt/temp/cache",
    "hdf5_rdcc_nbytes": 5242880000,
    "hdf5_rdcc_w0": 1,
    "hdf5_rdcc_nslots": 50000,
}
SCRIPT = f"""
import h5py
from sparcscore.pipeline.extraction import HDF5CellExtraction, TimecourseHDF5CellExtraction

config = {CONFIG}

extraction = HDF5CellExtraction(
    config, "one/extraction", project_location="one", debug=False, overwrite=False, intermediate_output=False
)
extraction.process("one/segmentation/segmentation.h5", "one/segmentation/classes.csv")
with h5py.File("one/extraction/data/single_cells.h5", "r") as hf:
    index = hf.get("single_cell_index")[:]
    images = hf.get("single_cell_data")[:]

course = TimecourseHDF5CellExtraction(config, "many/extraction", "many")
course.process(
    input_segmentation_path=course.input_segmentation_path, filtered_classes_path=course.filtered_classes_path
)
with h5py.File(course.output_path, "r") as hf:
    labelled = hf.get("single_cell_index_labelled").asstr()[:]
"""


@pytest.fixture
def projects(tmp_path, monkeypatch):
    """The working directory, with two projects: ``one`` slide and ``many`` time points."""
    monkeypatch.chdir(tmp_path)
    for name in ("one", "many"):
        (tmp_path / name / "segmentation").mkdir(parents=True)
    write_segmentation(tmp_path / "one/segmentation/segmentation.h5")
    write_classes(tmp_path / "one/segmentation/classes.csv", np.unique(NUCLEUS))
    write_time_course(tmp_path / "many/segmentation/input_segmentation.h5")
    write_classes(tmp_path / "many/segmentation/classes.csv", np.concatenate(listed_ids(time_points()[1])))
    return tmp_path


def extract_one(**changes):
    """The ids and tiles of project ``one`` in the file of the class."""
    extraction = HDF5CellExtraction({**CONFIG, "device": "reference", **changes}, "one/extraction")
    extraction.process("one/segmentation/segmentation.h5", "one/segmentation/classes.csv")
    with h5py.File(extraction.output_path) as file:
        return file["single_cell_index"][:, 1], file["single_cell_data"][:]


def test_a_script_runs_with_only_its_import_changed(projects):
    changed = SCRIPT.replace("from sparcscore.pipeline.extraction import", "from gpu_extract.compat import")
    (projects / "script.py").write_text(changed)
    assert sum(a != b for a, b in zip(changed.splitlines(), SCRIPT.splitlines(), strict=True)) == 1
    for _ in range(2):  # the second time the output exists
        names = runpy.run_path("script.py")
        ids, images = extracted(IMAGE, NUCLEUS, CYTOSOL, recipe="sparcspy", tile_size=24)
        assert names["index"].tolist() == [[row, cell_id] for row, cell_id in enumerate(ids)]
        assert (names["images"].dtype, names["index"].dtype) == (np.float32, np.int64)
        assert ulps(names["images"], images).max() <= 1
        assert set(names["labelled"][:, 3]) == {"t000", "t001", "t002"}
    assert sorted(os.listdir("one/extraction")) == ["data"]
    assert os.listdir("one/extraction/data") == ["single_cells.h5"]


class Project:
    """The use of an extraction class by SPARCSpy's Project."""

    def __init__(self, location, config, extraction_f):
        directory = os.path.join(location, "extraction")
        self.location = location
        self.extraction_f = extraction_f(
            config[extraction_f.__name__],
            directory,
            project_location=location,
            debug=True,
            overwrite=True,
            intermediate_output=False,
        )

    def extract(self):
        segmentation = os.path.join(self.location, "segmentation", self.extraction_f.DEFAULT_SEGMENTATION_FILE)
        self.extraction_f(segmentation, os.path.join(self.location, "segmentation", "classes.csv"))


@pytest.mark.parametrize(("location", "kind"), [("one", HDF5CellExtraction), ("many", TimecourseHDF5CellExtraction)])
def test_a_project_can_call_the_class(projects, location, kind):
    config = {"HDF5CellExtraction": CONFIG, "TimecourseHDF5CellExtraction": CONFIG}
    project = Project(str(projects / location), config, kind)
    kept = projects / location / "extraction" / "notes.txt"
    kept.write_text("mine")
    project.extract()
    assert project.extraction_f.get_output_path() == f"{projects}/{location}/extraction/data"
    assert verify(f"{project.extraction_f.get_output_path()}/single_cells.h5").n_cells > 5
    assert kept.read_text() == "mine"


def test_the_project_s_classes_are_the_default(projects):
    write_classes(projects / "one/segmentation/classes.csv", [4, 7, 99999])
    report = HDF5CellExtraction(CONFIG, projects / "one/extraction").process("one/segmentation/segmentation.h5")
    assert 1 <= report.n_cells <= 2
    assert report.path == projects / "one/extraction/data/single_cells.h5"
    # The id without a label is ignored, as by SPARCSpy; all other ids are extracted or dropped.
    assert report.n_cells + sum(report.dropped.values()) == len(np.unique(NUCLEUS)) - 1


def test_channel_remap_selects_and_orders_planes(projects):
    ids, images = extract_one()
    for remap in ("1, 0,4,2,3", "0,3"):
        same, remapped = extract_one(channel_remap=remap)
        assert (same == ids).all()
        assert (remapped == images[:, [int(plane) for plane in remap.split(",")]]).all()


@pytest.mark.parametrize("given", [(0.01, 0.9), [0.01, 0.9]])
def test_normalization_range_sets_the_quantiles(projects, given):
    ids, images = extract_one(normalization_range=given)
    recipe = gx.Recipe.preset("sparcspy").replace(tile_size=24, quantiles=(0.01, 0.9))
    expected = extracted(IMAGE, NUCLEUS, CYTOSOL, recipe=recipe)
    assert (ids == expected[0]).all()
    assert (images == expected[1]).all()
    assert (images != extract_one(normalization_range=True)[1]).any()


@pytest.mark.parametrize("given", [None, "None"])
def test_without_normalization_values_are_divided_by_65535(projects, given):
    ids, images = extract_one(normalization_range=given)
    plan = gx.plan(IMAGE, nucleus=NUCLEUS, cytosol=CYTOSOL, recipe="sparcspy", tile_size=24)
    assert (ids == plan.cells.ids).all()
    for cell_id, (y, x), tile in zip(ids, plan.cells.centers - 12, images, strict=True):
        window = np.s_[y : y + 24, x : x + 24]
        mask = scipy.ndimage.gaussian_filter((NUCLEUS[window] == cell_id).astype(float), 5, mode="nearest")
        assert ulps(tile[2], IMAGE[0][window] * mask / 65535).max() <= 1


def test_compression_can_be_turned_off(projects):
    extract_one(compression=False)
    with h5py.File("one/extraction/data/single_cells.h5") as file:
        assert file["single_cell_data"].compression is None


def test_warnings_of_the_report_are_python_warnings(projects):
    with pytest.warns(UserWarning, match="cells do not fit in a tile of 6 pixels"):
        extract_one(image_size=6)


def test_unknown_keys_raise_a_warning(projects):
    with pytest.warns(UserWarning, match="unknown keys of the configuration, without effect: rotate, chunks; known"):
        HDF5CellExtraction({**CONFIG, "rotate": 3, "chunks": 50}, "one/extraction")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "has no image_size; give the side of a tile in pixels"),
        ({"image_size": 0}, "tile_size is 0"),
        ({"image_size": 24, "threads": "80"}, "threads is '80'; it must be a whole number"),
        ({"image_size": 24, "threads": 0}, "threads is 0"),
        ({"image_size": 24, "normalization_range": False}, "normalization_range is False; it must be true, two"),
        ({"image_size": 24, "normalization_range": (0.9, 0.1)}, r"quantiles are \(0.9, 0.1\)"),
    ],
)
def test_invalid_configurations_are_errors(tmp_path, config, message):
    with pytest.raises(gx.InputError, match=message):
        HDF5CellExtraction(config, tmp_path / "extraction")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "extraction").write_text("a file")
    with pytest.raises(gx.OutputError, match=r"extraction cannot be made: File exists; choose another directory"):
        HDF5CellExtraction(CONFIG, tmp_path / "extraction")


@pytest.mark.parametrize("remap", ["0,1,2,3,4,5", "1,x"])
def test_a_remap_to_missing_planes_is_an_error(projects, remap):
    extraction = HDF5CellExtraction({**CONFIG, "channel_remap": remap}, "one/extraction")
    with pytest.raises(gx.InputError, match=f"planes are {remap.replace(',', ', ')}; give numbers from 0 to 4"):
        extraction.process("one/segmentation/segmentation.h5")


@needs_shared
@pytest.mark.filterwarnings("ignore:.*do not fit in a tile")
@pytest.mark.parametrize("device", ["reference", "cpu"])
@pytest.mark.parametrize(
    ("kind", "folder", "size"), [(HDF5CellExtraction, CLASSIC, 64), (TimecourseHDF5CellExtraction, COURSE, 48)]
)
def test_the_team_s_golden_files(tmp_path, kind, folder, size, device):
    extraction = kind({**CONFIG, "image_size": size, "device": device}, tmp_path)
    extraction.process(folder / kind.DEFAULT_SEGMENTATION_FILE, folder / "classes.csv")
    assert_is_theirs(extraction.output_path, folder / f"single_cells.s{size}.h5", device)
