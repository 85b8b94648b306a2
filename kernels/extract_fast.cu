// The fused extraction for tiles of at most 128 x 128 pixels. One block computes the finished tile of one cell, from
// labels and pixels to output values, as extract.cu does, in a third to a fifth of the instructions: a row of a mask
// is one value of 128 bits, masks are blurred by tables, quantiles are found from the extremes, and only boxes are
// computed.
//
// Oracle: extract_tile in gpu_extract/backends/reference.py.
// Grid: any number of blocks; each block loops over cells with the stride of the grid.
// Block: THREADS threads.
// Memory: dynamic shared memory holds struct Shared, two masks per label plane, the blurs' tables and profiles, and the
// blurred mask within its box (soft_capacity floats).
// On entry: as for extract.cu; also, S is a multiple of 4 and at most MAX_S, radii are at most MAX_RADIUS, and ids and
// labels have at most 32 bits. gpu_extract/backends/cuda/registry.py chooses the programs that come here.
// On exit: `redo` marks the cells that do not fit the limits of this kernel, because the blurred mask is larger than
// soft_capacity, or because too many pixels lie beyond a quantile. extract.cu computes them again.

#include "fast_blur.cuh"
#include "fast_fill.cuh"
#include "fast_quantile.cuh"
#include "fast_select.cuh"
#include "fast_write.cuh"
#include "program.cuh"

// One cell, the same for all threads.
struct Cell {
    u32 id;
    int n;           // its index
    int y0, x0;      // the tile's first pixel; may lie outside the image
    int is_inside;   // the whole tile is on the slide
};

// The boxes of a mask: before the blur, and of the quads within which the blurred mask is not 0.
struct MaskBoxes {
    Box region, soft;
};

// Values that are the same for all threads are here, too, because the compiler would keep them in registers.
struct Shared {
    union {                         // in this order of use
        FillRows fill;
        float strip[MAX_S][STRIP];  // of the blur
        Extremes extremes;
    };
    ExtendedRows extended;          // the dilated mask for the blur
    Row region[MAX_S];              // the dilated mask; later the pixels whose quantiles are taken
    BoxParts box_parts;
    WarpRanges ranges[GROUP];
    u32 n_pixels;                   // in `region`
    int must_redo;
    Cell cell;
    MaskBoxes boxes;
    int options[N_OPTIONS];
    double numbers[N_NUMBERS];
};
// backends/cuda/extract.py computes the size of dynamic shared memory from this number.
static_assert(sizeof(Shared) == 23264, "FAST_SHARED_NBYTES in backends/cuda/extract.py must equal sizeof(Shared)");

// The recipe, in global memory; see the arguments of the kernel.
struct Program {
    const int *stored, *order, *starts, *stretch;
    const double *given_limits;
    int n_masks, n_planes, n_channels;
};

// The block's part of shared memory behind struct Shared.
struct Memory {
    Row *own, *other;       // (n_planes, MAX_S): the cell, filled, and its neighbours
    const float *tables;    // (n_tables, TABLE_SIZE)
    const float *profiles;  // (n_masks, PROFILE_SIZE)
    const int *masks;       // (n_masks, N_MASK_COLUMNS)
    float *soft;            // (soft_capacity,)

    __device__ __forceinline__ int steps(int mask, MaskColumn column) const {
        return masks[mask * N_MASK_COLUMNS + column];
    }
};

// Divide shared memory, and copy into it what all cells need. The barrier after it is the caller's.
__device__ __forceinline__ Memory make_memory(Shared &shared, const Program &program,
                                              const float *tables,      // (n_tables, TABLE_SIZE)
                                              int n_tables,
                                              const float *profiles,    // (n_masks, PROFILE_SIZE)
                                              const int *masks,         // (n_masks, N_MASK_COLUMNS)
                                              const int *options,       // (N_OPTIONS,)
                                              const double *numbers) {  // (N_NUMBERS,)
    Row *own = (Row *)(&shared + 1), *other = own + program.n_planes * MAX_S;
    float *table = (float *)(other + program.n_planes * MAX_S), *profile = table + n_tables * TABLE_SIZE;
    const int n_weights = program.n_masks * PROFILE_SIZE, n_steps = program.n_masks * N_MASK_COLUMNS;
    int *steps = (int *)(profile + n_weights);
    float *soft = (float *)(steps + ((n_steps + 3) & ~3));  // 16-byte aligned
    const auto copy = [&](float *to, const float *from, int n) {
        for (int i = threadIdx.x; i < n / 4; i += THREADS) ((float4 *)to)[i] = ((const float4 *)from)[i];
    };
    copy(table, tables, n_tables * TABLE_SIZE);
    copy(profile, profiles, n_weights);
    Row *extended = (Row *)shared.extended;
    for (int i = threadIdx.x; i < (int)(sizeof(ExtendedRows) / sizeof(Row)); i += THREADS) extended[i] = {0, 0, 0, 0};
    for (int i = threadIdx.x; i < n_steps; i += THREADS) steps[i] = masks[i];
    if (threadIdx.x < N_OPTIONS) shared.options[threadIdx.x] = options[threadIdx.x];
    if (threadIdx.x < N_NUMBERS) shared.numbers[threadIdx.x] = numbers[threadIdx.x];
    return {own, other, table, profile, steps, soft};
}

