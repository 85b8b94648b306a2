"""Pixel sizes in files, and options in um."""

import json

import anndata
import h5py
import pytest
import tifffile
import zarr
from made.slides import small_slide
from made.stores import IMAGE, LABELS, shared

import gpu_extract as gx
from gpu_extract.errors import InputError
from gpu_extract.sources import open_slide
from gpu_extract.sources.physical import as_pixel_size
from gpu_extract.sources.units import pixel_size


def size_of(path, **options):
    return open_slide(path, nucleus=LABELS, **options).pixel_size


# In files


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25}, (0.25, 0.5)),
        ({"PhysicalSizeX": 325, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.325}, (0.325, 0.325)),
        ({"PhysicalSizeX": 1e-3, "PhysicalSizeXUnit": "mm", "PhysicalSizeY": 1}, (1, 1)),
        ({"PhysicalSizeX": 1, "PhysicalSizeXUnit": "pixel", "PhysicalSizeY": 1}, None),
        ({"PhysicalSizeX": 0.5}, None),
        ({"PhysicalSizeX": 0.0, "PhysicalSizeY": 0.0}, None),
        ({}, None),
    ],
)
def test_pixel_size_of_ome_tiff(tmp_path, stated, expected):
    tifffile.imwrite(tmp_path / "a.ome.tif", IMAGE, photometric="minisblack", metadata={"axes": "CYX", **stated})
    assert size_of(tmp_path / "a.ome.tif") == (expected and pytest.approx(expected))


