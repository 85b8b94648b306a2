"""Compare with files that SPARCSpy wrote."""

import h5py
import numpy as np

import gpu_extract as gx
from made.slides import SHARED

CLASSIC, COURSE = SHARED / "golden" / "classic", SHARED / "golden" / "timecourse"


def ulps(images, expected):
    """Return the number of float16 steps between two arrays, which have float16 values in any type."""
    bits = [np.asarray(each).astype(np.float16).view(np.int16).astype(int) for each in (images, expected)]
    return np.abs(bits[0] - bits[1])


def assert_is_theirs(ours, theirs, device):
    """Assert that both files have the same datasets, except for an outdated number in SPARCSpy's labelled index."""
    with h5py.File(ours) as found, h5py.File(theirs) as expected:
        assert set(found) == set(expected)
        for name in expected:
            assert (found[name].shape, found[name].dtype) == (expected[name].shape, expected[name].dtype)
            assert found[name].chunks == expected[name].chunks
            if name == "single_cell_data":
                # Compared as stored: float32 values that do not fit in float16 would differ.
                assert (found[name][:] == found[name][:].astype(np.float16)).all()
                assert ulps(found[name], expected[name]).max() <= (0 if device == "reference" else 1)
            elif name == "single_cell_index_labelled":
                labelled = found[name].asstr()[:]
                assert (labelled[:, 0] == np.arange(len(labelled)).astype(str)).all()
                assert (labelled[:, 1:] == expected[name].asstr()[:, 1:]).all()
            else:
                assert (found[name][:] == expected[name][:]).all()


def extracted(image, nucleus, cytosol, **choices):
    """Return (ids, tiles) of a slide in memory, extracted by the reference."""
    batches = list(gx.iter_cells(image, nucleus=nucleus, cytosol=cytosol, device="reference", **choices))
    order = np.argsort(np.concatenate([cells.rows for cells in batches]))
    ids, images = (np.concatenate([getattr(cells, name) for cells in batches])[order] for name in ("ids", "images"))
    return ids, images
