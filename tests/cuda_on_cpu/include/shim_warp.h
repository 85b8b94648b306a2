// Barriers, shuffles and votes. Each waits for other fibers in the scheduler.
#pragma once

inline void __syncthreads(shim::Site site = shim::here()) { shim::block_barrier(false, site); }
inline int __syncthreads_count(int predicate, shim::Site site = shim::here()) {
    return shim::block_barrier(predicate != 0, site);
}
inline int __syncthreads_or(int predicate, shim::Site site = shim::here()) {
    return shim::block_barrier(predicate != 0, site) != 0;
}
inline int __syncthreads_and(int predicate, shim::Site site = shim::here()) {
    return shim::block_barrier(predicate == 0, site) == 0;
}

// Fibers of a block share one thread, so every earlier write is visible. Memory order is not modelled.
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

inline void __syncwarp(unsigned mask = 0xffffffffu, shim::Site site = shim::here()) {
    shim::warp_meeting(mask, 0, -1, site);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, shim::Site site = shim::here()) {
    return shim::warp_meeting(mask, predicate != 0, -1, site).ballot;
}
inline int __any_sync(unsigned mask, int predicate, shim::Site site = shim::here()) {
    return shim::warp_meeting(mask, predicate != 0, -1, site).ballot != 0;
}
inline int __all_sync(unsigned mask, int predicate, shim::Site site = shim::here()) {
    return shim::warp_meeting(mask, predicate == 0, -1, site).ballot == 0;
}

// A GPU returns any lanes that happen to run together. Only the calling lane is returned here, which reveals kernels
// that rely on more.
inline unsigned __activemask() { return 1u << (shim::self->number & 31); }

namespace shim {

template <class T> inline T shuffle(unsigned mask, T value, int source, Site site) {
    static_assert(sizeof(T) <= 8, "shuffles move at most 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = warp_meeting(mask, bits, source, site).received;
    memcpy(&value, &bits, sizeof value);
    return value;
}
inline int lane() { return self->number & 31; }
inline int segment(int lane, int width) { return lane & ~(width - 1); }

}  // namespace shim

template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, shim::Site site = shim::here()) {
    return shim::shuffle(mask, value, shim::segment(shim::lane(), width) | (source & (width - 1)), site);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, shim::Site site = shim::here()) {
    const int source = shim::lane() - (int)delta;
    return shim::shuffle(mask, value, source >= shim::segment(shim::lane(), width) ? source : -1, site);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, shim::Site site = shim::here()) {
    const int source = shim::lane() + (int)delta;
    return shim::shuffle(mask, value, source < shim::segment(shim::lane(), width) + width ? source : -1, site);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int flip, int width = 32, shim::Site site = shim::here()) {
    const int source = shim::lane() ^ flip;
    return shim::shuffle(mask, value, source < shim::segment(shim::lane(), width) + width ? source : -1, site);
}
