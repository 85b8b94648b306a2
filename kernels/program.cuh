// Positions in the arrays that hold a recipe; gpu_extract/backends/cuda/extract.py fills the arrays in this order.

#pragma once

enum Option { EXCLUDE, APPLY_MASKS, CUT_BEFORE, LIMITS, SCALE, FLAT_ZERO, N_OPTIONS };
enum LimitsSource { LIMITS_OF_MASK, LIMITS_OF_TILE, LIMITS_GIVEN };
enum Number { UNIT, LOWER, UPPER, N_NUMBERS };  // the stored value of 1; the lower and the upper quantile, 0 to 1
// A row of `masks`: index of the label plane, fill holes (0 or 1), radius of the dilation, radius of the blur, and the
// first of its blur tables (extract_fast only). Masks of the same label plane stand together.
enum MaskColumn { PLANE, FILL, DILATION, BLUR, TABLE, N_MASK_COLUMNS };
