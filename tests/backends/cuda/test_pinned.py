"""Pinned host memory: the ring of result buffers, and uploads through two small buffers."""

import numpy as np
import pytest
from cuda_on_cpu.device import ShimGpu

from gpu_extract.backends.cuda.pinned import HostRing, Uploader


class Allocations(list):
    """A function that allocates arrays and collects them."""

    def __call__(self, shape, dtype):
        self.append(np.zeros(shape, dtype))
        return self[-1]

    def hold(self, array):
        """Return whether the array is in one of them."""
        return any(np.shares_memory(array, each) for each in self)


def ring_of(buffer_nbytes, n_buffers):
    allocations = Allocations()
    return HostRing(allocations, buffer_nbytes, n_buffers), allocations


def test_a_buffer_is_allocated_when_needed_and_reused_when_all_views_are_deleted():
    ring, allocations = ring_of(100, 4)
    assert not allocations
    array = ring.empty((5, 10), np.uint16)
    array[:] = np.arange(50).reshape(5, 10)
    part = array[1:, ::2]
    del array
    other = ring.empty((100,), np.uint8)
    assert len(allocations) == 2
    other[:] = 0
    assert part[0].tolist() == [10, 12, 14, 16, 18]
    del part, other
    again = ring.empty((25,), np.float32), ring.empty((1, 1), np.float64)
    assert len(allocations) == 2
    assert all(map(allocations.hold, again))
    assert not np.shares_memory(*again)


def test_without_a_free_buffer_an_array_is_in_ordinary_memory():
    ring, allocations = ring_of(100, 2)
    arrays = [ring.empty((10, 10), np.uint8) for _ in range(3)]
    assert [allocations.hold(array) for array in arrays] == [True, True, False]
    del arrays[0]
    assert allocations.hold(ring.empty((10, 10), np.uint8))
    assert len(allocations) == 2


def test_small_arrays_take_small_buffers():
    ring, allocations = ring_of(160, 2)
    arrays = [ring.empty((n,), np.uint8) for n in (1, 10, 11, 41, 80, 81)]
    assert [buffer.nbytes for buffer in allocations] == [10, 10, 20, 80, 80]
    assert [allocations.hold(array) for array in arrays] == [True] * 5 + [False]
    assert sum(buffer.nbytes for buffer in allocations) <= 320
    del arrays[3:]
    small = ring.empty((2,), np.uint8)  # in a larger buffer, because one is free
    assert allocations.hold(small)
    assert len(allocations) == 5


def test_an_array_larger_than_a_buffer_is_in_ordinary_memory():
    ring, allocations = ring_of(100, 2)
    assert ring.empty((101,), np.uint8).shape == (101,)
    assert ring.empty((0, 5), np.uint8).shape == (0, 5)
    assert not allocations
    array = ring.empty((50,), np.uint16)
    assert allocations.hold(array)
    assert array.flags.c_contiguous
    assert array.flags.writeable


def test_arrays_may_outlive_the_ring():
    ring, _ = ring_of(100, 2)
    array = ring.empty((100,), np.uint8)
    array[:] = 7
    del ring
    assert (array == 7).all()


PLANE = np.random.default_rng(1).integers(0, 2**15, (37, 53))
SOURCES = {
    "contiguous": PLANE.astype(np.uint16),
    "other byte order": PLANE.astype(">u2"),
    "signed": PLANE.astype(np.int16),
    "columns of a larger array": np.repeat(PLANE.astype(np.uint16), 2, axis=1)[:, ::2],
    "transposed": np.ascontiguousarray(PLANE.astype(np.uint16).T).T,
    "read-only": np.broadcast_to(PLANE[:1].astype(np.uint16), (37, 53)),
}


@pytest.mark.parametrize("nbytes", [8, 60, 424, 1000, 1 << 20])  # a few pixels, less than a row, one, some, all
@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("dtype", [np.uint16, np.uint64])
def test_planes_of_any_layout_are_uploaded_in_parts(nbytes, kind, dtype):
    """The other stream makes the order in which copies are done random."""
    gpu = ShimGpu(seed=nbytes)
    streams = gpu.stream(), gpu.stream()
    uploads = [Uploader(stream, nbytes) for stream in streams]
    planes = [stream.empty((2, 37, 53), dtype) for stream in streams]
    source = SOURCES[kind].copy() if kind == "contiguous" else SOURCES[kind]
    expected = source.astype(dtype)
    for upload, plane in zip(uploads, planes, strict=True):
        for out in plane:
            upload.copy(source, out)
    if kind == "contiguous":
        source[:] = 0  # it can be changed at once
    found = np.empty((2, 37, 53), dtype)
    for stream, plane in zip(streams, planes, strict=True):
        stream.to_host(plane, found)
        stream.synchronize()
        assert (found == expected).all()
    assert gpu.pinned == 2 * 2 * nbytes
    del uploads, upload
    assert gpu.pinned == 0
