"""Formats of vendors: images read by bioio, and the errors if it is not installed."""

import pickle
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from made.stores import BOX, IMAGE, LABELS, NAMES, crop, shared

import gpu_extract as gx
from gpu_extract.errors import SourceError
from gpu_extract.sources import open_image, open_slide, open_slides
from gpu_extract.sources.caches import OpenedCache, SegmentCache

# (T, C, Z, Y, X)
MOVIE = np.stack([np.stack([IMAGE[:, ::-1] + t, IMAGE + t], axis=1) for t in range(2)])


class UnsupportedError(Exception):
    """What bioio raises where none of its readers takes a file."""


class FakeImage:
    """The part of bioio's `BioImage` that the package uses: two scenes of (T, C, Z, Y, X) pixels."""

    scenes = ("one", "two")
    axes = ("TCZYX", MOVIE.shape)

    def __init__(self, path):
        if path.endswith(".xyz"):
            raise UnsupportedError("no reader\nfor that")
        if path.endswith(".bad"):
            raise ZeroDivisionError("division by zero")
        self._scene = self.scenes[0]
        self.dims = SimpleNamespace(order=self.axes[0], shape=self.axes[1])
        self.channel_names = list(NAMES)
        self.physical_pixel_sizes = SimpleNamespace(Z=None, Y=0.25, X=0.5)

    def set_scene(self, scene):
        self._scene = scene

    def get_image_dask_data(self, axes):
        assert axes == "TCZYX"
        from dask import array

        return array.from_array(MOVIE + self.scenes.index(self._scene), chunks=(1, 1, 1, 32, 48))


@pytest.fixture
def bioio(monkeypatch):
    """Replace bioio by a fake, so that all code is tested without a file of each vendor."""
    pytest.importorskip("dask.array")
    monkeypatch.setitem(sys.modules, "bioio", ModuleType("bioio"))
    monkeypatch.setitem(sys.modules, "bioio_base", ModuleType("bioio_base"))
    monkeypatch.setitem(sys.modules, "bioio_base.exceptions", ModuleType("bioio_base.exceptions"))
    image = type("BioImage", (FakeImage,), {})
    monkeypatch.setattr(sys.modules["bioio"], "BioImage", image, raising=False)
    errors = sys.modules["bioio_base.exceptions"]
    monkeypatch.setattr(errors, "UnsupportedFileFormatError", UnsupportedError, raising=False)
    return image


@pytest.fixture
def path(tmp_path):
    (tmp_path / "a.czi").write_bytes(b"ZISRAWFILE" + bytes(range(200)))
    return tmp_path / "a.czi"


def test_planes_of_a_file_are_selected(bioio, path):
    slide = open_slide(f"{path}#image=one,t=1,z=1,c=actin,DNA", nucleus=LABELS)
    assert slide.channel_names == ("actin", "DNA")
    assert slide.pixel_size == (0.25, 0.5)
    np.testing.assert_array_equal(slide.read(BOX).image, crop(MOVIE[1, [2, 0], 1]))
    second = open_image(f"{path}#image=two,t=0,z=max")
    np.testing.assert_array_equal(second.read(*BOX), crop(MOVIE[0].max(axis=1)) + 1)
    frames = open_slides(f"{path}#image=one,z=0", nucleus=f"{path}#image=two,z=0,c=0")
    assert [dict(slide.metadata) for slide in frames] == [{"timepoint": "0"}, {"timepoint": "1"}]
    np.testing.assert_array_equal(frames[1].read(BOX).labels[0], crop(MOVIE[1, 0, 0]) + 1)


