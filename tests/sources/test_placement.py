"""Labels that lie elsewhere than the image, by transformations or coordinates."""

import copy
import pickle

import numpy as np
import pytest
import xarray as xr
import zarr
from made.stores import write_multiscale

import gpu_extract as gx
from gpu_extract.errors import LabelError, SourceError
from gpu_extract.sources import open_slide
from gpu_extract.sources.placement import Placement, ShiftedRaster, place_labels, relative, relative_in_common

H, W = 96, 128
CENTERS = ((20, 20), (20, 60), (25, 105), (65, 25), (60, 70), (70, 105))


def cells():
    """Return labels of round cells, and an image whose pixels are 100 times the id of their cell."""
    y, x = np.mgrid[:H, :W]
    labels = np.zeros((H, W), np.uint16)
    for cell_id, (cy, cx) in enumerate(CENTERS, 1):
        labels[np.hypot(y - cy, x - cx) < 9] = cell_id
    return 100 * labels[np.newaxis], labels


IMAGE, LABELS = cells()
MOVED = np.roll(LABELS, (-20, -30), (0, 1))  # a field that begins at y 20, x 30


def to(transformation, system="global", output="yx", n_axes="yx"):
    """Return a transformation as spatialdata 0.7 writes it for an element."""

    def axes(names):
        return [{"name": n, "type": "channel"} if n == "c" else {"name": n, "type": "space"} for n in names]

    return transformation | {
        "input": {"name": n_axes, "axes": axes(n_axes)},
        "output": {"name": system, "axes": axes(output)},
    }


IDENTITY = {"type": "identity"}
SHIFT = {"type": "translation", "translation": [20.0, 30.0]}
AFFINE_SHIFT = {"type": "affine", "affine": [[1.0, 0.0, 20.0], [0.0, 1.0, 30.0]]}
AFFINE_SHIFT_XY = {"type": "affine", "affine": [[0.0, 1.0, 30.0], [1.0, 0.0, 20.0]]}  # rows x, y
FLIP_XY = {"type": "affine", "affine": [[0.0, 1.0, 0.0], [-1.0, 0.0, H - 1.0]]}
ROTATION = {"type": "affine", "affine": [[0.8, -0.6, 0.0], [0.6, 0.8, 0.0]]}
SWAP = {"type": "mapAxis", "mapAxis": {"x": "y", "y": "x"}}


def scale(*factors):
    return {"type": "scale", "scale": list(factors)}


def translation(*shift):
    return {"type": "translation", "translation": list(shift)}


def sequence(*transformations):
    return {"type": "sequence", "transformations": [to(each) for each in transformations]}


def write(path, image, labels, pixels=IMAGE, planes=MOVED, levels=1):
    """Write a SpatialData store with transformations of the image and of the label at the element."""
    root = zarr.create_group(path)
    for node, array, axes, transformations in (
        (root.create_group("images/image"), pixels, "cyx", image),
        (root.create_group("labels/nucleus"), planes, "yx", labels),
    ):
        write_multiscale(node, [array[..., :: 2**k, :: 2**k] for k in range(levels)], axes)
        ome = copy.deepcopy(node.attrs["ome"])
        for k, dataset in enumerate(ome["multiscales"][0]["datasets"]):
            factors = [1.0] * (array.ndim - 2) + [float(2**k)] * 2
            dataset["coordinateTransformations"] = [scale(*factors)]
        ome["multiscales"][0]["coordinateTransformations"] = transformations
        node.attrs["ome"] = ome
    return path


def write_ngff(path, image, labels, *, units=("micrometer", "micrometer"), planes=MOVED):
    """Write OME-Zarr with transformations of level 0 of the image and of the label."""
    root = zarr.create_group(path)
    nodes = (root, IMAGE, "cyx", image, units[0]), (root.create_group("labels/nucleus"), planes, "yx", labels, units[1])
    for node, array, axes, transformations, unit in nodes:
        write_multiscale(node, [array], axes)
        ome = copy.deepcopy(node.attrs["ome"])
        (multiscale,) = ome["multiscales"]
        multiscale["datasets"][0]["coordinateTransformations"] = transformations
        multiscale["axes"] = [{"name": axis} | ({"unit": unit} if unit and axis != "c" else {}) for axis in axes]
        node.attrs["ome"] = ome
    return path


