// Single steps of an extraction on stacks of tiles: fill holes, dilate, blur, apply a mask, normalize.
//
// Oracle: the functions of the same names in gpu_extract/ops.py, for NumPy arrays.
// One block computes one tile of the result.
// Grid: any number of blocks; each block loops over tiles with the stride of the grid.
// Block: THREADS threads.
// Memory: the workspace of a block is dynamic shared memory or, if scratch_nbytes is not 0, its part of `scratch` in
// global memory. Its size is given with each kernel.
// On entry: stacks are (n, S, S), C-contiguous; W = ceil(S / 32). In `u8` masks, 0 is outside and anything else inside.
// The caller (gpu_extract/ops.py) checks shapes, types and values.

#include "blur.cuh"
#include "scale.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;

// Return the block's workspace.
__device__ __forceinline__ u32 *workspace(u8 *scratch, u64 scratch_nbytes) {
    extern __shared__ __align__(16) unsigned char dynamic_shared[];
    return (u32 *)(scratch_nbytes ? scratch + blockIdx.x * scratch_nbytes : dynamic_shared);
}

// Call visit(y, x) for the pixels of a tile: each warp processes a row, each lane a column.
template <typename Visit> __device__ __forceinline__ void for_tile(int S, const Visit &visit) {
    for (int y = threadIdx.x >> 5; y < S; y += WARPS)
        for (int x = threadIdx.x & 31; x < S; x += 32) visit(y, x);
}

// Convert a mask of bytes to a bit mask. With id 0, select_labels returns the pixels of any label as "other".
__device__ __forceinline__ void pack_bits(const u8 *mask,  // (S, S)
                                          int S,
                                          u32 *bits,       // (S, W), written
                                          u32 *spare) {    // (S, W), scratch
    select_labels(mask, S, S, 0, 0, 0ull, S, spare, bits);
}

// Convert a bit mask to a mask of bytes, 0 or 1. No barrier is needed before the next tile: pack_bits assigns the rows
// to the same warps.
__device__ __forceinline__ void unpack_bits(const u32 *bits,  // (S, W)
                                            int S,
                                            u8 *mask) {       // (S, S), written
    for_tile(S, [&](int y, int x) { mask[y * S + x] = bit(bits, (S + 31) >> 5, y, x); });
}

// Fill holes: background that is not 4-connected to the tile's edge. Workspace: 3 * S * W words.
__global__ void __launch_bounds__(THREADS, 2)
fill_holes_tiles(const u8 *__restrict__ masks,  // (n, S, S)
                 int n,
                 int S,
                 u8 *scratch,                   // (blocks of the grid, scratch_nbytes)
                 u64 scratch_nbytes,            // 0: use dynamic shared memory
                 u8 *__restrict__ out) {        // (n, S, S), written: 0 or 1
    const int words = S * ((S + 31) >> 5);
    const size_t pixels = (size_t)S * S;
    u32 *bits = workspace(scratch, scratch_nbytes);
    for (int tile = blockIdx.x; tile < n; tile += gridDim.x) {
        pack_bits(masks + tile * pixels, S, bits, bits + words);
        fill_holes(bits, S, bits + words, bits + 2 * words);
        unpack_bits(bits, S, out + tile * pixels);
    }
}

// Dilate by the disk dy^2 + dx^2 <= radius^2. Workspace: 2 * S * W words.
__global__ void __launch_bounds__(THREADS, 2)
dilate_tiles(const u8 *__restrict__ masks,  // (n, S, S)
             int n,
             int S,
             int radius,
             u8 *scratch,                   // (blocks of the grid, scratch_nbytes)
             u64 scratch_nbytes,            // 0: use dynamic shared memory
             u8 *__restrict__ out) {        // (n, S, S), written: 0 or 1
    const int words = S * ((S + 31) >> 5);
    const size_t pixels = (size_t)S * S;
    u32 *bits = workspace(scratch, scratch_nbytes);
    for (int tile = blockIdx.x; tile < n; tile += gridDim.x) {
        pack_bits(masks + tile * pixels, S, bits, bits + words);
        dilate(bits, S, radius, bits + words);
        __syncthreads();
        unpack_bits(bits + words, S, out + tile * pixels);
    }
}

// The value of a mask's pixel, 0 to 1.
__device__ __forceinline__ float to_float(u8 inside) { return inside ? 1.0f : 0.0f; }
__device__ __forceinline__ float to_float(float value) { return value; }

