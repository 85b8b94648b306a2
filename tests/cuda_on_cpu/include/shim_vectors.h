// float2, uint4, ... and make_*, with CUDA's alignment, which vector loads need.
#pragma once

#define SHIM_VECTORS(name, T)                                                                                  \
    struct __align__(2 * sizeof(T)) name##2 { T x, y; };                                                       \
    struct name##3 { T x, y, z; };                                                                             \
    struct __align__(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) name##4 { T x, y, z, w; };                       \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                                 \
    inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                                         \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }

SHIM_VECTORS(char, signed char)
SHIM_VECTORS(uchar, unsigned char)
SHIM_VECTORS(short, short)
SHIM_VECTORS(ushort, unsigned short)
SHIM_VECTORS(int, int)
SHIM_VECTORS(uint, unsigned)
SHIM_VECTORS(longlong, long long)
SHIM_VECTORS(ulonglong, unsigned long long)
SHIM_VECTORS(float, float)
SHIM_VECTORS(double, double)
#undef SHIM_VECTORS

struct dim3 { unsigned x, y, z; };
