// The fused extraction. One block computes the finished tile of one cell, from labels and pixels to output values.
//
// Oracle: extract_tile in gpu_extract/backends/reference.py.
// Grid: any number of blocks; each block loops over cells with the stride of the grid.
// Block: THREADS threads.
// Memory: a block's workspace holds four bit masks and the blurred mask as floats (struct Workspace). It is in dynamic
// shared memory or, if tiles are too large for that, in the block's part of `scratch` in global memory: an instance of
// its own, because the compiler must know which. Only finished values and limits are written elsewhere.
// On entry: all arrays are C-contiguous and have the shapes given behind the arguments of `extract`; indices in
// `masks`, `stored` and `cut` are in range; radii are not negative, those of blurs at most weight_stride - 1. The
// launcher (gpu_extract/backends/cuda/extract.py) checks shapes and types.

#include "blur.cuh"
#include "planes.cuh"
#include "program.cuh"
#include "quantile.cuh"
#include "scale.cuh"
#include "tile.cuh"

constexpr int WARPS = THREADS / 32;

// How many blocks fit on a multiprocessor by their registers; backends/cuda/registry.py has the same numbers. Doubles
// take two registers each.
template <typename Pixel> constexpr int BLOCKS_PER_MULTIPROCESSOR = sizeof(typename WorkOf<Pixel>::type) == 8 ? 1 : 2;

struct Workspace {
    u32 *own, *other, *region, *spare;  // (S, W) bit masks
    float *rows;                        // (WARPS, S)
    float *soft;                        // (S, S)
};

// Divide a block's memory into the arrays of its workspace.
__device__ __forceinline__ Workspace make_workspace(unsigned char *memory, int S) {
    const int words = S * ((S + 31) >> 5);
    u32 *bits = (u32 *)memory;
    float *rows = (float *)(bits + 4 * words);
    return {bits, bits + words, bits + 2 * words, bits + 3 * words, rows, rows + WARPS * S};
}

// Call visit(y, x) for the pixels of a box: each warp processes a row, each lane a column.
template <typename Visit> __device__ __forceinline__ void for_box(const Box &box, const Visit &visit) {
    for (int y = box.y0 + (int)(threadIdx.x >> 5); y < box.y1; y += WARPS)
        for (int x = box.x0 + (int)(threadIdx.x & 31); x < box.x1; x += 32) visit(y, x);
}

__device__ __forceinline__ bool contains(const Box &box, int y, int x) {
    return y >= box.y0 && y < box.y1 && x >= box.x0 && x < box.x1;
}

// Return the sum of `mine` over all threads of the block. `shared` is scratch in shared memory.
__device__ u32 block_sum(u32 mine, u32 *shared) {
    if (threadIdx.x == 0) *shared = 0;
    __syncthreads();
    for (int step = 16; step; step >>= 1) mine += __shfl_xor_sync(0xffffffffu, mine, step);
    if ((threadIdx.x & 31) == 0) atomicAdd(shared, mine);
    __syncthreads();
    const u32 sum = *shared;
    __syncthreads();
    return sum;
}

// The mask of one channel of one cell.
struct ChannelMask {
    const u32 *free;    // (S, W) bit mask: pixels that are not on a neighbour; read only if `exclude`
    const u32 *region;  // (S, W) bit mask: the dilated mask, without neighbours if `exclude`
    const float *soft;  // (S, S): the blurred mask, written within `box` only
    Box box;            // outside of it, `soft` counts as 0
    Box region_box;     // outside of it, `region` is 0
    bool exclude;

    // Return the factor of a pixel within `box`.
    __device__ __forceinline__ float at(int y, int x, int S, int W) const {
        return exclude && !bit(free, W, y, x) ? 0.0f : soft[y * S + x];
    }
};

