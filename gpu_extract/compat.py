"""SPARCSpy's two extraction classes, implemented by this package. A script only changes its import.

::

    from gpu_extract.compat import HDF5CellExtraction  # was: from sparcscore.pipeline.extraction import ...

    extraction = HDF5CellExtraction(config, "project/extraction", project_location="project")
    extraction.process("project/segmentation/segmentation.h5", "project/segmentation/classes.csv")

The values are those of SPARCSpy 1.0.0 (recipe ``sparcspy``). So is the file, ``<directory>/data/single_cells.h5``,
except that it is compressed with gzip. It appears once it is complete.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from gpu_extract.api import extract_many
from gpu_extract.cpus import default_threads
from gpu_extract.errors import InputError, OutputError
from gpu_extract.listing import listed
from gpu_extract.pipeline import Report
from gpu_extract.recipe import Recipe
from gpu_extract.sources.id_lists import read_ids
from gpu_extract.sources.slide_table import SlideInput

__all__ = ["HDF5CellExtraction", "TimecourseHDF5CellExtraction"]

# Keys of SPARCSpy's configuration that do not affect the output. `normalization_range` is in all of its examples, but
# SPARCSpy 1.0.0 does not read it. The others are about its temporary array and repeated reading of the input, neither
# of which exists here.
WITHOUT_EFFECT = ("normalization_range", "cache", "hdf5_rdcc_nbytes", "hdf5_rdcc_w0", "hdf5_rdcc_nslots")
KNOWN = ("image_size", "threads", "compression", "channel_remap", "device", *WITHOUT_EFFECT)

LOGGER = logging.getLogger("gpu_extract")


class HDF5CellExtraction:
    """Extraction of a classic project: from ``segmentation.h5`` and ``classes.csv`` to ``single_cells.h5``.

    Parameters
    ----------
    config : dict
        The section of the class in ``config.yml``, or all of ``config.yml``, which has that section. Its keys are

        - ``image_size``, pixels: side of a tile; the only key that is required;
        - ``threads``: number of threads, limited to the number of cores;
        - ``compression``: whether the file is compressed, default true;
        - ``channel_remap``: planes of a tile to write, in this order, as in ``"0,1,3,2"``, numbered from 0, masks
          first; default all;
        - ``device``: as for `gpu_extract.extract`; SPARCSpy does not have this key;
        - ``normalization_range``, ``cache``, ``hdf5_rdcc_nbytes``, ``hdf5_rdcc_w0``, ``hdf5_rdcc_nslots``: accepted,
          without effect.
    directory : path
        Folder of the output. It is made if it does not exist.
    project_location : path, optional
        Kept as an attribute, without effect.
    debug, intermediate_output, overwrite : bool
        Accepted, without effect: an existing output is always replaced, once the new one is complete.

    Attributes
    ----------
    config : dict
        The section of the class; `register_parameter` adds to it.
    output_path : str
        The file that `process` writes.
    input_segmentation_path, filtered_classes_path : str
        The input files of the project.

    Raises
    ------
    InputError
        If the configuration has no ``image_size``, or an invalid value.
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
        config: MutableMapping[str, Any],
        directory: str | os.PathLike[str],
        project_location: str | os.PathLike[str] | None = None,
        debug: bool = False,
        intermediate_output: bool = False,
        overwrite: bool = True,
    ) -> None:
        self.config = _section(config, [kind.__name__ for kind in type(self).__mro__])
        self.directory = os.path.expanduser(directory)
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
        unknown = [str(key) for key in self.config if key not in KNOWN]
        if unknown:
            warnings.warn(
                f"unknown keys of the configuration, without effect: {listed(unknown)}; known are {', '.join(KNOWN)}",
                stacklevel=2,
            )
        _recipe(self.config), _threads(self.config)  # invalid values are errors before a folder is made
        _make_folder(folder)

    def process(
        self,
        input_segmentation_path: str | os.PathLike[str],
        filtered_classes_path: str | os.PathLike[str] | None = None,
    ) -> Report:
        """Extract the cells of a segmentation whose ids are listed.

        Parameters
        ----------
        input_segmentation_path : path
            ``segmentation.h5``, or ``input_segmentation.h5`` of a time course.
        filtered_classes_path : path, optional
            ``classes.csv``. Default: the project's own. As by SPARCSpy, ids without a nucleus are ignored, and those
            without a cytosol are extracted.

        Returns
        -------
        Report
            Its ``warnings`` are issued as Python warnings, too.

        Raises
        ------
        InputError, OutputError, DeviceError, RunStoppedError
            As for `gpu_extract.extract`.
        """
        ids = read_ids(self.filtered_classes_path if filtered_classes_path is None else filtered_classes_path)
        output = Path(self.output_path)
        _make_folder(output.parent)
        return extract_many(
            [SlideInput(os.fspath(input_segmentation_path), ids=ids)],
            output=output,
            recipe=_recipe(self.config),
            planes=self.config.get("channel_remap"),
            layout="sparcspy",
            compression="gzip" if self.config.get("compression", True) else "none",
            device=self.config.get("device", "auto"),
            threads=_threads(self.config),
            overwrite=True,
            progress=True,
        )

    def __call__(
        self,
        *args: Any,
        debug: bool | None = None,
        intermediate_output: bool | None = None,
        overwrite: bool | None = None,
        **kwargs: Any,
    ) -> Report:
        """Call `process`, as a SPARCSpy ``Project`` does. Unlike SPARCSpy, never empty the directory."""
        return self.process(*args, **kwargs)

    def get_output_path(self) -> str:
        """Return the folder of the output."""
        return os.path.dirname(self.output_path)

    def get_directory(self) -> str:
        """Return the folder of the extraction."""
        return self.directory

    def log(self, message: object) -> None:
        """Log a text, the items of a list or the pairs of a dict, one a line, to the logger ``gpu_extract``."""
        if isinstance(message, dict):
            message = [f"{key}: {value}" for key, value in message.items()]
        for line in message if isinstance(message, list) else str(message).split("\n"):
            LOGGER.info("%s", line)

    def register_parameter(self, key: str, value: Any) -> None:
        """Set a key of the configuration unless it is set already."""
        if key not in self.config:
            self.log(f"No configuration for {key} found, parameter will be set to {value}")
            self.config[key] = value


