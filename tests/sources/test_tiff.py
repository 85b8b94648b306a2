import itertools
import struct
import subprocess
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpu_extract.errors import GpuExtractError, LabelError, SourceError
from gpu_extract.sources import open_image, open_labels, open_slide
from gpu_extract.sources.caches import SegmentCache
from gpu_extract.sources.tiff_plane import CodedPlane

FORMATS = Path(__file__).parents[3] / "shared" / "data" / "formats"
RNG = np.random.default_rng(7)
IMAGE = (np.add.outer(np.arange(100), np.arange(150)) + RNG.integers(0, 9, (3, 100, 150))).astype(np.uint16)
BOX = (33, 5, 97, 150)

PIXELS = {"photometric": "minisblack"}
LAYOUTS = {
    "strips": {"rowsperstrip": 16},
    "one strip": {"rowsperstrip": 100},
    "tiles": {"tile": (32, 48)},
    "one tile": {"tile": (112, 160)},
}
CODINGS = {
    "raw": {},
    "zlib": {"compression": "zlib"},
    "zlib predictor": {"compression": "zlib", "predictor": True},
    "lzw": {"compression": "lzw"},
    "zstd": {"compression": "zstd"},
    "packbits": {"compression": "packbits"},
    "jpeg 2000": {"compression": "jpeg2000"},
}
CONTAINERS = {
    "plain": {},
    "pages": {"metadata": None},
    "big-endian": {"byteorder": ">"},
    "bigtiff": {"bigtiff": True},
    "ome": {"ome": True, "metadata": {"axes": "CYX", "Channel": {"Name": ["DNA", "pH3", "actin"]}}},
    "samples": {"photometric": "rgb", "planarconfig": "separate"},
}
# tifffile refuses to write big-endian JPEG 2000, or in older versions swaps its bytes.
CODINGS_IN_CONTAINERS = sorted({*itertools.product(CODINGS, CONTAINERS)} - {("jpeg 2000", "big-endian")})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "slide.tif"


@pytest.fixture
def decoded(monkeypatch):
    """Return the list of decoded strips and tiles, in order."""
    segments = []
    original = CodedPlane.decode

    def decode(plane, stream, segment):
        segments.append(segment)
        return original(plane, stream, segment)

    monkeypatch.setattr(CodedPlane, "decode", decode)
    return segments


def crop(array, box=BOX):
    y0, x0, y1, x1 = box
    return array[..., y0:y1, x0:x1]


def ome_xml(n_channels, content):
    sizes = f'SizeX="150" SizeY="100" SizeC="{n_channels}" SizeZ="1" SizeT="1"'
    pixels = f'ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" {sizes}'
    namespace = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
    image = f'<Image ID="Image:0"><Pixels {pixels}>{content}</Pixels></Image>'
    return f'<OME xmlns="{namespace}" UUID="urn:uuid:0">{image}</OME>'


def check_reads(path, expected):
    raster = open_image(path)
    pixels = raster.read(*BOX)
    assert raster.shape == expected.shape
    assert raster.dtype == pixels.dtype == expected.dtype.newbyteorder("=")
    np.testing.assert_array_equal(pixels, crop(expected))
    np.testing.assert_array_equal(raster.read(0, 0, *expected.shape[1:]), expected)
    return raster


# Layouts, codings and containers


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("coding", "container"), CODINGS_IN_CONTAINERS)
def test_layouts_codings_and_containers(path, layout, coding, container):
    tifffile.imwrite(path, IMAGE, **{**PIXELS, **LAYOUTS[layout], **CODINGS[coding], **CONTAINERS[container]})
    raster = check_reads(path, IMAGE)
    assert raster.names == {"ome": ("DNA", "pH3", "actin"), "samples": ("R", "G", "B")}.get(container, ())


