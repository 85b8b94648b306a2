"""Label statistics by the CUDA kernel, run on the CPU and compared to `gpu_extract.labels`."""

import numpy as np
import pytest
from cuda_on_cpu import Launch, run_checked
from cuda_on_cpu.device import ShimGpu
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made.slides import as_slide, small_slide

from gpu_extract import LabelError, demo_data, labels
from gpu_extract.backends.cuda import labels as cuda_labels
from gpu_extract.backends.cuda.labels import LabelTable, label_statistics
from gpu_extract.backends.cuda.source import kernel_source

FIELDS = ("ids", "counts", "sums", "boxes", "touches")
ORDERS = ("forward", "reverse", "shuffled")


class Plane:
    """A label plane as a `Raster` that counts the rows read."""

    names, source = (), "array"

    def __init__(self, array):
        self.array, self.dtype, self.shape = array, array.dtype, (1, *array.shape)
        self.rows_read = 0

    def read(self, y0, x0, y1, x1):
        self.rows_read += y1 - y0
        return self.array[None, y0:y1, x0:x1]


def assert_same(found, expected):
    for field in FIELDS:
        one, other = getattr(found, field), getattr(expected, field)
        assert one.dtype == other.dtype, field
        assert np.array_equal(one, other), field


def assert_agrees(array, **gpu):
    """Compare the statistics on the device to the CPU's, and return them."""
    found = label_statistics(Plane(array), ShimGpu(**gpu).stream())
    assert_same(found, labels.label_statistics(Plane(array)))
    return found


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"])
def test_every_label_type(dtype):
    _, nucleus, cytosol = small_slide(3, label_dtype=dtype)
    assert len(assert_agrees(nucleus)) > 10
    assert_agrees(cytosol)


@pytest.mark.parametrize("size", [(1, 1), (1, 70), (70, 1), (31, 33), (32, 32), (33, 31), (64, 65)])
def test_every_size_and_all_pixels_in_use(size):
    rng = np.random.default_rng(sum(size))
    assert_agrees(np.ones(size, np.uint16))
    assert_agrees(rng.integers(0, 3, size, np.uint16))
    assert_agrees(rng.integers(0, 5000, size, np.uint32))  # more than 32 labels in a square


def test_ht29():
    sample = demo_data.paths()
    slide = as_slide(sample.image, sample.nucleus, sample.cytosol)
    for raster in slide.masks.values():
        assert_same(label_statistics(raster, ShimGpu().stream()), labels.label_statistics(raster))


def test_a_plane_without_labels():
    assert len(assert_agrees(np.zeros((40, 40), np.uint16))) == 0


def test_one_pixel():
    found = assert_agrees(np.pad(np.array([[9]], np.uint8), ((37, 2), (40, 3))))
    assert found.ids.tolist() == [9]
    assert found.sums.tolist() == [[37, 40]]
    assert found.boxes.tolist() == [[37, 40, 38, 41]]
    assert not found.touches[0]


def test_a_label_with_several_components():
    array = np.zeros((100, 100), np.uint32)
    array[3:7, 90:95] = array[70:99, 5:8] = 12
    found = assert_agrees(array)
    assert found.boxes.tolist() == [[3, 5, 99, 95]]
    assert not found.touches[0]


def test_touching_an_edge():
    for y, x in ((0, 20), (49, 20), (20, 0), (20, 49)):
        array = np.zeros((50, 50), np.uint16)
        array[y, x], array[25, 25] = 1, 2
        assert assert_agrees(array).touches.tolist() == [True, False]


@pytest.mark.parametrize("shift", [32, 40, 48, 56])
def test_ids_that_differ_only_in_high_bits(shift):
    ids = np.arange(1, 201, dtype=np.uint64) << np.uint64(shift)
    array = np.zeros((60, 100), np.uint64)
    array[5:25, 10:20] = ids.reshape(20, 10)
    array[30:50, 50:60] = ids.reshape(20, 10) | np.uint64(7)
    array[59, 99] = 2**64 - 1
    assert len(assert_agrees(array)) >= 256 - 1


def test_strips_add_up(monkeypatch):
    _, nucleus, cytosol = small_slide(5)
    for pixels in (1, 110, 5 * 110, 33 * 110):
        monkeypatch.setattr(cuda_labels, "STRIP_PIXELS", pixels)
        plane = Plane(cytosol)
        assert_agrees(cytosol)
        label_statistics(plane, ShimGpu().stream())
        assert plane.rows_read == len(cytosol)  # each row once
    assert_agrees(nucleus)


def test_a_table_that_overflows_is_replaced_by_a_larger_one(monkeypatch):
    array = np.random.default_rng(0).integers(0, 2**63, (40, 50), np.uint64)  # about 2,000 labels
    monkeypatch.setattr(cuda_labels, "SMALLEST_TABLE", 1)
    monkeypatch.setattr(cuda_labels, "STRIP_PIXELS", 500)
    gpu = ShimGpu()
    plane = Plane(array)
    assert_same(label_statistics(plane, gpu.stream()), labels.label_statistics(Plane(array)))
    collected = [kernel.expression for kernel, _, _ in gpu.launched].count("collect_labels")
    assert collected == 1
    assert plane.rows_read > len(array)


