"""The shim, tested by small kernels with known results, and by faulty kernels that it must detect."""

import numpy as np
import nvrtc
import pytest
from cuda_on_cpu import CompileError, CpuModule, KernelError, Launch, mutants, run_checked

ORDERS = ("forward", "reverse", "shuffled")

# One source for all correct kernels, to compile once.
CORRECT = r"""
#include <cuda_fp16.h>

// Sum over a block: shuffles, then dynamic shared memory, then one atomic addition.
template <class T>
__global__ void __launch_bounds__(128) total(const T* __restrict__ in, int n, float* out) {
    extern __shared__ unsigned char workspace[];
    float* warps = (float*)workspace;
    float sum = 0.0f;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += blockDim.x * gridDim.x) sum += (float)in[i];
    #pragma unroll
    for (int step = 16; step > 0; step >>= 1) sum += __shfl_down_sync(0xffffffffu, sum, step);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int w = 1; w < blockDim.x / 32; ++w) sum += warps[w];
        atomicAdd(out, sum);
    }
}

// An inclusive scan in one warp: all kinds of shuffles within segments of 16 lanes.
extern "C" __global__ void scan(const int* in, int* up, int* flipped, int* broadcast) {
    int value = in[threadIdx.x];
    flipped[threadIdx.x] = __shfl_xor_sync(~0u, value, 3);
    broadcast[threadIdx.x] = __shfl_sync(~0u, value, 5, 16);
    for (int step = 1; step < 16; step *= 2) {
        int below = __shfl_up_sync(~0u, value, step, 16);
        if (threadIdx.x % 16 >= step) value += below;
    }
    up[threadIdx.x] = value;
}

// Votes of a warp, of half a warp in a divergent branch, and of the block.
__global__ void votes(const unsigned char* in, unsigned* out) {
    const bool set = in[threadIdx.x];
    unsigned ballot = __ballot_sync(~0u, set);
    if (threadIdx.x % 32 < 16) {
        ballot += __ballot_sync(0x0000ffffu, set) << 16;
        __syncwarp(0x0000ffffu);
    }
    __syncwarp();
    out[threadIdx.x * 6 + 0] = ballot;
    out[threadIdx.x * 6 + 1] = __any_sync(~0u, set);
    out[threadIdx.x * 6 + 2] = __all_sync(~0u, set);
    out[threadIdx.x * 6 + 3] = __syncthreads_count(set);
    out[threadIdx.x * 6 + 4] = __syncthreads_or(set);
    out[threadIdx.x * 6 + 5] = __syncthreads_and(set);
}

__constant__ int one = 1;
__global__ void histogram(const unsigned* in, int n, unsigned* bins, unsigned* extremes, unsigned long long* sum) {
    __shared__ unsigned counts[8];
    if (threadIdx.x < 8) counts[threadIdx.x] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += blockDim.x * gridDim.x) {
        atomicAdd(&counts[in[i] % 8], one);
        atomicMax(&extremes[0], in[i]);
        atomicMin(&extremes[1], in[i]);
        atomicOr(&extremes[2], in[i]);
        atomicAnd(&extremes[3], in[i]);
        atomicAdd(sum, in[i]);
        for (unsigned old = extremes[4], seen; (seen = atomicCAS(&extremes[4], old, old + 1)) != old; old = seen) {}
    }
    __syncthreads();
    if (threadIdx.x < 8) atomicAdd(&bins[threadIdx.x], counts[threadIdx.x]);
    if (threadIdx.x == 0) atomicExch(&extremes[5], 7u);
    __threadfence();
}

__global__ void widen(const __half* in, float* out, unsigned short* bits) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    out[i] = __half2float(in[i]);
    bits[i] = __half_as_ushort(__ushort_as_half(__half_as_ushort(in[i])));
}
__global__ void narrow(const float* in, const double* in64, __half* out, __half* out64) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    out[i] = __float2half_rn(in[i]);
    out64[i] = __double2half(in64[i]);
}

__global__ void poison(unsigned char* out, int n) {
    extern __shared__ unsigned char workspace[];
    __shared__ unsigned char fixed[8];
    if (threadIdx.x < n) out[blockIdx.x * 16 + threadIdx.x] = workspace[threadIdx.x];
    if (threadIdx.x < 8) out[blockIdx.x * 16 + 8 + threadIdx.x] = fixed[threadIdx.x];
    if (threadIdx.x < n) workspace[threadIdx.x] = 0;
    if (threadIdx.x < 8) fixed[threadIdx.x] = 0;
}

__global__ void scalars(unsigned u, long long l, float f, bool b, __half h, uint2 pair, double* out) {
    out[0] = u; out[1] = l; out[2] = f; out[3] = b; out[4] = (float)h; out[5] = pair.x; out[6] = pair.y;
}

__global__ void bits(long long* out) {
    int i = 0;
    out[i++] = __popc(0xf0f0u) * 100 + __popcll(~0ull);
    out[i++] = __ffs(8) * 100 + __ffsll(1ll << 40);
    out[i++] = __clz(1) * 100 + __clzll(0);
    out[i++] = __brev(1u);
    out[i++] = __funnelshift_l(0x80000000u, 1u, 1);
    out[i++] = __funnelshift_r(0x80000000u, 1u, 31);
    out[i++] = max(1, 4000000000u);            // unsigned, as in CUDA
    out[i++] = min(-1ll, 5ll);
    out[i++] = (long long)(2 * min(0.25f, 3.0));
    out[i++] = __float2int_rn(2.5f) * 10 + __float2int_rn(3.5f);
    out[i++] = __float2int_rn(1e20f);
    out[i++] = __float_as_uint(1.0f) == 0x3f800000u && __uint_as_float(0x3f800000u) == 1.0f;
    out[i++] = __longlong_as_double(__double_as_longlong(-2.0)) == -2.0 && __int_as_float(__float_as_int(5.f)) == 5.f;
    const float a = 1.0f + 1.0f / 4096, exact = __fmaf_rn(a, a, -1.0f), rounded = __fadd_rn(__fmul_rn(a, a), -1.0f);
    out[i++] = exact != rounded;
    out[i++] = sizeof(float4) + alignof(ushort4) + make_uint4(1, 2, 3, 4).w;
    out[i++] = __activemask();
    out[i++] = __ldg(&out[0]) == out[0] && rintf(2.5f) == 2.0f && __double2float_rn(0.5) == 0.5f;
    assert(i == 17);
}

__global__ void where(unsigned* out) {
    const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    out[block * blockDim.x * blockDim.y * blockDim.z + thread] += block * 1000 + thread + warpSize;
}

// The other lanes of a warp do not wait for lanes that have exited.
__global__ void leave_early(int* out) {
    if (threadIdx.x >= 10) return;
    out[threadIdx.x] = __ballot_sync(~0u, 1);
}
"""
NAMES = (
    *("total<unsigned short>", "total<float>", "scan", "votes", "histogram", "widen", "narrow", "poison"),
    *("scalars", "bits", "where", "leave_early"),
)


