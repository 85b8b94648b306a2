"""The simulator of machine code (tests/sass): small kernels with known results, and kernels with errors."""

from functools import cache

import numpy as np
import pytest
from sass.building import cubin_of, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"machine code cannot be run: {why_not()}")

N = 256


@cache
def program(source, expression):
    from sass.program import Program

    return Program(cubin_of(source, expression), expression)


def run(source, *arguments, threads=N, **options):
    """Run the kernel `k` of a source in one block."""
    return program(source, "k").run(threads, 1, arguments, **options)


def fails(message, source, *arguments, **options):
    from sass.program import MachineError

    with pytest.raises(MachineError, match=message) as caught:
        run(source, *arguments, **options)
    assert "\n" not in str(caught.value)


# Values. Each expression of the integers a, b, c and the floats x, y is compiled in one kernel, in this order.

a, b, c = (np.random.default_rng(seed).integers(0, 2**32, N).astype(np.uint32) for seed in (1, 2, 3))
a[:8] = b[8:16] = 0, 1, 2**31, 2**32 - 1, 0x80, 0x7FFFFFFF, 5, 255
x, y = (np.random.default_rng(seed).normal(0, 50, N).astype(np.float32) for seed in (4, 5))
x[:6] = 0, -0.0, 1, np.inf, -np.inf, 2.5
lane = np.arange(N) % 32
u64 = (a.astype(np.uint64) << np.uint64(32)) | b
signed = a.astype(np.int32)
warps = a.reshape(-1, 32)


def bits(values):
    return np.ascontiguousarray(values).view(np.uint32)


def half_bits(values):
    return values.astype(np.float16).view(np.uint16).astype(np.uint32)


def low_and_high(values):
    """Fold 64-bit values as the kernel does."""
    values = np.ascontiguousarray(values).view(np.uint64)
    return (values ^ (values >> np.uint64(32))).astype(np.uint32)


def per_warp(values):
    return np.repeat(values, 32).astype(np.uint32)


