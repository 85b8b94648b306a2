"""Make a synthetic slide: textured cells of realistic size that touch their neighbours, with nuclei.

python -m bench.synthetic FOLDER SIZE [tif|npy]     writes image, nucleus and cytosol, uncompressed
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter


class Slide(NamedTuple):
    """An image (C, H, W) uint16 and its label planes (H, W) uint32."""

    image: NDArray[np.uint16]
    nucleus: NDArray[np.uint32]
    cytosol: NDArray[np.uint32]


def make_slide(size: int = 4096, spacing: int = 49, n_channels: int = 3, seed: int = 0) -> Slide:
    """Make a ``size`` x ``size`` slide with one cell about every ``spacing`` pixels: 7,000 cells for 4096 and 49.

    A cell consists of the pixels that are nearest to its seed and within some radius, so neighbours share borders.
    Nuclei are disks of varying size. Channels are smooth texture and camera noise, brighter in cells.
    """
    rng = np.random.default_rng(seed)
    grid = np.arange(spacing // 2, size, spacing)
    y, x = np.meshgrid(grid, grid, indexing="ij")
    jitter = rng.integers(-spacing // 5, spacing // 5 + 1, (2, *y.shape))
    y, x = np.clip(y + jitter[0], 0, size - 1).ravel(), np.clip(x + jitter[1], 0, size - 1).ravel()
    ids = rng.permutation(len(y)).astype(np.uint32) + 1

    away = np.ones((size, size), bool)
    away[y, x] = False
    seeds = np.zeros((size, size), np.uint32)
    seeds[y, x] = ids
    distance, nearest = distance_transform_edt(away, return_indices=True)
    owner = seeds[nearest[0], nearest[1]]
    reach = np.concatenate([[0], rng.uniform(0.35, 0.75, len(ids)) * spacing])
    cytosol = np.where(distance < reach[owner], owner, 0).astype(np.uint32)
    nucleus = np.where(distance < 0.45 * reach[owner], owner, 0).astype(np.uint32)

    image = np.empty((n_channels, size, size), np.uint16)
    for channel in image:
        texture = gaussian_filter(rng.standard_normal((size, size), np.float32), 2) * 3000
        bright = rng.uniform(2000, 12000, len(ids) + 1).astype(np.float32)[cytosol]
        noise = rng.poisson(100, (size, size))
        channel[:] = np.clip(bright + texture * (cytosol > 0) + noise, 0, 65535)
    return Slide(image, nucleus, cytosol)


def save(folder: str, size: int, kind: str) -> None:
    """Write a slide as uncompressed TIFFs (``kind`` tif) or NumPy arrays (npy)."""
    for name, pixels in make_slide(size)._asdict().items():
        path = Path(folder, f"{name}.{kind}")
        np.save(path, pixels) if kind == "npy" else tifffile.imwrite(path, pixels)


if __name__ == "__main__":
    save(sys.argv[1], int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "tif")
