import re
import subprocess
import sys

import anndata
import h5py
import numpy as np
import pytest
import tifffile
from made.slides import small_slide

import gpu_extract as gx
from gpu_extract.backends import choose
from gpu_extract.sources.id_lists import read_ids
from gpu_extract.store import verify

IMAGE, NUCLEUS, CYTOSOL = small_slide(3)


def extract(tmp_path, image=IMAGE, name="cells.h5sc", **options):
    options = {"nucleus": NUCLEUS, "cytosol": CYTOSOL, "tile_size": 24, **options}
    return gx.extract(image, output=tmp_path / name, **options)


def images_of(path):
    with h5py.File(path) as file:
        return file["obsm/single_cell_images"][:]


def test_the_example_of_the_readme(tmp_path):
    report = extract(tmp_path)
    assert report.device == choose("auto").device
    assert report.n_cells + sum(report.dropped.values()) == len(np.unique(CYTOSOL)) - 1
    with gx.open_cells(report.path) as cells:
        assert len(cells) == report.n_cells
        cell_id = int(cells.ids[3])
        assert cells[cell_id].shape == (5, 24, 24)
        assert (cells[cell_id] == cells.read([3])[0]).all()
        assert cells.planes == ("seg_all_nucleus", "seg_all_cytosol", "ch0", "ch1", "ch2")
    adata = anndata.read_h5ad(report.path)
    assert adata.obsm["single_cell_images"].shape == (report.n_cells, 5, 24, 24)
    lower, upper = adata.obsm["normalization_lower"], adata.obsm["normalization_upper"]
    assert (lower < upper).all()


def test_arrays_npy_npz_tiff_and_single_channels_give_the_same_cells(tmp_path):
    expected = images_of(extract(tmp_path, name="expected.h5sc").path)
    np.save(tmp_path / "image.npy", IMAGE)
    np.savez_compressed(tmp_path / "image.npz", IMAGE)
    tifffile.imwrite(tmp_path / "image.ome.tif", IMAGE, metadata={"axes": "CYX"})
    channels = []
    for n, channel in enumerate(IMAGE):
        channels.append(tmp_path / f"channel{n}.tif")
        tifffile.imwrite(channels[-1], channel, byteorder=">")
    tifffile.imwrite(tmp_path / "cytosol.tif", CYTOSOL, compression="zlib", tile=(32, 32))
    for n, image in enumerate([tmp_path / "image.npy", tmp_path / "image.npz", tmp_path / "image.ome.tif", channels]):
        report = extract(tmp_path, image, f"{n}.h5sc", cytosol=tmp_path / "cytosol.tif")
        assert (images_of(report.path) == expected).all()
    with gx.open_cells(report.path) as cells:
        assert cells.planes[2:] == ("channel0", "channel1", "channel2")


class Lazy:
    """An array that can only be read by slice, like those of Dask, Zarr and h5py."""

    shape, dtype, ndim = IMAGE.shape, IMAGE.dtype, IMAGE.ndim

    def __getitem__(self, key):
        return IMAGE[key]


def test_an_array_that_reads_by_slice_is_an_image(tmp_path):
    expected = images_of(extract(tmp_path, name="expected.h5sc").path)
    assert (images_of(extract(tmp_path, Lazy()).path) == expected).all()


def test_devices_agree(tmp_path):
    a, b = (images_of(extract(tmp_path, name=f"{device}.h5sc", device=device).path) for device in ("cpu", "reference"))
    assert (a == b).mean() > 0.999


def test_iter_cells_yields_what_extract_writes(tmp_path):
    images = images_of(extract(tmp_path).path)
    seen = 0
    for batch in gx.iter_cells(IMAGE, nucleus=NUCLEUS, cytosol=CYTOSOL, tile_size=24):
        assert (batch.images == images[batch.rows]).all()
        seen += len(batch)
    assert seen == len(images)


def test_iter_cells_may_stop_early_and_raises_errors_at_once():
    assert next(iter(gx.iter_cells(IMAGE, nucleus=NUCLEUS, tile_size=24))).images.shape[1:] == (4, 24, 24)
    with pytest.raises(gx.RecipeError):
        gx.iter_cells(IMAGE, nucleus=NUCLEUS, tile_size=0)


