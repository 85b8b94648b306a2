"""Outlines in GeoJSON as label planes."""

import gzip
import json
import pickle
import zipfile

import numpy as np
import pytest
import tifffile
from made.outlines import (
    HOLE,
    SQUARE,
    drawn_exactly,
    feature,
    multi_polygon,
    polygon,
    shifted,
    write_geojson,
)
from made.stores import write_ome_zarr

import gpu_extract as gx
from gpu_extract.errors import InputError, LabelError, SourceError
from gpu_extract.sources import open_labels, open_slide, open_slides, outline_files

SIZE = (12, 14)
IMAGE = np.ones((2, *SIZE), np.uint16)
NUMBERED = "the ids of cells are their places in the file, from 1, since it has no numbers for them"
INNER = [(4, 4), (4, 7), (7, 7), (7, 4)]


def opened(path, image=IMAGE, plane="nucleus"):
    """The pixels of a label plane, and the slide's warnings without the name of the file."""
    slide = open_slide(image, **{plane: path})
    found = slide.read((0, 0, *slide.size)).labels[0]
    subject = f"{plane} label plane {path}: "
    return found, [line.removeprefix(subject) for line in slide.warnings]


def test_polygons_and_holes_numbered_by_their_places(tmp_path):
    path = tmp_path / "cells.geojson"
    write_geojson(path, feature(polygon(SQUARE, HOLE)), feature(multi_polygon([HOLE], [shifted(HOLE, 5, 4)])))
    found, warnings = opened(path)
    expected = drawn_exactly([[[SQUARE, HOLE]], [[HOLE], [shifted(HOLE, 5, 4)]]], SIZE)
    np.testing.assert_array_equal(found, expected)
    assert warnings == [NUMBERED]


@pytest.mark.parametrize(
    "content",
    [
        [feature(polygon(SQUARE))],
        feature(polygon(SQUARE)),
        polygon(SQUARE),
        {"type": "FeatureCollection", "features": [feature(polygon(SQUARE))], "crs": {"coordinates": 5}},
        {"type": "GeometryCollection", "geometries": [polygon(SQUARE)]},
        feature(
            {"type": "GeometryCollection", "geometries": [polygon(SQUARE), {"type": "Point", "coordinates": [1, 2]}]}
        ),
    ],
)
def test_forms_of_geojson(tmp_path, content):
    path = tmp_path / "cells.json"
    path.write_text(" \n" + json.dumps(content))
    np.testing.assert_array_equal(opened(path)[0], drawn_exactly([[[SQUARE]]], SIZE))


def test_compressed_and_with_a_byte_order_mark(tmp_path):
    text = json.dumps(polygon(SQUARE)).encode()
    (tmp_path / "a.geojson.gz").write_bytes(gzip.compress(text))
    (tmp_path / "b.geojson").write_bytes(b"\xef\xbb\xbf" + text)
    with zipfile.ZipFile(tmp_path / "c.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cells.geojson", text)
    for path in tmp_path.iterdir():
        np.testing.assert_array_equal(opened(path)[0], drawn_exactly([[[SQUARE]]], SIZE), err_msg=str(path))


# Ids


@pytest.mark.parametrize(
    "named",
    [
        [{"id": 9}, {"id": 4}],
        [{"id": "9"}, {"id": "4"}],
        [{"properties": {"label": 9}}, {"properties": {"label": 4}}],
        [{"id": "x", "properties": {"cell": 9}}, {"id": "y", "properties": {"cell": 4.0}}],
    ],
)
def test_numbers_of_the_file_are_the_ids(tmp_path, named):
    outlines = [polygon(SQUARE), polygon(shifted(SQUARE, 0, 6))]
    features = [feature(outline, **names) for outline, names in zip(outlines, named, strict=True)]
    found, warnings = opened(write_geojson(tmp_path / "a.json", *features))
    assert found[3, [3, 9]].tolist() == [9, 4]
    assert warnings == []


def test_numbers_that_repeat_are_no_ids(tmp_path):
    outlines = [polygon(SQUARE), polygon(shifted(SQUARE, 0, 6))]
    path = write_geojson(tmp_path / "a.json", *[feature(outline, properties={"cell": 3}) for outline in outlines])
    found, warnings = opened(path)
    assert found[3, [3, 9]].tolist() == [1, 2]
    assert warnings == [NUMBERED.replace("it has no numbers for them", "the numbers in properties.cell repeat")]


