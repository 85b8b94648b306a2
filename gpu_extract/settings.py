"""Recipe parameters as the command line gives them: ``--set NAME=VALUE``, ``--raw``, ``--normalize`` and alike."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

from gpu_extract.errors import RecipeError
from gpu_extract.recipe import Recipe

__all__ = ["parse_setting", "recipe_changes"]

# Raw tiles hold the pixels of the image. They are not stretched, and soft masks do not fit them; both have an effect
# in the presets sparcspy and scportrait only.
RAW = {"apply_masks": False, "normalization": "none"}
RAW_DEFAULTS = {"minmax": False, "stored_sigma": 0.0}


@dataclass(frozen=True)
class _Given:
    """A value of a recipe parameter, and the option that gave it."""

    value: Any
    option: str


def recipe_changes(
    named: Mapping[str, tuple[str, Any]],
    *,
    raw: bool = False,
    no_masks: bool = False,
    normalize: str | None = None,
    value_range: str | None = None,
    settings: Iterable[str] = (),
) -> dict[str, Any]:
    """Return the recipe parameters that the options of a command give.

    Parameters
    ----------
    named : mapping of str to (str, value)
        For each parameter with an option of its own, that option and its value; None if it was not given.
    raw, no_masks : bool
        ``--raw``: neither masked nor normalized; ``--no-masks``: not masked.
    normalize, value_range : str, optional
        ``--normalize`` and ``--range``; a range alone means ``--normalize range``.
    settings : iterable of str
        The texts of ``--set``.

    Raises
    ------
    RecipeError
        If a setting is not ``NAME=VALUE`` with a known name, or two options give a parameter different values.
    """
    given = [(name, _Given(value, option)) for name, (option, value) in named.items() if value is not None]
    if raw:
        given += [(name, _Given(value, "--raw")) for name, value in RAW.items()]
    if no_masks:
        given.append(("apply_masks", _Given(False, "--no-masks")))
    if normalize is not None:
        given.append(("normalization", _Given(normalize, f"--normalize {normalize}")))
    if value_range is not None:
        given.append(("normalization", _Given("range", "--range")))
        given.append(("value_range", _Given(_parsed("value_range", value_range), "--range")))
    for text in settings:
        name, value = parse_setting(text)
        given.append((name, _Given(value, f"--set {text}")))
    chosen: dict[str, _Given] = {}
    for name, one in given:
        first = chosen.setdefault(name, one)
        if first.value != one.value:
            raise RecipeError(
                f"{first.option} and {one.option} contradict each other, because {name} would be {first.value!r} and "
                f"{one.value!r}; give one of them"
            )
    return (RAW_DEFAULTS if raw else {}) | {name: one.value for name, one in chosen.items()}


def parse_setting(text: str) -> tuple[str, Any]:
    """Return the name and the value of a text such as ``quantiles=0.01,0.99``.

    The value has the type of the parameter: ``true`` or ``false``, a number, two numbers or several channels separated
    by commas, or a name. A value that is not of this type stays a text, which `Recipe` refuses with the allowed values.

    Raises
    ------
    RecipeError
        If the text has no ``=``, or the name is not that of a parameter; the message suggests the nearest one.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals:
        raise RecipeError(f"--set {text} has no value; write --set NAME=VALUE, for example --set cytosol_dilation=4")
    known = [field.name for field in fields(Recipe) if field.name != "base"]
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(known)}"
        raise RecipeError(f"--set {text}: unknown recipe parameter {name!r}; {hint}")
    return name, _parsed(name, value)


def _parsed(name: str, text: str) -> Any:
    """Return a text as a value of the type of a parameter, or the text itself if it is not of that type."""
    kind = get_type_hints(Recipe)[name]
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if kind is int:
        return _converted(text, int)
    if kind is float:
        return _converted(text, float)
    if kind in (tuple[float, float], tuple[float, float] | None):
        return _converted(text, lambda given: tuple(float(part) for part in _parts(given)))
    if kind == tuple[int | str, ...]:
        return () if text in ("", "none") else tuple(_converted(part, int) for part in _parts(text))
    return text  # one of several names, or a channel


def _converted(text: str, kind: Callable[[str], Any]) -> Any:
    try:
        return kind(text)
    except ValueError:
        return text


def _parts(text: str) -> list[str]:
    """Return the parts between commas, without brackets around all of them."""
    return [part.strip() for part in text.strip("()[] ").split(",")]
