"""The types that travel: reasons of dropped cells, and what a notebook shows of each type."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
from made.slides import as_slide, one_batch, small_slide

from gpu_extract.model import CellImages, DroppedCells, DropReason
from gpu_extract.planning import make_plan
from gpu_extract.recipe import Recipe


def test_every_drop_reason_has_its_code_and_text():
    assert [int(reason) for reason in DropReason] == list(range(len(DropReason)))
    texts = [reason.text for reason in DropReason]
    assert len(set(texts)) == len(texts)
    assert [text for text in texts if not text] == [DropReason.KEPT.text]


def test_dropped_cells_are_counted_by_the_text_of_their_reason():
    codes = [DropReason.NOT_SELECTED, DropReason.NO_NUCLEUS, DropReason.NOT_SELECTED]
    dropped = DroppedCells(np.zeros(3, np.int64), np.arange(3, dtype=np.uint64), np.array(codes, np.uint8))
    assert dropped.reasons().tolist() == ["not selected", "no nucleus", "not selected"]
    assert dropped.counts() == {"not selected": 2, "no nucleus": 1}


class DeviceArray:
    """A CuPy array as far as a repr may use it: any access to its values would copy them to the host."""

    shape, dtype, flags = (64, 5, 128, 128), np.dtype(np.float16), SimpleNamespace(c_contiguous=True)


def make_cells(images, ids):
    return CellImages(np.arange(len(ids)), np.array(ids, np.uint64), images, np.zeros((len(ids), 3, 2)))


def test_repr_of_cell_images_shows_shapes_on_host_and_device():
    ids = [12, *range(100, 162), 9812]
    expected = "CellImages(n=64, images=(64, 5, 128, 128) float16, ids=12..9812)"
    assert repr(make_cells(np.zeros(DeviceArray.shape, np.float16), ids)) == expected
    assert repr(make_cells(DeviceArray(), ids)) == expected


def test_repr_of_no_cells():
    assert repr(make_cells(np.zeros((0, 2, 8, 8), "u1"), [])) == "CellImages(n=0, images=(0, 2, 8, 8) uint8, ids=none)"


class UnreadableRaster:
    """A raster whose pixels must not be read."""

    def __init__(self, shape, dtype):
        self.shape, self.dtype, self.names, self.source = shape, np.dtype(dtype), (), "array"

    def read(self, y0, x0, y1, x1):
        raise AssertionError("pixels were read")


def test_repr_of_a_slide_reads_no_pixels():
    slide = as_slide(*small_slide(1))
    masks = {name: UnreadableRaster((1, 90, 110), "uint32") for name in slide.masks}
    slide = replace(slide, image=UnreadableRaster((3, 90, 110), "uint16"), masks=masks, name="A")
    shown = (
        "Slide(name='A', image=(3, 90, 110) uint16, masks=('nucleus', 'cytosol'), channel_names=('ch0', 'ch1', 'ch2')"
    )
    assert repr(slide) == f"{shown})"
    listed = replace(slide, metadata={"well": "D03"}, ids=np.arange(1, 8, dtype=np.uint64))
    assert repr(listed) == f"{shown}, metadata={{'well': 'D03'}}, n_ids=7)"


def test_reprs_of_a_plan_and_its_parts_show_no_arrays():
    slide, recipe = as_slide(*small_slide(1)), Recipe(tile_size=24)
    plan = make_plan([slide], recipe)
    window, batch, _ = one_batch(slide, recipe)
    cells, dropped = plan.cells, plan.cells.dropped
    n, ids = len(cells), f"{cells.ids[0]}..{cells.ids[-1]}"
    counts = f"n_truncated={cells.truncated.sum()}, n_dropped={len(dropped)}"
    rest = f"float16, n_dropped={len(dropped)}, n_warnings=0)"
    assert repr(plan) == f"Plan(n_cells={n}, n_slides=1, tile=(5, 24, 24) {rest}"
    assert repr(replace(plan, planes=(0, 3))) == f"Plan(n_cells={n}, n_slides=1, tile=(2, 24, 24) {rest}"
    assert repr(cells) == f"CellTable(n={n}, ids={ids}, n_slides=1, {counts})"
    assert repr(dropped) == f"DroppedCells(n={len(dropped)}, reasons={dropped.counts()})"
    assert repr(batch) == f"Batch(n={n}, slide=0, ids={ids}, box=(0, 0, 90, 110))"
    labels = "[(90, 110) uint32, (90, 110) uint32]"
    assert repr(window) == f"Window(image=(3, 90, 110) uint16, labels={labels}, y0=0, x0=0)"
