"""Streams of our deflate, decompressed by zlib: all kinds of tiles, all lengths of runs, arbitrary data."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isal import isal_zlib
from made.slides import ht29
from numba import njit

import gpu_extract.backends.cpu.deflate as module
from gpu_extract.backends.cpu.deflate import deflate
from gpu_extract.model import BatchSize
from gpu_extract.planning import batches, make_plan
from gpu_extract.recipe import Recipe


@njit
def code_lengths(counts, lengths):
    module._code_lengths(counts, lengths)


DTYPES = ["u1", "i1", "f2", "u2", "f4", "u4", "f8", "u8"]


def assert_round_trips(block):
    (stream,) = deflate(block[np.newaxis])
    assert zlib.decompress(stream) == block.tobytes()
    assert isal_zlib.decompress(stream) == block.tobytes()
    return stream


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 8, 9, 31, 32, 33, 255, 256, 257, 1000, 5 * 33 * 33])
def test_any_length(n, dtype):
    random = np.random.default_rng(n)
    assert_round_trips(np.zeros(n, dtype))
    assert_round_trips(np.full(n, 3, dtype))
    assert_round_trips((random.random(n) * 100).astype(dtype))
    assert_round_trips(random.integers(0, 256, n * np.dtype(dtype).itemsize, np.uint8).view(dtype))


@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("dtype", ["u1", "f2", "f4", "f8"])
def test_every_length_of_run(dtype, value):
    # A match has at most 258 bytes, and the remainder must not be 2 bytes.
    for n in range(0, 1200, 8):
        block = np.concatenate([np.arange(13), np.full(n, value), np.arange(9)]).astype(dtype)
        assert_round_trips(block)
        assert_round_trips(np.full(n, value, dtype))


@pytest.mark.parametrize("start", range(0, 64, 5))
def test_zeros_next_to_strips(start):
    # Strips of 64 words that are all zero are skipped.
    for stop in range(start + 1, 200, 7):
        words = np.zeros(200, "u8")
        words[start:stop:3] = 2**63 - 5
        assert_round_trips(words.view("u2"))


@pytest.mark.parametrize("offset", range(8))
def test_a_block_that_begins_anywhere_in_memory(offset):
    data = np.random.default_rng(0).integers(0, 256, 1000, np.uint8)
    assert_round_trips(data[offset : offset + 900])


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.binary(max_size=40), st.integers(0, 700)), max_size=12),
    st.sampled_from([1, 2, 4, 8]),
)
def test_bytes_and_repetitions(runs, itemsize):
    data = b"".join(some + (some[-itemsize:] or b"\0") * n for some, n in runs)
    data = data[: len(data) // itemsize * itemsize]
    assert_round_trips(np.frombuffer(data, np.uint8).view(f"u{itemsize}").copy())


def assert_fills(lengths):
    assert lengths.min() >= 1
    assert lengths.max() <= 14  # four are written at once into 56 bits
    assert (1 << (14 - lengths)).sum() == 1 << 14


@pytest.mark.parametrize("kind", ["none", "one", "even", "steep", "heavy", "random"])
def test_code_lengths_fill_the_code(kind):
    # zlib rejects codes that are oversubscribed or incomplete.
    counts = {
        "none": np.zeros(286),
        "one": np.eye(286)[7] * 1e9,
        "even": np.full(286, 1000),
        "steep": np.minimum(2.0 ** np.arange(286), 2**50),
        "heavy": np.eye(286)[0] * 2**40 + 2**30,
        "random": np.random.default_rng(0).integers(0, 10000, 286),
    }[kind]
    lengths = np.empty(286, np.int64)
    code_lengths(counts.astype(np.int64), lengths)
    assert_fills(lengths)


@given(st.lists(st.integers(0, 2**40), min_size=286, max_size=286))
@settings(max_examples=100, deadline=None)
def test_code_lengths_of_any_counts(counts):
    lengths = np.empty(286, np.int64)
    code_lengths(np.array(counts), lengths)
    assert_fills(lengths)


def test_words_of_rare_bytes():
    # Each of these bytes takes 14 bits, and they start at any bit of a byte.
    random = np.random.default_rng(0)
    block = random.integers(0, 128, 1 << 16, np.uint8)
    for start in range(1000, len(block), 4000):
        block[start : start + 8] = random.integers(192, 256, 8)
    assert_round_trips(block)


@pytest.mark.parametrize("preset", ["standard", "scportrait", "sparcspy"])
def test_real_tiles_are_smaller_than_lzf_makes_them(preset):
    # The target is 1.05 times the size of scPortrait's file, which has one lzf chunk per plane.
    import imagecodecs

    from gpu_extract.backends import choose

    plan = make_plan([ht29()], Recipe.preset(preset))
    ours = theirs = 0
    for batch in batches(plan, BatchSize()):
        for tile in choose("cpu").extract(plan.slides[0].read(batch.box), batch, plan.program, None).images:
            ours += len(assert_round_trips(tile))
            theirs += sum(len(imagecodecs.lzf_encode(plane)) for plane in tile)
    assert ours < 1.02 * theirs


@pytest.mark.parametrize("n", [0, 1, 7, 300])
@pytest.mark.parametrize("size", [16, 9, 1])  # also tiles of an odd number of bytes
def test_blocks_that_share_a_code(n, size):
    # Most blocks differ from the sampled ones.
    random = np.random.default_rng(size)
    blocks = np.zeros((n, 2, 1, size, size), np.uint8)
    blocks[::3] = random.integers(0, 3, blocks[::3].shape)
    blocks[1::7] = random.integers(0, 256, blocks[1::7].shape)
    streams = deflate(blocks)
    assert [zlib.decompress(stream) for stream in streams] == [block.tobytes() for block in blocks]
    assert streams == deflate(blocks)
