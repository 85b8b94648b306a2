"""Recipe parameters from the command line."""

import dataclasses

import numpy as np
import pytest

from gpu_extract.errors import RecipeError
from gpu_extract.recipe import Recipe
from gpu_extract.settings import parse_setting, recipe_changes


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("tile_size=64", 64),
        ("fill_nucleus=false", False),
        ("minmax = True", True),
        ("stored_sigma=1.5", 1.5),
        ("cytosol_sigma=2", 2.0),
        ("quantiles=0.01,0.99", (0.01, 0.99)),
        ("value_range=(100, 4000)", (100.0, 4000.0)),
        ("value_range=-5,1e4", (-5.0, 1e4)),
        ("value_range=none", "none"),
        ("minmax_except=1,DNA", (1, "DNA")),
        ("minmax_except=", ()),
        ("nuclear_channel=DNA", "DNA"),
        ("nuclear_channel=none", "none"),
        ("quantile_scope=dataset", "dataset"),
    ],
)
def test_a_value_has_the_type_of_its_parameter(text, value):
    name, parsed = parse_setting(text)
    assert (name, parsed, type(parsed)) == (text.split("=")[0].strip(), value, type(value))
    Recipe().replace(**{name: parsed})


def test_every_parameter_can_be_set_to_its_default():
    for field in dataclasses.fields(Recipe):
        if field.name != "base":
            text = str(field.default).strip("()") if field.default is not None else "none"
            name, value = parse_setting(f"{field.name}={text}")
            assert Recipe().replace(**{name: value}) in (Recipe(), Recipe(nuclear_channel="0")), field.name


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("tile_size=big", "tile_size is 'big'; it must be a whole number"),
        ("tile_size=", "tile_size is ''"),
        ("minmax=1", "minmax is '1'; it must be true or false"),
        ("stored_sigma=nan", "it must be a finite number"),
        ("quantiles=0.5", "it must be two numbers"),
        ("quantiles=a,b", "quantiles is 'a,b'; it must be two numbers"),
        ("border=none", "border is 'none'; it must be 'mask' or"),
        ("tile_size", "write --set NAME=VALUE"),
        ("tile_sise=3", "unknown recipe parameter 'tile_sise'; did you mean tile_size?"),
        ("colour=blue", "unknown recipe parameter 'colour'; known are tile_size"),
        ("base=sparcspy", "unknown recipe parameter 'base'"),
    ],
)
def test_invalid_settings_are_refused_in_one_line(text, match):
    with pytest.raises(RecipeError, match=match.replace("?", r"\?")) as error:
        Recipe().replace(**dict([parse_setting(text)]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("preset", ["standard", "sparcspy", "scportrait"])
def test_raw_is_possible_with_every_preset(preset):
    recipe = Recipe.preset(preset).replace(**recipe_changes({}, raw=True))
    assert (recipe.apply_masks, recipe.normalization) == (False, "none")
    recipe.program(("nucleus", "cytosol"), 3, np.dtype("uint16"))


def test_the_options_as_recipe_parameters():
    assert recipe_changes({"border": ("--border", None)}) == {}
    assert recipe_changes({}, no_masks=True) == {"apply_masks": False}
    assert recipe_changes({}, normalize="dtype") == {"normalization": "dtype"}
    expected = {"normalization": "range", "value_range": (0.0, 9.0)}
    assert recipe_changes({}, value_range="0,9") == expected
    assert recipe_changes({}, normalize="range", settings=["value_range=0,9"]) == expected
    assert recipe_changes({"tile_size": ("--size", 9)}, settings=["tile_size=9"]) == {"tile_size": 9}
    raw = recipe_changes({}, raw=True, no_masks=True, normalize="none")
    assert raw == recipe_changes({}, raw=True)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"raw": True, "normalize": "quantile"}, "^--raw and --normalize quantile contradict each other, because norm"),
        ({"raw": True, "value_range": "0,9"}, "--raw and --range contradict"),
        ({"normalize": "dtype", "value_range": "0,9"}, "--normalize dtype and --range contradict"),
        ({"raw": True, "settings": ["apply_masks=true"]}, "--raw and --set apply_masks=true contradict"),
        ({"no_masks": True, "settings": ["apply_masks=true"]}, "--no-masks and --set apply_masks=true contradict"),
        ({"settings": ["tile_size=64", "tile_size=65"]}, "--set tile_size=64 and --set tile_size=65 contradict"),
        ({"settings": ["border=keep"]}, "--border and --set border=keep contradict .* 'mask' and 'keep'; give one"),
    ],
)
def test_contradictions_are_refused(given, match):
    with pytest.raises(RecipeError, match=match) as error:
        recipe_changes({"border": ("--border", "mask")}, **given)
    assert "\n" not in str(error.value)