// Return the lower and the upper quantile of a channel of one cell.
template <typename Pixel, typename Work>
__device__ Limits channel_limits(const Tile<Pixel> &tile, const ChannelMask &mask, int S, const int *options,
                                const double *numbers) {
    typedef typename PixelOrder<Pixel>::type Raw;
    typedef typename WorkOrder<Work>::type Computed;
    __shared__ union {
        Selection<typename Raw::Key> raw;
        Selection<typename Computed::Key> computed;
    } shared;
    __shared__ u32 sum;
    const int W = (S + 31) >> 5;
    const bool masked_first = options[CUT_BEFORE] && options[APPLY_MASKS];
    const double lower = numbers[LOWER], upper = numbers[UPPER];
    const Box whole = {0, 0, S, S};
    if (options[LIMITS] == LIMITS_OF_TILE) {
        const u32 all = (u32)(S * S);
        if (!masked_first)
            return quantiles<Raw>(all, 0, lower, upper, [&](auto visit) {
                for_box(whole, [&](int y, int x) { visit(tile.template at<Work>(y, x)); });
            }, shared.raw);
        const u32 zeros = all - (u32)((mask.box.y1 - mask.box.y0) * (mask.box.x1 - mask.box.x0));
        return quantiles<Computed>(all, zeros, lower, upper, [&](auto visit) {
            for_box(mask.box, [&](int y, int x) { visit(tile.template at<Work>(y, x) * (Work)mask.at(y, x, S, W)); });
        }, shared.computed);
    }
    const auto in_region = [&](int y, int x) { return bit(mask.region, W, y, x) && tile.on_slide(y, x); };
    u32 mine = 0;
    for_box(mask.region_box, [&](int y, int x) { mine += in_region(y, x); });
    const u32 count = block_sum(mine, &sum);
    if (!masked_first)
        return quantiles<Raw>(count, 0, lower, upper, [&](auto visit) {
            for_box(mask.region_box, [&](int y, int x) {
                if (in_region(y, x)) visit(tile.template at<Work>(y, x));
            });
        }, shared.raw);
    return quantiles<Computed>(count, 0, lower, upper, [&](auto visit) {
        for_box(mask.region_box, [&](int y, int x) {
            if (in_region(y, x)) visit(tile.template at<Work>(y, x) * (Work)mask.at(y, x, S, W));
        });
    }, shared.computed);
}

// Return the minimum and maximum over the tile of `value(y, x)` within `box` and `outside` elsewhere.
template <typename Work, typename Value>
__device__ Limits min_max(const Box &box, int S, Work outside, const Value &value) {
    __shared__ u64 shared[2];
    if (threadIdx.x == 0) {
        shared[0] = is_whole(box, S) ? ~0ull : DoubleOrder::key((double)outside);
        shared[1] = is_whole(box, S) ? 0ull : DoubleOrder::key((double)outside);
    }
    __syncthreads();
    u64 low = ~0ull, high = 0ull;
    for_box(box, [&](int y, int x) {
        const u64 key = DoubleOrder::key((double)value(y, x));
        low = min(low, key);
        high = max(high, key);
    });
    atomicMin(&shared[0], low);
    atomicMax(&shared[1], high);
    __syncthreads();
    const Limits found = {DoubleOrder::value(shared[0]), DoubleOrder::value(shared[1])};
    __syncthreads();
    return found;
}

// Write a plane of the tile: `value(y, x)` within `box`, `outside` elsewhere; by quads if rows consist of quads.
template <typename Out, typename Work, typename Value>
__device__ __forceinline__ void write_plane(Out *plane,  // (S, S), written
                                            const Box &box, int S, Work outside, const Value &value) {
    if (S % 4) {
        for_box({0, 0, S, S}, [&](int y, int x) {
            store(plane + (size_t)y * S + x, contains(box, y, x) ? value(y, x) : outside);
        });
        return;
    }
    write_quads(plane, quads_of(aligned(box)), S, outside, [&](int y, int x, int, Work (&quad)[4]) {
#pragma unroll
        for (int k = 0; k < 4; ++k) quad[k] = contains(box, y, x + k) ? value(y, x + k) : outside;
    });
}