@pytest.fixture(scope="module")
def correct():
    return CpuModule(CORRECT, NAMES)


@pytest.fixture(params=[(order, threads) for order in ORDERS for threads in (1, 2)], ids=str)
def kernel(correct, request):
    order, threads = request.param
    correct.config(order=order, threads=threads, seed=3)
    yield correct.get_function
    correct.config()


def test_sum_of_a_block(kernel):
    values = np.random.default_rng(1).integers(0, 100, 5000).astype(np.uint16)
    for name, array in (("total<unsigned short>", values), ("total<float>", values.astype(np.float32))):
        out = np.zeros(1, np.float32)
        kernel(name)((7,), (128,), (array, np.int32(5000), out), shared_mem=16)
        assert out[0] == values.sum()


def test_shuffles_within_segments(kernel):
    values = np.random.default_rng(2).integers(-50, 50, 32).astype(np.int32)
    up, flipped, broadcast = np.zeros((3, 32), np.int32)
    kernel("scan")((1,), (32,), (values, up, flipped, broadcast))
    assert (up.reshape(2, 16) == values.reshape(2, 16).cumsum(axis=1)).all()
    assert (flipped == values[np.arange(32) ^ 3]).all()
    assert (broadcast.reshape(2, 16) == values[[[5], [21]]]).all()