def check_cells(slide, n_cells=None):
    """Check that each cell of a slide lies on its own pixels."""
    window = slide.read((0, 0, *slide.size))
    labels = window.labels[0]
    assert n_cells is None or len(np.unique(labels)) - 1 == n_cells
    np.testing.assert_array_equal(window.image[0][labels > 0], 100 * labels[labels > 0])


@pytest.mark.parametrize(
    "transformation",
    [
        to(SHIFT),
        to(AFFINE_SHIFT),
        to(AFFINE_SHIFT_XY, output="xy"),
        to(sequence(translation(10.0, 30.0), sequence(translation(10.0, 0.0), IDENTITY))),
        to(sequence(scale(2.0, 2.0), translation(40.0, 60.0), scale(0.5, 0.5))),
        to(sequence(SWAP, translation(30.0, 20.0), SWAP)),
        to(translation(19.98, 30.04)),
    ],
)
def test_a_shift_by_whole_pixels_is_applied(tmp_path, transformation):
    path = write(tmp_path / "a.zarr", [to(IDENTITY, output="cyx", n_axes="cyx")], [transformation])
    slide = open_slide(path, nucleus="nucleus")
    check_cells(slide, 5)
    (warning,) = slide.warnings
    assert f"begin at y 20, x 30 of image {path}" in warning
    assert "they cover 76 x 98 of its pixels" in warning
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(slide)).read((7, 3, 60, 99)).labels[0][:13], 0)


@pytest.mark.parametrize(
    ("image", "labels", "relation"),
    [
        ([IDENTITY], [to(FLIP_XY, output="xy")], "mirrored along y"),
        ([IDENTITY], [to(sequence(scale(1.0, -1.0), translation(0.0, W - 1.0)))], "mirrored along x"),
        ([IDENTITY], [to(scale(2.0, 2.0))], "scaled by y 2, x 2"),
        ([IDENTITY], [to(scale(1.0, 1.02))], r"scaled by y 1, x 1\.02"),
        ([scale(1.0, 2.0, 2.0)], [to(IDENTITY)], r"scaled by y 0\.5, x 0\.5"),
        ([IDENTITY], [to(ROTATION)], "rotated or sheared"),
        ([IDENTITY], [to(SWAP, output="xy")], "placed with y and x swapped"),
        ([IDENTITY], [to(translation(20.5, 30.0))], r"shifted by y 20\.5, x 30 pixels, which are no whole pixels"),
        ([IDENTITY], [to({"type": "displacements", "path": "field"})], "of type 'displacements', which is not read"),
        ([IDENTITY], [to(SHIFT, "lab")], "in the coordinate systems lab and the image in global, with none in common"),
        ([IDENTITY], [to(translation(0.0, 5000.0))], r"begin at y 0, x 5000 of .*, outside its 96 x 128 pixels"),
    ],
)
def test_any_other_placement_is_an_error(tmp_path, image, labels, relation):
    path = write(tmp_path / "a.zarr", [to(each, output="cyx", n_axes="cyx") for each in image], labels)
    with pytest.raises(LabelError, match=relation) as caught:
        open_slide(path, nucleus="nucleus")
    assert "--trust placement (trust='placement')" in str(caught.value)
    assert "\n" not in str(caught.value)


ROTATION_C = {"type": "affine", "affine": [[1.0, 0.0, 0.0, 0.0], [0.0, 0.8, -0.6, 3.0], [0.0, 0.6, 0.8, 5.0]]}
ROTATED = {"type": "affine", "affine": [[0.8, -0.6, 3.0], [0.6, 0.8, 5.0]]}


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ([to(IDENTITY)], [to(IDENTITY)]),
        ([to(translation(0.0, 20.0, 30.0))], [to(SHIFT)]),
        ([to(ROTATION_C, output="cyx", n_axes="cyx")], [to(ROTATED)]),
        ([to(scale(1.0, 2.0, 2.0))], [to(scale(2.0, 2.01))]),
        ([to(IDENTITY), to(scale(1.0, 0.5, 0.5), "um")], [to(IDENTITY), to(scale(0.5, 0.5), "um")]),
        ([to(IDENTITY), to(scale(1.0, 0.5, 0.5), "um")], [to(scale(0.5, 0.5), "um"), to(SHIFT, "mine")]),
        ([to(SWAP, output="cxy", n_axes="cyx")], [to(SWAP, output="xy")]),
        ([], []),
    ],
)
def test_equal_placements_pass_without_a_warning(tmp_path, image, labels):
    image = [each | {"input": {"axes": [{"name": axis} for axis in "cyx"]}} for each in image]
    slide = open_slide(write(tmp_path / "a.zarr", image, labels, planes=LABELS), nucleus="nucleus")
    assert slide.warnings == ()
    check_cells(slide, 6)


