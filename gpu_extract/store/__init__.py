"""Writing cells to disk, so that a kill costs seconds and a file under its final name is complete.

    Contents -> CellStore.create -> append(encode(images, format)) ... -> finish -> OUT.h5sc

``OUT.partial`` starts with a hole for the HDF5 skeleton (`layout`, which is `h5sc` or `sparcspy`); encoded tiles
(`codecs`) are appended to it (`chunk_log`), and ``OUT.journal`` (`journal`) tells which of them are on the disk.
At the end HDF5's index over them is filled in (`index`), and the file gets its name (`target`).
"""

from __future__ import annotations

from gpu_extract.store.cell_store import CellStore
from gpu_extract.store.codecs import ChunkFormat, EncodedCells, encode
from gpu_extract.store.contents import Contents
from gpu_extract.store.gather import gather
from gpu_extract.store.journal import Journal, Record, read_journal
from gpu_extract.store.layout import choose_layout
from gpu_extract.store.target import check_output
from gpu_extract.store.verification import Verified, verify

__all__ = [
    "CellStore",
    "ChunkFormat",
    "Contents",
    "EncodedCells",
    "Journal",
    "Record",
    "Verified",
    "check_output",
    "choose_layout",
    "encode",
    "gather",
    "read_journal",
    "verify",
]
