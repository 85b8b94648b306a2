// Single steps on stacks of tiles: fill holes, dilate, blur, apply a mask, normalize.
//
// Oracle: gpu_extract/ops.py, the same functions for NumPy arrays. One block makes one tile of the result; blocks take
// turns where there are more tiles. Block: THREADS threads. Stacks are (n, S, S), contiguous. `u8` masks hold 0 for
// outside and anything else for inside. What a block works in is dynamic shared memory, or, where scratch_nbytes is
// not 0, its own scratch_nbytes of `scratch` in global memory.

#include "blur.cuh"
#include "scale.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;

__device__ __forceinline__ u32 *workspace(u8 *scratch, u64 scratch_nbytes) {
    extern __shared__ __align__(16) unsigned char dynamic_shared[];
    return (u32 *)(scratch_nbytes ? scratch + blockIdx.x * scratch_nbytes : dynamic_shared);
}

// Call visit(y, x) for the pixels of a tile: a warp takes a row, a lane a column.
template <typename Visit> __device__ __forceinline__ void for_tile(int S, const Visit &visit) {
    for (int y = threadIdx.x >> 5; y < S; y += WARPS)
        for (int x = threadIdx.x & 31; x < S; x += 32) visit(y, x);
}

// A mask of bytes as bit rows: the pixels on any label, which are those that are "other" to the background.
__device__ __forceinline__ void pack_bits(const u8 *mask, int S, u32 *bits, u32 *spare) {
    select_labels(mask, S, S, 0, 0, 0ull, S, spare, bits);
}

// And back. Pack takes the rows by the same warps: the next tile may follow without a barrier.
__device__ __forceinline__ void unpack_bits(const u32 *bits, int S, u8 *mask) {
    for_tile(S, [&](int y, int x) { mask[y * S + x] = bit(bits, (S + 31) >> 5, y, x); });
}

// masks, out (n, S, S); a block works in 3 * S * ceil(S / 32) words.
__global__ void __launch_bounds__(THREADS, 2)
fill_holes_tiles(const u8 *__restrict__ masks, int n, int S, u8 *scratch, u64 scratch_nbytes, u8 *__restrict__ out) {
    const int words = S * ((S + 31) >> 5);
    const size_t pixels = (size_t)S * S;
    u32 *bits = workspace(scratch, scratch_nbytes);
    for (int tile = blockIdx.x; tile < n; tile += gridDim.x) {
        pack_bits(masks + tile * pixels, S, bits, bits + words);
        fill_holes(bits, S, bits + words, bits + 2 * words);
        unpack_bits(bits, S, out + tile * pixels);
    }
}

// masks, out (n, S, S); a block works in 2 * S * ceil(S / 32) words.
__global__ void __launch_bounds__(THREADS, 2)
dilate_tiles(const u8 *__restrict__ masks, int n, int S, int radius, u8 *scratch, u64 scratch_nbytes,
             u8 *__restrict__ out) {
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

__device__ __forceinline__ float to_float(u8 inside) { return inside ? 1.0f : 0.0f; }
__device__ __forceinline__ float to_float(float value) { return value; }

// masks, out (n, S, S); weights (radius + 1,) from the centre outwards; a block works in WARPS * S floats.
// The sums run as in blur(), which does this for masks of bits.
template <typename In>
__global__ void __launch_bounds__(THREADS, 2)
blur_tiles(const In *__restrict__ masks, int n, int S, const float *__restrict__ weights, int radius, u8 *scratch,
           u64 scratch_nbytes, float *__restrict__ out) {
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

// images, out (n, S, S) of any type of that many bits; masks (n / images_per_mask, S, S): pixels outside become 0.
template <typename Bits>
__global__ void __launch_bounds__(THREADS, 4)
apply_mask_tiles(const Bits *__restrict__ images, const u8 *__restrict__ masks, int n, int S, int images_per_mask,
          Bits *__restrict__ out) {
    const int pixels = S * S;
    for (int tile = blockIdx.x; tile < n; tile += gridDim.x) {
        const u8 *mask = masks + (size_t)(tile / images_per_mask) * pixels;
        const size_t first = (size_t)tile * pixels;
        for (int i = threadIdx.x; i < pixels; i += THREADS) out[first + i] = mask[i] ? images[first + i] : (Bits)0;
    }
}

// images (n, S, S); masks (n / images_per_mask, S, S); out (n, S, S): their product.
template <typename Pixel>
__global__ void __launch_bounds__(THREADS, 4)
multiply_tiles(const Pixel *__restrict__ images, const float *__restrict__ masks, int n, int S, int images_per_mask,
            typename WorkOf<Pixel>::type *__restrict__ out) {
    typedef typename WorkOf<Pixel>::type Work;
    const int pixels = S * S;
    for (int tile = blockIdx.x; tile < n; tile += gridDim.x) {
        const float *mask = masks + (size_t)(tile / images_per_mask) * pixels;
        const size_t first = (size_t)tile * pixels;
        for (int i = threadIdx.x; i < pixels; i += THREADS)
            out[first + i] = to_work<Work>(images[first + i]) * (Work)mask[i];
    }
}

// images, out (n, S, S); lower, upper (n,): clip((x - lower) / (upper - lower), 0, 1), or 0 where they are equal.
// On entry lower <= upper, and upper - lower is a normal number of the type of `out`, or 0.
template <typename Pixel>
__global__ void __launch_bounds__(THREADS, 4)
normalize_tiles(const Pixel *__restrict__ images, const double *__restrict__ lower, const double *__restrict__ upper,
                int n, int S, typename WorkOf<Pixel>::type *__restrict__ out) {
    typedef typename WorkOf<Pixel>::type Work;
    const int pixels = S * S;
    for (int tile = blockIdx.x; tile < n; tile += gridDim.x) {
        const Scale<Work> scale = make_scale<Work>(lower[tile], upper[tile], true, false);
        const size_t first = (size_t)tile * pixels;
        for (int i = threadIdx.x; i < pixels; i += THREADS) out[first + i] = scale(to_work<Work>(images[first + i]));
    }
}
