"""The types that travel: reasons of dropped cells, and what a notebook shows of each type."""

import numpy as np

from gpu_extract.model import DroppedCells, DropReason


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
