// The device side of CUDA C++ as ordinary C++17 for g++: everything a kernel can use without an include.
// Every CUDA thread is a fiber (see ../cuda_shim.cpp); a block runs on one thread of the operating system.
#pragma once
#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __constant__ static
#ifdef SHIM_SANITIZE
// Sanitizers do not check thread-local memory; with them, only one thread of the operating system is used.
#define __shared__ static
#else
// One copy per thread of the operating system, and so per running block.
#define __shared__ thread_local
#endif

#include "shim_vectors.h"
#include "shim_runtime.h"
#include "shim_half.h"
#include "shim_math.h"
#include "shim_warp.h"
#include "shim_atomics.h"
#include "shim_launch.h"

#undef assert
#define assert(condition) ((condition) ? (void)0 : shim::fail("assertion failed: " #condition, shim::here()))
