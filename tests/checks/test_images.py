"""Images that are masks, and labels that lie elsewhere than what the image shows."""

import re

import numpy as np
import pytest
import scipy.ndimage
from made.mistakes import checked, ht29_planes, moved, numbered_anew, refusal, without
from made.slides import as_slide, small_slide

from gpu_extract import LabelError

IMAGE, NUCLEUS, CYTOSOL = ht29_planes()
MIRRORED = {
    "upside down": lambda plane: plane[::-1],
    "mirrored left to right": lambda plane: plane[:, ::-1],
    "turned by 180 degrees": lambda plane: plane[::-1, ::-1],
    "transposed": lambda plane: plane.T,
    "turned by 90 degrees": np.rot90,
    "turned by -90 degrees": lambda plane: np.rot90(plane, -1),
}


def lines(channels, nucleus=NUCLEUS, cytosol=CYTOSOL):
    return checked(as_slide(np.stack(channels), nucleus, cytosol))[0]


def test_masks_and_labels_among_the_channels_are_told_of():
    dna = IMAGE[0].astype(np.uint16)
    for channel, what in (
        (NUCLEUS, "equal to the nucleus labels"),
        (CYTOSOL, "equal to the cytosol labels"),
        (np.where(NUCLEUS > 0, 255, 0), "a mask of two values"),
        (CYTOSOL > 0, "a mask of two values"),
        (numbered_anew(CYTOSOL), "a plane of labels"),
        (np.where(NUCLEUS > 0, NUCLEUS + 500, 0), "a plane of labels"),
    ):
        found = lines([dna, channel.astype(np.uint16), IMAGE[2].astype(np.uint16)])
        assert len(found) == 1, (what, found)
        assert f"channel ch1 of array is {what}" in found[0]
        assert "--channels (channels=)" in found[0]


def test_several_slides_with_a_mask_make_one_line():
    pixels = np.stack([IMAGE[0], (NUCLEUS > 0).astype(np.uint8)])
    found = checked([as_slide(pixels, NUCLEUS, CYTOSOL)] * 5)[0]
    assert len([line for line in found if "a mask of two values" in line]) == 1


def test_images_are_images():
    rng = np.random.default_rng(0)
    blank, dim = np.zeros_like(IMAGE[0]), (rng.random(NUCLEUS.shape) < 0.03).astype(np.uint8)
    photons = rng.poisson(0.4, NUCLEUS.shape).astype(np.uint8)
    binned = np.kron(IMAGE[2][::2, ::2], np.ones((2, 2), np.uint8))
    few_bits = IMAGE[2] // 16
    for channel in (blank, dim, photons, binned, few_bits, np.full_like(blank, 3)):
        assert lines([IMAGE[0], channel]) == ()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_a_saturated_channel_is_told_of(dtype):
    largest = np.iinfo(dtype).max
    image = IMAGE.astype(dtype)
    image[0] = np.where(image[0] > 12, largest, image[0])
    found = lines(list(image))
    assert len(found) == 1
    assert re.match(r"channel ch0 of array is saturated in \d\d% of the pixels of cells; intensities there", found[0])
    assert lines(list(np.where(IMAGE > 200, 255, IMAGE))) == ()  # some pixels are in most images


def test_a_channel_that_is_there_twice_is_told_of():
    found = lines([IMAGE[0], IMAGE[2], IMAGE[0]])
    assert len(found) == 1
    assert "channel ch2 of array is equal to channel ch0" in found[0]
    assert "--channels (channels=)" in found[0]


