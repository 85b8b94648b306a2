"""Deflate for tiles: what is known to be a run costs nearly nothing, the rest is only Huffman coded.

Nine tenths of a tile are zeros, and what is left are numbers of a camera, in which a search for matches finds
little. So the only matches are runs of one repeated value, found eight bytes at a time, and everything else is
literals. Two to three times as fast as isal's level 1 and a tenth to a fifth larger, which is still smaller than lzf.

A stream is a zlib stream (RFC 1950) of one dynamic block (RFC 1951), so every zlib reads it. Blocks that are
encoded together share one code, made from a sample of them, and the code words of each two bytes are looked up at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from gpu_extract.backends.cpu.compiling import compiled, inner
from gpu_extract.backends.cpu.memory import per_thread_bytes
from gpu_extract.backends.cpu.simd import adler_sums, any_bits, ctz, ne_shifted_word, store_word

__all__ = ["StreamMemory", "deflate", "deflate_each", "stream_memory", "streams_in"]

U = np.uint64  # numba makes float64 of int64 and uint64, so every number of the bit buffer is one of these
ONE, LOW_32, LOW_6, LOW_3 = U(1), U(0xFFFFFFFF), U(63), U(7)
ADLER_BASE = U(65521)

# Symbols of the literal and length code: 256 bytes, the end, 29 lengths of matches.
N_SYMBOLS, END, LONGEST = 286, 256, 258
# What limits the code words to 14 bits, so that four of them are written at once: the counts they are made of sum to
# 2^14.
FULL = 1 << 14
# Words of 8 bytes that are looked at together.
STRIP = 64
# Strips that are counted for the code.
N_SAMPLED = 128
# What stays in a core's cache.
CACHED_NBYTES = 1 << 20


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


class StreamMemory(NamedTuple):
    """Memory that streams are made in: `Code.pairs`, and the streams one after the other."""

    pairs: NDArray[np.uint64]
    out: NDArray[np.uint8]


class Code(NamedTuple):
    """The Huffman code of some blocks, and the code words that are looked up together."""

    table: NDArray[np.uint64]  # (N_SYMBOLS,): each code word, first bit lowest; its length in the upper half
    pairs: NDArray[np.uint64]  # (65536,): the same for each two bytes
    runs: NDArray[np.uint64]  # (LONGEST // 8 + 1,): the match of a run of so many words; its length in the upper half
    distance: np.uint64  # the bits of the one distance there is, 1, 2, 4 or 8 bytes
    n_distance: np.uint64


class BitPosition(NamedTuple):
    """Where a stream of bits ends: fewer than 8 bits wait in ``buffer`` for byte ``byte``.

    The stream itself is not part of it: an `inner` function counts no references and must not return an array.
    """

    byte: np.uint64
    buffer: np.uint64
    n_bits: np.uint64


def deflate(blocks: NDArray[Any]) -> list[memoryview]:
    """Return the zlib stream of each block of ``blocks``, (n, ...), C-contiguous, of items of 1, 2, 4 or 8 bytes."""
    n, itemsize = len(blocks), blocks.itemsize
    nbytes = blocks.nbytes // max(n, 1)
    data = blocks.view(np.uint8).reshape(n, nbytes) if nbytes else np.empty((n, 0), np.uint8)
    if nbytes % 8 or not blocks.flags.aligned:  # so that the words of each block are aligned
        data = np.pad(data, ((0, 0), (0, -nbytes % 8)))
    memory = stream_memory(n, nbytes)
    return streams_in(memory.out, deflate_blocks(data, nbytes, itemsize, memory))


def stream_memory(n: int, nbytes: int) -> StreamMemory:
    """Return this thread's memory for the streams of ``n`` blocks of ``nbytes`` bytes."""
    # A byte takes 14 bits at most, a run of 8 bytes fewer than that; the header takes less than 256 bytes.
    out = per_thread_bytes("out", n * (2 * nbytes + 512))
    return StreamMemory(per_thread_bytes("pairs", 8 << 16).view(np.uint64), out)