@pytest.mark.parametrize("fill", [0.0, 0.3, 1.0])
def test_votes(kernel, fill):
    given = (np.random.default_rng(3).random(64) < fill).astype(np.uint8)
    out = np.zeros((64, 6), np.uint32)
    kernel("votes")((1,), (64,), (given, out))
    warps = given.reshape(2, 32).astype(bool)
    ballots = np.packbits(warps, axis=1, bitorder="little").view(np.uint32)
    low = ((ballots & 0xFFFF) << 16) * (np.arange(32) < 16)
    assert (out[:, 0].reshape(2, 32) == (ballots + low).astype(np.uint32)).all()
    assert (out[:, 1].reshape(2, 32) == warps.any(axis=1, keepdims=True)).all()
    assert (out[:, 2].reshape(2, 32) == warps.all(axis=1, keepdims=True)).all()
    assert (out[:, 3:] == [given.sum(), given.any(), given.all()]).all()


def test_atomics(kernel):
    values = np.random.default_rng(4).integers(1, 1 << 30, 3000).astype(np.uint32)
    bins, total = np.zeros(8, np.uint32), np.zeros(1, np.uint64)
    extremes = np.array([0, 2**32 - 1, 0, 2**32 - 1, 0, 0], np.uint32)
    kernel("histogram")((5,), (64,), (values, np.int32(3000), bins, extremes, total))
    assert (bins == np.bincount(values % 8)).all()
    assert total[0] == values.sum(dtype=np.uint64)
    bitwise = [np.bitwise_or.reduce(values), np.bitwise_and.reduce(values)]
    assert extremes.tolist() == [values.max(), values.min(), *bitwise, 3000, 7]


def test_indices_of_three_dimensions(kernel):
    out = np.zeros((2 * 3 * 4, 5 * 6 * 7), np.uint32)
    kernel("where")((2, 3, 4), (5, 6, 7), (out,))
    assert (out == np.arange(24)[:, None] * 1000 + np.arange(210) + 32).all()


def test_shared_memory_is_poisoned_before_each_block(kernel):
    out = np.zeros((6, 16), np.uint8)
    kernel("poison")((6,), (32,), (out, np.int32(8)), 8)
    assert (out == 0xCD).all()


def test_lanes_that_ended_are_not_waited_for(kernel):
    out = np.zeros(10, np.int32)
    kernel("leave_early")((1,), (32,), (out,))
    assert (out == 0x3FF).all()


def test_half_widens_as_numpy_does(correct):
    given = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(np.float16)
    out, bits = np.zeros(1 << 16, np.float32), np.zeros(1 << 16, np.uint16)
    correct.get_function("widen")((256,), (256,), (given, out, bits))
    finite = ~np.isnan(given)
    assert np.isnan(out[~finite]).all()
    assert (out.view(np.uint32)[finite] == given.astype(np.float32).view(np.uint32)[finite]).all()
    assert (bits == given.view(np.uint16)).all()


