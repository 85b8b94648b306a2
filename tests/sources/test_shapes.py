"""Shapes of SpatialData stores as label planes."""

import json
import os

import numpy as np
import pytest
import zarr
from made.outlines import HOLE, SQUARE, drawn_exactly, shifted, wkb, write_geoparquet
from made.stores import write_multiscale, write_spatialdata

from gpu_extract.errors import SourceError
from gpu_extract.sources import open_slide

pytest.importorskip("pyarrow")

SIZE = (12, 14)
IMAGE = np.ones((2, *SIZE), np.uint16)
EXPECTED = np.array([0, 7, 9])[drawn_exactly([[[SQUARE, HOLE]], [[shifted(SQUARE, 0, 6)]]], SIZE)]
IDENTITY = {"type": "identity"}


def to(system, transformation):
    """A transformation to a coordinate system, as spatialdata writes it."""
    return {**transformation, "output": {"name": system, "axes": [{"name": "x"}, {"name": "y"}]}}


def write_shapes(store, *transformations, name="cells", move=lambda ring: ring):
    """The shapes of `EXPECTED`, moved, with the transformations of their element."""
    attributes = {"encoding-type": "ngff:shapes", "coordinateTransformations": list(transformations)}
    zarr.open_group(store, mode="a").require_group("shapes").create_group(name, attributes=attributes, overwrite=True)
    cells = [[SQUARE, HOLE], [shifted(SQUARE, 0, 6)]]
    geometries = [wkb([move(np.array(ring, float)) for ring in rings]) for rings in cells]
    write_geoparquet(store / "shapes" / name / "shapes.parquet", [7, 9], geometries)
    return store


def place_image(store, *transformations, name="input_image", levels=({"type": "scale", "scale": [1, 1, 1]},)):
    group = zarr.open_group(store / "images" / name, mode="a")
    ome = group.attrs.asdict()
    ome = ome.get("ome", ome)
    ome["multiscales"][0]["coordinateTransformations"] = list(transformations)
    for dataset, level in zip(ome["multiscales"][0]["datasets"], levels, strict=True):
        dataset["coordinateTransformations"] = [level]
    group.attrs["ome"] = ome


@pytest.fixture
def store(tmp_path):
    return write_spatialdata(tmp_path / "a.zarr", IMAGE)


def opened(image, label):
    slide = open_slide(image, cytosol=label)
    return slide.read((0, 0, *slide.size)).labels[0], [line.split(": ", 1)[1] for line in slide.warnings]


def test_ways_to_name_shapes(store, tmp_path, monkeypatch):
    write_shapes(store, to("global", IDENTITY))
    folder = store / "shapes" / "cells"
    monkeypatch.chdir(store / "shapes" / "cells")
    for label in ("cells", f"{store}#label=cells", folder, folder / "shapes.parquet", "shapes.parquet"):
        found, warnings = opened(store, label)
        np.testing.assert_array_equal(found, EXPECTED)
        assert warnings == []


def test_shapes_are_placed_by_the_transformations_of_both(store):
    # Shapes in um, whose system is that of the image moved by (x, y) = (2, -1).
    place_image(store, {"type": "translation", "translation": [0, -1, 2], "output": {"name": "aligned"}})
    um = {"type": "scale", "scale": [4, 4]}
    write_shapes(store, to("aligned", um), to("global", IDENTITY), move=lambda ring: shifted(ring, -1, 2) / 4)
    np.testing.assert_array_equal(opened(store, "cells")[0], EXPECTED)


def test_sequences_and_affine_transformations(store):
    place_image(store, {"type": "translation", "translation": [0, 0, 0], "output": {"name": "global"}})
    matrix = [[0, 2, 1], [4, 0, -3]]  # (x, y, 1) to (x, y): x and y change places
    steps = [{"type": "affine", "affine": matrix}, {"type": "translation", "translation": [5, 6]}]
    sequence = to("global", {"type": "sequence", "transformations": steps})

    def back(ring):
        y, x = np.array(ring).T
        return np.stack([(x - 1 - 5) / 2, (y + 3 - 6) / 4], axis=1)

    write_shapes(store, sequence, move=back)
    np.testing.assert_array_equal(opened(store, "cells")[0], EXPECTED)


