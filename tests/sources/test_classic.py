"""Classic SPARCSpy projects as input."""

import h5py
import numpy as np
import pytest
from made.classic_files import (
    CYTOSOL,
    ID_STEP,
    IMAGE,
    N_TIMES,
    NUCLEUS,
    listed_ids,
    time_points,
    write_classes,
    write_segmentation,
    write_time_course,
)

import gpu_extract as gx
from gpu_extract.errors import GpuExtractError, InputError, SourceError
from gpu_extract.sources import open_image, open_labels, open_slide, open_slides

BOX = (13, 5, 117, 150)


def crop(array):
    y0, x0, y1, x1 = BOX
    return array[..., y0:y1, x0:x1]


def assert_holds(slide, image, *labels):
    window = slide.read(BOX)
    np.testing.assert_array_equal(window.image, crop(image))
    for found, expected in zip(window.labels, labels, strict=True):
        np.testing.assert_array_equal(found, crop(expected))


def test_a_segmentation_needs_no_label_option(tmp_path):
    path = write_segmentation(tmp_path / "any.name")
    for given in (path, str(path), [path]):
        slide = open_slide(given)
        assert (slide.mask_names, slide.name, dict(slide.metadata)) == (("nucleus", "cytosol"), "any", {})
        assert slide.ids is None
        assert_holds(slide, IMAGE, NUCLEUS, CYTOSOL)
    # The sources stored in a file of cells can be opened again.
    np.testing.assert_array_equal(open_image(slide.image.source).read(*BOX), crop(IMAGE))
    cytosol = open_labels(slide.masks["cytosol"].source, "cytosol")
    np.testing.assert_array_equal(cytosol.read(*BOX)[0], crop(CYTOSOL))


def test_one_label_plane_is_the_nucleus(tmp_path):
    slide = open_slide(write_segmentation(tmp_path / "a.h5", labels=[CYTOSOL]))
    assert slide.mask_names == ("nucleus",)
    assert_holds(slide, IMAGE, CYTOSOL)


def test_the_user_chooses_among_more_than_two_label_planes(tmp_path):
    path = write_segmentation(tmp_path / "a.h5", labels=[NUCLEUS, CYTOSOL, CYTOSOL + 1])
    with pytest.raises(
        SourceError, match=r"has 3 label planes; choose by nucleus=, for example --nucleus .*a\.h5:/labels#c=0$"
    ) as caught:
        open_slide(path)
    remedy = str(caught.value).split("--nucleus ")[1]
    assert_holds(open_slide(path, nucleus=remedy), IMAGE, NUCLEUS)


def test_channels_are_selected_and_ordered(tmp_path):
    path = write_segmentation(tmp_path / "a.h5")
    assert_holds(open_slide(f"{path}#c=2,0"), IMAGE[[2, 0]], NUCLEUS, CYTOSOL)


def test_other_labels_can_be_given(tmp_path):
    path = write_segmentation(tmp_path / "a.h5")
    slide = open_slide(path, cytosol=NUCLEUS)
    assert slide.mask_names == ("cytosol",)
    assert_holds(slide, IMAGE, NUCLEUS)


def test_each_time_point_of_a_time_course_is_a_slide(tmp_path):
    slides = open_slides(write_time_course(tmp_path / "course.h5"))
    images, labels = time_points()
    assert [slide.name for slide in slides] == ["course_t0", "course_t1", "course_t2"]
    for t, slide in enumerate(slides):
        assert_holds(slide, images[t], *labels[t])
        assert dict(slide.metadata) == {"ID": f"tile_{t:03}", "timepoint": f"t{t:03}", "well": "Row01_Wéll01"}
        assert slide.ids.tolist() == listed_ids(labels)[t].tolist()
        np.testing.assert_array_equal(open_image(slide.image.source).read(*BOX), crop(images[t]))