def test_a_translation_of_the_image_alone_shifts_the_labels(tmp_path):
    shift = to(translation(0.0, 20.0, 30.0), output="cyx", n_axes="cyx")
    pixels = np.roll(IMAGE, (-20, -30), (1, 2))
    slide = open_slide(write(tmp_path / "a.zarr", [shift], [to(IDENTITY)], pixels, LABELS), nucleus="nucleus")
    window = slide.read((0, 0, *slide.size))
    np.testing.assert_array_equal(window.labels[0][: H - 20, : W - 30], LABELS[20:, 30:])
    assert not window.labels[0][H - 20 :].any()
    assert "begin at y -20, x -30" in slide.warnings[0]


def test_coordinate_systems_that_disagree_are_an_error(tmp_path):
    image = [to(IDENTITY, output="cyx", n_axes="cyx"), to(IDENTITY, "other", "cyx", "cyx")]
    path = write(tmp_path / "a.zarr", image, [to(IDENTITY), to(SHIFT, "other")])
    with pytest.raises(LabelError, match=r"differently .*: shifted by y 0, .* in global, .* y 20, .* other"):
        open_slide(path, nucleus="nucleus")


def test_a_label_of_a_cutout_is_placed_by_its_translation(tmp_path):
    path = write(tmp_path / "a.zarr", [to(IDENTITY, n_axes="cyx")], [to(SHIFT)], planes=LABELS[20:80, 30:90])
    slide = open_slide(path, nucleus="nucleus")
    assert slide.masks["nucleus"].shape == (1, H, W)
    window = slide.read((0, 0, H, W))
    np.testing.assert_array_equal(window.labels[0][20:80, 30:90], LABELS[20:80, 30:90])
    assert window.labels[0].sum() == LABELS[20:80, 30:90].sum()
    with gx.open_cells(gx.extract(path, nucleus="nucleus", output=tmp_path / "a.h5sc", tile_size=32).path) as stored:
        assert list(stored.ids) == [2, 4, 5]


def test_placement_of_the_level_that_is_read(tmp_path):
    path = write(tmp_path / "a.zarr", [to(IDENTITY, n_axes="cyx")], [to(SHIFT)], levels=2)
    slide = open_slide(f"{path}#level=1", nucleus="nucleus")
    assert "begin at y 10, x 15" in slide.warnings[0]
    check_cells(slide, 5)


def write_levels(path, image, labels):
    """Write pyramids of which only the levels of these scales exist."""
    root = write(path, [], [], planes=LABELS, levels=4) and zarr.open_group(path)
    for node, scales in ((root["images/image"], image), (root["labels/nucleus"], labels)):
        ome = copy.deepcopy(node.attrs["ome"])
        (multiscale,) = ome["multiscales"]
        multiscale["datasets"] = [d for k, d in enumerate(multiscale["datasets"]) if 2**k in scales]
        node.attrs["ome"] = ome
    return path


@pytest.mark.parametrize(
    ("image", "labels", "selection", "level"),
    [
        ((4,), (1, 2, 4), "", 2),  # as in idr0062 of ez-zarr
        ((1, 2, 4), (2, 4), "#level=1", 0),
        ((1, 2), (1, 2), "#level=1", None),
    ],
)
def test_the_level_of_labels_is_that_with_the_scale_of_the_image(tmp_path, image, labels, selection, level):
    path = write_levels(tmp_path / "a.zarr", image, labels)
    slide = open_slide(f"{path}{selection}", nucleus="nucleus")
    check_cells(slide, 6)
    if level is None:
        assert slide.warnings == ()
    else:
        assert f"is read at level {level}, which has the scale of image {path}" in slide.warnings[0]
        assert slide.masks["nucleus"].source == f"{path}#level={level},label=nucleus"


def test_a_level_that_was_selected_for_labels_is_kept(tmp_path):
    path = write_levels(tmp_path / "a.zarr", (1, 2), (1, 2))
    with pytest.raises(LabelError, match=r"scaled by y 2, x 2"):
        open_slide(path, nucleus="nucleus#level=1")
    with pytest.raises(LabelError, match=r"scaled by y 2, x 2"):
        open_slide(write_levels(tmp_path / "b.zarr", (1,), (2,)), nucleus="nucleus")


