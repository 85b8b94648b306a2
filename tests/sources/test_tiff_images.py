"""Which image of a TIFF is read, what its pages are, and the names of its channels."""

import numpy as np
import pytest
import tifffile

from gpu_extract.errors import GpuExtractError, InputError, LabelError, SourceError
from gpu_extract.sources import open_image, open_labels, open_slide

RNG = np.random.default_rng(3)
IMAGE = RNG.integers(0, 60_000, (2, 96, 128)).astype(np.uint16)
OTHER = IMAGE[:, ::-1].copy()
LABELS = np.zeros((96, 128), np.uint16)
BOX = (7, 30, 90, 128)
GRAY = {"photometric": "minisblack"}


def check(given, expected, names=None):
    raster = open_image(given)
    assert raster.shape == expected.shape
    y0, x0, y1, x1 = BOX
    np.testing.assert_array_equal(raster.read(*BOX), expected[:, y0:y1, x0:x1])
    if names is not None:
        assert raster.names == names
    return raster


def warnings_of(given):
    height, width = open_image(given).shape[1:]
    return open_slide(given, nucleus=np.zeros((height, width), np.uint16)).warnings


# OME-XML that does not fit the pages


def ome_xml(sizes, content="<TiffData/>"):
    sizes = " ".join(f'Size{axis}="{n}"' for axis, n in ({"X": 128, "Y": 96, "C": 2, "Z": 1, "T": 1} | sizes).items())
    pixels = f'<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" {sizes}>{content}</Pixels>'
    image = f'<Image ID="Image:0">{pixels}</Image>'
    return f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">{image}</OME>'


def write_ome(path, xml, image=IMAGE):
    tifffile.imwrite(path, image, metadata=None, description=xml.encode(), **GRAY)
    return path


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"C": 1}, r"OME-XML \(T=1 Z=1 C=1 Y=96 X=128\) for 1 of its 2 pages, and not for page 1; correct the XML"),
        ({"C": 0}, "image of T=1 Z=1 C=0 Y=96 X=128, which is not possible .SizeC."),
        ({"Z": 0}, "which is not possible .SizeZ."),
        ({"Z": "two"}, "which is not possible .SizeZ."),
        ({"Y": 93}, "image of T=1 Z=1 C=2 Y=93 X=128 that does not fit its 2 pages of Y=96 X=128"),
        ({"C": 2_000_000_000}, "C=2000000000 Y=96 X=128, which is not possible; correct"),
        ({"C": 3}, "lacks 1 of its 3 planes"),
        ({"T": 2}, "lacks 2 of its 4 planes"),
    ],
)
def test_ome_xml_that_does_not_fit_the_pages_is_refused(tmp_path, sizes, message):
    with pytest.raises(SourceError, match=message) as caught:
        open_image(write_ome(tmp_path / "a.tif", ome_xml(sizes)))
    assert "\n" not in str(caught.value)


def test_pages_that_none_of_several_images_describes_are_refused(tmp_path):
    path = tmp_path / "fields.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        for name, pixels in (("a", IMAGE), ("b", OTHER)):
            file.write(pixels, metadata={"axes": "CYX", "Name": name}, **GRAY)
    check(f"{path}#image=a", IMAGE)
    check(f"{path}#image=b", OTHER)
    content = path.read_bytes()
    path.write_bytes(content.replace(b'SizeC="2"', b'SizeC="1"'))
    with pytest.raises(SourceError, match=r"C=1 Y=96 X=128.* for 2 of its 4 pages, and not for page 2;"):
        open_image(f"{path}#image=a")
    with pytest.raises(SourceError, match=r"C=1 Y=96 X=128.* for 3 of its 4 pages, and not for page 3;"):
        open_image(f"{path}#image=b")


def test_incomplete_ome_xml_is_refused(tmp_path):
    with pytest.raises(SourceError, match="OME-XML is not complete"):
        open_image(write_ome(tmp_path / "a.tif", ome_xml({})[:-20]))


