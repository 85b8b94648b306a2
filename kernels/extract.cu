// The fused extraction: one block makes the finished tile of one cell, from label and image pixels to output values.
//
// Oracle: gpu_extract/backends/reference.py, extract_tile. Grid: any number of blocks; they take turns over the
// cells. Block: THREADS threads. Masks live as bit rows and the blurred mask as floats in `workspace`: dynamic shared
// memory, or, where a tile is too large for that, the block's own part of `scratch` in global memory, with the same
// code. Nothing else leaves the chip but finished values.

#include "blur.cuh"
#include "quantile.cuh"
#include "scale.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;

// How many blocks have room by their registers; cuda_registry.py says the same. Doubles take two registers each.
template <typename Pixel> constexpr int BLOCKS_PER_MULTIPROCESSOR = sizeof(typename WorkOf<Pixel>::type) == 8 ? 1 : 2;

// The recipe, as the host lays it out; cuda_extract.py is the other side of these.
enum Option { EXCLUDE, APPLY_MASKS, CUT_BEFORE, LIMITS, SCALE, FLAT_ZERO, N_OPTIONS };
enum LimitsSource { LIMITS_OF_MASK, LIMITS_OF_TILE, LIMITS_GIVEN };
enum Number { UNIT, LOWER, UPPER, N_NUMBERS };
// One row of `masks`: which label plane, fill holes (0 or 1), radius of the disk, radius of the blur.
enum MaskColumn { PLANE, FILL, DILATION, BLUR, N_MASK_COLUMNS };

struct Workspace {
    u32 *own, *other, *region, *spare;  // bit rows, S * W words each
    float *rows;                        // WARPS rows of S
    float *soft;                        // (S, S)
};

__device__ __forceinline__ Workspace make_workspace(unsigned char *memory, int S) {
    const int words = S * ((S + 31) >> 5);
    u32 *bits = (u32 *)memory;
    float *rows = (float *)(bits + 4 * words);
    return {bits, bits + words, bits + 2 * words, bits + 3 * words, rows, rows + WARPS * S};
}

// A cell's tile on the image: pixels are read where they lie on the slide, and are 0 elsewhere.
template <typename Pixel> struct Tile {
    const Pixel *channel;
    int height, width, y0, x0;

    __device__ __forceinline__ bool on_slide(int y, int x) const {
        return y0 + y >= 0 && y0 + y < height && x0 + x >= 0 && x0 + x < width;
    }
    template <typename Work> __device__ __forceinline__ Work at(int y, int x) const {
        return on_slide(y, x) ? to_work<Work>(channel[(size_t)(y0 + y) * width + x0 + x]) : (Work)0;
    }
};

// Call visit(y, x) for the pixels of a box: a warp takes a row, a lane a column.
template <typename Visit> __device__ __forceinline__ void for_box(const Box &box, const Visit &visit) {
    for (int y = box.y0 + (int)(threadIdx.x >> 5); y < box.y1; y += WARPS)
        for (int x = box.x0 + (int)(threadIdx.x & 31); x < box.x1; x += 32) visit(y, x);
}

__device__ __forceinline__ bool contains(const Box &box, int y, int x) {
    return y >= box.y0 && y < box.y1 && x >= box.x0 && x < box.x1;
}

// How many threads' counts there are in all.
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

// What one channel is masked with.
struct ChannelMask {
    const u32 *free, *region;  // bit rows: not on a neighbour; the expanded mask without neighbours
    const float *soft;
    Box box, region_box;  // beyond them soft, and region, are 0
    bool exclude;

    __device__ __forceinline__ float at(int y, int x, int S, int W) const {
        return exclude && !bit(free, W, y, x) ? 0.0f : soft[y * S + x];
    }
};

// The lower and upper quantile of a channel of one cell.
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

// Minimum and maximum over the tile of what is `value(y, x)` within `box`, and `outside` elsewhere.
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

// Write a plane of the tile: `value(y, x)` within `box`, `outside` elsewhere.
template <typename Out, typename Work, typename Value>
__device__ __forceinline__ void write_plane(Out *plane, const Box &box, int S, Work outside, const Value &value) {
    for_box({0, 0, S, S}, [&](int y, int x) { store(plane + y * S + x, contains(box, y, x) ? value(y, x) : outside); });
}

