"""The masks in cellpose's _seg.npy."""

import pickle
import struct
from collections import OrderedDict
from datetime import datetime
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pytest
from made.stores import BOX, LABELS, Payload, crop

from gpu_extract.errors import GpuExtractError, InputError, LabelError, SourceError
from gpu_extract.sources import open_labels


def cellpose_content(masks):
    flows = [np.zeros((5, 5, 3), np.float32), [None, 2.5]]
    return {"masks": masks, "flows": flows, "filename": "a.tif", "ismanual": np.zeros(3, bool), "est": np.float32(3)}


def write_pickle(path, content):
    """Write an .npy file of one object with the given pickle."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }    \n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content)


class Reduced:
    """Pickles as a call and a state."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u4", "i8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_cellpose_masks_are_a_label_plane(tmp_path, dtype, order):
    masks = np.asarray(LABELS, dtype, order=order)
    np.save(tmp_path / "a_seg.npy", cellpose_content(masks), allow_pickle=True)
    raster = open_labels(tmp_path / "a_seg.npy", "nucleus")
    assert raster.dtype == masks.dtype.newbyteorder("=")
    np.testing.assert_array_equal(raster.read(*BOX)[0], crop(masks))


@pytest.mark.parametrize("protocol", range(2, 6))
def test_code_in_a_pickle_is_never_run(tmp_path, protocol):
    content = np.array(cellpose_content(Payload(str(tmp_path / "trace"))), object)
    write_pickle(tmp_path / "a_seg.npy", pickle.dumps(content, protocol))
    with pytest.raises(SourceError, match=r"it asks for .*; give the masks as TIFF \(cellpose: _cp_masks\.tif\)"):
        open_labels(tmp_path / "a_seg.npy", "nucleus")
    assert not (tmp_path / "trace").exists()


def test_masks_written_by_older_versions_of_numpy(tmp_path):
    np.save(tmp_path / "new_seg.npy", cellpose_content(LABELS), allow_pickle=True)
    whole = (tmp_path / "new_seg.npy").read_bytes()
    header = whole[: whole.index(b"\n") + 1]
    content = pickle.dumps(np.load(tmp_path / "new_seg.npy", allow_pickle=True), 3)
    content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    (tmp_path / "old_seg.npy").write_bytes(header + content)
    np.testing.assert_array_equal(open_labels(tmp_path / "old_seg.npy", "nucleus").read(*BOX)[0], crop(LABELS))


@pytest.mark.parametrize("protocol", range(2, 6))
def test_harmless_containers_are_read(tmp_path, protocol):
    content = cellpose_content(LABELS) | {
        "filename": Path("/data/a.tif"),
        "others": [PurePosixPath("a/b"), PureWindowsPath("c")],
        "diameter": np.float64(30),
        "names": OrderedDict(a=1, b={"c": (1, 2), 3: None}),
    }
    write_pickle(tmp_path / "a_seg.npy", pickle.dumps(np.array(content, object), protocol))
    np.testing.assert_array_equal(open_labels(tmp_path / "a_seg.npy", "nucleus").read(*BOX)[0], crop(LABELS))


def test_masks_of_a_plain_dict(tmp_path):
    write_pickle(tmp_path / "a_seg.npy", pickle.dumps({"masks": LABELS}, 5))
    np.testing.assert_array_equal(open_labels(tmp_path / "a_seg.npy", "nucleus").read(*BOX)[0], crop(LABELS))


def test_paths_of_newer_versions_of_python(tmp_path):
    content = b"\x80\x02}(U\x01pcpathlib._local\nPosixPath\nU\x01a\x85RU\x05masksU\x01xu."
    write_pickle(tmp_path / "a_seg.npy", content)
    with pytest.raises(LabelError, match="a pickle without masks"):
        open_labels(tmp_path / "a_seg.npy", "nucleus")


