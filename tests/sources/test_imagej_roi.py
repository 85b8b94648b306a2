"""ImageJ's ROIs as label planes."""

import sys
import zipfile

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from made.outlines import HOLE, SQUARE, drawn_exactly, shifted, write_rois

from gpu_extract.errors import InputError, LabelError, LibraryError, SourceError
from gpu_extract.sources import open_slide, open_slides
from gpu_extract.sources.imagej_roi import read_rois
from gpu_extract.sources.polygons import draw

roifile = pytest.importorskip("roifile")

SIZE = (12, 14)
IMAGE = np.ones((2, *SIZE), np.uint16)
NUMBERED = (
    "the ids of cells are the places of their ROIs in the set, from 1, since their names are not different numbers"
)
SUB_PIXEL = roifile.ROI_OPTIONS.SUB_PIXEL_RESOLUTION


def roi(ring, kind="POLYGON", **given):
    """A ROI of points (y, x), in whole pixels or not."""
    points = np.array(ring, float)[:, ::-1]
    made = roifile.ImagejRoi.frompoints(points.astype(np.int32) if (points == points.round()).all() else points)
    made.roitype = roifile.ROI_TYPE[kind]
    for name, value in {"name": "", **given}.items():
        setattr(made, name, value)
    return made


def box(kind, y, x, height, width, **given):
    made = roifile.ImagejRoi(roitype=roifile.ROI_TYPE[kind], **given)
    made.top, made.left, made.bottom, made.right = y, x, y + height, x + width
    return made


def opened(path, image=IMAGE):
    slide = open_slide(image, nucleus=path)
    subject = f"nucleus label plane {path}: "
    return slide.read((0, 0, *slide.size)).labels[0], [line.removeprefix(subject) for line in slide.warnings]


def plane(path, *rois):
    return opened(write_rois(path, *rois))[0]


def test_polygons_freehand_and_traced_outlines(tmp_path):
    kinds = ("POLYGON", "FREEHAND", "TRACED")
    rings = [SQUARE, shifted(HOLE, 0, 5), [(9, 1), (9, 9), (11, 9), (11, 5)]]
    path = write_rois(tmp_path / "RoiSet.zip", *map(roi, rings, kinds))
    found, warnings = opened(path)
    np.testing.assert_array_equal(found, drawn_exactly([[[ring]] for ring in rings], SIZE, on_left=False))
    assert warnings == []  # their names are 1, 2 and 3


points = st.tuples(*[st.integers(0, 13)] * 2)


@given(ring=st.lists(points, min_size=3, max_size=8, unique=True))
@settings(deadline=None, max_examples=200)
def test_centers_on_an_edge_as_in_imagej(ring):
    expected = drawn_exactly([[[ring]]], SIZE, on_left=False)
    if expected.any():
        read = read_rois([("1.roi", roi(ring).tobytes())], "cells")
        found = draw(read, SIZE, "cells", "cells").read(0, 0, *SIZE)[0]
        np.testing.assert_array_equal(found, expected)


def test_a_center_on_the_left_edge_is_outside_and_one_on_the_right_is_inside(tmp_path):
    found = plane(tmp_path / "a.zip", roi(np.array(SQUARE) + 0.5))
    expected = np.zeros(SIZE, int)
    expected[2:8, 3:9] = 1
    np.testing.assert_array_equal(found, expected)


def test_a_single_roi_and_sub_pixels(tmp_path):
    ring = [(2.25, 2.25), (2.25, 8.75), (8.75, 8.75), (8.75, 2.25)]
    (tmp_path / "a.roi").write_bytes(roi(ring, name="17").tobytes())
    found, warnings = opened(tmp_path / "a.roi")
    np.testing.assert_array_equal(found, 17 * drawn_exactly([[[ring]]], SIZE))
    assert warnings == []


def test_rectangles_and_ovals(tmp_path):
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    for height, width in [(6, 6), (5, 5), (10, 10), (1, 1), (2, 5), (7, 12), (10, 2)]:
        found = plane(tmp_path / "a.zip", box("OVAL", 1, 1, height, width))
        # ImageJ's OvalRoi.getMask
        inside = ((x - 0.5 - width / 2) / (width / 2)) ** 2 + ((y - 0.5 - height / 2) / (height / 2)) ** 2 <= 1
        np.testing.assert_array_equal(found, inside, err_msg=f"{height} x {width}")
        found = plane(tmp_path / "b.zip", box("RECT", 1, 1, height, width))
        expected = np.zeros(SIZE, int)
        expected[1 : 1 + height, 1 : 1 + width] = 1
        np.testing.assert_array_equal(found, expected)


