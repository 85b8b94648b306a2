// Statistics of the labels of a slide: count, coordinate sums and bounding box of each, from one pass over the pixels.
//
// Oracle: gpu_extract/labels.py, label_statistics. A warp takes a square of 32 x 32 pixels, a lane a column of it, kept
// in registers. For each label in the square every lane makes a word of bits, one a row; what is to be known follows
// from these words by counting bits and a few shuffles. A lane then keeps what was found of one label, and all lanes
// add theirs to the table at once: a label costs one set of atomics for each square that it meets. All sums are of
// integers, so the result does not depend on the order.
//
// The table is open addressing with linear probing: `capacity` (a power of two) entries of N_FIELDS words, key 0 =
// empty, for label 0 is background. A 0 in any other field means nothing was seen: where a minimum is wanted, the
// table keeps the largest distance from the far edge. Strips of a slide add to the same table.
// A label for which no place is found within MAX_PROBES sets OVERFLOW; the table is then of no use, and the host
// starts again with a larger one.

#include "types.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;
constexpr int SIDE = 32;  // of the square of a warp: bits of a word, and lanes
constexpr int MAX_PROBES = 128;
constexpr u32 ALL_LANES = 0xffffffffu;

// One entry, and the counters; see cuda_labels.py, which is the other side of both.
enum Field { KEY, COUNT, SUM_Y, SUM_X, FROM_BOTTOM, FROM_RIGHT, END_Y, END_X, N_FIELDS };
enum Counter { N_LABELS, OVERFLOW, N_COUNTERS };

// What is known of one label in one square.
struct PartialStatistics {
    u64 id;
    u32 count_y;        // count in the low half, sum of y in the high one: at most 1,024 and 15,872
    u32 sum_x;
    u32 rows, columns;  // those that it meets, a bit each
};

// The sum of the numbers of the bits that are set.
__device__ __forceinline__ u32 sum_of_positions(u32 bits) {
    return (u32)(__popc(bits & 0xaaaaaaaau) + 2 * __popc(bits & 0xccccccccu) + 4 * __popc(bits & 0xf0f0f0f0u) +
                 8 * __popc(bits & 0xff00ff00u) + 16 * __popc(bits & 0xffff0000u));
}

// What all lanes together hold of label `id`; `rows` are the bits of the lane's own column.
__device__ __forceinline__ PartialStatistics reduce_over_warp(u64 id, u32 rows) {
    const u32 count = (u32)__popc(rows);
    PartialStatistics found = {id, count | sum_of_positions(rows) << 16, count * (threadIdx.x & 31), rows,
                               __ballot_sync(ALL_LANES, rows != 0)};
    for (int step = 16; step; step >>= 1) {
        found.count_y += __shfl_xor_sync(ALL_LANES, found.count_y, step);
        found.sum_x += __shfl_xor_sync(ALL_LANES, found.sum_x, step);
        found.rows |= __shfl_xor_sync(ALL_LANES, found.rows, step);
    }
    return found;
}

// Where a label's entry is looked for first: the finalizer of MurmurHash3 (Appleby, public domain), in which every bit
// of the id moves every bit of the result. Ids that differ only in high bits would else meet in one place.
__device__ __forceinline__ u64 hash_id(u64 id) {
    id = (id ^ id >> 33) * 0xff51afd7ed558ccdull;
    id = (id ^ id >> 33) * 0xc4ceb9fe1a85ec53ull;
    return id ^ id >> 33;
}

// The entry of a label, made where there is none; null where there is no room. A lane works by itself.
__device__ u64 *find_entry(u64 id, u64 *table, u64 capacity, u64 *counters) {
    u64 slot = hash_id(id);
    for (int probe = 0; probe < MAX_PROBES; ++probe, ++slot) {
        u64 *entry = table + (slot & (capacity - 1)) * N_FIELDS;
        const u64 key = atomicCAS(entry + KEY, 0ull, id);
        if (key == 0) atomicAdd(counters + N_LABELS, 1ull);
        if (key == 0 || key == id) return entry;
    }
    return nullptr;
}