def test_cells_of_baysor_have_their_numbers_beside_the_coordinates(tmp_path):
    cells = [{**polygon(SQUARE), "cell": 7}, {**polygon(shifted(SQUARE, 0, 6)), "cell": 5}]
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"type": "GeometryCollection", "geometries": cells}))
    assert opened(path)[0][3, [3, 9]].tolist() == [7, 5]


# QuPath


def qupath(path):
    """Two cells, of which the first has a nucleus, an annotation around them, and a detection below it."""
    cells = [
        feature(polygon(SQUARE), nucleus=polygon(INNER), properties={"objectType": "cell", "measurements": {"a": 1.5}}),
        feature(polygon(shifted(SQUARE, 0, 6)), properties={"objectType": "cell"}),
    ]
    below = feature(polygon([(9, 1), (9, 4), (11, 4), (11, 1)]), properties={"objectType": "detection"})
    around = [(0, 0), (0, 14), (12, 14), (12, 0)]
    area = feature(polygon(around), properties={"objectType": "annotation", "childObjects": [below]})
    return write_geojson(path, cells[0], area, cells[1])


def test_a_qupath_cell_is_a_nucleus_and_a_cytosol_of_one_id(tmp_path):
    path = qupath(tmp_path / "cells.geojson")
    slide = pickle.loads(pickle.dumps(open_slide(IMAGE, nucleus=path, cytosol=path)))
    nucleus, cytosol = slide.read((0, 0, *SIZE)).labels
    np.testing.assert_array_equal(nucleus, drawn_exactly([[[INNER]]], SIZE))
    expected = drawn_exactly([[[SQUARE]], [], [[[(9, 1), (9, 4), (11, 4), (11, 1)]]], [[shifted(SQUARE, 0, 6)]]], SIZE)
    np.testing.assert_array_equal(cytosol, expected)
    left_out = "2 of 3 cells have no nucleusGeometry, and so no nucleus"
    others = "left out 1 of 4 objects, which are not cells: annotation"
    assert [line.split(": ", 1)[1] for line in slide.warnings] == [others, left_out, NUMBERED, others, NUMBERED]


def test_the_same_file_as_nucleus_and_cytosol_is_extracted(tmp_path):
    path = qupath(tmp_path / "cells.geojson")
    plan = gx.plan(IMAGE, nucleus=path, cytosol=path, tile_size=8, border="keep")
    assert plan.cells.ids.tolist() == [1]
    assert plan.cells.areas.tolist() == [[9, 36]]
    assert plan.cells.dropped.counts() == {"no nucleus": 2}


def test_annotations_are_cells_where_there_are_no_others(tmp_path):
    tile = feature(polygon(HOLE), properties={"objectType": "tile"})
    kept = feature(polygon(SQUARE), properties={"objectType": "annotation"})
    found, warnings = opened(write_geojson(tmp_path / "a.json", tile, kept))
    assert np.unique(found).tolist() == [0, 2]
    assert warnings == ["left out 1 of 2 objects, which are not cells: tile", NUMBERED]


def test_cells_of_qupath_02(tmp_path):
    cell, area = feature(polygon(SQUARE), id="PathCellObject"), feature(polygon(HOLE), id="PathAnnotationObject")
    found, warnings = opened(write_geojson(tmp_path / "a.json", cell, area, collection=False))
    assert (found == 1).sum() == 36
    assert warnings[0] == "left out 1 of 2 objects, which are not cells: PathAnnotationObject"


def test_points_and_lines_are_left_out(tmp_path):
    line = feature({"type": "LineString", "coordinates": [[1, 1], [5, 5]]})
    found, warnings = opened(write_geojson(tmp_path / "a.json", line, feature(polygon(SQUARE)), feature(None)))
    assert np.unique(found).tolist() == [0, 2]
    assert warnings == ["2 of 3 features are points or lines, and are left out", NUMBERED]


