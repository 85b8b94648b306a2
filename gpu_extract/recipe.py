"""The recipe: every parameter of an extraction, the three presets, and what they mean for one slide.

A `Recipe` is what the user chooses. `Recipe.program` resolves it against a slide (which label planes there
are, how many channels, which pixel type) into a `Program`, the list of masks and channels that every backend
works through.
"""

from __future__ import annotations

import dataclasses
import math
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

# A tile larger than this is a crop of a tissue, not a picture of a cell, and 5 planes of it take 160 MiB.
MAX_TILE_SIZE = 4096
# Beyond these a mask has left every tile that is allowed; larger values are slips of the finger.
MAX_DILATION = 512
MAX_SIGMA = 256.0

FLOAT_OUTPUTS = ("float16", "float32", "float64")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every parameter of an extraction, checked on construction.

    The defaults are the preset ``standard``; `Recipe.preset` gives the others, `replace` changes single
    parameters, `from_toml` and `to_toml` read and write them.

    Parameters
    ----------
    base : {"standard", "sparcspy", "scportrait"}
        The preset that the other parameters started from; a name for the reader, without effect.
    tile_size : int, pixels
        Side S of a tile, 1 to 4096. The cell's centre is at index ``S // 2``.
    border : {"mask", "window", "keep"}
        Which cells near the slide's border are dropped: those whose masks touch it, those whose window
        leaves the slide, or none.
    on_mismatch : {"drop", "error", "keep"}
        What to do with an id that only one of the two label planes has.
    match : {"id", "overlap"}
        What makes a nucleus and a cytosol one cell: the same id, or that the cytosol holds most of the nucleus'
        pixels. The cell then has the cytosol's id.
    several_nuclei : {"largest", "all"}
        Of several nuclei that ``match="overlap"`` finds in one cytosol, which make the cell's nucleus.
    pieces : {"all", "largest"}
        Of a label in several pieces (8-connected), which are the cell's.
    fill_nucleus, fill_cytosol : bool
        Fill holes in the mask (background regions not 4-connected to the tile's edge).
    stored_sigma : float, pixels
        Gaussian blur of the mask planes that are stored; 0 stores them binary.
    nuclear_channel : int, str or None
        The channel that is cut with the nucleus mask, by its index among the channels that are extracted or by its
        name; all others, or all if None, are cut with the last mask.
    nucleus_dilation, cytosol_dilation : int, pixels
        Radius of the disk by which the cut mask is expanded.
    nucleus_sigma, cytosol_sigma : float, pixels
        Gaussian blur of the cut mask after expansion.
    neighbours : {"exclude", "keep"}
        Whether pixels on a neighbouring label are cut away.
    apply_masks : bool
        False leaves the channels uncut.
    cut : {"after", "before"}
        Whether channels are cut after they are normalised, or before.
    normalization : {"quantile", "range", "dtype", "none"}
        Scale each channel to [0, 1] between two quantiles, between ``value_range``, by the maximum of its
        integer type, or not at all.
    quantiles : (float, float)
        The lower and upper quantile, within [0, 1] (numpy's linear definition).
    quantile_pixels : {"mask", "tile"}
        Where a cell's quantiles are taken: in its expanded mask on the slide, or in the whole tile.
    quantile_scope : {"cell", "slide", "dataset"}
        Quantiles of each cell, or of all pixels of its slide, or of all slides.
    value_range : (float, float) or None
        Lower and upper value of ``normalization="range"``.
    flat_channel : {"zero", "undivided"}
        What becomes of a channel whose lower and upper value are equal: 0, or clip(x - lower, 0, 1).
    minmax : bool
        Stretch each finished channel to [0, 1] once more.
    minmax_except : tuple of int or str
        Channels that ``minmax`` leaves alone, by name, or by their place where the nuclear channel is counted first
        and the others follow in their order: as in SPARCSpy, in which it always is the first. Places beyond the last
        channel are allowed.
    output_dtype : {"auto", "float16", "float32", "uint16", "uint8"}
        Type of the stored tiles. ``auto`` is float16, or the image's own type for ``normalization="none"``.
        Normalised integers are scaled to the type's maximum, masks included.
    nonfinite : {"error", "zero"}
        What to do with NaN and infinite pixels.

    Raises
    ------
    RecipeError
        If a value is not allowed; the message names the parameter, the value and what is allowed.
    """

    base: Literal["standard", "sparcspy", "scportrait"] = "standard"
    tile_size: int = 128
    border: Literal["mask", "window", "keep"] = "mask"
    on_mismatch: Literal["drop", "error", "keep"] = "drop"
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
        """The preset of that name: ``standard``, ``sparcspy`` or ``scportrait``."""
        if not isinstance(name, str) or name not in PRESETS:
            raise RecipeError(f"unknown recipe {name!r}; it must be {_choice(PRESETS)}, or a .toml file")
        return cls(base=name, **PRESETS[name])  # type: ignore[arg-type]

    @classmethod
    def from_toml(cls, path: str | Path) -> Recipe:
        """The recipe in a TOML file: a ``base`` preset (default ``standard``) and the parameters that differ.

        Raises
        ------
        RecipeError
            If the file cannot be read, is not TOML, or has an unknown key or a value that is not allowed.
        """
        try:
            with open(path, "rb") as file:
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
        """The recipe as TOML text that `from_toml` reads back unchanged."""
        import tomli_w

        return tomli_w.dumps({name: _to_plain(value) for name, value in dataclasses.asdict(self).items()})

    def replace(self, **changes: Any) -> Recipe:
        """The same recipe with some parameters changed.

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

    def program(
        self,
        mask_names: tuple[str, ...],
        n_channels: int,
        image_dtype: np.dtype[Any],
        channel_names: tuple[str, ...] = (),
    ) -> Program:
        """What this recipe means for a slide with these label planes and channels.

        Parameters
        ----------
        mask_names : tuple of str, length M
        n_channels : int
        image_dtype : numpy.dtype
        channel_names : tuple of str, length C or 0
            Needed only by a recipe that names a channel.

        Raises
        ------
        RecipeError
            If the recipe does not fit the slide: a channel that does not exist, an output type that cannot
            hold the values.
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
        """For each channel whether ``minmax`` applies to it."""
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
    """How one mask of a cell is made from its label: select, fill holes, dilate, blur.

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
    """A recipe resolved against a slide: the distinct masks, and which of them each plane of a tile uses.

    Parameters
    ----------
    recipe : Recipe
    masks : tuple of MaskSteps
        The distinct masks that are needed.
    stored : tuple of int, length M
        For each mask plane of a tile, its entry in ``masks``.
    cut : tuple of int, length C
        For each channel, the entry in ``masks`` that it is cut with.
    stretched : tuple of bool, length C
        For each channel, whether it is stretched to [0, 1] at the end.
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
        """K, the planes of a tile: masks, then channels."""
        return len(self.stored) + len(self.cut)

    @property
    def tile_shape(self) -> tuple[int, int, int]:
        """(K, S, S)."""
        return (self.n_planes, self.recipe.tile_size, self.recipe.tile_size)

    @property
    def tile_nbytes(self) -> int:
        """Bytes of a finished tile."""
        return math.prod(self.tile_shape) * self.output_dtype.itemsize

    @property
    def unit(self) -> float:
        """The stored value of 1.0: the type's maximum where normalised values are stored as integers."""
        if self.output_dtype.kind == "f" or self.recipe.normalization == "none":
            return 1.0
        return float(np.iinfo(self.output_dtype).max)

    @property
    def fixed_limits(self) -> NDArray[np.float64] | None:
        """(C, 2) lower and upper value of each channel where the recipe alone decides them, else None."""
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
    """The weights of a Gaussian blur from its centre outwards, (R + 1,), R = int(4 sigma + 0.5).

    ``exp(-x^2 / 2 sigma^2)``, normalised to 1 over ``|x| <= R``. ``sigma`` 0 gives ``[1.]``.
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
        "nucleus_dilation": 0,  # of a nuclear channel that the user names all the same
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
    """The type of each field of a recipe."""
    return get_type_hints(Recipe)


def _checked(name: str, kind: Any, value: Any) -> Any:
    """``value`` in the parameter's own type, or a RecipeError that says what is allowed."""
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
    """A channel's index from 0, or its name."""
    if isinstance(value, str) and value:
        return value
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise RecipeError(f"{name} is {value!r}; it must be a channel's number, 0 or more, or its name, or 'none'")
    return int(value)


def _index(name: str, channel: int | str, names: tuple[str, ...]) -> int:
    """The index of a channel that a parameter means."""
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
