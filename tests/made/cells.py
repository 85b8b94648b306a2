"""Makers of contents, tiles and files of cells."""

from __future__ import annotations

import numpy as np

from gpu_extract.model import CellImages, CellTable, DroppedCells, DropReason, Slide
from gpu_extract.recipe import Recipe
from gpu_extract.store import CellStore, Contents, encode
from gpu_extract.store.hdf5.layouts import LAYOUTS
from made.slides import SHARED

SCPORTRAIT_FILE = SHARED / "golden" / "ht29.scportrait.s64.h5sc"
S = 6


class ArrayRaster:
    """A raster over an array."""

    def __init__(self, array, source="array"):
        self.array, self.source, self.names = array, source, ()
        self.shape, self.dtype = array.shape, array.dtype

    def read(self, y0, x0, y1, x1):
        return self.array[:, y0:y1, x0:x1]


def make_slide(name="slide", metadata=None, masks=("nucleus", "cytosol"), channels=("DNA", "tubulin"), dtype="uint16"):
    return Slide(
        image=ArrayRaster(np.zeros((len(channels), 20, 20), dtype), f"{name}.tif"),
        masks={mask: ArrayRaster(np.zeros((1, 20, 20), np.int32), f"{name}.{mask}.tif") for mask in masks},
        channel_names=channels,
        name=name,
        metadata=metadata or {},
    )


def make_contents(n_cells, slides=None, n_dropped=0, recipe=None, ids=None, **more):
    """Return contents of ``n_cells`` cells, spread over the slides in order, with distinct values in all columns."""
    slides = slides or (make_slide(),)
    n, n_masks = np.arange(n_cells), len(slides[0].mask_names)
    table = CellTable(
        slide=n * len(slides) // max(n_cells, 1),
        ids=np.asarray(n + 10 if ids is None else ids, np.uint64),
        centers=np.stack([n + 100, n + 200], 1),
        boxes=n[:, None] * 10 + np.arange(4),
        areas=n[:, None] + 1000 * np.arange(1, n_masks + 1),
        truncated=n % 3 == 0,
        dropped=DroppedCells(
            slide=np.zeros(n_dropped, np.int64),
            ids=np.arange(n_dropped, dtype=np.uint64) + 2**40,
            reason=np.full(n_dropped, DropReason.TOUCHES_BORDER, np.uint8),
        ),
    )
    recipe = recipe or Recipe(tile_size=S)
    slide = slides[0]
    program = recipe.program(slide.mask_names, len(slide.channel_names), slide.image.dtype)
    return Contents(table, tuple(slides), program, **more)


def make_images(contents, seed=0):
    """Return random tiles of all cells."""
    program, cells = contents.program, contents.cells
    random = np.random.default_rng(seed)
    shape = (len(cells), *program.tile_shape)
    floating = program.output_dtype.kind == "f"
    images = random.random(shape) if floating else random.integers(0, 256, shape)
    limits = random.random((len(cells), len(program.cut), 2))
    return CellImages(np.arange(len(cells)), cells.ids, images.astype(program.output_dtype), limits)


def part(images, start, stop):
    """Return some rows of a batch as a batch."""
    return CellImages(
        images.rows[start:stop], images.ids[start:stop], images.images[start:stop], images.limits[start:stop]
    )


def fill(store, images, batch=96):
    """Append all cells in batches."""
    for start in range(0, len(images), batch):
        store.append(encode(part(images, start, start + batch), store.format))


def write(path, contents, images=None, **choices):
    """Write a complete file and return its path."""
    store = CellStore.create(path, contents, **choices)
    fill(store, make_images(contents) if images is None else images)
    return store.finish()


def make_format(contents, layout="h5sc", compression="gzip", chunk_cells=1):
    return LAYOUTS[layout].format(contents, compression, chunk_cells)


def only_file(path):
    return [entry.name for entry in path.parent.iterdir()] == [path.name]