// One channel: limits, scaling, masking, stretch, output. Every thread of the block takes part.
template <typename Pixel, typename Out>
__device__ void write_channel(const Tile<Pixel> &tile, const ChannelMask &mask, int S, const int *options,
                              const double *numbers, const double *given_limits, bool stretched, Out *plane,
                              double *used_limits) {
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
    // Where nothing is left of the mask: 0, unless a channel that was cut first is scaled from below 0.
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

// image (C, height, width); labels (M, height, width), unsigned, of `label_nbytes` each; ids (n,); corners (n, 2): (y, x)
// of each tile's first pixel in the image, may lie outside it; masks (n_masks, N_MASK_COLUMNS), in the order in
// which they are made; weights (n_masks, weight_stride), from the centre outwards; stored (M,), cut (C,): rows of
// `masks`; stretch (C,): 0 or 1; options (N_OPTIONS,); numbers: the stored value of 1, lower and upper quantile;
// given_limits (C, 2), read for LIMITS_GIVEN; scratch: scratch_nbytes for each block of the grid, or 0 for shared memory;
// out (n, M + C, S, S); used_limits (n, C, 2).
template <typename Pixel, typename Out>
__global__ void __launch_bounds__(THREADS, BLOCKS_PER_MULTIPROCESSOR<Pixel>)
extract(const Pixel *__restrict__ image, int channels, int height, int width, const u8 *__restrict__ labels,
        int label_nbytes, const u64 *__restrict__ ids, const int *__restrict__ corners, int n_cells, int S,
        const int *__restrict__ masks, int n_masks, const float *__restrict__ weights, int weight_stride,
        const int *__restrict__ stored, int n_stored, const int *__restrict__ cut, const int *__restrict__ stretch,
        const int *__restrict__ options, const double *__restrict__ numbers, const double *__restrict__ given_limits,
        u8 *__restrict__ scratch, u64 scratch_nbytes, Out *__restrict__ out, double *__restrict__ used_limits) {
    typedef typename WorkOf<Pixel>::type Work;
    extern __shared__ __align__(16) unsigned char dynamic_shared[];
    __shared__ int box_of_mask[4];
    const Workspace work = make_workspace(scratch_nbytes ? scratch + blockIdx.x * scratch_nbytes : dynamic_shared, S);
    const size_t plane_size = (size_t)S * S, slide_size = (size_t)height * width;
    const int words = S * ((S + 31) >> 5);
    const bool exclude = options[EXCLUDE] != 0;

    for (int cell = blockIdx.x; cell < n_cells; cell += gridDim.x) {
        const int y0 = corners[2 * cell], x0 = corners[2 * cell + 1];
        Out *tile_out = out + (size_t)cell * (n_stored + channels) * plane_size;
        for (int m = 0; m < n_masks; ++m) {
            const int *steps = masks + m * N_MASK_COLUMNS;
            const u8 *plane = labels + (size_t)steps[PLANE] * slide_size * label_nbytes;
            switch (label_nbytes) {
                case 1: select_labels((const u8 *)plane, height, width, y0, x0, ids[cell], S, work.own, work.other); break;
                case 2: select_labels((const u16 *)plane, height, width, y0, x0, ids[cell], S, work.own, work.other); break;
                case 4: select_labels((const u32 *)plane, height, width, y0, x0, ids[cell], S, work.own, work.other); break;
                default: select_labels((const u64 *)plane, height, width, y0, x0, ids[cell], S, work.own, work.other);
            }
            if (steps[FILL]) fill_holes(work.own, S, work.region, work.spare);
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
                    const Tile<Pixel> tile = {image + c * slide_size, height, width, y0, x0};
                    write_channel(tile, mask, S, options, numbers, given_limits + 2 * c, stretch[c] != 0,
                                  tile_out + (n_stored + c) * plane_size,
                                  used_limits + ((size_t)cell * channels + c) * 2);
                }
            // The next mask begins with `own` and `other`, which nobody reads any more, and ends them with a barrier.
        }
    }
}
