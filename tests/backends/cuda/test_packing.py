"""Tiles without their zeros: the kernel, compared to NumPy, and the way back to tiles and streams on the CPU."""

import zlib

import numpy as np
import pytest
from cuda_on_cpu import Launch, mutants, run_checked
from cuda_on_cpu.device import ShimGpu, shim
from made.slides import as_slide, one_batch, small_slide
from nvrtc import ARCHITECTURES, CompileCase, violations

from gpu_extract import Recipe
from gpu_extract.backends.cpu.packed import deflated, unpacked
from gpu_extract.backends.cuda.packing import N_COLUMNS, pack, unpacked_index
from gpu_extract.backends.cuda.registry import PACK
from gpu_extract.backends.cuda.source import kernel_source
from gpu_extract.backends.interface import PackedCells

DTYPES = ["uint8", "uint16", "int16", "uint32", "float16", "float32", "float64"]


def tiles_of(dtype, size, seed=0):
    """Return tiles (6, 3, S, S): random boxes, blank and full planes, single pixels in the corners, and -0."""
    rng = np.random.default_rng(seed)
    tiles = np.zeros((6, 3, size, size), dtype)
    for plane in tiles.reshape(-1, size, size)[:12]:
        y0, x0 = rng.integers(0, size, 2)
        part = plane[y0 : y0 + rng.integers(1, size + 1), x0 : x0 + rng.integers(1, size + 1)]
        part[:] = rng.integers(0, 3, part.shape)
    tiles[4, 0] = 1
    tiles[4, 1, 0, 0] = tiles[4, 2, -1, -1] = tiles[5, 0, 0, -1] = tiles[5, 1, -1, 0] = 7
    if np.dtype(dtype).kind == "f":
        tiles[5, 2, size // 2, size // 3] = -0.0
    return tiles


def packed_of(tiles, **gpu):
    """Return the tiles as the kernel packs them."""
    stream = ShimGpu(**gpu).stream()
    values, index = pack(stream, stream.to_device(tiles))
    found = np.empty(values.shape, values.dtype), np.empty(index.shape, index.dtype)
    for array, out in zip((values, index), found, strict=True):
        stream.to_host(array, out)
    stream.synchronize()
    n_values, boxes, starts = unpacked_index(found[1], len(tiles))
    rows = np.arange(len(tiles))
    limits = np.zeros((len(tiles), 1, 2))
    return PackedCells(rows, rows.astype(np.uint64), limits, boxes, starts, found[0][:n_values], tiles.shape[2])


def box_of(plane):
    """Return the bounding box of the items whose bits are not 0."""
    y, x = np.nonzero(plane.view(f"u{plane.itemsize}"))
    return [y.min(), x.min(), y.max() + 1, x.max() + 1] if len(y) else [0, 0, 0, 0]


@pytest.mark.parametrize("size", [1, 24, 33, 64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_tiles_are_the_boxes_and_become_the_same_tiles(dtype, size):
    tiles = tiles_of(dtype, size)
    packed = packed_of(tiles, order="shuffled")
    for i, tile in enumerate(tiles):
        for k, plane in enumerate(tile):
            y0, x0, y1, x1 = box_of(plane)
            assert packed.boxes[i, k].tolist() == [y0, x0, y1, x1]
            start = packed.starts[i, k]
            part = packed.values[start : start + (y1 - y0) * (x1 - x0)]
            assert part.tobytes() == np.ascontiguousarray(plane[y0:y1, x0:x1]).tobytes()
    heights, widths = (packed.boxes[..., 2:] - packed.boxes[..., :2]).reshape(-1, 2).T
    assert len(packed.values) == (heights * widths).sum()
    assert unpacked(packed).images.tobytes() == tiles.tobytes()


def test_nothing_is_packed_of_blank_tiles():
    packed = packed_of(np.zeros((2, 3, 16, 16), np.float16))
    assert len(packed.values) == 0
    assert not packed.boxes.any()
    assert not unpacked(packed).images.any()


@pytest.mark.parametrize("planes_per_stream", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_streams_are_those_of_the_whole_tiles(dtype, planes_per_stream):
    """Tiles are put together in memory that is reused, a few at a time."""
    for seed in range(3):
        tiles = tiles_of(dtype, 32, seed)
        packed = packed_of(tiles)
        for part in (packed, packed.part(slice(2, 5)), packed.part(slice(5, 6))):
            nbytes = planes_per_stream * tiles[0, 0].nbytes
            streams = deflated(part, nbytes)
            assert b"".join(map(zlib.decompress, streams)) == tiles[part.rows].tobytes()
            assert {len(zlib.decompress(stream)) for stream in streams} == {nbytes}


def test_chosen_planes_and_parts():
    tiles = tiles_of("float16", 24)
    packed = packed_of(tiles).chosen([2, 0]).part(slice(1, 4))
    assert len(packed) == 3
    assert unpacked(packed).images.tobytes() == np.ascontiguousarray(tiles[1:4, [2, 0]]).tobytes()
    assert unpacked(packed).rows.tolist() == [1, 2, 3]


@pytest.mark.parametrize("preset", ["standard", "sparcspy", "scportrait"])
def test_a_batch_is_the_same_packed(preset):
    task = one_batch(as_slide(*small_slide(9)), Recipe.preset(preset).replace(tile_size=24))
    expected = shim().extract(*task)
    (packed,) = shim(seed=2).extract_packed(*task)
    found = unpacked(packed)
    assert found.images.tobytes() == expected.images.tobytes()
    assert (found.rows == expected.rows).all()
    assert (found.ids == expected.ids).all()
    assert (found.limits == expected.limits).all()
    assert packed.values.nbytes < expected.images.nbytes


SOURCE, KERNEL = kernel_source("pack"), PACK[2]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_it_compiles_without_spills(arch):
    cases = [CompileCase(kernel.source, (kernel.expression,), kernel.threads, 0) for kernel in PACK.values()]
    assert violations(cases, arch) == []


def checked(source, check):
    tiles = tiles_of("uint16", 33)
    n = tiles.size // 33**2
    index, used, values = np.zeros((n, N_COLUMNS), np.int64), np.zeros(1, np.uint64), np.zeros(tiles.size, np.uint16)
    arguments = tiles, np.int32(n), np.int32(33), index, used, values
    launch = Launch(KERNEL.expression, (2,), (KERNEL.threads,), arguments)
    return run_checked(source, [KERNEL.expression], [launch], check, timeout=600)


@pytest.mark.parametrize("check", ["thread", "address"])
def test_it_has_no_races_and_stays_in_its_arrays(check):
    done = checked(SOURCE, check)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("name", dict(mutants(SOURCE)))
def test_every_mutant_without_a_barrier_is_caught(name):
    mutant = dict(mutants(SOURCE))[name]
    assert any(checked(mutant, check).returncode for check in ("thread", "orders"))
