// Two exact quantiles of each of several channels from their extreme values, interpolated linearly as numpy.quantile
// does: for quantiles so close to 0 and 1 that few pixels lie beyond them.
//
// Each pair of threads finds the extremes of its pixels. The r-th smallest of these minima bounds the r-th smallest
// pixel: only pixels strictly below it matter, and ties need no room. They are collected in a list, in which the rank
// is found. A cell whose list overflows must be computed in another way.

#pragma once
#include "quads.cuh"
#include "limits.cuh"
#include "warp.cuh"

constexpr int GROUP = 4;               // channels whose quantiles are found together
constexpr int N_KEYS = THREADS / 2;    // extremes: one for two threads
constexpr int MAX_LISTED = 256;        // pixels beyond a bound

// State of the search, in shared memory. Sides: 0 is the lower quantile, 1 the upper one. On side 1 all bits of a key
// are inverted, so that the wanted keys are the smallest ones, too.
struct Extremes {
    u32 keys[GROUP][2][N_KEYS];
    u32 listed[GROUP][2][MAX_LISTED];
    u32 n_listed[GROUP][2];
    u32 bound[GROUP][2];
    double limits[GROUP][2];
};

// What a quantile depends on: the key of a rank, counted from the quantile's side, and the key of the next rank.
struct Position {
    u32 rank;
    double fraction;  // of the way from the smaller to the larger value
};

__device__ __forceinline__ Position position_of(double quantile, u32 count, int side) {
    const double at = quantile * (double)(count - 1), below = floor(at);
    if (side == 0) return {(u32)below, at - below};
    // From above, the first of the two is the larger value, unless the quantile is the largest value itself.
    const u32 rank = count - 1 - (u32)below;
    return {max(rank, 1u) - 1, rank ? at - below : 1.0};
}

// Return the largest key of n_bits bits.
__device__ __forceinline__ u32 top_of(int n_bits) { return 0xffffffffu >> (32 - n_bits); }

// Return the k-th smallest (k >= 1) of the first n of 32 PER_LANE keys of n_bits bits; by one warp. Keys beyond n count
// as the largest. The bits of the result are decided from the top.
template <int PER_LANE>
__device__ __forceinline__ u32 kth_smallest(const u32 *keys,  // (32 PER_LANE,)
                                            u32 n, u32 k, int n_bits) {
    const u32 lane = threadIdx.x & 31;
    u32 key[PER_LANE];
#pragma unroll
    for (int i = 0; i < PER_LANE; ++i) key[i] = 32 * i + lane < n ? keys[32 * i + lane] : ALL_LANES;
    u32 found = 0;
#pragma unroll 1
    for (u32 bit = 1u << (n_bits - 1); bit; bit >>= 1) {
        const u32 trial = found | bit;
        u32 n_below = 0;
#pragma unroll
        for (int i = 0; i < PER_LANE; ++i) n_below += key[i] < trial;
        if (warp_sum(n_below) < k) found = trial;
    }
    return found;
}

// Return the smallest of the first n keys that is larger than `key`, or `none`, and set n_up_to to the number of keys
// up to `key`; by one warp.
__device__ __forceinline__ u32 next_larger(const u32 *keys, u32 n, u32 key, u32 none, u32 &n_up_to) {
    u32 next = none, count = 0;
    for (u32 i = threadIdx.x & 31; i < n; i += 32) {
        if (keys[i] > key) next = min(next, keys[i]);
        else ++count;
    }
    n_up_to = warp_sum(count);
    return warp_min(next);
}

// Find one limit of one channel from its list; by one warp. Set `is_overflow` if the list or the rank is too large.
template <typename ValueOf>
__device__ __forceinline__ void find_limit(Extremes &shared, int c, int side, u32 count, const Position &at,
                                           int n_bits, const ValueOf &value_of, int &is_overflow) {
    const u32 n = shared.n_listed[c][side], bound = shared.bound[c][side], flip = side ? top_of(n_bits) : 0u;
    const u32 *listed = shared.listed[c][side];
    const bool is_first = (threadIdx.x & 31) == 0;
    if (n > MAX_LISTED || at.rank + 2 > N_KEYS) {
        if (is_first) {
            atomicExch(&is_overflow, 1);
            shared.limits[c][side] = 0.0;
        }
        return;
    }
    // All keys that are not listed and matter equal the bound.
    u32 key = bound, next = bound;
    if (at.rank < n) {
        key = n <= 128 ? kth_smallest<4>(listed, n, at.rank + 1, n_bits)
                       : kth_smallest<8>(listed, n, at.rank + 1, n_bits);
        u32 n_up_to;
        next = next_larger(listed, n, key, bound, n_up_to);
        if (at.rank + 1 < n_up_to || at.rank + 1 == count) next = key;
    }
    const double a = value_of(key ^ flip), b = value_of(next ^ flip);
    if (is_first) shared.limits[c][side] = side ? interpolate(b, a, at.fraction) : interpolate(a, b, at.fraction);
}