@pytest.mark.parametrize("dtype", ["u1", "i2", "u4", "f2", "f4", "f8", "u8"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("coding", ["raw", "zlib"])
def test_pixel_types(path, dtype, byteorder, coding):
    image = IMAGE.astype(dtype)
    tifffile.imwrite(path, image, byteorder=byteorder, tile=(32, 48), **PIXELS, **CODINGS[coding])
    check_reads(path, image)


def test_float_predictor(path):
    image = IMAGE.astype(np.float32) / 7
    tifffile.imwrite(path, image, tile=(32, 48), compression="zlib", predictor=3, byteorder=">", **PIXELS)
    check_reads(path, image)


def test_pyramid_is_read_at_level_0(path):
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(IMAGE, subifds=2, tile=(32, 48), compression="zlib", metadata={"axes": "CYX"}, **PIXELS)
        writer.write(IMAGE[:, ::2, ::2], subfiletype=1, tile=(32, 48), compression="zlib", **PIXELS)
        writer.write(IMAGE[:, ::4, ::4], subfiletype=1, tile=(32, 48), compression="zlib", **PIXELS)
    check_reads(path, IMAGE)


def test_pages_written_one_by_one_are_channels(path):
    with tifffile.TiffWriter(path) as writer:
        for page, coding in zip(IMAGE, ({}, {"compression": "zlib"}, {"compression": "lzw"}), strict=True):
            writer.write(page, **coding, **PIXELS)
    check_reads(path, IMAGE)


def test_pages_of_a_series_with_different_codings(path):
    xml = ome_xml(3, "<Channel/><Channel/><Channel/><TiffData/>")
    with tifffile.TiffWriter(path, ome=False) as writer:
        for index, coding in enumerate(("zlib", "lzw", "zstd")):
            description = xml if index == 0 else None
            writer.write(IMAGE[index], compression=coding, description=description, metadata=None, **PIXELS)
    check_reads(path, IMAGE)


def test_imagej_hyperstack_with_labels(path):
    metadata = {"axes": "CYX", "Labels": ["Hoechst", "CD8", "CD8"]}
    tifffile.imwrite(path, IMAGE, imagej=True, metadata=metadata)
    assert check_reads(path, IMAGE).names == ("Hoechst", "CD8", "CD8")
    assert open_slide(path, nucleus=IMAGE[0]).channel_names == ("Hoechst", "CD8", "CD8_2")


@pytest.mark.parametrize("kind", [{"imagej": True, "metadata": {"axes": "CYX"}}, {"truncate": True, **PIXELS}])
def test_one_page_that_describes_all_planes(path, kind):
    tifffile.imwrite(path, IMAGE, **kind)
    check_reads(path, IMAGE)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(SourceError):
        open_image(path)


def test_unit_axes_are_dropped(path):
    tifffile.imwrite(path, IMAGE[None, :, None], ome=True, metadata={"axes": "TCZYX"}, **PIXELS)
    check_reads(path, IMAGE)


def test_one_page(path):
    tifffile.imwrite(path, IMAGE[0], tile=(32, 48), compression="zlib")
    check_reads(path, IMAGE[:1])
    np.testing.assert_array_equal(open_labels(path, "cytosol").read(*BOX)[0], crop(IMAGE[0]))


def test_several_tiffs_are_channels(tmp_path):
    paths = [tmp_path / f"d{index}.tif" for index in range(3)]
    for path, page, kind in zip(paths, IMAGE, LAYOUTS, strict=False):
        tifffile.imwrite(path, page, compression="zlib", **LAYOUTS[kind])
    slide = open_slide(paths, nucleus=IMAGE[0])
    np.testing.assert_array_equal(slide.image.read(*BOX), crop(IMAGE))
    assert slide.channel_names == ("d0", "d1", "d2")
    assert slide.name == "d0"


def test_packed_bits(path):
    image = IMAGE % 4096
    try:
        imagecodecs.packints_encode(image, 12)
    except NotImplementedError:
        pytest.skip("this imagecodecs reads packed bits and does not write them")
    tifffile.imwrite(path, image, bitspersample=12, rowsperstrip=16, **PIXELS)
    check_reads(path, image)


# Reading by region


@pytest.fixture(scope="module")
def rasters(tmp_path_factory):
    folder = tmp_path_factory.mktemp("boxes")
    opened = []
    for index, (layout, coding) in enumerate(itertools.product(LAYOUTS, ("raw", "zlib predictor"))):
        path = folder / f"{index}.tif"
        tifffile.imwrite(path, IMAGE, **PIXELS, **LAYOUTS[layout], **CODINGS[coding])
        opened.append(open_image(path))
    return opened


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    y=st.tuples(st.integers(0, 100), st.integers(0, 100)),
    x=st.tuples(st.integers(0, 150), st.integers(0, 150)),
)
def test_boxes_are_slices(rasters, y, x):
    box = (min(y), min(x), max(y), max(x))
    for raster in rasters:
        np.testing.assert_array_equal(raster.read(*box), crop(IMAGE, box))


@pytest.mark.parametrize(
    ("layout", "box", "segments"),
    [
        ("strips", (0, 0, 1, 1), [0]),
        ("strips", (15, 0, 33, 150), [0, 1, 2]),
        ("tiles", (0, 0, 32, 48), [0]),
        ("tiles", (31, 47, 33, 49), [0, 1, 4, 5]),
        ("tiles", (99, 149, 100, 150), [15]),
    ],
)
def test_only_segments_in_the_box_are_decoded(path, decoded, layout, box, segments):
    tifffile.imwrite(path, IMAGE, compression="zlib", **LAYOUTS[layout], **PIXELS)
    raster = open_image(path)
    assert decoded == []
    raster.read(*box)
    assert sorted(decoded) == sorted(segments * 3)  # by several threads, in any order


def test_successive_boxes_decode_each_segment_once(path, decoded):
    tifffile.imwrite(path, IMAGE, compression="zlib", **LAYOUTS["tiles"], **PIXELS)
    raster = open_image(path)
    for y in range(0, 91, 5):
        for x in range(0, 140, 20):
            raster.read(y, x, y + 10, min(x + 30, 150))
    assert sorted(decoded) == sorted(list(range(16)) * 3)


def test_uncompressed_contiguous_pages_are_memory_mapped(path, decoded):
    tifffile.imwrite(path, IMAGE, **LAYOUTS["strips"], **PIXELS)
    open_image(path).read(*BOX)
    assert decoded == []


def test_rasters_of_different_files_do_not_share_segments(tmp_path):
    for index in range(2):
        tifffile.imwrite(tmp_path / f"{index}.tif", IMAGE + index, compression="zlib", **PIXELS)
    first, second = (open_image(tmp_path / f"{index}.tif") for index in range(2))
    np.testing.assert_array_equal(first.read(*BOX) + 1, second.read(*BOX))


def test_reading_with_a_tiny_cache(path, monkeypatch):
    tifffile.imwrite(path, IMAGE, compression="zlib", **LAYOUTS["tiles"], **PIXELS)
    raster, cache = open_image(path), SegmentCache(1)
    monkeypatch.setattr("gpu_extract.sources.caches.SEGMENTS", cache)
    np.testing.assert_array_equal(raster.read(*BOX), crop(IMAGE))
    raster.read(0, 0, 1, 1)
    assert cache.nbytes == 3 * 32 * 48 * 2


# Headers that are refused


def write_mini_is_white(path):
    tifffile.imwrite(path, IMAGE, photometric="miniswhite")


def write_interleaved(path):
    tifffile.imwrite(path, np.moveaxis(IMAGE, 0, -1), photometric="rgb")


def write_time_series(path):
    tifffile.imwrite(path, np.stack([IMAGE, IMAGE]), ome=True, metadata={"axes": "TCYX"}, **PIXELS)


def write_z_stack(path):
    tifffile.imwrite(path, IMAGE, imagej=True, metadata={"axes": "ZYX"})


def write_two_images(path):
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(IMAGE, metadata={"axes": "CYX", "Name": "field 1"}, **PIXELS)
        writer.write(IMAGE[:, :50], metadata={"axes": "CYX", "Name": "field 2"}, **PIXELS)


def write_pages_of_two_sizes(path):
    with tifffile.TiffWriter(path) as writer:
        writer.write(IMAGE[0], metadata=None)
        writer.write(IMAGE[0, :50], metadata=None)


def write_rgb_pages(path):
    with tifffile.TiffWriter(path) as writer:
        for _ in range(2):
            writer.write(np.moveaxis(IMAGE, 0, -1), photometric="rgb")


def write_sparse(path):
    tiles = [IMAGE[0, :32, :48].tobytes(), b"", b"", IMAGE[0, :32, :48].tobytes()]
    tifffile.imwrite(path, iter(tiles), shape=(64, 96), dtype="u2", tile=(32, 48))


def write_entity_bomb(path):
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
    xml = f'<?xml version="1.0"?><!DOCTYPE OME [<!ENTITY e0 "lol">{entities}]><OME><Image Name="&e9;"/></OME>'
    tifffile.imwrite(path, IMAGE[0], description=xml, metadata=None)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_mini_is_white, "stored inverted .MinIsWhite.; save it as MinIsBlack"),
        (write_rgb_pages, "has 2 Z slices; add #z=0 to #z=1"),
        (write_time_series, "has 2 time points; add #t=0 to #t=1 to its path for one, or make each a slide"),
        (write_z_stack, "has 3 Z slices; add #z=0 to #z=2 to its path for one, or #z=max for their maximum"),
        (
            write_two_images,
            r"holds 2 images: 0: field 1 \(C=3 Y=100 X=150\), 1: field 2 \(C=3 Y=50 X=150\); choose .*#image=0$",
        ),
        (write_pages_of_two_sizes, r"holds 2 images: 0: no name \(Y=100 X=150\), 1: no name \(Y=50 X=150\); choose"),
        (write_sparse, "sparse: 2 of 4 strips or tiles are absent on page 0"),
        (write_entity_bomb, "damaged TIFF"),
    ],
)
def test_refused_headers(path, write, message):
    write(path)
    with pytest.raises(SourceError, match=message) as caught:
        open_image(path)
    assert str(caught.value).startswith(f"image {path} ")
    assert "\n" not in str(caught.value)