def check_narrowing(correct, rng):
    n = 1 << 16
    halves = np.arange(n, dtype=np.uint32).astype(np.uint16).view(np.float16).astype(np.float64)
    with np.errstate(invalid="ignore"):
        between = halves + rng.choice([0.5, 0.499, 0.501, 0.0], n) * (np.nextafter(halves, np.inf) - halves)
        spaced = halves * (1 + rng.choice([0, 1, 1.01, 0.99], n) * 2.0**-11)  # on and around the ties
    anything = rng.integers(0, 1 << 32, n, dtype=np.uint64).astype(np.uint32).view(np.float32)
    for values in (halves, between, spaced, anything.astype(np.float64)):
        with np.errstate(over="ignore", invalid="ignore"):
            single = values.astype(np.float32)
            expected, expected64 = single.astype(np.float16), values.astype(np.float16)
        out, out64 = np.zeros((2, n), np.float16)
        correct.get_function("narrow")((256,), (256,), (single, values, out, out64))
        for given, wanted in ((out, expected), (out64, expected64)):
            number = ~np.isnan(wanted)
            assert np.isnan(given[~number]).all()
            assert (given.view(np.uint16)[number] == wanted.view(np.uint16)[number]).all()


# NumPy warns of signalling NaNs among the bit patterns.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_half_narrows_as_numpy_does(correct):
    check_narrowing(correct, np.random.default_rng(5))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_half_narrows_as_numpy_does_for_many_values(correct):
    for seed in range(50):
        check_narrowing(correct, np.random.default_rng(seed))


def test_scalar_arguments(correct):
    out = np.zeros(7)
    pair = np.array((8, 9), dtype="u4,u4")[()]
    given = (np.uint32(2**32 - 1), np.int64(-(2**40)), np.float32(0.5), np.bool_(True), np.float16(0.25), pair)
    correct.get_function("scalars")((1,), (1,), (*given, out))
    assert out.tolist() == [2**32 - 1, -(2**40), 0.5, 1, 0.25, 8, 9]


@pytest.mark.parametrize("fuse", [True, False])
def test_intrinsics(correct, fuse):
    module = correct if fuse else CpuModule(CORRECT[CORRECT.index("__global__ void bits") :], ["bits"], fuse=False)
    out = np.zeros(17, np.int64)
    module.get_function("bits")((1,), (1,), (out,))
    expected = [8 * 100 + 64, 4 * 100 + 41, 31 * 100 + 64, 1 << 31, 3, 3, 4000000000, -1, 0, 24, 2**31 - 1]
    assert out.tolist() == [*expected, 1, 1, 1, 16 + 8 + 4, 1, 1]


@pytest.mark.parametrize("arch", [75, 120])
def test_the_kernels_of_these_tests_compile_with_nvrtc(arch):
    assert list(nvrtc.compile(CORRECT, arch, NAMES)) == list(NAMES)
    assert list(nvrtc.compile(FAULTS, arch, list(EXPECTED))) == list(EXPECTED)
    assert list(nvrtc.compile(RELAY, arch, ["relay"])) == ["relay"]


# ---- errors of the launcher ----

IN, N, OUT = np.zeros(4, np.float32), np.int32(4), np.zeros(1, np.float32)
READ_ONLY = np.zeros(1, np.float32)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((IN, N), "takes 3 arguments"),
        ((IN, np.int64(4), OUT), r"argument 1 \(n\) is a number of i8; the kernel takes i4"),
        ((IN, np.uint32(4), OUT), "u4; the kernel takes i4"),
        ((IN, 4, OUT), "is a int; it must be a NumPy array or a NumPy scalar"),
        ((IN, np.array([4], np.int32), OUT), "is an array; the kernel takes a number"),
        ((IN.astype(np.float64), N, OUT), r"argument 0 \(in\) is an array of f8; the kernel takes f4"),
        ((np.float32(1), N, OUT), r"is a number of f4; the kernel takes \*cf4"),
        ((IN[::2], N, OUT), "not C-contiguous"),
        ((IN.astype(">f4"), N, OUT), "native byte order"),
        ((IN, N, READ_ONLY), r"argument 2 \(out\) is read-only"),
    ],
)
def test_arguments_of_a_wrong_type_raise(correct, args, message):
    with pytest.raises(TypeError, match=message):
        correct.get_function("total<float>")((1,), (32,), args, 16)


