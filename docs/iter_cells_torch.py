"""Feed the tiles of a slide to a PyTorch model, without a file between: python docs/iter_cells_torch.py.

On a GPU the tiles never leave its memory. The same code runs on the CPU. Needs PyTorch, which gpu-extract does not
install. The slide is the sample that ships with the package; the model stands for a network of yours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import gpu_extract as gx
from gpu_extract import demo_data


def features(model: Callable[[torch.Tensor], torch.Tensor], *args: Any, **options: Any) -> tuple[Any, torch.Tensor]:
    """Return ids (N,) and features (N, F), on the CPU, of the cells of a slide, in the order of ids.

    Parameters
    ----------
    model : callable
        Takes tiles (n, K, S, S) and returns features (n, F).
    *args, **options
        See `gpu_extract.iter_cells`.
    """
    ids, found = [], []
    for cells in gx.iter_cells(*args, **options):
        tiles = torch.from_dlpack(cells.images)  # the same memory, on the same device
        with torch.inference_mode():
            found.append(model(tiles.float()).cpu())
        ids.append(cells.ids)
    order = np.argsort(np.concatenate(ids))
    return np.concatenate(ids)[order], torch.cat(found)[torch.from_numpy(order)]


def features_on_a_stream(
    model: Callable[[torch.Tensor], torch.Tensor], stream: torch.cuda.Stream, *args: Any, **options: Any
) -> torch.Tensor:
    """Return features (N, F), on the GPU, computed on a stream of the caller, in the order of batches.

    The tiles are read by kernels that may still run when the next batch is asked for, so the batch is told which stream
    they are on. Work on PyTorch's default stream needs no such call.
    """
    found = []
    with torch.cuda.stream(stream), torch.inference_mode():
        for cells in gx.iter_cells(*args, **options):
            found.append(model(torch.from_dlpack(cells.images).float()))
            cells.record_stream(stream.cuda_stream)  # after the last use, before the batch is dropped
    stream.synchronize()
    return torch.cat(found)


def main() -> None:
    """Print the mean of each plane of the first cells of the sample."""
    sample = demo_data.paths()
    ids, found = features(
        lambda tiles: tiles.mean((2, 3)), sample.image, nucleus=sample.nucleus, cytosol=sample.cytosol, tile_size=64
    )
    for cell, values in list(zip(ids.tolist(), found.tolist(), strict=True))[:5]:
        print(f"cell {cell}: " + ", ".join(f"{value:.3f}" for value in values))


if __name__ == "__main__":
    main()