def test_rgb_labels_are_refused(path):
    write_interleaved(path)
    with pytest.raises(LabelError, match=r"nucleus label plane .* 3 colors per pixel .*export the ids"):
        open_labels(path, "nucleus")


@pytest.mark.parametrize("codec", ["jpeg", "jpeg2000", "webp"])
def test_lossy_labels_are_refused(path, codec):
    rgb = {"photometric": "rgb", "planarconfig": "contig"} if codec == "webp" else {}
    labels = np.zeros((96, 96, 3) if rgb else (96, 96), np.uint8)
    tifffile.imwrite(path, labels, compression=codec, tile=(96, 96), **rgb)
    with pytest.raises(LabelError):
        open_labels(path, "nucleus")
    if codec == "jpeg":
        with pytest.raises(LabelError, match="compressed with JPEG, which may change ids"):
            open_labels(path, "nucleus")
        assert open_image(path).read(0, 0, 96, 96).sum() == 0


def ifd(entries):
    """A little-endian TIFF of one page and no pixels, 512 bytes long."""
    tags = b"".join(struct.pack("<HHII", code, kind, 1, value) for code, kind, value in entries)
    return (b"II*\0" + struct.pack("<IH", 8, len(entries)) + tags + bytes(4)).ljust(512, b"\0")


