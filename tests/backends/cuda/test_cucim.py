"""cuCIM in the reference on a GPU, and as the judge of `ops` and label statistics there.

Without a GPU, scikit-image takes its place, whose functions have the same names and arguments.
"""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.ndimage
import skimage.exposure
import skimage.filters
import skimage.measure
import skimage.morphology
from cucim_oracle import assert_ops_agree, assert_statistics_agree
from made.slides import as_slide, first_cells, ht29, one_batch, small_slide

import gpu_extract as gx
from gpu_extract import Recipe, labels
from gpu_extract.backends import cucim_version, reference, try_device
from gpu_extract.backends.cuda import backend as cuda
from gpu_extract.backends.cuda.cucim_ndimage import CucimNdimage, cucim_ndimage
from gpu_extract.backends.reference import Libraries
from gpu_extract.sources.arrays import ArrayRaster

# Deprecated in scikit-image, because it has a function that is as fast; not in cuCIM, which has none.
pytestmark = pytest.mark.filterwarnings("ignore:`binary_dilation` is deprecated:FutureWarning")


def in_place_of_cucim():
    return Libraries(np, cucim_ndimage(skimage, scipy.ndimage))


@pytest.mark.parametrize("size", [31, 64])
@pytest.mark.parametrize("preset", ["standard", "sparcspy", "scportrait"])
def test_the_reference_has_the_same_values_with_these_functions(preset, size):
    recipe = Recipe.preset(preset).replace(tile_size=size, border="keep")
    task = first_cells(*one_batch(ht29(), recipe), 12)
    found, expected = reference.extract(*task, libraries=in_place_of_cucim()), reference.extract(*task)
    assert (found.limits == expected.limits).all()
    assert (found.images == expected.images).all()


def test_masks_that_are_not_blurred_or_dilated():
    recipe = Recipe(tile_size=31, nucleus_sigma=0.0, cytosol_sigma=0.0, nucleus_dilation=0, cytosol_dilation=0)
    task = one_batch(as_slide(*small_slide(1)), recipe)
    assert (reference.extract(*task, libraries=in_place_of_cucim()).images == reference.extract(*task).images).all()


def test_components_are_connected_by_edges_only():
    mask = np.array([[1, 0, 1], [0, 1, 1], [1, 0, 0]], bool)
    parts, n_parts = cucim_ndimage(skimage, scipy.ndimage).label(mask)
    expected, n_expected = scipy.ndimage.label(mask)
    assert n_parts == n_expected == 3
    assert (parts == expected).all()