class TimecourseHDF5CellExtraction(HDF5CellExtraction):
    """Extraction of a classic time course: from ``input_segmentation.h5`` and ``classes.csv`` to ``single_cells.h5``.

    See `HDF5CellExtraction`. The output also holds the metadata of each cell.
    """

    DEFAULT_SEGMENTATION_FILE = "input_segmentation.h5"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"folder {folder} cannot be made: {error.strerror}; choose another directory") from error


def _section(config: Any, names: list[str]) -> MutableMapping[str, Any]:
    """Return the section of a class in the whole ``config.yml``, or the configuration itself if it is the section.

    Raises
    ------
    InputError
    """
    section = config
    if isinstance(config, MutableMapping):
        section = next((config[name] for name in names if name in config), config)
    if not isinstance(section, MutableMapping):
        raise InputError(f"the configuration is {section!r}; it must be a dict, as yaml.safe_load returns it")
    return section


def _recipe(config: MutableMapping[str, Any]) -> Recipe:
    """Return the recipe of a configuration.

    Raises
    ------
    InputError
    """
    if "image_size" not in config:
        raise InputError("the configuration has no image_size; give the side of a tile in pixels")
    # SPARCSpy finds cells in the plane of the nuclei only.
    return Recipe.preset("sparcspy").replace(tile_size=config["image_size"], on_mismatch="keep_nuclei")


def _threads(config: MutableMapping[str, Any]) -> int | None:
    """Return the number of threads, limited to the number of cores: many configurations are from larger machines.

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
