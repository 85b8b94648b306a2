"""Zarr stores in zip archives."""

import os
import pickle
import zipfile

import numpy as np
import pytest
import tifffile
import zarr
from made.stores import BOX, IMAGE, LABELS, crop, write_ome_zarr, write_spatialdata

import gpu_extract as gx
from gpu_extract.errors import SourceError
from gpu_extract.sources import open_image, open_labels, open_slide, open_slides


def zipped(folder, path, prefix="", method=zipfile.ZIP_STORED):
    """Pack a folder as zip programs do."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for parent, _, names in os.walk(folder):
            for name in names:
                file = os.path.join(parent, name)
                archive.write(file, prefix + os.path.relpath(file, folder))
    return path


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(("prefix", "name"), [("", "a.ozx"), ("image.ome.zarr/", "a.ome.zarr.zip"), ("", "a.dat")])
def test_zipped_ome_zarr(tmp_path, version, method, prefix, name):
    folder = write_ome_zarr(tmp_path / "folder", version=version, labels={"cells": LABELS})
    path = zipped(folder, tmp_path / name, prefix, method)
    slide = open_slide(f"{path}#c=0,2", nucleus="cells")
    assert (slide.name, slide.channel_names) == ("a", ("DNA", "actin"))
    assert slide.masks["nucleus"].source == f"{path}#label=cells"
    window = slide.read(BOX)
    np.testing.assert_array_equal(window.image, crop(IMAGE[[0, 2]]))
    np.testing.assert_array_equal(window.labels[0], crop(LABELS))
    np.testing.assert_array_equal(open_image(f"{path}#level=1").read(3, 4, 30, 45), IMAGE[:, 6:60:2, 8:90:2])


@pytest.mark.parametrize("separator", ["/", ":/"])
def test_a_path_inside_the_archive(tmp_path, separator):
    folder = write_spatialdata(tmp_path / "folder", labels={"mine": LABELS}, images=("he", "if"))
    path = zipped(folder, tmp_path / "a.zarr.zip")
    image = open_image(f"{path}{separator}images/if#c=1")
    np.testing.assert_array_equal(image.read(*BOX), crop(IMAGE[1:2]))
    assert image.source == f"{path}:/images/if#c=1"
    np.testing.assert_array_equal(open_image(image.source).read(*BOX), image.read(*BOX))
    np.testing.assert_array_equal(
        open_labels(f"{path}{separator}labels/mine/s0", "nucleus").read(*BOX)[0], crop(LABELS)
    )
    for within in ("labels/nothing", "labels/../images/if", "../folder"):
        with pytest.raises(SourceError) as caught:
            open_image(f"{path}{separator}{within}")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("archived", [False, True])
def test_masks_of_xenium(tmp_path, archived):
    root = zarr.create_group(tmp_path / "cells.zarr", zarr_format=2)
    root.create_array("cell_id", data=np.arange(20, dtype=np.uint32).reshape(10, 2))
    masks = root.create_group("masks")
    masks.create_array("homogeneous_transform", data=np.eye(4, dtype=np.float32))
    for name, plane in (("0", LABELS), ("1", LABELS + 1)):
        masks.create_array(name, data=plane, chunks=(32, 48))
    path = zipped(tmp_path / "cells.zarr", tmp_path / "cells.zarr.zip") if archived else tmp_path / "cells.zarr"
    tifffile.imwrite(tmp_path / "image.tif", IMAGE, photometric="minisblack")
    slide = open_slide(tmp_path / "image.tif", nucleus=path, cytosol=path)
    np.testing.assert_array_equal(slide.read(BOX).labels, crop(np.stack([LABELS, LABELS + 1])))
    np.testing.assert_array_equal(open_labels(f"{path}/masks/1", "nucleus").read(*BOX)[0], crop(LABELS + 1))


def test_a_slide_in_an_archive_pickles(tmp_path, elsewhere):
    path = zipped(write_ome_zarr(tmp_path / "f", labels={"nucleus": LABELS}), tmp_path / "a.ozx")
    slide = open_slide(path)
    assert len(pickle.dumps(slide)) < 20_000
    (window,) = elsewhere([slide], BOX)
    np.testing.assert_array_equal(window.image, crop(IMAGE))
    np.testing.assert_array_equal(window.labels[0], crop(LABELS))


@pytest.mark.parametrize("storage", [{"chunks": (32, 48)}, {"chunks": (16, 24), "shards": (64, 96)}])
def test_absent_chunks_in_an_archive_are_counted(tmp_path, storage):
    labels = LABELS.copy()
    labels[:32, :48] = 0
    zarr.create_array(tmp_path / "f", data=labels, **storage)
    path = zipped(tmp_path / "f", tmp_path / "a.zarr.zip")
    slide = open_slide(IMAGE, nucleus=path)
    assert f"lacks {4 if 'shards' in storage else 1} of its" in slide.warnings[0]
    np.testing.assert_array_equal(slide.read(BOX).labels[0], crop(labels))


def test_an_archive_that_was_written_again_is_an_error(tmp_path):
    folder = write_ome_zarr(tmp_path / "f")
    raster = open_image(zipped(folder, tmp_path / "a.ozx"))
    os.utime(tmp_path / "a.ozx", ns=(0, 0))
    with pytest.raises(SourceError, match="has changed since it was opened"):
        raster.read(*BOX)


def test_many_slides_need_no_open_files(tmp_path):
    path = zipped(write_ome_zarr(tmp_path / "f", labels={"nucleus": LABELS}), tmp_path / "a.ozx")
    before = len(os.listdir("/proc/self/fd"))
    slides = [open_slide(path) for _ in range(20)]
    assert len(os.listdir("/proc/self/fd")) <= before + 2
    assert len(slides) == 20


def test_a_plate_in_an_archive(tmp_path):
    root = zarr.create_group(tmp_path / "f", zarr_format=2, attributes={"plate": {"wells": [{"path": "B/3"}]}})
    root.create_group("B/3", attributes={"well": {"images": [{"path": "0"}, {"path": "1"}]}})
    for field in "01":
        write_ome_zarr(tmp_path / "f" / "B" / "3" / field, version="0.4", labels={"cells": LABELS})
    path = zipped(tmp_path / "f", tmp_path / "plate.ozx")
    for given in (path, f"{path}/B/3"):
        slides = open_slides(given, nucleus="cells")
        assert [slide.name for slide in slides] == ["B03_0", "B03_1"]
        assert slides[1].image.source == f"{path}:/B/3/1"
        assert slides[1].metadata["well"] == "B03"
        np.testing.assert_array_equal(slides[1].read(BOX).image, crop(IMAGE))


def test_cells_of_an_archive_are_those_of_the_folder(tmp_path):
    labels = np.kron(np.arange(1, 13).reshape(3, 4), np.ones((20, 20), int)).astype(np.uint16)[:60, :80]
    folder = write_ome_zarr(tmp_path / "f", IMAGE[:, :60, :80], labels={"nucleus": labels})
    path = zipped(folder, tmp_path / "a.ozx")
    stored = []
    for n, given in enumerate((folder, path)):
        report = gx.extract(given, output=tmp_path / f"{n}.h5sc", tile_size=24, border="keep", device="reference")
        with gx.open_cells(report.path) as cells:
            stored.append(cells.read(range(len(cells))))
    assert len(stored[0]) == 12
    np.testing.assert_array_equal(*stored)


def changed(path, **fields):
    """Change fields of the first large member in the central directory of an archive."""
    with zipfile.ZipFile(path, "a") as archive:
        info = max(archive.infolist(), key=lambda info: info.file_size)
        for name, value in fields.items():
            setattr(info, name, value)
        archive._didModify = True
    return path


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"file_size": 2**31 - 1}, "of 2147483647 bytes, from .* in the archive, and at most 1073741824 are read"),
        ({"file_size": 2**30, "compress_size": 99}, "of 1073741824 bytes, from 99 in the archive"),
        ({"filename": "../../evil"}, r"a member named '\.\./\.\./evil', which leads out of the archive"),
        ({"filename": "/etc/passwd"}, "a member named '/etc/passwd'"),
        ({"flag_bits": 1}, "encrypted or compressed by method"),
        ({"compress_type": 93}, "compressed by method 93; .* or unzip it and give the folder"),
    ],
)
def test_archives_made_to_harm_are_an_error(tmp_path, fields, message):
    path = changed(zipped(write_ome_zarr(tmp_path / "f"), tmp_path / "a.ozx"), **fields)
    with pytest.raises(SourceError, match=message) as caught:
        open_image(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", [0.3, 0.9])
def test_a_truncated_archive_is_an_error(tmp_path, part):
    path = zipped(write_ome_zarr(tmp_path / "f"), tmp_path / "a.ozx")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(SourceError) as caught:
        open_image(path)
    assert "\n" not in str(caught.value)


def test_a_damaged_member_is_an_error(tmp_path):
    path = zipped(write_ome_zarr(tmp_path / "f"), tmp_path / "a.ozx")
    raster = open_image(path)
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("s0/c/0/0/0").header_offset
    content = bytearray(path.read_bytes())
    content[offset + 60 : offset + 90] = bytes(30)
    times = path.stat()
    with open(path, "r+b") as stream:
        stream.write(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(SourceError, match="cannot be read at rows"):
        raster.read(0, 0, 70, 90)


def test_archives_of_numpy_arrays_are_still_read(tmp_path):
    np.savez(tmp_path / "a.npz", image=IMAGE)
    np.testing.assert_array_equal(open_image(tmp_path / "a.npz").read(*BOX), crop(IMAGE))


def test_a_path_that_is_not_in_the_archive_is_named(tmp_path):
    path = tmp_path / "cells.zarr.zip"
    with zarr.storage.ZipStore(path, mode="w") as store:
        zarr.create_group(store).create_group("masks").create_array("0", data=np.ones((8, 8), np.uint16))
    with pytest.raises(SourceError) as error:
        gx.plan(np.zeros((1, 8, 8), np.uint16), nucleus=f"{path}/masks/7")
    assert str(error.value) == f"nucleus label plane {path}:/masks/7 does not exist in the store; check the path"
