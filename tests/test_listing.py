"""Lists within messages: short however long what is listed is."""

import ast
from pathlib import Path

import numpy as np
import pytest
from made.cells import make_contents, make_slide, write
from made.slides import small_slide

import gpu_extract as gx
from gpu_extract.channels import channel_index
from gpu_extract.checks.findings import Finding, conclude, some_ids
from gpu_extract.errors import GpuExtractError, InputError
from gpu_extract.listing import first_few, first_lines, listed, listed_apart, repeated
from gpu_extract.sources.slide_table import as_slide_input, read_slide_table

IMAGE, NUCLEUS, CYTOSOL = small_slide(4)
NAMES = tuple(f"marker_{n:04}" for n in range(1000))
# Far more than a line with a path and twenty names of this length.
LONGEST = 700


@pytest.mark.parametrize(
    ("n", "few", "many"),
    [
        (0, "", ""),
        (1, "0", "0"),
        (3, "0, 1, 2", "0, 1, 2"),
        (4, "0, 1, 2, ...", "0, 1, 2, 3"),
        (5, "0, 1, 2, ...", "0, 1, 2, 3, ... (5 in all)"),
        (1000, "0, 1, 2, ...", "0, 1, 2, 3, ... (1,000 in all)"),
    ],
)
def test_long_lists_are_cut(n, few, many):
    assert first_few(range(n)) == few
    assert first_few(np.arange(n, dtype=np.uint64)) == few
    assert listed(range(n), 4) == many


def test_of_two_unequal_lists_the_difference_is_shown():
    assert listed_apart("abc", "abd") == ("a, b, c", "a, b, d")
    other = (*NAMES[:500], "x", *NAMES[501:])
    one, two = listed_apart(NAMES, other)
    assert one == "..., marker_0499, marker_0500, marker_0501, ..."
    assert two == "..., marker_0499, x, marker_0501, ..."
    assert listed_apart(NAMES[:30], NAMES[:31]) == ("..., marker_0029", "..., marker_0029, marker_0030")
    assert listed_apart((), NAMES) == ("", "marker_0000, marker_0001, marker_0002, " + first_few(NAMES[3:], 17))


def test_of_many_lines_a_last_one_has_the_number():
    assert first_lines(("a", "b"), 2) == ["a", "b"]
    assert first_lines(NAMES, 2) == ["marker_0000", "marker_0001", "... (1,000 in all)"]


def test_repeated_items_are_listed_once():
    assert repeated("abcbb") == ["b"]
    assert repeated([]) == []


def stacked(**options):
    """Plan a slide of one file per channel."""
    channels = [np.full(IMAGE.shape[1:], np.nan, np.float32) for _ in range(60)]
    return gx.extract(channels, nucleus=NUCLEUS, output="cells.h5sc", tile_size=24, device="reference", **options)


def many_slides():
    return [make_slide(f"slide_{n:04}") for n in range(1000)]


def open_many(path):
    """Open a file of 1,000 slides, each with one cell, of id 17."""
    return gx.open_cells(write(path / "many.h5sc", make_contents(1000, many_slides(), ids=[17] * 1000)))


def header(path):
    (path / "slides.csv").write_text(",".join(NAMES) + "\n1\n")
    return path / "slides.csv"


LONG = {
    "ids of a choice": lambda path: gx.plan(IMAGE, nucleus=NUCLEUS, ids=range(1000, 9000)),
    "ids without a cell": lambda path: open_many(path)[list(range(1000, 9000))],
    "an id of many slides": lambda path: open_many(path)[17],
    "a key of many ids": lambda path: open_many(path)[tuple(range(1000))],
    "an array as a key": lambda path: open_many(path)[(1, tuple(range(1000)))],
    "slides of one name": lambda path: make_contents(2, [make_slide(n) for n in (*NAMES, *NAMES)]),
    "slides of other channels": lambda path: make_contents(
        2, [make_slide("A", channels=NAMES), make_slide("B", channels=NAMES[::-1])]
    ),
    "planned slides of other channels": lambda path: gx.plan_many(
        [
            gx.SlideInput(np.zeros((60, 90, 110), np.uint16), NUCLEUS, channel_names=list(names[:60]))
            for names in (NAMES, NAMES[::-1])
        ]
    ),
    "channels": lambda path: channel_index("DAPI", NAMES, "image"),
    "names of channels": lambda path: gx.plan(IMAGE, nucleus=NUCLEUS, channel_names=NAMES),
    "repeated names of channels": lambda path: make_slide(channels=NAMES + NAMES),
    "files of a slide": lambda path: stacked(),
    "columns of a table": lambda path: read_slide_table(header(path)),
    "keys of a slide": lambda path: as_slide_input(dict.fromkeys(NAMES, "")),
    "planes": lambda path: gx.plan(IMAGE, nucleus=NUCLEUS, planes=range(1000)),
    "findings of many slides": lambda path: conclude(
        [Finding("kind", "wrong", "remedy", "ids", is_error=True, slide=name) for name in NAMES], frozenset()
    ),
}


@pytest.mark.parametrize("kind", LONG)
def test_no_message_lists_everything(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GpuExtractError) as error:
        LONG[kind](tmp_path)
    assert len(str(error.value)) < LONGEST
    assert "..." in str(error.value)
    assert "\n" not in str(error.value)


def test_a_list_of_ids_in_a_file_is_named_in_short(files, call):
    (files / "ids.csv").write_text("\n".join(map(str, range(1000, 9000))))
    code, _, err = call("plan", "image.tif", "--nucleus", "nucleus.tif", "--ids", "ids.csv")
    assert code == 1
    assert "8,000 of 8,000 ids asked for are not in the labels: 1000, 1001, 1002, ..." in err


def test_slides_with_channels_that_differ_late_are_told_apart():
    other = (*NAMES[:500], "x", *NAMES[501:])
    with pytest.raises(InputError, match=r"B has planes ..., marker_0499, x, .* A has ..., marker_0499, marker_0500"):
        make_contents(2, [make_slide("A", channels=NAMES), make_slide("B", channels=other)])


def test_some_ids():
    assert some_ids(np.array([5], np.uint64)) == "id 5"
    assert some_ids(np.arange(5, dtype=np.uint64)) == "ids 0, 1, 2, ..."


# Lists that have a few items by what they are, not by what a user or a file gives.
SHORT = {
    "LAYOUTS, repr", "known", "names", "wanted", "suffixes[:-1]", "dtypes", "mirrored", "limits.items",
    "plan.plane_names", "cells.planes", "self.labels, _summary", "found", "slide.masks.items",
    "problem.examples", "channels", "cells.dropped.counts().items",
}  # fmt: skip


def joined(tree):
    """Yield what is joined to a list with commas or words in a module, without constants."""
    for node in ast.walk(tree):
        is_join = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "join"
        if is_join and isinstance(node.func.value, ast.Constant) and node.func.value.value in (", ", " and ", " or "):
            (items,) = node.args
            if isinstance(items, ast.GeneratorExp):
                items = items.generators[0].iter
            if isinstance(items, ast.Call) and getattr(items.func, "id", "") == "map":
                items = ast.Tuple(items.args[::-1])
            text = ast.unparse(items).strip("()")
            if not text.isupper():
                yield text


@pytest.mark.parametrize("module", sorted(Path(gx.__file__).parent.rglob("*.py")), ids=lambda path: path.stem)
def test_lists_are_written_by_one_function(module):
    if module.name != "listing.py":
        assert set(joined(ast.parse(module.read_text()))) <= SHORT
