"""Chunks of several cells: collected from batches in any order, written, and read back."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from made.cells import make_contents, make_format, make_images, part, write
from made.slides import as_slide, small_slide

import gpu_extract as gx
from gpu_extract.errors import OutputError
from gpu_extract.model import BatchSize, CellImages
from gpu_extract.planning import batches, make_plan
from gpu_extract.recipe import Recipe
from gpu_extract.store import CellStore, ChunkFormat, encode, verify, whole_chunks
from gpu_extract.store.codecs import CODECS
from gpu_extract.store.hdf5.layouts import LAYOUTS
from gpu_extract.store.reader import open_cells

CHUNKED = [name for name in CODECS if name != "none"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cells.h5sc"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("compression", CHUNKED)
@pytest.mark.parametrize(("n_cells", "chunk_cells"), [(32, 8), (30, 8), (1, 8), (7, 7), (5, 9)])
def test_chunks_of_several_cells_are_read_by_h5py_and_by_us(path, layout, compression, n_cells, chunk_cells):
    contents = make_contents(n_cells)
    images = make_images(contents)
    store = CellStore.create(path, contents, layout=layout, compression=compression, chunk_cells=chunk_cells)
    order = np.random.default_rng(0).permutation(n_cells)
    scattered = CellImages(order, images.ids[order], images.images[order], images.limits[order])
    for cells in whole_chunks((part(scattered, i, i + 3) for i in range(0, n_cells, 3)), store.format, n_cells):
        store.append(encode(cells, store.format))
    store.finish()
    with h5py.File(path) as file, open_cells(path) as cells:
        dataset = file[LAYOUTS[layout].images]
        assert dataset.chunks == (min(chunk_cells, n_cells), *store.format.shape[1:])
        np.testing.assert_array_equal(dataset[:], images.images)
        np.testing.assert_array_equal(cells.read(order), images.images[order])
        for i, name in enumerate(LAYOUTS[layout].limits):
            np.testing.assert_array_equal(file[name][:], images.limits[:, :, i])
    assert verify(path).n_cells == n_cells


def test_a_chunk_is_yielded_when_its_last_cell_arrives():
    contents = make_contents(10)
    images, format = make_images(contents), make_format(contents, chunk_cells=4)
    arrived = []

    def batches():
        for start in (4, 0, 8, 2, 6):
            arrived.append(start)
            yield part(images, start, start + 2)

    yielded = [(len(arrived), cells.rows.tolist()) for cells in whole_chunks(batches(), format, 10)]
    assert yielded == [(3, [8, 9]), (4, [0, 1, 2, 3]), (5, [4, 5, 6, 7])]


def test_encoding_several_chunks_equals_encoding_each(path):
    contents = make_contents(10)
    images, format = make_images(contents), make_format(contents, chunk_cells=4)
    together = encode(images, format)
    single = [encode(part(images, start, start + 4), format) for start in (0, 4, 8)]
    assert together.chunks == sum((one.chunks for one in single), ())
    assert format.chunk_offsets(images.rows, 4).tolist() == [[0, 0], [4, 0], [8, 0]]


@pytest.mark.parametrize(
    ("choices", "match"),
    [
        ({"chunk_cells": 0}, "chunk_cells is 0; it must be 1 or more"),
        ({"chunk_cells": 2, "compression": "none"}, "compression 'none' has no chunks; leave chunk_cells at 1"),
    ],
)
def test_impossible_chunks_are_refused(path, choices, match):
    with pytest.raises(OutputError, match=match):
        CellStore.create(path, make_contents(3), **choices)
    assert list(path.parent.iterdir()) == []


def test_a_chunk_that_is_too_large_for_hdf5_is_refused():
    with pytest.raises(OutputError, match=r"a chunk takes 4294967296 bytes; .* lower tile_size or chunk_cells"):
        ChunkFormat((512, 4, 1024, 1024), np.dtype(np.float16), "gzip")


def test_batches_are_in_order_of_groups(monkeypatch):
    image, nucleus, cytosol = small_slide(4)
    plan = make_plan([as_slide(image, nucleus, cytosol)], Recipe(tile_size=8, border="keep"))
    monkeypatch.setattr("gpu_extract.planning.GROUP_NBYTES", 9 * plan.program.tile_nbytes)
    found = [batch.rows for batch in batches(plan, BatchSize(), chunk_cells=4)]
    rows = np.concatenate(found)
    assert (np.sort(rows) == np.arange(len(plan.cells))).all()
    assert (np.diff(rows // 8) >= 0).all()  # 9 tiles hold two chunks
    assert not (np.diff(rows) > 0).all()  # neighbors on the slide are read together


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tiles_do_not_depend_on_the_chunk_size(tmp_path, layout):
    image, nucleus, cytosol = small_slide(5)
    read = {}
    for chunk_cells in (1, 3, 100):
        path = tmp_path / f"{chunk_cells}.h5"
        choices = {"layout": layout, "chunk_cells": chunk_cells, "device": "cpu", "border": "keep", "tile_size": 16}
        gx.extract(image, nucleus=nucleus, cytosol=cytosol, output=path, **choices)
        with open_cells(path) as cells:
            read[chunk_cells] = cells.ids, cells.read(range(len(cells)))
    for ids, images in read.values():
        np.testing.assert_array_equal(ids, read[1][0])
        np.testing.assert_array_equal(images, read[1][1])


def test_chunks_of_several_cells_are_read_by_id(path):
    contents = make_contents(10)
    images = make_images(contents)
    write(path, contents, images, chunk_cells=2)
    with open_cells(path) as cells:
        np.testing.assert_array_equal(cells[15], images.images[5])
        np.testing.assert_array_equal(cells[14], images.images[4])
