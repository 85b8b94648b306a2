"""Selectors and time points in all formats."""

import os

import numpy as np
import pytest
import tifffile
from made.stores import BOX, IMAGE, LABELS, NAMES, RNG, crop, write_ome_zarr

from gpu_extract.errors import InputError, LabelError, SourceError
from gpu_extract.sources import open_image, open_labels, open_slide, open_slides, selectors
from gpu_extract.sources.selectors import input_paths


@pytest.fixture
def stack_path(tmp_path):
    stack = RNG.integers(0, 999, (2, 3, 4, 70, 90), np.uint16)
    path = tmp_path / "stack.ome.tif"
    metadata = {"axes": "TCZYX", "Channel": {"Name": list(NAMES)}}
    tifffile.imwrite(path, stack, metadata=metadata, photometric="minisblack", compression="zlib")
    return path, stack


def test_planes_of_a_tiff_are_selected(stack_path):
    path, stack = stack_path
    raster = open_image(f"{path}#t=1,z=2,c=2,0")
    assert raster.names == ("actin", "DNA")
    assert raster.source == f"{path}#c=2,0,z=2,t=1"
    np.testing.assert_array_equal(raster.read(*BOX), crop(stack[1, [2, 0], 2]))
    np.testing.assert_array_equal(open_image(f"{path}#z=max,t=0").read(*BOX), crop(stack[0].max(axis=1)))