NO_WIDTH = [(256, 4, 0), (257, 4, 10), (258, 3, 16)]
SIZE = [(256, 4, 10**6), (257, 4, 10**6), (258, 3, 16)]
STRIP = [(273, 4, 200), (277, 3, 1), (278, 4, 10**6), (279, 4, 300)]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([*SIZE, (259, 3, 1), (262, 3, 1), *STRIP], "truncated: page 0 reaches beyond the 512 bytes"),
        (
            [*SIZE, (259, 3, 8), (262, 3, 1), *STRIP],
            "claims 2000000000000 bytes of pixels, more than the 300",
        ),
        ([*SIZE, (259, 3, 5), (262, 3, 1), *STRIP], "strips or tiles of 2000000000000 bytes, and at most"),
        ([*SIZE, (259, 3, 8), (262, 3, 1), (273, 4, 200), (278, 4, 1), (279, 4, 300)], "1 of 1000000 strips"),
        ([*NO_WIDTH, (259, 3, 5), (262, 3, 1), *STRIP], "page 0 has no pixels"),
    ],
)
def test_impossible_sizes_are_refused_before_anything_is_allocated(path, entries, message):
    path.write_bytes(ifd(entries))
    with pytest.raises(SourceError, match=message):
        open_image(path)


# OME-TIFF in several files