def test_ome_xml_that_fits_is_read(tmp_path):
    check(write_ome(tmp_path / "a.tif", ome_xml({})), IMAGE)


def test_a_thumbnail_besides_the_described_pages_is_ignored(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif", ome=False) as file:
        for index, plane in enumerate(IMAGE):
            description = ome_xml({}, '<TiffData IFD="0" PlaneCount="2"/>') if index == 0 else None
            file.write(plane, metadata=None, description=description, contiguous=False, **GRAY)
        file.write(IMAGE[0, ::4, ::4], metadata=None, subfiletype=1, **GRAY)
    check(tmp_path / "a.tif", IMAGE)


@pytest.mark.parametrize("seed", range(60))
def test_damaged_ome_xml_never_changes_the_shape(tmp_path, seed):
    rng = np.random.default_rng(seed)
    path = tmp_path / "a.ome.tif"
    image = np.stack([IMAGE, OTHER])  # 2 time points
    tifffile.imwrite(path, image, ome=True, metadata={"axes": "TCYX"}, **GRAY)
    content = bytearray(path.read_bytes())
    start = content.index(b"SizeX")
    for position in start + rng.integers(0, 80, 2):
        content[position] = rng.choice(list(b'0123456789"= SizeXYZCT'))
    path.write_bytes(content)
    try:
        raster = open_image(f"{path}#t=0")
    except GpuExtractError as error:
        message = str(error)
        assert "\n" not in message
    else:
        assert raster.shape[1:] == (96, 128)
        assert raster.shape[0] == 2


# Descriptions by ImageJ and tifffile that do not fit the pages


@pytest.mark.parametrize(
    ("writer", "said", "instead"),
    [
        ("ImageJ", b"channels=2", b"channels=3"),
        ("ImageJ", b"frames=2", b"frames=1"),
        ("ImageJ", b"frames=2", b"frames=9"),
        ("tifffile", b'"shape": [2, 2', b'"shape": [2, 1'),
        ("tifffile", b'"shape": [2, 2, 96', b'"shape": [2, 2, 95'),
        ("tifffile", b'"shape": [2, 2, 96', b'"shape": [2, 2, 16'),
        ("tifffile", b'"shape": [2, 2, 96, 128', b'"shape": [2, 2, 96, 928'),
        ("tifffile", b'"shape":', b'"shapf":'),
        ("ImageJ", b"ImageJ=", b"ImageX="),
    ],
)
def test_descriptions_that_do_not_fit_the_pages_are_refused(tmp_path, writer, said, instead):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.stack([IMAGE, OTHER]), imagej=writer == "ImageJ", metadata={"axes": "TCYX"}, **GRAY)
    check(f"{path}#t=1", OTHER)
    content = path.read_bytes()
    assert said in content
    path.write_bytes(content.replace(said, instead, 1))
    with pytest.raises(SourceError, match=f"has a description by {writer} that does not fit its 4 pages; save them"):
        open_image(path)


def test_a_description_of_a_wrong_type_is_refused(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.stack([IMAGE, OTHER]), metadata={"axes": "TCYX"}, **GRAY)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"\x0e\x01\x02\x00", b"\x0e\x01\x06\x00", 1))
    with pytest.raises(SourceError, match="tag 270 of page 0 cannot be read"):
        open_image(path)


def test_a_description_of_one_page_may_be_outdated(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, IMAGE[0], **GRAY)
    content = path.read_bytes()
    assert b'"shape": [96' in content
    path.write_bytes(content.replace(b'"shape": [96', b'"shape": [99', 1))
    check(path, IMAGE[:1])


# Pages of unknown meaning


@pytest.fixture
def stack(tmp_path):
    image = RNG.integers(0, 9, (12, 96, 128)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "stack.tif", image, **GRAY)
    return f"{tmp_path / 'stack.tif'}", image


def test_many_pages_of_unknown_meaning_are_read_with_a_warning(stack):
    path, image = stack
    check(path, image)
    (warning,) = warnings_of(path)
    assert f"image {path} does not say what its 12 pages are; they are read as channels" in warning
    assert "#c=0,1" in warning
    assert "#z=max" in warning


