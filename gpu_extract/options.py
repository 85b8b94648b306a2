"""The options of the public functions, each with its type, and the answer to a name that is none of them.

A function that takes ``**options: Unpack[PlanOptions]`` has every option completed by editors and checked by type
checkers; `check_options` is the check at run time.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypedDict

from gpu_extract.errors import UnknownOptionError
from gpu_extract.recipe import Recipe

__all__ = ["ArrayInput", "ExtractOptions", "ImageInput", "LabelInput", "PlanOptions", "RunOptions", "check_options"]

# What belongs to one slide, and so is no option of several.
SLIDE_FIELDS = ("image", "nucleus", "cytosol")


class ArrayInput(Protocol):
    """An array that is read by slice: of NumPy, Dask, xarray, Zarr or h5py."""

    @property
    def shape(self) -> tuple[Any, ...]:
        """Lengths of the axes."""

    @property
    def ndim(self) -> int:
        """Number of axes."""

    @property
    def dtype(self) -> Any:
        """Type of the elements, as `numpy.dtype` accepts it."""

    def __getitem__(self, key: Any, /) -> Any: ...


# A list or a tuple holds the channels of one slide.
ImageInput = str | os.PathLike[str] | ArrayInput | Sequence[str | os.PathLike[str] | ArrayInput]
LabelInput = str | os.PathLike[str] | ArrayInput


class PlanOptions(TypedDict, total=False):
    """Options that determine which cells are extracted and what their tiles hold.

    All are optional, and None stands for the default. The defaults of the recipe's parameters are those of the preset
    ``standard``; another recipe brings its own.

    Parameters
    ----------
    recipe : str, path or `Recipe`, default "standard"
        A preset (``standard``, ``sparcspy``, ``scportrait``), the path of a TOML file, or a `Recipe`. The recipe's
        parameters below, where given, replace its values.
    ids : iterable of int, optional
        Extract only the cells with these ids. Each must be in a label plane.
    n_cells : int, optional
        Extract this many cells, drawn at random from those that all other rules keep. Not together with ``ids``.
    seed : int, default 0
        Seed of the random draw of ``n_cells``.
    channel_names : sequence of str, length C, optional
        Names of the image's channels. Default: the names in the image's metadata, else ``ch0``, ``ch1``, ...
    channels : sequence of int or str, optional
        Channels to extract, by index or name, in this order. The others are never read. Default: all.
    planes : str or sequence of int, optional
        Planes of a tile to keep, in this order, as in ``[0, 1, 3]`` or ``"0,1,3"``. Planes are numbered from 0, masks
        first, then channels. Default: all. Only for ``layout="sparcspy"``, `iter_cells` and `plan`.
    pixel_size : float or (float, float), um per pixel, optional
        Pixel size, or (y, x) pixel sizes. Default: the pixel size in the image's metadata.
    tile_size_um : float, um, optional
        Side of a tile, rounded to the nearest even number of pixels. Not together with ``tile_size``. All slides must
        have the same pixel size, which ``scale`` ensures.
    scale : float, um per pixel, optional
        Resample images and label planes to this pixel size first. Centers, boxes and areas of the cells are then
        in resampled pixels. See `gpu_extract.sources.scaled`.
    on_bad_slide : {"stop", "skip"}, default "stop"
        Several slides only: raise an error on a slide that cannot be opened or whose label planes are invalid, or
        skip the slide and report it in the plan's ``warnings``. Empty label planes are valid.
    trust : str or iterable of str, optional
        Checks to skip: ``ids``, ``binary``, ``planes``, ``placement``; see `gpu_extract.checks`. What they find is a
        warning instead of an error, and recorded in the file.
    allow_empty : bool, default False
        Whether no cell at all is valid and makes a file without cells. By default it is an error. A slide without
        cells is no error if another one has cells.
    tile_size : int, pixels, default 128
        Side of a tile. This and all that follow are the parameters of a recipe; `Recipe` describes them.
    border : {"mask", "window", "keep"}, default "mask"
    on_mismatch : {"drop", "error", "keep", "keep_nuclei"}, default "drop"
    match : {"id", "overlap"}, default "id"
    several_nuclei : {"largest", "all"}, default "largest"
    pieces : {"all", "largest"}, default "all"
    fill_nucleus : bool, default True
    fill_cytosol : bool, default True
    stored_sigma : float, pixels, default 0.0
    nuclear_channel : int, str or None, default 0
        ``"none"`` means that no channel is multiplied by the nucleus mask.
    nucleus_dilation : int, pixels, default 2
    nucleus_sigma : float, pixels, default 1.0
    cytosol_dilation : int, pixels, default 2
    cytosol_sigma : float, pixels, default 1.0
    neighbours : {"exclude", "keep"}, default "exclude"
    apply_masks : bool, default True
    cut : {"after", "before"}, default "after"
    normalization : {"quantile", "range", "dtype", "none"}, default "quantile"
    quantiles : (float, float), default (0.001, 0.999)
    quantile_pixels : {"mask", "tile"}, default "mask"
    quantile_scope : {"cell", "slide", "dataset"}, default "cell"
    value_range : (float, float) or None, default None
    flat_channel : {"zero", "undivided"}, default "zero"
    minmax : bool, default False
    minmax_except : tuple of int or str, default ()
    output_dtype : {"auto", "float16", "float32", "uint16", "uint8"}, default "auto"
    nonfinite : {"error", "zero"}, default "error"
    """

    recipe: str | os.PathLike[str] | Recipe
    ids: Iterable[int] | None
    n_cells: int | None
    seed: int
    channel_names: Sequence[str] | None
    channels: Sequence[int | str] | None
    planes: str | Sequence[int] | None
    pixel_size: float | Sequence[float] | None
    tile_size_um: float | None
    scale: float | None
    on_bad_slide: Literal["stop", "skip"]
    trust: str | Iterable[str] | None
    allow_empty: bool

    tile_size: int
    border: Literal["mask", "window", "keep"]
    on_mismatch: Literal["drop", "error", "keep", "keep_nuclei"]
    match: Literal["id", "overlap"]
    several_nuclei: Literal["largest", "all"]
    pieces: Literal["all", "largest"]
    fill_nucleus: bool
    fill_cytosol: bool
    stored_sigma: float
    nuclear_channel: int | str | None
    nucleus_dilation: int
    nucleus_sigma: float
    cytosol_dilation: int
    cytosol_sigma: float
    neighbours: Literal["exclude", "keep"]
    apply_masks: bool
    cut: Literal["after", "before"]
    normalization: Literal["quantile", "range", "dtype", "none"]
    quantiles: tuple[float, float]
    quantile_pixels: Literal["mask", "tile"]
    quantile_scope: Literal["cell", "slide", "dataset"]
    value_range: tuple[float, float] | None
    flat_channel: Literal["zero", "undivided"]
    minmax: bool
    minmax_except: tuple[int | str, ...]
    output_dtype: Literal["auto", "float16", "float32", "uint16", "uint8"]
    nonfinite: Literal["error", "zero"]


class RunOptions(TypedDict, total=False):
    """Options that determine where cells are computed and how the file is written.

    All are optional.

    Parameters
    ----------
    device : str, default "auto"
        ``auto`` (a GPU if one works, else the CPU), ``cpu``, ``cuda``, ``cuda:N``, ``reference`` or
        ``reference:cuda``.
    threads : int, optional
        Threads that compute and encode. Default: the number of cores that this process may use.
    gpu_memory : float, GiB, optional
        Maximum GPU memory to use. Default: most of the free memory.
    compression : {"gzip", "lzf", "lz4", "zstd", "none"}, default "gzip"
        Other programs need an HDF5 plugin to read ``lz4`` and ``zstd``; see `gpu_extract.store.codecs`.
    layout : {"h5sc", "sparcspy"}, default "h5sc"
        ``sparcspy`` is the classic ``single_cells.h5``: a time course if there are several slides or metadata.
    chunk_cells : int, default 1
        Cells per chunk of the file. Large chunks speed up reading in order and slow down reading at random; if ids
        are scattered over the slide, they slow down the extraction.
    unique_ids : bool, default False
        Number the cells of all slides 1 to N, by row, in ``scportrait_cell_id``, for readers that find cells by id
        alone, such as scPortrait. The ids in the label planes are then in ``cell_id``, and `open_cells` finds cells by
        those.
    overwrite : bool, default False
        Replace an existing output once the new file is complete, and delete the remains of an unfinished run.
    resume : bool, default False
        Go on with an unfinished run of the same inputs and options, and end with the file that it would have written.
        If there is none, begin; if the file is complete, do nothing. Anything that differs is an error that names it.
        Not together with ``overwrite``.
    """

    device: str
    threads: int | None
    gpu_memory: float | None
    compression: Literal["gzip", "lzf", "lz4", "zstd", "none"]
    layout: Literal["h5sc", "sparcspy"]
    chunk_cells: int
    unique_ids: bool
    overwrite: bool
    resume: bool


class ExtractOptions(PlanOptions, RunOptions, total=False):
    """The options of an extraction: `PlanOptions` and `RunOptions`."""


def check_options(options: Mapping[str, object], kind: type[Any], *parameters: str) -> None:
    """Check that a function knows the names of all options it was given.

    Parameters
    ----------
    options : mapping
        The options given, by name.
    kind : type
        The TypedDict of the options that the function takes.
    *parameters : str
        The function's named parameters, of which an unknown option may be a misspelling.

    Raises
    ------
    UnknownOptionError
    """
    known = [*parameters, *kind.__annotations__]
    for name in options:
        if name in kind.__annotations__:
            continue
        if name in SLIDE_FIELDS:
            raise UnknownOptionError(
                f"unknown option {name!r}; it belongs to each slide: {{'image': ..., 'nucleus': ..., 'cytosol': ...}}"
            )
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(known)}"
        raise UnknownOptionError(f"unknown option {name!r}; {hint}")
