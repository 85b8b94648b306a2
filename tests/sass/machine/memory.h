// Global memory, of which only the kernel's arguments exist, and the shared memory of a block.
//
// Accesses that are misaligned or out of bounds are faults. So are uses of shared memory that was never written, and
// accesses of two warps to the same word of shared memory of which at least one is a write, if no barrier separates
// them: on a GPU, their order is not defined. Several warps may write the same value.
#pragma once
#include "machine.h"

constexpr u32 SHARED_BEGIN = 0x400;    // the first KiB of the window belongs to the system
constexpr u32 SHARED_WINDOW_HIGH = 1;  // the high word of generic addresses of shared memory

class SharedMemory {
  public:
    SharedMemory(u32 nbytes, int n_warps);
    // Return the bytes at an address of the shared window, after checking the access.
    u8 *read(u64 address, int nbytes, int warp, bool of_atomic);
    u8 *write(u64 address, int nbytes, int warp, const u8 *value);
    u8 *update(u64 address, int nbytes, int warp);  // atomically
    // Return a bit for each word of an access that has a byte which was never written.
    u32 unwritten(u64 address, int nbytes) const;
    // Order what the given warps did before with what they do from now on.
    void synchronize(u64 warps);

  private:
    struct Word {
        u8 written = 0;  // a bit per byte
        u8 atomic = 0;   // whether the last write was atomic
        u8 writer = 0;
        u32 write_time = 0;  // of the writer's clock; 0: never
    };
    u8 *checked(u64 address, int nbytes, const char *what) const;
    void check_writer(const Word &word, u64 address, int warp) const;
    void check_readers(size_t word, u64 address, int warp) const;
    u32 &read_time(size_t word, int warp) { return read_times_[word * n_warps_ + warp]; }

    int n_warps_;
    std::vector<u8> bytes_;
    std::vector<Word> words_;
    std::vector<u32> read_times_;  // (words, warps): when each warp last read a word
    std::vector<u32> clocks_;      // (warps, warps): up to which time of each other warp a warp is synchronized
};

// Return the bytes at a global address, after checking the access; `what` is "reads" or "writes".
u8 *global_bytes(Machine &machine, u64 address, int nbytes, const char *what);

// Record an access for the counters.
void record_shared(Step &s, Traffic::Kind kind, const u64 *addresses, int nbytes);
void record_global(Step &s, Traffic::Kind kind, const u64 *addresses, int nbytes);
// Compute the address of operand k in each active lane.
void addresses_of(const Step &s, int k, u64 *addresses);