def test_the_selector_says_what_pages_are(stack):
    path, image = stack
    check(f"{path}#z=3", image[3:4])
    check(f"{path}#z=max", image.max(axis=0, keepdims=True))
    check(f"{path}#t=11", image[11:])
    check(f"{path}#c=2,0", image[[2, 0]])
    for selector in ("z=3", "t=2", "c=1,2"):
        assert warnings_of(f"{path}#{selector}") == ()
    with pytest.raises(SourceError, match="z= can be 0 to 11"):
        open_image(f"{path}#z=12")


@pytest.mark.parametrize("kind", ["few", "named", "declared"])
def test_pages_of_known_meaning_are_read_without_a_warning(tmp_path, kind):
    path = tmp_path / "a.tif"
    n = 8 if kind == "few" else 12
    image = RNG.integers(0, 9, (n, 96, 128)).astype(np.uint16)
    names = [f"marker {index}" for index in range(n)]
    metadata = {"few": {}, "named": {"axes": "CYX", "Labels": names}, "declared": {"axes": "CYX"}}[kind]
    tifffile.imwrite(path, image, imagej=kind == "named", metadata=metadata, **GRAY)
    check(path, image)
    assert warnings_of(path) == ()


# Several images


def about(kind, name):
    tags = f"<ImageType>{kind}</ImageType><Name>{name}</Name>"
    return f"<PerkinElmer-QPI-ImageDescription>{tags}</PerkinElmer-QPI-ImageDescription>"


def write_qptiff(path):
    """Write what a scanner of Akoya writes: channels, a thumbnail, a level, an overview and a label."""
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        more = {"metadata": None, "software": "PerkinElmer-QPI", "contiguous": False}
        for plane, name in zip(IMAGE, ("DAPI", "CD8"), strict=True):
            file.write(plane, tile=(32, 32), description=about("FullResolution", name), **GRAY, **more)
        file.write(np.zeros((24, 32, 3), np.uint8), photometric="rgb", description=about("Thumbnail", ""), **more)
        for plane, name in zip(IMAGE[:, ::2, ::2], ("DAPI", "CD8"), strict=True):
            file.write(
                plane, tile=(32, 32), subfiletype=1, description=about("ReducedResolution", name), **GRAY, **more
            )
        for kind in ("Overview", "Label"):
            file.write(np.zeros((20, 30, 3), np.uint8), photometric="rgb", description=about(kind, ""), **more)
    return path


def test_qptiff_is_read_with_its_names(tmp_path):
    path = write_qptiff(tmp_path / "slide.qptiff")
    check(path, IMAGE, ("DAPI", "CD8"))
    check(f"{path}#c=CD8", IMAGE[1:], ("CD8",))
    assert warnings_of(path) == ()
    np.testing.assert_array_equal(open_image(f"{path}#level=1").read(0, 0, 48, 64), IMAGE[:, ::2, ::2])
    assert open_image(f"{path}#image=Thumbnail").shape == (3, 24, 32)
    with pytest.raises(
        SourceError, match=r"has no image 'Photo'; there are 0: Baseline .C=2 Y=96 X=128., 1: Thumbnail"
    ):
        open_image(f"{path}#image=Photo")


def write_svs(path):
    rgb = RNG.integers(0, 255, (64, 96, 3)).astype(np.uint8)
    with tifffile.TiffWriter(path) as file:
        more = {"photometric": "rgb", "metadata": None}
        file.write(rgb, tile=(32, 32), compression="jpeg", description="Aperio Image Library|MPP = 0.5", **more)
        file.write(rgb[::4, ::4], description="Aperio thumbnail", **more)
        file.write(rgb[::2, ::2], tile=(32, 32), compression="jpeg", description="Aperio level", **more)
        file.write(np.zeros((10, 10, 3), np.uint8), subfiletype=1, description="Aperio label", **more)
        file.write(np.zeros((10, 20, 3), np.uint8), subfiletype=9, description="Aperio macro", **more)
    return path