def test_constant_arrays_may_be_read_only(correct):
    correct.get_function("total<float>")((1,), (32,), (READ_ONLY, np.int32(1), OUT), 16)


@pytest.mark.parametrize(
    ("grid", "block", "shared", "message"),
    [
        ((0,), (32,), 0, "grid is"),
        ((1, 65536), (32,), 0, "grid is"),
        ((1, 1, 1, 1), (32,), 0, "grid is"),
        ((1,), (1, 1, 65), 0, "block is"),
        ((1,), (64, 32), 0, "2048 threads; the limit is 1024"),
        ((1,), (32,), 48 * 1024 + 1, "max_dynamic_shared_size_bytes"),
    ],
)
def test_impossible_launches_raise(correct, grid, block, shared, message):
    with pytest.raises(ValueError, match=message):
        correct.get_function("total<float>")(grid, block, (IN, N, OUT), shared)


def test_more_shared_memory_must_be_requested(correct):
    kernel = correct.get_function("total<float>")
    kernel.max_dynamic_shared_size_bytes = 227 * 1024
    kernel((1,), (32,), (IN, N, OUT), 227 * 1024)
    kernel.max_dynamic_shared_size_bytes = 300 * 1024
    with pytest.raises(ValueError, match="at most 232448"):
        kernel((1,), (32,), (IN, N, OUT), 228 * 1024)


def test_compile_errors_name_the_line():
    with pytest.raises(CompileError, match=r"wrong\.cu:12"):
        CpuModule('#line 12 "wrong.cu"\n__global__ void wrong() { missing(); }', ["wrong"])


def test_unsupported_source_and_options_raise():
    with pytest.raises(ValueError, match="extern __shared__"):
        CpuModule("__global__ void f() { extern __shared__ int a[], b[]; }", ["f"])
    with pytest.raises(ValueError, match="order is 'sorted'"):
        CpuModule("__global__ void f() {}", ["f"], order="sorted")


# ---- errors of kernels ----

FAULTS = r"""#line 1 "faults.cu"
__global__ void barrier_in_a_branch(int* out) {
    if (threadIdx.x < 40) __syncthreads();
    out[threadIdx.x] = 1;
}
__global__ void two_barriers(int* out) {
    if (threadIdx.x < 40) __syncthreads();
    else __syncthreads();
    out[threadIdx.x] = 1;
}
__global__ void return_before_barrier(int* out) {
    if (threadIdx.x == 50) return;
    __syncthreads();
    out[threadIdx.x] = 1;
}
__global__ void two_warp_operations(int* out) {
    if (threadIdx.x % 2) out[threadIdx.x] = __shfl_sync(~0u, 1, 0);
    else out[threadIdx.x] = __ballot_sync(~0u, 1);
}
__global__ void not_in_mask(int* out) {
    out[threadIdx.x] = __shfl_sync(0xfffffffeu, 1, 1);
}
__global__ void source_not_in_mask(int* out) {
    if (threadIdx.x < 16) out[threadIdx.x] = __shfl_down_sync(0xffffu, 1, 1);
}
__global__ void source_not_in_block(int* out) {
    out[threadIdx.x] = __shfl_sync(~0u, 1, 31);
}
__global__ void barrier_against_warp(int* out) {
    if (threadIdx.x < 5) __syncwarp();
    else __syncthreads();
}
__global__ void broken_promise(int* out) {
    assert(threadIdx.x != 3);
}
__global__ void shared_overrun(int* out) {
    extern __shared__ unsigned char workspace[];
    workspace[threadIdx.x + 20] = 1;
}
"""
EXPECTED = {
    "barrier_in_a_branch": r"faults\.cu:2: barrier not reached by all threads.*block \(0,0,0\)",
    "two_barriers": r"faults\.cu:[67]: threads wait at different barriers: others at faults\.cu:[67]; ",
    "return_before_barrier": r"faults\.cu:12: barrier not reached by all",
    "two_warp_operations": r"faults\.cu:1[67]: deadlock: .* is in the one at faults\.cu:1[67]; ",
    "not_in_mask": r"faults\.cu:20: the calling lane is not in the mask .* thread \((0|32),0,0\)",
    "source_not_in_mask": r"faults\.cu:23: shuffle from lane 16, which is not in the mask; .* thread \(15,0,0\)",
    "source_not_in_block": r"faults\.cu:26: shuffle from lane 31, which has ended or is not in the block",
    "barrier_against_warp": r"faults\.cu:29: deadlock: .* waits at the barrier at faults\.cu:30",
    "broken_promise": r"faults\.cu:33: assertion failed: threadIdx\.x != 3; block \(0,0,0\) thread \(3,0,0\)",
    "shared_overrun": r"wrote 0 bytes after the 32 bytes of dynamic shared memory; block",
}