def test_pixel_size_of_a_tiff_level(tmp_path):
    path, metadata = tmp_path / "a.ome.tif", {"axes": "YX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25}
    with tifffile.TiffWriter(path) as writer:
        writer.write(IMAGE[0], subifds=1, tile=(16, 16), metadata=metadata)
        writer.write(IMAGE[0, ::2, ::3], subfiletype=1, tile=(16, 16))
    assert open_slide(path, nucleus=LABELS).pixel_size == (0.25, 0.5)
    assert open_slide(f"{path}#level=1", nucleus=LABELS[::2, ::3]).pixel_size == (0.5, 1.5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"imagej": True, "resolution": (2, 4), "metadata": {"unit": "um", "axes": "CYX"}}, (0.25, 0.5)),
        ({"imagej": True, "resolution": (2, 4), "metadata": {"unit": "\\u00B5m", "axes": "CYX"}}, (0.25, 0.5)),
        ({"imagej": True, "resolution": (2, 4), "metadata": {"unit": "nm", "axes": "CYX"}}, (0.00025, 0.0005)),
        ({"imagej": True, "resolution": (2, 4), "metadata": {"unit": "pixel", "axes": "CYX"}}, None),
        ({"imagej": True, "resolution": (2, 4), "metadata": {"axes": "CYX"}}, None),
        ({"resolution": (20000, 40000), "resolutionunit": "CENTIMETER"}, (0.25, 0.5)),
        ({"resolution": (25400, 50800), "resolutionunit": "INCH"}, (0.5, 1)),
        ({"resolution": (300, 300), "resolutionunit": "INCH"}, None),  # dots per inch, of a printer
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),
        ({"resolution": (96, 96), "resolutionunit": "INCH"}, None),
        ({"imagej": True, "resolution": (72, 72), "metadata": {"unit": "inch", "axes": "CYX"}}, None),
        ({"imagej": True, "resolution": (25400, 50800), "metadata": {"unit": "inch", "axes": "CYX"}}, (0.5, 1)),
        ({"imagej": True, "resolution": (0.05, 0.05), "metadata": {"unit": "um", "axes": "CYX"}}, (20, 20)),
        ({"resolution": (20000, 20000), "resolutionunit": "NONE"}, None),  # without a unit
        ({"resolution": ((0, 1), (0, 1)), "resolutionunit": "CENTIMETER"}, None),
        ({}, None),
    ],
)
def test_pixel_size_of_tiff_tags_if_plausible(tmp_path, options, expected):
    tifffile.imwrite(tmp_path / "a.tif", IMAGE, photometric="minisblack", **options)
    assert size_of(tmp_path / "a.tif") == (expected and pytest.approx(expected))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"resolution": (1550.3003, 1550.3003), "software": "Harmony"}, "6.45"),
        ({"resolution": (1550.3003, 1550.3003)}, "6.45"),
        ({"resolution": (20000, 40000), "software": "Harmony 4.9"}, "0.25 x 0.5"),
    ],
)
def test_the_resolution_of_a_camera_is_not_used(tmp_path, options, said):
    path = tmp_path / "r01c01f01p01-ch5sk1fk1fl1.tiff"
    more = {"photometric": "minisblack", "compression": "lzw", "resolutionunit": "CENTIMETER", "metadata": None}
    tifffile.imwrite(path, IMAGE[0], **options, **more)
    slide = open_slide(path, nucleus=LABELS)
    assert slide.pixel_size is None
    (line,) = slide.warnings
    assert line.startswith(f"pixel size {said} um, from the TIFF's resolution tag, is probably that of the camera")
    assert "with --pixel-size" in line
    with pytest.raises(InputError, match=f"is not known: pixel size {said} um, from the TIFF's .* --pixel-size"):
        gx.extract(path, nucleus=LABELS, output=tmp_path / "a.h5sc", tile_size_um=40, device="reference")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"},
            "pixel size 0.5 um, from the resolution tag of a TIFF; if that is the camera's, give --pixel-size in um "
            "(pixel_size=)",
        ),
        (
            {"ome": True, "metadata": {"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25}},
            "pixel size 0.25 x 0.5 um, from OME-XML",
        ),
        (
            {"imagej": True, "resolution": (2, 2), "metadata": {"unit": "um", "axes": "CYX"}},
            "pixel size 0.5 um, from the metadata of ImageJ",
        ),
    ],
)
def test_the_source_of_the_pixel_size_is_told_if_it_is_used(tmp_path, options, line):
    tifffile.imwrite(tmp_path / "a.tif", IMAGE, photometric="minisblack", **options)
    given = {"image": tmp_path / "a.tif", "nucleus": LABELS, "trust": "planes"}
    assert line in gx.plan(**given, scale=0.6, tile_size=24).warnings
    if "x" not in line.partition(" um")[0].removeprefix("pixel size"):
        assert line in gx.plan(**given, tile_size_um=20).warnings
    for unused in ({"tile_size": 24}, {"scale": 0.6, "pixel_size": 0.5, "tile_size": 24}):
        assert not [each for each in gx.plan(**given, **unused).warnings if each.startswith("pixel size")]