def test_slices_and_time_points(tmp_path):
    def at(ring, **plane):
        return feature({**polygon(ring), "plane": {"c": -1, **plane}} if plane else polygon(ring))

    path = write_geojson(tmp_path / "a.json", at(SQUARE), at(HOLE, z=2, t=0), at(HOLE, z=2, t=1))
    with pytest.raises(SourceError, match=r"has 2 time points; add #t=0 to #t=1"):
        open_slide(IMAGE, nucleus=path)
    with pytest.raises(SourceError, match=r"has 3 Z slices; add #z=0 to #z=2"):
        open_slide(IMAGE, nucleus=f"{path}#t=0")
    assert np.unique(opened(f"{path}#z=0,t=0")[0]).tolist() == [0, 1]
    assert np.unique(opened(f"{path}#z=2,t=1")[0]).tolist() == [0, 3]
    assert not opened(f"{path}#z=1,t=0")[0].any()
    with pytest.raises(SourceError, match="z= can be 0 to 2"):
        open_slide(IMAGE, nucleus=f"{path}#z=3,t=0")


def test_a_time_course_has_its_own_outlines_at_each_time_point(tmp_path):
    movie = np.zeros((2, *SIZE), np.uint16)
    tifffile.imwrite(tmp_path / "movie.ome.tif", movie, metadata={"axes": "TYX"}, photometric="minisblack")
    later = {**polygon(shifted(SQUARE, 3, 3)), "plane": {"c": -1, "z": 0, "t": 1}}
    path = write_geojson(tmp_path / "a.json", feature(polygon(SQUARE), id=5), feature(later, id=5))
    found = open_slides(tmp_path / "movie.ome.tif", nucleus=path)
    labels = [slide.read((0, 0, *SIZE)).labels[0] for slide in found]
    assert [plane[[3, 9], [3, 9]].tolist() for plane in labels] == [[5, 0], [0, 5]]
    assert not any(slide.warnings for slide in found)


# Micrometers


def test_micrometers_need_the_size_of_a_pixel(tmp_path):
    path = write_geojson(tmp_path / "a.json", feature(polygon(SQUARE), id=1))
    with pytest.raises(
        LabelError, match=r"is in um, and the pixel size .* is not known; give --pixel-size in um \(pixel_size=\)"
    ):
        open_slide(IMAGE, nucleus=f"{path}#unit=um")
    plan = gx.plan(IMAGE, nucleus=f"{path}#unit=um", pixel_size=2, tile_size=4)
    assert plan.cells.areas.tolist() == [[9]]
    assert plan.cells.boxes.tolist() == [[1, 1, 4, 4]]
    plan = gx.plan(IMAGE, nucleus=f"{path}#unit=um", pixel_size=(2, 1), tile_size=4)
    assert plan.cells.boxes.tolist() == [[1, 2, 4, 8]]


def test_coordinates_that_may_be_micrometers(tmp_path):
    image = tmp_path / "image.ome.tif"
    scale = {"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    tifffile.imwrite(image, np.ones((2, 40, 40), np.uint16), metadata=scale, photometric="minisblack")
    path = write_geojson(tmp_path / "a.json", feature(polygon([(1, 1), (1, 19), (19, 19), (19, 1)]), id=1))
    line = "its coordinates are taken for pixels, and may be um by what they span; "
    assert opened(path, image)[1] == [line + "add #unit=um to its path if they are, #unit=px if not"]
    found, warnings = opened(f"{path}#unit=px", image)
    assert (found.sum(), warnings) == (18 * 18, [])
    found, warnings = opened(f"{path}#unit=um", image)
    assert (found.sum(), warnings) == (36 * 36, [])


def test_a_lower_level_of_the_image(tmp_path):
    image = write_ome_zarr(tmp_path / "a.zarr", np.ones((3, 70, 90), np.uint16))
    path = write_geojson(tmp_path / "a.json", feature(polygon(SQUARE), id=1))
    line = "its outlines are in pixels and are drawn as they are on level 1; "
    assert opened(path, f"{image}#level=1")[1] == [line + "leave #level= out if they are of the full resolution"]
    assert opened(path, image)[1] == []


# What cannot be drawn


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"features"', "is not JSON that can be read: Expecting ':' delimiter"),
        ('[{"coordinates":' + "[" * 100_000, "is not JSON that can be read: maximum recursion depth"),
        ('[["features"]]', "is JSON without outlines; give GeoJSON with Features that are polygons"),
        ('{"pixel_size": 0.2125}', "is a text file that begins with"),
        ('{"type": "FeatureCollection", "features": []}', "is JSON without outlines"),
        (json.dumps(feature({"type": "Point", "coordinates": [1, 2]})), "holds no outline with three or more points"),
        (json.dumps(feature({"type": "Polygon", "coordinates": [[[1, 2], [3]]]})), "feature 1 are no points"),
        (json.dumps(feature({"type": "Polygon", "coordinates": [["a", "b"]]})), "feature 1 are no points"),
        (json.dumps(feature({"type": "Polygon", "coordinates": [1, 2]})), "feature 1 are no points"),
        (json.dumps(feature({"type": "Polygon", "coordinates": {}})), "feature 1 are no points"),
        (
            json.dumps(feature({"type": "Polygon", "coordinates": [[[1, 2], [3, 4], [None, 5]]]})),
            "feature 1 has a vertex",
        ),
        (
            json.dumps([feature(polygon(SQUARE)), feature(polygon([(1, 1), (2, float("nan")), (3, 3)]))]),
            "feature 2 has a",
        ),
        (json.dumps(feature(polygon([(1, 1), (2, 1e300), (3, 3)]))), "feature 1 has a vertex at x = 1e\\+300, y = 2;"),
    ],
)
def test_what_is_no_geojson_with_outlines(tmp_path, content, message):
    path = tmp_path / "a.geojson"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as raised:
        open_slide(IMAGE, nucleus=path)
    assert str(raised.value).startswith(f"nucleus label plane {path}")
    assert "\n" not in str(raised.value)


