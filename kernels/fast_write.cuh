// The values of a channel: scaled between limits, cut with a mask, stretched.

#pragma once
#include "limits.cuh"
#include "planes.cuh"
#include "tile.cuh"
#include "warp.cuh"

// Compute clip((x - lower) / span, 0, 1). `lower` is split, so that x - lower does not lose precision if lower is large
// and span is small; the product with 1 / span is within 1 ulp of the quotient in the output type.
struct Scaling {
    float lower, inverse, offset;

    __device__ __forceinline__ float operator()(float x) const {
        return __saturatef(fmaf(x - lower, inverse, offset));
    }
};

// If lower and upper are equal, or indistinguishable, the result is 0 (flat_is_zero) or clip(x - lower, 0, 1).
__device__ __forceinline__ Scaling scaling_between(const Limits &limits, bool flat_is_zero) {
    const float lower = (float)limits.lower, span = (float)(limits.upper - limits.lower);
    const float inverse = span > 0.0f ? 1.0f / span : flat_is_zero ? 0.0f : 1.0f;
    return {lower, inverse, -(float)(limits.lower - (double)lower) * inverse};
}

// How pixels become values. Cut: multiplied by the factor of a mask.
enum class Mode { RAW, RAW_CUT, SCALED, CUT_THEN_SCALED, SCALED_THEN_CUT };

__device__ __forceinline__ Mode mode_of(bool is_scaled, bool is_cut, bool is_cut_before) {
    if (!is_scaled) return is_cut ? Mode::RAW_CUT : Mode::RAW;
    if (!is_cut) return Mode::SCALED;
    return is_cut_before ? Mode::CUT_THEN_SCALED : Mode::SCALED_THEN_CUT;
}

// The values of a channel of one cell within the box of its mask.
template <Mode MODE, typename Pixel> struct ChannelValues {
    Tile<Pixel> tile;
    Scaling scaling;
    const float4 *soft;  // the mask's factors, by quads of the box; read only if values are cut

    __device__ __forceinline__ float value(float pixel, float factor) const {
        switch (MODE) {
            case Mode::RAW: return pixel;
            case Mode::RAW_CUT: return pixel * factor;
            case Mode::SCALED: return scaling(pixel);
            case Mode::CUT_THEN_SCALED: return scaling(pixel * factor);
            default: return scaling(pixel) * factor;
        }
    }
    __device__ __forceinline__ void operator()(int y, int x, int i, float (&values)[4]) const {
        Pixel pixel[4];
        tile.load(y, x, pixel);
        float4 factor = {1.0f, 1.0f, 1.0f, 1.0f};
        if (MODE != Mode::RAW && MODE != Mode::SCALED) factor = soft[i];
        values[0] = value((float)pixel[0], factor.x);
        values[1] = value((float)pixel[1], factor.y);
        values[2] = value((float)pixel[2], factor.z);
        values[3] = value((float)pixel[3], factor.w);
    }
    // Return the value of all pixels outside the box: 0, except if a channel is cut before it is scaled and its lower
    // limit is negative.
    __device__ __forceinline__ float outside() const {
        return MODE == Mode::CUT_THEN_SCALED ? scaling(0.0f) : 0.0f;
    }
};

// The minimum and maximum of a channel's values in each warp, as keys that are ordered as the values.
typedef u32 WarpRanges[2][THREADS / 32];

// Find the range of a channel's values within the box, for each warp.
template <typename Value>
__device__ __forceinline__ void find_range(const Quads &quads, const Value &value, WarpRanges &ranges) {
    float low = 3.4e38f, high = -3.4e38f;
    for_quads(quads, [&](int y, int x, int i) {
        float quad[4];
        value(y, x, i, quad);
        low = fminf(fminf(low, fminf(quad[0], quad[1])), fminf(quad[2], quad[3]));
        high = fmaxf(fmaxf(high, fmaxf(quad[0], quad[1])), fmaxf(quad[2], quad[3]));
    });
    const u32 lowest = warp_min(FloatOrder::key(low)), highest = warp_max(FloatOrder::key(high));
    if ((threadIdx.x & 31) == 0) {
        ranges[0][threadIdx.x >> 5] = lowest;
        ranges[1][threadIdx.x >> 5] = highest;
    }
}

// The last step: stretch values from [low, high] to [0, 1], if there is a difference, and multiply by the unit.
struct Stretch {
    float low, factor;

    __device__ __forceinline__ float operator()(float x) const { return (x - low) * factor; }
};

__device__ __forceinline__ Stretch stretch_between(const WarpRanges &ranges, bool has_outside, float outside,
                                                   float unit) {
    u32 lowest = ranges[0][0], highest = ranges[1][0];
#pragma unroll
    for (int warp = 1; warp < THREADS / 32; ++warp) {
        lowest = min(lowest, ranges[0][warp]);
        highest = max(highest, ranges[1][warp]);
    }
    float low = (float)FloatOrder::value(lowest), high = (float)FloatOrder::value(highest);
    if (has_outside) {
        low = fminf(low, outside);
        high = fmaxf(high, outside);
    }
    return high > low ? Stretch{low, unit / (high - low)} : Stretch{0.0f, unit};
}