def test_sub_pixel_rectangles(tmp_path):
    made = box("RECT", 1, 1, 6, 6, version=228, options=SUB_PIXEL)
    made.xd, made.yd, made.widthd, made.heightd = 1.75, 1.25, 4.5, 3.0
    ring = [(1.25, 1.75), (1.25, 6.25), (4.25, 6.25), (4.25, 1.75)]
    np.testing.assert_array_equal(plane(tmp_path / "a.zip", made), drawn_exactly([[[ring]]], SIZE))


def test_composite_rois_have_holes_and_curves(tmp_path):
    numbers = []
    for ring in (HOLE, SQUARE):
        for command, (y, x) in enumerate(ring):
            numbers += [float(command > 0), x, y]
        numbers.append(4.0)
    made = box("RECT", 2, 2, 6, 6, shape_roi_size=len(numbers), multi_coordinates=np.array(numbers, np.float32))
    np.testing.assert_array_equal(plane(tmp_path / "a.zip", made), drawn_exactly([[[SQUARE, HOLE]]], SIZE))
    # A circle of radius 4 around (6, 6) of four cubic curves, and a parabola.
    k = 4 * 0.5522847498
    numbers = [0, 10, 6, 3, 10, 6 + k, 6 + k, 10, 6, 10, 3, 6 - k, 10, 2, 6 + k, 2, 6]
    numbers += [3, 2, 6 - k, 6 - k, 2, 6, 2, 3, 6 + k, 2, 10, 6 - k, 10, 6, 4]
    made = box("RECT", 2, 2, 8, 8, shape_roi_size=len(numbers), multi_coordinates=np.array(numbers, np.float32))
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    np.testing.assert_array_equal(plane(tmp_path / "b.zip", made), np.hypot(y - 5.5, x - 5.5) < 4)
    numbers = [0, 0, 0, 2, 6, 12, 12, 0, 4]
    made = box("RECT", 0, 0, 12, 12, shape_roi_size=len(numbers), multi_coordinates=np.array(numbers, np.float32))
    t = (x + 0.5) / 12
    np.testing.assert_array_equal(plane(tmp_path / "c.zip", made), (y + 0.5 < 24 * t * (1 - t)) & (x < 12))


def test_names_and_places(tmp_path):
    first, second = roi(SQUARE, name="0007"), roi(shifted(SQUARE, 0, 6), name="3")
    assert plane(tmp_path / "a.zip", first, second)[3, [3, 9]].tolist() == [7, 3]
    second.name = "0003-0005"
    found, warnings = opened(write_rois(tmp_path / "b.zip", box("POINT", 1, 1, 1, 1), first, second))
    assert found[3, [3, 9]].tolist() == [2, 3]
    assert warnings == [NUMBERED, "1 of 3 ROIs are points, lines or texts, and are left out"]


def test_what_has_no_area(tmp_path):
    line = roifile.ImagejRoi(roitype=roifile.ROI_TYPE.LINE, x1=1, y1=1, x2=5, y2=5)
    text = box("RECT", 1, 1, 5, 5, subtype=roifile.ROI_SUBTYPE.TEXT)
    with pytest.raises(LabelError, match="holds no ROI with an area; give polygons, rectangles, ovals or traced"):
        opened(write_rois(tmp_path / "a.zip", line, text, roi(SQUARE, "POLYLINE")))
    with pytest.raises(LabelError, match="holds no outline with three or more points"):
        opened(write_rois(tmp_path / "b.zip", box("OVAL", 1, 1, 0, 0)))


def test_splines(tmp_path):
    path = write_rois(tmp_path / "a.zip", roi(SQUARE, options=roifile.ROI_OPTIONS.SPLINE_FIT))
    assert opened(path)[1] == ["1 of 1 ROIs are fitted splines, and are drawn as polygons through their points"]


def test_coordinates_beyond_16_bits(tmp_path):
    wide = np.ones((1, 4, 50_000), np.uint8)
    ring = [(0, 49_000), (0, 49_500), (3, 49_500), (3, 49_000)]
    found = opened(write_rois(tmp_path / "a.zip", roi(ring)), wide)[0]
    assert np.flatnonzero(found[0])[[0, -1]].tolist() == [49_000, 49_499]