def test_the_resolution_of_labels_is_not_mentioned(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", LABELS, resolution=(1550, 1550), resolutionunit="CENTIMETER", metadata=None)
    assert open_slide(IMAGE, nucleus=tmp_path / "a.tif").warnings == ()


def test_pixel_size_of_hdf5_by_imagej_and_ilastik(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as h5:
        h5.create_dataset("image", data=IMAGE).attrs["element_size_um"] = [2.0, 0.25, 0.5]
    assert size_of(tmp_path / "a.h5") == (0.25, 0.5)
    with h5py.File(tmp_path / "a.h5", "r+") as h5:
        h5["image"].attrs["element_size_um"] = "1 x 1"
    assert size_of(tmp_path / "a.h5") is None


def write_zarr(path, levels, whole=None, units=("micrometer", "micrometer")):
    """Write two levels with coordinate transformations, OME-Zarr 0.5."""
    root = zarr.create_group(path)
    axes = [{"name": "c"}, *({"name": axis, "unit": unit} for axis, unit in zip("yx", units, strict=True))]
    datasets = []
    for index, transformations in enumerate(levels):
        root.create_array(str(index), data=IMAGE[:, :: index + 1, :: index + 1])
        datasets.append({"path": str(index), "coordinateTransformations": transformations})
    image = {"axes": axes, "datasets": datasets} | ({"coordinateTransformations": whole} if whole else {})
    root.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    return path


def scale(y, x):
    return {"type": "scale", "scale": [1.0, y, x]}


SHIFT = {"type": "translation", "translation": [0.0, 3.0, 4.0]}
ROTATION = {"type": "affine", "affine": [[1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0]]}


def to_system(transformation, name="global", unit="unit"):
    """Return a transformation to a coordinate system, as in SpatialData."""
    return transformation | {"output": {"name": name, "axes": [{"name": axis, "unit": unit} for axis in "cyx"]}}


@pytest.mark.parametrize(
    ("whole", "units", "expected"),
    [
        (None, ("micrometer", "micrometer"), (0.25, 0.5)),
        (None, ("nanometer", "micrometer"), (0.00025, 0.5)),
        (None, (None, None), None),
        ([scale(2, 2)], ("micrometer", "micrometer"), (0.5, 1.0)),
        ([SHIFT, scale(2, 2)], ("micrometer", "micrometer"), (0.5, 1.0)),
        ([ROTATION], ("micrometer", "micrometer"), None),
        ([to_system(scale(2, 2))], ("micrometer", "micrometer"), (0.25, 0.5)),
        ([to_system({"type": "identity"})], (None, None), None),
        ([to_system(scale(2, 2))], (None, None), None),
        ([to_system(scale(2, 2), unit="micrometer")], (None, None), (0.5, 1.0)),
        ([to_system(scale(4, 4)), to_system(scale(2, 2), name="um")], (None, None), (0.5, 1.0)),
        ([to_system({"type": "sequence", "transformations": [SHIFT, scale(2, 2)]}, "um")], (None, None), (0.5, 1.0)),
        ([to_system({"type": "sequence", "transformations": [ROTATION]}, "um")], (None, None), None),
    ],
)
def test_pixel_size_of_zarr_transformations(tmp_path, whole, units, expected):
    path = write_zarr(tmp_path / "a.zarr", [[scale(0.25, 0.5), SHIFT], [scale(0.5, 1.0)]], whole, units)
    assert size_of(path) == expected
    double = expected and tuple(2 * side for side in expected)
    assert open_slide(f"{path}#level=1", nucleus=LABELS[::2, ::2]).pixel_size == double


def test_a_level_without_a_scale_has_no_pixel_size(tmp_path):
    assert size_of(write_zarr(tmp_path / "a.zarr", [[ROTATION], [scale(1, 1)]])) is None


def write_tiff(path, side):
    tifffile.imwrite(path, IMAGE[0], metadata={"axes": "YX", "PhysicalSizeX": side, "PhysicalSizeY": side})
    return path


def test_channels_of_one_slide_must_agree_on_the_pixel_size(tmp_path):
    paths = [write_tiff(tmp_path / f"{index}.ome.tif", side) for index, side in enumerate((0.5, 0.5, 0.6))]
    assert size_of(paths[:2]) == (0.5, 0.5)
    assert size_of(paths) is None
    (warning,) = open_slide(paths, nucleus=LABELS).warnings
    assert warning.startswith(
        f"image {paths[0]} states pixels of 0.5 x 0.5 um (y, x) and image {paths[2]} of 0.6 x 0.6"
    )
    assert "none is used: give --pixel-size in um (pixel_size=)" in warning
    assert size_of(paths, channels=[2]) == (0.6, 0.6)


def test_a_pixel_size_of_labels_that_differs_is_a_warning(tmp_path):
    image, labels = write_tiff(tmp_path / "image.ome.tif", 0.5), tmp_path / "labels.ome.tif"
    for side, n_warnings in ((0.25, 1), (0.501, 0)):
        metadata = {"axes": "YX", "PhysicalSizeX": side, "PhysicalSizeY": side}
        tifffile.imwrite(labels, LABELS, metadata=metadata)
        slide = open_slide(image, nucleus=labels)
        assert slide.pixel_size == (0.5, 0.5)
        assert len(slide.warnings) == n_warnings
        if n_warnings:
            assert f"image {image} of 0.5 x 0.5 um, which is used: else give --pixel-size" in slide.warnings[0]


def test_several_pixel_sizes_in_one_zarr_are_a_warning(tmp_path):
    systems = [to_system(scale(2, 2), "a", "micrometer"), to_system(scale(3, 3), "b", "micrometer")]
    path = write_zarr(tmp_path / "a.zarr", [[scale(0.25, 0.5)], [scale(0.5, 1.0)]], systems, (None, None))
    slide = open_slide(path, nucleus=LABELS)
    assert slide.pixel_size == (0.5, 1.0)
    assert f"image {path} states pixels of 0.5 x 1 and of 0.75 x 1.5 um (y, x); the first is used" in slide.warnings[0]
    assert gx.plan(path, nucleus=LABELS, pixel_size=0.3, tile_size=16, trust="planes").slides[0].pixel_size == (
        0.3,
        0.3,
    )


@pytest.mark.parametrize("name", ["scratch-assay-labeled-10T-2Ch.ome.tiff#t=0", "6001240_labels_v0.5.zarr#z=1"])
def test_pixel_size_of_shared_files(name):
    from gpu_extract.sources.opening import opened
    from gpu_extract.sources.selectors import parse_input

    path = shared(name.split("#")[0])
    expected = {"s": 0.619, "6": 1.4415926138560835}[name[0]]
    assert opened(parse_input(f"{path}#{name.split('#')[1]}", None), None).pixel_size == (expected, expected)


@pytest.mark.parametrize(("y", "unit"), [("x", "um"), (None, "um"), ("nan", "um"), (1, "furlong"), (-1, "um")])
def test_an_invalid_length_is_no_pixel_size(y, unit):
    assert pixel_size(y, 1, unit, "um") is None


# Given by the user


@pytest.mark.parametrize(("given", "size"), [(0.5, (0.5, 0.5)), ((0.5, 1), (0.5, 1.0)), ("0.5", (0.5, 0.5))])
def test_a_pixel_size_is_one_number_or_two(given, size):
    assert as_pixel_size(given) == size


@pytest.mark.parametrize("given", [0, -1, float("nan"), float("inf"), "wide", (1, 2, 3), (1, 0), None])
def test_an_invalid_pixel_size_is_an_error(given):
    with pytest.raises(InputError, match="it must be a positive number of um per pixel"):
        as_pixel_size(given)


IMAGES, NUCLEUS, CYTOSOL = small_slide(4)


def planned(image=IMAGES, **options):
    return gx.plan(image, nucleus=NUCLEUS, cytosol=CYTOSOL, **options)


@pytest.mark.parametrize(
    ("um", "side", "pixels"), [(16, 0.65, 24), (16, 0.64, 24), (12, 0.5, 24), (11.5, 0.5, 24), (11.4, 0.5, 22)]
)
def test_a_tile_size_in_um_becomes_the_closest_even_number_of_pixels(um, side, pixels):
    assert planned(tile_size_um=um, pixel_size=side).program.recipe.tile_size == pixels


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"tile_size_um": 12},
            r"the pixel size of slide slide is unknown, array does not state it; give --pixel-size",
        ),
        ({"tile_size_um": 12, "pixel_size": (0.5, 0.51)}, r"pixels of 0\.5 x 0\.51 um \(y, x\), .* with --scale UM"),
        ({"tile_size_um": 0, "pixel_size": 1}, "tile_size_um is 0; it must be a positive number of um"),
        ({"tile_size_um": 0.5, "pixel_size": 1}, "less than two pixels of 1 um"),
        ({"tile_size_um": 1e6, "pixel_size": 1}, "tile_size is 1000000; it must be 1 to 4096 pixels"),
        ({"tile_size_um": 12, "tile_size": 12}, "were both given"),
        ({"scale": 1}, "the pixel size of slide slide is unknown"),
        ({"scale": 0, "pixel_size": 1}, "scale is 0; it must be a positive number"),
        ({"scale": 650, "pixel_size": 0.65}, "more than 64 times as much or as little; check the units"),
    ],
)
def test_invalid_sizes_in_um_are_an_error(options, message):
    with pytest.raises(InputError, match=message) as caught:
        planned(**options)
    assert "\n" not in str(caught.value)


