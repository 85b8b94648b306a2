"""Nuclei and cytosols that are not of one cell, or in each other's place, are refused; a few of them are told of."""

import numpy as np
import pytest
import scipy.ndimage
from made.mistakes import checked, ht29_planes, moved, numbered_anew, refusal, round_cells, without
from made.slides import SHARED, as_slide, needs_shared, small_slide

from gpu_extract import LabelError

IMAGE, NUCLEUS, CYTOSOL = ht29_planes()
# The project's case: three nuclei were not found, and each plane was numbered by itself.
APART = numbered_anew(without(NUCLEUS, [50, 120, 200])), numbered_anew(CYTOSOL)

ON_HT29 = {
    "upside down": lambda plane: plane[::-1],
    "mirrored left to right": lambda plane: plane[:, ::-1],
    "turned by 180 degrees": lambda plane: plane[::-1, ::-1],
    "transposed": lambda plane: plane.T,
    "turned by 90 degrees": lambda plane: np.rot90(plane, -1),
    "turned by -90 degrees": np.rot90,
    "transposed and turned by 180 degrees": lambda plane: plane[::-1, ::-1].T,
}


def apart_ids(nucleus, cytosol):
    """The ids whose masks share no pixel, or fewer than the nucleus with others; and how many pairs there are."""
    found, ids = [], np.intersect1d(nucleus[nucleus > 0], cytosol[cytosol > 0]).tolist()
    for cell_id in ids:
        on = cytosol[nucleus == cell_id]
        n_on, n_elsewhere = np.count_nonzero(on == cell_id), np.count_nonzero((on != cell_id) & (on != 0))
        if n_on == 0 or n_elsewhere > n_on:
            found.append(cell_id)
    return found, len(ids)


def refused(nucleus, cytosol, image=IMAGE, **choices):
    error, warnings = refusal(image, nucleus, cytosol, **choices)
    assert error, warnings
    assert "\n" not in error
    return error


def warned(nucleus, cytosol, image=IMAGE, **choices):
    error, warnings = refusal(image, nucleus, cytosol, **choices)
    assert (error, len(warnings)) == ("", 1), (error, warnings)
    return warnings[0]


# Numbered apart


def test_planes_that_were_numbered_apart_are_refused():
    apart, n = apart_ids(*APART)
    assert len(apart) > 220
    error = refused(*APART)
    assert f"in {len(apart)} of {n} cells" in error
    assert 'pair them by their pixels with --match overlap (Recipe(match="overlap"))' in error
    assert '--trust ids (trust="ids")' in error


def test_the_remedy_works():
    assert refusal(IMAGE, *APART, match="overlap") == ("", ())


def test_what_is_accepted_is_a_warning_and_recorded():
    warnings, trusted, unsure = checked(as_slide(IMAGE, *APART), trust=["ids"])
    assert len(warnings) == 1
    assert warnings[0].endswith('(accepted by --trust ids, trust="ids")')
    assert trusted == ("ids: " + warnings[0].removesuffix(' (accepted by --trust ids, trust="ids")'),)
    assert unsure == apart_ids(*APART)[0]


def test_six_cells_in_another_order_are_refused():
    image, nucleus, cytosol = round_cells()
    own = np.concatenate([[0], np.roll(np.arange(1, 7), 2)]).astype(np.uint16)
    assert "in 6 of 6 cells" in refused(nucleus, own[cytosol], image=image)


def test_ids_that_are_off_by_one_are_refused():
    nucleus = np.where(APART[1] * (NUCLEUS > 0) > 0, APART[1] + 1, 0)
    assert "--match overlap" in refused(nucleus, APART[1])


@pytest.mark.parametrize("n", [2, 3, 30])
def test_a_few_pairs_that_lie_apart_are_told_of_and_counted(n):
    some = np.random.default_rng(n).choice(np.arange(1, 317), n, replace=False)
    becomes = np.arange(317)
    becomes[some] = np.roll(some, 1)
    line = warned(becomes[NUCLEUS], CYTOSOL)
    assert f"in {n} of 316 cells" in line
    assert "--match overlap" in line
    assert checked(as_slide(IMAGE, becomes[NUCLEUS], CYTOSOL))[2] == sorted(some.tolist())


