"""SPARCSpy's two extraction classes, running on this package: a script for them needs another import and no more.

::

    from gpu_extract.compat import HDF5CellExtraction  # was: from sparcscore.pipeline.extraction import ...

    extraction = HDF5CellExtraction(config, "project/extraction", project_location="project")
    extraction.process("project/segmentation/segmentation.h5", "project/segmentation/classes.csv")

The numbers are those of SPARCSpy 1.0.0 (recipe ``sparcspy``), and so is the file, ``<directory>/data/single_cells.h5``,
but for its compression, which is gzip. It appears when it is complete.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpu_extract.api import extract_many
from gpu_extract.errors import InputError, OutputError
from gpu_extract.parallel import default_threads
from gpu_extract.pipeline import Report
from gpu_extract.progress import progress_on_stderr
from gpu_extract.recipe import Recipe
from gpu_extract.sources.id_lists import read_ids
from gpu_extract.sources.slide_table import SlideInput

__all__ = ["HDF5CellExtraction", "TimecourseHDF5CellExtraction"]

# Keys of the original's configuration that say how it works and not what comes out: there is no temporary array, and
# the input is read once.
WITHOUT_EFFECT = ("cache", "hdf5_rdcc_nbytes", "hdf5_rdcc_w0", "hdf5_rdcc_nslots")
KNOWN = ("image_size", "threads", "compression", "normalization_range", "channel_remap", "device", *WITHOUT_EFFECT)
# What the original divides by where it does not normalise.
UINT16_RANGE = (0.0, 65535.0)


class HDF5CellExtraction:
    """The extraction of a classic project: ``segmentation.h5`` and ``classes.csv`` to ``single_cells.h5``.

    Parameters
    ----------
    config : mapping
        ``image_size``, pixels; ``threads``, of which no more than the cores are used; ``compression``, true by
        default; ``normalization_range``: true, two quantiles, or None for values divided by 65535; ``channel_remap``,
        as in ``"0,1,3,2"``: which planes of a tile are written, in that order, masks first in counting; and, not of
        the original, ``device``. ``cache`` and ``hdf5_rdcc_...`` are accepted and have no effect.
    directory : path
        Where the output goes; made if it is not there.
    project_location : path, optional
    debug, overwrite, intermediate_output : bool
        Accepted, and without effect: an output that is there is always replaced, by a complete one.

    Attributes
    ----------
    output_path : str
        The file that `process` writes.
    input_segmentation_path, filtered_classes_path : str
        Where a project keeps them.

    Raises
    ------
    InputError
        If the configuration has no ``image_size``, or a value that is not allowed.
    OutputError
        If the directory cannot be made.
    """

    DEFAULT_DATA_FILE = "single_cells.h5"
    DEFAULT_DATA_DIR = "data"
    DEFAULT_SEGMENTATION_DIR = "segmentation"
    DEFAULT_SEGMENTATION_FILE = "segmentation.h5"
    DEFAULT_CLASSES_FILE = "classes.csv"
    DEFAULT_EXTRACTION_DIR = "extraction"

    def __init__(
        self,
        config: Mapping[str, Any],
        directory: str | os.PathLike[str],
        project_location: str | os.PathLike[str] | None = None,
        debug: bool = False,
        overwrite: bool = False,
        intermediate_output: bool = True,
    ) -> None:
        self.config = config
        self.directory = os.fspath(directory)
        self.project_location = project_location
        self.debug = debug
        self.overwrite = overwrite
        self.intermediate_output = intermediate_output
        folder = Path(self.directory)
        base = folder.parent if folder.name == self.DEFAULT_EXTRACTION_DIR else folder
        segmentation = base / self.DEFAULT_SEGMENTATION_DIR
        self.input_segmentation_path = str(segmentation / self.DEFAULT_SEGMENTATION_FILE)
        self.filtered_classes_path = str(segmentation / self.DEFAULT_CLASSES_FILE)
        self.output_path = str(folder / self.DEFAULT_DATA_DIR / self.DEFAULT_DATA_FILE)
        unknown = [str(key) for key in config if key not in KNOWN]
        if unknown:
            warnings.warn(
                f"the configuration has keys that {type(self).__name__} of gpu-extract does not know and that have no "
                f"effect: {', '.join(unknown)}; it knows {', '.join(KNOWN)}",
                stacklevel=2,
            )
        self._recipe, self._threads = _recipe(config), _threads(config)
        _make_folder(folder)

    def process(
        self,
        input_segmentation_path: str | os.PathLike[str],
        filtered_classes_path: str | os.PathLike[str] | None = None,
    ) -> Report:
        """Extract the cells of a segmentation that are in a list of ids.

        Parameters
        ----------
        input_segmentation_path : path
            ``segmentation.h5``, or ``input_segmentation.h5`` of a time course.
        filtered_classes_path : path, optional
            ``classes.csv``; by default the project's. Ids that have no label are ignored, as by the original.

        Returns
        -------
        Report
            Its ``warnings`` are given as Python's warnings too.

        Raises
        ------
        InputError, OutputError, DeviceError, RunStoppedError
            As `gpu_extract.extract` does.
        """
        ids = read_ids(self.filtered_classes_path if filtered_classes_path is None else filtered_classes_path)
        output = Path(self.output_path)
        _make_folder(output.parent)
        with progress_on_stderr(quiet=False) as progress:
            report = extract_many(
                [SlideInput(os.fspath(input_segmentation_path), ids=ids)],
                output=output,
                recipe=self._recipe,
                planes=self.config.get("channel_remap"),
                layout="sparcspy",
                compression="gzip" if self.config.get("compression", True) else "none",
                device=self.config.get("device", "auto"),
                threads=self._threads,
                overwrite=True,
                progress=progress,
            )
        for line in report.warnings:
            warnings.warn(line, stacklevel=2)
        return report

    def __call__(self, *args: Any, debug: bool | None = None, overwrite: bool | None = None, **kwargs: Any) -> Report:
        """`process`, as a SPARCSpy ``Project`` calls it; unlike the original's this never empties the directory."""
        return self.process(*args, **kwargs)

    def get_output_path(self) -> str:
        """The folder of the output."""
        return os.path.dirname(self.output_path)


