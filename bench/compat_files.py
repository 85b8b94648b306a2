"""Write the files that `compat_scportrait.sh` and `compat_anndata.sh` test: a slide, a time course, a slide table.

    python bench/compat_files.py FOLDER

All are made from the sample that ships with the package, in the ways that users do it: an OME-TIFF with a time axis,
a CSV table.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

import gpu_extract as gx
from gpu_extract import demo_data
from gpu_extract.sources.slide_table import read_slide_table


def main() -> None:
    """Write cells.h5sc, timecourse.h5sc, slides.h5sc and unique.h5sc."""
    folder = Path(sys.argv[1])
    sample = demo_data.paths()
    gx.extract(sample.image, nucleus=sample.nucleus, cytosol=sample.cytosol, output=folder / "cells.h5sc", tile_size=64)

    for name, pixels in zip(("image", "nucleus", "cytosol"), map(tifffile.imread, sample), strict=True):
        axes = "TCYX" if pixels.ndim == 3 else "TYX"
        # The cells move to the left and out of the image.
        frames = np.stack([shifted(pixels, n) for n in (0, 100, 200)])
        tifffile.imwrite(folder / f"{name}.ome.tif", frames, ome=True, metadata={"axes": axes})
    planes = {name: folder / f"{name}.ome.tif" for name in ("image", "nucleus", "cytosol")}
    gx.extract(**planes, output=folder / "timecourse.h5sc", tile_size=64, recipe="scportrait")

    names = {"axes": "CYX", "Channel": {"Name": ["DNA", "pH3", "actin"]}}
    tifffile.imwrite(folder / "other.ome.tif", shifted(tifffile.imread(sample.image), 30), ome=True, metadata=names)
    tifffile.imwrite(folder / "other_nucleus.tif", shifted(tifffile.imread(sample.nucleus), 30))
    tifffile.imwrite(folder / "other_cytosol.tif", shifted(tifffile.imread(sample.cytosol), 30))
    table = [
        "image,nucleus,cytosol,well,replicate,dose,drug",
        f"{sample.image},{sample.nucleus},{sample.cytosol},A01,1,0.5,",
        "other.ome.tif,other_nucleus.tif,other_cytosol.tif,B02,1,,DMSO",
    ]
    (folder / "slides.csv").write_text("\n".join(table))
    slides = read_slide_table(folder / "slides.csv")
    gx.extract_many(slides, output=folder / "slides.h5sc", tile_size=64)
    # No cell is dropped: a table without a row.
    gx.extract_many(slides, output=folder / "unique.h5sc", tile_size=64, border="keep", unique_ids=True)


def shifted(pixels: np.ndarray[Any, Any], n: int) -> np.ndarray[Any, Any]:
    """Return the pixels moved left by n columns, with 0 where there are no pixels."""
    return np.concatenate([pixels[..., n:], np.zeros_like(pixels[..., :n])], axis=-1)


if __name__ == "__main__":
    main()