@pytest.fixture(scope="module")
def faults():
    return CpuModule(FAULTS, list(EXPECTED))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", EXPECTED)
def test_faults_raise_with_their_location(faults, name, order):
    out = np.zeros(64, np.int32)
    block = (20,) if name in ("source_not_in_block", "shared_overrun") else (64,)
    shared = 32 if name == "shared_overrun" else 0
    with pytest.raises(KernelError, match=EXPECTED[name]):
        faults.get_function(name)((1,), block, (out,), shared, order=order)
    faults.get_function("barrier_against_warp")  # the module still works


def test_an_endless_loop_over_a_barrier_is_stopped():
    module = CpuModule("__global__ void no_end() { while (true) __syncthreads(); }", ["no_end"])
    with pytest.raises(KernelError, match=r"kernel\.cu:1: endless loop over a barrier"):
        module.get_function("no_end")((1,), (2,), ())


# ---- races ----

# Each thread passes its value to other threads: twice in shared memory, once within a warp.
RELAY = r"""#line 1 "relay.cu"
__global__ void relay(const int* in, int* out) {
    __shared__ int values[64];
    __shared__ int turned[64];
    values[threadIdx.x] = in[threadIdx.x];
    __syncthreads();  // this is a comment: __syncthreads();
    turned[threadIdx.x] = values[63 - threadIdx.x];
    __syncthreads();
    const int next = turned[(threadIdx.x + 1) % 64];
    values[threadIdx.x] = next;
    __syncwarp();
    out[threadIdx.x] = next + values[threadIdx.x ^ 1];
}
"""
VALUES = np.arange(64, dtype=np.int32) ** 2
RELAY_NAMES = (
    "relay.cu:5 without __syncthreads()",
    "relay.cu:7 without __syncthreads()",
    "relay.cu:10 without __syncwarp()",
)
MUTANTS = dict(mutants(RELAY))


def checked(source, check, name="relay", n=64, **options):
    launch = Launch(name, (1,), (64,), (VALUES, np.zeros(n, np.int32)))
    return run_checked(source, [name], [launch], check, **options)


def test_there_is_one_mutant_per_barrier():
    assert tuple(MUTANTS) == RELAY_NAMES
    for mutant in MUTANTS.values():
        assert mutant.count("\n") == RELAY.count("\n")
        assert mutant.count("__sync") == RELAY.count("__sync") - 1


@pytest.mark.parametrize("order", ORDERS)
def test_a_correct_kernel_has_the_same_result_in_all_orders(order):
    turned, out = np.roll(VALUES[::-1], -1), np.zeros(64, np.int32)
    CpuModule(RELAY, ["relay"], order=order).get_function("relay")((1,), (64,), (VALUES, out))
    assert (out == turned + turned[np.arange(64) ^ 1]).all()


@pytest.mark.parametrize("check", ["orders", "thread", "address"])
def test_a_correct_kernel_passes_all_checks(check):
    done = checked(RELAY, check)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", RELAY_NAMES)
