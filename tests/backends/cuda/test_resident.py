"""Slides that stay on the device: the same tiles, each pixel read once, and windows where slides do not fit."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from cuda_on_cpu.device import ShimGpu, backend_of, shim_of
from made.slides import as_slide, small_slide

from gpu_extract import Recipe, SourceError, pipeline
from gpu_extract.backends import choose
from gpu_extract.backends.cuda import pinned, resident
from gpu_extract.planning import CellSubset, make_plan

ROWS, COLUMNS = 200, 230
RECIPE = Recipe(tile_size=32, border="keep")  # 60 tiles of this size cover the slide
LARGE = 1 << 30


class Counted:
    """A `Raster` that counts the pixels read of each plane and fails below a row."""

    def __init__(self, raster, end=1 << 30):
        self.raster, self.end = raster, end
        self.shape, self.dtype, self.names, self.source = raster.shape, raster.dtype, raster.names, raster.source
        self.n_pixels = self.n_rows = 0

    def read(self, y0, x0, y1, x1):
        if y1 > self.end:
            raise SourceError("the file went away")
        self.n_pixels += (y1 - y0) * (x1 - x0)
        self.n_rows = max(self.n_rows, y1)
        return self.raster.read(y0, x0, y1, x1)


def slide_of(seed=1, end=1 << 30, name="slide", label_dtype=np.uint16, **options):
    """Return a slide whose rasters count; the label planes are of different types."""
    image, nucleus, cytosol = small_slide(
        seed, size=(ROWS, COLUMNS), ids=list(range(1, 60)), label_dtype=label_dtype, **options
    )
    slide = as_slide(image, nucleus, cytosol.astype(np.uint32))
    masks = {key: Counted(raster) for key, raster in slide.masks.items()}
    return replace(slide, image=Counted(slide.image, end), masks=masks, name=name)


def nbytes_of(slide):
    """Return the bytes of a slide on the device: labels have the type of the widest plane."""
    itemsize = max(raster.dtype.itemsize for raster in slide.masks.values())
    C = slide.image.shape[0]
    return ROWS * COLUMNS * (C * slide.image.dtype.itemsize + len(slide.masks) * itemsize)


def planes_nbytes(slide):
    """Return the bytes of the label planes that the statistics keep."""
    return ROWS * COLUMNS * sum(raster.dtype.itemsize for raster in slide.masks.values())


# The arrays of a program in each stream, mostly the tables of its blur: less than a slide.
PROGRAMS_NBYTES = 20_000


def backend_with(resident, gpu=None, streams=3, **ring):
    return backend_of(shim_of(gpu or ShimGpu(), print, streams, resident, **ring), streams)


def plan_on(backend, slides, **changes):
    return make_plan(slides, RECIPE.replace(**changes), None, backend.statistics)


def images_of(plan, backend, **options):
    """Return the tiles in the order of rows."""
    found = np.empty((len(plan.cells), *plan.program.tile_shape), plan.program.output_dtype)
    with ThreadPoolExecutor(2) as workers:
        for cells in pipeline.tiles(plan, backend, workers, 2, **options):
            found[cells.rows] = cells.images
    return found


def by_windows(slides, **changes):
    """Return the tiles of slides that are not on the device."""
    backend = backend_with(None)
    return images_of(plan_on(backend, slides, **changes), backend)


@cache
def expected(*seeds, **changes):
    """Return `by_windows` of slides made with these seeds."""
    return by_windows([slide_of(seed, name=f"slide {seed}") for seed in seeds], **changes)


@pytest.fixture
def small_strips(monkeypatch):
    """Make a slide several strips, and a strip several uploads."""
    monkeypatch.setattr(resident, "STRIP_NBYTES", 60_000)
    monkeypatch.setattr(pinned.Uploader.__init__, "__defaults__", (10_000,))


@pytest.mark.parametrize(("seed", "on_device"), [(0, False), (1, True), (2, False)])
def test_each_pixel_is_read_once_for_the_statistics_and_all_batches(small_strips, seed, on_device):
    slide, gpu = slide_of(), ShimGpu(seed=seed)
    backend = backend_with(LARGE, gpu)
    plan = plan_on(backend, [slide])
    read = [raster.n_pixels for raster in slide.masks.values()]
    found = images_of(plan, backend, on_device=on_device)
    assert [raster.n_pixels for raster in slide.masks.values()] == read
    assert slide.image.n_pixels == ROWS * COLUMNS
    assert (found == expected(1)).all()
    del backend
    assert gpu.held == 0


def test_tiles_agree_with_the_cpus(small_strips):
    backend = backend_with(LARGE)
    found = images_of(plan_on(backend, [slide_of()]), backend)
    cpu = images_of(make_plan([slide_of()], RECIPE), choose("cpu"))
    assert np.abs(found.view(np.int16).astype(int) - cpu.view(np.int16).astype(int)).max() <= 1


@pytest.mark.parametrize("label_dtype", ["int8", "uint32", "int64", "uint64"])
def test_label_planes_of_any_types(small_strips, label_dtype):
    backend = backend_with(LARGE)
    found = images_of(plan_on(backend, [slide_of(label_dtype=label_dtype)]), backend)
    assert (found == by_windows([slide_of(label_dtype=label_dtype)])).all()


@pytest.mark.parametrize("changes", [{"match": "overlap"}, {"pieces": "largest"}])
def test_label_planes_that_the_recipe_changes(small_strips, changes):
    slide, backend = slide_of(), backend_with(LARGE)
    found = images_of(plan_on(backend, [slide], **changes), backend)
    assert (found == expected(1, **changes)).all()
    assert slide.image.n_pixels == ROWS * COLUMNS


def test_pixels_that_are_not_finite_are_zero(small_strips):
    slide = slide_of(dtype=np.float32)
    values = slide.image.raster.read(0, 0, ROWS, COLUMNS)
    values[0, 20:60:7, 30:90:5], values[1, 100:150:3, 10:200:11] = np.nan, np.inf
    slide = replace(
        slide,
        image=as_slide(values, *(each.raster.read(0, 0, ROWS, COLUMNS)[0] for each in slide.masks.values())).image,
    )
    backend = backend_with(LARGE)
    found = images_of(plan_on(backend, [slide], nonfinite="zero"), backend)
    assert np.isfinite(found).all()
    assert (found == by_windows([slide], nonfinite="zero")).all()


def test_rows_are_read_when_a_batch_needs_them(small_strips):
    slide, backend = slide_of(), backend_with(LARGE, streams=1)
    plan = plan_on(backend, [slide])
    with ThreadPoolExecutor(1) as workers:
        tiles = pipeline.tiles(plan, backend, workers, 1)
        next(tiles)
        n_rows = slide.image.n_rows
        tiles.close()
    assert 32 <= n_rows < ROWS


@pytest.mark.parametrize("is_kept", [False, True])
def test_a_window_is_complete_when_it_is_returned(small_strips, is_kept):
    """Other streams read it without waiting for the stream that uploads."""
    slide, extraction = slide_of(), shim_of(ShimGpu(), resident=LARGE)
    if is_kept:
        plan_on(backend_of(extraction, 1), [slide])
    image, *labels = (raster.raster.read(0, 0, ROWS, COLUMNS) for raster in (slide.image, *slide.masks.values()))
    for end in (1, 40, 130, ROWS):
        window = extraction.read(slide, (0, 10, end, 20))
        assert (window.image[:, :end] == image[:, :end]).all()
        for plane, expected_plane in zip(window.stack, labels, strict=True):
            assert (plane[:end] == expected_plane[0, :end]).all()


def test_a_slide_that_does_not_fit_is_read_in_windows(small_strips):
    slide = slide_of()
    for nbytes in (1000, planes_nbytes(slide), nbytes_of(slide) - 1):
        slide, warnings = slide_of(), []
        backend = backend_of(shim_of(ShimGpu(), warnings.append, 3, nbytes), 3)
        found = images_of(plan_on(backend, [slide]), backend)
        assert (found == expected(1)).all()
        assert slide.image.n_pixels > ROWS * COLUMNS
        assert not warnings


def test_label_planes_are_dropped_where_the_slide_fits_only_without_them(small_strips):
    slide = slide_of()
    backend = backend_with(nbytes_of(slide))
    plan = plan_on(backend, [slide])
    read = [raster.n_pixels for raster in slide.masks.values()]
    assert (images_of(plan, backend) == expected(1)).all()
    assert slide.image.n_pixels == ROWS * COLUMNS
    assert [raster.n_pixels for raster in slide.masks.values()] == [n + ROWS * COLUMNS for n in read]


@pytest.mark.parametrize(("seed", "n_slides"), [(0, 1.5), (1, 2.5), (2, 100)])
def test_several_slides_one_after_the_other(small_strips, seed, n_slides):
    """Where two do not fit, a slide begins with windows, until the batches of the slide before are done."""
    slides = [slide_of(seed, name=f"slide {seed}") for seed in range(3)]
    gpu = ShimGpu(seed=seed)
    backend = backend_with(int(n_slides * (nbytes_of(slides[0]) + planes_nbytes(slides[0]))), gpu)
    plan = plan_on(backend, slides)
    found = images_of(plan, backend)
    assert (found == expected(0, 1, 2)).all()
    assert slides[0].image.n_pixels == ROWS * COLUMNS
    if n_slides == 100:
        assert [slide.image.n_pixels for slide in slides] == [ROWS * COLUMNS] * 3
    del backend
    assert gpu.held == 0


def test_a_slide_keeps_its_label_planes_while_it_waits_for_the_slide_before(small_strips):
    slides = [slide_of(seed, name=f"slide {seed}") for seed in range(2)]
    extraction = shim_of(ShimGpu(), resident=2 * nbytes_of(slides[0]) - 1000)
    plan_on(backend_of(extraction, 1), slides[:1])
    first = extraction.read(slides[0], (0, 0, 50, 50))
    plan_on(backend_of(extraction, 1), slides[1:])
    read = [raster.n_pixels for raster in slides[1].masks.values()]
    assert isinstance(first, resident.ResidentWindow)
    assert not isinstance(extraction.read(slides[1], (0, 0, 1, 1)), resident.ResidentWindow)
    del first
    assert isinstance(extraction.read(slides[1], (0, 0, 50, 50)), resident.ResidentWindow)
    assert [raster.n_pixels - 1 for raster in slides[1].masks.values()] == read  # that of the window of one pixel


def test_few_cells_are_read_in_windows():
    slide, backend = slide_of(), backend_with(LARGE)
    plan = make_plan([slide], RECIPE, CellSubset(n_cells=5), backend.statistics)
    assert pipeline.covered(plan) == [False]
    images_of(plan, backend)
    assert slide.image.n_pixels < ROWS * COLUMNS


def test_all_is_freed_at_the_end_of_a_run(small_strips):
    gpu = ShimGpu()
    extraction = shim_of(gpu, print, 1, LARGE)
    backend, slide = backend_of(extraction, 1), slide_of()
    plan = plan_on(backend, [slide])
    assert gpu.held >= planes_nbytes(slide)
    images_of(plan, backend)
    assert gpu.held < PROGRAMS_NBYTES


@pytest.mark.parametrize("end", [10, 150])
def test_a_file_that_cannot_be_read(small_strips, end):
    gpu = ShimGpu()
    backend, slide = backend_with(LARGE, gpu), slide_of(end=end)
    plan = plan_on(backend, [slide])
    with pytest.raises(SourceError, match="went away"):
        images_of(plan, backend)
    assert not any(stream.waiting for stream in gpu.streams)
    assert gpu.held < PROGRAMS_NBYTES


def test_statistics_that_fail_keep_no_plane():
    gpu = ShimGpu(nbytes=300_000)  # for a plane, or for its table
    slide, warnings = slide_of(), []
    backend = backend_of(shim_of(gpu, warnings.append, 1, 200_000), 1)
    plan = plan_on(backend, [slide])
    assert len(warnings) == 2
    assert gpu.held < PROGRAMS_NBYTES
    assert (plan.cells.ids == make_plan([slide], RECIPE).cells.ids).all()
    del backend
    assert gpu.held == 0