TUPLES = b")" + b"2\x86" * 60  # twice itself, 60 times: hashing it takes 2^60 steps
DEEP = b")" + b"\x85" * 200_000  # hashing it exhausts the stack


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x05\x96" + struct.pack("<Q", 8 << 30) + b".", "it claims 8589934592 bytes, more than the 12"),
        (b"\x80\x05\x8e" + struct.pack("<Q", 8 << 30) + b".", "it claims 8589934592 bytes, more than the 12"),
        (b"\x80\x05}" + TUPLES + b"K\x01s.", "keys that are no texts"),
        (b"\x80\x05}" + DEEP + b"K\x01s.", "keys that are no texts"),
        (b"\x80\x05}(" + DEEP + b"K\x01u.", "keys that are no texts"),
        (b"\x80\x05(" + DEEP + b"K\x01d.", "keys that are no texts"),
        (b"\x80\x05\x8f(" + DEEP + b"\x90.", "it holds a set"),
        (b"\x80\x05(" + DEEP + b"\x91.", "it holds a set"),
        (b"\x80\x05" + DEEP + b".", "a pickle without masks"),
        (b"\x80\x05cpathlib\nPosixPath\n}b.", "it changes an object that is no array"),
        (b"\x80\x05cpathlib\nPosixPath\n)\x81.", "only arrays and plain containers"),
        (b"\x80\x05\x82\x01.", "only arrays and plain containers"),
        (b"\x80\x05U\x01as.", "cannot be read as a _seg.npy"),
    ],
)
def test_malicious_pickles_are_refused_at_once(tmp_path, content, message):
    write_pickle(tmp_path / "a_seg.npy", content)
    with pytest.raises(GpuExtractError, match=message) as caught:
        open_labels(tmp_path / "a_seg.npy", "nucleus")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(90, 111), ([1], 1 << 40), (-90, -110), (90.0, 110.0), ("a", 1 << 40)])
def test_masks_of_a_wrong_shape_are_refused(tmp_path, shape):
    state = (1, shape, np.dtype("u2"), False, LABELS.astype("u2").tobytes())
    content = pickle.dumps({"masks": Reduced(np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), state)}, 4)
    write_pickle(tmp_path / "a_seg.npy", content)
    with pytest.raises(SourceError, match=r"cannot be read as a _seg.npy"):
        open_labels(tmp_path / "a_seg.npy", "nucleus")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"outlines": LABELS}, "a pickle without masks"),
        ([1, 2], "a pickle without masks"),
        ({"masks": "none"}, "a pickle without masks"),
        ({"masks": np.array([{}, {}])}, "the masks are of type O8"),
        ({"masks": LABELS[0]}, r"has shape \(90,\)"),
        ({"masks": np.stack([LABELS, LABELS])}, "holds 2 planes; give one plane"),
        ({"masks": LABELS, "when": datetime(2020, 1, 1)}, r"it asks for datetime\.datetime"),
        ({"masks": LABELS, "set": {1, 2}}, r"only arrays and plain containers are ever loaded"),
        ({"masks": LABELS, (1, 2): 3}, "a dict with keys that are no texts"),
    ],
)
def test_other_pickles_are_refused(tmp_path, content, message):
    np.save(tmp_path / "a_seg.npy", np.array(content, object), allow_pickle=True)
    with pytest.raises(InputError, match=message) as caught:
        open_labels(tmp_path / "a_seg.npy", "nucleus")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", range(40))
def test_damaged_files_raise_our_own_errors(tmp_path, seed):
    rng = np.random.default_rng(seed)
    np.save(tmp_path / "a_seg.npy", cellpose_content(LABELS.astype("u1")), allow_pickle=True)
    damaged = bytearray((tmp_path / "a_seg.npy").read_bytes())
    for position in rng.integers(0, 600, 4):
        damaged[position] ^= 1 << rng.integers(8)
    (tmp_path / "a_seg.npy").write_bytes(damaged)
    try:
        open_labels(tmp_path / "a_seg.npy", "nucleus").read(*BOX)
    except GpuExtractError as error:
        message = str(error)
        assert "\n" not in message
