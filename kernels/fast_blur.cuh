// Separable Gaussian blur of a bit mask; the tile's border is replicated.
//
// Along x, pixels are bits: nine at a time are looked up in a table of weighted sums. Along y, each thread computes
// eight pixels of a column, for which it loads each row once. The columns are processed in strips of 32, so that the
// sums along x need little memory.

#pragma once
#include "fast_dilate.cuh"

constexpr int TABLE_BITS = 9;
constexpr int TABLE_SIZE = 1 << TABLE_BITS;
constexpr int MAX_RADIUS = 31;  // of a blur: its 2 R + 1 pixels lie within two words
constexpr int STRIP = 32;

// A profile holds the weights of a blur along y: at CENTER + d the weight of distance d, or 0; at BEYOND + d the sum
// of the weights of all distances above d >= 0, for the copies of a border row beyond the tile.
constexpr int PROFILE_CENTER = 56, PROFILE_BEYOND = 104, PROFILE_SIZE = 136;

// The rows of a mask in which the values at both ends continue outside the tile. Row y starts at word 8 y + 8; the word
// before has the pixels to its left. The blur processes rows by eights, so there are eight more than in a tile.
typedef u32 ExtendedRows[8 * (MAX_S + 8) + 8];

__device__ __forceinline__ void extend_row(Row row, int y, int S, Row inside_tile, ExtendedRows &extended) {
    u32 *words = extended + 8 * y + 8;
    const bool continues = is_any(row & range_row(S - 1, S));
    *(Row *)words = continues ? row | ~inside_tile : row;
    words[4] = continues ? ALL_ONES : 0u;
    words[-1] = row.x & 1u ? ALL_ONES : 0u;
}

// Convolve n_rows rows along x, from row y0 of the mask on, for the columns x0 .. x0 + 31, a column per lane.
template <int TABLES>
__device__ __forceinline__ void convolve_x(const ExtendedRows &extended, int y0, int n_rows, int x0, int radius,
                                           const float *tables,      // (TABLES, TABLE_SIZE)
                                           float (*strip)[STRIP]) {  // (n_rows, STRIP), written
    const int thread = thread_index(), lane = thread & 31, warp = thread >> 5, n_warps = blockDim.x >> 5;
    const int first = x0 + lane - radius, shift = first & 31;
    const u32 *words = extended + 8 * (y0 + warp) + 8 + (first >> 5);  // arithmetic shift: right for first < 0 as well
#pragma unroll 2
    for (int row = warp; row < n_rows; row += n_warps, words += 8 * n_warps) {
        const u32 low = __funnelshift_r(words[0], words[1], shift);
        float sum = tables[low & (TABLE_SIZE - 1)];
        if (TABLES > 1) {
            const u32 high = __funnelshift_r(words[1], words[2], shift);
#pragma unroll
            for (int k = 1; k < TABLES; ++k) {
                const int first_bit = TABLE_BITS * k;
                const u32 window = first_bit < 32 ? __funnelshift_r(low, high, first_bit) : high >> (first_bit - 32);
                sum += tables[k * TABLE_SIZE + (window & (TABLE_SIZE - 1))];
            }
        }
        strip[row][lane] = sum;
    }
}

// Add the products of eight rows of a column with the weights of their distances from eight pixels. `weights` starts
// at the distance of the first row from the first pixel, minus 8.
__device__ __forceinline__ void add_products(const float (*rows)[STRIP],  // (8, STRIP), a column per lane
                                             const float *weights,        // (16,), 16-byte aligned
                                             float (&sums)[8]) {          // updated
    float weight[16];
#pragma unroll
    for (int i = 0; i < 4; ++i) *(float4 *)(weight + 4 * i) = ((const float4 *)weights)[i];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const float value = rows[i][threadIdx.x & 31];
#pragma unroll
        for (int k = 0; k < 8; ++k) sums[k] = fmaf(value, weight[8 + i - k], sums[k]);
    }
}

