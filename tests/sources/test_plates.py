"""HCS plates of OME-Zarr, given by their root or a well."""

import json

import anndata
import numpy as np
import pytest
import zarr
from made.slides import small_slide
from made.stores import write_multiscale

import gpu_extract as gx
from gpu_extract.errors import InputError, LabelError, SourceError
from gpu_extract.sources import open_image, open_slide, open_slides

WELLS = {"A/1": ("0", "1"), "A/12": ("0",), "H/3": ("field_2",)}
PATHS = [f"{well}/{field}" for well, fields in WELLS.items() for field in fields]


def write_plate(path, version="0.4", labels=("nuclei", "cells"), acquisitions=(None,)):
    """Write a plate as ome-zarr-py does, each field with an image of its own and labels."""
    root = zarr.create_group(path, zarr_format=2 if version == "0.4" else 3)

    def describe(node, **attributes):
        node.attrs.update(attributes if version == "0.4" else {"ome": {"version": "0.5", **attributes}})

    rows, columns = ({well.split("/")[part] for well in WELLS} for part in (0, 1))
    plate = {"rows": [{"name": name} for name in sorted(rows)], "columns": [{"name": name} for name in sorted(columns)]}
    wells = [{"path": well, "rowIndex": 0, "columnIndex": 0} for well in WELLS]
    describe(root, plate=plate | {"version": "0.4", "wells": wells})
    for number, (well, fields) in enumerate(WELLS.items()):
        node = root.create_group(well)
        images = [
            {"path": f"{a or ''}{field}"} | ({} if a is None else {"acquisition": a})
            for field in fields
            for a in acquisitions
        ]
        describe(node, well={"images": images})
        for n, image in enumerate(images):
            field = node.create_group(image["path"])
            pixels, nucleus, cytosol = small_slide(10 * number + n)
            write_multiscale(field, [pixels], "cyx", version=version)
            for name, plane in zip(labels, (nucleus, cytosol), strict=False):
                write_multiscale(field.create_group(f"labels/{name}"), [plane], "yx", version=version)
    return path


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_each_field_of_a_plate_is_a_slide(tmp_path, version):
    path = write_plate(tmp_path / "plate.ome.zarr", version)
    slides = open_slides(path, nucleus="nuclei", cytosol="cells")
    assert [slide.name for slide in slides] == ["A01_0", "A01_1", "A12_0", "H03_field_2"]
    assert slides[1].metadata == {"well": "A01", "row": "A", "column": "1", "field": "1"}
    for slide, within, seed in zip(slides, PATHS, (0, 1, 10, 20), strict=True):
        image, nucleus, cytosol = small_slide(seed)
        window = slide.read((0, 0, *slide.size))
        np.testing.assert_array_equal(window.image, image)
        np.testing.assert_array_equal(window.labels[0], nucleus)
        np.testing.assert_array_equal(window.labels[1], cytosol)
        assert slide.image.source == f"{path}/{within}"


def test_a_well_is_its_fields(tmp_path):
    path = write_plate(tmp_path / "plate.ome.zarr")
    slides = open_slides(f"{path}/A/1", nucleus="nuclei")
    assert [slide.name for slide in slides] == ["A01_0", "A01_1"]
    assert slides[0].metadata == {"well": "A01", "row": "A", "column": "1", "field": "0"}
    (field,) = open_slides(path / "A" / "1" / "0", nucleus="nuclei")
    assert (field.name, field.metadata) == ("0", {})


def test_selections_and_names_apply_to_each_field(tmp_path):
    path = write_plate(tmp_path / "plate.ome.zarr")
    slides = open_slides(f"{path}#c=1", nucleus="nuclei", name="day1")
    assert slides[0].name == "day1_A01_0"
    assert slides[0].image.source == f"{path}/A/1/0#c=1"
    np.testing.assert_array_equal(slides[3].read((0, 0, 20, 30)).image, small_slide(20)[0][1:2, :20, :30])
    assert open_slides([path], nucleus="nuclei", channels=[2, 0])[0].image.shape[0] == 2


def test_acquisitions_are_metadata(tmp_path):
    slides = open_slides(write_plate(tmp_path / "plate.ome.zarr", acquisitions=(1, 2)), nucleus="nuclei")
    assert len(slides) == 8
    assert slides[1].metadata == {"well": "A01", "row": "A", "column": "1", "field": "20", "acquisition": "2"}
    assert slides[1].name == "A01_2_20"