// Make the masks of a cell in all label planes: select, then fill holes. Ends with a barrier.
__device__ __forceinline__ void make_planes(Shared &shared, const Memory &memory, const Program &program,
                                            const u8 *labels,  // (n_planes, height, width) of label_nbytes bytes
                                            int label_nbytes, int height, int width, int S, Row inside_tile) {
    const Cell cell = shared.cell;
    const bool exclude = shared.options[EXCLUDE] != 0;
#pragma unroll 1
    for (int p = 0; p < program.n_planes; ++p) {
        const u8 *plane = labels + (size_t)p * height * width * label_nbytes;
        Row *own = memory.own + p * MAX_S, *other = memory.other + p * MAX_S;
        const auto select = [&](auto typed) {
            select_rows(typed, height, width, cell.y0, cell.x0, cell.id, S, cell.is_inside, exclude, own, other);
        };
        if (label_nbytes == 4) select((const u32 *)plane);
        else if (label_nbytes == 2) select((const u16 *)plane);
        else select(plane);
    }
    __syncthreads();
    const int half = threadIdx.x / MAX_S;
#pragma unroll 1
    for (int first = 0; first < program.n_planes; first += 2) {
        const int p = first + half;
        bool wanted = false;
        for (int m = 0; m < program.n_masks; ++m) wanted |= memory.steps(m, PLANE) == p && memory.steps(m, FILL);
        fill_holes(memory.own + p * MAX_S, wanted, S, inside_tile, shared.fill);
    }
}

// Dilate a mask into shared.region. Ends with a barrier.
__device__ __forceinline__ MaskBoxes dilate_mask(Shared &shared, const Memory &memory, const Program &program, int m,
                                                 int S, Row inside_tile) {
    const int y = thread_index(), radius = memory.steps(m, BLUR);
    if (y < MAX_S) {
        const Row *own = memory.own + memory.steps(m, PLANE) * MAX_S;
        Row row = {0, 0, 0, 0};
        if (y < S) row = dilated_row(own, y, memory.steps(m, DILATION), S) & inside_tile;
        shared.region[y] = row;
        if (radius) extend_row(row, y, S, inside_tile, shared.extended);
        add_to_box(row, shared.box_parts);
    }
    __syncthreads();
    const Box region = box_of(shared.box_parts);
    const Box soft = aligned(grow(region, radius, S));
    if (threadIdx.x == 0) shared.boxes = {region, soft};  // for use after the next barrier
    return {region, soft};
}

// Return whether a mask's factors are needed: for a blurred mask plane, or to cut channels.
__device__ __forceinline__ bool is_soft_needed(const Shared &shared, const Memory &memory, const Program &program,
                                               int m) {
    return memory.steps(m, BLUR) || (shared.options[APPLY_MASKS] && program.starts[m] < program.starts[m + 1]);
}

// Compute the factors of a mask within its box into memory.soft. The barrier after it is the caller's.
__device__ __forceinline__ void soften_mask(Shared &shared, const Memory &memory, const Program &program, int m, int S,
                                            const MaskBoxes &boxes, const Quads &quads) {
    const int radius = memory.steps(m, BLUR);
    if (radius) {
        blur_rows(shared.extended, boxes.region, boxes.soft, S, radius,
                  memory.tables + memory.steps(m, TABLE) * TABLE_SIZE, memory.profiles + m * PROFILE_SIZE,
                  shared.strip, memory.soft);
        return;
    }
    for_quads(quads, [&](int y, int x, int i) {
        const u32 bits = bits_at(shared.region, y, x);
        ((float4 *)memory.soft)[i] = {(float)(bits & 1u), (float)(bits >> 1 & 1u), (float)(bits >> 2 & 1u),
                                      (float)(bits >> 3 & 1u)};
    });
}