// Compute and write one channel of a tile: limits, scaling, masking, stretching, output. Called by all threads of the
// block.
template <typename Pixel, typename Out>
__device__ void write_channel(const Tile<Pixel> &tile, const ChannelMask &mask, int S,
                              const int *options,          // (N_OPTIONS,)
                              const double *numbers,       // (N_NUMBERS,)
                              const double *given_limits,  // (2,), used if options[LIMITS] is LIMITS_GIVEN
                              bool stretched,
                              Out *plane,                  // (S, S), written
                              double *used_limits) {       // (2,), written
    typedef typename WorkOf<Pixel>::type Work;
    const int W = (S + 31) >> 5;
    Limits limits = {given_limits[0], given_limits[1]};
    if (options[LIMITS] != LIMITS_GIVEN) limits = channel_limits<Pixel, Work>(tile, mask, S, options, numbers);
    if (threadIdx.x == 0) {
        used_limits[0] = limits.lower;
        used_limits[1] = limits.upper;
    }
    const Scale<Work> scale =
        make_scale<Work>(limits.lower, limits.upper, options[FLAT_ZERO] != 0, options[SCALE] == 0);
    const bool apply = options[APPLY_MASKS] != 0, before = options[CUT_BEFORE] != 0;
    const Box box = apply ? mask.box : Box{0, 0, S, S};
    const auto value = [&](int y, int x) {
        const Work pixel = tile.template at<Work>(y, x);
        if (!apply) return scale(pixel);
        const Work factor = (Work)mask.at(y, x, S, W);
        return before ? scale(pixel * factor) : scale(pixel) * factor;
    };
    // Outside the mask all pixels have one value: 0, except if a channel is masked before it is scaled and its lower
    // limit is negative.
    const Work outside = apply && before ? scale((Work)0) : (Work)0;
    const Work unit = (Work)numbers[UNIT];
    if (!stretched) {
        write_plane(plane, box, S, outside * unit, [&](int y, int x) { return value(y, x) * unit; });
        return;
    }
    const Limits range = min_max(box, S, outside, value);
    const Work low = (Work)range.lower, span = (Work)(range.upper - range.lower);
    const auto stretch = [&](Work x) { return (span > (Work)0 ? (x - low) / span : x) * unit; };
    write_plane(plane, box, S, stretch(outside), [&](int y, int x) { return stretch(value(y, x)); });
}

