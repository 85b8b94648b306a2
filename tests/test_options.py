"""The options of the public functions: their types, their documentation, and names that are none of them."""

import ast
import inspect
import re
from dataclasses import fields
from typing import get_type_hints

import pytest
from made.slides import small_slide

import gpu_extract as gx
from gpu_extract.options import check_options

IMAGE, NUCLEUS, CYTOSOL = small_slide(3)
SLIDE = {"image": IMAGE, "nucleus": NUCLEUS, "cytosol": CYTOSOL}

RECIPE_TYPES = {name: kind for name, kind in get_type_hints(gx.Recipe).items() if name != "base"}
PLANNING = {
    "recipe",
    "ids",
    "n_cells",
    "seed",
    "channel_names",
    "channels",
    "planes",
    "pixel_size",
    "tile_size_um",
    "scale",
    "on_bad_slide",
    "allow_empty",
    "trust",
}
# For each parameter of a recipe a value that is not its default.
OTHER_VALUES = {
    "tile_size": 20,
    "border": "keep",
    "on_mismatch": "keep",
    "match": "overlap",
    "several_nuclei": "all",
    "pieces": "largest",
    "fill_nucleus": False,
    "fill_cytosol": False,
    "stored_sigma": 1.5,
    "nuclear_channel": 1,
    "nucleus_dilation": 3,
    "nucleus_sigma": 2.0,
    "cytosol_dilation": 4,
    "cytosol_sigma": 0.5,
    "neighbours": "keep",
    "apply_masks": False,
    "cut": "before",
    "normalization": "none",
    "quantiles": (0.01, 0.9),
    "quantile_pixels": "tile",
    "quantile_scope": "dataset",
    "value_range": (1.0, 2.0),
    "flat_channel": "undivided",
    "minmax": True,
    "minmax_except": (1,),
    "output_dtype": "float32",
    "nonfinite": "zero",
}


def test_plan_options_are_those_of_planning_and_every_parameter_of_a_recipe():
    types = get_type_hints(gx.PlanOptions)
    assert {name: types[name] for name in RECIPE_TYPES} == RECIPE_TYPES
    assert types.keys() - RECIPE_TYPES.keys() == PLANNING


def test_extract_options_are_those_of_the_plan_and_of_the_run():
    assert get_type_hints(gx.ExtractOptions) == get_type_hints(gx.PlanOptions) | get_type_hints(gx.RunOptions)


@pytest.mark.parametrize("kind", [gx.PlanOptions, gx.RunOptions])
def test_each_option_is_documented_once(kind):
    entries = re.findall(r"^(\w+) : ", inspect.getdoc(kind), re.MULTILINE)
    assert sorted(entries) == sorted(get_type_hints(kind))


def test_the_documented_defaults_are_those_of_the_standard_recipe():
    documented = dict(re.findall(r"^(\w+) : .*, default (.*)$", inspect.getdoc(gx.PlanOptions), re.MULTILINE))
    standard = {field.name: field.default for field in fields(gx.Recipe) if field.name != "base"}
    assert {name: ast.literal_eval(documented[name]) for name in standard} == standard


def test_there_is_another_value_for_each_parameter():
    assert OTHER_VALUES.keys() == RECIPE_TYPES.keys()
    assert all(getattr(gx.Recipe(), name) != value for name, value in OTHER_VALUES.items())


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_a_parameter_of_a_recipe_is_an_option(name):
    given = {"tile_size": 24, name: OTHER_VALUES[name]}
    assert gx.plan(**SLIDE, **given).program.recipe == gx.Recipe().replace(**given)


def test_options_replace_the_values_of_the_recipe():
    recipe = gx.plan(**SLIDE, recipe="scportrait", border="keep", tile_size=20, cut="after").program.recipe
    assert recipe == gx.Recipe.preset("scportrait").replace(border="keep", tile_size=20, cut="after")


def test_none_stands_for_the_default():
    options = dict.fromkeys(("tile_size", "border", "nuclear_channel", "channels", "on_bad_slide", "recipe"))
    assert gx.plan(**SLIDE, **options).program.recipe == gx.Recipe()


def test_parameters_are_checked_together():
    recipe = gx.plan(**SLIDE, tile_size=24, normalization="range", value_range=(0, 9)).program.recipe
    assert recipe.value_range == (0.0, 9.0)
    with pytest.raises(gx.RecipeError, match="normalization 'range' needs value_range"):
        gx.plan(**SLIDE, normalization="range")


def test_ids_may_be_any_iterable():
    some = gx.plan(**SLIDE, tile_size=24).cells.ids[[5, 2]]
    for ids in (some, iter(some.tolist()), set(some.tolist())):
        assert gx.plan(**SLIDE, tile_size=24, ids=ids).cells.ids.tolist() == sorted(some)


FUNCTIONS = {
    gx.plan: SLIDE,
    gx.plan_many: {"slides": [SLIDE]},
    gx.survey: SLIDE,
    gx.survey_many: {"slides": [SLIDE]},
    gx.extract: SLIDE | {"output": "cells.h5sc"},
    gx.extract_many: {"slides": [SLIDE], "output": "cells.h5sc"},
    gx.iter_cells: SLIDE,
}


def options_of(function):
    """The names of everything that a function takes by name."""
    parameters = inspect.signature(function).parameters.values()
    (options,) = (p.annotation for p in parameters if p.kind is p.VAR_KEYWORD)
    kind = getattr(gx, re.fullmatch(r"Unpack\[(\w+)\]", options)[1])
    return [*(p.name for p in parameters if p.kind is not p.VAR_KEYWORD), *get_type_hints(kind)]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_misspelled_name_is_answered_with_the_right_one(function, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in options_of(function):
        with pytest.raises(gx.UnknownOptionError, match=f"^unknown option '{name}_'; did you mean '{name}'\\?$"):
            function(**FUNCTIONS[function], **{f"{name}_": None})
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_option_is_an_input_error_and_a_type_error():
    with pytest.raises(gx.UnknownOptionError) as caught:
        gx.plan(**SLIDE, tilesize=64)
    assert str(caught.value) == "unknown option 'tilesize'; did you mean 'tile_size'?"
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, gx.InputError)


def test_a_name_that_resembles_none_is_answered_with_all():
    with pytest.raises(gx.UnknownOptionError) as caught:
        check_options({"xyz": 1}, gx.RunOptions, "output")
    assert str(caught.value) == (
        "unknown option 'xyz'; known are output, device, threads, gpu_memory, compression, layout, chunk_cells, "
        "unique_ids, overwrite, resume"
    )


def test_a_plan_has_no_options_of_a_run():
    with pytest.raises(gx.UnknownOptionError, match="unknown option 'device'"):
        gx.plan(**SLIDE, device="cpu")


@pytest.mark.parametrize("name", ["nucleus", "cytosol"])
def test_label_planes_belong_to_each_of_several_slides(name):
    with pytest.raises(gx.UnknownOptionError, match=rf"unknown option '{name}'; it belongs to each slide: {{'image'"):
        gx.plan_many([{"image": IMAGE}], **{name: NUCLEUS})