def streams_in(out: NDArray[np.uint8], ends: NDArray[np.int64]) -> list[memoryview]:
    """Return copies of the streams in ``out``, which follow each other and end at ``ends``."""
    stops = ends.tolist()
    data = out[: stops[-1] if stops else 0].copy().data  # NumPy copies without the GIL
    return [data[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]


@inner
def _adler32(a, b, n, total, weighted):
    """The sums of adler32 after up to 512 more bytes, of which the first counts ``n`` times, the last once."""
    return (a + total) % ADLER_BASE, (b + n * a + weighted) % ADLER_BASE


@inner
def _survey(words, data, shift, literals):
    """Write which words are no repetition, as bits; give all bits that occur in any word, and adler32's two sums.

    A repetition is a word whose items all equal the last item before it, that is what is left of it by ``>> shift``.
    """
    a, b, seen, before = ONE, U(0), U(0), U(0)
    n_strips = len(words) // STRIP
    for k in range(n_strips):
        start = k * STRIP
        bits = any_bits(words, start)
        if bits == 0:
            b += U(8 * STRIP) * a  # 2^25 at most, so that b may wait for the next strip that is not zero
            literals[k] = U(before >> shift != 0)
            before = U(0)
            continue
        total, weighted = adler_sums(words, start)
        a, b = _adler32(a, b, U(8 * STRIP), total, weighted)
        literals[k] = ne_shifted_word(words, start, before, shift)
        before = words[start + STRIP - 1]
        seen |= bits
    literals[n_strips:] = 0
    for i in range(n_strips * STRIP, len(words)):
        repeated = ((words[i] << (LOW_6 - shift)) << ONE) | (before >> shift)
        literals[n_strips] |= U(words[i] != repeated) << U(i % STRIP)
        before = words[i]
        seen |= before
    if len(words):
        literals[0] |= ONE
    total, weighted = U(0), U(0)
    for byte in data[8 * STRIP * n_strips :]:
        total += U(byte)
        weighted += total
    return seen, *_adler32(a, b, U(len(data) - 8 * STRIP * n_strips), total, weighted)


@inner
def _first_run(bits):
    """Of bits, not all 0, where the first run of ones begins, how long it is, and what is behind it."""
    first = ctz(bits)
    n = ctz(~(bits >> U(first)))
    return first, n, bits & ~ONE << U(first + n - 1)


@inner
def _count_sample(words, n_strips, literals, counts):
    """Count the symbols in a sample of the first strips of all blocks (n, n_words), each strip seen by itself."""
    # An odd step meets all rows of a tile.
    for strip in range(0, len(words) * n_strips, max(len(words) * n_strips // N_SAMPLED, 1) | 1):
        n, start = strip // n_strips, strip % n_strips * STRIP
        left, end = literals[n, strip % n_strips], 0
        while left != 0:
            first, length, left = _first_run(left)
            if first > end:
                counts[MATCH_SYMBOL[min(8 * (first - end), LONGEST)]] += 1
            end = first + length
            for k in range(start + first, start + end):
                for shift in range(0, 64, 8):
                    counts[words[n, k] >> U(shift) & U(255)] += 1
        if end < STRIP:
            counts[MATCH_SYMBOL[min(8 * (STRIP - end), LONGEST)]] += 1


@inner
def _code_lengths(counts, lengths):
    """Bits of each symbol's code word, 1 to 14, that fill the code exactly; a percent off Huffman's.

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


@inner
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


@inner
def _put(out, end, code, n):
    """Append ``n`` bits, 56 at most, and return where the stream then ends; no branch."""
    buffer = end.buffer | code << end.n_bits
    store_word(out, end.byte, buffer)
    n_bits = end.n_bits + n
    return BitPosition(end.byte + (n_bits >> U(3)), buffer >> (n_bits & ~LOW_3), n_bits & LOW_3)


@inner
def _put_entry(out, end, entry):
    """Append a code word whose length is in the upper half of ``entry``."""
    return _put(out, end, entry & LOW_32, entry >> U(32))


@inner
def _distance(itemsize):
    """The bits that stand for the one distance there is, 1, 2, 4 or 8, and how many; see `_write_header`."""
    # At 8 it is the second of the distances 7 and 8.
    return U((0, 0, 1, 0, 1, 0, 0, 0, 3)[itemsize]), U(2 if itemsize == 8 else 1)


@inner
def _write_header(out, end, lengths, itemsize):
    """The header of zlib and the code."""
    end = _put(out, end, U(0x0178), U(16))
    # The symbol of the distance, and another: two code words of one bit, since a code of a single word is not read by
    # all. The smaller symbol is the bit 0.
    symbol = (0, 0, 1, 0, 3, 0, 0, 0, 5)[itemsize]
    other = 1 if symbol == 0 else 0
    n_distances = max(symbol, other) + 1
    # The last block, a dynamic one; how many lengths follow; 19 lengths of the code of lengths.
    fields = 0b101 | (N_SYMBOLS - 257) << 3 | (n_distances - 1) << 8 | 15 << 13
    end = _put(out, end, U(fields), U(17))
    # That code: none for the three repeats, 4 bits for each of the lengths 0 to 15.
    for k in range(19):
        end = _put(out, end, U(0 if k < 3 else 4), U(3))
    for s in range(N_SYMBOLS):
        end = _put(out, end, U(_reversed(lengths[s], 4)), U(4))
    for s in range(n_distances):
        n = 1 if s in (symbol, other) else 0
        end = _put(out, end, U(_reversed(n, 4)), U(4))
    return end


@inner
def _largest_second(bits):
    """No second byte of two in the words whose bits are in ``bits`` is larger."""
    most = U(0)
    for k in range(4):
        most |= bits >> U(16 * k + 8) & U(255)
    return np.int64(most)


@inner
def _code_pairs(table, most, pairs):
    """The code word of each two bytes, the second one ``most`` or less, and in the upper half its length."""
    for second in range(most + 1):
        word, n = table[second] & LOW_32, table[second] & ~LOW_32
        for first in range(256):
            before = table[first]
            pairs[256 * second + first] = ((before & LOW_32) | word << (before >> U(32))) + (before & ~LOW_32) + n


@inner
def _literals(halves, first, second):
    """The code words of two bytes and two more, 56 bits at most, and how many."""
    n = U(halves[2 * first + 1])
    return U(halves[2 * first]) | U(halves[2 * second]) << n, n + U(halves[2 * second + 1])


@inner
def _write_literals(out, end, halves, twos, first, last):
    """Whole words as literals, given two bytes each; ``halves`` are those of `_code_pairs`."""
    for i in range(first, last):
        code, n = _literals(halves, twos[4 * i], twos[4 * i + 1])
        end = _put(out, end, code, n)
        code, n = _literals(halves, twos[4 * i + 2], twos[4 * i + 3])
        end = _put(out, end, code, n)
    return end


@inner
def _match(table, length, distance, n_distance):
    """The bits of a match, and how many."""
    entry = table[MATCH_SYMBOL[length]]
    n = entry >> U(32)
    bits = (entry & LOW_32) | MATCH_EXTRA[length] << n
    n += MATCH_N_EXTRA[length]
    return bits | distance << n, n + n_distance


@inner
def _code_runs(table, distance, n_distance, runs):
    """Write the match of a run of each number of words that one match covers, its length in the upper half."""
    runs[0] = U(0)
    for n in range(1, len(runs)):
        bits, n_bits = _match(table, 8 * n, distance, n_distance)
        runs[n] = bits | n_bits << U(32)


@inner
def _write_run(out, end, code, nbytes):
    """Append matches for a run of an even number of bytes, 8 at least."""
    bits, n = _match(code.table, LONGEST, code.distance, code.n_distance)
    # Three have 48 bits at most.
    three = bits | bits << n | bits << (n + n)
    while nbytes > 3 * LONGEST + 2:
        end = _put(out, end, three, U(3) * n)
        nbytes -= 3 * LONGEST
    while nbytes > LONGEST + 2:
        end = _put(out, end, bits, n)
        nbytes -= LONGEST
    if nbytes > LONGEST:  # two bytes alone would be no match
        bits, n = _match(code.table, nbytes - 130, code.distance, code.n_distance)
        end = _put(out, end, bits, n)
        nbytes = 130
    bits, n = _match(code.table, nbytes, code.distance, code.n_distance)
    return _put(out, end, bits, n)


@inner
def _write_words(out, end, code, words, literals):
    """Append all whole words of a block: a run, literals, a run, and so on."""
    twos, halves, done = words.view(np.uint16), code.pairs.view(np.uint32), 0
    for k in range(len(literals)):
        left = literals[k]
        while left != 0:
            first, n, left = _first_run(left)
            start = STRIP * k + first
            run = start - done
            is_long = run >= len(code.runs)
            end = _write_run(out, end, code, 8 * run) if is_long else _put_entry(out, end, code.runs[run])
            done = start + n
            end = _write_literals(out, end, halves, twos, start, done)
    if done < len(words):
        end = _write_run(out, end, code, 8 * (len(words) - done))
    return end


@inner
def _write_rest(out, end, table, rest, a, b):
    """Append the bytes after the last whole word, the end of the block and the two sums; return the length in bytes."""
    for byte in rest:
        end = _put_entry(out, end, table[byte])
    end = _put_entry(out, end, table[END])
    # The checksum is big-endian and begins at a whole byte.
    end = _put(out, end, U(0), -end.n_bits & LOW_3)
    for byte in (b >> U(8), b, a >> U(8), a):
        end = _put(out, end, byte & U(255), U(8))
    return np.int64(end.byte)


@njit(nogil=True)
def deflate_each(data, nbytes, itemsize, pairs, out):
    """Write the streams of the first ``nbytes`` of each block behind one another; returns their ends."""
    n, n_words, shift = len(data), nbytes // 8, U(64 - 8 * itemsize)
    words = data.view(np.uint64)
    literals = np.empty((n, (n_words + STRIP - 1) // STRIP), np.uint64)
    sums = np.empty((n, 2), np.uint64)
    seen = U(0)
    for k in range(n):
        bits, sums[k, 0], sums[k, 1] = _survey(words[k][:n_words], data[k][:nbytes], shift, literals[k])
        seen |= bits
    counts, lengths = np.zeros(N_SYMBOLS, np.int64), np.empty(N_SYMBOLS, np.int64)
    table, runs, ends = np.empty(N_SYMBOLS, np.uint64), np.empty(LONGEST // 8 + 1, np.uint64), np.empty(n, np.int64)
    _count_sample(words, n_words // STRIP, literals, counts)
    _code_lengths(counts, lengths)
    _code_words(lengths, table)
    _code_pairs(table, _largest_second(seen), pairs)
    distance, n_distance = _distance(itemsize)
    _code_runs(table, distance, n_distance, runs)
    code, n_written = Code(table, pairs, runs, distance, n_distance), 0
    for k in range(n):
        stream, rest = out[n_written:], data[k][8 * n_words : nbytes]
        end = _write_header(stream, BitPosition(U(0), U(0), U(0)), lengths, itemsize)
        end = _write_words(stream, end, code, words[k][:n_words], literals[k])
        n_written += _write_rest(stream, end, table, rest, sums[k, 0], sums[k, 1])
        ends[k] = n_written
    return ends


@compiled
def deflate_blocks(data, nbytes, itemsize, memory):
    """`deflate_each`, for Python: a few blocks at a time, as it goes over them twice."""
    n = max(CACHED_NBYTES // max(nbytes, 1), 1)
    ends, end = np.empty(len(data), np.int64), 0
    for first in range(0, len(data), n):
        some = data[first : first + n]
        ends[first : first + n] = end + deflate_each(some, nbytes, itemsize, memory.pairs, memory.out[end:])
        end = ends[first + len(some) - 1]
    return ends
