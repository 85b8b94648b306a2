"""PNG and JPEG."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

import gpu_extract as gx
from gpu_extract.errors import GpuExtractError, LabelError, SourceError
from gpu_extract.sources import open_image, open_labels, open_slide

RNG = np.random.default_rng(5)
GRAY8 = RNG.integers(0, 256, (60, 80)).astype(np.uint8)
GRAY16 = RNG.integers(0, 65_536, (60, 80)).astype(np.uint16)
RGB = RNG.integers(0, 256, (60, 80, 3)).astype(np.uint8)
LABELS = np.zeros((60, 80), np.uint16)
BOX = (3, 11, 59, 80)


def crop(array):
    y0, x0, y1, x1 = BOX
    return array[..., y0:y1, x0:x1]


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def write_png(path, pixels, color, bits, more=b""):
    """Write a PNG of any bit depth and color type, which Pillow does not."""
    rows = b"".join(b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], bits, color, 0, 0, 0)
    parts = chunk(b"IHDR", header) + more + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    return path


def warnings_of(path):
    return open_slide(path, nucleus=LABELS).warnings


@pytest.mark.parametrize("pixels", [GRAY8, GRAY16], ids=["8 bits", "16 bits"])
def test_grayscale_png_is_a_channel_or_a_label_plane(tmp_path, pixels):
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    for raster in (open_image(path), open_labels(path, "nucleus")):
        assert raster.shape == (1, 60, 80)
        assert raster.dtype == pixels.dtype
        np.testing.assert_array_equal(raster.read(*BOX)[0], crop(pixels))
    assert warnings_of(path) == ()


def test_cells_of_png_labels_are_those_of_the_array(tmp_path):
    labels = LABELS.copy()
    labels[20:30, 20:30], labels[40:50, 30:45] = 7, 300
    Image.fromarray(labels).save(tmp_path / "a_cp_masks.png")
    Image.fromarray(GRAY16).save(tmp_path / "a.png")
    given = {"tile_size": 24, "device": "reference"}
    gx.extract(tmp_path / "a.png", nucleus=tmp_path / "a_cp_masks.png", output=tmp_path / "a.h5sc", **given)
    gx.extract(GRAY16, nucleus=labels, output=tmp_path / "b.h5sc", **given)
    with gx.open_cells(tmp_path / "a.h5sc") as ours, gx.open_cells(tmp_path / "b.h5sc") as expected:
        assert ours.ids.tolist() == [7, 300]
        np.testing.assert_array_equal(ours.read(range(2)), expected.read(range(2)))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("has_alpha", [False, True])
def test_rgb_png_is_three_channels(tmp_path, bits, has_alpha):
    pixels = RGB.astype(f"u{bits // 8}") * (1 if bits == 8 else 200)
    expected = np.moveaxis(pixels, -1, 0)
    if has_alpha:
        pixels = np.concatenate([pixels, pixels[..., :1]], axis=2)
    path = write_png(tmp_path / "a.png", pixels, 6 if has_alpha else 2, bits)
    raster = open_image(path)
    assert raster.names == ("R", "G", "B")
    assert raster.dtype == f"u{bits // 8}"
    np.testing.assert_array_equal(raster.read(*BOX), crop(expected))
    np.testing.assert_array_equal(open_image(f"{path}#c=B,R").read(*BOX), crop(expected[[2, 0]]))
    (warning,) = warnings_of(path)
    assert "is an RGB picture, read as the channels R, G and B" in warning
    assert ("has transparency, which is ignored" in warning) == has_alpha


def test_transparency_of_grayscale_is_ignored_in_images_and_refused_in_labels(tmp_path):
    path = write_png(tmp_path / "a.png", np.stack([GRAY8, GRAY8], axis=-1), 4, 8)
    np.testing.assert_array_equal(open_image(path).read(*BOX)[0], crop(GRAY8))
    assert "has transparency" in warnings_of(path)[0]
    with pytest.raises(LabelError, match="a PNG with transparency"):
        open_labels(path, "nucleus")


def test_a_transparent_gray_value_changes_nothing(tmp_path):
    path = write_png(tmp_path / "a.png", GRAY8, 0, 8, chunk(b"tRNS", struct.pack(">H", int(GRAY8[5, 20]))))
    np.testing.assert_array_equal(open_labels(path, "nucleus").read(*BOX)[0], crop(GRAY8))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_is_an_image(tmp_path, mode):
    path = tmp_path / "a.jpg"
    pixels = np.repeat(np.repeat(RGB[::20, ::20], 20, 0), 20, 1)
    Image.fromarray(pixels if mode == "RGB" else pixels[..., 0]).save(path, quality=95)
    raster = open_image(path)
    assert raster.shape == (3 if mode == "RGB" else 1, 60, 80)
    expected = np.atleast_3d(np.asarray(Image.open(path)))
    assert np.abs(raster.read(0, 0, 60, 80).astype(int) - np.moveaxis(expected, -1, 0)).max() <= 3
    (warning,) = warnings_of(path)
    assert "is a JPEG, whose compression has changed the intensities" in warning
    with pytest.raises(LabelError, match="is a JPEG, which changes ids; export the labels as TIFF"):
        open_labels(path, "nucleus")


def test_pictures_are_decoded_once(tmp_path, monkeypatch):
    import imagecodecs

    calls, original = [], imagecodecs.png_decode
    monkeypatch.setattr(imagecodecs, "png_decode", lambda data: calls.append(1) or original(data))
    Image.fromarray(GRAY16).save(tmp_path / "a.png")
    rasters = [open_image(tmp_path / "a.png"), open_labels(tmp_path / "a.png", "nucleus")]
    assert calls == []
    for raster in rasters * 2:
        raster.read(*BOX)
    assert calls == [1]


def test_pictures_are_read_in_another_process(tmp_path, elsewhere):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    (window,) = elsewhere([open_slide(tmp_path / "a.png", nucleus=LABELS)], BOX)
    np.testing.assert_array_equal(window.image, crop(np.moveaxis(RGB, -1, 0)))


@pytest.mark.parametrize(
    ("mode", "opened", "message"),
    [
        ("P", "image", "is a PNG with a color palette; save it in grayscale or RGB"),
        ("P", "labels", "is a PNG with a color palette, .*; export the ids as TIFF or as grayscale PNG of 16 bits"),
        ("RGB", "labels", "is a PNG with colors, .*; export the ids"),
        ("RGBA", "labels", "is a PNG with colors"),
        ("1", "image", "has 1 bits per pixel; save it with 8 or 16"),
        ("1", "labels", "has 1 bits per pixel; save it with 8 or 16"),
    ],
)
def test_pictures_that_are_refused(tmp_path, mode, opened, message):
    Image.fromarray(RGB).convert(mode).save(tmp_path / "a.png")
    with pytest.raises(SourceError if opened == "image" or mode == "1" else LabelError, match=message):
        open_image(tmp_path / "a.png") if opened == "image" else open_labels(tmp_path / "a.png", "nucleus")


def test_cmyk_is_refused(tmp_path):
    Image.fromarray(RGB).convert("CMYK").save(tmp_path / "a.jpg")
    with pytest.raises(SourceError, match="is a picture of 4 colors"):
        open_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("size", [(60_000, 60_000), (0, 80)])
def test_impossible_sizes_are_refused_before_anything_is_decoded(tmp_path, size):
    Image.fromarray(GRAY8).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[16:24] = struct.pack(">II", *size)
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(SourceError, match="is damaged: it claims"):
        open_image(tmp_path / "a.png")


def test_pictures_that_are_too_large_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("gpu_extract.sources.pictures.MAX_NBYTES", 1000)
    Image.fromarray(GRAY8).save(tmp_path / "a.png")
    with pytest.raises(SourceError, match=r"has 4800 bytes of pixels, and at most 1000 are read from a PNG; save"):
        open_image(tmp_path / "a.png")


def test_a_picture_has_no_levels_or_time_points(tmp_path):
    Image.fromarray(GRAY8).save(tmp_path / "a.png")
    with pytest.raises(GpuExtractError, match="has nothing that level= could select"):
        open_image(f"{tmp_path / 'a.png'}#level=1")


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_pictures_raise_our_own_errors(tmp_path, seed, name):
    rng = np.random.default_rng(seed)
    Image.fromarray(RGB).save(tmp_path / name)
    damaged = bytearray((tmp_path / name).read_bytes())
    for position in rng.integers(3, 200 if seed % 2 else len(damaged), 3):
        damaged[position] ^= 1 << rng.integers(8)
    (tmp_path / name).write_bytes(damaged[: len(damaged) // (1 + (seed % 3 == 0))])
    try:
        raster = open_image(tmp_path / name)
        raster.read(0, 0, *raster.shape[1:])
    except GpuExtractError as error:
        message = str(error)
        assert "\n" not in message