// Set the factors of pixels on a neighbour to 0. No barrier is needed before or after, because a quad always belongs to
// the same thread.
__device__ __forceinline__ void exclude_neighbours(const Memory &memory, int plane, const Quads &quads) {
    const Row *own = memory.own + plane * MAX_S, *other = memory.other + plane * MAX_S;
    for_quads(quads, [&](int y, int x, int i) {
        const u32 bits = bits_at(other, y, x) & ~bits_at(own, y, x) & 15u;
        if (!bits) return;
#pragma unroll
        for (int k = 0; k < 4; ++k)
            if (bits >> k & 1u) memory.soft[4 * i + k] = 0.0f;
    });
}

// Remove neighbours and pixels outside the slide from shared.region, and count the others. Ends with a barrier.
__device__ __forceinline__ void count_region(Shared &shared, const Memory &memory, int plane, bool exclude, int height,
                                            int width, int S) {
    const int y = thread_index();
    const Cell cell = shared.cell;
    if (y == 0) shared.n_pixels = 0;
    __syncthreads();
    if (y < MAX_S) {
        Row row = {0, 0, 0, 0};
        if (y < S && cell.y0 + y >= 0 && cell.y0 + y < height) row = shared.region[y];
        if (exclude && y < S) row = row & (~memory.other[plane * MAX_S + y] | memory.own[plane * MAX_S + y]);
        if (!cell.is_inside) row = row & range_row(max(-cell.x0, 0), min(width - cell.x0, S));
        shared.region[y] = row;
        const u32 n = warp_sum(count_bits(row));
        if ((y & 31) == 0) atomicAdd(&shared.n_pixels, n);
    }
    __syncthreads();
}

// Channels that are cut with the same mask and processed together.
struct Group {
    const int *channels;  // (n,)
    int n;                // at most GROUP
};

// Everything that a step of one mask of one cell needs.
template <typename Pixel> struct MaskOfCell {
    const Pixel *image;  // (C, height, width)
    int height, width, S;
    const Cell *cell;
    const float4 *soft;  // factors of the quads of the mask
    const Row *region;   // (S,): pixels whose quantiles are taken

    __device__ __forceinline__ Tile<Pixel> tile(int channel) const {
        return {image + (size_t)channel * height * width, height, width, cell->y0, cell->x0, cell->is_inside != 0};
    }
};

// Call visit(keys, 15) for the quads of the whole tile.
template <typename Order, typename Pixel, typename Visit>
__device__ __forceinline__ void for_keys_of_tile(const Tile<Pixel> &tile, int S, const Visit &visit) {
    for_tile_quads(S, [&](int y, int x) {
        Pixel pixel[4];
        tile.load(y, x, pixel);
        const u32 keys[4] = {Order::key((int)pixel[0]), Order::key((int)pixel[1]), Order::key((int)pixel[2]),
                             Order::key((int)pixel[3])};
        visit(keys, 15u);
    });
}

// Call visit(keys, bits) for the quads of a box that contains the region; bits are the pixels of the region.
template <typename Order, typename Pixel, typename Visit>
__device__ __forceinline__ void for_keys_of_region(const Tile<Pixel> &tile, const Quads &quads, const Row *region,
                                                   const Visit &visit) {
    for_quads(quads, [&](int y, int x, int) {
        Pixel pixel[4];
        tile.load(y, x, pixel);
        const u32 keys[4] = {Order::key((int)pixel[0]), Order::key((int)pixel[1]), Order::key((int)pixel[2]),
                             Order::key((int)pixel[3])};
        visit(keys, bits_at(region, y, x) & 15u);
    });
}

// The same for the products of pixels and factors. Without a region (null), the whole tile counts: the zeros outside
// the box are visited once per thread at most, because no rank beyond the number of threads is looked for.
template <typename Order, typename Pixel, typename Visit>
__device__ __forceinline__ void for_keys_of_products(const Tile<Pixel> &tile, const Quads &quads, const float4 *soft,
                                                     const Row *region, int S, const Visit &visit) {
    for_quads(quads, [&](int y, int x, int i) {
        Pixel pixel[4];
        tile.load(y, x, pixel);
        const float4 factor = soft[i];
        const u32 keys[4] = {Order::key((float)pixel[0] * factor.x), Order::key((float)pixel[1] * factor.y),
                             Order::key((float)pixel[2] * factor.z), Order::key((float)pixel[3] * factor.w)};
        visit(keys, region ? bits_at(region, y, x) & 15u : 15u);
    });
    const int n_zeros = S * S - area(quads.box);
    const u32 zero = Order::key(0.0f), zeros[4] = {zero, zero, zero, zero};
    if (!region && (int)threadIdx.x < n_zeros) visit(zeros, 1u);
}

