// The calling thread, and reductions over the 32 lanes of its warp: every lane gets the result. One instruction from
// sm_80 on, else shuffles.

#pragma once
#include "types.cuh"

constexpr u32 ALL_LANES = 0xffffffffu;

// Return threadIdx.x, read anew. In a long kernel, the compiler keeps what depends on threadIdx.x in registers from the
// start to the end; this function prevents it.
__device__ __forceinline__ int thread_index() {
#ifdef __CUDA_ARCH__
    int index;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
    return index;
#else
    return (int)threadIdx.x;
#endif
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
__device__ __forceinline__ u32 warp_sum(u32 x) { return __reduce_add_sync(ALL_LANES, x); }
__device__ __forceinline__ u32 warp_or(u32 x) { return __reduce_or_sync(ALL_LANES, x); }
__device__ __forceinline__ u32 warp_min(u32 x) { return __reduce_min_sync(ALL_LANES, x); }
__device__ __forceinline__ u32 warp_max(u32 x) { return __reduce_max_sync(ALL_LANES, x); }
#else
template <typename Combine> __device__ __forceinline__ u32 warp_reduce(u32 x, const Combine &combine) {
    for (int step = 16; step; step >>= 1) x = combine(x, __shfl_xor_sync(ALL_LANES, x, step));
    return x;
}
__device__ __forceinline__ u32 warp_sum(u32 x) { return warp_reduce(x, [](u32 a, u32 b) { return a + b; }); }
__device__ __forceinline__ u32 warp_or(u32 x) { return warp_reduce(x, [](u32 a, u32 b) { return a | b; }); }
__device__ __forceinline__ u32 warp_min(u32 x) { return warp_reduce(x, [](u32 a, u32 b) { return min(a, b); }); }
__device__ __forceinline__ u32 warp_max(u32 x) { return warp_reduce(x, [](u32 a, u32 b) { return max(a, b); }); }
#endif