class TimecourseHDF5CellExtraction(HDF5CellExtraction):
    """The extraction of a classic time course: ``input_segmentation.h5`` and ``classes.csv`` to ``single_cells.h5``.

    All is as for `HDF5CellExtraction`; the output has the labels of each cell as well.
    """

    DEFAULT_SEGMENTATION_FILE = "input_segmentation.h5"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"folder {folder} cannot be made: {error.strerror}; choose another directory") from error


def _recipe(config: Mapping[str, Any]) -> Recipe:
    """The recipe that a configuration means.

    Raises
    ------
    InputError
    """
    if "image_size" not in config:
        raise InputError("the configuration has no image_size; give the side of a tile in pixels")
    recipe = Recipe.preset("sparcspy").replace(tile_size=config["image_size"])
    quantiles = config.get("normalization_range", True)
    if quantiles is True:
        return recipe
    if quantiles in (None, "None"):
        return recipe.replace(normalization="range", value_range=UINT16_RANGE, minmax=False)
    if isinstance(quantiles, list | tuple):
        return recipe.replace(quantiles=tuple(quantiles))
    raise InputError(
        f"normalization_range is {quantiles!r}; it must be true, two quantiles as in (0.001, 0.999), or None"
    )


def _threads(config: Mapping[str, Any]) -> int | None:
    """At most as many threads as there are cores: configurations are written for other machines.

    Raises
    ------
    InputError
    """
    threads = config.get("threads")
    if threads is None:
        return None
    if not isinstance(threads, int) or threads < 1:
        raise InputError(f"threads is {threads!r}; it must be a whole number, 1 or more")
    return min(threads, default_threads())
