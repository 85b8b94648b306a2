// Boxes of a tile.

#pragma once
#include "types.cuh"

// Rows y0 .. y1 - 1, columns x0 .. x1 - 1; empty if y0 == y1.
struct Box {
    int y0, x0, y1, x1;
};

__device__ __forceinline__ bool is_whole(const Box &box, int S) {
    return box.y0 == 0 && box.x0 == 0 && box.y1 == S && box.x1 == S;
}

__device__ __forceinline__ int area(const Box &box) { return (box.y1 - box.y0) * (box.x1 - box.x0); }

// Enlarge a box by `margin` on each side within the tile; an empty box stays empty.
__device__ __forceinline__ Box grow(const Box &box, int margin, int S) {
    if (box.y0 == box.y1) return box;
    return {max(box.y0 - margin, 0), max(box.x0 - margin, 0), min(box.y1 + margin, S), min(box.x1 + margin, S)};
}
