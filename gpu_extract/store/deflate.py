"""Deflate for tiles: what is known to be a run costs nearly nothing, the rest is only Huffman coded.

Nine tenths of a tile are zeros, and what is left are numbers of a camera, in which a search for matches finds
little. So the only matches are runs of one repeated value, found eight bytes at a time, and everything else is
literals. Twice as fast as isal's level 1 and a tenth to a fifth larger, which is still smaller than lzf.

A stream is a zlib stream (RFC 1950) of one dynamic block (RFC 1951), so every zlib reads it. Its bytes depend on
nothing but the block's.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["deflate"]

U = np.uint64  # numba makes float64 of int64 and uint64, so every number of the bit buffer is one of these
ONE, LOW_32, LOW_6 = U(1), U(0xFFFFFFFF), U(63)
ADLER_BASE = U(65521)

# Symbols of the literal and length code: 256 bytes, the end, 29 lengths of matches.
N_SYMBOLS, END, LONGEST = 286, 256, 258
# What limits the code words to 15 bits: the counts they are made of sum to 2^15.
FULL = 1 << 15
# Words of 8 bytes that are tested for zeros at once.
BLOCK = 32
# Of the blocks that are not zero, every fourth is counted for the code; all of them would gain 1 % of size.
SAMPLED = 4


_of_thread = threading.local()


def _match_lengths() -> tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.uint64]]:
    """Symbol, number of extra bits and extra bits of each length of a match, from 3 to 258."""
    symbol = np.zeros(LONGEST + 1, np.int64)
    n_extra, extra = np.zeros(LONGEST + 1, np.uint64), np.zeros(LONGEST + 1, np.uint64)
    first, code = 3, 257
    for bits in (0, 0, 1, 2, 3, 4, 5):
        for _ in range(4):
            for length in range(first, min(first + (1 << bits), LONGEST + 1)):
                symbol[length], n_extra[length], extra[length] = code, bits, length - first
            first, code = first + (1 << bits), code + 1
    symbol[LONGEST], n_extra[LONGEST], extra[LONGEST] = 285, 0, 0
    return symbol, n_extra, extra


MATCH_SYMBOL, MATCH_N_EXTRA, MATCH_EXTRA = _match_lengths()


def deflate(blocks: NDArray[Any]) -> list[bytes]:
    """The zlib stream of each of some blocks (n, ...), C-contiguous, of items of 1, 2, 4 or 8 bytes; needs no GIL."""
    n, itemsize = len(blocks), blocks.itemsize
    nbytes = blocks.nbytes // max(n, 1)
    data = blocks.view(np.uint8).reshape(n, nbytes) if nbytes else np.empty((n, 0), np.uint8)
    if nbytes % 8 or not blocks.flags.aligned:  # so that the words of each block are aligned
        data = np.pad(data, ((0, 0), (0, -nbytes % 8)))
    # A byte takes 15 bits at most, a run of 8 bytes fewer than that; the header takes less than 256 bytes.
    out = _room(n * (nbytes // 4 + 64))
    ends = _deflate(data, nbytes, itemsize, out).tolist()
    streams = out.view(np.uint8)
    starts = [0, *(end + -end % 8 for end in ends)]
    return [streams[start:end].tobytes() for start, end in zip(starts, ends, strict=False)]


def _room(n: int) -> NDArray[np.uint64]:
    """Memory of this thread for so many words, the same again and again: the system is slow to give new one."""
    room: NDArray[np.uint64] | None = getattr(_of_thread, "room", None)
    if room is None or len(room) < n:
        room = _of_thread.room = np.empty(n, np.uint64)
    return room


@njit(nogil=True)
def _adler32(data, a, b):
    """The sums of adler32 after up to 512 more bytes: of the bytes, and of the sums."""
    total, weighted, n = np.uint32(0), np.uint32(0), len(data)
    for i in range(n):
        byte = np.uint32(data[i])
        total += byte
        weighted += byte * np.uint32(n - i)
    return (a + U(total)) % ADLER_BASE, (b + U(n) * a + U(weighted)) % ADLER_BASE


@njit(nogil=True)
def _count(words, shift, spread, counts):
    """Add the symbols of some words, seen by themselves."""
    before, run = ONE, 0
    for word in words:
        if word == (before >> shift) * spread:
            run += 8
            continue
        if run:
            counts[MATCH_SYMBOL[run]] += 1
            run = 0
        for k in range(8):
            counts[(word >> U(8 * k)) & U(255)] += 1
        before = word
    if run:
        counts[MATCH_SYMBOL[run]] += 1


@njit(nogil=True)
def _survey(words, data, shift, spread, counts, empty):
    """Which blocks are zero, how often symbols occur in a sample of the others, and the two sums of adler32."""
    a, b = ONE, U(0)
    n_seen = 0
    for k in range(len(empty)):
        start = k * BLOCK
        bits = U(0)
        for i in range(start, start + BLOCK):
            bits |= words[i]
        empty[k] = bits == 0
        if bits == 0:
            b = (b + U(8 * BLOCK) * a) % ADLER_BASE
            continue
        a, b = _adler32(data[8 * start : 8 * (start + BLOCK)], a, b)
        if n_seen % SAMPLED == 0:
            _count(words[start : start + BLOCK], shift, spread, counts)
        n_seen += 1
    counts[MATCH_SYMBOL[LONGEST]] += (len(empty) - n_seen) // SAMPLED
    return _adler32(data[8 * BLOCK * len(empty) :], a, b)


@njit(nogil=True)
def _code_lengths(counts, lengths):
    """Bits of each symbol's code word, 1 to 15, that fill the code exactly; a percent off Huffman's.

    Each word is first the shortest of at least ``log2(total / count)`` bits. What that leaves of the code is given
    to the symbols that gain most by a bit less.
    """
    scale = min(1.0, (FULL - N_SYMBOLS) / max(counts.sum(), 1))
    total = 0
    for s in range(N_SYMBOLS):
        counts[s] = np.int64(counts[s] * scale) + 1
        total += counts[s]
    left = FULL
    for s in range(N_SYMBOLS):
        n = 1
        while counts[s] << n < total:
            n += 1
        lengths[s] = n
        left -= FULL >> n
    # A word that is a bit shorter takes twice its share of the code: gain per cost, in sixteenths.
    for gain in (28, 24, 21, 18, 16):
        for s in range(N_SYMBOLS):
            cost = FULL >> lengths[s]
            if cost <= left and lengths[s] > 1 and 16 * (counts[s] << lengths[s]) >= gain * total:
                lengths[s] -= 1
                left -= cost
    # What is left is a multiple of the share of the longest word, so that one always fits.
    while left > 0:
        for s in range(N_SYMBOLS):
            cost = FULL >> lengths[s]
            if cost <= left and lengths[s] > 1:
                lengths[s] -= 1
                left -= cost


@njit(nogil=True)
def _reversed(word, n):
    """The ``n`` bits of a word, 16 at most, in the order of the stream."""
    word = (word & 0x5555) << 1 | word >> 1 & 0x5555
    word = (word & 0x3333) << 2 | word >> 2 & 0x3333
    word = (word & 0x0F0F) << 4 | word >> 4 & 0x0F0F
    return ((word << 8 | word >> 8) & 0xFFFF) >> (16 - n)


@njit(nogil=True)
def _code_words(lengths, table):
    """The code word of each symbol, first bit lowest, and in the upper half its length."""
    n_of_length, following = np.zeros(16, np.int64), np.zeros(16, np.int64)
    for length in lengths:
        n_of_length[length] += 1
    for n in range(1, 15):
        following[n + 1] = (following[n] + n_of_length[n]) << 1
    for s in range(N_SYMBOLS):
        n = lengths[s]
        table[s] = U(_reversed(following[n], n)) | U(n) << U(32)
        following[n] += 1


@njit(nogil=True)
def _put(out, pos, buffer, n_bits, code, n):
    """Append ``n`` bits, 64 at most, to the ``n_bits`` (fewer than 64) that wait in ``buffer``; no branch."""
    low = buffer | (code << n_bits)
    out[pos] = low
    high = (code >> ONE) >> (LOW_6 - n_bits)
    full = (n_bits + n) >> U(6)
    return pos + full, high if full else low, (n_bits + n) & LOW_6


@njit(nogil=True)
def _write_header(out, lengths, itemsize):
    """The header of zlib and the code; also the bits that stand for the one distance there is, ``itemsize``."""
    pos, buffer, n_bits = _put(out, U(0), U(0), U(0), U(0x0178), U(16))
    # Distances 1, 2, 4 and 8. Two code words of one bit, since a code of a single word is not read by all.
    symbol = (0, 0, 1, 0, 3, 0, 0, 0, 5)[itemsize]
    other = 1 if symbol == 0 else 0
    n_distances = max(symbol, other) + 1
    # The last block, a dynamic one; how many lengths follow; 19 lengths of the code of lengths.
    fields = 0b101 | (N_SYMBOLS - 257) << 3 | (n_distances - 1) << 8 | 15 << 13
    pos, buffer, n_bits = _put(out, pos, buffer, n_bits, U(fields), U(17))
    # That code: none for the three repeats, 4 bits for each of the lengths 0 to 15.
    for k in range(19):
        pos, buffer, n_bits = _put(out, pos, buffer, n_bits, U(0 if k < 3 else 4), U(3))
    for s in range(N_SYMBOLS):
        pos, buffer, n_bits = _put(out, pos, buffer, n_bits, U(_reversed(lengths[s], 4)), U(4))
    for s in range(n_distances):
        n = 1 if s in (symbol, other) else 0
        pos, buffer, n_bits = _put(out, pos, buffer, n_bits, U(_reversed(n, 4)), U(4))
    distance = U(0) if symbol == 0 else ONE
    if itemsize == 8:
        return pos, buffer, n_bits, distance | U(2), U(2)  # the second of the distances 7 and 8
    return pos, buffer, n_bits, distance, ONE


@njit(nogil=True)
def _pair(table, word):
    """The code words of the two lowest bytes, and their length."""
    first, second = table[word & U(255)], table[word >> U(8) & U(255)]
    n = first >> U(32)
    return (first & LOW_32) | (second & LOW_32) << n, n + (second >> U(32))


@njit(nogil=True)
def _write_literals(out, pos, buffer, n_bits, table, words):
    for word in words:
        # Four code words have 60 bits at most.
        for half in (word, word >> U(32)):
            low, n_low = _pair(table, half)
            high, n_high = _pair(table, half >> U(16))
            pos, buffer, n_bits = _put(out, pos, buffer, n_bits, low | high << n_low, n_low + n_high)
    return pos, buffer, n_bits


@njit(nogil=True)
def _match(table, length, distance, n_distance):
    """The bits of a match, and how many."""
    entry = table[MATCH_SYMBOL[length]]
    n = entry >> U(32)
    code = (entry & LOW_32) | MATCH_EXTRA[length] << n
    n += MATCH_N_EXTRA[length]
    return code | distance << n, n + n_distance


@njit(nogil=True)
def _write_run(out, pos, buffer, n_bits, table, nbytes, distance, n_distance):
    """Matches for a run of an even number of bytes, 8 at least."""
    code, n = _match(table, LONGEST, distance, n_distance)
    while nbytes > LONGEST + 2:
        pos, buffer, n_bits = _put(out, pos, buffer, n_bits, code, n)
        nbytes -= LONGEST
    if nbytes > LONGEST:  # two bytes alone would be no match
        code, n = _match(table, nbytes - 130, distance, n_distance)
        pos, buffer, n_bits = _put(out, pos, buffer, n_bits, code, n)
        nbytes = 130
    code, n = _match(table, nbytes, distance, n_distance)
    return _put(out, pos, buffer, n_bits, code, n)


@njit(nogil=True)
def _write_words(out, pos, buffer, n_bits, table, words, empty, shift, spread, distance, n_distance):
    """All whole words: literals up to a run, the run, and so on."""
    n, i = len(words), 0
    while i < n:
        start = i
        i += 1
        while i < n and words[i] != (words[i - 1] >> shift) * spread:
            i += 1
        pos, buffer, n_bits = _write_literals(out, pos, buffer, n_bits, table, words[start:i])
        if i == n:
            break
        start, repeated = i, words[i]
        while i < n and words[i] == repeated:
            i += 1
            if repeated == 0 and i % BLOCK == 0:
                k = i // BLOCK
                while k < len(empty) and empty[k]:
                    k += 1
                i = k * BLOCK
        pos, buffer, n_bits = _write_run(out, pos, buffer, n_bits, table, 8 * (i - start), distance, n_distance)
    return pos, buffer, n_bits


@njit(nogil=True)
def _deflate_one(words, data, itemsize, out):
    """Write the stream of ``data``, whose whole words are ``words``; returns its length in bytes."""
    # A run is a word whose items all equal the last item before it: ``(before >> shift) * spread``.
    shift, spread = U(64 - 8 * itemsize), U(0)
    for k in range(0, 8, itemsize):
        spread |= ONE << U(8 * k)
    empty = np.empty(len(words) // BLOCK, np.bool_)
    counts = np.zeros(N_SYMBOLS, np.int64)
    a, b = _survey(words, data, shift, spread, counts, empty)
    lengths = np.empty(N_SYMBOLS, np.int64)
    _code_lengths(counts, lengths)
    table = np.empty(N_SYMBOLS, np.uint64)
    _code_words(lengths, table)
    pos, buffer, n_bits, distance, n_distance = _write_header(out, lengths, itemsize)
    pos, buffer, n_bits = _write_words(
        out, pos, buffer, n_bits, table, words, empty, shift, spread, distance, n_distance
    )
    for i in range(8 * len(words), len(data)):
        pos, buffer, n_bits = _put(out, pos, buffer, n_bits, table[data[i]] & LOW_32, table[data[i]] >> U(32))
    pos, buffer, n_bits = _put(out, pos, buffer, n_bits, table[END] & LOW_32, table[END] >> U(32))
    # The checksum is big-endian and begins at a whole byte.
    n_bits = (n_bits + U(7)) & ~U(7)
    pos, buffer, n_bits = _put(out, pos, buffer, n_bits, U(0), U(0))
    for byte in (b >> U(8), b, a >> U(8), a):
        pos, buffer, n_bits = _put(out, pos, buffer, n_bits, byte & U(255), U(8))
    out[pos] = buffer
    return np.int64(U(8) * pos + (n_bits >> U(3)))


@njit("int64[::1](uint8[:, ::1], int64, int64, uint64[::1])", nogil=True, cache=True)
def _deflate(blocks, nbytes, itemsize, out):
    """Write the streams of the first ``nbytes`` of each block, each from a whole word on; returns where they end."""
    ends = np.empty(len(blocks), np.int64)
    start = 0
    for k in range(len(blocks)):
        words = blocks[k, : 8 * (nbytes // 8)].view(np.uint64)
        ends[k] = 8 * start + _deflate_one(words, blocks[k, :nbytes], itemsize, out[start:])
        start = (ends[k] + 7) // 8
    return ends