def test_a_slide_of_several_is_named_and_need_not_be_most_of_all():
    good = [as_slide(IMAGE, NUCLEUS, CYTOSOL)] * 5
    image, nucleus, cytosol = round_cells()
    bad = as_slide(np.concatenate([image, image[:1]]), nucleus, np.where(cytosol > 0, cytosol % 6 + 1, 0))
    with pytest.raises(LabelError, match=r"slide slide: nucleus and cytosol .* in 6 of 6 cells"):
        checked([*good, bad])


def test_one_pair_of_many_slides_is_told_of_and_most_are_refused():
    image, nucleus, cytosol = (plane[..., :50, :50] for plane in round_cells())
    good = as_slide(image, nucleus, cytosol)
    bad = as_slide(image, nucleus, moved(cytosol, 24, 24))
    warnings, _, _ = checked([good, good, bad])
    assert len(warnings) == 1
    assert "in 1 of 1 cells" in warnings[0]
    with pytest.raises(LabelError, match=r"in 1 of 1 cells .* alike in 1 more slide: slide"):
        checked([good, bad, bad])


def test_ids_of_one_plane_only_are_refused_if_no_cell_is_left_and_told_of_if_few_are():
    error = refused(NUCLEUS, np.where(CYTOSOL > 0, CYTOSOL + 1000, 0))
    assert "no ids are in both planes, of 316 nuclei and 316 cytosols" in error
    assert "--match overlap" in error
    line = warned(NUCLEUS, np.where((CYTOSOL > 0) & (CYTOSOL > 100), CYTOSOL + 1000, CYTOSOL))
    assert "100 ids are in both planes" in line
    assert refusal(IMAGE, NUCLEUS, np.where(CYTOSOL > 0, CYTOSOL + 1000, 0), on_mismatch="keep") == ("", ())


def test_only_listed_cells_are_judged():
    becomes = np.arange(317)
    becomes[200:316] = np.roll(becomes[200:316], 1)
    slide = as_slide(IMAGE, becomes[NUCLEUS], CYTOSOL)
    assert len(checked(slide)[0]) == 1
    assert checked(slide.only(np.arange(1, 200, dtype=np.uint64)))[0] == ()
    with pytest.raises(LabelError, match="in 116 of 116 cells"):
        checked(slide.only(np.arange(200, 316, dtype=np.uint64)))


# Placed apart


@pytest.mark.parametrize("how", ON_HT29)
def test_a_mirrored_or_turned_plane_is_refused(how):
    error = refused(np.ascontiguousarray(ON_HT29[how](NUCLEUS)), CYTOSOL)
    assert f"the nucleus plane is {how} against the cytosol plane" in error
    assert '--trust placement (trust="placement")' in error
    assert "--match" not in error


@pytest.mark.parametrize("by", [(20, 0), (60, 0), (-30, 45)])
def test_a_plane_that_is_shifted_by_more_than_a_cell_is_refused(by):
    error = refused(moved(NUCLEUS, *by), CYTOSOL)
    assert f"shifted by about {by[0]}, {by[1]} pixels (y, x)" in error
    assert "--trust placement" in error


@pytest.mark.parametrize("by", [(3, 0), (0, 5), (-4, 0)])
def test_a_plane_that_is_shifted_by_some_pixels_is_told_of(by):
    error, warnings = refusal(IMAGE, moved(NUCLEUS, *by), CYTOSOL)
    assert error == ""
    assert any(f"nuclei are shifted by about {by[0]}, {by[1]} pixels (y, x)" in line for line in warnings)


def test_a_plane_that_is_shifted_by_half_a_cell_is_refused():
    error = refused(moved(NUCLEUS, 10, 0), CYTOSOL)
    assert "nuclei are shifted by about 10, 0 pixels (y, x) against their cytosols, which 66% of them leave" in error


# In each other's place


@pytest.mark.parametrize("planes", [(CYTOSOL, NUCLEUS), tuple(round_cells()[:0:-1])])
def test_swapped_planes_are_refused(planes):
    image = IMAGE if planes[0].shape == (512, 512) else round_cells()[0]
    error = refused(*planes, image=image)
    assert "as if they were swapped" in error
    assert "--nucleus, --cytosol" in error
    assert '--trust planes (trust="planes")' in error
    assert "as if the planes were swapped" in refused(*planes, image=image, match="overlap")