def test_levels_of_a_tiff_are_selected(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as writer:
        storage = {"tile": (32, 48), "photometric": "minisblack"}
        writer.write(IMAGE, subifds=1, metadata={"axes": "CYX"}, **storage)
        writer.write(IMAGE[:, ::2, ::2], subfiletype=1, **storage)
    np.testing.assert_array_equal(open_image(f"{tmp_path}/a.ome.tif#level=0").read(*BOX), crop(IMAGE))
    half = open_image(f"{tmp_path}/a.ome.tif#level=1,c=1").read(0, 0, 35, 45)
    np.testing.assert_array_equal(half, IMAGE[1:2, ::2, ::2])
    with pytest.raises(SourceError, match="level= can be 0 to 1"):
        open_image(f"{tmp_path}/a.ome.tif#level=2")


def test_channels_of_npy_are_selected(tmp_path):
    np.save(tmp_path / "a.npy", IMAGE)
    np.testing.assert_array_equal(open_image(f"{tmp_path}/a.npy#c=2,0").read(*BOX), crop(IMAGE[[2, 0]]))
    np.testing.assert_array_equal(open_labels(f"{tmp_path}/a.npy#c=1", "nucleus").read(*BOX), crop(IMAGE[1:2]))
    with pytest.raises(LabelError, match=r"holds 3 planes; .* add #c=0 to #c=2"):
        open_labels(tmp_path / "a.npy", "nucleus")


def test_a_file_name_may_contain_a_number_sign(tmp_path):
    np.save(tmp_path / "a.npy", IMAGE)
    np.save(tmp_path / "a.npy#c=0.npy", IMAGE + 1)
    os.rename(tmp_path / "a.npy#c=0.npy", tmp_path / "a.npy#c=0")
    np.testing.assert_array_equal(open_image(f"{tmp_path}/a.npy#c=0").read(*BOX), crop(IMAGE + 1))
    np.testing.assert_array_equal(open_image(f"{tmp_path}/a.npy#c=0#c=1").read(*BOX), crop(IMAGE[1:2] + 1))
    with pytest.raises(SourceError, match=r"well #3\.npy does not exist"):
        open_image(f"{tmp_path}/well #3.npy")


@pytest.mark.parametrize(
    ("selectors", "message"),
    [
        ("q=1", "the selector 'q' is unknown; there are level, c, z, t, image, label, missing"),
        ("t=0,t=1", "t= is given twice"),
        ("c=0,0", "c= takes different channels by number from 0 or by name, as in c=0,2"),
        ("t=0,z=0,c=DAPI", r"has no channel DAPI; there are DNA \(0\), pH3 \(1\), actin \(2\)$"),
        ("c=", "c= is not allowed"),
        ("z=min", "z= takes a number from 0, or max"),
        ("t=-1", "t=-1 is not allowed; t= takes a number from 0"),
        ("t=max", "t=max is not allowed"),
        ("level=1.5", "level= takes a number from 0"),
        ("missing=zero", "missing= takes fill"),
        ("image=", "image= takes a name"),
        ("t=2,z=0", "does not exist: t= can be 0 to 1 in this file"),
        ("t=0,z=4", "z= can be 0 to 3"),
        ("t=0,z=0,c=0,3", "has no channel 3; there are DNA"),
        ("t=0,z=0,level=1", "level= can be only 0"),
        ("t=0,z=0,image=a", "the file has no image 'a'; there are 0: Image0"),
        ("t=0", "has 4 Z slices; add #z=0 to #z=3 to its path for one, or #z=max for their maximum projection"),
        ("z=0", "has 2 time points; add #t=0 to #t=1 to its path for one, or make each a slide"),
    ],
)
def test_invalid_selectors_are_refused(stack_path, selectors, message):
    with pytest.raises(InputError, match=message) as caught:
        open_image(f"{stack_path[0]}#{selectors}")
    assert "\n" not in str(caught.value)


# Time points


def time_series(tmp_path, kind):
    image = RNG.integers(1, 999, (3, 2, 70, 90), np.uint16)
    labels = RNG.integers(1, 99, (3, 70, 90), np.uint16)
    if kind == "zarr":
        return image, labels, write_ome_zarr(tmp_path / "movie.zarr", image, "tcyx", labels={"n": labels}), "n"
    path = tmp_path / "movie.ome.tif"
    both = np.concatenate([image, labels[:, np.newaxis]], axis=1)
    tifffile.imwrite(path, both, metadata={"axes": "TCYX"}, photometric="minisblack", compression="zlib")
    return image, labels, f"{path}#c=0,1", f"{path}#c=2"


@pytest.mark.parametrize("kind", ["zarr", "tiff"])
def test_time_points_become_slides(tmp_path, kind):
    image, labels, path, nucleus = time_series(tmp_path, kind)
    slides = open_slides(path, nucleus=nucleus)
    assert [slide.name for slide in slides] == ["movie_t0", "movie_t1", "movie_t2"]
    assert [slide.metadata for slide in slides] == [{"timepoint": "0"}, {"timepoint": "1"}, {"timepoint": "2"}]
    for t, slide in enumerate(slides):
        window = slide.read(BOX)
        np.testing.assert_array_equal(window.image, crop(image[t]))
        np.testing.assert_array_equal(window.labels[0], crop(labels[t]))
    with pytest.raises(SourceError, match=r"has 3 time points; add #t=0 to #t=2"):
        open_slide(path, nucleus=nucleus)


def test_one_time_point_is_a_single_slide(tmp_path):
    image, labels, path, _ = time_series(tmp_path, "zarr")
    (slide,) = open_slides(f"{path}#t=1", nucleus="n", name="frame", channel_names=["a", "b"])
    assert (slide.name, slide.metadata, slide.channel_names) == ("frame", {}, ("a", "b"))
    np.testing.assert_array_equal(slide.read(BOX).labels[0], crop(labels[1]))
    (slide,) = open_slides(list(image[0]), cytosol=labels[0])
    assert slide.name == "slide"


def test_time_points_of_several_channel_files(tmp_path):
    paths = [tmp_path / "dna.tif", tmp_path / "actin.tif"]
    for path in paths:
        tifffile.imwrite(path, IMAGE, imagej=True, metadata={"axes": "TYX"})
    slides = open_slides(paths, nucleus=paths[0])
    assert slides[2].channel_names == ("dna", "actin")
    np.testing.assert_array_equal(slides[2].read(BOX).image, crop(np.stack([IMAGE[2], IMAGE[2]])))


def test_labels_must_have_as_many_time_points_as_the_image(tmp_path):
    path = write_ome_zarr(tmp_path / "a.zarr", IMAGE, "tyx", labels={"two": np.stack([LABELS, LABELS])})
    with pytest.raises(
        InputError, match=r"must have the same number of time points; they have: image .*a\.zarr 3, .*label=two 2$"
    ):
        open_slides(path, nucleus="two")
    with pytest.raises(InputError, match=r"image .*a\.zarr 3, array 1$"):
        open_slides(path, nucleus=LABELS)


def test_each_path_is_parsed_once(tmp_path, monkeypatch):
    texts, original = [], selectors.located

    def located(text, plane):
        texts.append(text)
        return original(text, plane)

    monkeypatch.setattr(selectors, "located", located)
    np.save(tmp_path / "nucleus.npy", LABELS)
    image = write_ome_zarr(tmp_path / "a.zarr", IMAGE, labels={"cells": LABELS})
    given = f"{image}#c=0,2", f"{tmp_path}/nucleus.npy", "cells#level=0"
    slide = open_slide(given[0], nucleus=given[1], cytosol=given[2])
    assert (slide.name, slide.masks["cytosol"].source) == ("a", f"{image}#level=0,label=cells")
    assert texts == list(given)


def test_input_paths_are_paths_of_files_without_selectors(tmp_path):
    (tmp_path / "b#c=0.tif").touch()
    (tmp_path / "c.h5").touch()
    given = (
        [f"{tmp_path}/a.zarr#c=0,2", tmp_path / "b#c=0.tif", LABELS],
        None,
        f"{tmp_path}/c.h5:/labels",
        "cells",
        IMAGE,
    )
    assert input_paths(*given) == [f"{tmp_path}/a.zarr", f"{tmp_path}/b#c=0.tif", f"{tmp_path}/c.h5", "cells"]
    with pytest.raises(InputError, match="the selector 'what' is unknown"):
        input_paths("a.tif#what=1")