@pytest.mark.parametrize(
    ("image", "labels", "units", "shift"),
    [
        ([scale(1, 0.5, 0.5)], [scale(0.5, 0.5), translation(10, 15)], ("micrometer", "micrometer"), (20, 30)),
        ([scale(1, 0.5, 0.5)], [scale(500, 500), translation(10000, 15000)], ("micrometer", "nanometer"), (20, 30)),
        ([scale(1, 0.5, 0.5)], [scale(0.5, 0.5), translation(10, 15)], ("micrometer", None), (20, 30)),
        ([scale(1, 1, 1)], [scale(1, 1), translation(20, 30)], (None, None), (20, 30)),
        ([scale(1, 0.5, 0.5), translation(0, 1, 1)], [scale(0.5, 0.5), translation(1, 1)], ("micrometer",) * 2, None),
        ([scale(1, 0.5, 0.5)], [scale(1, 1)], ("micrometer", None), None),  # scale 1 of a writer without a pixel size
        ([scale(1, 0.5, 0.5)], [], ("micrometer", None), None),
    ],
)
def test_transformations_of_ome_zarr_levels(tmp_path, image, labels, units, shift):
    planes = MOVED if shift else LABELS
    slide = open_slide(write_ngff(tmp_path / "a.zarr", image, labels, units=units, planes=planes), nucleus="nucleus")
    check_cells(slide, 5 if shift else 6)
    assert bool(slide.warnings) == bool(shift)


def test_scales_of_ome_zarr_that_differ_are_an_error(tmp_path):
    path = write_ngff(tmp_path / "a.zarr", [scale(1, 0.5, 0.5)], [scale(1, 1)])
    with pytest.raises(LabelError, match="scaled by y 2, x 2"):
        open_slide(path, nucleus="nucleus")


@pytest.mark.parametrize("half", [0.0, 0.5])
def test_pyramids_of_both_conventions_are_placed_equally(tmp_path, half):
    """Levels are placed by their first corner, or by the center of their first pixel."""
    path = write(tmp_path / "a.zarr", [], [], planes=LABELS, levels=2)
    node = zarr.open_group(path)["images/image"]
    ome = copy.deepcopy(node.attrs["ome"])
    ome["multiscales"][0]["datasets"][1]["coordinateTransformations"].append(translation(0, half, half))
    node.attrs["ome"] = ome
    assert open_slide(f"{path}#level=1", nucleus="nucleus").warnings == ()


def write_slices(path, z_image, z_labels):
    """Write stacks of an image and of labels with transformations along z."""
    root = zarr.create_group(path)
    pixels = np.stack([IMAGE] * 6, axis=1)
    planes = np.stack([LABELS] * 4)
    for node, array, axes, (step, start) in (
        (root, pixels, "czyx", z_image),
        (root.create_group("labels/nucleus"), planes, "zyx", z_labels),
    ):
        write_multiscale(node, [array], axes)
        ome = copy.deepcopy(node.attrs["ome"])
        one = [1] * (array.ndim - 3)
        shift = translation(*[0] * len(one), start, 0, 0)
        ome["multiscales"][0]["datasets"][0]["coordinateTransformations"] = [scale(*one, step, 1, 1), shift]
        node.attrs["ome"] = ome
    return path


def test_the_slice_of_labels_is_that_of_the_image(tmp_path):
    equal = write_slices(tmp_path / "equal.zarr", (2, 5), (2, 5))
    check_cells(open_slide(f"{equal}#z=3", nucleus="nucleus"), 6)
    path = write_slices(tmp_path / "a.zarr", (2, 0), (2, 4))  # the labels begin at slice 2
    with pytest.raises(LabelError, match=r"slice 3 of the image is slice 1 of the labels; select it by itself, #z="):
        open_slide(f"{path}#z=3", nucleus="nucleus")
    check_cells(open_slide(f"{path}#z=3", nucleus="nucleus#z=1"), 6)
    check_cells(open_slide(f"{path}#z=max", nucleus="nucleus#z=1"), 6)
    with pytest.raises(LabelError, match=r"slice 3 of the image is slice 1\.5 of the labels"):
        open_slide(f"{write_slices(tmp_path / 'b.zarr', (1, 0), (2, 0))}#z=3", nucleus="nucleus")


