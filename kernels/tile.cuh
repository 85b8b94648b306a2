// A cell's tile in one channel of the image.

#pragma once
#include "types.cuh"

// Pixels outside the slide are 0.
template <typename Pixel> struct Tile {
    const Pixel *channel;  // (height, width)
    int height, width;
    int y0, x0;            // the tile's first pixel; may lie outside the channel
    bool is_inside;        // the whole tile is on the slide

    __device__ __forceinline__ bool on_slide(int y, int x) const {
        return y0 + y >= 0 && y0 + y < height && x0 + x >= 0 && x0 + x < width;
    }
    template <typename Work> __device__ __forceinline__ Work at(int y, int x) const {
        return on_slide(y, x) ? to_work<Work>(channel[(size_t)(y0 + y) * width + x0 + x]) : (Work)0;
    }
    // Load four neighbouring pixels of a row.
    __device__ __forceinline__ void load(int y, int x, Pixel (&pixel)[4]) const {
        const Pixel *first = channel + (long long)(y0 + y) * width + x0 + x;
#pragma unroll
        for (int k = 0; k < 4; ++k) pixel[k] = is_inside || on_slide(y, x + k) ? first[k] : (Pixel)0;
    }
};