def test_geometries_nested_too_deeply(tmp_path):
    geometry = polygon(SQUARE)
    for _ in range(20):
        geometry = {"type": "GeometryCollection", "geometries": [geometry]}
    with pytest.raises(LabelError, match="feature 1"):
        open_slide(IMAGE, nucleus=write_geojson(tmp_path / "a.json", feature(geometry)))


def test_more_text_than_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(outline_files, "MAX_TEXT", 100)
    (tmp_path / "a.geojson.gz").write_bytes(gzip.compress(b'["features"' + b" " * 1000 + b"]"))
    with pytest.raises(SourceError, match="has more than 0 GB of text; export it without measurements"):
        open_slide(IMAGE, nucleus=tmp_path / "a.geojson.gz")


def test_outlines_are_no_image_and_need_one(tmp_path):
    path = write_geojson(tmp_path / "a.json", feature(polygon(SQUARE)))
    with pytest.raises(
        SourceError, match=r"^image .*a.json holds outlines \(GeoJSON\), not pixels; give it as label plane"
    ):
        open_slide(path, nucleus=path)
    with pytest.raises(LabelError, match=r"holds outlines \(GeoJSON\), which are drawn over an image; open it with"):
        open_labels(path, "nucleus")


@pytest.mark.parametrize("selector", ["level=1", "image=a", "label=a", "missing=fill"])
def test_selectors_that_outlines_do_not_have(tmp_path, selector):
    path = write_geojson(tmp_path / "a.json", feature(polygon(SQUARE)))
    with pytest.raises(InputError, match=f"has nothing that {selector.split('=')[0]}= could select"):
        open_slide(IMAGE, nucleus=f"{path}#{selector}")


def test_only_outlines_have_a_unit(tmp_path):
    np.save(tmp_path / "a.npy", np.ones(SIZE, np.uint8))
    with pytest.raises(InputError, match="has nothing that unit= could select"):
        open_slide(IMAGE, nucleus=f"{tmp_path / 'a.npy'}#unit=um")
    with pytest.raises(InputError, match="unit=mm is not allowed; unit= takes px or um"):
        open_slide(IMAGE, nucleus=f"{tmp_path / 'a.json'}#unit=mm")


# On the command line


def test_run_draws_outlines(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("image.tif", np.ones((2, 60, 60), np.uint16), photometric="minisblack")
    write_geojson(tmp_path / "cells.geojson", feature(polygon(np.array(SQUARE) + 20)))
    code, _, errors = call("run", "image.tif", "--nucleus", "cells.geojson", "--size", 16, "-o", "a.h5sc", "--quiet")
    assert code == 0, errors
    tile = gx.open_cells("a.h5sc")[1]
    np.testing.assert_array_equal(tile[0], drawn_exactly([[[np.array(SQUARE) + 4]]], (16, 16)))
    code, _, errors = call("run", "cells.geojson", "--nucleus", "cells.geojson", "-o", "b.h5sc")
    assert code == 1
    assert errors.splitlines()[-1] == (
        "gpu-extract: image cells.geojson holds outlines (GeoJSON), not pixels; "
        "give it as label plane (--nucleus, --cytosol; nucleus=, cytosol=)"
    )
