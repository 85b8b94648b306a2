"""Deflate for tiles: runs are encoded as matches at almost no cost, everything else as literals.

Nine tenths of a tile are zeros, and the rest are camera values, in which a search for matches finds little. So the only
matches are runs of one repeated value, found eight bytes at a time, and everything else is Huffman-coded literals. This
is two to three times as fast as isal's level 1. Streams are 10 to 20 % larger, but still smaller than lzf.

A stream is a zlib stream (RFC 1950) of one dynamic block (RFC 1951), so any zlib can read it. Blocks that are encoded
together share one Huffman code, made from a sample of them. The code words of two bytes are looked up at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpu_extract.backends.cpu.compiling import compiled, inner, inner_allocating
from gpu_extract.backends.cpu.memory import per_thread_bytes
from gpu_extract.backends.cpu.simd import adler_sums, any_bits, ctz, ne_shifted_word, store_word

__all__ = ["StreamMemory", "deflate", "deflate_each", "stream_memory", "streams_in"]

U = np.uint64  # int64 with uint64 becomes float64 in numba, so all numbers of the bit buffer are uint64
ONE, LOW_32, LOW_6, LOW_3 = U(1), U(0xFFFFFFFF), U(63), U(7)
ADLER_BASE = U(65521)

# Symbols of the literal/length code: 256 bytes, the end of the block, 29 lengths of matches.
N_SYMBOLS, END, LONGEST = 286, 256, 258
# The code space, in units of a code word of the maximum length, 14 bits: four code words can be written at once.
CODE_SPACE = 1 << 14
# Words of 8 bytes that are processed at once.
STRIP = 64
# Strips whose symbols are counted for the code.
N_SAMPLED = 128
# Bytes that stay in a core's cache.
CACHED_NBYTES = 1 << 20


def _match_lengths() -> tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.uint64]]:
    """Return the symbol, the number of extra bits and the extra bits of each length of a match, from 3 to 258."""
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
    """Memory for `Code.pairs`, and for streams one after the other."""

    pairs: NDArray[np.uint64]
    out: NDArray[np.uint8]


class Code(NamedTuple):
    """The Huffman code of some blocks, with lookup tables.

    An entry of a table is a code word, first bit lowest, in the lower 32 bits, and its number of bits in the upper 32.
    """

    table: NDArray[np.uint64]  # (N_SYMBOLS,): of each symbol
    pairs: NDArray[np.uint64]  # (65536,): of each two bytes
    runs: NDArray[np.uint64]  # (LONGEST // 8 + 1,): the match for a run, by its number of words
    distance: np.uint64  # the code word of the only distance, 1, 2, 4 or 8 bytes
    n_distance: np.uint64  # bits of `distance`


class BitPosition(NamedTuple):
    """The end of a bit stream: the ``n_bits`` < 8 bits in ``buffer`` belong to byte ``byte``.

    The stream itself is not a field, because `inner` functions must not return arrays.
    """

    byte: np.uint64
    buffer: np.uint64
    n_bits: np.uint64


def deflate(blocks: NDArray[Any]) -> list[memoryview]:
    """Return the zlib stream of each block of ``blocks``, (n, ...), C-contiguous, of items of 1, 2, 4 or 8 bytes."""
    n, itemsize = len(blocks), blocks.itemsize
    nbytes = blocks.nbytes // max(n, 1)
    data = blocks.view(np.uint8).reshape(n, nbytes) if nbytes else np.empty((n, 0), np.uint8)
    if nbytes % 8 or not blocks.flags.aligned:  # align the words of each block
        data = np.pad(data, ((0, 0), (0, -nbytes % 8)))
    memory = stream_memory(n, nbytes)
    return streams_in(memory.out, deflate_blocks(data, nbytes, itemsize, memory))


def stream_memory(n: int, nbytes: int) -> StreamMemory:
    """Return this thread's memory for the streams of ``n`` blocks of ``nbytes`` bytes."""
    # A byte takes at most 14 bits, a run of 8 bytes fewer; the header takes less than 256 bytes.
    out = per_thread_bytes("out", n * (2 * nbytes + 512))
    return StreamMemory(per_thread_bytes("pairs", 8 << 16).view(np.uint64), out)


