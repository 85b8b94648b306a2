"""Chunks of every compression: other programs read ours, we read theirs, and damage is detected."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest
from made.cells import make_contents, make_format, make_images, write

from gpu_extract.errors import OutputError
from gpu_extract.model import CellImages
from gpu_extract.recipe import Recipe
from gpu_extract.store import CellStore, encode, verify
from gpu_extract.store.codecs import CODECS
from gpu_extract.store.hdf5.datasets import codec_of
from gpu_extract.store.reader import open_cells

IMAGES = "obsm/single_cell_images"
CHUNKED = [name for name in CODECS if name != "none"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cells.h5sc"


def tiles(kind):
    """Return contents, and tiles that compress well, not at all, or to almost nothing."""
    contents = make_contents(6, recipe=Recipe(tile_size=40, normalization="none"))
    images = make_images(contents)
    random = np.random.default_rng(0).integers(0, 2**16, images.images.shape, np.uint16)
    values = {"random": random, "zero": random * 0, "sparse": np.where(random % 20 == 0, random, 0)}[kind]
    return contents, CellImages(images.rows, images.ids, values.astype(np.uint16), images.limits)


@pytest.mark.parametrize("kind", ["random", "zero", "sparse"])
@pytest.mark.parametrize("compression", CODECS)
def test_hdf5_reads_what_we_encode(path, compression, kind):
    contents, images = tiles(kind)
    write(path, contents, images, compression=compression)
    assert verify(path).compression == compression
    with h5py.File(path) as file, open_cells(path) as cells:
        np.testing.assert_array_equal(file[IMAGES][:], images.images)
        np.testing.assert_array_equal(cells.read(range(6)), images.images)


THEIRS = {
    "gzip": {"compression": "gzip"},
    "lzf": {"compression": "lzf"},
    "lz4": {**hdf5plugin.LZ4(), "fletcher32": True},
    "zstd": {**hdf5plugin.Zstd(), "fletcher32": True},
    "other filters": {"compression": "gzip", "shuffle": True},
}


@pytest.mark.parametrize("chunks", [(1, 4, 40, 40), (1, 1, 40, 40), (4, 3, 40, 40), (2, 2, 20, 20)])
@pytest.mark.parametrize("kind", ["random", "sparse"])
@pytest.mark.parametrize("compression", THEIRS)
def test_we_read_what_hdf5_encodes(path, compression, kind, chunks):
    # HDF5 stores chunks that do not shrink uncompressed, and marks each of them in its filter mask.
    contents, images = tiles(kind)
    write(path, contents, images)
    with h5py.File(path, "r+") as file:
        attributes = dict(file[IMAGES].attrs)
        del file[IMAGES]
        file.create_dataset(IMAGES, data=images.images, chunks=chunks, **THEIRS[compression])
        file[IMAGES].attrs.update(attributes)
        codec = codec_of(file[IMAGES])
        assert ("other filters" if codec is None else codec.name) == compression
    with open_cells(path) as cells:
        np.testing.assert_array_equal(cells.read([5, 0, 1, 2, 3, 4]), images.images[[5, 0, 1, 2, 3, 4]])
    assert verify(path).compression == compression


def unpacked(compression, chunk, nbytes):
    out = np.full(nbytes, 77, np.uint8)
    CODECS[compression].decode(chunk, out)
    return out.tobytes()


@pytest.mark.parametrize("compression", ["gzip", "lz4", "zstd"])
def test_flipped_bits_are_detected(compression):
    contents, images = tiles("sparse")
    format = make_format(contents, compression=compression)
    chunk = encode(images, format).chunks[0]
    expected = images.images[0].tobytes()
    assert unpacked(compression, chunk, format.nbytes) == expected
    for position in range(0, 8 * len(chunk), 37):
        damaged = bytearray(chunk)
        damaged[position // 8] ^= 1 << position % 8
        try:
            values = unpacked(compression, bytes(damaged), format.nbytes)
        except ValueError:
            continue
        assert values == expected  # a padding bit


@pytest.mark.parametrize("compression", CHUNKED)
def test_a_chunk_of_another_size_is_an_error(compression):
    contents, images = tiles("sparse")
    format = make_format(contents, compression=compression)
    chunk = encode(images, format).chunks[0]
    for nbytes in (format.nbytes - 1, format.nbytes + 1, 0):
        with pytest.raises(ValueError, match=r"its|it does not decode"):
            unpacked(compression, chunk, nbytes)
    for data in (b"", b"\xff" * 50, chunk[: len(chunk) // 2]):
        with pytest.raises(ValueError, match=r"its|it does not decode"):
            unpacked(compression, data, format.nbytes)


def test_damage_in_an_lz4_file_is_detected(path):
    contents, images = tiles("random")
    write(path, contents, images, compression="lz4")
    with h5py.File(path) as file:
        chunk = file[IMAGES].id.get_chunk_info(3)
    data = bytearray(path.read_bytes())
    data[chunk.byte_offset + 100] ^= 4
    path.write_bytes(data)
    with pytest.raises(OutputError, match=r"row 3 \(cell 13\): its tile cannot be read: its checksum is wrong"):
        verify(path)


@pytest.mark.parametrize("compression", CODECS)
def test_this_package_needs_no_plugin(tmp_path, compression):
    script = f"""
import sys
import numpy as np
import gpu_extract as gx
from made.slides import small_slide
image, nucleus, cytosol = small_slide(1)
choices = dict(nucleus=nucleus, cytosol=cytosol, tile_size=24, device="cpu")
expected = np.concatenate([cells.images for cells in gx.iter_cells(image, **choices)])
report = gx.extract(image, output="cells.h5sc", compression={compression!r}, **choices)
with gx.open_cells("cells.h5sc") as cells:
    assert (np.sort(cells.read(range(len(cells))).ravel()) == np.sort(expected.ravel())).all()
    assert cells.info["compression"] == {compression!r}
assert "hdf5plugin" not in sys.modules
print(*report.warnings)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])}
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert ("hdf5plugin" in result.stdout) == (compression in ("lz4", "zstd"))


def test_none_is_contiguous_and_can_be_mapped(path):
    contents, images = tiles("random")
    write(path, contents, images, compression="none")
    with h5py.File(path) as file:
        assert file[IMAGES].chunks is None
        offset = file[IMAGES].id.get_offset()
    mapped = np.memmap(path, np.uint16, "r", offset, images.images.shape)
    np.testing.assert_array_equal(mapped, images.images)


def test_none_needs_every_row(path):
    contents, images = tiles("random")
    store = CellStore.create(path, contents, compression="none")
    some = CellImages(images.rows[3:], images.ids[3:], images.images[3:], images.limits[3:])
    store.append(encode(some, store.format))
    with pytest.raises(OutputError, match="3 of 6 cells were written; the file is unfinished"):
        store.finish()
    store.abandon()


def test_none_preallocates_the_whole_file(path, monkeypatch):
    contents, images = tiles("random")

    def full(descriptor, start, nbytes):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def unable(descriptor, start, nbytes):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", full)
    store = CellStore.create(path, contents, compression="none")
    with pytest.raises(OutputError, match="cannot be written: No space left on device"):
        store.append(encode(images, store.format))
    store.keep()
    assert list(path.parent.iterdir()) == []
    monkeypatch.setattr(os, "posix_fallocate", unable)  # as on some network file systems
    write(path, contents, images, compression="none")
    verify(path)