def test_a_table_overflows_only_if_it_is_full():
    array = np.arange(1, 65, dtype=np.uint32).reshape(8, 8)
    for capacity, fits in ((1, False), (32, False), (64, True), (128, True)):
        table = LabelTable(ShimGpu().stream(), array.shape, capacity)
        table.add(array)
        statistics = table.statistics()
        assert (statistics is not None) == fits
        if fits:
            assert_same(statistics, labels.label_statistics(Plane(array)))


def test_a_table_can_be_read_and_added_to_again():
    _, _, cytosol = small_slide(7)
    table = LabelTable(ShimGpu().stream(), cytosol.shape, 1024)
    table.add(cytosol[:40])
    table.statistics()
    table.add(cytosol[40:], 40)
    assert_same(table.statistics(), labels.label_statistics(Plane(cytosol)))


@pytest.mark.parametrize("order", ORDERS)
def test_the_order_of_threads_does_not_change_the_result(order):
    _, _, cytosol = small_slide(8)
    for multiprocessors in (1, 3):
        assert_agrees(cytosol, order=order, multiprocessors=multiprocessors)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    dtype=st.sampled_from(["uint8", "uint16", "uint32", "uint64"]),
    block=st.integers(1, 12),
    n_labels=st.integers(1, 200),
    seed=st.integers(0, 100),
)
def test_any_slide(size, dtype, block, n_labels, seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, np.iinfo(dtype).max, n_labels, dtype, endpoint=True)
    coarse = ids[rng.integers(0, n_labels, (size[0] // block + 1, size[1] // block + 1))]
    assert_agrees(np.kron(coarse, np.ones((block, block), dtype))[: size[0], : size[1]])


def test_negative_labels_raise_the_same_error_as_on_the_cpu(monkeypatch):
    array = np.zeros((50, 10), np.int32)
    array[20, 3], array[45, 1] = -4, -9
    monkeypatch.setattr(cuda_labels, "STRIP_PIXELS", 100)
    with pytest.raises(LabelError, match=r"nucleus labels hold 2 negative pixels \(lowest -9\)"):
        label_statistics(Plane(array), ShimGpu().stream(), "nucleus labels")


GOOD = np.zeros((8, 8), np.uint16)
REFUSED = {
    "labels are int16; they must be uint8, uint16, uint32, uint64": (GOOD.astype(np.int16), 0),
    "labels are float32": (GOOD.astype(np.float32), 0),
    "labels are >u2": (GOOD.astype(">u2"), 0),
    "C-contiguous": (GOOD.T[:, ::-1], 0),
    r"labels \(8, 7\) from row 0 on do not lie on a slide of 8 x 8": (np.zeros((8, 7), np.uint16), 0),
    r"labels \(8, 8\) from row 1 on": (GOOD, 1),
    r"from row -1 on": (GOOD[:4], -1),
    r"labels \(64,\)": (GOOD.reshape(-1), 0),
}


@pytest.mark.parametrize("message", REFUSED)
def test_wrong_labels_raise_before_launch(message):
    gpu = ShimGpu()
    table = LabelTable(gpu.stream(), (8, 8), 16)
    before = len(gpu.launched)
    with pytest.raises(ValueError, match=message):
        table.add(*REFUSED[message])
    assert len(gpu.launched) == before


def test_impossible_sizes_of_tables_and_slides():
    with pytest.raises(ValueError, match="capacity is 12; it must be a power of two"):
        LabelTable(ShimGpu().stream(), (8, 8), 12)
    with pytest.raises(LabelError, match="a side must be 1 to"):
        LabelTable(ShimGpu().stream(), (2**31, 8), 16)


@pytest.mark.parametrize("check", ["orders", "thread", "address"])
def test_no_races_and_no_invalid_memory_accesses(check):
    array = np.random.default_rng(0).integers(0, 60, (45, 70), np.uint16)
    capacity = np.uint64(64)
    table, counters = np.full((64, 8), 0xCD, np.uint64), np.full(2, 0xCD, np.uint64)
    size = np.int32(45), np.int32(70), np.int32(5), np.int32(50)
    launches = [
        Launch("clear_labels", (2,), (256,), (capacity, table, counters)),
        Launch("add_labels<u16>", (1,), (256,), (array, *size, capacity, table, counters)),
    ]
    done = run_checked(kernel_source("labels"), ("clear_labels", "add_labels<u16>"), launches, check)
    if check == "orders":  # the position of a label in the table depends on the order, which must be detected
        assert "array 0 differs between thread orders" in done.stderr
    else:
        assert done.returncode == 0, done.stderr


def test_more_squares_than_warps():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 2**40, (60, 80), np.uint64) * rng.integers(0, 2, (60, 80), np.uint64)
    assert_agrees(np.kron(coarse, np.ones((17, 13), np.uint64)), multiprocessors=1)
