"""Images that are masks, and labels that lie elsewhere than what the image shows."""

import numpy as np
import pytest
from made.mistakes import checked, ht29_planes, moved, numbered_anew, refusal
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
        found = lines([dna, channel.astype(np.uint16), dna])
        assert len(found) == 1, (what, found)
        assert f"channel ch1 of array is {what}" in found[0]
        assert "--channels (channels=)" in found[0]


def test_several_slides_with_a_mask_make_one_line():
    pixels = np.stack([IMAGE[0], (NUCLEUS > 0).astype(np.uint8)])
    assert len(checked([as_slide(pixels, NUCLEUS, CYTOSOL)] * 5)[0]) == 1


def test_images_are_images():
    rng = np.random.default_rng(0)
    blank, dim = np.zeros_like(IMAGE[0]), (rng.random(NUCLEUS.shape) < 0.03).astype(np.uint8)
    photons = rng.poisson(0.4, NUCLEUS.shape).astype(np.uint8)
    saturated = np.where(IMAGE[2] > 40, 255, IMAGE[2])
    binned = np.kron(IMAGE[2][::2, ::2], np.ones((2, 2), np.uint8))
    few_bits = IMAGE[2] // 16
    for channel in (blank, dim, photons, saturated, binned, few_bits, np.full_like(blank, 3)):
        assert lines([IMAGE[0], channel]) == ()


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


@pytest.mark.parametrize("by", [(0, 6), (6, -4), (10, 0), (-12, 8)])
def test_labels_that_are_shifted_against_the_image_are_told_of(by):
    error, warnings = refusal(IMAGE, moved(NUCLEUS, *by), moved(CYTOSOL, *by))
    assert error == ""
    assert [line.split(" against ")[0] for line in warnings] == [
        f"nucleus labels array and cytosol labels array are shifted by about {by[0]}, {by[1]} pixels (y, x)"
    ]


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