def test_levels_of_the_image(tmp_path):
    store = tmp_path / "a.zarr"
    root = zarr.create_group(store)
    image = np.ones((2, 24, 28), np.uint16)
    write_multiscale(root.create_group("images/input_image"), [image, image[:, ::2, ::2]], "cyx", names=("a", "b"))
    levels = [{"type": "scale", "scale": [1, side, side]} for side in (1, 2)]
    place_image(store, to("global", IDENTITY), levels=levels)
    write_shapes(store, to("global", IDENTITY), move=lambda ring: 2 * ring)
    np.testing.assert_array_equal(opened(f"{store}#level=1", "cells")[0], EXPECTED)
    np.testing.assert_array_equal(opened(store, "cells")[0], np.kron(EXPECTED, np.ones((2, 2), int)))


def test_an_image_of_another_file(store):
    write_shapes(store, to("global", {"type": "scale", "scale": [2, 2]}), move=lambda ring: ring / 2)
    found, warnings = opened(IMAGE, f"{store}#label=cells")
    np.testing.assert_array_equal(found, EXPECTED)
    assert warnings == ["the image is not in its store, and is taken for its coordinate system global"]
    write_shapes(store, to("a", IDENTITY), to("b", IDENTITY))
    with pytest.raises(
        SourceError, match="is in the coordinate systems a, b and the image in none; one must be the same"
    ):
        opened(IMAGE, f"{store}#label=cells")


def test_no_coordinate_system_in_common(store):
    place_image(store, to("global", IDENTITY))
    write_shapes(store, to("other", IDENTITY))
    with pytest.raises(
        SourceError, match="in the coordinate systems other and the image in global; one must be the same"
    ):
        opened(store, "cells")


@pytest.mark.parametrize(
    ("transformation", "message"),
    [
        ({"type": "mapAxis"}, "a transformation of the kind mapAxis is not read"),
        ({"type": "scale", "scale": [0, 1]}, "a transformation cannot be inverted"),
        ({"type": "scale", "scale": [1]}, "index 1 is out of bounds"),
        ({"type": "affine", "affine": [[1, 0, "x"], [0, 1, 0]]}, "could not convert string to float"),
        ({"type": "affine", "affine": [[1, 0, float("nan")], [0, 1, 0]]}, "a transformation cannot be inverted"),
        ({}, "'type'"),
        (5, "'int' object has no attribute"),
    ],
)
def test_transformations_that_are_not_read(store, transformation, message):
    write_shapes(store, transformation)
    with pytest.raises(SourceError, match=f"cells/shapes.parquet has damaged transformations: {message}"):
        opened(store, "cells")


def test_an_affine_map_that_mixes_other_axes(store):
    axes = {"axes": [{"name": name} for name in "xyz"]}
    affine = {"type": "affine", "affine": [[1, 0, 5, 0], [0, 1, 0, 0], [0, 0, 1, 0]], "input": axes, "output": axes}
    write_shapes(store, affine)
    with pytest.raises(SourceError, match="mixes x and y with other axes"):
        opened(store, "cells")
    affine["affine"][0][2] = 0
    write_shapes(store, {**affine, "output": {**axes, "name": "global"}})
    np.testing.assert_array_equal(opened(store, "cells")[0], EXPECTED)


def test_zarr_format_2(store):
    write_shapes(store, to("global", {"type": "translation", "translation": [1, 0]}), move=lambda ring: ring - (0, 1))
    folder = store / "shapes" / "cells"
    attributes = json.loads((folder / "zarr.json").read_text())["attributes"]
    (folder / ".zattrs").write_text(json.dumps(attributes))
    (folder / ".zgroup").write_text('{"zarr_format": 2}')
    os.remove(folder / "zarr.json")
    np.testing.assert_array_equal(opened(store, folder)[0], EXPECTED)
    (folder / ".zattrs").write_text("{")
    with pytest.raises(SourceError, match=r"\.zattrs is damaged: Expecting property name"):
        opened(store, folder)


def test_labels_go_before_shapes_of_the_same_name(tmp_path):
    labels = np.full(SIZE, 3, np.uint32)
    store = write_spatialdata(tmp_path / "a.zarr", IMAGE, {"cells": labels})
    write_shapes(store, to("global", IDENTITY))
    assert (opened(store, "cells")[0] == 3).all()
    assert (opened(store, f"{store}#label=cells")[0] == 3).all()
    np.testing.assert_array_equal(opened(store, store / "shapes" / "cells")[0], EXPECTED)


def test_names_that_are_not_there(store):
    write_shapes(store, to("global", IDENTITY))
    with pytest.raises(SourceError, match=r"neither a file nor the name of a label in .*; its labels are cells"):
        opened(store, "nuclei")
    for name in ("..", "../shapes/cells", ""):
        with pytest.raises(Exception, match="label"):
            opened(store, f"{store}#label={name}")
