"""Selection of channels by name and index, and the nuclear channel."""

import h5py
import numpy as np
import pytest
import tifffile
import zarr
from made.slides import small_slide
from made.stores import BOX, IMAGE, LABELS, NAMES, crop, write_ome_zarr

import gpu_extract as gx
from gpu_extract import Recipe
from gpu_extract.channels import channel_index, channel_indices
from gpu_extract.errors import InputError, RecipeError
from gpu_extract.sources import open_image, open_labels, open_slide, open_slides


@pytest.mark.parametrize(
    ("wanted", "index"), [("DNA", 0), ("actin", 2), (1, 1), (np.int64(2), 2), ("2", 2), ("488", 1)]
)
def test_channels_are_selected_by_name_or_index(wanted, index):
    assert channel_index(wanted, ("DNA", "488", "actin"), "image") == index


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("dna", r"^image a has no channel dna; there are DNA \(0\), 1 \(1\), 0 \(2\)$"),
        (3, "has no channel 3; there are"),
        (-1, "has no channel -1; there are"),
        ("9" * 5000, "has no channel 9999"),
        ("0", "0 is the index of channel DNA and the name of channel 2; rename the channels"),
    ],
)
def test_missing_or_ambiguous_channels_are_refused(wanted, message):
    with pytest.raises(InputError, match=message) as caught:
        channel_index(wanted, ("DNA", "1", "0"), "image a")
    assert "\n" not in str(caught.value)
    assert channel_index("1", ("DNA", "1", "0"), "image a") == 1  # both say the same


def test_channels_without_names_are_listed_by_index():
    with pytest.raises(InputError, match=r"has no channel DNA; there are 0, 1$"):
        channel_index("DNA", ("", ""), "image a")


@pytest.mark.parametrize(
    ("wanted", "message"), [([], "no channel is chosen"), (["DNA", 0], "channel DNA is chosen twice; give it once")]
)
def test_no_channel_or_a_repeated_channel_is_refused(wanted, message):
    with pytest.raises(InputError, match=message):
        channel_indices(wanted, NAMES, "image")


# Selecting channels


def as_array(folder):
    return IMAGE, {"channel_names": NAMES}


def as_npy(folder):
    np.save(folder / "image.npy", IMAGE)
    return folder / "image.npy", {"channel_names": NAMES}


def as_ome_tiff(folder):
    metadata = {"axes": "CYX", "Channel": {"Name": list(NAMES)}}
    tifffile.imwrite(folder / "a.ome.tif", IMAGE, photometric="minisblack", metadata=metadata, compression="zlib")
    return folder / "a.ome.tif", {}


def as_files(folder):
    for name, plane in zip(NAMES, IMAGE, strict=True):
        tifffile.imwrite(folder / f"{name}.tif", plane)
    return [folder / f"{name}.tif" for name in NAMES], {}


def as_zarr(folder):
    return write_ome_zarr(folder / "a.zarr"), {}


def as_hdf5(folder):
    with h5py.File(folder / "a.h5", "w") as h5:
        h5.create_dataset("image", data=IMAGE, chunks=(1, 20, 20), compression="gzip")
    return folder / "a.h5", {"channel_names": NAMES}


def as_dask(folder):
    return pytest.importorskip("dask.array").from_array(IMAGE, chunks=32), {"channel_names": NAMES}


def as_zarr_array(folder):
    return zarr.create_array(folder / "a.zarr", data=IMAGE, chunks=(1, 20, 20)), {"channel_names": NAMES}


@pytest.mark.parametrize("write", [as_array, as_npy, as_ome_tiff, as_files, as_zarr, as_hdf5, as_dask, as_zarr_array])
@pytest.mark.parametrize("channels", [["actin", "DNA"], [2, "DNA"], ["2", 0], ["pH3"], ["DNA", "pH3", "actin"]])
def test_channels_are_selected_in_every_format(tmp_path, write, channels):
    image, options = write(tmp_path)
    slide = open_slide(image, nucleus=LABELS, channels=channels, **options)
    indices = channel_indices(channels, NAMES, "image")
    assert slide.channel_names == tuple(NAMES[index] for index in indices)
    np.testing.assert_array_equal(slide.read(BOX).image, crop(IMAGE[list(indices)]))


@pytest.mark.parametrize("write", [as_array, as_npy, as_ome_tiff, as_files, as_zarr, as_hdf5])
def test_the_error_for_a_missing_channel_lists_the_channels(tmp_path, write):
    image, options = write(tmp_path)
    with pytest.raises(
        InputError, match=r"has no channel DAPI; there are DNA \(0\), pH3 \(1\), actin \(2\)$"
    ) as caught:
        open_slide(image, nucleus=LABELS, channels=["DAPI"], **options)
    assert "\n" not in str(caught.value)