def test_nearly_square_pixels_count_as_square(tmp_path):
    assert planned(tile_size_um=12, pixel_size=(0.5, 0.5049)).program.recipe.tile_size == 24


def test_tiles_in_um_need_one_pixel_size_for_all_slides():
    slides = [{"image": IMAGES, "nucleus": NUCLEUS, "pixel_size": side} for side in (0.5, 0.5001, 0.65)]
    assert gx.plan_many(slides[:2], tile_size_um=12).program.recipe.tile_size == 24
    with pytest.raises(InputError, match=r"slide slide_3 has pixels of 0\.65 um and slide slide of 0\.5 um; bring all"):
        gx.plan_many(slides, tile_size_um=12)
    assert gx.plan_many(slides, tile_size_um=12, scale=1.0).program.recipe.tile_size == 12


def test_a_warning_for_slides_of_several_pixel_sizes():
    sides = enumerate((0.5, 0.5001, 0.65))
    slides = [{"image": IMAGES[:, n:], "nucleus": NUCLEUS[n:], "pixel_size": side} for n, side in sides]
    assert gx.plan_many(slides[:2], tile_size=24).warnings == ()
    (warning,) = gx.plan_many(slides, tile_size=24).warnings
    assert warning.startswith("pixels are 0.5 to 0.65 um wide; --scale UM")
    assert gx.plan_many(slides, tile_size=24, scale=0.5).warnings == ()