// Shapes: n cells, C channels, M label planes, k masks. IN_SHARED is whether the workspace is in shared memory.
template <typename Pixel, typename Out, bool IN_SHARED>
__global__ void __launch_bounds__(THREADS, BLOCKS_PER_MULTIPROCESSOR<Pixel>)
extract(const Pixel *__restrict__ image,          // (C, height, width)
        int channels,                             // C
        int height,
        int width,
        const u8 *__restrict__ labels,            // (M, height, width) unsigned integers of label_nbytes bytes each
        int label_nbytes,                         // 1, 2, 4 or 8
        const u64 *__restrict__ ids,              // (n,)
        const int *__restrict__ corners,          // (n, 2): (y, x) of each tile's first pixel, even outside the image
        int n_cells,                              // n
        int S,                                    // tile size, pixels
        const int *__restrict__ masks,            // (k, N_MASK_COLUMNS), see MaskColumn; processed in this order
        int n_masks,                              // k
        const float *__restrict__ weights,        // (k, weight_stride): blur weights from the center outwards
        int weight_stride,
        const int *__restrict__ stored,           // (M,): the mask of each mask plane of `out`, as a row of `masks`
        int n_stored,                             // M
        const int *__restrict__ cut,              // (C,): the mask of each channel, as a row of `masks`
        const int *__restrict__ stretch,          // (C,): 0 or 1
        const int *__restrict__ options,          // (N_OPTIONS,), see Option
        const double *__restrict__ numbers,       // (N_NUMBERS,), see Number
        const double *__restrict__ given_limits,  // (C, 2), used if options[LIMITS] is LIMITS_GIVEN
        u8 *__restrict__ scratch,                 // (blocks of the grid, scratch_nbytes)
        u64 scratch_nbytes,                       // of a block; not read if IN_SHARED
        Out *__restrict__ out,                    // (n, M + C, S, S), written
        double *__restrict__ used_limits,         // (n, C, 2), written
        const u8 *__restrict__ marked,            // (n,): only cells with a mark are computed, if some_cells
        int some_cells) {                         // 0 or 1
    typedef typename WorkOf<Pixel>::type Work;
    extern __shared__ __align__(16) unsigned char dynamic_shared[];
    __shared__ int box_of_mask[4];
    const Workspace work = make_workspace(IN_SHARED ? dynamic_shared : scratch + blockIdx.x * scratch_nbytes, S);
    const size_t plane_size = (size_t)S * S, slide_size = (size_t)height * width;
    const int words = S * ((S + 31) >> 5);
    const bool exclude = options[EXCLUDE] != 0;

    for (int cell = blockIdx.x; cell < n_cells; cell += gridDim.x) {
        if (some_cells && !marked[cell]) continue;
        const int y0 = corners[2 * cell], x0 = corners[2 * cell + 1];
        Out *tile_out = out + (size_t)cell * (n_stored + channels) * plane_size;
        for (int m = 0; m < n_masks; ++m) {
            const int *steps = masks + m * N_MASK_COLUMNS, *previous = steps - N_MASK_COLUMNS;
            if (m == 0 || steps[PLANE] != previous[PLANE] || steps[FILL] != previous[FILL]) {
                const u8 *plane = labels + (size_t)steps[PLANE] * slide_size * label_nbytes;
                const auto select = [&](auto typed) {
                    select_labels(typed, height, width, y0, x0, ids[cell], S, work.own, work.other);
                };
                switch (label_nbytes) {
                    case 1: select(plane); break;
                    case 2: select((const u16 *)plane); break;
                    case 4: select((const u32 *)plane); break;
                    default: select((const u64 *)plane);
                }
                if (steps[FILL]) fill_holes(work.own, S, work.region, work.spare);
            }
            dilate(work.own, S, steps[DILATION], work.region);
            const Box region_box = bounding_box(work.region, S, box_of_mask);
            const Box box = grow(region_box, steps[BLUR], S);
            blur(work.region, S, region_box, box, weights + m * weight_stride, steps[BLUR], work.rows, work.soft);
            for (int k = 0; k < n_stored; ++k)
                if (stored[k] == m) {
                    const Work unit = (Work)numbers[UNIT];
                    write_plane(tile_out + k * plane_size, box, S, (Work)0,
                                [&](int y, int x) { return (Work)work.soft[y * S + x] * unit; });
                }
            if (exclude) {
                for (int i = threadIdx.x; i < words; i += THREADS) {
                    work.spare[i] = ~work.other[i] | work.own[i];
                    work.region[i] &= work.spare[i];
                }
                __syncthreads();
            }
            const ChannelMask mask = {work.spare, work.region, work.soft, box, region_box, exclude};
            for (int c = 0; c < channels; ++c)
                if (cut[c] == m) {
                    const Tile<Pixel> tile = {image + c * slide_size, height, width, y0, x0, false};
                    write_channel(tile, mask, S, options, numbers, given_limits + 2 * c, stretch[c] != 0,
                                  tile_out + (n_stored + c) * plane_size,
                                  used_limits + ((size_t)cell * channels + c) * 2);
                }
            // No barrier is needed here: the next mask writes only `own`, `other` and `region`, which are no longer
            // read, before the first barrier that it reaches.
        }
    }
}