def test_plan_reads_a_few_windows_of_the_image():
    n_read = 0

    class Counted:
        shape, dtype, ndim = (3, 2000, 2000), np.dtype(np.uint16), 3

        def __getitem__(self, key):
            nonlocal n_read
            found = np.broadcast_to(np.uint16(1), self.shape)[key]
            n_read += found.size
            return found

    nucleus = np.zeros((2000, 2000), np.uint32)
    nucleus[: NUCLEUS.shape[0], 500 : 500 + NUCLEUS.shape[1]] = NUCLEUS
    plan = gx.plan(Counted(), nucleus=nucleus, recipe="scportrait", tile_size=20, border="keep")
    assert len(plan.cells) == len(np.unique(NUCLEUS)) - 1
    assert plan.nbytes == len(plan.cells) * 4 * 20 * 20 * 2
    assert 0 < n_read < 0.1 * np.prod(Counted.shape)


def test_a_survey_of_one_slide_is_that_of_a_list_of_one(tmp_path):
    slide = {"image": IMAGE, "nucleus": NUCLEUS, "cytosol": CYTOSOL}
    options = {"tile_size": 24, "device": "cpu", "layout": "sparcspy", "n_cells": 5, "output": tmp_path / "cells.h5"}
    one, many = gx.survey(**slide, **options).to_dict(), gx.survey_many([slide], **options).to_dict()
    for measured in ("estimated_seconds", "estimated_memory_nbytes"):
        assert one.pop(measured) > 0
        assert many.pop(measured) > 0
    assert one == many
    assert one["n_cells"] == 5
    assert list(tmp_path.iterdir()) == []
    options["output"].write_text("mine")
    with pytest.raises(gx.OutputError, match="exists"):
        gx.survey(**slide, **options)
    assert gx.survey(**slide, **options, overwrite=True).n_tried == 5
    assert options["output"].read_text() == "mine"


def test_the_recipe_may_be_a_name_a_file_or_a_recipe(tmp_path):
    recipe = gx.Recipe.preset("scportrait").replace(tile_size=24)
    toml = tmp_path / "mine.toml"
    toml.write_text(recipe.to_toml())
    found = [extract(tmp_path, name=f"{n}.h5sc", recipe=r) for n, r in enumerate(["scportrait", toml, recipe])]
    assert (images_of(found[0].path) == images_of(found[1].path)).all()
    assert (images_of(found[0].path) == images_of(found[2].path)).all()
    with gx.open_cells(found[0].path) as cells:
        (tmp_path / "stored.toml").write_text(cells.info["recipe"])
    assert gx.Recipe.from_toml(tmp_path / "stored.toml") == recipe