def test_the_pixel_size_of_a_slide_takes_precedence(tmp_path):
    metadata = {"axes": "CYX", "PhysicalSizeX": 0.3, "PhysicalSizeY": 0.3}
    tifffile.imwrite(tmp_path / "a.ome.tif", IMAGES, photometric="minisblack", metadata=metadata)
    given = {"image": tmp_path / "a.ome.tif", "nucleus": NUCLEUS}

    def size(slide, **options):
        return gx.plan_many([slide], **options).slides[0].pixel_size

    assert size(given) == (0.3, 0.3)
    assert size(given, pixel_size=0.5) == (0.5, 0.5)
    assert size(given | {"pixel_size": 0.7}, pixel_size=0.5) == (0.7, 0.7)


def test_the_pixel_size_is_stored(tmp_path):
    report = gx.extract(IMAGES, nucleus=NUCLEUS, output=tmp_path / "a.h5sc", tile_size=20, pixel_size=(0.5, 0.6))
    (source,) = json.loads(anndata.read_h5ad(report.path).uns["gpu_extract"]["sources"])
    assert source["pixel_size"] == [0.5, 0.6]
    assert "scale" not in source


def test_the_command_line_accepts_um(files, call):
    slide = ("image.tif", "--nucleus", "nucleus.tif")
    code, out, _ = call("plan", *slide, "--pixel-size", 0.5, "--size-um", 12)
    assert (code, "tiles of 24 x 24 pixels (12 um)" in out) == (0, True)
    code, out, _ = call("plan", *slide, "--pixel-size", 0.5, "--size-um", 12, "--scale", 1)
    assert (code, "tiles of 12 x 12 pixels (12 um)" in out) == (0, True)
    code, out, err = call("plan", *slide, "--size-um", 12)
    assert (code, out, err.count("\n")) == (1, "", 1)
    code, out, _ = call("plan", *slide, "--channels", "ch2, 0", "--nuclear-channel", "ch2", "--size", 24)
    assert (code, "planes: nucleus, ch2, ch0\n" in out, "um)" in out) == (0, True, False)
    code, out, err = call("run", *slide, "-o", "a.h5sc", "--channels", "DAPI")
    assert (code, out) == (1, "")
    assert err == "gpu-extract: image image.tif has no channel DAPI; there are ch0 (0), ch1 (1), ch2 (2)\n"
