// From labels to bit masks: the pixels of a cell, and those of its neighbours.
//
// Each warp takes a row at a time, each lane four pixels of it; a ballot makes a word.

#pragma once
#include "fast_rows.cuh"
#include "warp.cuh"

// Convert four labels per lane to a row of `own` and, if neighbours are wanted, a row of `other`.
template <typename Label>
__device__ __forceinline__ void select_row(const Label (&label)[4], u32 id, bool with_other, Row *own, Row *other) {
    const Row mine = {__ballot_sync(ALL_LANES, label[0] == id), __ballot_sync(ALL_LANES, label[1] == id),
                      __ballot_sync(ALL_LANES, label[2] == id), __ballot_sync(ALL_LANES, label[3] == id)};
    const bool is_first = (threadIdx.x & 31) == 0;
    if (is_first) *own = mine;
    if (!with_other) return;
    const Row any = {__ballot_sync(ALL_LANES, label[0] != 0), __ballot_sync(ALL_LANES, label[1] != 0),
                     __ballot_sync(ALL_LANES, label[2] != 0), __ballot_sync(ALL_LANES, label[3] != 0)};
    if (is_first) *other = any & ~mine;
}

// Select the cell `id` in the labels of a tile. Pixels outside the slide belong to neither mask. There is no barrier
// at the end.
template <typename Label>
__device__ __forceinline__ void select_rows(const Label *labels,           // (height, width)
                                            int height, int width,
                                            int y0, int x0,                // the tile's first pixel
                                            u32 id, int S, bool is_inside, // the whole tile is on the slide
                                            bool with_other,
                                            Row *own,                      // (S,), written
                                            Row *other) {                  // (S,), written if `with_other`
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, n_warps = blockDim.x >> 5;
    const Label *row = labels + (long long)(y0 + warp) * width + x0 + lane;
    const long long step = (long long)n_warps * width;
    if (is_inside && S == MAX_S) {
#pragma unroll 2
        for (int y = warp; y < MAX_S; y += n_warps, row += step) {
            const Label label[4] = {row[0], row[32], row[64], row[96]};
            select_row(label, id, with_other, own + y, other + y);
        }
        return;
    }
#pragma unroll 1
    for (int y = warp; y < S; y += n_warps, row += step) {
        const bool is_row = y0 + y >= 0 && y0 + y < height;
        Label label[4];
        for (int j = 0; j < 4; ++j) {
            const int x = 32 * j + lane, column = x0 + x;
            label[j] = is_row && x < S && column >= 0 && column < width ? row[32 * j] : (Label)0;
        }
        select_row(label, id, with_other, own + y, other + y);
    }
}