// Add what was found of a label in the square at (y, x) of the slide.
__device__ void add_to_table(const PartialStatistics &found, u64 y, u64 x, u64 slide_height, u64 width, u64 *table,
                             u64 capacity, u64 *counters) {
    u64 *entry = find_entry(found.id, table, capacity, counters);
    if (!entry) {
        atomicOr(counters + OVERFLOW, 1ull);
        return;
    }
    const u64 count = found.count_y & 0xffffu;
    atomicAdd(entry + COUNT, count);
    atomicAdd(entry + SUM_Y, y * count + (found.count_y >> 16));
    atomicAdd(entry + SUM_X, x * count + found.sum_x);
    atomicMax(entry + FROM_BOTTOM, slide_height - (y + (u64)__ffs((int)found.rows) - 1));
    atomicMax(entry + FROM_RIGHT, width - (x + (u64)__ffs((int)found.columns) - 1));
    atomicMax(entry + END_Y, y + 32 - (u64)__clz((int)found.rows));
    atomicMax(entry + END_X, x + 32 - (u64)__clz((int)found.columns));
}

// labels (height, width), the rows y0 .. y0 + height - 1 of a slide of slide_height rows;
// table (capacity, N_FIELDS) and counters (N_COUNTERS,), zero before the first strip.
// Grid: any number of blocks; their warps take turns over the squares. Block: THREADS threads.
template <typename Label>
__global__ void __launch_bounds__(THREADS, 2)
add_labels(const Label *__restrict__ labels, int height, int width, int y0, int slide_height, u64 capacity, u64 *table,
           u64 *counters) {
    const int lane = threadIdx.x & 31;
    const int squares_x = (width + SIDE - 1) / SIDE;
    const u64 squares = (u64)squares_x * ((height + SIDE - 1) / SIDE), step = (u64)gridDim.x * WARPS;
    for (u64 square = (u64)blockIdx.x * WARPS + (threadIdx.x >> 5); square < squares; square += step) {
        const int y = (int)(square / squares_x) * SIDE, x = (int)(square % squares_x) * SIDE;
        const Label *column = labels + (size_t)y * width + x + lane;
        const int n_rows = x + lane < width ? min(SIDE, height - y) : 0;
        Label pixels[SIDE];
#pragma unroll
        for (int i = 0; i < SIDE; ++i) pixels[i] = i < n_rows ? column[(size_t)i * width] : (Label)0;
        u32 pending = 0;  // pixels of the lane's column whose label is still to be gathered
#pragma unroll
        for (int i = 0; i < SIDE; ++i) pending |= (u32)(pixels[i] != 0) << i;

        PartialStatistics mine = {};
        int n = 0;  // labels gathered and not yet in the table; lane i keeps the i-th
        for (;;) {
            const u32 lanes = __ballot_sync(ALL_LANES, pending != 0);
            if (n == 32 || (lanes == 0 && n > 0)) {
                if (lane < n)
                    add_to_table(mine, (u64)(y0 + y), (u64)x, (u64)slide_height, (u64)width, table, capacity, counters);
                n = 0;
            }
            if (lanes == 0) break;
            const int leader = __ffs((int)lanes) - 1;
            // From memory once more (it is in the cache), for registers cannot be indexed by a number found at run time.
            u64 id = lane == leader ? (u64)column[(size_t)(__ffs((int)pending) - 1) * width] : 0ull;
            id = __shfl_sync(ALL_LANES, id, leader);
            u32 rows = 0;
#pragma unroll
            for (int i = 0; i < SIDE; ++i) rows |= (u32)(pixels[i] == (Label)id) << i;
            pending &= ~rows;
            const PartialStatistics found = reduce_over_warp(id, rows);
            if (lane == n) mine = found;
            ++n;
        }
    }
}

// Empty the table and the counters. Grid: any number of blocks. Block: THREADS threads.
__global__ void __launch_bounds__(THREADS, 2) clear_labels(u64 capacity, u64 *table, u64 *counters) {
    const u64 step = (u64)gridDim.x * THREADS, first = (u64)blockIdx.x * THREADS + threadIdx.x;
    for (u64 i = first; i < capacity * N_FIELDS; i += step) table[i] = 0;
    if (first < N_COUNTERS) counters[first] = 0;
}

// Copy the entries in use, of which there are counters[N_LABELS], to `entries` (that many, N_FIELDS), in no particular
// order. `collected` (1,) is 0 on entry. Grid: any number of blocks. Block: THREADS threads.
__global__ void __launch_bounds__(THREADS, 2)
collect_labels(const u64 *__restrict__ table, u64 capacity, u64 *collected, u64 *__restrict__ entries) {
    const u64 step = (u64)gridDim.x * THREADS;
    for (u64 slot = (u64)blockIdx.x * THREADS + threadIdx.x; slot < capacity; slot += step) {
        const u64 *entry = table + slot * N_FIELDS;
        if (entry[KEY] == 0) continue;
        u64 *copy = entries + atomicAdd(collected, 1ull) * N_FIELDS;
        for (int field = 0; field < N_FIELDS; ++field) copy[field] = entry[field];
    }
}
