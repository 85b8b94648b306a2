// The tiles of a batch without the zeros around what is in them, for the download: a plane is mostly background.
//
// Oracle: the bounding box of the pixels of a plane whose bits are not 0, and the pixels in it.
// One block packs one plane at a time.
// Grid: any number of blocks; each block loops over planes with the stride of the grid.
// Block: THREADS threads. Memory: 40 bytes of static shared memory.
// On entry: images are C-contiguous, `used` is 0, and `values` has room for all pixels.

#include "types.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;

// Columns of the index.
enum Column { Y0, X0, Y1, X1, START, N_COLUMNS };

// Planes are packed in any order: each takes the next part of `values`.
template <typename Bits>
__global__ void __launch_bounds__(THREADS, 4)
pack_planes(const Bits *__restrict__ images,    // (n, S, S)
            int n,
            int S,
            long long *__restrict__ index,      // (n, N_COLUMNS), written: box, and where its pixels start in `values`
            u64 *__restrict__ used,             // (1,), incremented by the pixels in all boxes
            Bits *__restrict__ values) {        // (used,), written: the rows of each box
    __shared__ int box[4];
    __shared__ u64 start;
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    for (int plane = blockIdx.x; plane < n; plane += gridDim.x) {
        const Bits *in = images + (size_t)plane * S * S;
        if (threadIdx.x < 4) box[threadIdx.x] = threadIdx.x < 2 ? S : 0;
        __syncthreads();
        int y0 = S, x0 = S, y1 = 0, x1 = 0;
        for (int y = warp; y < S; y += WARPS)
            for (int x = lane; x < S; x += 32)
                if (in[(size_t)y * S + x]) {
                    y0 = min(y0, y), y1 = y + 1;
                    x0 = min(x0, x), x1 = max(x1, x + 1);
                }
        if (y1) {
            atomicMin(&box[Y0], y0), atomicMin(&box[X0], x0);
            atomicMax(&box[Y1], y1), atomicMax(&box[X1], x1);
        }
        __syncthreads();
        const bool blank = !box[Y1];
        const int top = blank ? 0 : box[Y0], left = blank ? 0 : box[X0], height = box[Y1] - top, width = box[X1] - left;
        if (threadIdx.x == 0) {
            start = atomicAdd(used, (u64)height * width);
            long long *row = index + (size_t)plane * N_COLUMNS;
            row[Y0] = top, row[X0] = left, row[Y1] = top + height, row[X1] = left + width, row[START] = (long long)start;
        }
        __syncthreads();
        Bits *out = values + start;
        for (int y = warp; y < height; y += WARPS)
            for (int x = lane; x < width; x += 32)
                out[(size_t)y * width + x] = in[(size_t)(top + y) * S + left + x];
    }
}
