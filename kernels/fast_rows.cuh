// Rows of a bit mask: 128 pixels in four words, bit x % 32 of word x / 32 is pixel x. Bits at x >= S are 0.
//
// A thread holds a whole row in registers, so a step along x needs neither shared memory nor other threads.

#pragma once
#include "box.cuh"

typedef uint4 Row;

constexpr int MAX_S = 128;  // the largest tile: bits of a Row, rows of a mask
constexpr u32 ALL_ONES = 0xffffffffu;

__device__ __forceinline__ Row operator|(Row a, Row b) { return {a.x | b.x, a.y | b.y, a.z | b.z, a.w | b.w}; }
__device__ __forceinline__ Row operator&(Row a, Row b) { return {a.x & b.x, a.y & b.y, a.z & b.z, a.w & b.w}; }
__device__ __forceinline__ Row operator~(Row a) { return {~a.x, ~a.y, ~a.z, ~a.w}; }
__device__ __forceinline__ bool is_any(Row a) { return (a.x | a.y | a.z | a.w) != 0; }
__device__ __forceinline__ u32 count_bits(Row a) {
    return (u32)(__popc(a.x) + __popc(a.y) + __popc(a.z) + __popc(a.w));
}

// Return pixel x of word j = x / 32 and the pixels after it in that word, from bit 0 on.
__device__ __forceinline__ u32 bits_at(const Row *rows, int y, int x) {
    return ((const u32 *)rows)[4 * y + (x >> 5)] >> (x & 31);
}

// Return a word with the pixels first .. end - 1 of word j of a row.
__device__ __forceinline__ u32 range_word(int first, int end, int j) {
    const int from = max(first - 32 * j, 0), to = min(end - 32 * j, 32);
    if (from >= to) return 0u;
    return (ALL_ONES >> (32 - (to - from))) << from;
}

// Return a row with the pixels first .. end - 1.
__device__ __forceinline__ Row range_row(int first, int end) {
    return {range_word(first, end, 0), range_word(first, end, 1), range_word(first, end, 2), range_word(first, end, 3)};
}

// Move a row by n = 1 .. 31 pixels towards higher or lower x.
__device__ __forceinline__ Row moved_up(Row a, int n) {
    return {a.x << n, __funnelshift_l(a.x, a.y, n), __funnelshift_l(a.y, a.z, n), __funnelshift_l(a.z, a.w, n)};
}
__device__ __forceinline__ Row moved_down(Row a, int n) {
    return {__funnelshift_r(a.x, a.y, n), __funnelshift_r(a.y, a.z, n), __funnelshift_r(a.z, a.w, n), a.w >> n};
}
__device__ __forceinline__ Row reversed(Row a) { return {__brev(a.w), __brev(a.z), __brev(a.y), __brev(a.x)}; }
