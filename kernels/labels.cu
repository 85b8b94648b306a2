// Statistics of the labels of a slide: pixel count, coordinate sums and bounding box of each label, in one pass.
//
// Oracle: label_statistics in gpu_extract/labels.py.
// Grid: any number of blocks, for all kernels; warps or threads loop with the stride of the grid.
// Block: THREADS threads.
// On entry: coordinates fit in 32-bit integers with room for SIDE more; `capacity` is a power of two; clear_labels has
// cleared table and counters before the first strip of a slide.
//
// add_labels: each warp processes squares of SIDE x SIDE pixels, each lane a column of the square, kept in registers.
// For each label in the square, every lane makes a word of bits, one per row; the statistics follow from these words by
// bit counts and a few shuffles. Each lane then keeps the result of one label, and all lanes add theirs to the table at
// once, so a label costs one set of atomics per square. All sums are of integers, so they do not depend on the order.
//
// The table is a hash table with open addressing and linear probing: `capacity` entries of N_FIELDS words. Key 0 is an
// empty entry, as label 0 is background. A 0 in any other field means that nothing was added: instead of a minimum, the
// table keeps the largest distance from the far edge. Strips of a slide add to the same table.
// If a label finds no entry within MAX_PROBES probes, OVERFLOW is set; the host then starts again with a larger table.

#include "types.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;
constexpr int SIDE = 32;  // of the square of a warp, pixels: the bits of a word, and the lanes of a warp
constexpr int MAX_PROBES = 128;
constexpr u32 ALL_LANES = 0xffffffffu;

// Positions in an entry and in `counters`; backends/cuda/labels.py has the same order.
enum Field { KEY, COUNT, SUM_Y, SUM_X, FROM_BOTTOM, FROM_RIGHT, END_Y, END_X, N_FIELDS };
enum Counter { N_LABELS, OVERFLOW, N_COUNTERS };

// Statistics of one label within one square.
struct PartialStatistics {
    u64 id;
    u32 count_y;        // pixel count in the low half, sum of y in the high half: at most 1,024 and 15,872
    u32 sum_x;
    u32 rows, columns;  // the rows and columns that contain the label, one bit each
};

// Return the sum of the positions of the set bits.
__device__ __forceinline__ u32 sum_of_positions(u32 bits) {
    return (u32)(__popc(bits & 0xaaaaaaaau) + 2 * __popc(bits & 0xccccccccu) + 4 * __popc(bits & 0xf0f0f0f0u) +
                 8 * __popc(bits & 0xff00ff00u) + 16 * __popc(bits & 0xffff0000u));
}

// Combine the lanes' columns to the statistics of label `id`. `rows`: the rows of the lane's column with this label.
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

// Hash a label by the finalizer of MurmurHash3 (Appleby, public domain): every bit of the id affects every bit of the
// result. Otherwise ids that differ only in their high bits would collide.
__device__ __forceinline__ u64 hash_id(u64 id) {
    id = (id ^ id >> 33) * 0xff51afd7ed558ccdull;
    id = (id ^ id >> 33) * 0xc4ceb9fe1a85ec53ull;
    return id ^ id >> 33;
}

// Return the entry of a label, inserting it if necessary; null if no entry is free. Each lane calls this on its own.
__device__ u64 *find_entry(u64 id,
                           u64 *table,       // (capacity, N_FIELDS), updated
                           u64 capacity,
                           u64 *counters) {  // (N_COUNTERS,), updated
    u64 slot = hash_id(id);
    for (int probe = 0; probe < MAX_PROBES; ++probe, ++slot) {
        u64 *entry = table + (slot & (capacity - 1)) * N_FIELDS;
        const u64 key = atomicCAS(entry + KEY, 0ull, id);
        if (key == 0) atomicAdd(counters + N_LABELS, 1ull);
        if (key == 0 || key == id) return entry;
    }
    return nullptr;
}

// Add the statistics of a label in the square at (y, x) of the slide to the table.
__device__ void add_to_table(const PartialStatistics &found, u64 y, u64 x, u64 slide_height, u64 width,
                             u64 *table,       // (capacity, N_FIELDS), updated
                             u64 capacity,
                             u64 *counters) {  // (N_COUNTERS,), updated
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

// Add the labels of a strip of a slide to the table.
template <typename Label>
__global__ void __launch_bounds__(THREADS, 2)
add_labels(const Label *__restrict__ labels,  // (height, width): rows y0 .. y0 + height - 1 of the slide
           int height,
           int width,
           int y0,
           int slide_height,
           u64 capacity,
           u64 *table,                        // (capacity, N_FIELDS), updated
           u64 *counters) {                   // (N_COUNTERS,), updated
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
        u32 pending = 0;  // pixels of the lane's column whose label was not processed yet
#pragma unroll
        for (int i = 0; i < SIDE; ++i) pending |= (u32)(pixels[i] != 0) << i;

        PartialStatistics mine = {};
        int n = 0;  // labels processed but not yet added to the table; lane i keeps label i
        for (;;) {
            const u32 lanes = __ballot_sync(ALL_LANES, pending != 0);
            if (n == 32 || (lanes == 0 && n > 0)) {
                if (lane < n)
                    add_to_table(mine, (u64)(y0 + y), (u64)x, (u64)slide_height, (u64)width, table, capacity, counters);
                n = 0;
            }
            if (lanes == 0) break;
            const int leader = __ffs((int)lanes) - 1;
            // Read the label again from memory (it is in the cache): registers cannot be indexed by a runtime value.
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

// Clear the table and the counters.
__global__ void __launch_bounds__(THREADS, 2)
clear_labels(u64 capacity,
             u64 *table,       // (capacity, N_FIELDS), written
             u64 *counters) {  // (N_COUNTERS,), written
    const u64 step = (u64)gridDim.x * THREADS, first = (u64)blockIdx.x * THREADS + threadIdx.x;
    for (u64 i = first; i < capacity * N_FIELDS; i += step) table[i] = 0;
    if (first < N_COUNTERS) counters[first] = 0;
}

// Copy the entries in use to `entries`, in no particular order.
__global__ void __launch_bounds__(THREADS, 2)
collect_labels(const u64 *__restrict__ table,  // (capacity, N_FIELDS)
               u64 capacity,
               u64 *collected,                 // (1,), 0 on entry: the number of entries copied
               u64 *__restrict__ entries) {    // (counters[N_LABELS], N_FIELDS), written
    const u64 step = (u64)gridDim.x * THREADS;
    for (u64 slot = (u64)blockIdx.x * THREADS + threadIdx.x; slot < capacity; slot += step) {
        const u64 *entry = table + slot * N_FIELDS;
        if (entry[KEY] == 0) continue;
        u64 *copy = entries + atomicAdd(collected, 1ull) * N_FIELDS;
        for (int field = 0; field < N_FIELDS; ++field) copy[field] = entry[field];
    }
}
