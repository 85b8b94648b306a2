"""`verify` detects damage in a file and reports its position."""

from __future__ import annotations

import json
import shutil

import h5py
import numpy as np
import pytest
from made.cells import SCPORTRAIT_FILE, fill, make_contents, make_images, make_slide, write

from gpu_extract.errors import InputError, OutputError
from gpu_extract.recipe import Recipe
from gpu_extract.store import CellStore, verification, verify
from gpu_extract.store.codecs import CODECS
from gpu_extract.store.hdf5.layouts import LAYOUTS

IMAGES = "obsm/single_cell_images"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cells.h5sc"


@pytest.fixture
def sound(path):
    contents = make_contents(300, (make_slide("A"), make_slide("B")), ids=np.tile(np.arange(1, 151), 2))
    return write(path, contents)


def damaged(path, match):
    with pytest.raises(OutputError, match=match) as error:
        verify(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_an_intact_file(sound):
    found = verify(sound)
    assert (found.n_cells, found.n_masks, found.n_channels, found.tile_size) == (300, 2, 2, 6)
    assert str(found).startswith("300 cells of 2 masks and 2 channels, 6 x 6 float16, 0.1 MB (gzip)")
    assert found.remains is None


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("threads", [None, 1, 3, 50])
def test_progress_counts_all_cells_with_any_number_of_threads(path, threads, layout):
    n_cells = 2 * verification.ROWS_PER_TASK + 5
    write(path, make_contents(n_cells), layout=layout)
    seen = []
    verify(path, threads=threads, progress=lambda *counts: seen.append(counts))
    assert seen == [(n, n_cells) for n in (n_cells // 2 - 2, n_cells - 5, n_cells)]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_first_damaged_cell_is_named_with_any_number_of_threads(path, threads):
    write(path, make_contents(900))
    with h5py.File(path, "r+") as file:
        dataset = file[IMAGES].id
        for row in (880, 641, 640, 300):
            _, chunk = dataset.read_direct_chunk((row, 0, 0, 0))
            dataset.write_direct_chunk((row, 0, 0, 0), chunk[:-4] + bytes(4))
    seen = []
    with pytest.raises(OutputError, match=r"row 300 \(cell 310\)"):
        verify(path, threads=threads, progress=lambda *counts: seen.append(counts))
    assert seen == [(256, 900)]


def test_the_number_of_threads_is_positive(sound):
    with pytest.raises(InputError, match=r"^threads is 0; it must be 1 or more$"):
        verify(sound, threads=0)


def test_few_tiles_are_read_ahead_of_the_progress(path, monkeypatch):
    monkeypatch.setattr(verification, "ROWS_PER_TASK", 1)
    n_read, ahead = 0, []
    check = verification._first_problem

    def count(images, rows):
        nonlocal n_read
        n_read += 1
        return check(images, rows)

    monkeypatch.setattr(verification, "_first_problem", count)
    write(path, make_contents(500))
    verify(path, threads=2, progress=lambda done, total: ahead.append(n_read - done))
    assert max(ahead) <= 5


def test_a_summary_as_plain_values(sound):
    values = json.loads(json.dumps(verify(sound).to_dict()))
    assert values == {
        "n_cells": 300,
        "n_masks": 2,
        "n_channels": 2,
        "tile_size": 6,
        "dtype": "float16",
        "compression": "gzip",
        "nbytes": values["nbytes"],
        "remains": None,
        "is_own": True,
    }


@pytest.mark.parametrize("compression", CODECS)
@pytest.mark.parametrize(
    "recipe", [Recipe(tile_size=5, output_dtype="uint8"), Recipe(tile_size=5, normalization="none")]
)
def test_other_intact_files(path, recipe, compression):
    write(path, make_contents(3, recipe=recipe), compression=compression)
    assert verify(path).compression == compression


def test_a_file_of_scportrait():
    if not SCPORTRAIT_FILE.exists():
        pytest.skip(f"{SCPORTRAIT_FILE} is not here")
    found = verify(SCPORTRAIT_FILE)
    assert (found.n_cells, found.n_masks, found.n_channels, found.compression) == (226, 2, 3, "lzf")


def test_a_missing_tile_in_a_file_of_scportrait(tmp_path):
    if not SCPORTRAIT_FILE.exists():
        pytest.skip(f"{SCPORTRAIT_FILE} is not here")
    path = tmp_path / "golden.h5sc"
    shutil.copyfile(SCPORTRAIT_FILE, path)
    path.chmod(0o644)
    with h5py.File(path, "r+") as file:
        attributes = dict(file[IMAGES].attrs)
        del file[IMAGES]
        images = file.create_dataset(IMAGES, (226, 5, 64, 64), "f2", chunks=(1, 1, 64, 64), compression="lzf")
        images.attrs.update(attributes)
        images[:200] = 1
    damaged(path, r"row 200 was never written \(1000 of 1130 chunks")


def test_a_flipped_bit_in_a_tile(sound):
    with h5py.File(sound) as file:
        chunk = file[IMAGES].id.get_chunk_info(270)
    data = bytearray(sound.read_bytes())
    data[chunk.byte_offset + chunk.size // 2] ^= 4
    sound.write_bytes(data)
    damaged(sound, rf"row {chunk.chunk_offset[0]} \(cell 121\): its tile cannot be read")


def test_a_tile_of_another_size(sound):
    with h5py.File(sound, "r+") as file:
        images = file[IMAGES].id
        _, chunk = images.read_direct_chunk((7, 0, 0, 0))
        images.write_direct_chunk((7, 0, 0, 0), chunk[:-6])
    damaged(sound, r"row 7 \(cell 8\): .*(cut short|damaged)")


def test_a_tile_that_decodes_to_megabytes(sound):
    from isal import isal_zlib

    with h5py.File(sound, "r+") as file:
        file[IMAGES].id.write_direct_chunk((7, 0, 0, 0), isal_zlib.compress(bytes(1 << 24), 1))
    damaged(sound, r"row 7 \(cell 8\): .*its gzip stream is damaged or of another size")


def test_a_value_that_is_not_finite(sound):
    with h5py.File(sound, "r+") as file:
        file[IMAGES][299, 3, 2, 1] = np.inf
    damaged(sound, r"row 299 \(cell 150\): its tile has values that are not finite")


def test_a_limit_that_is_not_finite(sound):
    with h5py.File(sound, "r+") as file:
        file["obsm/normalization_upper"][5, 1] = np.nan
    damaged(sound, r"row 5 \(cell 6\): obsm/normalization_upper is not finite")


def test_a_duplicate_id(sound):
    with h5py.File(sound, "r+") as file:
        file["obs/scportrait_cell_id"][3] = 1
    damaged(sound, r"row 3 \(cell 1\) is a duplicate")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        (IMAGES, "is an AnnData file without single-cell images"),
        ("uns/single_cell_images/channel_names", "channel_names"),
        ("var", "var"),
        ("obs", "obs"),
        ("obs/scportrait_cell_id", "scportrait_cell_id"),
    ],
)
def test_a_missing_part(sound, name, match):
    with h5py.File(sound, "r+") as file:
        del file[name]
    damaged(sound, match)


def test_tiles_whose_attributes_differ(sound):
    with h5py.File(sound, "r+") as file:
        file[IMAGES].attrs["n_cells"] = 299
    damaged(sound, "its attributes say")


def test_tiles_in_other_files(sound, tmp_path):
    with h5py.File(sound, "r+") as file:
        attributes = dict(file[IMAGES].attrs)
        del file[IMAGES]
        elsewhere = [(str(tmp_path / "secret"), 0, h5py.h5f.UNLIMITED)]
        file.create_dataset(IMAGES, (300, 4, 6, 6), "f2", external=elsewhere).attrs.update(attributes)
    damaged(sound, "in other files")


def test_other_files(tmp_path):
    damaged(tmp_path / "missing.h5sc", "does not exist")
    damaged(tmp_path, "does not exist|folder")
    (tmp_path / "text.h5sc").write_text("hello")
    damaged(tmp_path / "text.h5sc", "not a file of cells")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["data"] = [1, 2]
    damaged(tmp_path / "foreign.h5", "it has no obsm/single_cell_images")


def test_truncated_files_are_refused(sound, tmp_path):
    data = sound.read_bytes()
    for n in range(0, len(data), len(data) // 23):
        cut = tmp_path / "cut.h5sc"
        cut.write_bytes(data[:n])
        damaged(cut, "damaged, or not a file of cells")


def test_an_unfinished_run_is_reported(path):
    contents = make_contents(20)
    store = CellStore.create(path, contents)
    fill(store, make_images(contents))
    with pytest.raises(OutputError, match="does not exist; another run is writing"):
        verify(path)
    store.keep()
    with pytest.raises(OutputError, match=r"does not exist; .*partial holds 20 of 20 cells of an unfinished run"):
        verify(path)
    with pytest.raises(OutputError, match="partial holds 20 of 20 cells of an unfinished run"):
        verify(f"{path}.partial")


def test_remains_next_to_an_intact_file_are_a_note(sound):
    sound.with_name("cells.h5sc.partial").write_bytes(b"")
    assert str(verify(sound)).endswith("cells.h5sc.partial is of a run whose journal is missing")
