// Write planes of a tile by quads. Only the quads of a box are computed; outside, a plane has one value.

#pragma once
#include "quads.cuh"
#include "types.cuh"

// Store four values, each rounded once, half to even. The host has checked that values fit in the type.
__device__ __forceinline__ void store_quad(__half *out, const float (&value)[4]) {
    const __half2 low = __floats2half2_rn(value[0], value[1]), high = __floats2half2_rn(value[2], value[3]);
    *(uint2 *)out = {*(const u32 *)&low, *(const u32 *)&high};
}
__device__ __forceinline__ void store_quad(float *out, const float (&value)[4]) {
    *(float4 *)out = {value[0], value[1], value[2], value[3]};
}
__device__ __forceinline__ void store_quad(u8 *out, const float (&value)[4]) {
    *(uchar4 *)out = {(u8)__float2int_rn(value[0]), (u8)__float2int_rn(value[1]), (u8)__float2int_rn(value[2]),
                      (u8)__float2int_rn(value[3])};
}
__device__ __forceinline__ void store_quad(u16 *out, const float (&value)[4]) {
    *(ushort4 *)out = {(u16)__float2int_rn(value[0]), (u16)__float2int_rn(value[1]), (u16)__float2int_rn(value[2]),
                       (u16)__float2int_rn(value[3])};
}
__device__ __forceinline__ void store_quad(short *out, const float (&value)[4]) {
    *(short4 *)out = {(short)__float2int_rn(value[0]), (short)__float2int_rn(value[1]),
                      (short)__float2int_rn(value[2]), (short)__float2int_rn(value[3])};
}

__device__ __forceinline__ void store_quad(double *out, const double (&value)[4]) {
    *(double2 *)out = {value[0], value[1]};
    *(double2 *)(out + 2) = {value[2], value[3]};
}
// From double to a narrower type.
template <typename Out> __device__ __forceinline__ void store_quad(Out *out, const double (&value)[4]) {
    struct alignas(4 * sizeof(Out)) {
        Out value[4];
    } quad;
#pragma unroll
    for (int k = 0; k < 4; ++k) store(quad.value + k, value[k]);
    if (sizeof(Out) == 1) *(u32 *)out = *(const u32 *)&quad;
    else if (sizeof(Out) == 2) *(uint2 *)out = *(const uint2 *)&quad;
    else *(uint4 *)out = *(const uint4 *)&quad;
}

// Write one value to all pixels outside a box whose columns are multiples of 4.
template <typename Out, typename Work>
__device__ __forceinline__ void write_outside(Out *plane,  // (S, S), written
                                              const Box &box, int S, Work value) {
    const Work values[4] = {value, value, value, value};
    for_tile_quads(S, [&](int y, int x) {
        const bool is_within = x >= box.x0 && x < box.x1 && y >= box.y0 && y < box.y1;
        if (!is_within) store_quad(plane + (size_t)y * S + x, values);
    });
}

// Write a plane: `value(y, x, i, quad)` computes a quad within the box.
template <typename Out, typename Work, typename Value>
__device__ __forceinline__ void write_quads(Out *plane,  // (S, S), written
                                            const Quads &quads, int S, Work outside, const Value &value) {
    write_outside(plane, quads.box, S, outside);
    for_quads(quads, [&](int y, int x, int i) {
        Work quad[4];
        value(y, x, i, quad);
        store_quad(plane + (size_t)y * S + x, quad);
    });
}
