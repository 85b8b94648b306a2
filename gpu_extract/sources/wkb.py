"""Polygons in well-known binary (OGC 06-103r4, section 8; EWKB of PostGIS), the geometry of GeoParquet."""

from __future__ import annotations

import struct

import numpy as np

from gpu_extract.sources.outlines import Ring

__all__ = ["wkb_parts"]

POLYGON, MULTI_POLYGON, COLLECTION = 3, 6, 7
# EWKB marks a point with Z, one with M, and a reference system in front; ISO adds 1000, 2000 or 3000 to the type.
EWKB_Z, EWKB_M, EWKB_SRID = 0x80000000, 0x40000000, 0x20000000
MAX_DEPTH = 8
# A geometry takes 5 bytes and a count of 4, a ring its count.
MIN_GEOMETRY, MIN_RING = 9, 4


def wkb_parts(data: bytes) -> list[tuple[Ring, ...]]:
    """Return the polygons of a geometry, each a tuple of rings (k, 2) of (y, x); none if it is a point or a line.

    Raises
    ------
    ValueError
        If the bytes end within the geometry, or are none.
    """
    parts, _ = _geometry(data, 0, 0)
    return parts


def _geometry(data: bytes, at: int, depth: int) -> tuple[list[tuple[Ring, ...]], int]:
    """Return the polygons of the geometry that begins at a byte, and the byte behind it."""
    if depth > MAX_DEPTH:
        raise ValueError("its geometries are nested too deeply")
    order = {0: ">", 1: "<"}.get(data[at]) if at < len(data) else None
    if order is None:
        raise ValueError("its geometry is no well-known binary")
    (code,) = _unpacked(order + "I", data, at + 1)
    at += 9 if code & EWKB_SRID else 5
    iso, kind = divmod(code & 0x0FFFFFFF, 1000)
    n_axes = 2 + (iso in (1, 3) or bool(code & EWKB_Z)) + (iso in (2, 3) or bool(code & EWKB_M))
    if kind not in (POLYGON, MULTI_POLYGON, COLLECTION):
        return [], len(data)
    (n,) = _unpacked(order + "I", data, at)
    at += 4
    _check(n, MIN_RING if kind == POLYGON else MIN_GEOMETRY, data, at)
    if kind == POLYGON:
        rings = []
        for _ in range(n):
            ring, at = _ring(data, at, order, n_axes)
            rings.append(ring)
        return [tuple(rings)] if rings else [], at
    parts: list[tuple[Ring, ...]] = []
    for _ in range(n):
        found, at = _geometry(data, at, depth + 1)
        parts += found
    return parts, at


def _ring(data: bytes, at: int, order: str, n_axes: int) -> tuple[Ring, int]:
    (n,) = _unpacked(order + "I", data, at)
    _check(n, 8 * n_axes, data, at + 4)
    points = np.frombuffer(data, order + "f8", n * n_axes, at + 4).reshape(n, n_axes)
    return points[:, 1::-1].astype(np.float64), at + 4 + 8 * n * n_axes


def _unpacked(form: str, data: bytes, at: int) -> tuple[int, ...]:
    if at + struct.calcsize(form) > len(data):
        raise ValueError("its geometry is cut off")
    return struct.unpack_from(form, data, at)


def _check(n: int, nbytes: int, data: bytes, at: int) -> None:
    """Refuse a count of things that the bytes cannot hold, before memory is taken for them."""
    if n * nbytes > len(data) - at:
        raise ValueError("its geometry is cut off")