def test_svs_is_read_at_full_resolution(tmp_path):
    raster = open_image(write_svs(tmp_path / "slide.svs"))
    assert raster.shape == (3, 64, 96)
    assert raster.names == ("R", "G", "B")
    with tifffile.TiffFile(tmp_path / "slide.svs") as tif:
        expected = np.moveaxis(tif.pages[0].asarray(), -1, 0)
        level = np.moveaxis(tif.pages[2].asarray(), -1, 0)
    np.testing.assert_array_equal(raster.read(0, 0, 64, 96), expected)
    np.testing.assert_array_equal(open_image(f"{tmp_path / 'slide.svs'}#level=1").read(0, 0, 32, 48), level)


def test_images_of_an_ome_tiff_are_chosen_by_name_or_number(tmp_path):
    path = tmp_path / "fields.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        for name, pixels in (("Field 1", IMAGE), ("Field 2", OTHER)):
            metadata = {"axes": "CYX", "Name": name, "Channel": {"Name": [f"{name} a", f"{name} b"]}}
            file.write(pixels, metadata=metadata, **GRAY)
    check(f"{path}#image=Field 2", OTHER, ("Field 2 a", "Field 2 b"))
    check(f"{path}#image=0", IMAGE, ("Field 1 a", "Field 1 b"))
    check(f"{path}#image=1,c=0", OTHER[:1])
    np.testing.assert_array_equal(open_labels(f"{path}#image=1,c=0", "nucleus").read(0, 0, 96, 128)[0], OTHER[0])
    with pytest.raises(SourceError, match=r"holds 2 images: 0: Field 1 \(C=2 Y=96 X=128\), 1: Field 2 .*; choose one"):
        open_image(path)
    for wrong in ("2", "Field 3"):
        with pytest.raises(SourceError, match=f"the file has no image '{wrong}'; there are 0: Field 1"):
            open_image(f"{path}#image={wrong}")


def test_pictures_of_the_glass_slide_in_an_ome_tiff_are_not_the_image(tmp_path):
    path = tmp_path / "scan.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(IMAGE, metadata={"axes": "CYX", "Name": "scan"}, **GRAY)
        for name in ("label image", "macro image"):
            file.write(IMAGE[0, :20], metadata={"axes": "YX", "Name": name}, **GRAY)
    check(path, IMAGE)
    with pytest.raises(SourceError, match="holds 3 images"):
        open_labels(path, "nucleus")


@pytest.mark.parametrize("number", [1, 2])
def test_pages_of_two_sizes_are_chosen_by_number(tmp_path, number):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for plane in (IMAGE[0], IMAGE[1, :50], IMAGE[0, :20]):
            file.write(plane, metadata=None, **GRAY)
    expected = (IMAGE[0], IMAGE[1, :50], IMAGE[0, :20])[number]
    raster = open_image(f"{tmp_path / 'a.tif'}#image={number}")
    np.testing.assert_array_equal(raster.read(0, 0, *expected.shape)[0], expected)


def test_reduced_pages_are_levels(tmp_path):
    path = tmp_path / "pyramid.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(IMAGE[0], metadata=None, tile=(32, 32), **GRAY)
        for step in (2, 4):
            file.write(IMAGE[0, ::step, ::step], metadata=None, tile=(32, 32), subfiletype=1, **GRAY)
    check(path, IMAGE[:1])
    for level, step in enumerate((2, 4), 1):
        expected = IMAGE[0, ::step, ::step]
        raster = open_image(f"{path}#level={level}")
        np.testing.assert_array_equal(raster.read(0, 0, *expected.shape)[0], expected)


