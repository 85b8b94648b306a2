"""Kernels that are compiled ahead."""

import pytest

import gpu_extract as gx
from gpu_extract.backends.cpu import backend, code_cache, warm
from gpu_extract.backends.cpu.cells import extract_cells
from gpu_extract.backends.cpu.fused import extract_and_deflate
from gpu_extract.backends.cpu.labels import build_table

# What most tests extract, so that this session has compiled it already.
ONE = ("--images", "uint16", "--labels", "uint32")


@pytest.fixture
def no_folder(monkeypatch, tmp_path):
    """No folder for compiled code can be written to."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(code_cache, "_candidates", lambda: iter([tmp_path / "file" / "a"]))
    monkeypatch.setattr(code_cache, "warnings", [])
    code_cache.folder.cache_clear()
    yield
    code_cache.folder.cache_clear()


def test_warm_compiles_all_that_a_run_of_these_types_needs(files, call):
    code, out, _ = call("warm", *ONE)
    first, last = out.splitlines()
    assert code == 0
    assert first.startswith("uint16 images, uint32 labels: ")
    assert first.endswith(" s")
    assert last == f"compiled code is kept in {code_cache.folder()}"
    functions = (extract_cells, extract_and_deflate, build_table)
    before = [list(function.signatures) for function in functions]
    assert all(before)
    slide = {"image": "image.tif", "nucleus": "nucleus.tif", "cytosol": "cytosol.tif", "device": "cpu", "tile_size": 24}
    for compression in ("gzip", "none"):
        gx.extract(**slide, output=f"{compression}.h5sc", compression=compression)
    assert sum(len(cells) for cells in gx.iter_cells(**slide)) > 5
    assert [list(function.signatures) for function in functions] == before


def test_every_usual_pair_of_types_is_compiled_by_default(call, monkeypatch):
    pairs = []
    monkeypatch.setattr(warm, "warm", lambda *types: pairs.append(types) or 1.25)
    code, out, _ = call("warm")
    assert (code, len(pairs), len(out.splitlines())) == (0, 12, 13)
    assert {"uint8 images, uint16 labels: 1.2 s", "float32 images, int64 labels: 1.2 s"} < set(out.splitlines())


def test_without_a_folder_warm_is_an_error_of_one_line(call, no_folder):
    code, out, err = call("warm", *ONE)
    assert (code, out) == (1, "")
    assert err.startswith("gpu-extract: no folder for compiled code can be written to")
    assert "set GPU_EXTRACT_CACHE to a folder" in err
    assert len(err.splitlines()) == 1


def test_code_that_cannot_be_kept_is_an_error(call, monkeypatch):
    line = f"{code_cache.NOT_KEPT} in /x (No space left on device): set GPU_EXTRACT_CACHE"
    monkeypatch.setattr(code_cache, "warnings", ["another", line])
    code, _, err = call("warm", *ONE)
    assert (code, err) == (1, f"gpu-extract: {line}\n")


@pytest.mark.parametrize("given", [("--images", "int24"), ("--labels", "uint8,float32"), ("--labels", "")])
def test_unknown_types_are_an_error(call, given):
    code, _, err = call("warm", *given)
    assert (code, len(err.splitlines())) == (1, 1)
    assert "is not a type; it must be one of uint8, uint16" in err


def test_doctor_and_the_reference_need_no_folder(files, call, no_folder):
    code, out, err = call("doctor")
    assert (code, err) == (0, "")
    assert "compiled code: no folder for compiled code can be written to" in out
    assert gx.extract("image.tif", nucleus="nucleus.tif", output="a.h5sc", device="reference").warnings[1:] == ()
    assert call("info", "a.h5sc")[0] == 0


def test_warnings_about_compiled_code_are_in_the_report(files, monkeypatch):
    monkeypatch.setattr(code_cache, "warnings", [])
    function = backend.extract_deflated

    def extract_deflated(*arguments):
        code_cache._warn("compiled code is not kept")
        return function(*arguments)

    monkeypatch.setattr(backend, "extract_deflated", extract_deflated)
    report = gx.extract("image.tif", nucleus="nucleus.tif", output="a.h5sc", device="cpu", tile_size=24)
    assert report.warnings.count("compiled code is not kept") == 1
