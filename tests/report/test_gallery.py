"""The gallery displays the given pixels in order, and never leaves an incomplete file."""

from __future__ import annotations

import errno

import numpy as np
import pytest
from PIL import Image, ImageChops

from gpu_extract.errors import InputError, OutputError
from gpu_extract.report.gallery import GAMMA, MARGIN, contact_sheet, write_gallery

NAMES = ["seg_all_nucleus", "seg_all_cytosol", "DNA", "actin"]


def ids_of(n):
    return np.arange(1, n + 1, dtype=np.uint64)


def names_of(n_planes):
    return [f"plane {k}" for k in range(n_planes)]


def sheet_of(images, n_masks=0, **options):
    return contact_sheet(images, ids_of(len(images)), names_of(images.shape[1]), n_masks, **options)


def runs(flags):
    """(start, stop) of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(int)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def tiles_of(images, n_masks=0):
    """The displayed tiles of each cell and plane, (n, K, side, side) uint8.

    In the same sheet without any signal, the tiles are the only pixels that are purely black.
    """
    black = np.asarray(sheet_of(np.zeros_like(images), n_masks)).max(axis=2) == 0
    sheet = np.asarray(sheet_of(images, n_masks).convert("L"))
    rows, columns = runs(black.any(axis=1)), runs(black.any(axis=0))
    assert (len(rows), len(columns)) == images.shape[:2]
    return np.array([[sheet[y0:y1, x0:x1] for x0, x1 in columns] for y0, y1 in rows])


def test_every_pixel_is_displayed_in_its_row_and_column():
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (3, 4, 8, 8)) / np.float32(255)
    shown = tiles_of(images, n_masks=2)
    expected = np.concatenate([images[:, :2], images[:, 2:].astype(np.float64) ** GAMMA], axis=1)
    expected = np.rint(expected.repeat(12, axis=2).repeat(12, axis=3) * 255)
    np.testing.assert_array_equal(shown, expected)


@pytest.mark.parametrize(
    ("size", "side"),
    [(1, 96), (16, 96), (64, 128), (95, 190), (96, 96), (128, 128), (192, 192), (193, 97), (512, 171)],
)
def test_small_tiles_are_enlarged_and_large_ones_reduced(size, side):
    assert tiles_of(np.ones((1, 2, size, size), np.float16), n_masks=1).shape == (1, 2, side, side)


def test_large_tiles_are_reduced_to_the_mean_of_blocks():
    image = np.zeros((1, 1, 384, 384), np.float32)
    image[0, 0, ::2, ::2] = 1
    image[0, 0, :2, :2] = 1
    shown = tiles_of(image, n_masks=1)[0, 0]
    assert shown[0, 0] == 255
    assert set(shown.ravel()[1:].tolist()) == {64}


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", ">f4", "float64", "uint8", "uint16", ">u2", "int16", "uint32", "bool"]
)
def test_bright_pixels_of_every_stored_type_are_white(dtype):
    images = np.zeros((2, 2, 24, 24), dtype)
    top = 1 if images.dtype.kind in "fb" else np.iinfo(dtype).max
    images[0, 0, :12] = top
    images[1, 1, :, :6] = top
    shown = tiles_of(images, n_masks=1)
    assert set(shown[0, 0, :48].ravel().tolist()) == {255}
    assert set(shown[0, 0, 48:].ravel().tolist()) == {0}
    assert set(shown[1, 1, :, :24].ravel().tolist()) == {255}
    assert not shown[0, 1].any()
    assert not shown[1, 0].any()


def test_raw_counts_of_each_channel_are_scaled_separately():
    ramp = np.linspace(0, 1, 96 * 96).reshape(96, 96)
    images = np.stack([100 + 50 * ramp, 1000 + 60000 * ramp])[None].astype(np.uint16)
    faint, bright = tiles_of(images)[0].astype(int)
    assert faint.min() == bright.min() == 0
    assert faint.max() == bright.max() == 255
    assert abs(faint - bright).max() <= 8  # the faint one has 50 gray values


def test_a_channel_without_contrast_is_black():
    assert not tiles_of(np.full((2, 1, 16, 16), 700, np.uint16)).any()


def test_a_few_bright_pixels_on_a_constant_background_are_visible():
    images = np.full((1, 1, 96, 96), 500, np.uint16)
    images[0, 0, 10, 20] = 900
    shown = tiles_of(images)[0, 0]
    assert shown[10, 20] == 255
    assert shown.sum() == 255


def test_nonfinite_pixels_are_black():
    images = np.linspace(0, 1, 256, dtype=np.float16).reshape(1, 1, 16, 16).copy()
    images[0, 0, 0, 0], images[0, 0, 15, 15] = np.nan, np.inf
    shown = tiles_of(images)[0, 0]
    assert shown[0, 0] == shown[-1, -1] == 0
    assert shown.max() == 255


def test_masks_above_one_are_scaled_to_their_maximum():
    images = np.zeros((1, 2, 96, 96), np.uint16)
    images[0, :, :48] = [[[65535]], [[300]]]
    images[0, :, 48] = [[32768], [150]]
    for shown in tiles_of(images, n_masks=2)[0]:
        assert (shown[0, 0], shown[48, 0], shown[95, 0]) == (255, 128, 0)


def test_the_picture_depends_only_on_the_input():
    images = np.random.default_rng(0).random((2, 4, 16, 16)).astype(np.float16)
    first, second = (contact_sheet(images, ids_of(2), NAMES, 2, title="ht29") for _ in range(2))
    assert first.mode == "RGB"
    assert first.tobytes() == second.tobytes()


def test_long_names_are_shortened_in_the_picture_only():
    images = np.zeros((1, 2, 16, 16), np.float32)
    names = [f"WheatGermAgglutininAlexaFluor647_{'cycle' * 20}_{k}" for k in range(2)]
    given = list(names)
    sheet = contact_sheet(images, ids_of(1), names, 0)
    assert names == given
    assert sheet.width == contact_sheet(images, ids_of(1), ["a", "b"], 0).width
    # The names differ only at their ends.
    swapped = contact_sheet(images, ids_of(1), names[::-1], 0)
    assert ImageChops.difference(sheet, swapped).getbbox() is not None


def test_names_in_other_scripts_are_drawn_in_available_letters():
    images = np.zeros((1, 1, 64, 64), np.float32)

    def header(name):
        return contact_sheet(images, ids_of(1), [name], 0, title=name).tobytes()

    assert header("α-tubulin, Müller, µm") == header("alpha-tubulin, Muller, mum")
    assert header("核\n") == header("??")
    assert header("")


def test_ids_of_twenty_digits_fit():
    images = np.zeros((2, 1, 16, 16), np.float32)
    ids = np.array([2**64 - 1, 7], np.uint64)
    sheet = contact_sheet(images, ids, ["DNA"], 0)
    left_of_tiles = np.asarray(sheet).max(axis=2).argmin(axis=1).max()
    assert left_of_tiles > MARGIN + 20 * 5
    assert (np.asarray(sheet)[:, :MARGIN] == 255).all()
    other = contact_sheet(images, ids - np.uint64(1), ["DNA"], 0)
    assert ImageChops.difference(sheet, other).getbbox() is not None


def test_the_heading_contains_the_number_of_cells():
    images = np.zeros((1, 1, 64, 64), np.float32)
    plain = sheet_of(images)
    assert sheet_of(images, n_total=1).tobytes() == plain.tobytes()
    assert sheet_of(images, n_total=226).tobytes() != plain.tobytes()
    titled = sheet_of(images, title="a_long_name_of_an_experiment" * 9)
    assert titled.width == plain.width
    assert titled.height > plain.height


@pytest.mark.parametrize(
    ("shape", "n_ids", "n_names", "n_masks", "message"),
    [
        ((0, 2, 8, 8), 0, 2, 1, "no cell"),
        ((1, 0, 8, 8), 1, 0, 0, "no cell"),
        ((2, 2, 8, 9), 2, 2, 1, r"\(n, K, S, S\)"),
        ((2, 8, 8), 2, 8, 1, r"\(n, K, S, S\)"),
        ((2, 2, 8, 8), 3, 2, 1, "3 ids were given for 2 cells"),
        ((2, 2, 8, 8), 2, 3, 1, "3 plane names were given for 2 planes"),
        ((2, 2, 8, 8), 2, 2, 3, "n_masks is 3"),
    ],
)
def test_inconsistent_arguments_are_errors(shape, n_ids, n_names, n_masks, message):
    with pytest.raises(InputError, match=message):
        contact_sheet(np.zeros(shape, np.float32), ids_of(n_ids), names_of(n_names), n_masks)


@pytest.fixture
def cells():
    return np.full((2, 4, 16, 16), 0.5, np.float16), ids_of(2), NAMES, 2


def test_the_file_is_a_png_of_the_sheet(tmp_path, cells):
    path = write_gallery(tmp_path / "gallery.png", *cells, n_total=9, title="ht29")
    assert path == tmp_path / "gallery.png"
    with Image.open(path) as written:
        assert written.format == "PNG"
        assert written.tobytes() == contact_sheet(*cells, n_total=9, title="ht29").tobytes()
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_replaced_only_with_overwrite(tmp_path, cells):
    path = tmp_path / "gallery.png"
    path.write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        write_gallery(path, *cells)
    assert path.read_text() == "mine"
    write_gallery(str(path), *cells, overwrite=True)
    with Image.open(path) as written:
        assert written.size == contact_sheet(*cells).size


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gallery.pdf", "a gallery is PNG: name it .png"),
        ("gallery.svg", "has the suffix .svg"),
        ("gallery.jpg", "has the suffix .jpg"),
        ("gallery", "has no suffix"),
        (".", "is a folder"),
        ("g" * 300 + ".png", "cannot be written"),
        ("missing/" + "g" * 300 + ".png", "cannot be written"),
    ],
)
def test_an_unwritable_path_is_an_error_of_one_line(tmp_path, cells, name, message):
    with pytest.raises(OutputError, match=message) as caught:
        write_gallery(tmp_path / name, *cells)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_missing_folders_are_made(tmp_path, cells):
    path = write_gallery(tmp_path / "a" / "b" / "gallery.PNG", *cells)
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OutputError, match="is not a folder"):
        write_gallery(path / "gallery.png", *cells)


def test_a_full_disk_leaves_an_existing_file(tmp_path, cells, monkeypatch):
    def save_half(self, path, **_):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "gallery.png"
    path.write_text("mine")
    monkeypatch.setattr(Image.Image, "save", save_half)
    with pytest.raises(OutputError, match="No space left on device"):
        write_gallery(path, *cells, overwrite=True)
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]