def test_one_time_point_of_a_time_course_is_selected(tmp_path):
    path = write_time_course(tmp_path / "course.h5")
    images, labels = time_points()
    for open_one in (open_slide, lambda text: open_slides(text)[0]):
        slide = open_one(f"{path}#t=2,c=1")
        assert_holds(slide, images[2, [1]], *labels[2])
        assert slide.metadata["timepoint"] == "t002"
        assert slide.ids.tolist() == listed_ids(labels)[2].tolist()
    with pytest.raises(SourceError, match="has 3 time points; add #t=0 to #t=2"):
        open_slide(path)
    with pytest.raises(SourceError, match="t= can be 0 to 2"):
        open_slides(f"{path}#t=3")


def test_a_time_course_of_one_time_point(tmp_path):
    (slide,) = open_slides(write_time_course(tmp_path / "course.h5", 1))
    assert (slide.name, slide.metadata["ID"]) == ("course", "tile_000")
    assert slide.ids is not None


def test_rows_of_labels_are_found_by_their_index(tmp_path):
    rows = [["2", "c"], ["0", "a"], ["1", "b"]]
    path = write_time_course(tmp_path / "a.h5", labels=rows, label_names=np.array(["index", "well"], "S13"))
    assert [dict(slide.metadata) for slide in open_slides(path)] == [{"well": "a"}, {"well": "b"}, {"well": "c"}]


def test_without_tables_time_points_are_numbered_and_all_cells_kept(tmp_path):
    slides = open_slides(write_time_course(tmp_path / "a.h5", labels=None, label_names=None, classes=None))
    assert [dict(slide.metadata) for slide in slides] == [{"timepoint": str(t)} for t in range(N_TIMES)]
    assert [slide.ids for slide in slides] == [None] * N_TIMES


def test_cells_that_are_not_in_classes_are_dropped_with_a_reason(tmp_path):
    path = write_time_course(tmp_path / "a.h5")
    _, labels = time_points()
    listed = listed_ids(labels)
    plan = gx.plan(path, tile_size=8, border="keep")
    assert plan.cells.ids.tolist() == np.concatenate(listed).tolist()
    not_listed = plan.cells.dropped.reasons() == "not in the slide's list of ids"
    assert 0 < len(np.unique(labels)) - 1 - len(plan.cells) == not_listed.sum()
    # classes.csv chooses among them
    some = [int(listed[0][2]), int(listed[2][0])]
    chosen = gx.plan(path, tile_size=8, border="keep", ids=some).cells
    assert chosen.ids.tolist() == some
    assert chosen.slide.tolist() == [0, 2]


def test_classes_apply_to_their_own_time_point_only(tmp_path):
    _, labels = time_points()
    listed = listed_ids(labels)
    swapped = [listed[1], listed[0], listed[2]]
    plan = gx.plan(write_time_course(tmp_path / "a.h5", classes=swapped), tile_size=8, border="keep")
    assert plan.cells.ids.tolist() == listed[2].tolist()
    assert (plan.cells.ids > 2 * ID_STEP).all()


def test_time_points_without_cells_are_omitted_with_a_warning(tmp_path):
    _, labels = time_points()
    classes = listed_ids(labels)
    classes[1] = np.array([0], np.uint64)  # the background, which SPARCSpy may list
    tables = {
        "labels": [["0", "a"], ["", ""], ["2", "c"]],
        "label_names": np.array(["index", "well"], "S13"),
        "classes": classes,
    }
    path = write_time_course(tmp_path / "a.h5", empty=[1], **tables)
    plan = gx.plan(path, tile_size=8)
    assert [slide.metadata["well"] for slide in plan.slides] == ["a", "c"]
    assert plan.warnings == (f"time points of {path} without any cell are omitted: 1",)
    with pytest.raises(SourceError, match="has no cell in its labels and classes; segment the images first"):
        open_slides(f"{path}#t=1")


def test_cells_of_a_time_point_with_empty_classes_are_dropped_with_a_reason(tmp_path):
    _, labels = time_points()
    classes = listed_ids(labels)
    classes[1] = []
    plan = gx.plan(write_time_course(tmp_path / "a.h5", classes=classes), tile_size=8)
    dropped = plan.cells.dropped
    assert dropped.ids[dropped.slide == 1].tolist() == np.unique(labels[1])[1:].tolist()
    assert set(dropped.reasons()[dropped.slide == 1]) == {"not in the slide's list of ids"}
    n = np.count_nonzero(dropped.slide == 1)
    assert plan.warnings == (f"1 slide has no cell: a_t1 (all {n} dropped)",)


