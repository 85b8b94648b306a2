// The limits of a channel of a cell.

#pragma once

// The lower and the upper value that become 0 and 1.
struct Limits {
    double lower, upper;
};

// Return the value at a fraction of the way from a to b, as numpy.quantile rounds it.
__device__ __forceinline__ double interpolate(double a, double b, double fraction) {
    return fraction >= 0.5 ? b - (b - a) * (1.0 - fraction) : a + (b - a) * fraction;
}