// Find the quantiles of a group of channels into shared.extremes.limits. Ends with a barrier.
template <typename Pixel>
__device__ __forceinline__ void find_limits(Shared &shared, const Program &program, const MaskOfCell<Pixel> &mask,
                                            const Group &group) {
    typedef typename PixelOrder<Pixel>::type Raw;
    typedef typename ProductOrder<Pixel>::type Product;
    const bool of_region = shared.options[LIMITS] == LIMITS_OF_MASK;
    const u32 count = of_region ? shared.n_pixels : (u32)(mask.S * mask.S);
    const bool of_products = shared.options[CUT_BEFORE] && shared.options[APPLY_MASKS];
    Box box = {0, 0, mask.S, mask.S};
    if (of_products) box = shared.boxes.soft;
    else if (of_region) box = aligned(shared.boxes.region);
    const Quads quads = quads_of(box);
    const auto for_each = [&](int k, const auto &visit) {
        const Tile<Pixel> tile = mask.tile(group.channels[k]);
        if (of_products)
            for_keys_of_products<Product>(tile, quads, mask.soft, of_region ? mask.region : nullptr, mask.S, visit);
        else if (of_region) for_keys_of_region<Raw>(tile, quads, mask.region, visit);
        else for_keys_of_tile<Raw>(tile, mask.S, visit);
    };
    const auto value_of = [&](u32 key) { return of_products ? Product::value(key) : Raw::value(key); };
    extreme_limits(shared.extremes, group.n, count, shared.numbers[LOWER], shared.numbers[UPPER],
                   8 * (of_products ? Product::DIGITS : Raw::DIGITS), for_each, value_of, shared.must_redo);
}

// Scale, cut, stretch and write a group of channels. `limits_of(k)` are the limits of channel k of the group.
template <Mode MODE, typename Pixel, typename Out, typename LimitsOf>
__device__ __forceinline__ void write_channels(Shared &shared, const Program &program, const MaskOfCell<Pixel> &mask,
                                               const Group &group, const LimitsOf &limits_of,
                                               Out *planes) {  // (C, S, S), written
    const float unit = (float)shared.numbers[UNIT];
    const Quads quads = quads_of(shared.options[APPLY_MASKS] ? shared.boxes.soft : Box{0, 0, mask.S, mask.S});
    const auto values_of = [&](int k) {
        const Scaling scaling = scaling_between(limits_of(k), shared.options[FLAT_ZERO] != 0);
        return ChannelValues<MODE, Pixel>{mask.tile(group.channels[k]), scaling, mask.soft};
    };
    bool is_any_stretched = false;
#pragma unroll 1
    for (int k = 0; k < group.n; ++k)
        if (program.stretch[group.channels[k]]) {
            find_range(quads, values_of(k), shared.ranges[k]);
            is_any_stretched = true;
        }
    if (is_any_stretched) __syncthreads();
#pragma unroll 1
    for (int k = 0; k < group.n; ++k) {
        const int channel = group.channels[k];
        const auto values = values_of(k);
        const float outside = values.outside();
        Stretch stretch = {0.0f, unit};
        if (program.stretch[channel])
            stretch = stretch_between(shared.ranges[k], !is_whole(quads.box, mask.S), outside, unit);
        write_quads(planes + (size_t)channel * mask.S * mask.S, quads, mask.S, stretch(outside),
                    [&](int y, int x, int i, float (&quad)[4]) {
                        values(y, x, i, quad);
#pragma unroll
                        for (int j = 0; j < 4; ++j) quad[j] = stretch(quad[j]);
                    });
    }
}

