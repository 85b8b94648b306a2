"""The text of `info`: a few lines for any file of cells."""

import h5py
import pytest
from made.cells import make_contents, make_slide, write

from gpu_extract.recipe import Recipe
from gpu_extract.report import file_lines
from gpu_extract.store.reader import open_cells


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cells.h5sc"


def lines(path):
    with open_cells(path) as cells:
        found = list(file_lines(cells.summary()))
    assert all(line.isprintable() for line in found)
    return found


def starting(path, start):
    (line,) = (line for line in lines(path) if line.startswith(start))
    return line


def test_all_lines_of_a_file_of_two_slides(path):
    slides = (make_slide("A", {"well": "A01"}), make_slide("B"))
    texts = {"notices": "one\ntwo", "trusted": "ids: three"}
    write(path, make_contents(5, slides, n_dropped=2, ids=[1, 2, 3, 1, 2], texts=texts))
    found = lines(path)
    version = found[9].removeprefix("made by: gpu-extract ")
    sizes = found[2]
    assert sizes.startswith("size: 0.0 MB, tiles 0.0 MB of 0.0 MB (gzip, chunks of 1 x 4 x 6 x 6), layout h5sc")
    assert found == [
        f"{path}: 5 cells, 4 planes of 6 x 6 float16",
        "planes: seg_all_nucleus, seg_all_cytosol, DNA, tubulin (2 masks, 2 channels)",
        sizes,
        "slides: 2",
        "  A: 3 cells, 2 dropped (well A01)",
        "  B: 2 cells",
        "ids (scportrait_cell_id): 1 to 3, 2 of 3 in several slides; a cell is named by slide and id",
        "obs: scportrait_cell_id uint64, slide category of 2, region category of 2, well category of 1, "
        "center_y int64, center_x int64, bbox_y0 int64, bbox_x0 int64, bbox_y1 int64, bbox_x1 int64, "
        "area_nucleus int64, area_cytosol int64, truncated bool",
        "dropped: 2 (2 mask touches the slide's border)",
        f"made by: gpu-extract {version}",
        "from: A.tif, A.nucleus.tif, A.cytosol.tif, and alike of 1 other slide",
        "recipe: standard with tile_size = 6",
        "warning: one",
        "warning: two",
        "trusted: ids: three",
    ]


@pytest.mark.parametrize("layout", ["h5sc", "sparcspy"])
def test_a_thousand_slides_are_as_few_lines(path, layout):
    slides = [make_slide(f"slide_{n:04}", {"well": f"A{n:04}"}) for n in range(1000)]
    contents = make_contents(1999, slides, n_dropped=900, texts={"notices": "\n".join(map(str, range(500)))})
    contents.cells.slide[-1] = 998
    write(path, contents, layout=layout)
    found = lines(path)
    assert len(found) < 20
    assert max(map(len, found)) < 500
    assert "slides: 1,000 (slide_0000, slide_0001, slide_0002, ...)" in found
    assert starting(path, "cells per slide") == "cells per slide: 0 to 3, median 2, 1 slide without cells"
    assert found[-1] == "warning: ... (500 in all)"


def test_a_hundred_channels_and_files_are_named_in_short(path):
    slide = make_slide(channels=tuple(f"marker_{n}" for n in range(100)))
    slide.image.source = ", ".join(f"marker_{n}.tif" for n in range(100))
    write(path, make_contents(1, (slide,)))
    assert starting(path, "planes").endswith("marker_17, ... (102 in all) (2 masks, 100 channels)")
    assert starting(path, "from") == (
        "from: marker_0.tif, marker_1.tif, marker_2.tif, marker_3.tif, marker_4.tif, marker_5.tif, ... (102 in all)"
    )


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        (Recipe(), "standard"),
        (Recipe.preset("sparcspy"), "sparcspy"),
        (
            Recipe(tile_size=32, normalization="range", value_range=(0, 500)),
            'standard with tile_size = 32, normalization = "range", value_range = [0.0, 500.0]',
        ),
    ],
)
def test_a_recipe_is_what_differs_from_its_preset(path, recipe, text):
    write(path, make_contents(1, recipe=recipe))
    assert starting(path, "recipe") == f"recipe: {text}"


@pytest.mark.parametrize("text", ["base = 'nextyear'", "= ="])
def test_a_recipe_of_another_version(path, text):
    write(path, make_contents(1))
    with h5py.File(path, "r+") as file:
        del file["uns/gpu_extract/recipe"]
        file["uns/gpu_extract/recipe"] = text
    assert starting(path, "recipe") == "recipe: of another version of gpu-extract; --json prints it"


def test_ids(path):
    write(path, make_contents(3))
    assert starting(path, "ids") == "ids (scportrait_cell_id): 10 to 12, each once in the file"
    path.unlink()
    write(path, make_contents(4, (make_slide("A"), make_slide("B")), ids=[1, 2, 1, 2], unique_ids=True))
    assert starting(path, "ids") == (
        "ids (cell_id, the ids in the label planes): 1 to 2, 2 of 2 in several slides; a cell is named by slide and id"
    )
    path.unlink()
    write(path, make_contents(0))
    assert "ids: none" in lines(path)


def test_names_are_printable(path):
    slide = make_slide("bad\x1b[31m", {"well": "a\nb"})
    slide.image.source = "bad\udcff.tif"
    write(path, make_contents(1, (slide,)))
    assert "  bad?[31m: 1 cell (well a?b)" in lines(path)
    assert starting(path, "from").startswith("from: bad?.tif")


def test_files_of_other_programs(path):
    write(path, make_contents(3))
    with h5py.File(path, "r+") as file:
        del file["obsm/single_cell_images"].attrs["image_size"]
    assert starting(path, "made by").startswith("made by: another program, from a file of gpu-extract ")
    with h5py.File(path, "r+") as file:
        del file["uns/gpu_extract"], file["obs/slide"]
        file["obs"].attrs["column-order"] = ["scportrait_cell_id"]
    assert "made by: another program" in lines(path)
    assert "slides: not named in the file" in lines(path)