def test_thread_orders_reveal_each_missing_barrier(name):
    done = checked(MUTANTS[name], "orders")
    assert "array 1 differs between thread orders" in done.stderr


def test_crashes_and_endless_loops_are_reported():
    crash = checked("__global__ void relay(const int* in, int* out) { *(int*)8 = 1; }", "orders")
    assert crash.returncode < 0
    spin = checked("__global__ void relay(const int* in, volatile int* out) { while (!out[0]); }", "orders", timeout=1)
    assert spin.returncode == 124
    assert "still running after 1 seconds" in spin.stderr


def test_launches_share_arrays():
    source = "__global__ void copy(const int* in, int* out) { out[threadIdx.x] = in[threadIdx.x]; assert(in[0] == 7); }"
    a, b, c = np.full(4, 7, np.int32), np.zeros(4, np.int32), np.zeros(4, np.int32)
    launches = [Launch("copy", (1,), (4,), arrays) for arrays in ((a, b), (b, c), (c, a))]
    assert run_checked(source, ["copy"], launches, "orders").returncode == 0
    assert "assertion failed" in run_checked(source, ["copy"], launches[1:], "orders").stderr


LINES = {RELAY_NAMES[0]: ("4", "6"), RELAY_NAMES[1]: ("6", "8"), RELAY_NAMES[2]: ("9", "11")}


@pytest.mark.parametrize("name", RELAY_NAMES)
def test_thread_sanitizer_names_both_lines_of_a_race(name):
    done = checked(MUTANTS[name], "thread")
    assert done.returncode == 66, done.stderr
    assert "data race" in done.stderr
    for line in LINES[name]:
        assert f"relay.cu:{line}" in done.stderr


def test_thread_sanitizer_synchronizes_only_the_lanes_of_a_mask():
    # Two halves of a warp synchronize separately: correct within a half, a race between the halves.
    source = r"""#line 1 "halves.cu"
    __global__ void relay(const int* in, int* out) {
        __shared__ int values[64];
        const unsigned lane = threadIdx.x % 32, mask = lane < 16 ? 0x0000ffffu : 0xffff0000u;
        values[threadIdx.x] = in[threadIdx.x];
        if (lane < 16) __syncwarp(mask);
        else __syncwarp(mask);
        out[threadIdx.x] = values[threadIdx.x ^ FLIP];
    }"""
    correct, racing = (checked(source.replace("FLIP", flip), "thread") for flip in ("3", "16"))
    assert correct.returncode == 0, correct.stderr
    assert racing.returncode == 66
    assert "halves.cu:4" in racing.stderr
    assert "halves.cu:7" in racing.stderr


OVERRUNS = r"""#line 1 "overruns.cu"
__device__ __noinline__ void store(int* address) { *address = 1; }
__global__ void overruns(const int* in, int* out) {
    __shared__ int values[63];
    extern __shared__ unsigned char workspace[];
    const int i = threadIdx.x;
    if (WHICH == 0) values[i + (i > 62)] = 1;
    if (WHICH == 1) out[i] = in[i];
    if (WHICH == 2) out[0] = workspace[i];
    if (WHICH == 3) out[0] = 1 << (i + 1);
    if (WHICH == 4) store(&values[0] + i);
    if (WHICH == 5) out[0] = in[i];
}
"""


@pytest.mark.parametrize(
    ("which", "error"),
    [
        (0, "out of bounds"),
        (1, "heap-buffer-overflow"),
        (2, "heap-buffer-overflow"),
        (3, "shift exponent"),
        (4, "global-buffer-overflow"),
        (5, None),
    ],
)
def test_address_sanitizer_reports_overruns(which, error):
    source = OVERRUNS.replace("WHICH", str(which))
    done = checked(source, "address", "overruns", n=63)
    if error is None:
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode != 0
        assert error in done.stderr
        assert f"overruns.cu:{which + 6}" in done.stderr
