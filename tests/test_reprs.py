"""What a notebook shows of plans, surveys, reports and files of cells: one line, or a small table."""

from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from made.cells import make_contents, make_slide, write
from made.slides import small_slide

import gpu_extract as gx
from gpu_extract.html_table import html_table
from gpu_extract.pipeline import Report
from gpu_extract.planning import Plan
from gpu_extract.store.reader import open_cells
from gpu_extract.surveying import LabelProblem, Survey

IMAGE, NUCLEUS, CYTOSOL = small_slide(4)
WARNINGS = tuple(f"warning {n} of <b> & others" for n in range(500))


def rows(thing):
    """The title and the rows of the table of an object, which is well-formed."""
    table = ET.fromstring(thing._repr_html_())
    caption, *found = table
    assert (table.tag, caption.tag) == ("table", "caption")
    assert all([cell.tag for cell in row] == ["th", "td"] for row in found)
    assert not any(element.attrib for element in table.iter())
    return caption.text, [tuple(cell.text for cell in row) for row in found]


def many_slides_plan():
    """A plan of 1,000 slides with 100 channels and 500 warnings."""
    channels = tuple(f"marker_{n}" for n in range(100))
    contents = make_contents(3000, [make_slide(f"A{n:03}", channels=channels) for n in range(1000)], n_dropped=7)
    return Plan(contents.slides, contents.program, contents.cells, WARNINGS, trusted=("ids: three",))


def many_slides_survey():
    problem = LabelProblem("two components", 1234, (("A000", 1),), "")
    return Survey(many_slides_plan(), "cpu", 2, (problem,), (), 1.0, 100, 12.34, 5_000_000, 700_000_000)


def long_report():
    dropped = {"mask touches the slide's border": 1234, "no nucleus": 5}
    return Report(Path("a<b.h5sc"), 3000, 12, dropped, "cpu", 4, 2.5, {"read": 1.0}, WARNINGS)


def many_slides_cells(path):
    channels = tuple(f"marker_{n}" for n in range(100))
    return open_cells(write(path / "cells.h5sc", make_contents(3, (make_slide(channels=channels),))))


def test_a_table_is_escaped_and_has_no_empty_rows():
    assert html_table("a<b", [("c&d", "<e>"), ("none", ""), ("n", 0)]) == (
        "<table><caption>a&lt;b</caption><tr><th>c&amp;d</th><td>&lt;e&gt;</td></tr><tr><th>n</th><td>0</td></tr></table>"
    )


@pytest.mark.parametrize("kind", ["plan", "survey", "report", "cells"])
def test_all_are_short_however_long_their_contents(kind, tmp_path):
    thing = {
        "plan": lambda: many_slides_plan(),
        "survey": lambda: many_slides_survey(),
        "report": long_report,
        "cells": lambda: many_slides_cells(tmp_path),
    }[kind]()
    assert "\n" not in repr(thing)
    assert len(repr(thing)) < 300
    assert len(rows(thing)[1]) < 20
    assert len(thing._repr_html_()) < 1600


def test_a_plan():
    title, found = rows(many_slides_plan())
    assert title == "Plan"
    assert found[:3] == [
        ("cells", "3,000"),
        ("slides", "1,000 (A000, A001, A002, ...)"),
        ("dropped", "7: mask touches the slide's border"),
    ]
    assert found[4] == ("tiles", f"6 x 6 float16, {3000 * 102 * 72 / 1e6:.1f} MB before compression")
    assert found[5] == ("warning", WARNINGS[0])
    assert found[10:] == [("warning", "... (500 in all)"), ("trusted", "ids: three")]


def test_a_survey():
    survey = many_slides_survey()
    assert repr(survey) == (
        "Survey(n_cells=3000, n_slides=1000, device='cpu', threads=2, seconds=12.3, file_nbytes=5000000, "
        "memory_nbytes=700000000, n_problems=1)"
    )
    title, found = rows(survey)
    assert title == "Survey"
    assert found[: len(rows(survey.plan)[1])] == rows(survey.plan)[1]
    assert found[-4:] == [
        ("problem", "1,234 x two components"),
        ("file", "about 5.0 MB"),
        ("time", "about 12.3 s on device cpu with 2 threads"),
        ("memory", "about 700 MB"),
    ]


def test_a_report():
    report = long_report()
    assert repr(report) == (
        "Report(path='a<b.h5sc', n_cells=3000, n_truncated=12, n_dropped=1239, device='cpu', seconds=2.5, "
        "n_warnings=500)"
    )
    title, found = rows(report)
    assert title == "Report"
    assert found[:7] == [
        ("file", "a<b.h5sc"),
        ("cells", "3,000 (12 do not fit in their tile)"),
        ("dropped", "1,234: mask touches the slide's border"),
        ("dropped", "5: no nucleus"),
        ("time", "2.5 s, 1,200 cells/s"),
        ("device", "cpu, 4 threads"),
        ("warning", WARNINGS[0]),
    ]
    assert found[-1] == ("warning", "... (500 in all)")


def test_cells_even_when_they_are_closed(tmp_path):
    cells = many_slides_cells(tmp_path)
    cells.close()
    title, found = rows(cells)
    assert title == "Cells"
    assert found[:4] == [
        ("file", str(cells.path)),
        ("cells", "3"),
        ("ids", "10 to 12"),
        ("masks", "seg_all_nucleus, seg_all_cytosol"),
    ]
    assert found[4][1].endswith("marker_19, ... (100 in all)")
    assert found[5:] == [("tiles", "6 x 6 float16"), ("layout", "h5sc")]


def test_a_file_without_cells(tmp_path):
    with open_cells(write(tmp_path / "cells.h5sc", make_contents(0))) as cells:
        assert ("cells", "0") in rows(cells)[1]
        assert "ids" not in dict(rows(cells)[1])


def test_those_of_an_extraction(tmp_path):
    slide = {"image": IMAGE, "nucleus": NUCLEUS, "cytosol": CYTOSOL, "tile_size": 24, "device": "reference"}
    survey, report = gx.survey(**slide), gx.extract(**slide, output=tmp_path / "cells.h5sc")
    for thing in (survey, survey.plan, report):
        assert f"n_cells={report.n_cells}, " in repr(thing)
        assert dict(rows(thing)[1])["cells"].startswith(f"{report.n_cells:,}")
    with gx.open_cells(report.path) as cells:
        assert np.count_nonzero(cells.obs["truncated"]) == report.n_truncated
