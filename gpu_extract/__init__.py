"""Single-cell image extraction: one masked, normalized tile per cell, all in one HDF5 file.

    import gpu_extract as gx

    report = gx.extract("slide.tif", nucleus="nuclei.tif", cytosol="cells.tif", output="cells.h5sc")
    cells = gx.open_cells("cells.h5sc")
    cells[42]  # the (K, S, S) tile of cell 42

Names are imported on first use, so that ``import gpu_extract`` is quick and touches no device.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpu_extract.api import extract, extract_many, iter_cells, survey, survey_many
    from gpu_extract.errors import (
        DeviceError,
        ExtractionWarning,
        GpuExtractError,
        InputError,
        LabelError,
        LibraryError,
        OutputError,
        RecipeError,
        RunStoppedError,
        SourceError,
        UnknownCellError,
        UnknownOptionError,
    )
    from gpu_extract.inputs import plan, plan_many
    from gpu_extract.model import CellImages
    from gpu_extract.options import ExtractOptions, PlanOptions, RunOptions
    from gpu_extract.pipeline import Report
    from gpu_extract.planning import Plan
    from gpu_extract.recipe import Recipe
    from gpu_extract.sources.slide_table import SlideInput, match_slides, read_slide_table
    from gpu_extract.store.reader import Cells, open_cells
    from gpu_extract.surveying import Survey

    __version__: str

# A list of literals, because type checkers do not evaluate expressions.
__all__ = [
    "CellImages",
    "Cells",
    "DeviceError",
    "ExtractOptions",
    "ExtractionWarning",
    "GpuExtractError",
    "InputError",
    "LabelError",
    "LibraryError",
    "OutputError",
    "Plan",
    "PlanOptions",
    "Recipe",
    "RecipeError",
    "Report",
    "RunOptions",
    "RunStoppedError",
    "SlideInput",
    "SourceError",
    "Survey",
    "UnknownCellError",
    "UnknownOptionError",
    "__version__",
    "extract",
    "extract_many",
    "iter_cells",
    "match_slides",
    "open_cells",
    "plan",
    "plan_many",
    "read_slide_table",
    "survey",
    "survey_many",
]

# The module of each name.
_HOME = {
    "extract": "api",
    "extract_many": "api",
    "iter_cells": "api",
    "plan": "inputs",
    "plan_many": "inputs",
    "survey": "api",
    "survey_many": "api",
    "ExtractOptions": "options",
    "PlanOptions": "options",
    "RunOptions": "options",
    "SlideInput": "sources.slide_table",
    "match_slides": "sources.slide_table",
    "read_slide_table": "sources.slide_table",
    "Cells": "store.reader",
    "open_cells": "store.reader",
    "CellImages": "model",
    "Plan": "planning",
    "Recipe": "recipe",
    "Report": "pipeline",
    "Survey": "surveying",
    "DeviceError": "errors",
    "ExtractionWarning": "errors",
    "GpuExtractError": "errors",
    "InputError": "errors",
    "LabelError": "errors",
    "LibraryError": "errors",
    "OutputError": "errors",
    "RecipeError": "errors",
    "RunStoppedError": "errors",
    "SourceError": "errors",
    "UnknownCellError": "errors",
    "UnknownOptionError": "errors",
}


if not TYPE_CHECKING:  # A type checker would take every name for known.

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version

            return version("gpu-extract")
        if name not in _HOME:
            raise AttributeError(f"module 'gpu_extract' has no attribute {name!r}")
        return getattr(importlib.import_module(f"gpu_extract.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