def test_image_of_the_only_image(tmp_path):
    tifffile.imwrite(tmp_path / "a.ome.tif", IMAGE, metadata={"axes": "CYX", "Name": "x"}, **GRAY)
    check(f"{tmp_path / 'a.ome.tif'}#image=x", IMAGE)
    tifffile.imwrite(tmp_path / "b.tif", IMAGE, **GRAY)
    check(f"{tmp_path / 'b.tif'}#image=0", IMAGE)
    with pytest.raises(SourceError, match="has no image 'x'; there are 0: no name"):
        open_image(f"{tmp_path / 'b.tif'}#image=x")


# Images in several files

FILES = ("scan_MMStack_Pos0.ome.tif", "scan_MMStack_Pos1.ome.tif")
IDS = ("urn:uuid:00000000-0000-0000-0000-000000000001", "urn:uuid:00000000-0000-0000-0000-000000000002")


def positions_xml(uuid):
    """Return the OME-XML of two positions, one file each, as Micro-Manager writes it into each of the files."""
    images = ""
    for index, (file, own) in enumerate(zip(FILES, IDS, strict=True)):
        parts = "".join(
            f'<TiffData FirstC="{c}" IFD="{c}" PlaneCount="1"><UUID FileName="{file}">{own}</UUID></TiffData>'
            for c in (0, 1)
        )
        channels = "".join(f'<Channel ID="Channel:{index}:{c}" Name="c{index}{c}"/>' for c in (0, 1))
        sizes = 'SizeX="128" SizeY="96" SizeC="2" SizeZ="1" SizeT="1"'
        pixels = f'<Pixels ID="Pixels:{index}" DimensionOrder="XYCZT" Type="uint16" {sizes}>{channels}{parts}</Pixels>'
        images += f'<Image ID="Image:{index}" Name="Pos{index}">{pixels}</Image>'
    return f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{uuid}">{images}</OME>'


@pytest.fixture
def positions(tmp_path):
    for file, uuid, pixels in zip(FILES, IDS, (IMAGE, OTHER), strict=True):
        write_ome(tmp_path / file, positions_xml(uuid), pixels)
    return tmp_path


def test_the_position_in_the_given_file_is_read(positions):
    check(positions / FILES[0], IMAGE, ("c00", "c01"))
    check(positions / FILES[1], OTHER, ("c10", "c11"))
    check(f"{positions / FILES[1]}#image=Pos0", IMAGE)


def test_a_position_is_read_without_the_files_of_the_others(positions):
    (positions / FILES[0]).unlink()
    check(positions / FILES[1], OTHER)
    with pytest.raises(SourceError, match=r"consists of several files, and scan_MMStack_Pos0\.ome\.tif is missing"):
        open_image(f"{positions / FILES[1]}#image=Pos0")


@pytest.fixture
def companion(tmp_path):
    """Two files of one image each, described by a companion file."""
    (tmp_path / "set.companion.ome").write_text('<?xml version="1.0"?>' + positions_xml("urn:uuid:9"))
    for file, uuid, pixels in zip(FILES, IDS, (IMAGE, OTHER), strict=True):
        binary_only = f'<BinaryOnly MetadataFile="set.companion.ome" UUID="{uuid}"/>'
        xml = f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{uuid}">{binary_only}</OME>'
        write_ome(tmp_path / file, xml, pixels)
    return tmp_path


def test_a_file_that_a_companion_file_describes(companion):
    check(companion / FILES[0], IMAGE, ("c00", "c01"))
    check(companion / FILES[1], OTHER, ("c10", "c11"))


def test_a_companion_file_is_opened_itself(companion):
    check(f"{companion / 'set.companion.ome'}#image=Pos1", OTHER)
    with pytest.raises(SourceError, match="holds 2 images: 0: Pos0"):
        open_image(companion / "set.companion.ome")


def test_a_missing_companion_file_is_named(companion):
    (companion / "set.companion.ome").unlink()
    with pytest.raises(SourceError, match=r"set\.companion\.ome describes; copy that into its folder"):
        open_image(companion / FILES[0])