def test_slices_that_are_taken_for_channels_are_told_of():
    slices = [scipy.ndimage.gaussian_filter(IMAGE[0], sigma) for sigma in (3, 2, 1, 0, 0.5, 1.5)]
    found = lines(slices)
    assert len(found) == 1
    assert "the 6 channels of array are nearly alike, as Z slices or time points of one channel are" in found[0]
    assert len(lines([*slices, slices[1]])) == 1
    assert lines([*slices[:3], IMAGE[2]]) == ()
    assert lines([IMAGE[0], IMAGE[0] // 2 + 5, IMAGE[0] // 3]) == ()  # red, green and blue of a gray picture


@pytest.mark.parametrize("factor", [16, 100])
def test_swapped_bytes_are_refused(factor):
    image = IMAGE.astype(np.uint16) * factor
    error, _ = refusal(image.byteswap(), NUCLEUS, CYTOSOL)
    assert "pixels of image array have their bytes in the wrong order" in error
    assert '--trust planes (trust="planes")' in error
    assert refusal(image, NUCLEUS, CYTOSOL) == refusal(image.astype(">u2"), NUCLEUS, CYTOSOL) == ("", ())


@pytest.mark.parametrize("how", MIRRORED)
def test_labels_that_are_mirrored_against_the_image_are_refused(how):
    nucleus, cytosol = (np.ascontiguousarray(MIRRORED[how](plane)) for plane in (NUCLEUS, CYTOSOL))
    for planes in ((nucleus, cytosol), (nucleus, None), (None, cytosol)):
        error, _ = refusal(IMAGE, *planes)
        assert f"are {how} against image array" in error
        assert '--trust placement (trust="placement")' in error


def test_an_oblong_slide():
    error, _ = refusal(IMAGE[:, :300], np.ascontiguousarray(NUCLEUS[:300][::-1]))
    assert "upside down against image" in error
    assert refusal(IMAGE[:, :300], NUCLEUS[:300]) == ("", ())


@pytest.mark.parametrize("by", [(0, 6), (6, -4), (10, 0)])
def test_labels_that_are_shifted_by_less_than_a_cell_are_told_of(by):
    error, warnings = refusal(IMAGE, moved(NUCLEUS, *by), moved(CYTOSOL, *by))
    assert error == ""
    assert [line.split(" against ")[0] for line in warnings if "shifted" in line] == [
        f"nucleus labels array and cytosol labels array are shifted by about {by[0]}, {by[1]} pixels (y, x)"
    ]


@pytest.mark.parametrize("by", [(-12, 8), (26, 0), (80, -60), (-200, 30), (300, 200)])
@pytest.mark.parametrize("planes", ["both", "nucleus", "cytosol"])
def test_labels_that_are_shifted_by_a_cell_or_half_the_slide_are_refused(by, planes):
    nucleus, cytosol = moved(NUCLEUS, *by), moved(CYTOSOL, *by)
    given = {"both": (nucleus, cytosol), "nucleus": (nucleus, None), "cytosol": (None, cytosol)}[planes]
    error, warnings = refusal(IMAGE, *given)
    line = error or next(line for line in warnings if "shifted" in line)
    assert error or (planes, by) == ("cytosol", (-12, 8))  # half a cytosol
    y, x = map(int, re.search(r"shifted by about (-?\d+), (-?\d+) pixels \(y, x\) against image", line).groups())
    assert max(abs(y - by[0]), abs(x - by[1])) <= 3
    assert not error or '--trust placement (trust="placement")' in error


def test_labels_of_a_crop_at_the_origin_and_of_tiles_in_another_order_are_refused():
    cropped = np.pad(NUCLEUS[100:400, 100:400], ((0, 212), (0, 212)))
    assert "shifted by about -100, -100 pixels" in refusal(IMAGE, cropped)[0]
    swapped = np.block([[NUCLEUS[256:, 256:], NUCLEUS[256:, :256]], [NUCLEUS[:256, 256:], NUCLEUS[:256, :256]]])
    assert "shifted by about" in refusal(IMAGE, swapped)[0]


def test_labels_that_are_mirrored_and_shifted_are_refused():
    error, _ = refusal(IMAGE, moved(np.ascontiguousarray(NUCLEUS[::-1]), 0, 40))
    assert re.search(r"upside down and shifted by about -?\d, 40 pixels", error)


@pytest.mark.parametrize("channels", [[0], [0, 1], [2], [0, 1, 2]])
def test_labels_of_another_image_are_told_of(channels):
    turned = np.ascontiguousarray(np.rot90(IMAGE[channels], axes=(1, 2))[:, :300])  # another field
    for planes in ((NUCLEUS[:300], CYTOSOL[:300]), (NUCLEUS[:300], None), (None, CYTOSOL[:300])):
        error, warnings = refusal(turned, *planes)
        assert error == ""
        assert len(warnings) == 1
        assert "follow nothing that image array shows, in any channel" in warnings[0]
        assert "--trust" not in warnings[0]


@pytest.mark.parametrize("how", ["rotated by 5 degrees", "10 % larger"])
def test_labels_that_were_transformed_are_told_of(how):
    if how.startswith("rotated"):
        labels = scipy.ndimage.rotate(NUCLEUS, 5, order=0, reshape=False)
    else:
        labels = scipy.ndimage.zoom(NUCLEUS, 1.1, order=0)[:512, :512]
    assert any("follow nothing" in line for line in refusal(IMAGE, labels)[1])


@pytest.mark.parametrize("channels", [[0], [1], [2], [1, 2], [2, 1, 0]])
@pytest.mark.parametrize("how", ["as it is", "inverted", "dim", "uneven", "every third cell", "a half"])
def test_images_of_any_stain_pass(channels, how):
    """The nucleus in a channel of actin, the cytosol in one of a nuclear protein; 12 bright cells of 316."""
    image, nucleus, cytosol = IMAGE[channels].astype(np.float32), NUCLEUS, CYTOSOL
    if how == "inverted":
        image = 255 - image
    elif how == "dim":
        image = np.random.default_rng(0).poisson(image / 8).astype(np.float32)
    elif how == "uneven":
        image = image + np.linspace(0, 200, 512, dtype=np.float32)
    elif how == "every third cell":
        nucleus, cytosol = (np.where(plane % 3 == 1, plane, 0) for plane in (nucleus, cytosol))
    elif how == "a half":
        nucleus, cytosol = (np.where(np.isin(plane, cytosol[256:]), 0, plane) for plane in (nucleus, cytosol))
    assert refusal(image, nucleus, cytosol) == ("", ())
    assert refusal(image, nucleus) == ("", ())
    if channels != [1] or how not in ("every third cell", "a half"):  # 4 bright nuclei in 105 cytosols
        assert refusal(image, None, cytosol) == ("", ())


def test_slides_whose_channels_are_in_another_order_are_told_of():
    right, wrong = (as_slide(np.ascontiguousarray(image), NUCLEUS, CYTOSOL) for image in (IMAGE, IMAGE[::-1]))
    upper = as_slide(IMAGE[:, :300], NUCLEUS[:300], CYTOSOL[:300])
    (line,) = [line for line in checked([right, wrong])[0] if "order" in line]
    assert line == (
        "labels follow channel ch0 in slide slide, and channel ch2 in slide slide, as if its channels were in another "
        "order; give the channels of all slides in one order"
    )
    assert checked([right, upper])[0] == ()


def test_a_whole_slide_is_read_in_a_small_part():
    border = np.unique(np.concatenate([CYTOSOL[[0, -1]].ravel(), CYTOSOL[:, [0, -1]].ravel()]))
    planes = IMAGE, without(NUCLEUS, border), without(CYTOSOL, border)
    image, nucleus, cytosol = (np.tile(plane, (1,) * (plane.ndim - 2) + (6, 6)) for plane in planes)
    nucleus, cytosol = (
        np.where(plane > 0, plane + 400 * (np.indices(plane.shape) // 512).T.dot([6, 1]).T, 0)
        for plane in (nucleus, cytosol)
    )
    slide = as_slide(image, nucleus, cytosol)
    reads = []
    read = slide.image.read
    slide.image.read = lambda *box: reads.append(box) or read(*box)
    assert checked(slide) == ((), (), [])
    assert sum((y1 - y0) * (x1 - x0) for y0, x0, y1, x1 in reads) < image[0].size / 40
    reads.clear()
    slide = as_slide(image, np.ascontiguousarray(nucleus[::-1]))
    slide.image.read = lambda *box: reads.append(box) or read(*box)
    with pytest.raises(LabelError, match="upside down"):
        checked(slide)
    assert sum((y1 - y0) * (x1 - x0) for y0, x0, y1, x1 in reads) < image[0].size / 20


def test_what_is_accepted_is_recorded():
    slide = as_slide(IMAGE, np.ascontiguousarray(NUCLEUS[::-1]))
    with pytest.raises(LabelError):
        checked(slide, trust=["ids", "binary", "planes"])
    _, trusted, _ = checked(slide, trust=["placement"])
    assert trusted == ("placement: nucleus labels array are upside down against image array",)


@pytest.mark.parametrize("seed", range(20))
def test_noise_says_nothing(seed):
    image, nucleus, cytosol = small_slide(seed, size=(140, 140), channels=12)
    assert refusal(image, nucleus, cytosol) == ("", ())


@pytest.mark.parametrize("dtype", ["int16", "float16", "float32", "float64"])
def test_pixels_of_every_type_and_pixels_that_are_not_finite(dtype):
    image, nucleus, cytosol = small_slide(3, dtype=dtype)
    if dtype.startswith("float"):
        image[0, ::7], image[1, ::5], image[2, 3] = np.nan, np.inf, np.finfo(dtype).max
    assert refusal(image, nucleus, cytosol) == ("", ())