def test_absent_time_points_are_empty_with_missing_fill(tmp_path):
    _, labels = time_points()
    classes = listed_ids(labels)
    classes[1] = []
    path = write_time_course(tmp_path / "a.h5", classes=classes)
    with h5py.File(path, "a") as h5:
        for name in ("input_images", "segmentation"):
            planes = h5.pop(name)[:]
            stored = h5.create_dataset(name, planes.shape, planes.dtype, chunks=(1, 1, *planes.shape[2:]))
            stored[0], stored[2] = planes[0], planes[2]
    with pytest.raises(SourceError, match=r"lacks 3 of its chunks, which would read as 0; .* #missing=fill"):
        open_slides(path)
    slides = open_slides(f"{path}#missing=fill")
    assert [slide.metadata["timepoint"] for slide in slides] == ["t000", "t002"]
    assert_holds(slides[1], time_points()[0][2], *labels[2])


def test_classes_do_not_apply_to_other_labels(tmp_path):
    path = write_time_course(tmp_path / "a.h5", classes=[[], [], [7]])
    slides = open_slides(path, nucleus=f"{path}:/segmentation#c=1")
    assert [slide.ids for slide in slides] == [None] * N_TIMES
    assert slides[1].metadata["ID"] == "tile_001"
    assert_holds(slides[1], time_points()[0][1], time_points()[1][1, 1])


@pytest.mark.parametrize("within", ["", "segmentation"])
def test_the_folder_of_a_project_with_classes(tmp_path, within):
    folder = tmp_path / "project" / within
    folder.mkdir(parents=True)
    write_segmentation(folder / "segmentation.h5")
    assert open_slide(tmp_path / "project").ids is None
    write_classes(folder / "classes.csv", [0, 7, 4.0, 99])
    slide = open_slide(f"{tmp_path}/project/")
    assert (slide.name, slide.ids.tolist()) == ("project", [4, 7, 99])
    assert_holds(slide, IMAGE, NUCLEUS, CYTOSOL)
    plan = gx.plan(tmp_path / "project", tile_size=8, border="keep")
    assert plan.cells.ids.tolist() == [4, 7]
    assert plan.warnings == (
        f"only the 3 ids in {folder / 'classes.csv'} are extracted; give {folder / 'segmentation.h5'} itself for all",
    )
    assert open_slide(folder / "segmentation.h5").ids is None
    assert open_slide(tmp_path / "project", nucleus=NUCLEUS).ids is None


def test_the_folder_of_a_time_course_keeps_ids_that_are_in_both_lists(tmp_path):
    write_time_course(tmp_path / "input_segmentation.h5")
    listed = listed_ids(time_points()[1])
    write_classes(tmp_path / "classes.csv", [*listed[0][:2], *listed[1], 299])
    slides = open_slides(f"{tmp_path}#c=1,0")
    assert [slide.ids.tolist() for slide in slides] == [listed[0][:2].tolist(), listed[1].tolist(), []]


def test_a_folder_with_two_projects_is_refused(tmp_path):
    write_time_course(tmp_path / "input_segmentation.h5")
    (tmp_path / "segmentation").mkdir()
    write_segmentation(tmp_path / "segmentation" / "segmentation.h5")
    with pytest.raises(SourceError, match=r"with several projects: .*input_segmentation\.h5, .*; give one of them"):
        open_slides(tmp_path)


