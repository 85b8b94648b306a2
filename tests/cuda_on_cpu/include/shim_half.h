// __half implemented with GCC's _Float16: 16 bits, and each operation rounds once, as on a GPU.
#pragma once

struct __half {
    _Float16 value;
    __half() = default;
    __half(float number) : value((_Float16)number) {}
    __half(double number) : value((_Float16)number) {}
    __half(int number) : value((_Float16)number) {}
    operator float() const { return (float)value; }
};
typedef __half half;

struct __align__(4) __half2 {
    __half x, y;
};
typedef __half2 half2;

inline __half __float2half(float a) { return __half(a); }
inline __half __float2half_rn(float a) { return __half(a); }
inline __half __double2half(double a) { return __half(a); }
inline float __half2float(__half a) { return (float)a.value; }
inline __half __int2half_rn(int a) { return __half((double)a); }
inline __half __ushort2half_rn(unsigned short a) { return __half((float)a); }

inline unsigned short __half_as_ushort(__half a) { unsigned short b; memcpy(&b, &a, 2); return b; }
inline short __half_as_short(__half a) { short b; memcpy(&b, &a, 2); return b; }
inline __half __ushort_as_half(unsigned short a) { __half b; memcpy(&b, &a, 2); return b; }
inline __half __short_as_half(short a) { __half b; memcpy(&b, &a, 2); return b; }

// The mantissa of float has more than twice the bits of half, so rounding a float result to half is a single rounding.
inline __half __hadd(__half a, __half b) { return __half((float)a + (float)b); }
inline __half __hsub(__half a, __half b) { return __half((float)a - (float)b); }
inline __half __hmul(__half a, __half b) { return __half((float)a * (float)b); }
inline __half __hdiv(__half a, __half b) { return __half((float)a / (float)b); }
inline __half __hfma(__half a, __half b, __half c) {
    return __half((double)a.value * (double)b.value + (double)c.value);
}
inline __half __hneg(__half a) { return __ushort_as_half(__half_as_ushort(a) ^ 0x8000); }
inline __half __habs(__half a) { return __ushort_as_half(__half_as_ushort(a) & 0x7fff); }
inline __half __hmax(__half a, __half b) { return __half(fmaxf((float)a, (float)b)); }
inline __half __hmin(__half a, __half b) { return __half(fminf((float)a, (float)b)); }
inline bool __heq(__half a, __half b) { return a.value == b.value; }
inline bool __hne(__half a, __half b) { return a.value != b.value; }
inline bool __hlt(__half a, __half b) { return a.value < b.value; }
inline bool __hle(__half a, __half b) { return a.value <= b.value; }
inline bool __hgt(__half a, __half b) { return a.value > b.value; }
inline bool __hge(__half a, __half b) { return a.value >= b.value; }
inline bool __hisnan(__half a) { return a.value != a.value; }

inline __half2 __floats2half2_rn(float a, float b) { return {__half(a), __half(b)}; }
inline __half2 __halves2half2(__half a, __half b) { return {a, b}; }
inline __half2 make_half2(__half a, __half b) { return {a, b}; }
inline float2 __half22float2(__half2 a) { return {(float)a.x, (float)a.y}; }
inline __half __low2half(__half2 a) { return a.x; }
inline __half __high2half(__half2 a) { return a.y; }