def test_truncated_cells_and_flat_channels_raise_warnings(tmp_path):
    flat = IMAGE.copy()
    flat[1] = 7
    warnings = extract(tmp_path, flat, tile_size=8).warnings
    assert any("do not fit in a tile of 8 pixels" in line for line in warnings)
    assert any("channel ch1 is flat" in line for line in warnings)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"device": "gpu"}, gx.DeviceError, "must be one of auto, cpu, cuda, cuda:N, reference, reference:cuda"),
        ({"device": "cuda:99"}, gx.DeviceError, "does not work here"),
        ({"device": "reference:cuda"}, gx.DeviceError, "does not run on a GPU"),
        ({"gpu_memory": 0}, gx.DeviceError, "must be positive"),
        ({"threads": 0}, gx.InputError, "threads is 0"),
        ({"layout": "zarr"}, gx.OutputError, "must be 'h5sc' or 'sparcspy'"),
        ({"compression": "bzip2"}, gx.OutputError, "gzip"),
        ({"ids": [-1]}, gx.InputError, "whole numbers"),
        ({"ids": [1], "n_cells": 3}, gx.InputError, "give one of them"),
        ({"n_cells": 0}, gx.InputError, "n_cells is 0"),
        ({"recipe": "best"}, gx.RecipeError, "or a .toml file"),
        ({"channel_names": ["a", "b"]}, gx.InputError, "2 channel names for an image of 3 channels"),
    ],
)
def test_invalid_options_are_errors_and_write_nothing(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        extract(tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


def test_an_input_is_never_overwritten(tmp_path):
    np.save(tmp_path / "image.npy", IMAGE)
    (tmp_path / "link.npy").symlink_to("image.npy")
    with pytest.raises(gx.OutputError, match="is one of the inputs"):
        extract(tmp_path, tmp_path / "image.npy", "link.npy", overwrite=True)
    assert (np.load(tmp_path / "image.npy") == IMAGE).all()


def test_import_is_light():
    """`import gpu_extract` loads no numerical library, so it is quick and touches no device."""
    code = "import sys, gpu_extract; gpu_extract.InputError; print({'numpy', 'numba', 'h5py'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_public_name_resolves():
    assert sorted(gx.__all__) == sorted([*gx._HOME, "__version__"]) == dir(gx)
    for name, home in gx._HOME.items():
        assert getattr(gx, name).__module__ == f"gpu_extract.{home}"
    assert re.match(r"\d+\.\d+", gx.__version__)
    with pytest.raises(AttributeError, match="module 'gpu_extract' has no attribute 'nothing'"):
        gx.nothing  # noqa: B018


def test_a_time_course_is_a_slide_for_each_time_point(tmp_path):
    frames = [small_slide(seed) for seed in range(3)]
    image, nucleus, cytosol = (np.stack([frame[i] for frame in frames]) for i in range(3))
    tifffile.imwrite(tmp_path / "image.ome.tif", image, metadata={"axes": "TCYX"}, photometric="minisblack")
    for name, labels in (("nucleus", nucleus), ("cytosol", cytosol)):
        tifffile.imwrite(tmp_path / f"{name}.ome.tif", labels, metadata={"axes": "TYX"})
    planes = {name: tmp_path / f"{name}.ome.tif" for name in ("nucleus", "cytosol")}
    report = extract(tmp_path, tmp_path / "image.ome.tif", **planes)
    data = anndata.read_h5ad(report.path)
    assert list(data.obs["slide"].cat.categories) == ["image_t0", "image_t1", "image_t2"]
    images = data.obsm["single_cell_images"]
    for t, frame in enumerate(frames):
        rows = (data.obs["timepoint"] == t).to_numpy()
        one = extract(tmp_path, frame[0], f"{t}.h5sc", nucleus=frame[1], cytosol=frame[2])
        assert (images[rows] == images_of(one.path)).all()


def test_an_input_with_a_selection_is_never_overwritten(tmp_path):
    np.save(tmp_path / "image.npy", IMAGE)
    with pytest.raises(gx.OutputError, match="is one of the inputs"):
        extract(tmp_path, f"{tmp_path}/image.npy#c=0", "image.npy", overwrite=True)


def test_home_is_expanded_in_all_paths(tmp_path, monkeypatch):
    """As pandas does; NumPy does not."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, plane in {"image": IMAGE, "nucleus": NUCLEUS, "cytosol": CYTOSOL}.items():
        tifffile.imwrite(tmp_path / f"{name}.tif", plane, photometric="minisblack")
    (tmp_path / "mine.toml").write_text("tile_size = 24\n")
    (tmp_path / "ids.csv").write_text("1\n2\n")
    (tmp_path / "slides.csv").write_text("image,nucleus\n~/image.tif,~/nucleus.tif\n")
    slide = {"nucleus": "~/nucleus.tif", "cytosol": "~/cytosol.tif", "recipe": "~/mine.toml"}
    report = gx.extract("~/image.tif#c=0,1", **slide, output="~/new/cells.h5sc")
    assert report.path == tmp_path / "new" / "cells.h5sc"
    assert len(gx.open_cells("~/new/cells.h5sc")) == verify("~/new/cells.h5sc").n_cells == report.n_cells
    assert gx.survey("~/image.tif", **slide, output="~/other.h5sc").plan.slides[0].name == "image"
    assert len(gx.read_slide_table("~/slides.csv")) == 1
    assert gx.plan_many(gx.read_slide_table("~/slides.csv"), tile_size=24).cells.ids.size
    tifffile.imwrite(tmp_path / "seg_mage.tif", NUCLEUS)
    assert [slide.name for slide in gx.match_slides("~/i*.tif", nucleus="~/seg_*.tif")] == ["mage"]
    assert read_ids("~/ids.csv") == [1, 2]
    with pytest.raises(gx.OutputError, match=r"cells\.h5sc is one of the inputs"):
        gx.extract("~/image.tif", nucleus="~/cells.h5sc", output=tmp_path / "cells.h5sc")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("~")]


def test_the_home_of_an_unknown_user_is_no_traceback(tmp_path):
    (tmp_path / "slides.csv").write_text("image,nucleus\n~no_such_user/image.tif,n.tif\n")
    with pytest.raises(gx.InputError, match=r"~no_such_user/image\.tif"):
        gx.plan_many(gx.read_slide_table(tmp_path / "slides.csv"))