def test_a_float16_image_raises_a_warning(tmp_path):
    path = write_segmentation(tmp_path / "a.h5", np.minimum(IMAGE, 60000).astype(np.float16))
    (warning,) = gx.plan(path, tile_size=8).warnings
    assert warning.startswith(f"{path} holds its image as float16")
    assert "above 2,048 are rounded" in warning
    image = IMAGE.astype(np.float16)
    image[1, 5, 7] = np.inf
    with pytest.raises(InputError, match=r"1 in channel ch1, the first at y 5, x 7.*65,520 and more infinite: save it"):
        list(gx.iter_cells(write_segmentation(path, image), tile_size=8, device="cpu"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [["0", "a"]]}, r"has labels of shape \(1, 2\) for 3 images"),
        ({"labels": [["0", "a"]] * 3}, r"has label_names of shape \(4,\) for labels of shape \(3, 2\)"),
        ({"label_names": np.zeros((4, 2), "S3")}, r"has label_names of shape \(4, 2\)"),
        ({"label_names": np.array([b"index", b"a", b"b", b"a"])}, "label_names that are not all different: index, a"),
        ({"label_names": np.array([b"index", b"a", b"b", b"\xff"])}, "has labels that are not text: 'utf-8' codec"),
        ({"labels": [["0", "a", "b", "c"]] * 3}, "labels of the image '0'; their first column must hold"),
        ({"labels": [[str(t + 1), "a", "b", "c"] for t in range(3)]}, "labels of the image '3'; .* 0 to 2, each once"),
        ({"labels": [["0", "", "", ""], ["", "", "", ""], ["2", "", "", ""]]}, "no row for image 1 in its labels; add"),
        ({"classes": [[1]]}, r"has classes of shape \(1,\) for 3 images"),
    ],
)
def test_tables_that_do_not_match_the_images_are_refused(tmp_path, changes, message):
    path = write_time_course(tmp_path / "a.h5", **changes)
    with pytest.raises(SourceError, match=message) as caught:
        open_slides(path)
    assert str(caught.value).startswith(f"image {path} ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ids", [[[3, -1]] * 3, [[3, 1.5]] * 3, [[3, np.nan]] * 3, np.array([[b"3"]] * 3)])
def test_invalid_ids_in_classes_are_refused(tmp_path, ids):
    path = write_time_course(tmp_path / "a.h5", classes=None)
    with h5py.File(path, "a") as h5:
        h5["classes"] = ids
    with pytest.raises(SourceError, match="classes"):
        open_slides(path)


def test_classes_may_be_a_padded_array(tmp_path):
    path = write_time_course(tmp_path / "a.h5", classes=None)
    with h5py.File(path, "a") as h5:
        h5["classes"] = np.array([[3, 0, 0], [101, 105, 0], [201, 202, 207]], np.float64)
    assert [slide.ids.tolist() for slide in open_slides(path)] == [[3], [101, 105], [201, 202, 207]]


@pytest.mark.parametrize("name", ["labels", "label_names", "classes", "segmentation"])
def test_tables_in_other_files_are_not_opened(tmp_path, name):
    path = write_time_course(tmp_path / "a.h5")
    write_time_course(tmp_path / "other.h5")
    with h5py.File(path, "a") as h5:
        del h5[name]
        h5[name] = h5py.ExternalLink(str(tmp_path / "other.h5"), f"/{name}")
    # Without its labels the file is an image.
    message = "no label plane was given" if name == "segmentation" else f"has a link or a group at {name}; copy"
    with pytest.raises(InputError, match=message):
        open_slides(path)


@pytest.mark.parametrize("seed", range(40))
def test_damaged_projects_raise_errors_of_this_package(tmp_path, seed):
    path = tmp_path / "a.h5"
    write = write_time_course if seed % 2 else write_segmentation
    damaged = bytearray(write(path).read_bytes())
    rng = np.random.default_rng(seed)
    for position in rng.integers(8, len(damaged) if seed % 4 > 1 else 4000, 5):
        damaged[position] ^= 1 << rng.integers(8)
    path.write_bytes(damaged[: len(damaged) - (seed % 8 < 2) * 900])
    try:
        for slide in open_slides(path):
            slide.read((0, 0, min(slide.size[0], 200), min(slide.size[1], 200)))
    except GpuExtractError as error:
        message = str(error)
        assert "\n" not in message
