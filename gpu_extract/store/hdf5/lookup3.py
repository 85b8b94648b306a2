"""Bob Jenkins' hash of May 2006 (lookup3.c, `hashlittle`), which HDF5 uses as the checksum of its metadata."""

from __future__ import annotations

import numpy as np

from gpu_extract.backends.cpu.compiling import compiled, inner

__all__ = ["lookup3"]


@compiled
def lookup3(words, n):
    """Return the hash of ``n`` bytes, given as 32-bit words (m, 3) padded with zeros."""
    a = b = c = np.uint32(0xDEADBEEF + n)
    for k in range(len(words)):
        a, b, c = np.uint32(a + words[k, 0]), np.uint32(b + words[k, 1]), np.uint32(c + words[k, 2])
        if k < len(words) - 1:
            a, c = _mix(a, c, b, 4)
            b, a = _mix(b, a, c, 6)
            c, b = _mix(c, b, a, 8)
            a, c = _mix(a, c, b, 16)
            b, a = _mix(b, a, c, 19)
            c, b = _mix(c, b, a, 4)
    c = _xor_subtract(c, b, 14)
    a = _xor_subtract(a, c, 11)
    b = _xor_subtract(b, a, 25)
    c = _xor_subtract(c, b, 16)
    a = _xor_subtract(a, c, 4)
    b = _xor_subtract(b, a, 14)
    return _xor_subtract(c, b, 24)


@inner
def _mix(x, y, z, n):
    return np.uint32(np.uint32(x - y) ^ _rotate_left(y, n)), np.uint32(y + z)


@inner
def _xor_subtract(x, y, n):
    return np.uint32((x ^ y) - _rotate_left(y, n))


@inner
def _rotate_left(word, n):
    return np.uint32(word << np.uint32(n) | word >> np.uint32(32 - n))