def test_only_the_selected_channels_are_read(tmp_path, monkeypatch):
    image, _ = as_zarr(tmp_path)
    asked = []
    get = zarr.storage.LocalStore.get

    async def recorded(self, key, *arguments, **options):
        asked.append(key)
        return await get(self, key, *arguments, **options)

    monkeypatch.setattr(zarr.storage.LocalStore, "get", recorded)
    slide = open_slide(image, nucleus=LABELS, channels=["pH3"])
    slide.read((0, 0, 70, 90))
    chunks = {key.split("/")[-3] for key in asked if "/c/" in key}
    assert chunks == {"1"}


def test_arrays_are_read_in_boxes_of_the_selected_channels():
    class Recorded:
        shape, dtype, ndim = IMAGE.shape, IMAGE.dtype, 3
        keys = []  # noqa: RUF012

        def __getitem__(self, key):
            self.keys.append(key)
            return IMAGE[key]

    slide = open_slide(Recorded(), nucleus=LABELS, channels=[2, 0])
    np.testing.assert_array_equal(slide.read(BOX).image, crop(IMAGE[[2, 0]]))
    assert Recorded.keys == [(2, slice(13, 67), slice(5, 90)), (0, slice(13, 67), slice(5, 90))]
    one_plane = open_slide(IMAGE[0], nucleus=LABELS, channels=["ch0"])
    np.testing.assert_array_equal(one_plane.read(BOX).image[0], crop(IMAGE[0]))


def test_a_selector_names_channels(tmp_path):
    image, _ = as_ome_tiff(tmp_path)
    slide = open_slide(f"{image}#c=actin,DNA", nucleus=f"{image}#c=pH3")
    assert slide.channel_names == ("actin", "DNA")
    assert slide.image.source == f"{image}#c=actin,DNA"
    np.testing.assert_array_equal(slide.read(BOX).image, crop(IMAGE[[2, 0]]))
    np.testing.assert_array_equal(slide.read(BOX).labels[0], crop(IMAGE[1]))
    # `channels` selects among the channels of the selector.
    chosen = open_slide(f"{image}#c=actin,DNA", nucleus=LABELS, channels=[1])
    assert (chosen.channel_names, chosen.image.source) == (("DNA",), f"{image}#c=0")
    with pytest.raises(InputError, match=r"#c=DAPI has no channel DAPI; there are DNA \(0\)"):
        open_image(f"{image}#c=DAPI")
    with pytest.raises(InputError, match="channel DNA is chosen twice"):
        open_image(f"{image}#c=0,DNA")
    with pytest.raises(InputError, match="holds 2 planes; give one plane"):
        open_labels(f"{image}#c=DNA,actin", "nucleus")


def test_channels_of_a_time_course(tmp_path):
    movie = np.stack([IMAGE, IMAGE + 1])
    path = write_ome_zarr(tmp_path / "movie.zarr", movie, "tcyx", labels={"n": np.stack([LABELS, LABELS])})
    slides = open_slides(path, nucleus="n", channels=["actin"])
    np.testing.assert_array_equal(slides[1].read(BOX).image, crop(movie[1, 2:]))
    assert slides[1].image.source == f"{path}#c=2,t=1"


@pytest.mark.parametrize(("option", "given"), [("channels", "DNA"), ("channel_names", "DNA")])
def test_a_text_instead_of_a_list_of_channels_is_refused(option, given):
    with pytest.raises(InputError, match=f"{option} is the text 'DNA'; give a list"):
        open_slide(IMAGE, nucleus=LABELS, **{option: given})


def test_too_few_names_are_refused_before_channels_are_selected():
    with pytest.raises(InputError, match="2 channel names for an image of 3 channels"):
        open_slide(IMAGE, nucleus=LABELS, channel_names=["a", "b"], channels=["a"])


# The nuclear channel


def cells(image, nucleus, cytosol, recipe, names, **choices):
    """Return the images and limits of all cells, computed by the reference."""
    batches = gx.iter_cells(
        image, nucleus=nucleus, cytosol=cytosol, recipe=recipe, channel_names=names, device="reference", **choices
    )
    images, levels = zip(*((batch.images, batch.limits) for batch in batches), strict=True)
    return np.concatenate(images), np.concatenate(levels)


