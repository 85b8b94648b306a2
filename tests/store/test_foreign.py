"""Sound files of cells that other programs wrote, and sound files that are none of cells."""

from __future__ import annotations

import anndata
import h5py
import numpy as np
import pytest
from made.cells import SCPORTRAIT_FILE, make_contents, make_images, make_slide, write

from gpu_extract.errors import OutputError
from gpu_extract.store import open_cells, verify

IMAGES = "obsm/single_cell_images"
PLANES = ("seg_all_nucleus", "seg_all_cytosol", "DNA", "tubulin")
KINDS = ("mask", "mask", "image_channel", "image_channel")


@pytest.fixture
def ours(tmp_path):
    slides = (make_slide("A", {"well": "D03"}), make_slide("B"))
    return write(tmp_path / "ours.h5sc", make_contents(6, slides, ids=[1, 2, 3, 1, 2, 3]))


@pytest.fixture
def images():
    return make_images(make_contents(6, (make_slide("A"), make_slide("B")))).images


@pytest.fixture
def path(tmp_path):
    return tmp_path / "theirs.h5ad"


def as_scportrait_writes(path, images, **options):
    """What `scportrait.io.h5sc.numpy_to_h5sc` of scPortrait 1.8 writes."""
    n, K, S, _ = images.shape
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        obs = file.create_group("obs")
        obs.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"})
        obs.attrs["column-order"] = ["scportrait_cell_id"]
        obs["_index"] = np.arange(n).astype(str).astype(object)
        obs["scportrait_cell_id"] = np.arange(1, n + 1, dtype=np.uint64)
        shared = file.create_group("uns/single_cell_images")
        shared["channel_names"], shared["channel_mapping"] = (np.array(texts, object) for texts in (PLANES, KINDS))
        stored = file.create_dataset(IMAGES, data=images, **options)
        # No "image_size", and nothing of the normalization.
        stored.attrs.update({"n_cells": n, "n_channels": K, "image_size_x": S, "image_size_y": S})
    return path


def is_sound(path, images):
    found = verify(path)
    assert not found.is_own
    assert str(found).startswith(f"not written by gpu-extract; {len(images)} cells of 2 masks and 2 channels")
    with open_cells(path) as cells:
        np.testing.assert_array_equal(cells.read(range(len(cells))), images)
        assert cells.planes == PLANES
        assert len(cells.mask_planes) == 2
        assert cells.info["dropped"] is not None
    return found


def test_ours_is_not_foreign(ours):
    assert verify(ours).is_own
    assert "not written" not in str(verify(ours))


def test_written_again_by_anndata(ours, path, images):
    anndata.read_h5ad(ours).write_h5ad(path)
    assert is_sound(path, images).compression == "none"


def test_written_again_by_scportrait(ours, path, images):
    """`scportrait.io.write_h5sc` keeps what is in uns, and writes its own attributes."""
    with h5py.File(ours) as source, h5py.File(path, "w") as file:
        for name in ("obs", "var", "uns"):
            source.copy(name, file)
        stored = file.create_dataset(IMAGES, data=images, chunks=(1, 1, 6, 6), compression="lzf")
        stored.attrs.update({"n_cells": 6, "n_channels": 4, "image_size_x": 6, "image_size_y": 6})
    is_sound(path, images)


def test_some_cells_in_another_order(ours, path, images):
    rows = [4, 0]
    anndata.read_h5ad(ours)[rows].copy().write_h5ad(path, compression="gzip")
    is_sound(path, images[rows])
    with open_cells(path) as cells:
        assert cells.ids.tolist() == [2, 1]
        np.testing.assert_array_equal(cells["B", 2], images[4])


@pytest.mark.parametrize("lacking", ["var", "uns", "both uns"])
def test_without_what_is_stored_twice(ours, path, images, lacking):
    data = anndata.read_h5ad(ours)
    if lacking == "var":
        data.var = data.var[[]]
    else:
        del data.uns["gpu_extract"]
        if lacking == "both uns":
            del data.uns["single_cell_images"]
    data.write_h5ad(path)
    is_sound(path, images)


def test_joined_by_anndata(ours, path, images):
    parts = [anndata.read_h5ad(ours)[rows].copy() for rows in ([0, 1, 2], [3, 4, 5])]
    anndata.concat(parts, merge="same", index_unique="-", uns_merge="same").write_h5ad(path)
    is_sound(path, images)


