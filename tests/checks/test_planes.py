"""Label planes that are none, or whose ids are not those of cells, are refused; single doubtful cells are told of."""

import re

import numpy as np
import pytest
import scipy.ndimage
from made.mistakes import checked, disks, ht29_planes, moved, refusal, round_cells, without
from made.slides import as_slide, small_slide
from skimage.measure import label
from skimage.segmentation import expand_labels, find_boundaries

from gpu_extract import LabelError

IMAGE, NUCLEUS, CYTOSOL = ht29_planes()


def refused(labels, plane="cytosol", image=IMAGE, **choices):
    """The error of one label plane."""
    planes = (labels, None) if plane == "nucleus" else (None, labels)
    error, warnings = refusal(image, *planes, **choices)
    assert error, warnings
    assert "\n" not in error
    return error


def warned(labels, image=IMAGE, **choices):
    """The only warning of one label plane."""
    warnings, _, _ = checked(as_slide(image, None, labels), **choices)
    assert len(warnings) == 1, warnings
    return warnings[0]


def assert_names(error, *parts, trust):
    for part in (*parts, f'--trust {trust} (trust="{trust}")'):
        assert part in error, error


# Masks


@pytest.mark.parametrize(("value", "dtype"), [(1, np.uint8), (255, np.uint8), (65535, np.uint16), (7, np.int32)])
def test_a_mask_of_one_value_is_refused(value, dtype):
    for plane, labels, n in ((NUCLEUS, NUCLEUS, 252), (None, round_cells()[1], 6)):
        mask = np.where(labels > 0, value, 0).astype(dtype)
        image = IMAGE if plane is not None else round_cells()[0]
        n_components = label(mask, connectivity=2).max()
        error = refused(mask, image=image)
        assert_names(error, f"id {value} has {n} components", "skimage.measure.label", trust="binary")
        assert n == n_components or plane is not None  # specks are not counted


def test_the_remedy_works():
    mask = (round_cells()[1] > 0).astype(np.uint8)
    assert refusal(round_cells()[0], label(mask).astype(np.uint16)) == ("", ())


@pytest.mark.parametrize("n", [3, 4, 5, 9, 29])
def test_a_mask_of_few_objects_is_refused(n):
    mask = disks(n) if n < 20 else disks(n, radius=12)
    error = refused(mask * np.uint8(255), image=np.zeros((1, *mask.shape), np.uint16))
    assert_names(error, "are a mask, not labels", trust="binary")


def test_a_mask_of_two_objects_may_be_a_cell_in_two_parts():
    mask = disks(2)
    line = warned(mask, image=np.zeros((1, *mask.shape), np.uint16))
    assert "id 1 has 2 far-apart components" in line
    assert "--pieces largest" in line
    slides = [as_slide(np.zeros((1, *mask.shape), np.uint16), disks(2, seed=seed)) for seed in range(12)]
    with pytest.raises(LabelError, match=r"id 1 has 2 far-apart components .*number the objects first.*--trust binary"):
        checked(slides)


def test_a_mask_of_touching_cells_is_refused():
    error = refused((CYTOSOL > 0).astype(np.uint8))
    assert_names(error, "covers 55% of the slide", "gaps in it", trust="binary")
    error, _ = refusal(IMAGE, NUCLEUS, (CYTOSOL > 0).astype(np.uint8))
    assert_names(error, "cytosol labels array are a mask", trust="binary")


def test_a_large_mask_is_refused_by_windows_at_its_ends():
    cells = np.tile(round_cells()[1], (14, 11))  # 1344 x 1408 pixels, 924 cells
    error = refused((cells > 0).astype(np.uint8), image=np.zeros((1, *cells.shape), np.uint8))
    assert_names(error, "id 1 has 924 components", trust="binary")