// Add a key to the list of a side; a list that is full only counts it.
__device__ __forceinline__ void add_to_list(Extremes &shared, int c, int side, u32 key) {
    const u32 place = atomicAdd(&shared.n_listed[c][side], 1u);
    if (place < MAX_LISTED) shared.listed[c][side][place] = key;
}

// Pairs of threads are half a warp apart: their pixels are not neighbours, so that a dark spot is not in few pairs.
__device__ __forceinline__ int pair_of_thread() { return (int)((threadIdx.x >> 5 << 4) | (threadIdx.x & 15)); }
__device__ __forceinline__ int is_second() { return (int)(threadIdx.x >> 4 & 1); }

// Find the smallest and the largest key of a channel for each pair of threads.
template <typename ForEach>
__device__ __forceinline__ void find_extremes(Extremes &shared, int c, u32 top, const ForEach &for_each) {
    u32 smallest = top, largest = 0;
    for_each([&](const u32 (&key)[4], u32 bits) {
#pragma unroll
        for (int k = 0; k < 4; ++k)
            if (bits >> k & 1u) {
                smallest = min(smallest, key[k]);
                largest = max(largest, key[k]);
            }
    });
    smallest = min(smallest, __shfl_xor_sync(ALL_LANES, smallest, 16));
    largest = max(largest, __shfl_xor_sync(ALL_LANES, largest, 16));
    shared.keys[c][is_second()][pair_of_thread()] = is_second() ? largest ^ top : smallest;
    if (threadIdx.x < 2) shared.n_listed[c][threadIdx.x] = 0;
}

// List the keys of a channel beyond its bounds. If few threads have pixels, the bounds cross: then a key can belong to
// both sides.
template <typename ForEach>
__device__ __forceinline__ void collect_keys(Extremes &shared, int c, u32 top, const ForEach &for_each) {
    const u32 low = shared.bound[c][0], high = shared.bound[c][1] ^ top;
    const u32 pair = pair_of_thread();
    // A warp none of whose threads has a key beyond the bounds has nothing to collect.
    const bool has_any = shared.keys[c][0][pair] < low || (shared.keys[c][1][pair] ^ top) > high;
    if (!__any_sync(ALL_LANES, has_any)) return;
    for_each([&](const u32 (&key)[4], u32 bits) {
        bool is_beyond = false;
#pragma unroll
        for (int k = 0; k < 4; ++k) is_beyond |= key[k] < low || key[k] > high;
        if (!is_beyond) return;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            if (!(bits >> k & 1u)) continue;
            if (key[k] < low) add_to_list(shared, c, 0, key[k]);
            if (key[k] > high) add_to_list(shared, c, 1, key[k] ^ top);
        }
    });
}

// Find the limits of n_channels <= GROUP channels into shared.limits. for_each(c, visit) calls visit(key, bits) for the
// quads of the calling thread in channel c, the same ones each time; key k counts if bit k is set. `count` >= 1 is the
// number of keys over the block. On entry the block no longer reads `shared`; at the end the limits are visible to it.
template <typename ForEach, typename ValueOf>
__device__ __forceinline__ void extreme_limits(Extremes &shared, int n_channels, u32 count, double lower, double upper,
                                               int n_bits,               // of a key
                                               const ForEach &for_each,
                                               const ValueOf &value_of,  // the value of a key
                                               int &is_overflow) {       // in shared memory; set if it fails
    const int warp = thread_index() >> 5, n_warps = THREADS / 32;
    const u32 top = top_of(n_bits);
#pragma unroll 1
    for (int c = 0; c < n_channels; ++c)
        find_extremes(shared, c, top, [&](const auto &visit) { for_each(c, visit); });
    __syncthreads();
#pragma unroll 1
    for (int k = warp; k < 2 * n_channels; k += n_warps) {
        const int c = k >> 1, side = k & 1;
        const u32 n_wanted = min(position_of(side ? upper : lower, count, side).rank + 2, (u32)N_KEYS);
        const u32 bound = kth_smallest<N_KEYS / 32>(shared.keys[c][side], N_KEYS, n_wanted, n_bits);
        if ((threadIdx.x & 31) == 0) shared.bound[c][side] = bound;
    }
    __syncthreads();
#pragma unroll 1
    for (int c = 0; c < n_channels; ++c)
        collect_keys(shared, c, top, [&](const auto &visit) { for_each(c, visit); });
    __syncthreads();
#pragma unroll 1
    for (int k = warp; k < 2 * n_channels; k += n_warps) {
        const int side = k & 1;
        const Position at = position_of(side ? upper : lower, count, side);
        find_limit(shared, k >> 1, side, count, at, n_bits, value_of, is_overflow);
    }
    __syncthreads();
}
