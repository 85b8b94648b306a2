// Quads: four neighbouring pixels of a row, from a multiple of 4 on. The threads of a block take the quads of a box in
// turns, so that narrow boxes keep all lanes busy.

#pragma once
#include "box.cuh"
#include "warp.cuh"

constexpr int THREADS = 256;

// Enlarge a box to whole quads.
__device__ __forceinline__ Box aligned(const Box &box) { return {box.y0, box.x0 & ~3, box.y1, (box.x1 + 3) & ~3}; }

// The quads of a box whose columns are multiples of 4, in the order of rows.
struct Quads {
    Box box;
    int y, x;    // of the calling thread's first quad
    int dy, dx;  // to its next one, if that does not lie beyond the row's end
};

__device__ __forceinline__ Quads quads_of(const Box &box) {
    const int per_row = (box.x1 - box.x0) >> 2;
    if (per_row == 0) return {box, box.y1, 0, 1, 0};
    // Exact for tiles of up to 4096 pixels: no quotient lies closer to an integer than 1/2048.
    const float reciprocal = __fdividef(1.0f, (float)per_row);
    const int dy = (int)(((float)THREADS + 0.5f) * reciprocal);
    const int thread = thread_index(), y = (int)(((float)thread + 0.5f) * reciprocal);
    return {box, box.y0 + y, box.x0 + 4 * (thread - y * per_row), dy, 4 * (THREADS - dy * per_row)};
}

// Call visit(y, x, i) for the quads of the calling thread; (y, x) is the first pixel and i the index in the box.
template <typename Visit> __device__ __forceinline__ void for_quads(const Quads &quads, const Visit &visit) {
    const int width = quads.box.x1 - quads.box.x0;
    int x = quads.x, i = thread_index();
#pragma unroll 1
    for (int y = quads.y; y < quads.box.y1; y += quads.dy, i += THREADS) {
        visit(y, x, i);
        x += quads.dx;
        if (x >= quads.box.x1) {
            x -= width;
            ++y;
        }
    }
}

// Call visit(y, x) for the quads of a whole tile. A lane has four columns of 128, a warp a row.
template <typename Visit> __device__ __forceinline__ void for_tile_quads(int S, const Visit &visit) {
    const int thread = thread_index();
#pragma unroll 1
    for (int x = 4 * (thread & 31); x < S; x += 128) {
#pragma unroll 4
        for (int y = thread >> 5; y < S; y += THREADS / 32) visit(y, x);
    }
}