@pytest.mark.parametrize("values", [(0, 1, 2), (1, 2, 3), (0, 128, 255), (5, 10, 200)])
def test_classes_of_pixels_are_refused(values):
    classes = np.where(NUCLEUS > 0, values[2], np.where(CYTOSOL > 0, values[1], values[0])).astype(np.uint8)
    assert_names(refused(classes), "are classes of pixels, not labels of cells", trust="binary")


@pytest.mark.parametrize(("n", "trust"), [(5, "binary"), (15, "ids")])
def test_types_of_cells_are_refused(n, trust):
    types = np.where(CYTOSOL > 0, CYTOSOL % n + 1, 0).astype(np.uint8)
    assert_names(refused(types), "ids 1, 2, 3, ...", trust=trust)


def test_outlines_of_cells_are_refused():
    outlines = scipy.ndimage.morphological_gradient(CYTOSOL, 3) > 0
    assert_names(refused(outlines.astype(np.uint8)), "mask", trust="binary")


def test_a_background_that_is_not_0_is_refused():
    for plane in (NUCLEUS, CYTOSOL):
        error = refused(np.where(plane == 0, 1, plane + 1).astype(np.uint16))
        assert_names(error, "id 1 covers", "around 316 of the 316 others", "set id 1 to 0", trust="binary")
        assert_names(refused(np.where(plane == 0, 400, plane).astype(np.uint16)), "set id 400 to 0", trust="binary")
    image, nucleus, _ = round_cells()
    assert_names(refused(nucleus + np.uint16(1), image=image), "set id 1 to 0", trust="binary")
    one = np.where(nucleus == 1, 2, 1).astype(np.uint8)
    assert_names(refused(one, image=image), "set id 1 to 0", trust="binary")


# Ids


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_ids_that_begin_anew_after_255_are_refused(dtype):
    error = refused(NUCLEUS.astype(np.uint8).astype(dtype))
    assert_names(error, "begin anew after id 255", "60 of 255 ids", "uint32", trust="ids")


def test_one_id_too_many_is_enough():
    ids, labels = np.unique(without(NUCLEUS, np.arange(258, 400)), return_inverse=True)
    assert len(ids) - 1 == 257
    error = refused(labels.reshape(NUCLEUS.shape).astype(np.uint8))
    assert_names(error, "begin anew after id 255", "id 1 has 2 far-apart components", trust="ids")


def test_ids_that_were_cut_off_at_255_are_refused():
    assert_names(refused(np.minimum(NUCLEUS, 255).astype(np.uint8)), "were cut off at 255", "uint32", trust="ids")
    assert_names(refused(np.minimum(CYTOSOL, 255).astype(np.uint8)), "were cut off at 255", "uint32", trust="ids")


def test_16_bits_are_too_few_for_a_large_slide():
    rows, columns = 260, 260
    labels = np.zeros((rows * 6, columns * 6), np.uint32)
    for y in range(4):
        for x in range(4):
            labels[y::6, x::6] = np.arange(1, rows * columns + 1).reshape(rows, columns)
    image = np.zeros((1, *labels.shape), np.uint8)
    assert refusal(image, labels) == ("", ())
    assert_names(refused(labels.astype(np.uint16), image=image), "begin anew after id 65535", trust="ids")
    assert_names(refused(np.minimum(labels, 65535).astype(np.uint16), image=image), "cut off at 65535", trust="ids")


def test_an_id_that_says_ignore_is_refused():
    some = np.random.default_rng(0).choice(np.arange(1, 317), 20, replace=False)
    labels = np.where(np.isin(NUCLEUS, some), 65535, NUCLEUS).astype(np.uint16)
    assert_names(refused(labels), "an id that is no cell's, 65535", "set it to 0", trust="ids")


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int32])
def test_ids_with_swapped_bytes_are_told_of(dtype):
    few = np.where(NUCLEUS < 120, NUCLEUS, 0).astype(dtype)  # signed ids stay positive
    assert "have ids whose bytes are in the wrong order (ids 256, " in warned(few.byteswap()) or dtype != np.uint16
    assert "bytes are in the wrong order" in warned(few.byteswap())
    sparse = few.astype(np.uint64) * 2**40 + 7 * (few > 0).astype(np.uint64)
    assert refusal(IMAGE, sparse) == ("", ())