def some_tiles(size):
    """Return masks (n, S, S) bool with holes, and images (n, S, S) uint16."""
    window, batch, _ = first_cells(*one_batch(ht29(), Recipe(tile_size=size, border="keep")), 20)
    cells = list(zip(batch.ids, batch.corners, strict=True))
    masks = np.stack([reference.cut_tile(window.labels[1], *corner, size) == i for i, corner in cells])
    masks[::2, size // 2, size // 2] = False
    masks[0] = False
    masks[1] = True
    masks[1, 1:-1, 1:-1] = False  # the largest possible hole
    masks[2] = True
    masks[3, :, : size // 2] = True
    masks[3, 3:6, :3] = False  # open to the edge
    return masks, np.stack([reference.cut_tile(window.image[0], *corner, size) for _, corner in cells])


def label_planes():
    slide = ht29()
    yield slide.masks["cytosol"].read(0, 0, *slide.size)[0]
    yield small_slide(3, ids=[2, 3, 7, 40, 1000])[2]


@pytest.mark.parametrize("size", [31, 64])
def test_the_judge_agrees_with_ops_on_the_cpu(size):
    assert_ops_agree(*some_tiles(size), skimage, np, np.asarray)


def test_the_judge_agrees_with_label_statistics_on_the_cpu():
    for plane in label_planes():
        found = labels.label_statistics(ArrayRaster(plane, "cytosol"))
        assert_statistics_agree(plane, found, skimage, np, np.asarray)


@pytest.mark.parametrize("size", [31, 64, 128])
def test_ops_on_a_gpu_agree_with_cucim(cucim, size):
    cp = cuda.reference_libraries().xp
    assert_ops_agree(*some_tiles(size), cucim, cp, cp.asnumpy)


def test_label_statistics_on_a_gpu_agree_with_cucim(gpu, cucim):
    cp = cuda.reference_libraries().xp
    for plane in label_planes():
        found = gpu.statistics(ArrayRaster(plane, "cytosol"), "labels")
        assert_statistics_agree(plane, found, cucim, cp, cp.asnumpy)


def test_the_reference_on_a_gpu_uses_cucim(cucim):
    assert isinstance(cuda.reference_libraries().ndimage, CucimNdimage)


# Without a GPU: which libraries are chosen, and the messages


@pytest.fixture
def cupy(monkeypatch):
    """Pretend that CuPy is there, and has a GPU."""
    ndimage = SimpleNamespace(binary_fill_holes=None)
    modules = {
        "cupy": SimpleNamespace(),
        "cupyx": SimpleNamespace(scipy=SimpleNamespace(ndimage=ndimage)),
        "cupyx.scipy": SimpleNamespace(ndimage=ndimage),
        "cupyx.scipy.ndimage": ndimage,
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(cuda, "problem", lambda: None)
    return ndimage


def test_without_cucim_the_reference_uses_cupyx(cupy, monkeypatch):
    monkeypatch.setattr(cuda.importlib.util, "find_spec", lambda name: None)
    assert cucim_version() is None
    assert cuda.reference_libraries().ndimage is cupy


def test_with_cucim_the_reference_uses_it(cupy, monkeypatch):
    monkeypatch.setattr(cuda, "cucim_version", lambda: "26.10.0")
    monkeypatch.setattr(cuda, "cucim_skimage", lambda: skimage)
    assert isinstance(cuda.reference_libraries().ndimage, CucimNdimage)


def test_a_broken_cucim_is_an_error(cupy, monkeypatch):
    monkeypatch.setattr(cuda, "cucim_version", lambda: "26.10.0")
    monkeypatch.setitem(sys.modules, "cucim", None)
    remedy = r"pip install cucim-cu13 \(cucim-cu12 for CUDA 12\), or uninstall it"
    with pytest.raises(gx.DeviceError, match=f"cuCIM cannot be imported .*{remedy}") as caught:
        cuda.reference_libraries()
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(cuda, "count", lambda: 1)
    assert try_device("reference:cuda") == str(caught.value)


def test_a_long_error_of_cucim_is_cut_to_one_line(cupy, monkeypatch):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "cucim":
                raise ImportError("libcudart.so.13 not found\n\nDo this.\nOr that.")

    monkeypatch.delitem(sys.modules, "cucim", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(gx.DeviceError, match=r"cuCIM cannot be imported \(libcudart.so.13 not found\); pip"):
        cuda.cucim_skimage()


def test_the_version_of_any_distribution_of_cucim(monkeypatch):
    versions = {"cucim-cu12": "26.8.0"}

    def version(name):
        if name not in versions:
            raise cuda.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(cuda, "version", version)
    monkeypatch.setattr(cuda.importlib.util, "find_spec", lambda name: object())
    assert cucim_version() == "26.8.0"
    versions.clear()
    assert cucim_version() == "unknown"


@pytest.mark.skipif(cucim_version() is None, reason="needs cuCIM, but no GPU")
def test_cucim_has_the_functions():
    found = cuda.cucim_skimage()
    for name in ("exposure.rescale_intensity", "filters.gaussian", "measure.label", "measure.regionprops_table"):
        module, function = name.split(".")
        assert callable(getattr(getattr(found, module), function))
    assert callable(found.morphology.binary_dilation)
    assert callable(found.morphology.remove_small_holes)
