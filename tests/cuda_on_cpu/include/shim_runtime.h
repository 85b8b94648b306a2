// What kernels and cuda_shim.cpp know of each other.
#pragma once

namespace shim __attribute__((visibility("default"))) {  // shared by two libraries

// A line of the kernel source. As a default argument, here() is the line of the caller.
struct Site {
    const char* file;
    int line;
};
constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }

struct Block {
    uint3 index;
    dim3 size, grid;
    void* dynamic_shared;
};

struct Thread {
    uint3 index;
    unsigned number;  // in the block, x fastest; number / 32 is the warp
    Block* block;
};

// The running thread. "initial-exec": read without a call, so threadIdx costs what a variable costs.
extern __thread Thread* self __attribute__((tls_model("initial-exec")));

// Waits for the whole block; the number of threads that came with a true predicate.
int block_barrier(bool predicate, Site site);

// Waits for the lanes of the mask. Each brings a value; it gets that of lane `source` (or its own, if source is
// negative), and a bit for each lane whose value is not zero.
struct Exchange {
    uint64_t received;
    unsigned ballot;
};
Exchange warp_meeting(unsigned mask, uint64_t value, int source, Site site);

// Ends the launch with an error that names the thread and the line.
[[noreturn]] void fail(const char* why, Site site);

}  // namespace shim

#define threadIdx (shim::self->index)
#define blockIdx (shim::self->block->index)
#define blockDim (shim::self->block->size)
#define gridDim (shim::self->block->grid)
constexpr int warpSize = 32;
