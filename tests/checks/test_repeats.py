"""Slides with the label plane of another slide, and slides that are given twice under two names."""

import numpy as np
import tifffile
from made.mistakes import ht29_planes

from gpu_extract import plan_many

IMAGE, NUCLEUS, CYTOSOL = ht29_planes()
OTHER = 255 - IMAGE[::-1]  # another cycle of staining


def repeats(*slides):
    return [line for line in plan_many(slides).warnings if "equal" in line]


def slide(image=IMAGE, nucleus=NUCLEUS, **more):
    return {"image": image, "nucleus": nucleus, **more}


def test_one_mask_for_all_images_is_told_of():
    (line,) = repeats(slide(), slide(OTHER), slide(IMAGE[::-1]))
    assert line.startswith("3 slides have equal labels and different images: slide, slide_2, slide_3; ")
    assert line.endswith("if their cells are not the same, give each slide its own label plane")


def test_one_mask_file_of_a_table_is_told_of(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    for name, image in (("a", IMAGE), ("b", OTHER)):
        tifffile.imwrite(f"{name}.tif", image, photometric="minisblack")
    tifffile.imwrite("mask.tif", NUCLEUS.astype(np.uint16))
    (tmp_path / "slides.csv").write_text("image,nucleus\na.tif,mask.tif\nb.tif,mask.tif\n")
    for command in (["run", "-o", "out.h5sc"], ["plan"]):
        code, _, stderr = call(*command, "--slides", "slides.csv", "--device", "cpu")
        assert code == 0
        assert "warning: 2 slides have equal labels and different images: a, b; " in stderr


def test_a_slide_under_two_names_is_told_of(tmp_path):
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", IMAGE)
    slides = [slide(tmp_path / f"{name}.npy", NUCLEUS.copy(), cytosol=CYTOSOL.copy()) for name in "ab"]
    assert repeats(*slides) == [
        "2 slides are equal in labels and pixels, so that cells count twice: a, b; list each once"
    ]


def test_slides_of_their_own_pass():
    moved = np.where(NUCLEUS == 7, 0, NUCLEUS)
    assert repeats(slide(), slide(IMAGE, moved), slide(IMAGE, CYTOSOL)) == []
    one = np.where(NUCLEUS == 7, 1, 0)
    assert repeats(slide(nucleus=one), slide(OTHER, one)) == []
