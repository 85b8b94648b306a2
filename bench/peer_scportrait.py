"""Time scPortrait's own extraction of a slide; runs in an environment with scPortrait, without gpu_extract.

    python bench/peer_scportrait.py SLIDE_FOLDER OUTPUT_FOLDER THREADS TILE_SIZE

``SLIDE_FOLDER`` has image.npy (C, H, W), nucleus.npy and cytosol.npy (H, W). The script converts them to a scPortrait
project, which is not timed. Then it times ``Project.extract`` with the default recipe (quantiles 0.001 and 0.999, lzf).
The last line of stdout is JSON: the times that scPortrait reports, the time of the whole call, and the file.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from scportrait.pipeline.extraction import HDF5CellExtraction
from scportrait.pipeline.project import Project
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel


def main() -> None:
    """Make the project, extract it, and print the results."""
    slide, output = map(Path, sys.argv[1:3])
    threads, tile_size = map(int, sys.argv[3:5])
    config = {"threads": threads, "image_size": tile_size, "cache": str(output / "cache")}
    for folder in ("cache", "project"):
        (output / folder).mkdir(parents=True)
    project = Project(
        str(output / "project"),
        config_path={"name": "peer", "HDF5CellExtraction": config},
        extraction_f=HDF5CellExtraction,
        overwrite=True,
    )
    store = output / "slide.zarr"
    as_spatialdata(slide).write(store)
    project.load_input_from_sdata(store, "image", "nucleus", "cytosol")
    os.sync()  # so that writing the project's own files is not timed
    start = time.perf_counter()
    project.extract()
    seconds = time.perf_counter() - start
    reported = pd.read_csv(next((output / "project").rglob("benchmarking.csv"))).iloc[-1]
    figures = {
        "file": project.extraction_f.output_path,
        "n_cells": int(reported["Number of classes extracted"]),
        "seconds": seconds,
        "reported_total_seconds": float(reported["Total extraction time"]),
        "reported_extraction_seconds": float(reported["Time taken to extract single cell images"]),
    }
    print("\n" + json.dumps(figures))


def as_spatialdata(folder: Path) -> SpatialData:
    """Return the slide in the form that scPortrait needs."""
    image, nucleus, cytosol = (np.load(folder / f"{name}.npy") for name in ("image", "nucleus", "cytosol"))
    labels = {
        name: Labels2DModel.parse(xr.DataArray(plane, dims=("y", "x")), chunks=(1000, 1000))
        for name, plane in (("nucleus", nucleus), ("cytosol", cytosol))
    }
    channels = [f"ch{c}" for c in range(len(image))]
    # scPortrait can only read images that have a pyramid.
    pixels = Image2DModel.parse(
        image, dims=("c", "y", "x"), c_coords=channels, chunks=(1, 1000, 1000), scale_factors=[2]
    )
    return SpatialData(images={"image": pixels}, labels=labels)


if __name__ == "__main__":
    main()
