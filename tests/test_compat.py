"""Scripts written for SPARCSpy's extraction classes."""

import os
import runpy

import h5py
import numpy as np
import pytest
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


@pytest.mark.parametrize("given", [None, "None", True, False, (0.01, 0.9), "0.001"])
def test_normalization_range_has_no_effect(projects, given):
    ids, images = extract_one()
    same, tiles = extract_one(normalization_range=given)
    assert images[:, 2:].any(axis=(2, 3)).all()
    assert (same == ids).all()
    assert (tiles == images).all()


def test_nuclei_without_a_cytosol_are_extracted_and_cytosols_without_a_nucleus_not(projects):
    """SPARCSpy looks for the listed ids in the plane of the nuclei, and cuts with whatever the other plane has."""
    ids, images = extract_one()
    only_nucleus, only_cytosol = ids[0], ids[-1]
    labels = (np.where(only_cytosol == NUCLEUS, 0, NUCLEUS), np.where(only_nucleus == CYTOSOL, 0, CYTOSOL))
    write_segmentation(projects / "one/segmentation/segmentation.h5", labels=labels)
    found, tiles = extract_one()
    assert found.tolist() == ids[:-1].tolist()
    assert (tiles[1:] == images[1:-1]).all()
    assert (tiles[0, [0, 2]] == images[0, [0, 2]]).all()  # the nucleus
    assert not tiles[0, [1, 3, 4]].any()


def test_positional_arguments_are_in_the_order_of_sparcspy(projects):
    extraction = HDF5CellExtraction(CONFIG, "one/extraction", "one", "debug", "intermediate_output", "overwrite")
    for name in ("debug", "intermediate_output", "overwrite"):
        assert getattr(extraction, name) == name
    extraction("one/segmentation/segmentation.h5", debug=False, intermediate_output=True, overwrite=False)


class Derived(HDF5CellExtraction):
    """A class that a script derives."""


@pytest.mark.parametrize("kind", [HDF5CellExtraction, TimecourseHDF5CellExtraction, Derived])
def test_the_section_of_the_class_is_taken_from_a_whole_config(tmp_path, kind):
    sections = {"HDF5CellExtraction": {**CONFIG, "image_size": 30}, kind.__name__: CONFIG}
    whole = {"name": "a project", "WGASegmentation": {"input_channels": 3}, **sections}
    assert kind(whole, tmp_path / "extraction").config is CONFIG
    sections.pop(kind.__name__)
    if sections:  # a derived class has the section of its base
        assert kind(sections, tmp_path / "extraction").config["image_size"] == 30


def test_methods_of_a_processing_step(tmp_path, caplog):
    extraction = HDF5CellExtraction({"image_size": 24}, str(tmp_path / "extraction"))
    assert extraction.get_directory() == str(tmp_path / "extraction")
    with caplog.at_level("INFO", "gpu_extract"):
        extraction.register_parameter("image_size", 99)
        extraction.register_parameter("threads", 1)
        extraction.log("one\ntwo")
        extraction.log(["three", 4])
        extraction.log({"five": 5})
    assert extraction.config == {"image_size": 24, "threads": 1}
    assert [record.name for record in caplog.records] == ["gpu_extract"] * 6
    assert caplog.messages[0].startswith("No configuration for threads found")
    assert caplog.messages[1:] == ["one", "two", "three", "4", "five: 5"]


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
        ("config.yml", "configuration is 'config.yml'; it must be a dict, as yaml.safe_load returns it"),
        ({"HDF5CellExtraction": None}, "configuration is None; it must be a dict"),
        ({"HDF5CellExtraction": {"threads": 80}}, "has no image_size"),
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