def ome_parts(tmp_path, other="part1.ome.tif"):
    """The first of two files of one plane each; its OME-XML describes both."""
    content = '<Channel Name="A"/><Channel Name="B"/>'
    for index, name in enumerate(("part0.ome.tif", other)):
        uuid = f'<UUID FileName="{name}">urn:uuid:{index}</UUID>'
        content += f'<TiffData FirstC="{index}" IFD="0" PlaneCount="1">{uuid}</TiffData>'
    first, second = tmp_path / "part0.ome.tif", tmp_path / "part1.ome.tif"
    tifffile.imwrite(first, IMAGE[0], description=ome_xml(2, content), metadata=None, compression="zlib")
    tifffile.imwrite(second, IMAGE[1], metadata=None, tile=(32, 48), byteorder=">", compression="lzw")
    return first


def test_ome_of_several_files(tmp_path):
    raster = check_reads(ome_parts(tmp_path), IMAGE[:2])
    assert raster.names == ("A", "B")


def test_renamed_ome_file(tmp_path):
    ome_parts(tmp_path).rename(tmp_path / "renamed.tif")
    check_reads(tmp_path / "renamed.tif", IMAGE[:2])


def test_missing_ome_part_is_refused(tmp_path):
    image = ome_parts(tmp_path)
    (tmp_path / "part1.ome.tif").unlink()
    with pytest.raises(SourceError, match=r"consists of several files, and part1\.ome\.tif is missing"):
        open_image(image)


@pytest.mark.parametrize("name", ["../outside.tif", "/etc/hostname", "link.tif"])
def test_ome_parts_outside_the_folder_are_refused(tmp_path, name):
    folder = tmp_path / "inside"
    folder.mkdir()
    image = ome_parts(folder, name)
    tifffile.imwrite(tmp_path / "outside.tif", IMAGE[1])
    (folder / "link.tif").symlink_to(tmp_path / "outside.tif")
    with pytest.raises(SourceError, match="is outside its folder"):
        open_image(image)


def test_missing_ome_planes_are_refused(path):
    write = {"ome": True, "metadata": {"axes": "CYX"}, **PIXELS}
    tifffile.imwrite(path, IMAGE, **write)
    path.write_bytes(path.read_bytes().replace(b'SizeC="3"', b'SizeC="4"'))
    with pytest.raises(SourceError, match="lacks 1 of its 4 planes"):
        open_image(path)


def test_binary_only_ome_is_refused(path):
    xml = '<OME><BinaryOnly MetadataFile="main.companion.ome" UUID="urn:uuid:0"/></OME>'
    tifffile.imwrite(path, IMAGE[0], description=xml, metadata=None)
    with pytest.raises(SourceError, match=r"main\.companion\.ome describes"):
        open_image(path)