def test_a_nucleus_larger_than_its_cytosol_is_told_of_where_there_are_several():
    some = np.isin(CYTOSOL, np.arange(1, 41))
    nucleus, cytosol = np.where(some, CYTOSOL, NUCLEUS), np.where(some, NUCLEUS, CYTOSOL)
    assert "nuclei are larger than their cytosols in" in warned(nucleus, cytosol)
    image, nucleus, cytosol = (plane[..., :50, :50] for plane in round_cells())
    assert "larger than their cytosols in 1 of 1 cells" in warned(cytosol, nucleus, image=image)


@pytest.mark.parametrize("plane", [NUCLEUS, CYTOSOL])
@pytest.mark.parametrize("match", ["id", "overlap"])
def test_one_plane_given_twice_is_told_of(plane, match):
    assert "are equal in all 316 cells" in warned(plane, plane.copy(), match=match)


def test_one_file_given_twice_is_told_of_even_with_one_cell(tmp_path):
    image, nucleus, _ = round_cells()
    np.save(tmp_path / "nucleus.npy", np.where(nucleus == 1, 1, 0))
    warnings, _, _ = checked(as_slide(image, tmp_path / "nucleus.npy", tmp_path / "nucleus.npy"))
    assert len(warnings) == 1
    assert "are equal in all 1 cells" in warnings[0]


# What passes


def test_a_cytosol_that_leaves_out_its_nucleus_is_no_mistake_but_told_of():
    line = warned(NUCLEUS, np.where(NUCLEUS > 0, 0, CYTOSOL))
    assert "cytosol labels leave out the nucleus" in line
    assert "fill_cytosol" in line
    thin = scipy.ndimage.grey_dilation(NUCLEUS, 5) * (NUCLEUS == 0)  # rings smaller than the nuclei
    assert "leave out the nucleus" in warned(NUCLEUS, thin)


def test_nuclei_that_leave_their_cytosols_on_all_sides_pass():
    larger = scipy.ndimage.grey_dilation(NUCLEUS, 3)
    assert refusal(IMAGE, larger, CYTOSOL) == ("", ())


@pytest.mark.parametrize("seed", range(30))
def test_every_pair_that_lies_apart_is_found_in_crowded_slides(seed):
    image, nucleus, cytosol = small_slide(seed)
    shuffled = np.random.default_rng(seed).permutation(25)
    shuffled[shuffled == 0], shuffled[0] = shuffled[0], 0
    apart, n = apart_ids(shuffled[nucleus], cytosol)
    error, _ = refusal(image, shuffled[nucleus], cytosol)
    assert f"in {len(apart)} of {n} cells" in error


@needs_shared
def test_real_time_courses():
    folder = SHARED / "data" / "scratch_assay"
    image = np.load(folder / "image.npy")
    planes = [np.load(folder / f"{name}.npy") for name in ("nucleus", "cytosol")]
    assert checked([as_slide(image[t], *(plane[t] for plane in planes)) for t in range(len(image))])[0] == ()
    shipped = [np.load(folder / f"{name}_as_shipped.npy") for name in ("nucleus", "cytosol")]
    slides = [as_slide(image[t], *(plane[t] for plane in shipped)) for t in range(len(image))]
    with pytest.raises(LabelError, match=r"57 of 59 cells .* alike in 9 more slides"):
        checked(slides)
    assert checked(slides, match="overlap")[0] == ()


@needs_shared
@pytest.mark.parametrize("name", ["dsb_nuclei", "migration_timelapse"])
def test_real_nuclei(name):
    image, nucleus = (np.load(SHARED / "data" / name / f"{plane}.npy") for plane in ("image", "nucleus"))
    frames = zip(image, nucleus, strict=True) if nucleus.ndim == 3 else [(image, nucleus)]
    slides = [as_slide(pixels, labels) for pixels, labels in frames]
    assert checked(slides)[0] == ()
    for slide in slides:
        assert checked(slide)[0] == ()