def test_255_cells_are_no_mistake():
    ids, labels = np.unique(without(NUCLEUS, np.arange(256, 400)), return_inverse=True)
    assert len(ids) - 1 == 255
    assert refusal(IMAGE, labels.reshape(NUCLEUS.shape).astype(np.uint8)) == ("", ())


def test_ids_that_begin_anew_in_each_tile_are_refused():
    labels = np.zeros_like(CYTOSOL)
    for y in (0, 256):
        for x in (0, 256):
            tile = CYTOSOL[y : y + 256, x : x + 256]
            labels[y : y + 256, x : x + 256] = np.unique(tile, return_inverse=True)[1].reshape(tile.shape)
    assert_names(refused(labels), "of 150 ids have far-apart components", "through all tiles", trust="ids")


def test_labels_that_were_resized_with_interpolation_are_refused():
    larger = scipy.ndimage.zoom(CYTOSOL[:256, :256].astype(float), 2, order=1).astype(np.uint16)
    assert_names(refused(larger), "far-apart components", "nearest neighbour", trust="ids")


def test_single_ids_in_far_apart_components_are_told_of():
    labels = CYTOSOL.copy()
    labels[5, 5], labels[500, 3:6] = 200, 100
    line = warned(labels)
    assert "2 of 316 ids have far-apart components (ids 100, 200)" in line
    assert "--pieces largest" in line
    assert checked(as_slide(IMAGE, None, labels))[2] == [100, 200]
    assert checked(as_slide(IMAGE, None, labels), pieces="largest")[0] == ()


def test_many_stray_pixels_are_refused_unless_they_are_dropped():
    labels = np.where(CYTOSOL % 5 == 0, CYTOSOL, 0)
    for n, cell_id in enumerate(np.unique(labels)[1:].tolist()):
        y, x = np.argwhere(labels == cell_id)[0]
        labels[(y + 250) % 512, (x + 240 + n) % 512] = cell_id
    assert_names(refused(labels), "stray pixels far from their cell", "--pieces largest", trust="ids")
    assert "stray pixels" in warned(labels, pieces="largest")


# Images


@pytest.mark.parametrize("channel", [0, 1, 2])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_an_image_is_refused(channel, dtype):
    image = IMAGE[channel].astype(dtype) * (1 if dtype == np.uint8 else 100)
    error = refused(image.astype(dtype))
    assert_names(error, "are an image, not labels", "give a plane in which", trust="planes")


def test_an_image_of_16_bits_in_which_most_values_occur_once_is_refused():
    image = np.random.default_rng(0).integers(0, 65536, (200, 200)).astype(np.uint16)
    assert_names(refused(image, image=image[None]), "are an image, not labels", trust="planes")


def test_an_image_without_background_light_is_refused():
    image = np.where(CYTOSOL > 0, IMAGE[2], 0)
    assert_names(refused(image), "are an image, not labels", trust="planes")


def test_arguments_in_the_other_order_are_refused():
    error = refused(IMAGE[0], image=CYTOSOL[np.newaxis])
    assert_names(error, "image array looks like labels: give the two in the other order", trust="planes")


def test_distances_and_lossy_labels_are_refused():
    distances = scipy.ndimage.distance_transform_edt(CYTOSOL > 0).astype(np.uint8)
    assert_names(refused(distances), "are an image", trust="planes")
    noise = np.random.default_rng(0).integers(-3, 4, NUCLEUS.shape)
    lossy = np.where(scipy.ndimage.grey_dilation(NUCLEUS, 5) > 0, np.clip(NUCLEUS + noise, 0, None), 0)
    assert_names(refused(lossy.astype(np.uint16)), "are an image", "saved without loss", trust="planes")