with np.errstate(all="ignore"):
    EXPRESSIONS = {
        "a + b * c": a + b * c,
        "__umulhi(a, b)": ((a.astype(np.uint64) * b) >> np.uint64(32)).astype(np.uint32),
        "__mulhi((int)a, (int)b)": ((signed.astype(np.int64) * b.astype(np.int32)) >> 32).astype(np.uint32),
        "fold(wide + c * 3ull)": low_and_high(u64 + c.astype(np.uint64) * np.uint64(3)),
        "fold(wide - c)": low_and_high(u64 - c),
        "fold(wide << (c & 63))": low_and_high(u64 << (c & 63).astype(np.uint64)),
        "fold((long long)wide >> (c & 63))": low_and_high(u64.view(np.int64) >> (c & 63).astype(np.int64)),
        "wide < c * 70000ull": (u64 < c * np.uint64(70000)).astype(np.uint32),
        "(long long)wide < (int)c": (u64.view(np.int64) < c.astype(np.int32)).astype(np.uint32),
        "wide / (c | 1)": (u64 // (c | 1)).astype(np.uint32),
        "a % (b | 1)": a % (b | 1),
        "(int)a / ((int)b | 1)": np.trunc(signed / (b | 1).view(np.int32).astype(np.float64))
        .astype(np.int64)
        .astype(np.uint32),
        "min((int)a, (int)b) + max(a, c)": np.minimum(signed, b.astype(np.int32)).astype(np.uint32) + np.maximum(a, c),
        "abs((int)a)": np.abs(signed.astype(np.int64)).astype(np.uint32),
        "__funnelshift_r(a, b, c)": np.where(c % 32, a >> (c % 32) | b << ((32 - c % 32) % 32), a).astype(np.uint32),
        "(a & b) | (~a & c)": (a & b) | (~a & c),
        "(int)a >> (c & 31)": (signed >> (c & 31).astype(np.int32)).astype(np.uint32),
        "__byte_perm(a, b, 0x6420)": (a & 255) | (a >> 8 & 0xFF00) | (b & 255) << 16 | (b >> 16 & 255) << 24,
        "(u32)(signed char)a + (unsigned short)b": a.astype(np.int8).astype(np.uint32) + b.astype(np.uint16),
        "__brev(a)": np.array([int(f"{v:032b}"[::-1], 2) for v in a], np.uint32),
        "__popc(a)": np.array([v.bit_count() for v in a.tolist()], np.uint32),
        "__clz((int)b)": np.array([32 - v.bit_length() for v in b.tolist()], np.uint32),
        "__ffs((int)a)": np.array([(v & -v).bit_length() for v in a.tolist()], np.uint32),
        "__float_as_uint(x + y * 3.0f)": bits((x.astype(np.float64) + y.astype(np.float64) * 3).astype(np.float32)),
        "__float_as_uint(x / y)": bits(x / y),
        "__float_as_uint(__saturatef(x * 0.01f))": bits(np.clip(x * np.float32(0.01), 0, 1) + np.float32(0)),
        "__float_as_uint(fminf(x, y))": bits(np.minimum(x, y)),
        "x < y ? a : b": np.where(x < y, a, b),
        "!(x >= y) || x != x": (x < y).astype(np.uint32),
        "(u32)(int)rintf(y)": np.rint(y).astype(np.int32).astype(np.uint32),
        "(u32)(int)floorf(y) + (u32)(int)ceilf(y)": (np.floor(y) + np.ceil(y)).astype(np.int32).astype(np.uint32),
        "__float_as_uint((float)a + (float)(int)b)": bits(a.astype(np.float32) + b.astype(np.int32).astype(np.float32)),
        "__float_as_uint((float)wide)": bits(u64.astype(np.float32)),
        "fold((u64)__double_as_longlong((double)x * y + 1.5))": low_and_high(x.astype(np.float64) * y + 1.5),
        "fold((u64)__double_as_longlong((double)a / (b | 1)))": low_and_high(a.astype(np.float64) / (b | 1)),
        "(u32)floor((double)y * y)": np.floor(y.astype(np.float64) * y).astype(np.uint32),
        "__float_as_uint((float)((double)y / 3.0))": bits((y.astype(np.float64) / 3).astype(np.float32)),
        "(u32)__half_as_ushort(__float2half_rn(y))": half_bits(y),
        "(u32)__half_as_ushort(__double2half((double)y * y))": half_bits(y.astype(np.float64) ** 2),
        "__float_as_uint(__half2float(__ushort_as_half((unsigned short)(a & 0x7bff))))": bits(
            (a & 0x7BFF).astype(np.uint16).view(np.float16).astype(np.float32)
        ),
        "__ballot_sync(ALL, a & 1)": per_warp([sum((int(v) & 1) << k for k, v in enumerate(warp)) for warp in warps]),
        "__any_sync(ALL, a == 5u) + 2 * __all_sync(ALL, b != 77u)": per_warp([(warp == 5).any() + 2 for warp in warps]),
        "__reduce_add_sync(ALL, a)": per_warp(warps.sum(axis=1, dtype=np.uint32)),
        "__reduce_min_sync(ALL, a)": per_warp(warps.min(axis=1)),
        "(u32)__reduce_max_sync(ALL, (int)a)": per_warp(warps.view(np.int32).max(axis=1).view(np.uint32)),
        "__reduce_or_sync(ALL, a & 0xff) ^ __reduce_and_sync(ALL, a | 15) ^ __reduce_xor_sync(ALL, a)": per_warp(
            np.bitwise_or.reduce(warps & 255, 1)
            ^ np.bitwise_and.reduce(warps | 15, 1)
            ^ np.bitwise_xor.reduce(warps, 1)
        ),
        "__shfl_sync(ALL, a, 3)": per_warp(warps[:, 3]),
        "__shfl_xor_sync(ALL, a, 5)": warps[:, np.arange(32) ^ 5].ravel(),
        "__shfl_up_sync(ALL, a, 3)": warps[:, [k - 3 if k >= 3 else k for k in range(32)]].ravel(),
        "__shfl_down_sync(ALL, a, 7, 16)": warps[:, [k + 7 if k % 16 + 7 < 16 else k for k in range(32)]].ravel(),
        "__match_any_sync(ALL, a & 3)": np.array(
            [sum(((int(w) ^ int(v)) & 3 == 0) << k for k, w in enumerate(warp)) for warp in warps for v in warp],
            np.uint32,
        ),
    }

KERNEL = """
#include <cuda_fp16.h>
typedef unsigned int u32;
typedef unsigned long long u64;
#define ALL 0xffffffffu
__device__ __forceinline__ u32 fold(u64 v) {{ return (u32)(v ^ v >> 32); }}
extern "C" __global__ void k(const u32 *as, const u32 *bs, const u32 *cs, const float *xs, const float *ys, u32 *out) {{
    const int i = threadIdx.x;
    const u32 a = as[i], b = bs[i], c = cs[i];
    const float x = xs[i], y = ys[i];
    const u64 wide = (u64)a << 32 | b;
    {statements}
}}
"""


@pytest.fixture(scope="module")
def values():
    statements = "\n    ".join(f"out[{k} * {N} + i] = {text};" for k, text in enumerate(EXPRESSIONS))
    out = np.zeros((len(EXPRESSIONS), N), np.uint32)
    run(KERNEL.format(statements=statements), a, b, c, x, y, out)
    return dict(zip(EXPRESSIONS, out, strict=True))


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_has_the_value_that_numpy_gives(values, expression):
    found, expected = values[expression], EXPRESSIONS[expression]
    assert expected.dtype == np.uint32
    wrong = np.flatnonzero(found != expected)
    assert not len(wrong), (wrong[:5], [hex(v) for v in found[wrong[:5]]], [hex(v) for v in expected[wrong[:5]]])


# Memory and atomic operations


def test_loads_and_stores_of_all_widths():
    source = """
    extern "C" __global__ void k(const int4 *in, int4 *out, const short *halves, int *wide, unsigned char *bytes) {
        __shared__ int4 tile[256];
        tile[threadIdx.x] = in[threadIdx.x];
        __syncthreads();
        const int4 v = tile[255 - threadIdx.x];
        out[threadIdx.x] = v;
        wide[threadIdx.x] = halves[threadIdx.x] + (signed char)bytes[threadIdx.x];
        bytes[threadIdx.x] = (unsigned char)v.x;
        ((int2 *)out)[512 + threadIdx.x] = make_int2(v.x, v.y);
    }"""
    rng = np.random.default_rng(0)
    given = rng.integers(-(2**31), 2**31, (N, 4)).astype(np.int32)
    out, wide = np.zeros((2 * N, 4), np.int32), np.zeros(N, np.int32)
    halves, octets = rng.integers(-(2**15), 2**15, N).astype(np.int16), rng.integers(0, 256, N).astype(np.uint8)
    expected = halves + octets.view(np.int8).astype(np.int32)
    run(source, given, out, halves, wide, octets)
    assert np.array_equal(out[:N], given[::-1])
    assert np.array_equal(out[N : N + N // 2].reshape(N, 2), given[::-1, :2])
    assert np.array_equal(wide, expected)
    assert np.array_equal(octets, given[::-1, 0].astype(np.uint8))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_atomic_operations(seed):
    source = """
    typedef unsigned long long u64;
    extern "C" __global__ void k(const unsigned *in, u64 *out, unsigned *counts) {
        __shared__ u64 least, most;
        __shared__ unsigned sum, low, high, bins[4], bits;
        if (threadIdx.x == 0) { least = ~0ull; most = 0; sum = 0; low = ~0u; high = 0; bits = 0; }
        if (threadIdx.x < 4) bins[threadIdx.x] = 0;
        __syncthreads();
        const unsigned v = in[threadIdx.x];
        atomicMin(&least, (u64)v << 20); atomicMax(&most, (u64)v << 20);
        atomicAdd(&sum, v); atomicMin(&low, v); atomicMax(&high, v);
        atomicAdd(&bins[v & 3], 1u); atomicOr(&bits, v & 0xff00);
        atomicAdd(&out[0], (u64)v); atomicMax(&out[1], (u64)v);
        atomicOr(&out[2], (u64)v); atomicCAS(&out[3], 0ull, (u64)v);
        const unsigned place = atomicAdd(&counts[9], 1u);
        counts[10 + place] = v;
        __syncthreads();
        if (threadIdx.x == 0) {
            out[4] = least; out[5] = most;
            counts[0] = sum; counts[1] = low; counts[2] = high; counts[3] = bits;
            for (int i = 0; i < 4; ++i) counts[4 + i] = bins[i];
        }
    }"""
    out, counts = np.zeros(6, np.uint64), np.zeros(10 + N, np.uint32)
    run(source, a, out, counts, seed=seed)
    assert out[:3].tolist() == [a.sum(dtype=np.uint64), a.max(), np.bitwise_or.reduce(a)]
    assert out[3] in a
    assert out[4:].tolist() == [int(a.min()) << 20, int(a.max()) << 20]
    bins = np.bincount(a & 3, minlength=4).tolist()
    assert counts[:8].tolist() == [a.sum(dtype=np.uint32), a.min(), a.max(), np.bitwise_or.reduce(a & 0xFF00), *bins]
    assert counts[9] == N
    assert sorted(counts[10:].tolist()) == sorted(a.tolist())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_lanes_that_part_meet_again(seed):
    source = """
    __device__ __noinline__ unsigned odd(unsigned v) { while (v > 7u) v = v & 1u ? v / 3u : v - 5u; return v; }
    extern "C" __global__ void k(const unsigned *in, unsigned *out) {
        unsigned v = in[threadIdx.x] & 1023u, turns = 0;
        if (v & 1u) v = odd(v); else if (v & 2u) return;
        for (; v > 2u; ++turns) { if (v & 1u) v = v * 3u + 1u & 255u; else v >>= 1; if (turns > v) break; }
        out[threadIdx.x] = turns * 1000u + v;
    }"""

    def expected(v):
        v &= 1023
        if v & 1:
            while v > 7:
                v = v // 3 if v & 1 else v - 5
        elif v & 2:
            return 0
        turns = 0
        while v > 2:
            v = (v * 3 + 1) & 255 if v & 1 else v >> 1
            if turns > v:
                break
            turns += 1
        return turns * 1000 + v

    out = np.zeros(N, np.uint32)
    run(source, a, out, seed=seed)
    assert out.tolist() == [expected(v) for v in a.tolist()]


def test_barriers_that_count_and_warps_that_leave():
    source = """
    extern "C" __global__ void k(const unsigned *in, int *out) {
        if (threadIdx.x >= 192) return;
        const int any = __syncthreads_or(in[threadIdx.x] == 255u);
        const int none = __syncthreads_or(in[threadIdx.x] == 12345u);
        out[threadIdx.x] = (any != 0) + 2 * (none != 0);
    }"""
    out = np.full(N, 7, np.int32)
    given = np.zeros(N, np.uint32)
    given[77] = 255
    for seed in range(3):
        run(source, given, out, seed=seed)
        assert out.tolist() == [1] * 192 + [7] * 64


def test_counts_of_shared_and_global_memory():
    source = """
    extern "C" __global__ void k(const float *in, float *out, int stride) {
        __shared__ float s[32 * 33];
        s[threadIdx.x * stride] = in[threadIdx.x * 8];
        __syncwarp();
        out[threadIdx.x] = s[threadIdx.x * stride];
    }"""
    from sass.program import COUNTS

    for stride, wavefronts in ((1, 2), (2, 4), (32, 64), (33, 2)):
        given, out = np.arange(256, dtype=np.float32), np.zeros(32, np.float32)
        given, out = (each for each in np.split(aligned(np.concatenate([given, out])), [256]))
        done = run(source, given, out, np.int32(stride), threads=32)
        counts = dict(zip(COUNTS, done.counts.sum(axis=0).tolist(), strict=True))
        assert out.tolist() == given[::8].tolist()
        assert counts["shared_wavefronts"] == wavefronts
        assert counts["bank_conflicts"] == wavefronts - 2
        assert counts["sectors_read"] == 32
        assert counts["sectors_written"] == 4
        assert counts["lanes"] == 32 * counts["warps"]


def aligned(array):
    """Return a copy that begins at a multiple of 128 bytes."""
    memory = np.zeros(array.nbytes + 128, np.uint8)
    begin = -memory.ctypes.data % 128
    copy = memory[begin : begin + array.nbytes].view(array.dtype)
    copy[:] = array
    return copy


# Errors. The simulator is worth something only if it notices them.

ACCESS = """
extern "C" __global__ void k(int *out, long long n, int *small) {
    extern __shared__ int4 tile[];
    char *bytes = (char *)tile;
    const int i = threadIdx.x;
    const bool last = i == 255;
    if (n == 1) *(int4 *)(bytes + 16 * i + 8) = make_int4(1, 2, 3, 4);
    if (n == 2) *(int4 *)(bytes + 16 * i + 16) = make_int4(1, 2, 3, 4);
    if (n == 3 && last) tile[i].x = tile[0].y;
    if (n == 4) ((int2 *)((char *)out + 4))[i] = make_int2(1, 2);
    if (n == 5) small[i - 1] = 1;
    if (n == 6) out[i] = small[i];
    if (n == 7) *(int *)(4 * n) = 1;
    if (n == 9) __trap();
    if (n == 8) atomicAdd(&tile[i].x, 1);
    out[i] = i;
}"""
FAULTS = {
    1: r"k: @?!?P?\d? ?STS.128 .* at 0x[0-9a-f]+ \(kernel.cu:\d+\) writes 16 bytes of shared memory at 0x408, "
    "which is not a multiple of 16; lane 0 of warp 0 of block 0",
    2: "STS.128 .* writes 16 bytes of shared memory at 0x1400, outside of the block's 4096 bytes.*lane 31 of warp 7",
    3: "k: .* uses a value that the load at 0x[0-9a-f]+ read from shared memory at 0x404 that was never written",
    4: "STG.E.64 .* writes 8 bytes of global memory at 0x[0-9a-f]+, which is not a multiple of 8",
    5: "STG.E .* writes 4 bytes .*, 4 bytes before the beginning of argument 2, an array of 64 bytes; lane 0",
    6: "LDG.E.* reads 4 bytes .*, 4 bytes past the end of argument 2, an array of 64 bytes; lane 16 of warp 0",
    7: "writes 4 bytes of global memory at 0x1c, ",
    8: "ATOMS.POPC.INC.32 .* updates 4 bytes of shared memory at 0x400, which was never written",
    9: "BPT.TRAP 0x1 .* stops the kernel",
}


@pytest.mark.parametrize("n", FAULTS)
def test_a_wrong_access_is_an_error_with_its_place(n):
    memory = aligned(np.zeros(4096, np.int32))
    out, small = memory[1024:1280], memory[:16]
    fails(FAULTS[n], ACCESS, out, np.int64(n), small, shared_nbytes=N * 16)


def test_a_wide_load_may_include_what_was_never_written():
    source = """
    struct alignas(16) Part { int a, b, c; };
    extern "C" __global__ void k(int *out) {
        __shared__ Part part[2];
        if (threadIdx.x == 0) part[0].a = 5, part[0].b = 6, part[0].c = 7;
        __syncthreads();
        const int4 v = *(const int4 *)part;
        out[threadIdx.x] = v.x + v.y + v.z;
    }"""
    out = np.zeros(N, np.int32)
    run(source, out)
    assert out.tolist() == [18] * N
    fails("uses a value .* read from shared memory at 0x40c that was never written", source.replace("v.z", "v.w"), out)


@pytest.mark.parametrize("n", [32, 8])
def test_a_value_that_was_never_written_may_be_loaded_but_not_used(n):
    source = """
    extern "C" __global__ void k(int *out, int n) {
        __shared__ int list[32];
        if (threadIdx.x < 8) list[threadIdx.x] = threadIdx.x;
        __syncthreads();
        const int v = list[threadIdx.x & 31] ^ 1;  // may be loaded before it is known whether it is needed
        out[threadIdx.x] = (threadIdx.x & 31) < n ? v : -1;
    }"""
    out = np.zeros(N, np.int32)
    if n == 8:
        run(source, out, np.int32(n))
        assert out.tolist() == [k ^ 1 if k < 8 else -1 for k in lane.tolist()]
    else:
        fails("uses a value that .* was never written", source, out, np.int32(n))


def test_the_same_kernel_without_a_wrong_access():
    out = np.zeros(N, np.int32)
    run(ACCESS, out, np.int64(0), np.zeros(16, np.int32), shared_nbytes=N * 16)
    assert out.tolist() == list(range(N))


RACES = """
extern "C" __global__ void k(int *out, int n) {
    __shared__ int s[256], sum;
    const int i = threadIdx.x;
    if (i == 0) sum = 0;
    s[i] = i;
    if (n != 1) __syncthreads();
    const int other = s[i ^ 64];
    if (n != 2) __syncthreads();
    s[i ^ 128] = other;
    if (n != 3) __syncthreads();
    atomicAdd(&sum, s[i]);
    if (n != 4) __syncthreads();
    out[i] = sum;
}"""


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_a_missing_barrier_is_an_error_in_every_order(n, seed):
    fails(
        "shared memory at 0x[0-9a-f]+.* without a barrier in between|was never written",
        RACES, np.zeros(N, np.int32), np.int32(n), seed=seed,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
def test_the_same_kernel_with_all_barriers(seed):
    out = np.zeros(N, np.int32)
    run(RACES, out, np.int32(0), seed=seed)
    assert out.tolist() == [N * (N - 1) // 2] * N


def test_a_barrier_that_not_all_lanes_reach():
    source = 'extern "C" __global__ void k(int *out) { if (out[threadIdx.x]) __syncthreads(); out[threadIdx.x] = 2; }'
    odd = (np.arange(N) % 2).astype(np.int32)
    fails("BAR.SYNC.* is a barrier that not all lanes of the warp reach together", source, odd)


def test_a_barrier_that_not_all_warps_reach():
    source = """
    extern "C" __global__ void k(int *out) {
        if (threadIdx.x < 128) asm volatile("bar.sync 1, 256;");
        else asm volatile("bar.sync 2, 256;");
        out[threadIdx.x] = 1;
    }"""
    for seed in (0, 1):
        out = np.zeros(N, np.int32)
        fails("a deadlock: no warp can go on; warp 0 waits at a barrier, warp 1", source, out, seed=seed)


def test_a_shuffle_from_a_lane_that_is_not_there():
    source = """
    extern "C" __global__ void k(int *out) {
        if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0xffff, out[threadIdx.x], 20);
    }"""
    fails("reads a value of lane 20, which does not take part in the shuffle", source, np.zeros(N, np.int32))


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ('asm("nanosleep.u32 100;");', r"NANOSLEEP .* at 0x[0-9a-f]{4}, encoding 0x[0-9a-f]{32}: the instruction"),
        ("out[0] = __float_as_int(__fadd_rz(__int_as_float(out[1]), 1.5f));", "FADD.*: the modifier RZ is not known"),
        ('asm("mov.u32 %0, %%smid;" : "=r"(out[0]));', "the operand SR_VIRTUALSMID is not known"),
    ],
)
def test_what_is_not_known_is_an_error(statement, message):
    from sass.instructions import UnknownInstructionError

    with pytest.raises(UnknownInstructionError, match=message):
        run(f'extern "C" __global__ void k(int *out) {{ {statement} }}', np.zeros(4, np.int32))


def test_a_kernel_that_is_not_in_the_cubin():
    from sass.disassembly import DisassemblyError, disassemble

    cubin = cubin_of(RACES, "k")
    with pytest.raises(DisassemblyError, match="the cubin has no kernel missing"):
        disassemble(cubin.code, "missing")
    with pytest.raises(DisassemblyError):
        disassemble(b"not a cubin", "k")


def test_the_tables_of_python_and_of_the_simulator_have_the_same_instructions():
    from sass.instructions import TABLE
    from sass.program import _opcode

    shapes = {"LEA.HI", "LEA.HI.SX32", "LEA.HI.X.SX32"}  # other operands, the same function
    assert [name for name in TABLE if name not in shapes and _opcode(name) < 0] == []


def test_time_is_modelled_without_changing_results():
    one, other = aligned(np.zeros(N, np.int32)), aligned(np.zeros(N, np.int32))
    plain = run(RACES, one, np.int32(0))
    timed = run(RACES, other, np.int32(0), resident=1)
    assert np.array_equal(one, other)
    assert plain.cycles is None
    assert timed.cycles > 100
    assert np.array_equal(plain.counts, timed.counts)