def test_slices_of_a_stack(tmp_path):
    first, later = roi(SQUARE, position=1), roi(shifted(SQUARE, 0, 6), position=3)
    path = write_rois(tmp_path / "a.zip", first, later)
    with pytest.raises(SourceError, match="has 3 Z slices; add #z=0 to #z=2"):
        opened(path)
    assert np.unique(opened(f"{path}#z=2")[0]).tolist() == [0, 2]
    assert np.unique(opened(f"{path}#z=max")[0]).tolist() == [0, 1, 2]
    first.name = "a"
    warnings = opened(f"{write_rois(tmp_path / 'c.zip', first, later)}#z=max")[1]
    assert [line.split(": ")[1] for line in warnings] == [NUMBERED]
    path = write_rois(tmp_path / "b.zip", first, roi(shifted(SQUARE, 0, 6), position=1), roi(HOLE, z_position=1))
    assert np.unique(opened(path)[0]).tolist() == [0, 1, 2, 3]  # one slice needs no choice


def test_channels_are_no_slices(tmp_path):
    path = write_rois(
        tmp_path / "a.zip", roi(SQUARE, c_position=1), roi(shifted(SQUARE, 0, 6), c_position=2, position=2)
    )
    assert np.unique(opened(path)[0]).tolist() == [0, 1, 2]


def test_a_time_course(tmp_path):
    movie = np.zeros((2, *SIZE), np.uint16)
    tifffile.imwrite(tmp_path / "movie.ome.tif", movie, metadata={"axes": "TYX"}, photometric="minisblack")
    first, later = roi(SQUARE, t_position=1), roi(shifted(SQUARE, 3, 3), t_position=2)
    path = write_rois(tmp_path / "a.zip", first, later, roi([(0, 0), (0, 2), (2, 2), (2, 0)]))
    found = [slide.read((0, 0, *SIZE)).labels[0] for slide in open_slides(tmp_path / "movie.ome.tif", nucleus=path)]
    assert [np.unique(labels).tolist() for labels in found] == [[0, 1, 3], [0, 2, 3]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"Iout", r"ROI 1 \(0001.roi\) cannot be read: .*; check the file, or export it again"),
        (b"no ROI" * 20, r"ROI 1 \(0001.roi\) cannot be read: not an ImageJ ROI"),
        (None, r"ROI 1 \(0001.roi\) cannot be read: "),
    ],
)
def test_what_is_no_roi(tmp_path, content, message):
    if content is None:
        content = bytearray(roi(SQUARE).tobytes()[:70])
        content[16:18] = b"\0\0"
        content[18:22] = b"\x7f\xff\xff\xff"  # two billion points
    with zipfile.ZipFile(tmp_path / "RoiSet.zip", "w") as archive:
        archive.writestr("0001.roi", bytes(content))
    with pytest.raises(InputError, match=message) as raised:
        opened(tmp_path / "RoiSet.zip")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "numbers", [[9.0, 1, 1], [0.0, 1], [1.0, 2, 3], [np.nan, 1, 1], [0, np.inf, 1, 1, 2, 2, 1, 3, 1]]
)
def test_composite_rois_that_are_none(tmp_path, numbers):
    made = box("RECT", 2, 2, 6, 6, shape_roi_size=len(numbers), multi_coordinates=np.array(numbers, np.float32))
    with pytest.raises(InputError, match="ROI 1"):
        opened(write_rois(tmp_path / "a.zip", made))


def test_a_damaged_archive(tmp_path):
    path = write_rois(tmp_path / "a.zip", roi(SQUARE))
    content = bytearray(path.read_bytes())
    content[100] ^= 255
    path.write_bytes(content)
    with pytest.raises(SourceError, match="is a damaged zip archive: Bad CRC-32"):
        opened(path)


def test_rois_are_no_image(tmp_path):
    path = write_rois(tmp_path / "a.zip", roi(SQUARE))
    with pytest.raises(SourceError, match=r"holds outlines \(ImageJ ROIs\), not pixels"):
        open_slide(path, nucleus=path)


def test_without_roifile(tmp_path, monkeypatch):
    path = write_rois(tmp_path / "a.zip", roi(SQUARE))
    monkeypatch.setitem(sys.modules, "roifile", None)
    with pytest.raises(
        LibraryError, match=r"a.zip cannot be read: roifile .* cannot be imported .*pip install .*roifile"
    ):
        opened(path)
