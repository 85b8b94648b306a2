"""The masks in cellpose's _seg.npy."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from made.stores import BOX, LABELS, Payload, crop

from gpu_extract.errors import GpuExtractError, InputError, SourceError
from gpu_extract.sources import open_labels


def cellpose_content(masks):
    flows = [np.zeros((5, 5, 3), np.float32), [None, 2.5]]
    return {"masks": masks, "flows": flows, "filename": "a.tif", "ismanual": np.zeros(3, bool), "est": np.float32(3)}


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
    header = b"\x93NUMPY\x01\x00\x3a\x00{'descr': '|O', 'fortran_order': False, 'shape': (), }    \n"
    content = np.array(cellpose_content(Payload(str(tmp_path / "trace"))), object)
    (tmp_path / "a_seg.npy").write_bytes(header[:8] + len(header[10:]).to_bytes(2, "little") + header[10:])
    with open(tmp_path / "a_seg.npy", "ab") as stream:
        pickle.dump(content, stream, protocol)
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"outlines": LABELS}, "a pickle without masks"),
        ([1, 2], "a pickle without masks"),
        ({"masks": "none"}, "a pickle without masks"),
        ({"masks": np.array([{}, {}])}, "the masks are of type O8"),
        ({"masks": LABELS[0]}, r"has shape \(90,\)"),
        ({"masks": np.stack([LABELS, LABELS])}, "holds 2 planes; give one plane"),
        ({"masks": LABELS, "path": Path("a")}, "it asks for pathlib"),
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