def test_a_pickled_slide_opens_the_file_again(bioio, path, monkeypatch):
    slide = open_slide(f"{path}#image=two,t=1,z=max,c=2,0", nucleus=LABELS)
    pickled = pickle.dumps(slide.image)
    assert len(pickled) < 2000
    monkeypatch.setattr("gpu_extract.sources.caches.SEGMENTS", SegmentCache(1))
    monkeypatch.setattr("gpu_extract.sources.caches.OPENED", OpenedCache(9))
    expected = crop(MOVIE[1, [2, 0]].max(axis=1)) + 1
    np.testing.assert_array_equal(pickle.loads(pickled).read(*BOX), expected)


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ("t=0", r"holds the images one, two; choose one: .*a\.czi#image=NAME"),
        ("image=three,t=0", "the file has no image 'three'; there are one, two"),
        ("image=one,z=0", "has 2 time points; add #t=0"),
        ("image=one,t=0,z=0,c=DAPI", r"has no channel DAPI; there are DNA \(0\)"),
        ("image=one,level=1", "has nothing that level= could select"),
    ],
)
def test_missing_parts_of_a_file_are_refused(bioio, path, selection, message):
    with pytest.raises(gx.InputError, match=message) as caught:
        open_image(f"{path}#{selection}")
    assert "\n" not in str(caught.value)


def test_unknown_axes_are_refused(bioio, path):
    bioio.scenes = ("one",)
    bioio.axes = ("TCZYXS", (1, 1, 1, 70, 90, 3))
    with pytest.raises(SourceError, match="has the axes S 3 besides T, C, Z, Y and X; convert it"):
        open_image(path)


def test_a_changed_file_is_an_error(bioio, path):
    raster = open_image(f"{path}#image=one,t=0,z=0")
    path.write_bytes(b"ZISRAWFILE")
    with pytest.raises(SourceError, match="has changed since it was opened"):
        raster.read(*BOX)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.xyz", r"is a CZI file, and no installed reader of bioio supports it .*pip install bioio bioio-czi"),
        ("a.bad", r"cannot be opened by bioio: division by zero"),
    ],
)
def test_errors_of_bioio_become_one_line(bioio, path, name, message):
    path.rename(path.parent / name)
    with pytest.raises(SourceError, match=message) as caught:
        open_image(path.parent / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"ZISRAWFILE", "is a CZI file"),
        (b"\xda\xce\xbe\x0a", "is a ND2 file"),
        (b"p\0\0\0", "is a LIF file"),
        (b"\1\2\3", "is of an unknown format"),
    ],
)
def test_without_bioio_the_error_names_the_extra(tmp_path, monkeypatch, head, what):
    monkeypatch.setitem(sys.modules, "bioio", None)  # looks as if it were not installed
    (tmp_path / "a.bin").write_bytes(head + bytes(100))
    with pytest.raises(SourceError, match=rf"{what}.*pip install bioio bioio-nd2 bioio-lif for .*OME-TIFF$") as caught:
        open_image(tmp_path / "a.bin")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("content", "what"), [(b"\x89PNG\r\n\x1a\n\0", "is a damaged picture"), (b"", "is empty")])
def test_pictures_and_empty_files_never_go_to_bioio(bioio, tmp_path, content, what):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(SourceError, match=what):
        open_image(tmp_path / "a.png")


@pytest.mark.filterwarnings("default")  # of bioio's readers
def test_a_real_czi_file(tmp_path):
    pytest.importorskip("bioio", reason="bioio is not installed; it is too large for the test extra")
    czi = pytest.importorskip("bioio_czi", reason="bioio-czi is not installed, because of its license (GPL)")
    path = shared("mosaic_test.czi")
    labels = np.zeros((624, 1756), np.uint16)
    labels[100:120, 900:950] = 7
    slide = open_slide(path, nucleus=labels)
    assert (slide.image.shape, slide.channel_names) == ((1, 624, 1756), ("EGFP",))
    assert slide.pixel_size == pytest.approx((1.0833333, 1.0833333))
    pixels = czi.Reader(path).get_image_data("YX", T=0, C=0, Z=0, M=1)  # the second of its two tiles
    np.testing.assert_array_equal(slide.read((100, 924, 300, 1756)).image[0], pixels[100:300, 924 - 832 : 924])
    (batch,) = gx.iter_cells(path, nucleus=labels, tile_size=64)
    assert batch.ids.tolist() == [7]