@pytest.mark.parametrize("name", ["../outside.tif", "/etc/hostname"])
def test_a_companion_file_does_not_lead_outside_its_folder(companion, name):
    path = companion / "set.companion.ome"
    path.write_text(path.read_text().replace(FILES[0], name))
    with pytest.raises(SourceError, match="is outside its folder"):
        open_image(f"{companion / FILES[1]}#image=Pos0")
    with pytest.raises(SourceError, match="is outside its folder"):
        open_image(f"{path}#image=Pos0")


@pytest.mark.parametrize("xml", ["<?xml version='1.0'?><a/>", "<?xml version='1.0'?><OME/>", "<?xml version='1.0'?>"])
def test_other_xml_is_refused(tmp_path, xml):
    (tmp_path / "a.xml").write_text(xml)
    with pytest.raises(SourceError, match=r"give the image file itself|damaged OME-XML"):
        open_image(tmp_path / "a.xml")


# Names in the tag PageName


def write_page_names(path, names):
    with tifffile.TiffWriter(path) as file:
        for plane, name in zip(IMAGE, names, strict=True):
            tags = [(285, "s", 0, name, True)]
            file.write(plane, metadata=None, contiguous=False, extratags=tags, **GRAY)
    return path


def test_page_names_are_channel_names(tmp_path):
    check(write_page_names(tmp_path / "a.tiff", ("CD45", "dsDNA")), IMAGE, ("CD45", "dsDNA"))
    slide = open_slide(tmp_path / "a.tiff", nucleus=LABELS, channels=["dsDNA"])
    np.testing.assert_array_equal(slide.image.read(0, 0, 96, 128)[0], IMAGE[1])


@pytest.mark.parametrize("names", [("same", "same"), ("one", ""), (" ", "x")])
def test_page_names_that_name_no_channels_are_ignored(tmp_path, names):
    check(write_page_names(tmp_path / "a.tiff", names), IMAGE, ())


# RGB


RGB = RNG.integers(0, 256, (96, 128, 3)).astype(np.uint8)
PLANES = np.moveaxis(RGB, -1, 0)
STORED = {
    "raw": {},
    "raw strips": {"rowsperstrip": 10},
    "tiles": {"tile": (32, 48)},
    "deflate": {"tile": (32, 48), "compression": "zlib", "predictor": True},
    "lzw strips": {"rowsperstrip": 16, "compression": "lzw"},
    "big-endian": {"byteorder": ">"},
    "ome": {"ome": True, "metadata": {"axes": "YXS"}},
}


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_interleaved_rgb_is_three_channels(tmp_path, stored, dtype):
    path = tmp_path / "rgb.tif"
    image = RGB.astype(dtype) * (256 if dtype == "u2" else 1)
    tifffile.imwrite(path, image, photometric="rgb", **STORED[stored])
    expected = np.moveaxis(image, -1, 0)
    check(path, expected, ("R", "G", "B"))
    check(f"{path}#c=B,R", expected[[2, 0]], ("B", "R"))
    (warning,) = warnings_of(path)
    assert warning.startswith(f"image {path} is an RGB picture, read as the channels R, G and B; ")


@pytest.mark.parametrize("color", ["rgb", "ycbcr"])
def test_jpeg_compressed_rgb(tmp_path, color):
    path = tmp_path / "he.tif"
    smooth = np.repeat(np.repeat(RGB[::16, ::16], 16, 0), 16, 1)
    options = {"compressionargs": {"outcolorspace": "ycbcr"}} if color == "ycbcr" else {}
    tifffile.imwrite(path, smooth, photometric="rgb", tile=(32, 32), compression="jpeg", **options)
    expected = np.moveaxis(tifffile.imread(path), -1, 0)
    assert np.abs(expected.astype(int) - np.moveaxis(smooth, -1, 0)).mean() < 20
    check(path, expected, ("R", "G", "B"))


def test_separate_rgb(tmp_path):
    tifffile.imwrite(tmp_path / "rgb.tif", PLANES, photometric="rgb", planarconfig="separate")
    check(tmp_path / "rgb.tif", PLANES, ("R", "G", "B"))
    assert "RGB picture" in warnings_of(tmp_path / "rgb.tif")[0]


