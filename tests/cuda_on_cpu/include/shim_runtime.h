// The interface between kernels and cuda_shim.cpp.
#pragma once

namespace shim __attribute__((visibility("default"))) {  // shared by two libraries

// A line of the kernel source. As a default argument, here() returns the line of the caller.
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

// The running thread. "initial-exec" avoids a function call, so threadIdx is as fast as a variable.
extern __thread Thread* self __attribute__((tls_model("initial-exec")));

// Wait for the whole block; return the number of threads whose predicate is true.
int block_barrier(bool predicate, Site site);

// Wait for the lanes of the mask. Each lane passes a value; it receives the value of lane `source` (its own if `source`
// is negative), and one bit per lane whose value is not zero.
struct Exchange {
    uint64_t received;
    unsigned ballot;
};
Exchange warp_meeting(unsigned mask, uint64_t value, int source, Site site);

// Abort the launch with an error that names the thread and the line.
[[noreturn]] void fail(const char* why, Site site);

}  // namespace shim

#define threadIdx (shim::self->index)
#define blockIdx (shim::self->block->index)
#define blockDim (shim::self->block->size)
#define gridDim (shim::self->block->grid)
constexpr int warpSize = 32;
