import dataclasses

import numpy as np
import pytest

from gpu_extract import Recipe, RecipeError
from gpu_extract.recipe import MaskSteps, gaussian_weights

BOTH = ("nucleus", "cytosol")


@pytest.mark.parametrize("name", ["standard", "sparcspy", "scportrait"])
def test_presets_round_trip_through_toml(tmp_path, name):
    recipe = Recipe.preset(name).replace(tile_size=63, quantiles=(0.01, 0.9))
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml())
    assert Recipe.from_toml(path) == recipe
    assert recipe.base == name


def test_a_toml_file_has_only_changed_parameters(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('base = "scportrait"\ntile_size = 96\nnuclear_channel = "none"\n')
    assert Recipe.from_toml(path) == Recipe.preset("scportrait").replace(tile_size=96)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tile_sise = 3", "unknown recipe parameter 'tile_sise'; did you mean 'tile_size'?"),
        ("xyzzy = 3", "unknown recipe parameter 'xyzzy'; known are base, tile_size"),
        ("tile_size = 0", "tile_size is 0; it must be 1 to 4096 pixels"),
        ("tile_size = 1.5", "tile_size is 1.5; it must be a whole number"),
        ('base = "best"', "unknown recipe 'best'; it must be 'standard' or 'sparcspy' or 'scportrait'"),
        ("tile_size = ", "is not TOML"),
    ],
)
def test_errors_in_a_toml_file_name_the_file(tmp_path, text, message):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        Recipe.from_toml(path)
    assert message in str(caught.value)
    assert "recipe.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tile_size": 4097}, "it must be 1 to 4096 pixels"),
        ({"tile_size": True}, "it must be a whole number"),
        ({"border": "none"}, "it must be 'mask' or 'window' or 'keep'"),
        ({"cytosol_sigma": -1.0}, "it must be 0 to 256 pixels"),
        ({"cytosol_sigma": float("nan")}, "it must be a finite number"),
        ({"nucleus_dilation": 513}, "it must be 0 to 512 pixels"),
        ({"nuclear_channel": -1}, "it must be a channel's number, 0 or more, or its name"),
        ({"quantiles": (0.9, 0.1)}, "the lower one first"),
        ({"quantiles": (0.1,)}, "it must be two numbers"),
        ({"quantiles": None}, "give two numbers"),
        ({"fill_nucleus": 1}, "it must be true or false"),
        ({"minmax_except": 1}, "it must be a list of channel numbers or names"),
        ({"normalization": "range"}, "needs value_range"),
        ({"normalization": "range", "value_range": (2, 1)}, "the lower first"),
        ({"normalization": "none", "minmax": True}, "raw values are not stretched"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused(change, message):
    with pytest.raises(RecipeError, match=message):
        Recipe().replace(**change)


def test_a_recipe_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().tile_size = 3


def test_presets_resolve_to_the_specified_masks():
    u16 = np.dtype(np.uint16)
    standard = Recipe.preset("standard").program(BOTH, 3, u16)
    assert [standard.masks[m] for m in standard.stored] == [MaskSteps(0, True, 0, 0), MaskSteps(1, True, 0, 0)]
    assert [standard.masks[m] for m in standard.cut] == [MaskSteps(0, True, 2, 1)] + [MaskSteps(1, True, 2, 1)] * 2
    sparcspy = Recipe.preset("sparcspy").program(BOTH, 3, u16)
    assert [sparcspy.masks[m] for m in sparcspy.stored] == [MaskSteps(0, False, 0, 1), MaskSteps(1, True, 0, 1)]
    assert [sparcspy.masks[m] for m in sparcspy.cut] == [MaskSteps(0, False, 0, 5)] + [MaskSteps(1, True, 6, 5)] * 2
    scportrait = Recipe.preset("scportrait").program(BOTH, 3, u16)
    assert scportrait.cut == (1, 1, 1)
    assert scportrait.masks == (MaskSteps(0, True, 0, 1), MaskSteps(1, True, 0, 1))
    assert scportrait.tile_shape == (5, 128, 128)


def test_output_types():
    def output(image, **changes):
        return Recipe().replace(**changes).program(BOTH, 3, np.dtype(image)).output_dtype

    assert output("uint16") == np.float16
    assert output("uint16", normalization="none") == np.uint16
    assert output(">i2", normalization="none") == np.dtype("=i2")
    assert output("uint16", output_dtype="uint8") == np.uint8
    with pytest.raises(RecipeError, match="cannot hold every raw value"):
        output("uint16", normalization="none", output_dtype="float16")
    with pytest.raises(RecipeError, match="soft masks do not fit"):
        output("uint16", normalization="none", stored_sigma=1.0)
    with pytest.raises(RecipeError, match="needs an integer image"):
        output("float32", normalization="dtype")
    with pytest.raises(RecipeError, match="the image has no channel 3; there are 0, 1, 2"):
        output("uint16", nuclear_channel=3)


@pytest.mark.parametrize("sigma", [0.1, 0.2, 0.5, 1.0, 2.3, 5.0])
def test_gaussian_weights_equal_those_of_scipy(sigma):
    from scipy.ndimage import gaussian_filter1d

    impulse = np.zeros(101)
    impulse[50] = 1
    weights = gaussian_weights(sigma)
    np.testing.assert_allclose(weights, gaussian_filter1d(impulse, sigma)[50 : 50 + len(weights)], rtol=1e-15)
    assert len(weights) == int(4 * sigma + 0.5) + 1


def test_without_blur_there_is_one_weight():
    assert gaussian_weights(0.0).tolist() == [1.0]