// Compute and write a group of channels. Called by all threads of the block.
template <typename Pixel, typename Out>
__device__ __forceinline__ void process_channels(Shared &shared, const Program &program, const MaskOfCell<Pixel> &mask,
                                                 const Group &group,
                                                 Out *planes,            // (C, S, S), written
                                                 double *used_limits) {  // (C, 2), written
    const bool is_given = shared.options[LIMITS] == LIMITS_GIVEN;
    const bool is_empty = shared.options[LIMITS] == LIMITS_OF_MASK && shared.n_pixels == 0;
    if (!is_given && !is_empty) find_limits(shared, program, mask, group);
    const auto limits_of = [&](int k) {
        const double *given = program.given_limits + 2 * group.channels[k];
        if (is_given) return Limits{given[0], given[1]};
        return is_empty ? Limits{0.0, 0.0} : Limits{shared.extremes.limits[k][0], shared.extremes.limits[k][1]};
    };
    if ((int)threadIdx.x < group.n) {
        const Limits limits = limits_of(threadIdx.x);
        used_limits[2 * group.channels[threadIdx.x]] = limits.lower;
        used_limits[2 * group.channels[threadIdx.x] + 1] = limits.upper;
    }
    switch (mode_of(shared.options[SCALE] != 0, shared.options[APPLY_MASKS] != 0, shared.options[CUT_BEFORE] != 0)) {
        case Mode::RAW: write_channels<Mode::RAW>(shared, program, mask, group, limits_of, planes); break;
        case Mode::RAW_CUT: write_channels<Mode::RAW_CUT>(shared, program, mask, group, limits_of, planes); break;
        case Mode::SCALED: write_channels<Mode::SCALED>(shared, program, mask, group, limits_of, planes); break;
        case Mode::CUT_THEN_SCALED:
            write_channels<Mode::CUT_THEN_SCALED>(shared, program, mask, group, limits_of, planes);
            break;
        default: write_channels<Mode::SCALED_THEN_CUT>(shared, program, mask, group, limits_of, planes);
    }
}

// Write the mask planes of the tile that show mask m.
template <typename Out>
__device__ __forceinline__ void write_masks(const Shared &shared, const Memory &memory, const Program &program, int m,
                                            int S, const Quads &quads,
                                            Out *planes) {  // (n_planes, S, S), written
    const float unit = (float)shared.numbers[UNIT];
#pragma unroll 1
    for (int k = 0; k < program.n_planes; ++k) {
        if (program.stored[k] != m) continue;
        Out *plane = planes + k * S * S;
        if (memory.steps(m, BLUR))
            write_quads(plane, quads, S, 0.0f, [&](int, int, int i, float (&quad)[4]) {
                const float4 soft = ((const float4 *)memory.soft)[i];
                quad[0] = soft.x * unit, quad[1] = soft.y * unit, quad[2] = soft.z * unit, quad[3] = soft.w * unit;
            });
        else
            write_quads(plane, quads, S, 0.0f, [&](int y, int x, int, float (&quad)[4]) {
                const u32 bits = bits_at(shared.region, y, x);
#pragma unroll
                for (int j = 0; j < 4; ++j) quad[j] = bits >> j & 1u ? unit : 0.0f;
            });
    }
}

// Compute the planes of a tile that depend on mask m, whose dilated mask is in shared.region.
template <typename Pixel, typename Out>
__device__ __forceinline__ void make_tile_planes(Shared &shared, const Memory &memory, const Program &program, int m,
                                                 const Pixel *image,  // (C, height, width)
                                                 int height, int width, int S, const MaskBoxes &boxes,
                                                 Out *out,               // (n, M + C, S, S), written
                                                 double *used_limits) {  // (n, C, 2), written
    const bool exclude = shared.options[EXCLUDE] != 0, has_channels = program.starts[m] < program.starts[m + 1];
    const int plane = memory.steps(m, PLANE);
    const Quads quads = quads_of(boxes.soft);
    if (is_soft_needed(shared, memory, program, m)) {
        soften_mask(shared, memory, program, m, S, boxes, quads);
        __syncthreads();
    }
    Out *planes = out + (size_t)shared.cell.n * (program.n_planes + program.n_channels) * S * S;
    write_masks(shared, memory, program, m, S, quads, planes);
    if (exclude && has_channels && shared.options[APPLY_MASKS]) exclude_neighbours(memory, plane, quads);
    if (has_channels && shared.options[LIMITS] == LIMITS_OF_MASK)
        count_region(shared, memory, plane, exclude, height, width, S);
    const MaskOfCell<Pixel> mask = {image, height, width, S, &shared.cell, (const float4 *)memory.soft, shared.region};
    const int first = program.starts[m], end = program.starts[m + 1];
#pragma unroll 1
    for (int c = first; c < end; c += GROUP) {
        if (c > first) __syncthreads();
        process_channels(shared, program, mask, Group{program.order + c, min(end - c, GROUP)},
                         planes + program.n_planes * S * S,
                         used_limits + (size_t)shared.cell.n * program.n_channels * 2);
    }
}

