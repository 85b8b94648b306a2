"""A library that cannot be imported, or a lack of memory, is no damage of a file."""

from __future__ import annotations

import sys

import pandas.compat._optional
import pytest
from made.cells import make_contents, write

from gpu_extract.errors import GpuExtractError, LibraryError, OutputError
from gpu_extract.store import open_cells, verify
from gpu_extract.store.damage import reporting_damage


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "cells.h5sc", make_contents(3))


@pytest.fixture
def other_anndata(tmp_path, monkeypatch):
    """Make another text be what is imported as anndata."""

    def install(text):
        for name in [name for name in sys.modules if name.partition(".")[0] == "anndata"]:
            monkeypatch.delitem(sys.modules, name)
        package = tmp_path / "site" / "anndata"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(text)
        monkeypatch.syspath_prepend(package.parent)

    return install


BROKEN = {
    "import json\njson.core.Zarr": "AttributeError: module 'json' has no attribute 'core'",
    "import no_such_library": "ModuleNotFoundError: No module named 'no_such_library'",
    "from json import Zarr": "ImportError: cannot import name 'Zarr' from 'json'",
    "def check():\n    raise RuntimeError('two\\nlines')\ncheck()": "RuntimeError: two",
}


@pytest.mark.parametrize(("text", "problem"), BROKEN.items())
def test_a_library_that_cannot_be_imported(path, other_anndata, text, problem):
    other_anndata(text)
    for use in (verify, lambda path: open_cells(path).obs):
        with pytest.raises(LibraryError) as error:
            use(path)
        message = str(error.value)
        assert message.startswith("anndata ")
        assert problem in message
        assert "damaged" not in message
        assert "pip install --upgrade 'anndata" in message
        assert "\n" not in message
        assert isinstance(error.value, GpuExtractError)
        assert isinstance(error.value, ImportError)


def test_a_library_that_cannot_write(tmp_path, other_anndata, monkeypatch):
    monkeypatch.delitem(sys.modules, "gpu_extract.store.hdf5.anndata_tables", raising=False)
    monkeypatch.delitem(sys.modules, "gpu_extract.store.hdf5.anndata_files", raising=False)
    other_anndata("import no_such_library")
    with pytest.raises(LibraryError, match=r"^anndata .* cannot be imported \(ModuleNotFoundError: "):
        write(tmp_path / "new.h5sc", make_contents(3))


def test_a_library_that_is_missing(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "anndata.io", None)
    with pytest.raises(LibraryError, match=r"^anndata .* cannot be imported \(ModuleNotFoundError: "):
        verify(path)
    with pytest.raises(LibraryError, match=r"^no_such_library is not installed \(ModuleNotFoundError: "), _reporting():
        import no_such_library  # noqa: F401


def test_an_import_error_without_a_name():
    match = r"^pandas .* cannot be imported \(ImportError: .*no_such_library"
    with pytest.raises(LibraryError, match=match), _reporting():
        pandas.compat._optional.import_optional_dependency("no_such_library")


def test_a_cause_that_is_hidden_in_another_error():
    def read():
        try:
            import no_such_library  # noqa: F401
        except ImportError as error:
            raise ValueError("while reading /obs") from error

    with pytest.raises(LibraryError, match=r"^no_such_library is not installed"), _reporting():
        read()


def test_a_lack_of_memory():
    message = r"^cells.h5sc, row 7 cannot be read: not enough memory \(Unable to allocate 7 EiB\)"
    with pytest.raises(OutputError, match=message) as error, _reporting(", row 7"):
        raise MemoryError("Unable to allocate 7 EiB")
    assert "damaged" not in str(error.value)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_stop_is_a_stop(error):
    with pytest.raises(error), _reporting():
        raise error


@pytest.mark.parametrize("error", [ValueError("bad\nworse"), AttributeError("bad"), KeyError("bad"), OSError("bad")])
def test_all_else_is_damage(error):
    with pytest.raises(OutputError, match=r"^cells.h5sc is damaged, or not a file of cells: '?bad'?$"), _reporting():
        raise error


def _reporting(where=""):
    return reporting_damage("cells.h5sc", where)