def test_label_planes_of_an_image_without_placement_must_agree(tmp_path):
    path = write(tmp_path / "a.zarr", [to(IDENTITY, n_axes="cyx")], [to(SHIFT)])
    other = write(tmp_path / "b.zarr", [to(IDENTITY, n_axes="cyx")], [to(IDENTITY)])
    labels = f"{path}#label=nucleus", f"{other}#label=nucleus"
    with pytest.raises(LabelError, match=r"cytosol .* are shifted by y -20, x -30 pixels, relative to nucleus labels"):
        open_slide(IMAGE, nucleus=labels[0], cytosol=labels[1])
    assert open_slide(IMAGE, nucleus=labels[0], cytosol=labels[0]).warnings == ()


# xarray


def grid(array, y=0.0, x=0.0, step=1.0, **attrs):
    coords = {"y": y + step * np.arange(array.shape[-2]), "x": x + step * np.arange(array.shape[-1])}
    return xr.DataArray(array, dims=("c", "y", "x")[-array.ndim :], coords=coords, attrs=attrs)


def test_coordinates_of_xarray_are_compared():
    slide = open_slide(grid(IMAGE), nucleus=grid(MOVED, 20, 30))
    check_cells(slide, 5)
    assert "array begin at y 20, x 30" in slide.warnings[0]
    check_cells(open_slide(grid(IMAGE, 7, 9, 0.5), nucleus=grid(MOVED, 17, 24, 0.5)), 5)
    assert open_slide(grid(IMAGE, 3, 4), nucleus=grid(LABELS, 3, 4)).warnings == ()
    assert open_slide(grid(IMAGE), nucleus=LABELS).warnings == ()
    assert open_slide(grid(IMAGE), nucleus=xr.DataArray(LABELS, dims=("y", "x"))).warnings == ()
    assert open_slide(grid(IMAGE)[:, ::-1], nucleus=grid(LABELS)[::-1]).warnings == ()
    cutout = open_slide(grid(IMAGE), nucleus=grid(LABELS)[20:80, 30:90])
    check_cells(cutout)


@pytest.mark.parametrize(
    ("labels", "relation"),
    [
        (grid(LABELS)[::-1], "mirrored along y"),
        (grid(LABELS, step=2), "scaled by y 2, x 2"),
        (grid(LABELS, y=0.5), r"shifted by y 0\.5, x 0 pixels"),
        (grid(LABELS).assign_coords(y=np.arange(H) ** 2), "not evenly spaced along y"),
    ],
)
def test_coordinates_of_xarray_that_do_not_fit_are_an_error(labels, relation):
    with pytest.raises(LabelError, match=relation):
        open_slide(grid(IMAGE), nucleus=labels)


class Affine:
    """A transformation of spatialdata, as far as it is asked for its matrix."""

    def __init__(self, y, x):
        self.shift = y, x

    def to_affine_matrix(self, input_axes, output_axes):
        assert input_axes == output_axes == ("y", "x")
        return np.array([[1, 0, self.shift[0]], [0, 1, self.shift[1]], [0, 0, 1]])


def test_elements_of_spatialdata_in_memory_have_transformations():
    image = grid(IMAGE, 0.5, 0.5, transform={"global": Affine(0, 0)})
    check_cells(open_slide(image, nucleus=grid(MOVED, 0.5, 0.5, transform={"global": Affine(20, 30)})), 5)
    check_cells(open_slide(image, nucleus=grid(LABELS, 0.5, 0.5, transform={"global": Affine(0, 0)})), 6)
    check_cells(open_slide(image, nucleus=grid(LABELS, 0.5, 0.5, transform={"global": Affine(0, 0)})[20:, 30:]))
    with pytest.raises(LabelError, match="cannot be read"):
        open_slide(image, nucleus=grid(LABELS, transform={"global": "identity"}))


def test_channels_must_be_placed_equally():
    channels = [grid(IMAGE[0]), grid(IMAGE[0], 20, 30)]
    with pytest.raises(SourceError, match=r"shifted by y 20, x 30 pixels, relative to array; the channels of a slide"):
        open_slide(channels, nucleus=LABELS)


# Cells that are moved off the image


OUTSIDE, CUT = "outside the image, where its placement puts it", "mask touches the slide's border"


