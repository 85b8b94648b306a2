"""Batches extracted and deflated in one call, compared to batches that are only extracted."""

import zlib

import numpy as np
import pytest
from made.slides import as_slide, one_batch, small_slide

from gpu_extract import Recipe, open_cells, pipeline
from gpu_extract.backends import choose
from gpu_extract.backends.cpu import backend as cpu
from gpu_extract.backends.cpu.backend import extract_deflated
from gpu_extract.planning import make_plan
from gpu_extract.store import CellStore, ChunkFormat, Contents


@pytest.mark.parametrize("chunk_planes", ["all", 1])
@pytest.mark.parametrize("output_dtype", ["float16", "float32", "uint16"])
@pytest.mark.parametrize("preset", ["standard", "sparcspy", "scportrait"])
def test_streams_are_those_of_the_tiles(monkeypatch, preset, output_dtype, chunk_planes):
    monkeypatch.setattr(cpu, "PART_CELLS", 5)  # the last part is shorter
    recipe = Recipe.preset(preset).replace(tile_size=32, border="keep", output_dtype=output_dtype)
    window, batch, program = one_batch(as_slide(*small_slide(8)), recipe)
    assert len(batch) % 5
    K = program.n_planes if chunk_planes == "all" else chunk_planes
    format = ChunkFormat((1, K, 32, 32), program.output_dtype, "gzip")
    assert format.is_plain_deflate(program.output_dtype)
    expected = cpu.extract(window, batch, program)
    for _ in range(2):  # the second call reuses the memory
        found = extract_deflated(window, batch, program, None, format.nbytes)
        values = np.frombuffer(b"".join(map(zlib.decompress, found.streams)), program.output_dtype)
        np.testing.assert_array_equal(values.reshape(expected.images.shape), expected.images)
        np.testing.assert_array_equal(found.limits, expected.limits)
        assert found.seconds.keys() == {"compute", "encode"}
        assert all(0 < seconds < 60 for seconds in found.seconds.values())


def test_limits_of_the_slide_are_used():
    recipe = Recipe.preset("standard").replace(tile_size=32, border="keep")
    window, batch, program = one_batch(as_slide(*small_slide(8)), recipe)
    limits = np.stack([np.full(len(program.cut), 3.0), np.full(len(program.cut), 900.0)], axis=1)
    format = ChunkFormat((1, *program.tile_shape), program.output_dtype, "gzip")
    found = extract_deflated(window, batch, program, limits, format.nbytes)
    expected = cpu.extract(window, batch, program, limits)
    values = np.frombuffer(b"".join(map(zlib.decompress, found.streams)), program.output_dtype)
    np.testing.assert_array_equal(values.reshape(expected.images.shape), expected.images)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"compression": "lz4"}, False),
        ({"compression": "none"}, False),
        ({"shape": (2, 3, 16, 16)}, False),
        ({"shape": (1, 3, 15, 15)}, False),  # a tile is not a whole number of words
        ({"shape": (1, 1, 16, 16)}, True),
        ({"dtype": np.dtype("f4")}, False),
    ],
)
def test_which_chunks_are_plain_deflate(change, expected):
    format = ChunkFormat(**{"shape": (1, 3, 16, 16), "dtype": np.dtype("f2"), "compression": "gzip"} | change)
    assert format.is_plain_deflate(np.dtype("f2")) == expected


@pytest.mark.parametrize("tile_size", [32, 15])  # with and without extract_deflated
def test_a_run_gives_the_same_cells_as_the_reference(tmp_path, tile_size):
    recipe = Recipe.preset("scportrait").replace(tile_size=tile_size, border="keep")
    plan = make_plan([as_slide(*small_slide(4))], recipe)
    values = []
    for device in ("cpu", "reference"):
        store = CellStore.create(tmp_path / f"{device}.h5sc", Contents(plan.cells, plan.slides, plan.program))
        report = pipeline.run(plan, choose(device), store, 2)
        assert set(report.stage_seconds) == {"read", "compute", "encode", "write"}
        with open_cells(report.path) as cells:
            values.append(cells.read(np.arange(len(plan.cells))))
    distance = np.abs(values[0].view(np.int16).astype(int) - values[1].view(np.int16).astype(int))
    assert distance.max() <= 1
