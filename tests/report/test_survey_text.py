"""Plans and surveys as text."""

from made.slides import small_slide

import gpu_extract as gx
from gpu_extract.report import plan_lines, survey_lines

IMAGE, NUCLEUS, CYTOSOL = small_slide(4)


def test_plan_lines():
    plan = gx.plan(IMAGE, nucleus=NUCLEUS, cytosol=CYTOSOL, tile_size=10, pixel_size=0.5)
    lines = list(plan_lines(plan))
    assert lines[0] == f"{len(plan.cells)} cells of one slide"
    assert lines[1:3] == [f"dropped {n}: {reason}" for reason, n in plan.cells.dropped.counts().items()]
    assert "planes: nucleus, cytosol, ch0, ch1, ch2" in lines
    assert "tiles of 10 x 10 pixels (5 um), float16" in lines
    assert f"suggested: --size {plan.fitting_tile_size(0.99)}" in lines
    assert lines[-1] == f"{plan.nbytes / 1e6:.1f} MB before compression"


def test_survey_lines_begin_with_the_plan():
    survey = gx.survey(IMAGE, nucleus=NUCLEUS, cytosol=CYTOSOL, tile_size=24, device="cpu", threads=2)
    plan, lines = list(plan_lines(survey.plan)), list(survey_lines(survey))
    assert lines[: len(plan)] == plan
    assert lines[len(plan)] == "channels:"
    assert "of memory on device cpu with 2 threads, estimated from" in lines[-1]
