"""All CUDA kernel instances and their launch parameters, for launchers and tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gpu_extract.recipe import Program, gaussian_weights

__all__ = [
    "ADD_LABELS",
    "APPLY_MASK",
    "BLUR",
    "CLEAR_LABELS",
    "COLLECT_LABELS",
    "C_TYPES",
    "DILATE",
    "FILL_HOLES",
    "MULTIPLY",
    "NORMALIZE",
    "PACK",
    "Kernel",
    "all_kernels",
    "extract_kernel",
    "fast_extract_kernel",
    "is_fast",
]

# The C++ type of a NumPy type in kernels/types.cuh.
C_TYPES = {
    "uint8": "u8",
    "uint16": "u16",
    "int16": "short",
    "uint32": "u32",
    "float16": "__half",
    "float32": "float",
    "float64": "double",
}
DOUBLE = ("uint32", "float64")
# The types of normalized values; raw values are stored in the image's own type.
OUTPUTS = ("float16", "float32", "uint8", "uint16")


@dataclass(frozen=True)
class Kernel:
    """One instance of a kernel.

    Parameters
    ----------
    source : str
        Its file in ``kernels/``, without ``.cu``.
    expression : str
        Its name with template arguments: a name expression of NVRTC.
    threads : int
        Threads of a block.
    blocks_per_multiprocessor : int
        The minimum occupancy that the kernel's launch bounds guarantee.
    """

    source: str
    expression: str
    threads: int = 256
    blocks_per_multiprocessor: int = 2


# kernels/labels.cu, by the type of the labels.
ADD_LABELS = {
    name: Kernel("labels", f"add_labels<{c_type}>")
    for name, c_type in {"uint8": "u8", "uint16": "u16", "uint32": "u32", "uint64": "u64"}.items()
}
CLEAR_LABELS = Kernel("labels", "clear_labels")
COLLECT_LABELS = Kernel("labels", "collect_labels")

# kernels/pack.cu, by the bytes of a pixel.
PACK = {
    nbytes: Kernel("pack", f"pack_planes<{bits}>", blocks_per_multiprocessor=4)
    for nbytes, bits in {1: "u8", 2: "u16", 4: "u32", 8: "u64"}.items()
}

# kernels/ops.cu, by the type of the images or masks; APPLY_MASK by the bytes of a pixel.
FILL_HOLES = Kernel("ops", "fill_holes_tiles")
DILATE = Kernel("ops", "dilate_tiles")
BLUR = {name: Kernel("ops", f"blur_tiles<{C_TYPES[name]}>") for name in ("uint8", "float32")}
APPLY_MASK = {
    nbytes: Kernel("ops", f"apply_mask_tiles<{bits}>", blocks_per_multiprocessor=4)
    for nbytes, bits in {1: "u8", 2: "u16", 4: "u32", 8: "u64"}.items()
}
MULTIPLY = {name: Kernel("ops", f"multiply_tiles<{c}>", blocks_per_multiprocessor=4) for name, c in C_TYPES.items()}
NORMALIZE = {name: Kernel("ops", f"normalize_tiles<{c}>", blocks_per_multiprocessor=4) for name, c in C_TYPES.items()}


def extract_kernel(image_dtype: np.dtype[Any], output_dtype: np.dtype[Any], *, in_shared: bool = True) -> Kernel:
    """Return the fused extraction from one pixel type to one output type; its workspace is in shared memory or not."""
    types = f"{C_TYPES[image_dtype.name]}, {C_TYPES[output_dtype.name]}"
    expression = f"extract<{types}, {str(in_shared).lower()}>"
    # Pixel types that float does not represent exactly are computed in double, which needs twice the registers.
    return Kernel("extract", expression, blocks_per_multiprocessor=1 if image_dtype.name in DOUBLE else 2)


# What kernels/extract_fast.cu takes.
FAST_IMAGES = ("uint8", "uint16", "int16")
FAST_LABEL_NBYTES = 4
FAST_TILE_SIZE = 128
FAST_RADIUS = 31
# The tile sizes that are compiled as a constant, which saves instructions and registers.
FAST_TILES = (128,)
# The kernel finds values by their rank from the nearer end. It lists at most 256 pixels beyond its first guess of a
# quantile, which are about twice as many as the rank, and up to five times if dark or bright pixels lie together.
FAST_RANK = 48
# A mask is smaller than this part of its tile; larger ones are only slower, as they may be computed twice.
MASK_PART = 0.25


def fast_extract_kernel(image_dtype: np.dtype[Any], output_dtype: np.dtype[Any], tile_size: int) -> Kernel:
    """Return the fast fused extraction from one pixel type to one output type."""
    types = f"{C_TYPES[image_dtype.name]}, {C_TYPES[output_dtype.name]}"
    constant = tile_size if tile_size in FAST_TILES else 0
    n_blocks = 3 if constant and image_dtype.kind == "u" else 2
    return Kernel("extract_fast", f"extract_fast<{types}, {constant}>", blocks_per_multiprocessor=n_blocks)


def is_fast(program: Program, label_nbytes: int) -> bool:
    """Return whether the fast kernel can compute a program; all others go to the general one.

    The fast kernel takes small tiles, radii and integers. Quantiles must be close to 0 and 1, because it looks at the
    extreme pixels only. It fills the holes of a label plane once, so all masks of a plane must be filled, or none.
    """
    size = program.recipe.tile_size
    return (
        program.image_dtype.name in FAST_IMAGES
        and label_nbytes <= FAST_LABEL_NBYTES
        and size <= FAST_TILE_SIZE
        and size % 4 == 0
        and all(max(steps.dilation, len(gaussian_weights(steps.sigma)) - 1) <= FAST_RADIUS for steps in program.masks)
        and _fills_are_uniform(program)
        and _largest_rank(program) <= FAST_RANK
    )


def _fills_are_uniform(program: Program) -> bool:
    """Return whether the holes of each label plane are filled for all of its masks or for none."""
    fills = {(steps.plane, steps.fill_holes) for steps in program.masks}
    return len(fills) == len({plane for plane, _ in fills})


def _largest_rank(program: Program) -> float:
    """Return how many pixels can be beyond a quantile of a cell, 0 if it needs no quantiles."""
    recipe = program.recipe
    if recipe.normalization != "quantile" or recipe.quantile_scope != "cell":
        return 0
    n_pixels = recipe.tile_size**2 * (MASK_PART if recipe.quantile_pixels == "mask" else 1)
    return n_pixels * max(recipe.quantiles[0], 1 - recipe.quantiles[1])


def all_kernels() -> tuple[Kernel, ...]:
    """Return all instances that can be launched."""
    pairs = [(image, output) for image in C_TYPES for output in dict.fromkeys((*OUTPUTS, image))]
    # Raw values can be stored in a wider type, too.
    pairs += [("uint8", "uint16")]
    types = [(np.dtype(image), np.dtype(output)) for image, output in dict.fromkeys(pairs)]
    extract = (extract_kernel(*pair, in_shared=in_shared) for pair in types for in_shared in (True, False))
    fast = (
        fast_extract_kernel(*pair, tile_size)
        for pair in types
        for tile_size in (0, *FAST_TILES)
        if pair[0].name in FAST_IMAGES
    )
    labels = (*ADD_LABELS.values(), CLEAR_LABELS, COLLECT_LABELS)
    ops = (FILL_HOLES, DILATE, *BLUR.values(), *APPLY_MASK.values(), *MULTIPLY.values(), *NORMALIZE.values())
    return (*extract, *fast, *PACK.values(), *labels, *ops)
