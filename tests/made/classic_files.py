"""Write classic SPARCSpy projects as SPARCSpy 1.0.0 writes them, for tests."""

import h5py
import numpy as np

from made.slides import small_slide

IMAGE, NUCLEUS, CYTOSOL = small_slide(6, size=(120, 150))
LABEL_NAMES = ("index", "ID", "timepoint", "well")
N_TIMES = 3
# The ids of each time point are larger than those of the time point before by this number.
ID_STEP = 100


def write_segmentation(path, image=IMAGE, labels=(NUCLEUS, CYTOSOL)):
    """Write ``segmentation.h5``."""
    with h5py.File(path, "w") as h5:
        h5["channels"] = image
        h5["labels"] = np.stack(labels)
    return path


def time_points(n=N_TIMES):
    """Return the images (n, C, H, W) and labels (n, 2, H, W) of a time course."""
    slides = [small_slide(20 + t, size=(120, 150), ids=range(t * ID_STEP + 1, t * ID_STEP + 25)) for t in range(n)]
    return np.stack([image for image, *_ in slides]), np.stack([np.stack(planes) for _, *planes in slides])


def listed_ids(labels):
    """Return for each time point the ids that SPARCSpy would list; here all but every fifth."""
    ids = [np.intersect1d(*map(np.unique, planes)) for planes in labels]  # starting with the background
    return [np.delete(each, np.s_[::5]).astype(np.uint64) for each in ids]


def write_time_course(path, n=N_TIMES, *, empty=(), **changes):
    """Write a time course, without labels at the time points ``empty``; ``changes`` replace tables, None omits one."""
    images, labels = time_points(n)
    labels[list(empty)] = 0
    tables = {
        "labels": [[str(t), f"tile_{t:03}", f"t{t:03}", "Row01_Wéll01"] for t in range(n)],
        "label_names": np.array(LABEL_NAMES, "S13"),
        "classes": listed_ids(labels),
        **changes,
    }
    with h5py.File(path, "w") as h5:
        h5["input_images"], h5["segmentation"] = images, labels
        if tables["labels"] is not None:
            h5.create_dataset("labels", data=np.array(tables["labels"], object), dtype=h5py.string_dtype())
        if tables["label_names"] is not None:
            h5["label_names"] = tables["label_names"]
        if tables["classes"] is not None:
            classes = h5.create_dataset("classes", (len(tables["classes"]),), h5py.vlen_dtype(np.uint64))
            for t, ids in enumerate(tables["classes"]):
                classes[t] = ids
    return path


def write_classes(path, ids):
    """Write ``classes.csv``; SPARCSpy's does not end in a newline."""
    path.write_text("\n".join(map(str, ids)))
    return path