def streams_in(out: NDArray[np.uint8], ends: NDArray[np.int64]) -> list[memoryview]:
    """Return copies of the consecutive streams in ``out``, which end at ``ends``."""
    stops = ends.tolist()
    data = out[: stops[-1] if stops else 0].copy().data  # NumPy copies without the GIL
    return [data[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]


@inner
def _adler32(a, b, n, total, weighted):
    """Return the two sums of Adler-32 after ``n`` <= 512 more bytes, given their sum and weighted sum."""
    return (a + total) % ADLER_BASE, (b + n * a + weighted) % ADLER_BASE


@inner
def _find_literals(words, data, shift, literals):
    """Write a bit for each word: whether it is literal. Return the OR of all words, and the two sums of Adler-32.

    All other words are repetitions: each of their items equals the last item of the previous word. ``shift`` is 64
    minus the bits of an item.
    """
    a, b, seen, before = ONE, U(0), U(0), U(0)
    n_strips = len(words) // STRIP
    for k in range(n_strips):
        start = k * STRIP
        bits = any_bits(words, start)
        if bits == 0:
            b += U(8 * STRIP) * a  # at most 2^25: b is reduced at the next strip that is not zero
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
    """Return the start and length of the first run of ones in ``bits``, which is not 0, and the bits behind the run."""
    first = ctz(bits)
    n = ctz(~(bits >> U(first)))
    return first, n, bits & ~ONE << U(first + n - 1)


@inner
def _count_sample(words, n_strips, literals, counts):
    """Count the symbols of a sample of the first ``n_strips`` strips of all blocks (n, n_words), strip by strip."""
    # With an odd step, the sample covers all rows of a tile.
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
    """Write the length of each symbol's code word, 1 to 14 bits; the code is complete and within 1 % of Huffman's.

    The initial length is the smallest integer that is at least ``log2(total / count)``. The code space that is left is
    given to the symbols that gain most from a code word that is one bit shorter.
    """
    scale = min(1.0, (CODE_SPACE - N_SYMBOLS) / max(counts.sum(), 1))
    total = 0
    for s in range(N_SYMBOLS):
        counts[s] = np.int64(counts[s] * scale) + 1
        total += counts[s]
    left = CODE_SPACE
    for s in range(N_SYMBOLS):
        n = 1
        while counts[s] << n < total:
            n += 1
        lengths[s] = n
        left -= CODE_SPACE >> n
    # A code word that is one bit shorter takes twice the code space. Ratio of gain to cost, in sixteenths.
    for gain in (28, 24, 21, 18, 16):
        for s in range(N_SYMBOLS):
            cost = CODE_SPACE >> lengths[s]
            if cost <= left and lengths[s] > 1 and 16 * (counts[s] << lengths[s]) >= gain * total:
                lengths[s] -= 1
                left -= cost
    # The space that is left is a multiple of that of the longest code word, so one always fits.
    while left > 0:
        for s in range(N_SYMBOLS):
            cost = CODE_SPACE >> lengths[s]
            if cost <= left and lengths[s] > 1:
                lengths[s] -= 1
                left -= cost


@inner
def _reverse_bits(word, n):
    """Return the ``n`` <= 16 bits of a code word in the order of the stream, that is reversed."""
    word = (word & 0x5555) << 1 | word >> 1 & 0x5555
    word = (word & 0x3333) << 2 | word >> 2 & 0x3333
    word = (word & 0x0F0F) << 4 | word >> 4 & 0x0F0F
    return ((word << 8 | word >> 8) & 0xFFFF) >> (16 - n)


@inner_allocating
def _code_words(lengths, table):
    """Write the canonical code words of all symbols to ``table``; see `Code`."""
    n_by_length, next_word = np.zeros(16, np.int64), np.zeros(16, np.int64)
    for length in lengths:
        n_by_length[length] += 1
    for n in range(1, 15):
        next_word[n + 1] = (next_word[n] + n_by_length[n]) << 1
    for s in range(N_SYMBOLS):
        n = lengths[s]
        table[s] = U(_reverse_bits(next_word[n], n)) | U(n) << U(32)
        next_word[n] += 1


@inner
def _put(out, end, code, n):
    """Append ``n`` <= 56 bits and return the new end of the stream; without branches."""
    buffer = end.buffer | code << end.n_bits
    store_word(out, end.byte, buffer)
    n_bits = end.n_bits + n
    return BitPosition(end.byte + (n_bits >> U(3)), buffer >> (n_bits & ~LOW_3), n_bits & LOW_3)


@inner
def _put_entry(out, end, entry):
    """Append the code word of an entry of a table; see `Code`."""
    return _put(out, end, entry & LOW_32, entry >> U(32))


@inner
def _distance(itemsize):
    """Return the code word of the distance ``itemsize`` with its extra bits, and its length; see `_write_header`."""
    # 8 shares its symbol with 7; the extra bit distinguishes them.
    return U((0, 0, 1, 0, 1, 0, 0, 0, 3)[itemsize]), U(2 if itemsize == 8 else 1)


@inner
def _write_header(out, end, lengths, itemsize):
    """Append the header of zlib, and that of the block with the code."""
    end = _put(out, end, U(0x0178), U(16))
    # Two distances with code words of one bit, as some decoders reject a code of a single word. The smaller symbol has
    # the code word 0.
    symbol = (0, 0, 1, 0, 3, 0, 0, 0, 5)[itemsize]
    other = 1 if symbol == 0 else 0
    n_distances = max(symbol, other) + 1
    # Last block, dynamic; the numbers of literal/length and of distance code lengths; 19 code length codes.
    fields = 0b101 | (N_SYMBOLS - 257) << 3 | (n_distances - 1) << 8 | 15 << 13
    end = _put(out, end, U(fields), U(17))
    # The code of code lengths: no code words for the three repeats, 4 bits for each of the lengths 0 to 15.
    for k in range(19):
        end = _put(out, end, U(0 if k < 3 else 4), U(3))
    for s in range(N_SYMBOLS):
        end = _put(out, end, U(_reverse_bits(lengths[s], 4)), U(4))
    for s in range(n_distances):
        n = 1 if s in (symbol, other) else 0
        end = _put(out, end, U(_reverse_bits(n, 4)), U(4))
    return end


@inner
def _second_byte_bound(bits):
    """Return an upper bound of every second byte of the words whose OR is ``bits``."""
    most = U(0)
    for k in range(4):
        most |= bits >> U(16 * k + 8) & U(255)
    return np.int64(most)


@inner
def _code_pairs(table, most, pairs):
    """Write the code words of all pairs of bytes whose second byte is at most ``most``; see `Code`."""
    for second in range(most + 1):
        word, n = table[second] & LOW_32, table[second] & ~LOW_32
        for first in range(256):
            before = table[first]
            pairs[256 * second + first] = ((before & LOW_32) | word << (before >> U(32))) + (before & ~LOW_32) + n


@inner
def _literals(entries, first, second):
    """Return the code words of two pairs of bytes, at most 56 bits, and their number of bits."""
    n = U(entries[2 * first + 1])
    return U(entries[2 * first]) | U(entries[2 * second]) << n, n + U(entries[2 * second + 1])


@inner
def _write_literals(out, end, entries, byte_pairs, first, last):
    """Append the words ``first`` to ``last - 1`` as literals; ``byte_pairs`` are the blocks' pairs of bytes.

    ``entries`` are `Code.pairs` as uint32: the code word of each pair and its length.
    """
    for i in range(first, last):
        code, n = _literals(entries, byte_pairs[4 * i], byte_pairs[4 * i + 1])
        end = _put(out, end, code, n)
        code, n = _literals(entries, byte_pairs[4 * i + 2], byte_pairs[4 * i + 3])
        end = _put(out, end, code, n)
    return end


@inner
def _match(table, length, distance, n_distance):
    """Return the code word of a match, with its extra bits and its distance, and the number of bits."""
    entry = table[MATCH_SYMBOL[length]]
    n = entry >> U(32)
    bits = (entry & LOW_32) | MATCH_EXTRA[length] << n
    n += MATCH_N_EXTRA[length]
    return bits | distance << n, n + n_distance


@inner
def _code_runs(table, distance, n_distance, runs):
    """Write the match for each run of words that a single match covers; see `Code`."""
    runs[0] = U(0)
    for n in range(1, len(runs)):
        bits, n_bits = _match(table, 8 * n, distance, n_distance)
        runs[n] = bits | n_bits << U(32)


@inner
def _write_run(out, end, code, nbytes):
    """Append matches for a run of an even number of bytes, at least 8."""
    bits, n = _match(code.table, LONGEST, code.distance, code.n_distance)
    # Three matches have at most 48 bits.
    three = bits | bits << n | bits << (n + n)
    while nbytes > 3 * LONGEST + 2:
        end = _put(out, end, three, U(3) * n)
        nbytes -= 3 * LONGEST
    while nbytes > LONGEST + 2:
        end = _put(out, end, bits, n)
        nbytes -= LONGEST
    if nbytes > LONGEST:  # a match has at least three bytes
        bits, n = _match(code.table, nbytes - 130, code.distance, code.n_distance)
        end = _put(out, end, bits, n)
        nbytes = 130
    bits, n = _match(code.table, nbytes, code.distance, code.n_distance)
    return _put(out, end, bits, n)


@inner
def _write_words(out, end, code, words, literals):
    """Append all whole words of a block: runs and literals in turn."""
    byte_pairs, entries, done = words.view(np.uint16), code.pairs.view(np.uint32), 0
    for k in range(len(literals)):
        left = literals[k]
        while left != 0:
            first, n, left = _first_run(left)
            start = STRIP * k + first
            run = start - done
            is_long = run >= len(code.runs)
            end = _write_run(out, end, code, 8 * run) if is_long else _put_entry(out, end, code.runs[run])
            done = start + n
            end = _write_literals(out, end, entries, byte_pairs, start, done)
    if done < len(words):
        end = _write_run(out, end, code, 8 * (len(words) - done))
    return end


@inner
def _write_rest(out, end, table, rest, a, b):
    """Append the bytes behind the last whole word, the end of the block and the checksum; return the stream's bytes."""
    for byte in rest:
        end = _put_entry(out, end, table[byte])
    end = _put_entry(out, end, table[END])
    # The checksum is big-endian and starts at a byte boundary.
    end = _put(out, end, U(0), -end.n_bits & LOW_3)
    for byte in (b >> U(8), b, a >> U(8), a):
        end = _put(out, end, byte & U(255), U(8))
    return np.int64(end.byte)


@inner_allocating
def deflate_each(data, nbytes, itemsize, pairs, out):
    """Write the streams of the first ``nbytes`` bytes of each block one after the other; return their ends."""
    n, n_words, shift = len(data), nbytes // 8, U(64 - 8 * itemsize)
    words = data.view(np.uint64)
    literals = np.empty((n, (n_words + STRIP - 1) // STRIP), np.uint64)
    sums = np.empty((n, 2), np.uint64)
    seen = U(0)
    for k in range(n):
        bits, sums[k, 0], sums[k, 1] = _find_literals(words[k][:n_words], data[k][:nbytes], shift, literals[k])
        seen |= bits
    counts, lengths = np.zeros(N_SYMBOLS, np.int64), np.empty(N_SYMBOLS, np.int64)
    table, runs, ends = np.empty(N_SYMBOLS, np.uint64), np.empty(LONGEST // 8 + 1, np.uint64), np.empty(n, np.int64)
    _count_sample(words, n_words // STRIP, literals, counts)
    _code_lengths(counts, lengths)
    _code_words(lengths, table)
    _code_pairs(table, _second_byte_bound(seen), pairs)
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
    """Call `deflate_each` from Python, a few blocks at a time, because it reads each block twice."""
    n = max(CACHED_NBYTES // max(nbytes, 1), 1)
    ends, end = np.empty(len(data), np.int64), 0
    for first in range(0, len(data), n):
        some = data[first : first + n]
        ends[first : first + n] = end + deflate_each(some, nbytes, itemsize, memory.pairs, memory.out[end:])
        end = ends[first + len(some) - 1]
    return ends