@pytest.mark.parametrize("kind", ["spatialdata", "ngff", "xarray"])
def test_cells_outside_the_image_are_dropped_with_a_reason(tmp_path, kind):
    if kind == "spatialdata":
        path = write(tmp_path / "a.zarr", [to(IDENTITY, output="cyx", n_axes="cyx")], [to(translation(30.0, 60.0))])
        given = {"image": path, "nucleus": "nucleus"}
    elif kind == "ngff":
        given = {"image": write_ngff(tmp_path / "a.zarr", [scale(1, 1, 1)], [scale(1, 1), translation(30, 60)])}
        given["nucleus"] = "nucleus"
    else:
        given = {"image": grid(IMAGE), "nucleus": grid(MOVED, 30, 60)}
    planned = gx.plan_many([given, {"image": IMAGE, "nucleus": LABELS}], tile_size=20)
    dropped = planned.cells.dropped
    inside = ShiftedRaster(open_slide(IMAGE, nucleus=MOVED).masks["nucleus"], (30, 60), (H, W)).read(0, 0, H, W)[0]
    lost = np.setdiff1d(LABELS, inside)
    assert len(lost)
    assert dropped.ids[dropped.reasons() == OUTSIDE].tolist() == lost.tolist()
    assert dropped.slide[dropped.reasons() == OUTSIDE].tolist() == [0] * len(lost)
    of_slide = planned.cells.slide == 0
    every = np.concatenate([planned.cells.ids[of_slide], dropped.ids[dropped.slide == 0]])
    assert sorted(every.tolist()) == np.unique(MOVED)[1:].tolist()


def test_cells_outside_the_image_are_in_the_file_and_the_report(tmp_path, call):
    path = write(tmp_path / "a.zarr", [to(IDENTITY, output="cyx", n_axes="cyx")], [to(translation(30.0, 60.0))])
    report = gx.extract(path, nucleus="nucleus", output=tmp_path / "a.h5sc", device="cpu", tile_size=20)
    n = report.dropped[OUTSIDE]
    assert n > 0
    assert sum(report.dropped.values()) + report.n_cells == len(np.unique(MOVED)) - 1
    for command in (["run", "-o", tmp_path / "b.h5sc"], ["plan"]):
        code, stdout, _ = call(*command, path, "--nucleus", "nucleus", "--device", "cpu", "--size", 20)
        assert code == 0
        assert OUTSIDE in stdout


def test_resampled_labels_lose_cells_for_one_reason_each():
    labels = MOVED.copy()
    labels[40, 40] = 99  # between the centers of the new pixels
    planned = gx.plan(grid(IMAGE), nucleus=grid(labels, 30, 60), pixel_size=0.25, scale=1.0, tile_size=20)
    dropped = planned.cells.dropped
    assert dropped.reasons()[dropped.ids == 99].tolist() == ["no pixel left after resampling"]
    assert OUTSIDE in dropped.reasons().tolist()
    every = np.concatenate([planned.cells.ids, dropped.ids]).tolist()
    assert sorted(every) == np.unique(labels)[1:].tolist()


# The value type


def test_trusted_placements_are_not_compared():
    image, labels = open_slide(IMAGE, nucleus=LABELS).image, open_slide(IMAGE, nucleus=LABELS).masks
    far = {"nucleus": [Placement(offset=(9.5, 0))]}
    with pytest.raises(LabelError):
        place_labels(image, [Placement()], labels, far)
    assert place_labels(image, [Placement()], labels, far, trust=["placement"]) == (dict(labels), ())


def test_relative_placements():
    assert relative(Placement(), Placement((1.009, 0.991), (0.05, -0.05))) == (0, 0)
    assert relative(Placement((0.5, 0.25), (3, 3)), Placement((0.5, 0.25), (4, 4))) == (2, 4)
    assert relative(Placement(other="bent"), Placement(other="bent")) == (0, 0)
    assert relative(Placement(), Placement(other="bent")) == "bent"
    assert "cannot be inverted" in relative(Placement((0, 1)), Placement())
    assert "cannot be inverted" in relative(Placement(), Placement((np.nan, 1)))
    assert relative_in_common([], [Placement(offset=(3, 3))]) == (0, 0)


@pytest.mark.parametrize("shift", [(0, 0), (5, -7), (-95, 127), (-200, 3)])
def test_a_shifted_raster_equals_a_padded_array(shift):
    raster = open_slide(IMAGE, nucleus=LABELS).masks["nucleus"]
    shifted = ShiftedRaster(raster, shift, (H, W))
    y, x = np.mgrid[:H, :W] - np.array(shift)[:, None, None]
    inside = (y >= 0) & (y < H) & (x >= 0) & (x < W)
    expected = np.where(inside, LABELS[np.clip(y, 0, H - 1), np.clip(x, 0, W - 1)], 0)
    for box in ((0, 0, H, W), (3, 4, 50, 60), (90, 100, 96, 128)):
        np.testing.assert_array_equal(shifted.read(*box)[0], expected[box[0] : box[2], box[1] : box[3]])