def test_points_are_told_of():
    points = np.zeros_like(CYTOSOL)
    y, x = np.random.default_rng(0).integers(2, 510, (2, 100))
    points[y, x] = np.arange(1, 101)
    assert "median area of 1 pixels; give the segmentation" in warned(points)


# Labels of other sizes and shapes than cells have


@pytest.mark.parametrize("radius", [60, 140])
def test_a_label_a_hundred_times_as_large_as_the_others_is_told_of(radius):
    y, x = np.mgrid[:512, :512]
    labels = np.where((np.hypot(y - 256, x - 256) < radius) & (NUCLEUS == 0), 999, NUCLEUS)
    line = warned(labels)
    assert re.search(r"have an id that is hardly a cell: id 999 covers \d+% of the slide, \d+ times the area", line)
    assert "set id 999 to 0 if it is none" in line
    labels[60:460, 60:460] = 999
    assert "id 999 covers 61% of the slide, 2013 times the area of the median one" in warned(labels)


def test_tissue_around_the_cells_is_refused():
    y, x = np.mgrid[:512, :512]
    labels = np.where((np.hypot(y - 256, x - 256) < 220) & (NUCLEUS == 0), 999, NUCLEUS)
    assert_names(refused(labels), "id 999 covers 52% of the slide, with 130 gaps in it", trust="binary")


def test_nuclei_that_cover_the_slide_are_told_of():
    grown = expand_labels(NUCLEUS, 30)
    assert "cover 84% of the slide, as nuclei do not; if they are whole cells, give them as cytosol" in "".join(
        refusal(IMAGE, grown)[1]
    )
    assert refusal(IMAGE, None, grown) == ("", ())


def test_outlines_of_cells_with_ids_are_told_of():
    line = warned(NUCLEUS * find_boundaries(NUCLEUS, mode="inner"))
    assert "are outlines of cells, with holes where cells are; fill them" in line
    assert "are an image" in refused(CYTOSOL * find_boundaries(CYTOSOL, mode="inner"))
    rings = np.where(scipy.ndimage.grey_erosion(CYTOSOL, 7) > 0, 0, CYTOSOL)  # cytoplasm without nuclei
    assert "outlines" not in "".join(checked(as_slide(IMAGE, None, rings))[0])


# Labels that straight lines cut


def in_tiles(labels, side):
    """Labels as if each tile had been segmented by itself and numbered on."""
    cut, last = np.zeros_like(labels), 0
    for y in range(0, labels.shape[0], side):
        for x in range(0, labels.shape[1], side):
            tile = labels[y : y + side, x : x + side]
            ids, own = np.unique(tile, return_inverse=True)
            cut[y : y + side, x : x + side] = np.where(tile > 0, own.reshape(tile.shape) + last, 0)
            last += len(ids)
    return cut


@pytest.mark.parametrize("side", [128, 256])
def test_tiles_that_were_segmented_apart_are_told_of(side):
    line = warned(in_tiles(CYTOSOL, side))
    assert re.search(r"are cut at [yx] \d+.*, and other ids begin there: one cell has two ids; segment over", line)
    for seam in re.findall(r"[yx] (\d+)", line):
        assert int(seam) % side == 0
    assert "y 256" in line or "x 256" in line or side == 128


def test_labels_of_a_part_of_the_slide_are_told_of_where_cells_are_cut():
    labels = CYTOSOL.copy()
    labels[300:] = 0
    assert "are cut at y 300, where the area ends that was segmented" in warned(labels)
    whole = np.where(np.isin(CYTOSOL, CYTOSOL[300:]), 0, CYTOSOL)
    assert refusal(IMAGE, None, whole) == ("", ())