@pytest.mark.parametrize(
    "options",
    [
        {"chunks": (1, 1, 6, 6), "compression": "gzip"},
        {"chunks": (1, 1, 6, 6), "compression": "lzf"},
        {"chunks": (4, 3, 4, 5), "compression": "gzip", "shuffle": True},
        {"chunks": (6, 4, 6, 6), "fletcher32": True},
        {},
    ],
)
def test_scportraits_attributes_and_any_chunks(path, images, options):
    is_sound(as_scportrait_writes(path, images, **options), images)


def test_scportraits_own_file():
    if not SCPORTRAIT_FILE.exists():
        pytest.skip(f"{SCPORTRAIT_FILE} is not here")
    assert str(verify(SCPORTRAIT_FILE)).startswith("not written by gpu-extract; 226 cells of 2 masks and 3 channels")


def test_names_in_the_attributes_only(path, images):
    as_scportrait_writes(path, images)
    with h5py.File(path, "r+") as file:
        del file["uns"]
        file[IMAGES].attrs["channel_names"] = np.array([name.encode() for name in PLANES])
        file[IMAGES].attrs["channel_mapping"] = np.array([kind.encode() for kind in KINDS])
    is_sound(path, images)


@pytest.mark.parametrize("dtype", ["i4", "i8", "u2"])
def test_ids_of_any_whole_type(path, images, dtype):
    as_scportrait_writes(path, images)
    with h5py.File(path, "r+") as file:
        ids = file["obs/scportrait_cell_id"][:].astype(dtype)
        del file["obs/scportrait_cell_id"]
        file["obs/scportrait_cell_id"] = ids
    is_sound(path, images)


def refused(path, match):
    for use in (verify, open_cells):
        with pytest.raises(OutputError, match=match) as error:
            use(path)
        text = str(error.value)
        assert text.startswith(str(path))
        assert text.count(str(path)) == 1
        assert "damaged" not in text
        assert "\n" not in text


def test_an_anndata_file_without_images(path):
    anndata.AnnData(np.ones((3, 2))).write_h5ad(path)
    refused(path, r"theirs.h5ad is an AnnData file without single-cell images \(obsm/single_cell_images\)$")


def test_an_old_anndata_file_without_images(path):
    with h5py.File(path, "w") as file:
        file["X"] = np.ones((3, 2))
        for name in ("obs", "var"):
            file[name] = np.zeros(3, [("index", "S1")])
    refused(path, "is an AnnData file without single-cell images")


def test_images_without_names(path, images):
    as_scportrait_writes(path, images)
    with h5py.File(path, "r+") as file:
        del file["uns"]
    refused(path, "images without names of their planes")


def test_images_without_ids(path, images):
    as_scportrait_writes(path, images)
    with h5py.File(path, "r+") as file:
        del file["obs/scportrait_cell_id"]
    refused(path, "images without ids: obs has no column scportrait_cell_id")


@pytest.mark.parametrize("ids", [np.array([1.5] * 6), np.array([-1] * 6), np.array(["a"] * 6, object)])
def test_ids_that_are_no_whole_numbers(path, images, ids):
    as_scportrait_writes(path, images)
    with h5py.File(path, "r+") as file:
        del file["obs/scportrait_cell_id"]
        file["obs/scportrait_cell_id"] = ids
    refused(path, "ids that are not whole numbers from 0")


def test_what_is_wrong_with_a_foreign_file_is_found(path, images):
    as_scportrait_writes(path, images)
    with h5py.File(path, "r+") as file:
        file["uns/single_cell_images/channel_mapping"][1] = "image_channel"
        file["uns/single_cell_images/channel_mapping"][2] = "mask"
    with pytest.raises(OutputError, match="masks come first"):
        verify(path)
    as_scportrait_writes(path, np.where(images > 0.99, np.nan, images), chunks=(1, 4, 6, 6))
    with pytest.raises(OutputError, match="not finite"):
        verify(path)
    as_scportrait_writes(path, images)
    with h5py.File(path, "r+") as file:
        del file["obs/scportrait_cell_id"]
        file["obs/scportrait_cell_id"] = [1, 2]
    with pytest.raises(OutputError, match="obs has 2 rows for 6 tiles"):
        verify(path)
