"""All CUDA kernel instances and their launch parameters, for launchers and tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

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
    "Kernel",
    "all_kernels",
    "extract_kernel",
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


def extract_kernel(image_dtype: np.dtype[Any], output_dtype: np.dtype[Any]) -> Kernel:
    """Return the fused extraction from one pixel type to one output type."""
    expression = f"extract<{C_TYPES[image_dtype.name]}, {C_TYPES[output_dtype.name]}>"
    # Pixel types that float does not represent exactly are computed in double, which needs twice the registers.
    return Kernel("extract", expression, blocks_per_multiprocessor=1 if image_dtype.name in DOUBLE else 2)


def all_kernels() -> tuple[Kernel, ...]:
    """Return all instances that can be launched."""
    pairs = [(image, output) for image in C_TYPES for output in dict.fromkeys((*OUTPUTS, image))]
    # Raw values can be stored in a wider type, too.
    pairs += [("uint8", "uint16")]
    extract = (extract_kernel(np.dtype(image), np.dtype(output)) for image, output in dict.fromkeys(pairs))
    labels = (*ADD_LABELS.values(), CLEAR_LABELS, COLLECT_LABELS)
    ops = (FILL_HOLES, DILATE, *BLUR.values(), *APPLY_MASK.values(), *MULTIPLY.values(), *NORMALIZE.values())
    return (*extract, *labels, *ops)
