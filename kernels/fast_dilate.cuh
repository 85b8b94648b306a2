// Dilate a bit mask by a disk, and find its bounding box. A thread takes a row.

#pragma once
#include "fast_rows.cuh"
#include "warp.cuh"

// Widen a row by `reach` pixels to both sides. A run that has grown by n can be moved by n + 1 and leaves no gap, even
// at the end of the row, where it has grown to one side only.
__device__ __forceinline__ Row widened(Row row, int reach) {
#pragma unroll 1
    for (int n = 0; n < reach;) {
        const int step = min(n + 1, reach - n);
        row = row | moved_up(row, step) | moved_down(row, step);
        n += step;
    }
    return row;
}

// Return row y of a mask dilated by the disk dy^2 + dx^2 <= radius^2; pixels outside the tile are 0.
__device__ __forceinline__ Row dilated_row(const Row *mask,  // (S,)
                                           int y, int radius, int S) {
    if (radius == 0) return mask[y];
    Row sum = {0, 0, 0, 0};
    int reach = 0;  // half the disk's width in this row: grows towards the center row, then shrinks
#pragma unroll 1
    for (int dy = -radius; dy <= radius; ++dy) {
        if (dy <= 0) while ((reach + 1) * (reach + 1) <= radius * radius - dy * dy) ++reach;
        else while (reach * reach > radius * radius - dy * dy) --reach;
        if (y + dy >= 0 && y + dy < S) sum = sum | widened(mask[y + dy], reach);
    }
    return sum;
}

// What each warp of MAX_S threads knows of the box of their rows.
struct BoxParts {
    u32 rows[MAX_S / 32];        // bit i: row 32 w + i is not empty
    u32 columns[MAX_S / 32][4];  // all rows of the warp, combined
};

// Add the row of the calling thread to the box; threads 0 .. MAX_S - 1 call this.
__device__ __forceinline__ void add_to_box(Row row, BoxParts &parts) {
    const int thread = thread_index(), warp = thread >> 5;
    const u32 rows = __ballot_sync(ALL_LANES, is_any(row));
    const Row columns = {warp_or(row.x), warp_or(row.y), warp_or(row.z), warp_or(row.w)};
    if ((thread & 31) == 0) {
        parts.rows[warp] = rows;
        *(Row *)parts.columns[warp] = columns;
    }
}

// Return the bounding box; the barrier before is the caller's. Lanes 0 .. 3 have a word of the rows, lanes 4 .. 7 one
// of the columns.
__device__ __forceinline__ Box box_of(const BoxParts &parts) {
    const int lane = thread_index() & 31, j = lane & 3;
    const bool is_rows = lane < 4;
    u32 word = 0;
    if (is_rows) word = parts.rows[j];
    else if (lane < 8) word = parts.columns[0][j] | parts.columns[1][j] | parts.columns[2][j] | parts.columns[3][j];
    const u32 first = word ? 32 * j + __ffs((int)word) - 1 : MAX_S, end = word ? 32 * j + 32 - __clz((int)word) : 0;
    const Box box = {(int)warp_min(is_rows ? first : MAX_S), (int)warp_min(is_rows ? MAX_S : first),
                     (int)warp_max(is_rows ? end : 0), (int)warp_max(is_rows ? 0 : end)};
    return box.y1 ? box : Box{0, 0, 0, 0};
}