def test_wells_are_columns_of_the_output(tmp_path, call):
    path = write_plate(tmp_path / "plate.ome.zarr")
    options = ("--nucleus", "nuclei", "--cytosol", "cells", "--size", 24, "-o", tmp_path / "a.h5sc")
    code, _, err = call("run", path, *options)
    assert code == 0, err
    obs = anndata.read_h5ad(tmp_path / "a.h5sc").obs
    assert set(obs["well"]) == {"A01", "A12", "H03"}
    assert {"row", "column", "field"} <= set(obs)


def test_fields_without_the_label_are_named(tmp_path):
    path = write_plate(tmp_path / "plate.ome.zarr")
    for within in ("A/12/0", "H/3/field_2"):
        (path / within / "labels" / "nuclei").rename(path / within / "other")
    with pytest.raises(
        SourceError, match=r"2 of the 4 fields of .*: .*/A/12/0, .*field_2; the first because"
    ) as caught:
        gx.plan(path, nucleus="nuclei", tile_size=24)
    assert "on_bad_slide='skip'" in str(caught.value)
    planned = gx.plan(path, nucleus="nuclei", tile_size=24, on_bad_slide="skip")
    assert [slide.name for slide in planned.slides] == ["A01_0", "A01_1"]
    assert len([line for line in planned.warnings if line.startswith("skipped")]) == 2


def test_labels_of_a_plate_are_names(tmp_path):
    path = write_plate(tmp_path / "plate.ome.zarr")
    for nucleus in (small_slide(0)[1], path / "A" / "1" / "0" / "labels" / "nuclei"):
        with pytest.raises(InputError, match=r"is one plane, and .* is a plate of 4 fields; give the name of a label"):
            open_slides(path, nucleus=nucleus)
    with pytest.raises(SourceError, match=r"4 of the 4 fields .* no label plane was given"):
        open_slides(path)
    with pytest.raises(InputError, match=r"is a plate of 4 fields; give one, such as .*/A/1/0"):
        open_slide(path, nucleus="nuclei")


def test_a_plate_is_no_single_image(tmp_path):
    path = write_plate(tmp_path / "plate.ome.zarr")
    with pytest.raises(SourceError, match="is a plate or a well, which has many images; give the path of a field"):
        open_image(path)
    with pytest.raises(SourceError, match=r"has the images 0, 1; choose one: .*#image=NAME"):
        open_image(path / "A" / "1")
    (slide,) = open_slides(f"{path}/A/1#image=1", nucleus="nuclei")
    np.testing.assert_array_equal(slide.read((0, 0, *slide.size)).image, small_slide(1)[0])


def test_a_plate_of_one_field_is_one_slide(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "WELLS", {"B/2": ("0",)})
    path = write_plate(tmp_path / "plate.ome.zarr")
    assert open_slide(path, nucleus="nuclei").size == small_slide(0)[1].shape
    assert open_slides(path, nucleus=small_slide(0)[1])[0].name == "B02_0"


@pytest.mark.parametrize(
    ("node", "change", "message"),
    [
        ("", {"plate": {"wells": [{"path": "Z/9"}]}}, "name the well 'Z/9', which does not exist"),
        ("", {"plate": {"wells": [{"path": "../../etc"}]}}, "name the well"),
        ("", {"plate": {"wells": [7]}}, "damaged metadata of an OME-Zarr plate"),
        ("", {"plate": {"wells": []}}, "is a plate without any field"),
        ("A/1", {"well": {"images": [{"path": "../B/1"}]}}, "name the field"),
        ("A/1", {"well": {}}, "damaged metadata of an OME-Zarr plate"),
        ("A/1", {"well": {"images": [{"path": "7"}]}}, "1 of the 3 fields"),
    ],
)
def test_damaged_plates_are_an_error(tmp_path, node, change, message):
    path = write_plate(tmp_path / "plate.ome.zarr")
    (path / node / ".zattrs").write_text(json.dumps(change))
    with pytest.raises((SourceError, LabelError), match=message) as caught:
        open_slides(path, nucleus="nuclei")
    assert "\n" not in str(caught.value)