// Gaussian blur; sums are in the same order as in blur(), which is the same for bit masks. Workspace: WARPS * S floats.
template <typename In>
__global__ void __launch_bounds__(THREADS, 2)
blur_tiles(const In *__restrict__ masks,       // (n, S, S)
           int n,
           int S,
           const float *__restrict__ weights,  // (radius + 1,), from the center outwards
           int radius,
           u8 *scratch,                        // (blocks of the grid, scratch_nbytes)
           u64 scratch_nbytes,                 // 0: use dynamic shared memory
           float *__restrict__ out) {          // (n, S, S), written
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const size_t pixels = (size_t)S * S;
    float *row = (float *)workspace(scratch, scratch_nbytes) + warp * S;
    for (int tile = blockIdx.x; tile < n; tile += gridDim.x) {
        const In *mask = masks + tile * pixels;
        for (int y = warp; y < S; y += WARPS) {
            for (int x = lane; x < S; x += 32) {
                float sum = to_float(mask[y * S + x]) * weights[0];
                for (int tap = radius; tap > 0; --tap)
                    sum += (to_float(mask[max(y - tap, 0) * S + x]) + to_float(mask[min(y + tap, S - 1) * S + x])) *
                           weights[tap];
                row[x] = sum;
            }
            __syncwarp();
            for (int x = lane; x < S; x += 32) {
                float sum = row[x] * weights[0];
                for (int tap = radius; tap > 0; --tap)
                    sum += (row[max(x - tap, 0)] + row[min(x + tap, S - 1)]) * weights[tap];
                out[tile * pixels + y * S + x] = sum;
            }
            __syncwarp();
        }
    }
}

// Apply binary masks: pixels outside become 0. `Bits` is the unsigned integer of the pixels' size.
template <typename Bits>
__global__ void __launch_bounds__(THREADS, 4)
apply_mask_tiles(const Bits *__restrict__ images,  // (n, S, S)
                 const u8 *__restrict__ masks,     // (n / images_per_mask, S, S)
                 int n,
                 int S,
                 int images_per_mask,
                 Bits *__restrict__ out) {         // (n, S, S), written
    const int pixels = S * S;
    for (int tile = blockIdx.x; tile < n; tile += gridDim.x) {
        const u8 *mask = masks + (size_t)(tile / images_per_mask) * pixels;
        const size_t first = (size_t)tile * pixels;
        for (int i = threadIdx.x; i < pixels; i += THREADS) out[first + i] = mask[i] ? images[first + i] : (Bits)0;
    }
}

// Multiply images by soft masks.
template <typename Pixel>
__global__ void __launch_bounds__(THREADS, 4)
multiply_tiles(const Pixel *__restrict__ images,                  // (n, S, S)
               const float *__restrict__ masks,                   // (n / images_per_mask, S, S)
               int n,
               int S,
               int images_per_mask,
               typename WorkOf<Pixel>::type *__restrict__ out) {  // (n, S, S), written
    typedef typename WorkOf<Pixel>::type Work;
    const int pixels = S * S;
    for (int tile = blockIdx.x; tile < n; tile += gridDim.x) {
        const float *mask = masks + (size_t)(tile / images_per_mask) * pixels;
        const size_t first = (size_t)tile * pixels;
        for (int i = threadIdx.x; i < pixels; i += THREADS)
            out[first + i] = to_work<Work>(images[first + i]) * (Work)mask[i];
    }
}

// Compute clip((x - lower) / (upper - lower), 0, 1), or 0 if lower == upper.
// On entry: lower <= upper, and upper - lower is 0 or a normal number of the type of `out`.
template <typename Pixel>
__global__ void __launch_bounds__(THREADS, 4)
normalize_tiles(const Pixel *__restrict__ images,                  // (n, S, S)
                const double *__restrict__ lower,                  // (n,)
                const double *__restrict__ upper,                  // (n,)
                int n,
                int S,
                typename WorkOf<Pixel>::type *__restrict__ out) {  // (n, S, S), written
    typedef typename WorkOf<Pixel>::type Work;
    const int pixels = S * S;
    for (int tile = blockIdx.x; tile < n; tile += gridDim.x) {
        const Scale<Work> scale = make_scale<Work>(lower[tile], upper[tile], true, false);
        const size_t first = (size_t)tile * pixels;
        for (int i = threadIdx.x; i < pixels; i += THREADS) out[first + i] = scale(to_work<Work>(images[first + i]));
    }
}
