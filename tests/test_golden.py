"""Every backend against files of SPARCSpy 1.0.0 and scPortrait 1.8.0."""

import numpy as np
import pytest
from cuda_on_cpu.device import shim
from made.slides import SHARED, as_slide, golden, ht29, one_batch

from gpu_extract import Recipe
from gpu_extract.backends import choose
from gpu_extract.model import Batch
from gpu_extract.planning import make_plan

PEERS = ["scportrait", "sparcspy"]


def peer_recipe(peer):
    return Recipe.preset(peer).replace(tile_size=64)


def extract(device, window, batch, program):
    backend = shim() if device == "cuda" else choose(device)
    return backend.extract(window, batch, program, None).images


def assert_agrees(images, expected, device):
    ulps = np.abs(images.view(np.int16).astype(int) - expected.view(np.int16).astype(int))
    if device == "reference":
        assert ulps.max() == 0
    else:
        assert ulps.max() <= 1
        assert (ulps == 0).mean() >= 0.999


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("device", ["reference", "cpu", "cuda"])
def test_ht29_equals_the_files_of_the_peers(peer, device):
    theirs = golden(f"ht29.{peer}.s64")
    window, batch, program = one_batch(ht29(), peer_recipe(peer))
    assert (batch.ids == theirs["cell_ids"]).all()
    rows = theirs["rows"]
    some = Batch(0, rows, batch.ids[rows], batch.corners[rows], batch.box)
    assert_agrees(extract(device, window, some, program), theirs["images"], device)


def test_the_dropped_ids_equal_those_of_scportrait():
    theirs = golden("ht29.scportrait.s64")
    dropped = make_plan([ht29()], peer_recipe("scportrait")).cells.dropped
    assert (np.sort(dropped.ids) == np.sort(theirs["removed"])).all()
    assert dropped.counts() == {"window leaves the slide": len(theirs["removed"])}


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the team's data, ../shared, which is not here")
@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("device", ["reference", "cpu", "cuda"])
@pytest.mark.parametrize("name", ["ht29", "dsb"])
def test_all_cells_of_the_golden_files(name, peer, device):
    theirs = golden(f"{name}.{peer}.s64", SHARED / "golden")
    folder = SHARED / "data" / {"ht29": "ht29_cellprofiler", "dsb": "dsb_nuclei"}[name]
    cytosol = folder / "cytosol.npy"
    slide = as_slide(folder / "image.npy", folder / "nucleus.npy", cytosol if cytosol.exists() else None)
    window, batch, program = one_batch(slide, peer_recipe(peer))
    assert (batch.ids == theirs["cell_ids"]).all()
    assert_agrees(extract(device, window, batch, program), theirs["images"], device)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the team's data, ../shared, which is not here")
@pytest.mark.parametrize("name", ["ht29", "dsb"])
def test_the_dropped_ids_equal_removed_classes(name):
    folder = SHARED / "data" / {"ht29": "ht29_cellprofiler", "dsb": "dsb_nuclei"}[name]
    removed = golden(f"{name}.scportrait.s64", SHARED / "golden")["removed"]
    if name == "ht29":
        removed = np.loadtxt(SHARED / "golden" / "ht29.scportrait.removed_classes.csv", dtype=int)
    plan = make_plan([as_slide(folder / "image.npy", folder / "nucleus.npy")], peer_recipe("scportrait"))
    assert sorted(plan.cells.dropped.ids.tolist()) == sorted(removed.tolist())
