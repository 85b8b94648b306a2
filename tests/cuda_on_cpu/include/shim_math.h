// Arithmetic, bits and conversions. The functions that C shares with CUDA (rintf, fmaf, fmax, ...) come from math.h.
#pragma once

// ---- min and max: CUDA's overloads, so that calls with mixed types behave as in CUDA ----
#define SHIM_MINMAX(A, B, R)                                                                \
    inline R min(A a, B b) { return (R)b < (R)a ? (R)b : (R)a; }                            \
    inline R max(A a, B b) { return (R)a < (R)b ? (R)b : (R)a; }
#define SHIM_MINMAX_SIGNS(S, U) SHIM_MINMAX(S, S, S) SHIM_MINMAX(U, U, U) SHIM_MINMAX(S, U, U) SHIM_MINMAX(U, S, U)
SHIM_MINMAX_SIGNS(int, unsigned)
SHIM_MINMAX_SIGNS(long, unsigned long)
SHIM_MINMAX_SIGNS(long long, unsigned long long)
#undef SHIM_MINMAX_SIGNS
#undef SHIM_MINMAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline double min(float a, double b) { return fmin(a, b); }
inline double max(float a, double b) { return fmax(a, b); }
inline double min(double a, float b) { return fmin(a, b); }
inline double max(double a, float b) { return fmax(a, b); }

// ---- single rounded operations that are never fused: the empty asm hides the operands from the compiler ----
#define SHIM_ROUNDED(name, T, expression)          \
    __forceinline__ T name(T a, T b) {             \
        asm("" : "+x"(a), "+x"(b));                \
        T result = expression;                     \
        asm("" : "+x"(result));                    \
        return result;                             \
    }
SHIM_ROUNDED(__fadd_rn, float, a + b)
SHIM_ROUNDED(__fsub_rn, float, a - b)
SHIM_ROUNDED(__fmul_rn, float, a * b)
SHIM_ROUNDED(__fdiv_rn, float, a / b)
SHIM_ROUNDED(__dadd_rn, double, a + b)
SHIM_ROUNDED(__dsub_rn, double, a - b)
SHIM_ROUNDED(__dmul_rn, double, a * b)
SHIM_ROUNDED(__ddiv_rn, double, a / b)
#undef SHIM_ROUNDED
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline double __dsqrt_rn(double a) { return sqrt(a); }
inline float __frcp_rn(float a) { return 1.0f / a; }

// A GPU's fast versions differ in the last bits; these have the precision of C.
inline float rsqrtf(float a) { return 1.0f / sqrtf(a); }
inline float __expf(float a) { return expf(a); }
inline float __logf(float a) { return logf(a); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __saturatef(float a) { return a > 0.0f ? (a < 1.0f ? a : 1.0f) : 0.0f; }  // NaN becomes 0

// ---- bits ----
inline int __popc(unsigned a) { return __builtin_popcount(a); }
inline int __popcll(unsigned long long a) { return __builtin_popcountll(a); }
inline int __ffs(int a) { return __builtin_ffs(a); }
inline int __ffsll(long long a) { return __builtin_ffsll(a); }
inline int __clz(int a) { return a ? __builtin_clz((unsigned)a) : 32; }
inline int __clzll(long long a) { return a ? __builtin_clzll((unsigned long long)a) : 64; }
inline unsigned __brev(unsigned a) {
    unsigned reversed = 0;
    for (int bit = 0; bit < 32; ++bit) reversed |= (a >> bit & 1u) << (31 - bit);
    return reversed;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)((((uint64_t)high << 32 | low) << (shift & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)(((uint64_t)high << 32 | low) >> (shift & 31));
}
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }

// ---- reinterpretation of bits ----
#define SHIM_BITS(name, From, To) inline To name(From a) { To b; memcpy(&b, &a, sizeof b); return b; }
SHIM_BITS(__float_as_uint, float, unsigned)
SHIM_BITS(__uint_as_float, unsigned, float)
SHIM_BITS(__float_as_int, float, int)
SHIM_BITS(__int_as_float, int, float)
SHIM_BITS(__double_as_longlong, double, long long)
SHIM_BITS(__longlong_as_double, long long, double)
#undef SHIM_BITS

// ---- conversions: rounded to nearest, ties to even, and clamped to the range, as on a GPU ----
template <class Integer> inline Integer shim_nearest(double a, double lowest, double highest) {
    a = rint(a);
    return a != a ? 0 : a <= lowest ? (Integer)lowest : a >= highest ? (Integer)highest : (Integer)a;
}
inline float __double2float_rn(double a) { return (float)a; }
inline int __float2int_rn(float a) { return shim_nearest<int>(a, INT_MIN, INT_MAX); }
inline int __double2int_rn(double a) { return shim_nearest<int>(a, INT_MIN, INT_MAX); }
inline unsigned __float2uint_rn(float a) { return shim_nearest<unsigned>(a, 0, UINT_MAX); }
inline unsigned __double2uint_rn(double a) { return shim_nearest<unsigned>(a, 0, UINT_MAX); }
inline float __int2float_rn(int a) { return (float)a; }
inline float __uint2float_rn(unsigned a) { return (float)a; }
inline double __int2double_rn(int a) { return (double)a; }
inline double __uint2double_rn(unsigned a) { return (double)a; }

// ---- loads and stores with a cache hint, which is ignored ----
template <class T> inline T __ldg(const T* address) { return *address; }
template <class T> inline T __ldcs(const T* address) { return *address; }
template <class T> inline T __ldcg(const T* address) { return *address; }
template <class T> inline void __stcs(T* address, T value) { *address = value; }
template <class T> inline void __stcg(T* address, T value) { *address = value; }
