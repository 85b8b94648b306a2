"""Outlines in tables: Xenium and MERSCOPE boundaries and GeoParquet.

- Xenium (``cell_boundaries.parquet``, ``nucleus_boundaries.parquet``, or ``.csv.gz``): a row for each vertex,
  ``vertex_x`` and ``vertex_y`` in um from the corner of the morphology image; ``experiment.xenium`` beside them has its
  pixel size (10x Genomics, "Understanding Xenium outputs"). ``cell_id`` is the same for a cell and its nuclei,
  ``label_id`` is not, and a cell may have several nuclei.
- MERSCOPE and VPT (``cell_boundaries.parquet``): a row for each cell and Z slice, ``Geometry`` in um as well-known
  binary; ``images/micron_to_mosaic_pixel_transform.csv`` is the affine map (3, 3) of points (x, y, 1) to pixels of the
  mosaic images (as spatialdata-io reads it).
- GeoParquet (geopandas, spatialdata): the geometry in pixels, unless ``#unit=um``.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import LabelError
from gpu_extract.listing import listed
from gpu_extract.sources.files import SourceFile, translated
from gpu_extract.sources.names import cleaned
from gpu_extract.sources.outlines import (
    EVERY,
    Outlines,
    OutlinesBuilder,
    are_unique,
    cell_ids,
    checked,
    ranges,
    starts_of,
)
from gpu_extract.sources.wkb import wkb_parts

__all__ = ["read_csv_boundaries", "read_parquet_outlines"]

VERTICES = ("cell_id", "vertex_x", "vertex_y")
MERSCOPE = ("EntityID", "ZIndex", "Geometry")
XENIUM_SETTINGS = "experiment.xenium"
MOSAIC_TRANSFORM = "micron_to_mosaic_pixel_transform.csv"
# Settings and transforms are small; what is larger is another file of that name.
MAX_SETTINGS = 1 << 20


@dataclass(frozen=True)
class VertexTable:
    """A table with a row for each vertex.

    Parameters
    ----------
    names : sequence, length n
        What the file calls each cell.
    codes : (v,) int
        Index into `names` of each vertex.
    x, y : (v,) float64
    labels : (v,) int or None
        A second number of what the vertex is of, such as one nucleus among several.
    """

    names: Sequence[Any]
    codes: NDArray[Any]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    labels: NDArray[Any] | None


def read_csv_boundaries(content: bytes, file: SourceFile) -> Outlines:
    """Read Xenium boundaries from the text of a CSV file.

    Raises
    ------
    SourceError, LabelError
    """
    import pandas as pd

    with translated(file, "is not a table that can be read"):
        wanted = (*VERTICES, "label_id")
        table = pd.read_csv(io.BytesIO(content), usecols=lambda name: name in wanted, dtype={"cell_id": str})
        codes, names = pd.factorize(table["cell_id"])
        if (codes < 0).any():
            raise ValueError(f"{np.count_nonzero(codes < 0)} rows have no cell_id")
        x, y = (table[name].to_numpy(np.float64) for name in VERTICES[1:])
        labels = pd.factorize(table["label_id"])[0] if "label_id" in table else None
    return _xenium(VertexTable(list(names), codes, x, y, labels), file)


def read_parquet_outlines(file: SourceFile) -> Outlines:
    """Read Xenium boundaries, MERSCOPE boundaries or GeoParquet.

    Raises
    ------
    SourceError, LabelError
        If pyarrow is missing, or the columns are those of neither.
    """
    with translated(file, "is a Parquet file that cannot be read"):
        import pyarrow.parquet as pq
    with translated(file, "is a damaged Parquet file"), file.open() as stream, pq.ParquetFile(stream) as parquet:
        schema = parquet.schema_arrow
        geometry = _geometry_column(schema)
        if set(VERTICES) <= set(schema.names):
            columns = [*VERTICES, *{"label_id"}.intersection(schema.names)]
            return _xenium(_vertex_table(parquet.read(columns)), file)
        if set(MERSCOPE) <= set(schema.names):
            return _merscope(parquet.read(list(MERSCOPE)), file)
        if geometry is not None:
            names = [name for name in _index_columns(schema) if name in schema.names]
            return _geo(parquet.read([geometry, *names]), geometry, names, file)
        raise LabelError(
            f"{file} has the columns {cleaned(listed(schema.names))}; outlines are {', '.join(VERTICES)} "
            f"(Xenium), {', '.join(MERSCOPE)} (MERSCOPE), or a geometry as WKB (GeoParquet)"
        )


def _vertex_table(table: Any) -> VertexTable:
    import pyarrow as pa

    column = table["cell_id"]
    if column.null_count:
        raise ValueError(f"{column.null_count} rows have no cell_id")
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    column = column.unify_dictionaries()
    codes = [np.asarray(chunk.indices) for chunk in column.chunks]
    names = column.chunks[0].dictionary.to_pylist() if column.num_chunks else []
    x, y = (np.asarray(table[name], np.float64) for name in VERTICES[1:])
    labels = np.asarray(table["label_id"]) if "label_id" in table.column_names else None
    return VertexTable(names, np.concatenate([np.zeros(0, np.int64), *codes]), x, y, labels)


def _xenium(table: VertexTable, file: SourceFile) -> Outlines:
    subject = str(file)
    if not len(table.codes):
        raise LabelError(f"{subject} has no row; give the boundaries of cells")
    begins = np.diff(table.codes, prepend=-1) != 0
    if table.labels is not None:
        begins[1:] |= table.labels[1:] != table.labels[:-1]
    starts = np.flatnonzero(begins)
    counts = np.diff(starts, append=len(table.codes))
    # The rings of a cell need not follow each other: bring them together, in the order in which cells first appear.
    cells, first, cell_of_ring = np.unique(table.codes[starts], return_index=True, return_inverse=True)
    rank = np.empty(len(cells), np.int64)
    rank[np.argsort(first)] = np.arange(len(cells))
    order = np.argsort(rank[cell_of_ring], kind="stable")
    rows = ranges(starts[order], counts[order])
    names = [table.names[code] for code in cells[np.argsort(first)]]
    ids, warnings = _xenium_ids(names, subject)
    outlines = Outlines(
        ids=ids,
        vertices=np.stack([table.y[rows], table.x[rows]], axis=1),
        rings=starts_of(counts[order]),
        parts=np.arange(len(starts) + 1),  # every ring is a part: Xenium has no holes
        cells=starts_of(np.bincount(rank[cell_of_ring])),
        planes=np.full((len(ids), 2), EVERY),
        unit="um",
        pixel_size=_xenium_pixel_size(file.path),
        warnings=warnings,
    )
    return checked(outlines, subject, "cell")


def _xenium_ids(names: Sequence[Any], subject: str) -> tuple[NDArray[np.uint64], tuple[str, ...]]:
    ids = cell_ids(names)
    if ids is None or not are_unique(ids):
        numbers = np.arange(1, len(names) + 1, dtype=np.uint64)
        line = "the ids of cells are their places in the file, from 1, since its cell_id are no numbers"
        return numbers, (f"{subject}: {line} (as {cleaned(_text(names[0]))})",)
    if _text(names[0]).isdigit():
        return ids, ()
    line = "the letters a to p are hexadecimal digits 0 to f, to which 2**32 times the number behind the dash is added"
    return ids, (f"{subject}: cell_id {cleaned(_text(names[0]))} has the id {ids[0]}: {line}",)


def _text(name: Any) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)


def _xenium_pixel_size(path: str) -> tuple[float, float] | None:
    """Return the pixel size that the settings beside a file state; None if there are none."""
    found = _beside(path, XENIUM_SETTINGS)
    if found is None:
        return None
    with translated(found, "is damaged"), open(found, "rb") as stream:
        side = float(json.loads(stream.read(MAX_SETTINGS))["pixel_size"])
        if not 0 < side < float("inf"):
            raise ValueError(f"pixel_size is {side}")
        return side, side


def _merscope(table: Any, file: SourceFile) -> Outlines:
    ids = cell_ids(table["EntityID"].to_pylist())
    if ids is None:
        raise LabelError(f"{file} has an EntityID that is no whole number from 1; export it again with VPT")
    geometries, z = table["Geometry"].to_pylist(), np.asarray(table["ZIndex"], np.float64)
    if not (z == np.clip(z.round(), 0, 1 << 16)).all():
        raise LabelError(f"{file} has a ZIndex that is no whole number from 0; export it again with VPT")
    builder = OutlinesBuilder()
    for row, at in _z_slices(ids, z.astype(np.int64), geometries):
        builder.add(int(ids[row]), _row_parts(geometries[row], row, file), (EVERY, at))
    outlines = checked(builder.outlines(), str(file), "cell")
    return replace(outlines.transformed(_mosaic_transform(file)), unit="px")


def _z_slices(ids: NDArray[np.uint64], z: NDArray[np.int64], geometries: Sequence[Any]) -> list[tuple[int, int]]:
    """Return the rows that matter, each with its Z slice: one slice for all if every one has the same outlines."""
    by_slice: dict[int, list[tuple[int, int]]] = {}
    for row, at in enumerate(z.tolist()):
        by_slice.setdefault(at, []).append((row, at))
    found = [{(int(ids[row]), geometries[row]) for row, _ in rows} for rows in by_slice.values()]
    if all(each == found[0] for each in found):
        return [(row, EVERY) for row, _ in next(iter(by_slice.values()), [])]
    return [row for rows in by_slice.values() for row in rows]


def _mosaic_transform(file: SourceFile) -> NDArray[np.float64]:
    found = _beside(file.path, MOSAIC_TRANSFORM)
    if found is None:
        raise LabelError(
            f"{file} is in um, and its map to pixels, {MOSAIC_TRANSFORM}, is neither beside it nor in images/; "
            "copy it there"
        )
    with translated(found, "is damaged"), open(found, encoding="utf-8") as stream:
        numbers = stream.read(MAX_SETTINGS).replace(",", " ").split()
        matrix = np.array(numbers, np.float64).reshape(3, 3)
        if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:2, :2])) < 1e-12:
            raise ValueError("its map cannot be inverted")
        return matrix


def _geometry_column(schema: Any) -> str | None:
    """Return the name of the column with geometries as well-known binary; None if there is none."""
    geo = json.loads((schema.metadata or {}).get(b"geo", b"{}"))
    name = str(geo.get("primary_column", "geometry"))
    encoding = geo.get("columns", {}).get(name, {}).get("encoding", "WKB")
    return name if name in schema.names and str(encoding).upper() == "WKB" else None


def _index_columns(schema: Any) -> list[str]:
    """Return the columns that pandas takes for the index, which names the cells."""
    pandas = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))
    return [name for name in pandas.get("index_columns", []) if isinstance(name, str)]


def _geo(table: Any, geometry: str, names: Sequence[str], file: SourceFile) -> Outlines:
    parts = [_row_parts(data, row, file) for row, data in enumerate(table[geometry].to_pylist())]
    rows = [row for row, found in enumerate(parts) if found]
    if not rows:
        raise LabelError(f"{file} holds no polygons; points and circles are no outlines of cells")
    warnings: tuple[str, ...] = ()
    if len(rows) < len(parts):
        warnings = (f"{file}: {len(parts) - len(rows)} of {len(parts)} rows are points or lines, and are left out",)
    values = table[names[0]].to_pylist() if len(names) == 1 else []
    ids = cell_ids([values[row] for row in rows]) if values else None
    if ids is None or not are_unique(ids):
        ids = np.array(rows, np.uint64) + np.uint64(1)
        why = "its index has no different whole numbers from 1"
        warnings += (f"{file}: the ids of cells are their rows in the file, from 1, since {why}",)
    builder = OutlinesBuilder()
    for row, cell in zip(rows, ids, strict=True):
        builder.add(int(cell), parts[row])
    numbers = np.array(rows, np.int64) + 1
    return checked(replace(builder.outlines(), warnings=warnings), str(file), "row", numbers)


def _row_parts(data: Any, row: int, file: SourceFile) -> list[Any]:
    try:
        return [] if data is None else list(wkb_parts(data))
    except (TypeError, ValueError) as cause:
        raise LabelError(f"{file}: row {row + 1}: {cause}; export the file again") from cause


def _beside(path: str, name: str) -> str | None:
    """Return the path of a file of that name in the folder of another, in ``images`` there, or one folder above."""
    folder = os.path.dirname(os.path.abspath(path))
    for near in (folder, os.path.dirname(folder)):
        for candidate in (os.path.join(near, name), os.path.join(near, "images", name)):
            if os.path.isfile(candidate):
                return candidate
    return None
