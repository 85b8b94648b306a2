"""Outlines of cells, and files of them as the programs that segment write them, for tests."""

import json
import struct
import zipfile

import numpy as np

from gpu_extract.sources.outlines import EVERY, OutlinesBuilder

SQUARE = [(2, 2), (2, 8), (8, 8), (8, 2)]  # (y, x)
# A hole of 2 x 2 in the square.
HOLE = [(4, 4), (4, 6), (6, 6), (6, 4)]


def shifted(ring, y, x):
    return np.add(ring, (y, x))


def outlines(*cells, planes=None):
    """Outlines of cells with ids 1, 2, ...; each is a list of parts, each a list of rings of points (y, x)."""
    builder = OutlinesBuilder()
    for number, parts in enumerate(cells, 1):
        rings = [[np.array(ring, float).reshape(-1, 2) for ring in part] for part in parts]
        builder.add(number, rings, (EVERY, EVERY) if planes is None else planes[number - 1])
    return builder.outlines()


def drawn_exactly(cells, size, *, on_left=True):
    """A label plane by integer arithmetic, of outlines whose coordinates are multiples of 1/4.

    A center exactly on an edge belongs to the polygon if that is on its left and `on_left`, or on its right if not.
    """
    y, x = (8 * axis + 4 for axis in np.mgrid[: size[0], : size[1]])
    plane = np.zeros(size, np.int64)
    for number, parts in enumerate(cells, 1):
        for part in parts:
            inside = np.zeros(size, bool)
            for ring in part:
                points = [tuple(int(8 * value) for value in point) for point in ring]
                for one, other in zip(points, points[1:] + points[:1], strict=True):
                    (y0, x0), (y1, x1) = sorted((one, other))
                    left, right = (y - y0) * (x1 - x0), (x - x0) * (y1 - y0)
                    inside ^= (y0 <= y) & (y < y1) & ((left <= right) if on_left else (left < right))
            plane[inside] = number
    return plane


# GeoJSON


def xy(ring):
    """A closed ring as GeoJSON has it."""
    return [[float(x), float(y)] for y, x in [*ring, ring[0]]]


def polygon(*rings):
    return {"type": "Polygon", "coordinates": [xy(ring) for ring in rings]}


def multi_polygon(*parts):
    return {"type": "MultiPolygon", "coordinates": [[xy(ring) for ring in part] for part in parts]}


def feature(geometry, *, nucleus=None, properties=None, **members):
    own = {"nucleusGeometry": nucleus} if nucleus else {}
    return {"type": "Feature", **members, "geometry": geometry, **own, "properties": properties or {}}


def write_geojson(path, *features, collection=True):
    content = {"type": "FeatureCollection", "features": features} if collection else features
    path.write_text(json.dumps(content))
    return path


# Well-known binary


def wkb(*parts, order="<", z=False, iso=False):
    """A polygon, or a multipolygon of several parts, each a list of rings of points (y, x)."""
    if len(parts) > 1:
        return (
            _header(6, order)
            + struct.pack(order + "I", len(parts))
            + b"".join(wkb(part, order=order) for part in parts)
        )
    (rings,) = parts
    code = 3 + (1000 if z and iso else 0) + (0x80000000 if z and not iso else 0)
    content = _header(code, order) + struct.pack(order + "I", len(rings))
    for ring in rings:
        points = [(x, y, 5.0)[: 3 if z else 2] for y, x in [*ring, ring[0]]]
        content += struct.pack(order + "I", len(points)) + np.array(points, order + "f8").tobytes()
    return content


def wkb_point(y, x):
    return _header(1, "<") + struct.pack("<dd", x, y)


def _header(code, order):
    return struct.pack(order + "BI", order == "<", code)


def write_geoparquet(path, ids, geometries, *, geometry="geometry", encoding="WKB"):
    """A file as geopandas writes it, with an index of ids."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({geometry: pa.array(geometries, pa.binary()), "__index_level_0__": ids})
    geo = {"version": "1.0.0", "primary_column": geometry, "columns": {geometry: {"encoding": encoding}}}
    pandas = {"index_columns": ["__index_level_0__"], "columns": []}
    metadata = {b"geo": json.dumps(geo).encode(), b"pandas": json.dumps(pandas).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


# ImageJ


def write_rois(path, *rois):
    """A set of ROIs as ImageJ's ROI Manager saves it."""
    with zipfile.ZipFile(path, "w") as archive:
        for number, roi in enumerate(rois, 1):
            archive.writestr(f"{roi.name or number}.roi", roi.tobytes())
    return path
