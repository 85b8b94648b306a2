import threading
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest
from made.slides import as_slide, small_slide

from gpu_extract import DeviceError, Recipe, RunStoppedError, SourceError, pipeline, planning
from gpu_extract.backends import Backend, choose
from gpu_extract.backends import reference as reference_backend
from gpu_extract.model import BatchSize
from gpu_extract.parallel import in_order
from gpu_extract.planning import make_plan
from gpu_extract.store import CellStore, Contents, read_journal

IDS = range(1, 60)


def plan_of(**changes):
    image, nucleus, cytosol = small_slide(1, size=(200, 230), ids=list(IDS))
    return make_plan([as_slide(image, nucleus, cytosol)], Recipe(tile_size=24, border="keep").replace(**changes))


def store_for(plan, path):
    return CellStore.create(path, Contents(plan.cells, plan.slides, plan.program))


def written(path):
    with h5py.File(path) as file:
        return file["obsm/single_cell_images"][:], file["obs/scportrait_cell_id"][:]


def make_batches_small(monkeypatch, n=4):
    monkeypatch.setattr(
        pipeline, "batches", lambda plan, batch_size, chunk_cells: planning.batches(plan, BatchSize(n), chunk_cells)
    )


@pytest.fixture
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("max_cells", [1, 5, 64])
@pytest.mark.parametrize("threads", [1, 4])
def test_the_file_does_not_depend_on_batches_and_threads(tmp_path, monkeypatch, max_cells, threads):
    plan = plan_of()
    whole = np.concatenate([cells.images for cells in tiles_of(plan)])
    order = np.concatenate([cells.rows for cells in tiles_of(plan)])
    make_batches_small(monkeypatch, max_cells)
    path = tmp_path / "cells.h5sc"
    report = pipeline.run(plan, choose("cpu"), store_for(plan, path), threads)
    images, ids = written(path)
    assert (images[order] == whole).all()
    assert (ids == plan.cells.ids).all()
    assert report.n_cells == len(ids)
    assert set(report.stage_seconds) == {"read", "compute", "encode", "write"}


def tiles_of(plan):
    with ThreadPoolExecutor(2) as workers:
        return list(pipeline.tiles(plan, choose("cpu"), workers, 2))


def test_the_bytes_do_not_depend_on_the_number_of_threads(tmp_path, monkeypatch):
    make_batches_small(monkeypatch)
    plan = plan_of()
    for threads in (1, 3):
        pipeline.run(plan, choose("cpu"), store_for(plan, tmp_path / f"{threads}.h5sc"), threads)
    assert (tmp_path / "1.h5sc").read_bytes() == (tmp_path / "3.h5sc").read_bytes()


class BoomError(RuntimeError):
    pass


def failing(function, after):
    """Return the function, made to raise BoomError after ``after`` calls."""
    calls = iter(range(after))

    def wrapped(*args, **kwargs):
        if next(calls, None) is None:
            raise BoomError("boom")
        return function(*args, **kwargs)

    return wrapped


@pytest.mark.parametrize("stage", ["read", "compute", "encode", "write"])
@pytest.mark.parametrize("after", [0, 3])
def test_an_error_in_any_stage_stops_all_and_is_raised_once(tmp_path, monkeypatch, no_thread_is_left, stage, after):
    make_batches_small(monkeypatch)
    plan = plan_of()
    backend = Backend("reference", reference_backend.extract)
    path = tmp_path / "cells.h5sc"
    store = store_for(plan, path)
    if stage == "read":
        monkeypatch.setattr(type(plan.slides[0]), "read", failing(type(plan.slides[0]).read, after))
    elif stage == "compute":
        backend = Backend("reference", failing(reference_backend.extract, after))
    elif stage == "encode":
        monkeypatch.setattr(pipeline, "encode", failing(pipeline.encode, after))
    else:
        monkeypatch.setattr(store, "append", failing(store.append, after))
    with pytest.raises(BoomError, match="boom"):
        pipeline.run(plan, backend, store, 2)
    assert not path.exists()


@pytest.mark.parametrize("n_read", [0, 5])
def test_an_input_error_during_the_run_keeps_what_was_written(tmp_path, monkeypatch, no_thread_is_left, n_read):
    make_batches_small(monkeypatch)
    plan = plan_of()
    calls = iter(range(n_read))

    def read(slide, box):
        if next(calls, None) is None:
            raise SourceError("the file went away")
        return original(slide, box)

    original = type(plan.slides[0]).read
    monkeypatch.setattr(type(plan.slides[0]), "read", read)
    match = (
        r"went away; 20 of 58 cells are kept in .*; go on with --resume \(resume=True\)$" if n_read else "went away$"
    )
    with pytest.raises(RunStoppedError if n_read else SourceError, match=match):
        pipeline.run(plan, choose("cpu"), store_for(plan, tmp_path / "cells.h5sc"), 2)
    assert len(list(tmp_path.iterdir())) == (2 if n_read else 0)


