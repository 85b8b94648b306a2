import json
from dataclasses import replace

import numpy as np
import pytest
from made.slides import as_slide, small_slide

from gpu_extract import Recipe, extract_many
from gpu_extract.backends import choose
from gpu_extract.planning import make_plan
from gpu_extract.report.survey_text import survey_lines
from gpu_extract.surveying import survey

RECIPE = Recipe(tile_size=24)


def survey_of(*slides, recipe=RECIPE):
    opened = [as_slide(*slide) for slide in slides]
    if len(opened) > 1:
        opened = [replace(slide, name=f"slide_{n}") for n, slide in enumerate(opened)]
    return survey(make_plan(opened, recipe), choose("cpu"), 2)


def test_it_tells_what_a_run_then_does(tmp_path):
    slides = [small_slide(seed) for seed in (1, 2)]
    told = survey_of(*slides)
    inputs = [{"image": image, "nucleus": nucleus, "cytosol": cytosol} for image, nucleus, cytosol in slides]
    report = extract_many(inputs, output=tmp_path / "cells.h5sc", recipe=RECIPE)
    assert len(told.plan.cells) == told.n_tried == report.n_cells
    assert told.to_dict()["dropped"] == report.dropped
    assert told.to_dict()["n_truncated"] == report.n_truncated
    assert told.file_nbytes == pytest.approx(report.path.stat().st_size, rel=0.05)  # the tables hold other names
    assert told.seconds > 0
    assert told.memory_nbytes > told.plan.nbytes


def test_channels_have_the_range_of_all_slides():
    slides = [small_slide(seed, dtype=np.int16) for seed in (1, 2)]
    both = np.stack([image for image, _, _ in slides])
    channels = survey_of(*slides).channels
    assert [channel.lowest for channel in channels] == both.min(axis=(0, 2, 3)).tolist()
    assert [channel.highest for channel in channels] == both.max(axis=(0, 2, 3)).tolist()
    assert [channel.dtype for channel in channels] == ["int16"] * 3


def test_pixels_that_are_no_numbers_are_counted_and_stop_nothing():
    image, nucleus, cytosol = small_slide(1, dtype=np.float32)
    image[1, 5, :3] = np.nan, np.inf, -np.inf
    channels = survey_of((image, nucleus, cytosol)).channels
    assert [channel.n_nonfinite for channel in channels] == [0, 3, 0]
    finite = image[1][np.isfinite(image[1])]
    assert (channels[1].lowest, channels[1].highest) == (finite.min(), finite.max())


def test_a_channel_without_a_finite_pixel_has_no_range():
    image, nucleus, cytosol = small_slide(1, dtype=np.float32)
    image[2] = np.nan
    told = survey_of((image, nucleus, cytosol))
    assert (told.channels[2].lowest, told.channels[2].highest) == (None, None)
    assert f"no finite pixel, {image[2].size:,} NaN or infinite" in "\n".join(survey_lines(told))


def test_of_a_very_large_image_a_part_is_looked_at(monkeypatch):
    image, nucleus, cytosol = small_slide(1)
    monkeypatch.setattr("gpu_extract.surveying.VALUES_NBYTES", image.nbytes // 3)
    monkeypatch.setattr("gpu_extract.surveying.STRIP_PIXELS", image.shape[2] * 2)
    told = survey_of((image, nucleus, cytosol))
    rows = np.arange(image.shape[1]) % 6 < 2
    assert told.share_read == pytest.approx(rows.mean())
    assert [channel.highest for channel in told.channels] == image[:, rows].max(axis=(1, 2)).tolist()
    assert f"{rows.mean():.0%} of the pixels" in "\n".join(survey_lines(told))


def disagreeing():
    """Nucleus 3 has no cytosol of its id and lies in cytosol 2, beside 2's own; cytosol 9 is in two pieces."""
    nucleus, cytosol = np.zeros((40, 60), np.uint16), np.zeros((40, 60), np.uint16)
    cytosol[10:20, 10:30], cytosol[10:14, 40:50], cytosol[20:24, 40:50] = 2, 9, 9
    nucleus[12:16, 12:16], nucleus[12:15, 20:24], nucleus[11:13, 42:44] = 2, 3, 9
    return np.zeros((1, 40, 60), np.uint16), nucleus, cytosol


def test_ids_that_disagree_are_counted_with_examples():
    told = survey_of(disagreeing())
    found = {problem.problem: (problem.count, problem.examples) for problem in told.problems}
    assert found == {
        "id without cytosol": (1, (("slide", 3),)),
        "cytosol in several pieces": (1, (("slide", 9),)),
        "nucleus mostly in a cytosol of another id": (1, (("slide", 3),)),
        "cytosol that holds several nuclei": (1, (("slide", 2),)),
    }
    text = "\n".join(survey_lines(told))
    assert "1 x id without cytosol (3)\n    --match overlap pairs" in text


def test_what_was_mended_is_no_problem_any_more():
    told = survey_of(disagreeing(), recipe=RECIPE.replace(match="overlap", pieces="largest"))
    assert told.problems == ()


def test_a_single_plane_has_no_partners():
    image, nucleus, _ = small_slide(3)
    told = survey_of((image, nucleus))
    assert {problem.problem for problem in told.problems} <= {"nucleus in several pieces"}


def test_sizes_are_told_against_the_tile():
    told = survey_of(small_slide(2), recipe=RECIPE.replace(tile_size=10))
    sides = told.plan.fitting_sides()
    edges, counts = told.histogram()
    assert counts.sum() == len(sides)
    for first, after, n in zip(edges[:-1], edges[1:], counts, strict=True):
        assert n == np.count_nonzero((sides >= first) & (sides < after))
    assert f"suggested: --size {told.plan.fitting_tile_size(0.99)}" in list(survey_lines(told))


def test_everything_is_plain_values():
    told = survey_of(small_slide(1), small_slide(2))
    again = json.loads(json.dumps(told.to_dict(), allow_nan=False))
    assert again["fitting_tile_size"] == {f"{share:g}": side for share, side in told.tile_sizes().items()}
    assert again["channels"][0]["name"] == "ch0"
    assert again["label_problems"][0]["examples"][0] == ["slide_0", 20]
    assert [slide["n_cells"] for slide in again["slides"]] == [
        int((told.plan.cells.slide == index).sum()) for index in (0, 1)
    ]