// How many blocks fit on a multiprocessor by their registers; backends/cuda/registry.py has the same numbers. Tile sizes
// that are not constant, and the order of signed products, take more registers.
template <typename Pixel, int TILE> constexpr int FAST_BLOCKS = TILE && (Pixel)-1 > 0 ? 3 : 2;

// Shapes: n cells, C channels, M label planes, k masks. TILE is the tile size if it is known at compile time, else 0.
template <typename Pixel, typename Out, int TILE>
__global__ void __launch_bounds__(THREADS, FAST_BLOCKS<Pixel, TILE>)
extract_fast(
    const Pixel *__restrict__ image,          // (C, height, width)
    int n_channels,                           // C
    int height,
    int width,
    const u8 *__restrict__ labels,            // (M, height, width) unsigned integers of label_nbytes bytes each
    int label_nbytes,                         // 1, 2 or 4
    const u64 *__restrict__ ids,              // (n,)
    const int *__restrict__ corners,          // (n, 2): (y, x) of each tile's first pixel, even outside the image
    int n_cells,                              // n
    int tile_size,                            // S, pixels
    const int *__restrict__ masks,            // (k, N_MASK_COLUMNS), see MaskColumn; processed in this order
    int n_masks,                              // k
    const float *__restrict__ tables,         // (n_tables, TABLE_SIZE): sums of weights by pixels along x
    int n_tables,
    const float *__restrict__ profiles,       // (k, PROFILE_SIZE): weights along y
    const int *__restrict__ stored,           // (M,): the mask of each mask plane of `out`, as a row of `masks`
    int n_planes,                             // M
    const int *__restrict__ order,            // (C,): the channels, those cut with the first mask first
    const int *__restrict__ starts,           // (k + 1,): where the channels of each mask start in `order`
    const int *__restrict__ stretch,          // (C,): 0 or 1
    const int *__restrict__ options,          // (N_OPTIONS,), see Option
    const double *__restrict__ numbers,       // (N_NUMBERS,), see Number
    const double *__restrict__ given_limits,  // (C, 2), used if options[LIMITS] is LIMITS_GIVEN
    int soft_capacity,                        // floats of dynamic shared memory for a blurred mask
    Out *__restrict__ out,                    // (n, M + C, S, S), written
    double *__restrict__ used_limits,         // (n, C, 2), written
    u8 *__restrict__ redo) {                  // (n,), written: 1 if extract must compute the cell
    extern __shared__ __align__(16) unsigned char dynamic_shared[];
    const int S = TILE ? TILE : tile_size;
    Shared &shared = *(Shared *)dynamic_shared;
    const Program program = {stored, order, starts, stretch, given_limits, n_masks, n_planes, n_channels};
    const Memory memory = make_memory(shared, program, tables, n_tables, profiles, masks, options, numbers);
    const Row inside_tile = range_row(0, S);

    for (int n = blockIdx.x; n < n_cells; n += gridDim.x) {
        if (threadIdx.x == 0) {
            const int y0 = corners[2 * n], x0 = corners[2 * n + 1];
            const bool is_inside = y0 >= 0 && x0 >= 0 && y0 + S <= height && x0 + S <= width;
            shared.cell = {(u32)ids[n], n, y0, x0, is_inside};
            shared.must_redo = ids[n] >> 32 != 0;  // no label of 32 bits equals such an id
        }
        __syncthreads();
        make_planes(shared, memory, program, labels, label_nbytes, height, width, S, inside_tile);
#pragma unroll 1
        for (int m = 0; m < n_masks; ++m) {
            const MaskBoxes boxes = dilate_mask(shared, memory, program, m, S, inside_tile);
            if (area(boxes.soft) <= soft_capacity || !is_soft_needed(shared, memory, program, m))
                make_tile_planes(shared, memory, program, m, image, height, width, S, boxes, out, used_limits);
            else if (threadIdx.x == 0) shared.must_redo = 1;
            __syncthreads();
        }
        if (threadIdx.x == 0) redo[shared.cell.n] = shared.must_redo != 0;
    }
}