# Truncated and damaged files


@pytest.mark.parametrize("coding", ["raw", "zlib", "lzw"])
@pytest.mark.parametrize("layout", ["strips", "tiles"])
@pytest.mark.parametrize("container", ["plain", "pages", "ome", "bigtiff"])
def test_truncated_files_are_refused_when_opened(path, coding, layout, container):
    tifffile.imwrite(path, IMAGE, **PIXELS, **LAYOUTS[layout], **CODINGS[coding], **CONTAINERS[container])
    names, whole = open_image(path).names, path.read_bytes()
    for length in [
        *range(5, 60, 9),
        *range(100, len(whole), len(whole) // 40),
        *range(len(whole) - 200, len(whole), 9),
    ]:
        path.write_bytes(whole[:length])
        try:
            raster = open_image(path)
        except SourceError:
            continue
        # The very end may be padding, or a tag that does not matter, such as the name of the software.
        assert length > len(whole) - 50
        assert raster.names == names
        np.testing.assert_array_equal(raster.read(*BOX), crop(IMAGE))


@pytest.mark.parametrize("seed", range(150))
@pytest.mark.parametrize("where", ["headers", "anywhere"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_raise_our_own_errors(path, seed, where):
    rng = np.random.default_rng(seed)
    coding, container = CODINGS_IN_CONTAINERS[seed % len(CODINGS_IN_CONTAINERS)]
    tifffile.imwrite(path, IMAGE, **{**PIXELS, **LAYOUTS["tiles"], **CODINGS[coding], **CONTAINERS[container]})
    damaged = bytearray(path.read_bytes())
    for position in rng.integers(4, 600 if where == "headers" else len(damaged), 3):
        damaged[position] ^= 1 << rng.integers(8)
    path.write_bytes(damaged)
    try:
        raster = open_image(path)
        raster.read(0, 0, min(raster.shape[1], 200), min(raster.shape[2], 200))
    except GpuExtractError as error:
        message = str(error)
        assert "\n" not in message


def test_messages_name_damaged_segments(path):
    tifffile.imwrite(path, IMAGE, compression="zlib", **LAYOUTS["tiles"], **PIXELS)
    with tifffile.TiffFile(path) as tif:
        offset = tif.pages[1].dataoffsets[5]
    damaged = bytearray(path.read_bytes())
    damaged[offset : offset + 8] = bytes(8)
    path.write_bytes(damaged)
    raster = open_image(path)
    raster.read(0, 0, 32, 48)
    with pytest.raises(SourceError, match=rf"{path} cannot be decoded at page 1, tile 5: "):
        raster.read(32, 48, 64, 96)


def test_warnings_of_tifffile_are_not_printed(path):
    tifffile.imwrite(path, IMAGE, ome=True, metadata={"axes": "CYX"}, **PIXELS)
    path.write_bytes(path.read_bytes().replace(b'SizeC="3"', b'SizeC="4"'))
    script = """
import sys
from gpu_extract.sources import open_image
try:
    open_image(sys.argv[1])
except ValueError:
    print("refused")
"""
    # In a separate process: pytest handles log records, so they would not be printed here.
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("refused\n", "")


# Real files


@pytest.mark.parametrize(
    ("name", "shape", "names"),
    [
        ("ht29.ome.tif", (3, 512, 512), ("DNA", "pH3", "actin")),
        ("ht29_nucleus.tif", (1, 512, 512), ()),
        ("ht29_cytosol.tif", (1, 512, 512), ()),
    ],
)
def test_shared_files(name, shape, names):
    if not FORMATS.is_dir():
        pytest.skip(f"{FORMATS} is not there")
    raster = open_image(FORMATS / name)
    assert raster.shape == shape
    assert raster.names == names
    expected = tifffile.imread(FORMATS / name).reshape(shape)
    np.testing.assert_array_equal(raster.read(100, 200, 311, 512), expected[:, 100:311, 200:512])