def test_cells_in_a_grid_pass():
    y, x = np.mgrid[:400, :400]
    for gap in (0, 3):
        squares = np.where((y % 20 >= gap) & (x % 20 >= gap), y // 20 * 20 + x // 20 + 1, 0)
        assert refusal(np.zeros((1, 400, 400), np.uint8), None, squares) == ("", ())


# What passes


def test_lobes_holes_and_split_cells_pass():
    image, nucleus, cytosol = round_cells()
    lobes = nucleus.copy()
    lobes[:, ::4] = np.where(lobes[:, ::4] == 3, 0, lobes[:, ::4])  # one of six in four stripes
    assert refusal(image, lobes, cytosol) == ("", ())
    cut = nucleus.copy()
    cut[20], cut[:, 20] = 0, 0
    assert refusal(image, cut, cytosol) == ("", ())
    one = np.where(nucleus == 5, 1, 0).astype(np.uint8)
    assert refusal(image, one) == ("", ())


def test_a_cell_that_the_border_cuts_in_two_passes():
    horseshoe = np.zeros((40, 120), np.uint8)
    horseshoe[10:30, 5:115] = 1
    horseshoe[14:, 15:105] = 0
    horseshoe[14:20, 60:62] = 2
    assert refusal(np.zeros((1, 26, 120), np.uint8), horseshoe[14:].copy()) == ("", ())


def test_long_cells_pass():
    image, labels = np.zeros((1, 300, 300), np.uint8), np.zeros((300, 300), np.uint16)
    y, x = np.mgrid[:300, :300]
    for n in range(20):
        labels[(np.abs(y + x - 40 - 25 * n) < 3) & (np.abs(y - x) < 20 + 5 * n)] = n + 1
    assert refusal(image, labels) == ("", ())
    assert refusal(image, np.where(labels <= 5, labels, 0)) == ("", ())


def test_what_is_accepted_is_a_warning_and_recorded():
    mask = (NUCLEUS > 0).astype(np.uint8)
    warnings, trusted, unsure = checked(as_slide(IMAGE, mask), trust=["binary"])
    assert warnings == (
        "nucleus labels array are a mask, not labels: id 1 has 252 components "
        '(accepted by --trust binary, trust="binary")',
    )
    assert trusted == ("binary: nucleus labels array are a mask, not labels: id 1 has 252 components",)
    assert unsure == [1]
    with pytest.raises(LabelError):
        checked(as_slide(IMAGE, mask), trust=["ids", "planes", "placement"])


@pytest.mark.parametrize("seed", range(4))
def test_honest_slides_of_any_size_pass(seed):
    rng = np.random.default_rng(seed)
    for _ in range(60):
        size = tuple(rng.integers(20, 220, 2).tolist())
        n = int(rng.integers(1, min(60, size[0] * size[1] // 150) + 1))
        ids = np.cumsum(rng.integers(1, 9, n)).tolist()
        image, nucleus, cytosol = small_slide(int(rng.integers(1 << 30)), size, ids=ids, channels=2)
        if nucleus.any():
            for planes in ((nucleus, cytosol), (nucleus, None), (None, cytosol)):
                assert refusal(image, *planes) == ("", ()), (size, n)


def test_single_cells_pass():
    slides = []
    for cell_id in range(1, 317, 3):
        y, x = np.nonzero(cell_id == CYTOSOL)
        box = np.s_[max(y.min() - 3, 0) : y.max() + 4, max(x.min() - 3, 0) : x.max() + 4]
        nucleus, cytosol = ((plane[box] == cell_id).astype(np.uint8) for plane in (NUCLEUS, CYTOSOL))
        slides.append(as_slide(IMAGE[:, *box], nucleus, cytosol))
        assert checked(slides[-1])[0] == ()
    assert checked(slides)[0] == ()


def test_moving_keeps_what_stays():
    plane = np.arange(12).reshape(3, 4)
    assert moved(plane, 1, -2).tolist() == [[0, 0, 0, 0], [2, 3, 0, 0], [6, 7, 0, 0]]
