"""The recipe: all parameters of an extraction, the three presets, and their meaning for a slide.

A `Recipe` holds the user's choices. `Recipe.program` resolves it against a slide (its label planes, number of
channels and pixel type) into a `Program`: the masks and channels that every backend computes.
"""

from __future__ import annotations

import dataclasses
import math
import os
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from gpu_extract.channels import channel_index
from gpu_extract.errors import InputError, RecipeError

__all__ = ["MAX_TILE_SIZE", "MaskSteps", "Program", "Recipe", "gaussian_weights"]

# Five float16 planes of this size take 160 MiB; a larger tile would be a crop of a tissue, not of a cell.
MAX_TILE_SIZE = 4096
# Larger values make no sense for cells and are most likely typing errors.
MAX_DILATION = 512
MAX_SIGMA = 256.0

FLOAT_OUTPUTS = ("float16", "float32", "float64")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All parameters of an extraction, checked on construction.

    The defaults are the preset ``standard``. `Recipe.preset` returns a preset by name, `replace` changes single
    parameters, and `from_toml` and `to_toml` convert from and to TOML.

    Parameters
    ----------
    base : {"standard", "sparcspy", "scportrait"}
        The preset that the recipe is based on. It has no effect of its own.
    tile_size : int, pixels
        Side S of a tile, 1 to 4096. The center of the cell is at index ``S // 2``.
    border : {"mask", "window", "keep"}
        Which cells near the border of the slide are dropped: those with a mask that touches it, those whose center is
        not more than ``S // 2`` pixels away from it, or none.
    on_mismatch : {"drop", "error", "keep", "keep_nuclei"}
        Handling of an id that occurs in only one of the two label planes. With ``"keep_nuclei"`` a nucleus without a
        cytosol is kept, and a cytosol without a nucleus dropped, as by SPARCSpy.
    match : {"id", "overlap"}
        How nuclei and cytosols are paired: by equal ids, or each nucleus with the cytosol that it overlaps most. With
        ``"overlap"`` the cell has the id of the cytosol.
    several_nuclei : {"largest", "all"}
        With ``match="overlap"``, the nuclei kept in a cytosol with several.
    pieces : {"all", "largest"}
        The connected components (8-connected) of a label that belong to the cell.
    fill_nucleus, fill_cytosol : bool
        Fill holes in the mask (background regions not 4-connected to the edge of the tile).
    stored_sigma : float, pixels
        Gaussian blur of the stored mask planes; 0 stores binary masks.
    nuclear_channel : int, str or None
        The channel that is cut with the nucleus mask, by its index among the extracted channels or by its name. All
        other channels, or all channels if None, are cut with the last mask.
    nucleus_dilation, cytosol_dilation : int, pixels
        Radius of the disk by which the mask for cutting is dilated.
    nucleus_sigma, cytosol_sigma : float, pixels
        Gaussian blur of the mask for cutting, after dilation.
    neighbours : {"exclude", "keep"}
        Whether pixels on a neighboring label are set to 0 or kept.
    apply_masks : bool
        Whether channels are cut with masks.
    cut : {"after", "before"}
        Whether channels are cut after or before normalization.
    normalization : {"quantile", "range", "dtype", "none"}
        Scale each channel to [0, 1] between two quantiles, between ``value_range``, by the maximum of its
        integer type, or not at all.
    quantiles : (float, float)
        Lower and upper quantile, within [0, 1] (NumPy's linear definition).
    quantile_pixels : {"mask", "tile"}
        Pixels that the quantiles of a cell are taken over: its dilated mask on the slide, or the whole tile.
    quantile_scope : {"cell", "slide", "dataset"}
        Take quantiles over each cell, over all pixels of its slide, or over all slides.
    value_range : (float, float) or None
        Lower and upper value of ``normalization="range"``.
    flat_channel : {"zero", "undivided"}
        Result for a channel whose lower and upper value are equal: 0, or clip(x - lower, 0, 1).
    minmax : bool
        Stretch each channel to [0, 1] once more at the end.
    minmax_except : tuple of int or str
        Channels excluded from ``minmax``, by name, or by position in the order in which the nuclear channel comes
        first, as it always does in SPARCSpy. Positions beyond the last channel are ignored.
    output_dtype : {"auto", "float16", "float32", "uint16", "uint8"}
        Type of the stored tiles. ``auto`` is float16, or the type of the image for ``normalization="none"``.
        For integer types, normalized values and masks are scaled to the maximum of the type.
    nonfinite : {"error", "zero"}
        Raise an error for NaN and infinite pixels, or set them to 0.

    Raises
    ------
    RecipeError
        If a value is not allowed. The message has the parameter, the value and the allowed values.
    """

    base: Literal["standard", "sparcspy", "scportrait"] = "standard"
    tile_size: int = 128
    border: Literal["mask", "window", "keep"] = "mask"
    on_mismatch: Literal["drop", "error", "keep", "keep_nuclei"] = "drop"
    match: Literal["id", "overlap"] = "id"
    several_nuclei: Literal["largest", "all"] = "largest"
    pieces: Literal["all", "largest"] = "all"
    fill_nucleus: bool = True
    fill_cytosol: bool = True
    stored_sigma: float = 0.0
    nuclear_channel: int | str | None = 0
    nucleus_dilation: int = 2
    nucleus_sigma: float = 1.0
    cytosol_dilation: int = 2
    cytosol_sigma: float = 1.0
    neighbours: Literal["exclude", "keep"] = "exclude"
    apply_masks: bool = True
    cut: Literal["after", "before"] = "after"
    normalization: Literal["quantile", "range", "dtype", "none"] = "quantile"
    quantiles: tuple[float, float] = (0.001, 0.999)
    quantile_pixels: Literal["mask", "tile"] = "mask"
    quantile_scope: Literal["cell", "slide", "dataset"] = "cell"
    value_range: tuple[float, float] | None = None
    flat_channel: Literal["zero", "undivided"] = "zero"
    minmax: bool = False
    minmax_except: tuple[int | str, ...] = ()
    output_dtype: Literal["auto", "float16", "float32", "uint16", "uint8"] = "auto"
    nonfinite: Literal["error", "zero"] = "error"

    def __post_init__(self) -> None:
        for name, kind in _kinds().items():
            object.__setattr__(self, name, _checked(name, kind, getattr(self, name)))
        _check_range("tile_size", self.tile_size, 1, MAX_TILE_SIZE, "pixels")
        for plane in ("nucleus", "cytosol"):
            _check_range(f"{plane}_dilation", getattr(self, f"{plane}_dilation"), 0, MAX_DILATION, "pixels")
            _check_range(f"{plane}_sigma", getattr(self, f"{plane}_sigma"), 0, MAX_SIGMA, "pixels")
        _check_range("stored_sigma", self.stored_sigma, 0, MAX_SIGMA, "pixels")
        lo, hi = self.quantiles
        if not 0 <= lo < hi <= 1:
            raise RecipeError(f"quantiles are ({lo}, {hi}); give two in [0, 1], the lower one first")
        if self.normalization == "range":
            if self.value_range is None:
                raise RecipeError("normalization 'range' needs value_range, the two values that become 0 and 1")
            if not (all(map(math.isfinite, self.value_range)) and self.value_range[0] < self.value_range[1]):
                raise RecipeError(f"value_range is {self.value_range}; give two finite values, the lower first")
        if self.normalization == "none" and self.minmax:
            raise RecipeError("minmax is true with normalization 'none'; raw values are not stretched: drop one")

    @classmethod
    def preset(cls, name: str) -> Recipe:
        """Return the preset ``standard``, ``sparcspy`` or ``scportrait``."""
        if not isinstance(name, str) or name not in PRESETS:
            raise RecipeError(f"unknown recipe {name!r}; it must be {_choice(PRESETS)}, or a .toml file")
        return cls(base=name, **PRESETS[name])  # type: ignore[arg-type]

    @classmethod
    def from_toml(cls, path: str | Path) -> Recipe:
        """Read a recipe from a TOML file with a ``base`` preset (default ``standard``) and changed parameters.

        Raises
        ------
        RecipeError
            If the file cannot be read or is not TOML, a key is unknown, or a value is not allowed.
        """
        try:
            with open(os.path.expanduser(path), "rb") as file:
                table = tomllib.load(file)
        except OSError as error:
            raise RecipeError(f"recipe {path} cannot be read: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RecipeError(f"recipe {path} is not TOML: {error}") from error
        try:
            return cls.preset(table.pop("base", "standard")).replace(**table)
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}") from error

    def to_toml(self) -> str:
        """Return the recipe as TOML text, which `from_toml` reads back unchanged."""
        import tomli_w

        return tomli_w.dumps({name: _to_plain(value) for name, value in dataclasses.asdict(self).items()})

    def replace(self, **changes: Any) -> Recipe:
        """Return a copy of the recipe with some parameters changed.

        Raises
        ------
        RecipeError
            If a name is unknown or a value is not allowed.
        """
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise RecipeError(f"unknown recipe parameter {name!r}{_nearest(name, known)}")
        return dataclasses.replace(self, **changes)

    def nuclear_name(self, channel_names: tuple[str, ...]) -> str | None:
        """Return the name of the channel that is cut with the nucleus mask; None if no channel is, by its number."""
        at = self.nuclear_channel
        if not self.apply_masks or not isinstance(at, int) or at >= len(channel_names):
            return None
        return channel_names[at]

    def program(
        self,
        mask_names: tuple[str, ...],
        n_channels: int,
        image_dtype: np.dtype[Any],
        channel_names: tuple[str, ...] = (),
    ) -> Program:
        """Resolve the recipe for slides with these label planes and channels.

        Parameters
        ----------
        mask_names : tuple of str, length M
        n_channels : int
        image_dtype : numpy.dtype
        channel_names : tuple of str, length C or 0
            Required only if the recipe refers to a channel by name.

        Raises
        ------
        RecipeError
            If the recipe does not match the slides, for example if a channel does not exist or the output type
            cannot represent the values.
        """
        names = channel_names or ("",) * n_channels
        nuclear_channel = (
            None if self.nuclear_channel is None else _index("nuclear_channel", self.nuclear_channel, names)
        )
        if self.normalization == "dtype" and image_dtype.kind == "f":
            raise RecipeError(
                f"normalization 'dtype' needs an integer image, this one is {image_dtype}; "
                "use 'range' with value_range, or 'quantile'"
            )
        masks: list[MaskSteps] = []

        def index(steps: MaskSteps) -> int:
            if steps not in masks:
                masks.append(steps)
            return masks.index(steps)

        last = len(mask_names) - 1
        fill = {"nucleus": self.fill_nucleus, "cytosol": self.fill_cytosol}
        stored = tuple(index(MaskSteps(m, fill[name], 0, self.stored_sigma)) for m, name in enumerate(mask_names))
        nuclear = MaskSteps(0, self.fill_nucleus, self.nucleus_dilation, self.nucleus_sigma)
        other = MaskSteps(last, self.fill_cytosol, self.cytosol_dilation, self.cytosol_sigma)
        cut = tuple(index(nuclear if c == nuclear_channel else other) for c in range(n_channels))
        return Program(
            recipe=self,
            masks=tuple(masks),
            stored=stored,
            cut=cut,
            stretched=self._stretched(names, nuclear_channel),
            image_dtype=image_dtype,
            output_dtype=self._output_dtype(image_dtype),
        )

    def _stretched(self, names: tuple[str, ...], nuclear_channel: int | None) -> tuple[bool, ...]:
        """Return for each channel whether ``minmax`` applies to it."""
        order = sorted(range(len(names)), key=lambda c: c != nuclear_channel)
        excepted = {
            _index("minmax_except", each, names) if isinstance(each, str) else order[each]
            for each in self.minmax_except
            if isinstance(each, str) or each < len(names)
        }
        return tuple(self.minmax and c not in excepted for c in range(len(names)))

    def _output_dtype(self, image_dtype: np.dtype[Any]) -> np.dtype[Any]:
        raw = self.normalization == "none"
        if self.output_dtype == "auto":
            dtype = np.dtype(image_dtype.newbyteorder("=") if raw else "float16")
        else:
            dtype = np.dtype(self.output_dtype)
        if raw and not np.can_cast(image_dtype, dtype):
            raise RecipeError(
                f"output_dtype {dtype} cannot hold every raw value of a {image_dtype} image; "
                "leave it at 'auto', or choose a normalization"
            )
        if raw and dtype.kind != "f" and self.stored_sigma > 0:
            raise RecipeError(
                f"stored_sigma is {self.stored_sigma}, and soft masks do not fit raw {dtype} tiles; "
                "set stored_sigma to 0, or output_dtype to 'float32'"
            )
        return dtype


@dataclass(frozen=True)
class MaskSteps:
    """The steps from a label to one mask of a cell: select, fill holes, dilate, blur.

    Parameters
    ----------
    plane : int
        Index of the label plane.
    fill_holes : bool
    dilation : int, pixels
        Radius of the disk.
    sigma : float, pixels
    """

    plane: int
    fill_holes: bool
    dilation: int
    sigma: float


@dataclass(frozen=True)
class Program:
    """A recipe resolved against a slide: the distinct masks, and the mask of each plane of a tile.

    Parameters
    ----------
    recipe : Recipe
    masks : tuple of MaskSteps
        The distinct masks.
    stored : tuple of int, length M
        Index into ``masks`` for each mask plane of a tile.
    cut : tuple of int, length C
        Index into ``masks`` of the mask that each channel is cut with.
    stretched : tuple of bool, length C
        Whether each channel is stretched to [0, 1] at the end.
    image_dtype, output_dtype : numpy.dtype
    """

    recipe: Recipe
    masks: tuple[MaskSteps, ...]
    stored: tuple[int, ...]
    cut: tuple[int, ...]
    stretched: tuple[bool, ...]
    image_dtype: np.dtype[Any]
    output_dtype: np.dtype[Any]

    @property
    def n_planes(self) -> int:
        """Number K of planes of a tile: masks, then channels."""
        return len(self.stored) + len(self.cut)

    @property
    def tile_shape(self) -> tuple[int, int, int]:
        """Shape (K, S, S) of a tile."""
        return (self.n_planes, self.recipe.tile_size, self.recipe.tile_size)

    @property
    def tile_nbytes(self) -> int:
        """Size of a finished tile in bytes."""
        return math.prod(self.tile_shape) * self.output_dtype.itemsize

    @property
    def unit(self) -> float:
        """Stored value of 1.0: the maximum of the type if normalized values are stored as integers, else 1."""
        if self.output_dtype.kind == "f" or self.recipe.normalization == "none":
            return 1.0
        return float(np.iinfo(self.output_dtype).max)

    @property
    def fixed_limits(self) -> NDArray[np.float64] | None:
        """Lower and upper value of each channel, (C, 2), if the recipe alone determines them, else None."""
        recipe = self.recipe
        if recipe.normalization == "range":
            assert recipe.value_range is not None  # Recipe checks it
            lo, hi = recipe.value_range
        elif recipe.normalization == "dtype":
            lo, hi = 0.0, float(np.iinfo(self.image_dtype).max)
        elif recipe.normalization == "none":
            lo, hi = 0.0, 1.0
        else:
            return None
        return np.tile(np.array([lo, hi]), (len(self.cut), 1))


def gaussian_weights(sigma: float) -> NDArray[np.float64]:
    """Return the weights of a Gaussian blur from the center outward, (R + 1,), with R = int(4 sigma + 0.5).

    The weights are ``exp(-x^2 / (2 sigma^2))``, normalized to a sum of 1 over ``|x| <= R``. For ``sigma`` 0 they are
    ``[1.]``. Kernel and radius are those of `scipy.ndimage.gaussian_filter1d`.
    """
    radius = int(4 * sigma + 0.5)
    if radius == 0:
        return np.ones(1)
    weights = np.exp(-0.5 / (sigma * sigma) * np.arange(radius + 1.0) ** 2)
    return np.asarray(weights / (weights[0] + 2 * weights[1:].sum()))


PRESETS: dict[str, dict[str, Any]] = {
    "standard": {},
    "sparcspy": {
        "border": "window",
        "fill_nucleus": False,
        "stored_sigma": 1.0,
        "nucleus_dilation": 0,
        "nucleus_sigma": 5.0,
        "cytosol_dilation": 6,
        "cytosol_sigma": 5.0,
        "neighbours": "keep",
        "quantile_pixels": "tile",
        "flat_channel": "undivided",
        "minmax": True,
        "minmax_except": (1,),
    },
    "scportrait": {
        "border": "window",
        "stored_sigma": 1.0,
        "nuclear_channel": None,
        "nucleus_dilation": 0,  # in case the user names a nuclear channel
        "cytosol_dilation": 0,
        "cytosol_sigma": 1.0,
        "neighbours": "keep",
        "cut": "before",
        "quantile_pixels": "tile",
        "flat_channel": "undivided",
    },
}


@cache
def _kinds() -> dict[str, Any]:
    """Return the type of each field of a recipe."""
    return get_type_hints(Recipe)


def _checked(name: str, kind: Any, value: Any) -> Any:
    """Return ``value`` in the type of the parameter, or raise a RecipeError with the allowed values."""
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise RecipeError(f"{name} is {value!r}; it must be {_choice(get_args(kind))}")
        return value
    if kind is bool:
        if not isinstance(value, bool):
            raise RecipeError(f"{name} is {value!r}; it must be true or false")
        return value
    if kind == int | str | None:
        if value is None or value == "none":
            return None
        return _channel(name, value)
    if kind is int:
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise RecipeError(f"{name} is {value!r}; it must be a whole number")
        return int(value)
    if kind is float:
        if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not math.isfinite(value):
            raise RecipeError(f"{name} is {value!r}; it must be a finite number")
        return float(value)
    if kind == tuple[int | str, ...]:
        if not isinstance(value, list | tuple):
            raise RecipeError(f"{name} is {value!r}; it must be a list of channel numbers or names")
        return tuple(_channel(name, item) for item in value)
    if value is None or value == "none":
        if kind == tuple[float, float]:
            raise RecipeError(f"{name} is missing; give two numbers")
        return None
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise RecipeError(f"{name} is {value!r}; it must be two numbers")
    return tuple(_checked(name, float, item) for item in value)


def _channel(name: str, value: Any) -> int | str:
    """Check the index (from 0) or name of a channel."""
    if isinstance(value, str) and value:
        return value
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise RecipeError(f"{name} is {value!r}; it must be a channel's number, 0 or more, or its name, or 'none'")
    return int(value)


def _index(name: str, channel: int | str, names: tuple[str, ...]) -> int:
    """Return the index of the channel that a parameter refers to."""
    try:
        return channel_index(channel, names, f"{name} is {channel!r}; the image")
    except InputError as error:
        raise RecipeError(str(error)) from error


def _check_range(name: str, value: float, low: float, high: float, unit: str) -> None:
    if not low <= value <= high:
        raise RecipeError(f"{name} is {value}; it must be {low} to {high:g} {unit}")


def _choice(names: Any) -> str:
    return " or ".join(repr(name) for name in names)


def _nearest(name: str, known: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"


def _to_plain(value: Any) -> Any:
    if value is None:
        return "none"  # TOML has no null
    return list(value) if isinstance(value, tuple) else value