def test_a_device_that_fails_during_the_run_keeps_what_was_written(tmp_path, monkeypatch, no_thread_is_left):
    make_batches_small(monkeypatch)
    plan, calls = plan_of(), iter(range(5))

    def extract(*task):
        if next(calls, None) is None:
            raise DeviceError("it fell off the bus")
        return reference_backend.extract(*task)

    with pytest.raises(
        RunStoppedError, match=r"it fell off the bus; \d+ of 58 cells are kept in .*; go on with --resume"
    ):
        pipeline.run(plan, Backend("reference", extract), store_for(plan, tmp_path / "cells.h5sc"), 1)


def test_an_interrupted_run_keeps_what_it_wrote(tmp_path, monkeypatch, no_thread_is_left):
    make_batches_small(monkeypatch)
    plan = plan_of()
    path = tmp_path / "cells.h5sc"

    def stop(n_cells, total):
        if n_cells > 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.run(plan, choose("cpu"), store_for(plan, path), 2, stop)
    assert not path.exists()
    journal = read_journal(tmp_path / "cells.h5sc.journal")
    assert 10 < journal.n_written < len(plan.cells)


def test_a_full_disk_stops_the_run(tmp_path, monkeypatch, no_thread_is_left):
    make_batches_small(monkeypatch)
    plan = plan_of()
    path = tmp_path / "cells.h5sc"
    store = store_for(plan, path)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gpu_extract.store.chunk_log._write_chunks", full)
    with pytest.raises(RunStoppedError, match="No space left on device"):
        pipeline.run(plan, choose("cpu"), store, 2)
    assert not path.exists()


def test_in_order_keeps_the_order_and_the_limit_ahead():
    taken = []

    def items():
        for n in range(20):
            taken.append(n)
            yield n

    with ThreadPoolExecutor(4) as workers:
        results = in_order(workers, lambda n: n * n, items(), ahead=3)
        for n in range(20):
            assert next(results) == n * n
            assert len(taken) <= n + 4


def test_memory_does_not_grow_with_the_number_of_cells(monkeypatch, tmp_path):
    """The number of batches between reader and writer is bounded by their bytes."""
    make_batches_small(monkeypatch, 1)
    plan = plan_of()
    n_ahead = 3
    monkeypatch.setattr(pipeline, "ENCODED_AHEAD_NBYTES", n_ahead * plan.program.tile_nbytes)
    path = tmp_path / "cells.h5sc"
    store = store_for(plan, path)
    read, appended, most = 0, 0, 0
    slide_read, append = type(plan.slides[0]).read, store.append

    def counted_read(slide, box):
        nonlocal read, most
        read += 1
        most = max(most, read - appended)
        return slide_read(slide, box)

    def counted_append(encoded):
        nonlocal appended
        appended += 1
        append(encoded)

    monkeypatch.setattr(type(plan.slides[0]), "read", counted_read)
    monkeypatch.setattr(store, "append", counted_append)
    threads = 2
    pipeline.run(plan, choose("cpu"), store, threads)
    assert read == appended == len(plan.cells)
    assert most <= (pipeline.WINDOWS_AHEAD + 1) + threads + n_ahead + 2


@pytest.mark.parametrize("scope", ["slide", "dataset"])
def test_limits_of_a_slide_are_the_same_for_every_cell(scope):
    plan = plan_of(quantile_scope=scope)
    limits = np.concatenate([cells.limits for cells in tiles_of(plan)])
    image = plan.slides[0].image.read(0, 0, 200, 230)
    assert (limits == np.quantile(image.astype(float), (0.001, 0.999), axis=(1, 2)).T).all()


def test_nonfinite_zero_is_the_same_as_zeros_in_the_image():
    image, nucleus, cytosol = small_slide(2, dtype=np.float32)
    dirty = image.copy()
    dirty[:, ::7, ::5] = np.nan
    image[:, ::7, ::5] = 0
    recipe = Recipe(tile_size=24, nonfinite="zero")
    found, expected = (
        np.concatenate([cells.images for cells in tiles_of(make_plan([as_slide(pixels, nucleus, cytosol)], recipe))])
        for pixels in (dirty, image)
    )
    assert (found == expected).all()
    assert np.isfinite(found).all()


def test_results_before_an_error_come_first():
    def items():
        yield from range(5)
        raise BoomError("boom")

    with ThreadPoolExecutor(2) as workers:
        results = in_order(workers, lambda item: 10 * item, items(), ahead=3)
        assert [next(results) for _ in range(5)] == [0, 10, 20, 30, 40]
        with pytest.raises(BoomError):
            next(results)
