"""The file of cells. A killed run loses seconds of work, and a file with its final name is complete.

    Contents -> CellStore.create -> append(encode(images, format)) ... -> finish -> OUT.h5sc -> open_cells, verify

``OUT.partial`` starts with a hole for the HDF5 file without its tiles (`hdf5.layouts.skeleton`). Encoded tiles
(`chunks`) are appended to it (`chunk_log`), and ``OUT.journal`` (`journal`) records which of them are durable.
At the end the index of the chunks is filled in (`hdf5.index`), and the file is renamed (`target`). A run that goes on
after another one (`resuming`) checks that it is the same (`fingerprint`) and appends what is missing.

Names are imported on first use, so that reading a file does not load the writer.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpu_extract.store.chunks import ChunkFormat, EncodedCells, encode, whole_chunks
    from gpu_extract.store.contents import Contents
    from gpu_extract.store.hdf5.layouts import choose_layout
    from gpu_extract.store.journal import Journal, Record, read_journal
    from gpu_extract.store.reader import Cells, open_cells
    from gpu_extract.store.resuming import FinishedError
    from gpu_extract.store.target import Claim, check_output, claim_output
    from gpu_extract.store.verification import Verified, verify
    from gpu_extract.store.writer import CellStore

__all__ = [
    "CellStore",
    "Cells",
    "ChunkFormat",
    "Claim",
    "Contents",
    "EncodedCells",
    "FinishedError",
    "Journal",
    "Record",
    "Verified",
    "check_output",
    "choose_layout",
    "claim_output",
    "encode",
    "open_cells",
    "read_journal",
    "verify",
    "whole_chunks",
]

_HOME = {
    "CellStore": "writer",
    "Cells": "reader",
    "ChunkFormat": "chunks",
    "Claim": "target",
    "Contents": "contents",
    "EncodedCells": "chunks",
    "FinishedError": "resuming",
    "Journal": "journal",
    "Record": "journal",
    "Verified": "verification",
    "check_output": "target",
    "choose_layout": "hdf5.layouts",
    "claim_output": "target",
    "encode": "chunks",
    "open_cells": "reader",
    "read_journal": "journal",
    "verify": "verification",
    "whole_chunks": "chunks",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
