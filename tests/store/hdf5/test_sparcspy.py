"""The classic layout: identical to the files of SPARCSpy, and readable."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from made.cells import make_contents, make_images, make_slide, write
from made.slides import SHARED

import gpu_extract as gx
from gpu_extract.errors import OutputError
from gpu_extract.recipe import Recipe
from gpu_extract.store import CellStore, verify
from gpu_extract.store.hdf5.layouts import LAYOUTS
from gpu_extract.store.reader import open_cells

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the team's data, ../shared, which is not here")
CLASSIC, TIME_COURSE = SHARED / "golden" / "classic", SHARED / "golden" / "timecourse"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "single_cells.h5"


def time_course(**metadata):
    slides = tuple(make_slide(f"tile_{t:03}", {"timepoint": f"t{t}", **metadata}) for t in range(3))
    return make_contents(9, slides, n_dropped=2, ids=[1, 2, 2**63, 1, 2, 3, 1, 2, 3])


def described(path):
    """Return shape, type, chunks, string length and attributes of every dataset."""
    found = {}

    def visit(name, item):
        length = getattr(h5py.check_string_dtype(item.dtype), "length", 0)
        found[name] = (item.shape, item.dtype, item.chunks, length, dict(item.attrs))

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


def test_a_single_slide(path):
    contents = make_contents(30, n_dropped=2)
    images = make_images(contents)
    write(path, contents, images, layout="sparcspy")
    assert described(path) == {
        "single_cell_data": ((30, 4, 6, 6), np.dtype("f4"), (1, 1, 6, 6), 0, {}),
        "single_cell_index": ((30, 2), np.dtype("i8"), None, 0, {}),
    }
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["single_cell_data"][:], images.images)
        assert images.images.dtype == np.float16
        np.testing.assert_array_equal(file["single_cell_index"][:], np.stack([np.arange(30), np.arange(10, 40)], 1))


def test_a_time_course(path):
    contents = time_course(well="B03")
    images = make_images(contents)
    write(path, contents, images, layout="sparcspy")
    assert described(path) == {
        "label_names": ((5,), np.dtype(object), None, None, {}),
        "single_cell_data": ((9, 4, 6, 6), np.dtype("f2"), (1, 1, 6, 6), 0, {}),
        "single_cell_index": ((9, 2), np.dtype("u8"), None, 0, {}),
        "single_cell_index_labelled": ((9, 5), np.dtype(object), None, None, {}),
    }
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["single_cell_data"][:], images.images)
        assert list(file["label_names"].asstr()) == ["index", "cellid", "ID", "timepoint", "well"]
        labelled = file["single_cell_index_labelled"].asstr()[:]
        assert labelled[2].tolist() == ["2", str(2**63), "tile_000", "t0", "B03"]
        assert labelled[8].tolist() == ["8", "3", "tile_002", "t2", "B03"]


def test_slides_with_an_id_in_their_metadata(path):
    write(path, time_course(ID="mine"), layout="sparcspy")
    with h5py.File(path) as file:
        assert list(file["label_names"].asstr()) == ["index", "cellid", "timepoint", "ID"]
        assert set(file["single_cell_index_labelled"].asstr()[:, 3]) == {"mine"}


def test_metadata_that_a_slide_lacks_is_empty(path):
    slides = (make_slide("A", {"well": "D03"}), make_slide("B"))
    write(path, make_contents(2, slides), layout="sparcspy")
    with h5py.File(path) as file:
        assert file["single_cell_index_labelled"].asstr()[:].tolist() == [["0", "10", "A", "D03"], ["1", "11", "B", ""]]


def test_raw_values_are_stored_if_the_type_can_represent_them(path):
    raw = Recipe(tile_size=6, normalization="none")
    contents = make_contents(4, recipe=raw)
    images = make_images(contents)
    assert images.images.dtype == np.uint16
    write(path, contents, images, layout="sparcspy")
    with h5py.File(path) as file:
        assert file["single_cell_data"].dtype == np.float32
        np.testing.assert_array_equal(file["single_cell_data"][:], images.images)


@pytest.mark.parametrize(
    ("contents", "match"),
    [
        (
            make_contents(2, (make_slide(metadata={"well": "A"}),), recipe=Recipe(tile_size=6, normalization="none")),
            "a slide with metadata as float16, which cannot represent the recipe's uint16; use layout 'h5sc'",
        ),
        (make_contents(2, (make_slide("A"), make_slide("B")), recipe=Recipe(output_dtype="float32")), "several slides"),
        (make_contents(2, ids=[1, 2**63]), "cell 9223372036854775808 exceeds it; use layout 'h5sc'"),
    ],
)
def test_unsupported_contents_are_refused(path, contents, match):
    with pytest.raises(OutputError, match=match) as error:
        CellStore.create(path, contents, layout="sparcspy")
    assert "\n" not in str(error.value)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("make", [lambda: make_contents(9, n_dropped=2), time_course], ids=["slide", "time course"])
def test_the_reader_reads_it_back(path, make):
    contents = make()
    images = make_images(contents)
    write(path, contents, images, layout="sparcspy")
    with open_cells(path) as cells:
        assert cells.planes == ("seg_all_nucleus", "seg_all_cytosol", "DNA", "tubulin")
        assert cells.mask_planes == cells.planes[:2]
        np.testing.assert_array_equal(cells.read([8, 0]), images.images[[8, 0]])
        np.testing.assert_array_equal(cells.obs["scportrait_cell_id"], contents.cells.ids)
        assert list(cells.dropped["reason"]) == ["mask touches the slide's border"] * 2
        assert cells.info["dropped"] == {"mask touches the slide's border": 2}
        assert "tile_size = 6" in cells.info["recipe"]
        assert "tif" in cells.info["sources"]
        if "slide" in cells.obs:
            np.testing.assert_array_equal(cells["tile_002", 2], images.images[7])
            assert list(cells.obs["timepoint"])[::3] == ["t0", "t1", "t2"]
    found = verify(path)
    assert (found.n_cells, found.n_masks, found.n_channels) == (9, 2, 2)


def damaged(path, match):
    with pytest.raises(OutputError, match=match):
        verify(path)


def test_verify_detects_errors(path):
    write(path, time_course(), layout="sparcspy")
    with h5py.File(path, "r+") as file:
        file["single_cell_index"][4, 1] = 7
    damaged(path, "single_cell_index_labelled has other ids")
    with h5py.File(path, "r+") as file:
        file["single_cell_index_labelled"][4, 1] = "7"
    verify(path)
    with h5py.File(path, "r+") as file:
        file["single_cell_data"][5, 2, 1, 1] = np.nan
    damaged(path, r"row 5 \(cell 3\): its tile has values that are not finite")
    with h5py.File(path, "r+") as file:
        file["single_cell_data"][5, 2, 1, 1] = 0
        file["single_cell_index"][3, 1] = 7
        file["single_cell_index_labelled"][3, 1] = "7"
    damaged(path, r"row 4 \(cell 7\) is a duplicate")
    with h5py.File(path, "r+") as file:
        file["single_cell_index"][3, 0] = 2
    damaged(path, "does not number the rows")


def test_a_plane_that_was_never_written(path):
    with h5py.File(path, "w") as file:
        images = file.create_dataset("single_cell_data", (5, 3, 6, 6), "f4", chunks=(1, 1, 6, 6))
        images[:] = 1
        file["single_cell_index"] = np.stack([np.arange(5), np.arange(5)], 1)
    assert verify(path).n_masks == 2
    with h5py.File(path, "r+") as file:
        del file["single_cell_data"]
        images = file.create_dataset("single_cell_data", (5, 3, 6, 6), "f4", chunks=(1, 1, 6, 6))
        images[:4] = 1
        images[4, :2] = 1
    damaged(path, r"row 4 was never written \(14 of 15 chunks")


@needs_shared
@pytest.mark.parametrize(
    ("golden", "n_cells", "n_channels"),
    [(CLASSIC / "single_cells.s64.h5", 226, 3), (TIME_COURSE / "single_cells.s48.h5", 150, 2)],
)
def test_files_of_sparcspy_are_read(golden, n_cells, n_channels):
    found = verify(golden)
    assert (found.n_cells, found.n_masks, found.n_channels) == (n_cells, 2, n_channels)
    with open_cells(golden) as cells, h5py.File(golden) as file:
        assert cells.planes == ("seg_all_nucleus", "seg_all_cytosol", "ch0", "ch1", "ch2")[: 2 + n_channels]
        np.testing.assert_array_equal(cells.read([7, 3]), file["single_cell_data"][:][[7, 3]])
        assert cells.info == {"compression": "lzf", "dropped": {}}
        if n_cells == 150:
            assert list(cells.obs)[:3] == ["scportrait_cell_id", "slide", "ID"]
            assert cells.obs["region"].iloc[0] == "regionA"


def assert_equals_sparcspy(ours, theirs, ulp=1):
    """Check that datasets, types, chunks, texts and rows are the same, and values within an ulp of float16."""
    assert described(ours) == described(theirs)
    with h5py.File(ours) as one, h5py.File(theirs) as other:
        np.testing.assert_array_equal(one["single_cell_index"], other["single_cell_index"])
        if "label_names" in other:
            np.testing.assert_array_equal(one["label_names"], other["label_names"])
            labelled = one["single_cell_index_labelled"].asstr()[:]
            # The row numbers in the texts of SPARCSpy are outdated.
            np.testing.assert_array_equal(labelled[:, 0], np.arange(len(labelled)).astype(str))
            np.testing.assert_array_equal(labelled[:, 1:], other["single_cell_index_labelled"].asstr()[:, 1:])
        values = [file["single_cell_data"][:].astype(np.float16).view(np.int16).astype(int) for file in (one, other)]
        assert np.abs(values[0] - values[1]).max() <= ulp


@needs_shared
@pytest.mark.parametrize(("device", "ulp"), [("cpu", 1), ("reference", 0)])
def test_one_slide_is_what_sparcspy_wrote(path, device, ulp):
    with h5py.File(CLASSIC / "segmentation.h5") as file:
        image, (nucleus, cytosol) = file["channels"][:], file["labels"][:]
    gx.extract(
        image,
        nucleus=nucleus,
        cytosol=cytosol,
        output=path,
        recipe="sparcspy",
        tile_size=64,
        ids=np.loadtxt(CLASSIC / "classes.csv", dtype=int),
        layout="sparcspy",
        device=device,
    )
    assert_equals_sparcspy(path, CLASSIC / "single_cells.s64.h5", ulp)


@needs_shared
def test_a_time_course_is_what_sparcspy_wrote(path):
    with h5py.File(TIME_COURSE / "input_segmentation.h5") as file:
        names = [name.decode() for name in file["label_names"][1:]]
        slides = [
            {"image": image, "nucleus": nucleus, "cytosol": cytosol, **dict(zip(names, labels, strict=True))}
            for image, (nucleus, cytosol), labels in zip(
                file["input_images"][:], file["segmentation"][:], file["labels"].asstr()[:, 1:], strict=True
            )
        ]
    gx.extract_many(
        slides,
        output=path,
        recipe="sparcspy",
        tile_size=48,
        ids=np.loadtxt(TIME_COURSE / "classes.csv", dtype=int),
        layout="sparcspy",
        device="cpu",
    )
    assert_equals_sparcspy(path, TIME_COURSE / "single_cells.s48.h5")


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_chosen_planes_are_a_format_of_their_own(compression):
    contents = make_contents(3, planes=(0, 3))
    planes = LAYOUTS["sparcspy"].format(contents, compression).shape[1]
    assert planes == (2 if compression == "none" else 1)
