// Fill the holes of bit masks: background that is not 4-connected to the tile's edge becomes mask.
//
// A flood starts at the edge. Each thread holds a row; each round floods it from the rows above and below, until
// nothing changes. Most masks have no hole and no bay: then a row is reached from its own ends, and no round is needed.

#pragma once
#include "fast_rows.cuh"

// Flood runs of `open` from `seeds` (a part of `open`) towards higher x. The carry of one addition runs through a run
// of ones up to its end and clears what it passes.
__device__ __forceinline__ Row flood_up(Row open, Row seeds) {
    const u64 low = (u64)open.y << 32 | open.x, high = (u64)open.w << 32 | open.z;
    const u64 sum = low + ((u64)seeds.y << 32 | seeds.x);
    const u64 rest = high + ((u64)seeds.w << 32 | seeds.z) + (sum < low);
    const Row carried = {(u32)sum, (u32)(sum >> 32), (u32)rest, (u32)(rest >> 32)};
    return {((open.x ^ carried.x) | seeds.x) & open.x, ((open.y ^ carried.y) | seeds.y) & open.y,
            ((open.z ^ carried.z) | seeds.z) & open.z, ((open.w ^ carried.w) | seeds.w) & open.w};
}

// Flood the whole runs of `open` that have a seed; `mirrored` is the reversed `open`.
__device__ __forceinline__ Row flood_runs(Row open, Row mirrored, Row seeds) {
    const Row reached = flood_up(open, seeds);
    return reached | reversed(flood_up(mirrored, reversed(reached)));
}

// Room for the rounds: the rows of two masks, with an empty row above and below.
typedef Row FillRows[2][MAX_S + 2];

// Fill the holes of two masks, in place, by all threads of a block of 2 MAX_S threads: threads 0 .. MAX_S - 1 have the
// rows of the first mask. `wanted` is whether the calling thread's mask is to be filled. On entry the masks are visible
// to the block, and so they are at the end.
__device__ __forceinline__ void fill_holes(Row *mask,         // (S,), the mask of the calling thread, updated
                                           bool wanted, int S, Row inside_tile,
                                           FillRows &rooms) {  // scratch
    const int y = threadIdx.x & (MAX_S - 1);
    Row *rows = rooms[threadIdx.x / MAX_S] + 1;
    Row open = {0, 0, 0, 0};
    if (wanted && y < S) open = ~mask[y] & inside_tile;
    const Row mirrored = reversed(open), ends = range_row(0, 1) | range_row(S - 1, S);
    Row reached = y == 0 || y == S - 1 ? open : flood_runs(open, mirrored, open & ends);
    if (!__syncthreads_or(is_any(open & ~reached))) return;
    if (y == 0) rows[-1] = {0, 0, 0, 0};
    if (y == MAX_S - 1) rows[MAX_S] = {0, 0, 0, 0};
    bool is_growing = true;
    while (is_growing) {
        rows[y] = reached;
        __syncthreads();
        const Row seeds = (rows[y - 1] | rows[y + 1]) & open & ~reached;
        const bool grows = is_any(seeds);
        if (grows) reached = flood_runs(open, mirrored, reached | seeds);
        is_growing = __syncthreads_or(grows);
    }
    if (wanted && y < S) mask[y] = ~reached & inside_tile;
    __syncthreads();
}