@pytest.mark.parametrize("preset", ["standard", "sparcspy"])
@pytest.mark.parametrize("nuclear", ["pH3", 1, "1"])
def test_naming_the_nuclear_channel_equals_putting_it_first(preset, nuclear):
    image, nucleus, cytosol = small_slide(2)
    recipe = Recipe.preset(preset).replace(tile_size=20, border="keep")
    named = cells(image, nucleus, cytosol, recipe, NAMES, nuclear_channel=nuclear)
    first = cells(image[[1, 0, 2]], nucleus, cytosol, recipe, ("pH3", "DNA", "actin"))
    np.testing.assert_array_equal(named[0][:, [0, 1, 3, 2, 4]], first[0])
    np.testing.assert_array_equal(named[1][:, [1, 0, 2]], first[1])
    assert (named[0] != cells(image, nucleus, cytosol, recipe, NAMES)[0]).any()


def test_the_nuclear_channel_is_one_of_the_selected_channels():
    image, nucleus, cytosol = small_slide(2)
    recipe = Recipe(tile_size=20, border="keep")
    chosen = cells(image, nucleus, cytosol, recipe, NAMES, channels=["actin", "DNA"], nuclear_channel="DNA")
    alone = cells(image[[2, 0]], nucleus, cytosol, recipe.replace(nuclear_channel=1), NAMES[::-2])
    np.testing.assert_array_equal(chosen[0], alone[0])


def test_a_warning_says_which_selected_channel_is_nuclear_unless_it_was_named():
    image, nucleus, _ = small_slide(2)

    def warnings(**choices):
        return gx.plan(image, nucleus=nucleus, channel_names=NAMES, tile_size=20, **choices).warnings

    (warning,) = warnings(channels=["actin", "DNA"])
    assert warning.startswith(
        "channel actin is cut with the nucleus mask, being number 0 of those chosen; name another"
    )
    assert warnings() == ()
    for quiet in (
        {"nuclear_channel": "DNA"},
        {"nuclear_channel": 1},
        {"nuclear_channel": "none"},
        {"recipe": Recipe(apply_masks=False)},
    ):
        assert warnings(channels=["actin", "DNA"], **quiet) == ()
    assert warnings(channels=["DNA"], recipe="scportrait", border="keep") == ()
    assert warnings(channels=["DNA", "actin"]) == ()  # by its name the right one


def test_no_channel_is_nuclear_with_none():
    image, nucleus, cytosol = small_slide(2)
    recipe = Recipe(tile_size=20, border="keep", nucleus_dilation=5)
    none, _ = cells(image, nucleus, cytosol, recipe, NAMES, nuclear_channel="none")
    without, _ = cells(image, nucleus, cytosol, recipe.replace(nuclear_channel=None), NAMES)
    np.testing.assert_array_equal(none, without)
    assert (none != cells(image, nucleus, cytosol, recipe, NAMES)[0]).any()


def test_a_recipe_names_its_channels_in_toml(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('base = "sparcspy"\nnuclear_channel = "DNA"\nminmax_except = ["actin", 7]\n')
    recipe = Recipe.from_toml(path)
    path.write_text(recipe.to_toml())
    assert Recipe.from_toml(path) == recipe
    program = recipe.program(("nucleus", "cytosol"), 3, np.dtype("u2"), ("actin", "pH3", "DNA"))
    assert [program.masks[m].dilation for m in program.cut] == [6, 6, 0]
    assert program.stretched == (False, True, True)


@pytest.mark.parametrize(
    ("nuclear", "stretched"),
    [(0, (True, False, True)), (None, (True, False, True)), (1, (False, True, True)), (2, (False, True, True))],
)
def test_sparcspy_does_not_stretch_the_first_channel_after_the_nuclear(nuclear, stretched):
    recipe = Recipe.preset("sparcspy").replace(nuclear_channel=nuclear)
    assert recipe.program(("nucleus", "cytosol"), 3, np.dtype("u2")).stretched == stretched


@pytest.mark.parametrize("change", [{"nuclear_channel": "DAPI"}, {"minmax_except": ("DAPI",)}])
def test_a_recipe_with_a_missing_channel_is_refused(change):
    (name,) = change
    with pytest.raises(RecipeError, match=rf"^{name} is 'DAPI'; the image has no channel DAPI; there are DNA \(0\)"):
        Recipe(**change).program(("nucleus",), 3, np.dtype("u2"), NAMES)


@pytest.mark.parametrize("value", [True, 1.5, "", -1, [0]])
def test_a_channel_is_a_number_or_a_name(value):
    with pytest.raises(RecipeError, match="it must be a channel's number, 0 or more, or its name, or 'none'"):
        Recipe(nuclear_channel=value)
