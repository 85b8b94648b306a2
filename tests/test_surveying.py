import json
from dataclasses import replace

import numpy as np
import pytest
from made.mistakes import ht29_planes
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


def test_the_estimates_are_those_of_a_run(tmp_path):
    slides = [small_slide(seed) for seed in (1, 2)]
    estimate = survey_of(*slides)
    inputs = [{"image": image, "nucleus": nucleus, "cytosol": cytosol} for image, nucleus, cytosol in slides]
    report = extract_many(inputs, output=tmp_path / "cells.h5sc", recipe=RECIPE)
    assert len(estimate.plan.cells) == estimate.n_tried == report.n_cells
    assert estimate.to_dict()["dropped"] == report.dropped
    assert estimate.to_dict()["n_truncated"] == report.n_truncated
    assert estimate.file_nbytes == pytest.approx(report.path.stat().st_size, rel=0.05)  # other slide names
    assert estimate.seconds > 0
    assert estimate.memory_nbytes > estimate.plan.nbytes


def test_the_range_of_a_channel_is_over_all_slides():
    slides = [small_slide(seed, dtype=np.int16) for seed in (1, 2)]
    both = np.stack([image for image, _, _ in slides])
    channels = survey_of(*slides).channels
    assert [channel.lowest for channel in channels] == both.min(axis=(0, 2, 3)).tolist()
    assert [channel.highest for channel in channels] == both.max(axis=(0, 2, 3)).tolist()
    assert [channel.dtype for channel in channels] == ["int16"] * 3


def test_nonfinite_pixels_are_counted_and_are_no_error():
    image, nucleus, cytosol = small_slide(1, dtype=np.float32)
    image[1, 5, :3] = np.nan, np.inf, -np.inf
    channels = survey_of((image, nucleus, cytosol)).channels
    assert [channel.n_nonfinite for channel in channels] == [0, 3, 0]
    finite = image[1][np.isfinite(image[1])]
    assert (channels[1].lowest, channels[1].highest) == (finite.min(), finite.max())


def test_a_channel_without_a_finite_pixel_has_no_range():
    image, nucleus, cytosol = small_slide(1, dtype=np.float32)
    image[2] = np.nan
    estimate = survey_of((image, nucleus, cytosol))
    assert (estimate.channels[2].lowest, estimate.channels[2].highest) == (None, None)
    assert f"no finite pixel, {image[2].size:,} NaN or infinite" in "\n".join(survey_lines(estimate))


def test_a_very_large_image_is_read_in_part(monkeypatch):
    image, nucleus, cytosol = small_slide(1)
    monkeypatch.setattr("gpu_extract.surveying.VALUES_NBYTES", image.nbytes // 3)
    monkeypatch.setattr("gpu_extract.surveying.STRIP_PIXELS", image.shape[2] * 2)
    estimate = survey_of((image, nucleus, cytosol))
    rows = np.arange(image.shape[1]) % 6 < 2
    assert estimate.share_read == pytest.approx(rows.mean())
    assert [channel.highest for channel in estimate.channels] == image[:, rows].max(axis=(1, 2)).tolist()
    assert f"{rows.mean():.0%} of the pixels" in "\n".join(survey_lines(estimate))


def mismatched():
    """Nucleus 3 has no cytosol of its id and lies in cytosol 2, beside 2's own; cytosol 9 is in two components."""
    nucleus, cytosol = np.zeros((40, 60), np.uint16), np.zeros((40, 60), np.uint16)
    cytosol[10:20, 10:30], cytosol[10:14, 40:50], cytosol[20:24, 40:50] = 2, 9, 9
    nucleus[12:16, 12:16], nucleus[12:15, 20:24], nucleus[11:13, 42:44] = 2, 3, 9
    return np.zeros((1, 40, 60), np.uint16), nucleus, cytosol


def test_label_problems_are_counted_with_examples():
    estimate = survey_of(mismatched())
    problems = {problem.problem: (problem.count, problem.examples) for problem in estimate.problems}
    assert problems == {
        "cytosol in several components": (1, (("slide", 9),)),
        "nucleus mostly in a cytosol of another id": (1, (("slide", 3),)),
        "cytosol that holds several nuclei": (1, (("slide", 2),)),
    }
    text = "\n".join(survey_lines(estimate))
    assert "1 x nucleus mostly in a cytosol of another id (3)\n    --match overlap (match='overlap') pairs" in text
    assert "dropped 1: no cytosol" in text


def test_cells_that_are_kept_with_one_mask_are_a_problem():
    estimate = survey_of(mismatched(), recipe=RECIPE.replace(on_mismatch="keep"))
    problems = {problem.problem: problem.examples for problem in estimate.problems}
    assert problems["cell without cytosol"] == (("slide", 3),)


def test_what_a_warning_says_is_no_problem_once_more():
    image, nucleus, cytosol = ht29_planes()
    becomes = np.arange(317)
    becomes[[50, 60, 70]] = 60, 70, 50
    stray = cytosol.copy()
    stray[5, 5] = 200
    estimate = survey_of((image, becomes[nucleus], stray))
    assert any("in 3 of 316 cells (ids 50, 60, 70)" in line for line in estimate.plan.warnings)
    assert any("id 200 has 2 far-apart components" in line for line in estimate.plan.warnings)
    told = {50, 60, 70, 200}
    listed = {cell_id for problem in estimate.problems for _, cell_id in problem.examples}
    assert not listed & told
    assert "nucleus mostly in a cytosol of another id" not in {problem.problem for problem in estimate.problems}


def test_a_recipe_that_solves_the_problems_leaves_none():
    estimate = survey_of(mismatched(), recipe=RECIPE.replace(match="overlap", pieces="largest"))
    assert estimate.problems == ()


def test_a_single_label_plane_has_no_problem_of_pairs():
    image, nucleus, _ = small_slide(3)
    estimate = survey_of((image, nucleus))
    assert {problem.problem for problem in estimate.problems} <= {"nucleus in several components"}


def test_the_histogram_counts_every_cell_and_a_size_is_suggested():
    estimate = survey_of(small_slide(2), recipe=RECIPE.replace(tile_size=10))
    sides = estimate.plan.fitting_sides()
    edges, counts = estimate.histogram()
    assert counts.sum() == len(sides)
    for first, after, n in zip(edges[:-1], edges[1:], counts, strict=True):
        assert n == np.count_nonzero((sides >= first) & (sides < after))
    assert f"suggested: --size {estimate.plan.fitting_tile_size(0.99)}" in list(survey_lines(estimate))


def test_to_dict_has_plain_values():
    estimate = survey_of(small_slide(1), small_slide(2))
    again = json.loads(json.dumps(estimate.to_dict(), allow_nan=False))
    assert again["fitting_tile_size"] == {f"{share:g}": side for share, side in estimate.tile_sizes().items()}
    assert again["channels"][0]["name"] == "ch0"
    assert again["label_problems"][0]["examples"][0] == ["slide_1", 20]
    assert [slide["n_cells"] for slide in again["slides"]] == [
        int((estimate.plan.cells.slide == index).sum()) for index in (0, 1)
    ]