@pytest.mark.parametrize("config", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_alpha_is_dropped(tmp_path, config, compression):
    path = tmp_path / "rgba.tif"
    rgba = np.concatenate([RGB, RGB[..., :1]], axis=2)
    pixels = rgba if config == "contig" else np.moveaxis(rgba, -1, 0)
    options = {"photometric": "rgb", "planarconfig": config, "extrasamples": ["unassalpha"], "compression": compression}
    tifffile.imwrite(path, pixels, **options)
    check(path, PLANES, ("R", "G", "B"))
    assert "R, G and B without its alpha channel; " in warnings_of(path)[0]


def test_rgb_pages(tmp_path):
    path = tmp_path / "z.tif"
    tifffile.imwrite(path, np.stack([RGB, 255 - RGB]), ome=True, metadata={"axes": "ZYXS"}, photometric="rgb")
    check(f"{path}#z=1", 255 - PLANES, ("R", "G", "B"))
    check(f"{path}#z=max,c=G", np.maximum(PLANES, 255 - PLANES)[1:2])


def test_interleaved_samples_that_are_no_colors_are_channels(tmp_path):
    path = tmp_path / "five.tif"
    five = RNG.integers(0, 99, (96, 128, 5)).astype(np.uint16)
    tifffile.imwrite(path, five, photometric="minisblack", planarconfig="contig", compression="zlib", tile=(32, 32))
    check(path, np.moveaxis(five, -1, 0), ())
    assert warnings_of(path) == ()
    np.testing.assert_array_equal(open_labels(f"{path}#c=4", "nucleus").read(0, 0, 96, 128)[0], five[..., 4])


def test_interleaved_tiles_are_decoded_once_for_all_channels(tmp_path, monkeypatch):
    from gpu_extract.sources.tiff_plane import CodedPlane

    decoded, original = [], CodedPlane.decode
    monkeypatch.setattr(CodedPlane, "decode", lambda *given: decoded.append(given[2]) or original(*given))
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", tile=(32, 48), compression="zlib")
    raster = open_image(tmp_path / "a.tif")
    raster.read(0, 0, 20, 40)
    raster.read(10, 0, 32, 48)
    assert decoded == [0]


@pytest.mark.parametrize("photometric", ["separated", "cielab"])
def test_other_colors_are_refused(tmp_path, photometric):
    n = 4 if photometric == "separated" else 3
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((9, 9, n), np.uint8), photometric=photometric, planarconfig="contig")
    with pytest.raises(SourceError, match=r"is a picture in .* colors; save it as RGB"):
        open_image(tmp_path / "a.tif")


@pytest.mark.parametrize("config", ["contig", "separate"])
def test_labels_in_colors_are_refused(tmp_path, config):
    pixels = RGB if config == "contig" else PLANES
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", planarconfig=config)
    with pytest.raises(LabelError, match=r"3 colors per pixel .* export the ids instead"):
        open_labels(tmp_path / "a.tif", "nucleus")


def test_truncated_interleaved_files_are_refused(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, photometric="rgb")
    path.write_bytes(path.read_bytes()[: -RGB.size // 2])
    with pytest.raises(SourceError, match="is truncated: page 0 reaches beyond"):
        open_image(path)


def test_a_selector_that_no_tiff_has_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", IMAGE, **GRAY)
    with pytest.raises(InputError, match="has nothing that label= could select"):
        open_image(f"{tmp_path / 'a.tif'}#label=x")


def test_interleaved_slides_are_read_in_another_process(tmp_path, elsewhere):
    slides = []
    for name, options in (("raw.tif", {}), ("coded.tif", {"compression": "zlib", "tile": (32, 32)})):
        tifffile.imwrite(tmp_path / name, RGB, photometric="rgb", **options)
        slides.append(open_slide(tmp_path / name, nucleus=LABELS))
    y0, x0, y1, x1 = BOX
    for window in elsewhere(slides, BOX):
        np.testing.assert_array_equal(window.image, PLANES[:, y0:y1, x0:x1])