// Add the copies of the tile's first and last row that lie beyond the tile.
__device__ __forceinline__ void add_beyond(const float (*strip)[STRIP], const Box &mask_box, int y, int S, int radius,
                                           const float *profile,  // (PROFILE_SIZE,)
                                           float (&sums)[8]) {    // of rows y .. y + 7, updated
    const int lane = threadIdx.x & 31, last = S - 1;
    const float *beyond = profile + PROFILE_BEYOND;
    if (mask_box.y0 == 0 && y < radius) {
#pragma unroll
        for (int k = 0; k < 8; ++k)
            if (y + k >= 0 && y + k < radius) sums[k] += strip[0][lane] * beyond[y + k];
    }
    if (mask_box.y1 == S && y + 7 > last - radius) {
#pragma unroll
        for (int k = 0; k < 8; ++k)
            if (y + k <= last && y + k > last - radius)
                sums[k] += strip[last - mask_box.y0][lane] * beyond[last - y - k];
    }
}

// Convolve the columns x0 .. x0 + 31 of a strip along y.
__device__ __forceinline__ void convolve_y(const float (*strip)[STRIP],  // rows of mask_box, a multiple of 8
                                           const Box &mask_box, const Box &box, int x0, int S, int radius,
                                           const float *profile,         // (PROFILE_SIZE,)
                                           float *soft) {                // (rows, columns of box), written
    const int thread = thread_index(), lane = thread & 31, warp = thread >> 5, n_warps = blockDim.x >> 5;
    const int x = x0 + lane, stride = box.x1 - box.x0, n_rows = mask_box.y1 - mask_box.y0;
    const int top = mask_box.y0 - ((radius + 3) & ~3);  // a multiple of 4 from the mask, for aligned loads of weights
#pragma unroll 1
    for (int y = top + 8 * warp; y < box.y1; y += 8 * n_warps) {
        float sums[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        const int offset = y - mask_box.y0;
        const int from = max(offset - radius, 0) & ~7, to = min(offset + 8 + radius, n_rows);
#pragma unroll 1
        for (int row = from; row < to; row += 8)
            add_products(strip + row, profile + PROFILE_CENTER + row - offset - 8, sums);
        add_beyond(strip, mask_box, y, S, radius, profile, sums);
        if (x >= box.x1) continue;
        float *column = soft + (y - box.y0) * stride + x - box.x0;
#pragma unroll
        for (int k = 0; k < 8; ++k)
            if (y + k >= box.y0 && y + k < box.y1) column[k * stride] = sums[k];
    }
}

// Blur a mask within `box`, its own box enlarged by at least the radius. The mask is visible to the block on entry; the
// barrier after the blur is the caller's.
__device__ __forceinline__ void blur_rows(const ExtendedRows &extended, const Box &mask_box, const Box &box, int S,
                                          int radius,
                                          const float *tables,    // (1, 3, 5 or 7, TABLE_SIZE), for 2 R + 1 pixels
                                          const float *profile,   // (PROFILE_SIZE,)
                                          float (*strip)[STRIP],  // (MAX_S, STRIP), scratch
                                          float *soft) {          // (rows, columns of box), written
    const int n_rows = (mask_box.y1 - mask_box.y0 + 7) & ~7;
#pragma unroll 1
    for (int x0 = box.x0; x0 < box.x1; x0 += STRIP) {
        if (x0 > box.x0) __syncthreads();
        if (radius <= 4) convolve_x<1>(extended, mask_box.y0, n_rows, x0, radius, tables, strip);
        else if (radius <= 13) convolve_x<3>(extended, mask_box.y0, n_rows, x0, radius, tables, strip);
        else if (radius <= 22) convolve_x<5>(extended, mask_box.y0, n_rows, x0, radius, tables, strip);
        else convolve_x<7>(extended, mask_box.y0, n_rows, x0, radius, tables, strip);
        __syncthreads();
        convolve_y(strip, mask_box, box, x0, S, radius, profile, soft);
    }
}
