"""What `translated` says: only what is wrong with a file is called damage."""

import errno
import json
import os
import sys

import numpy as np
import pytest
import tifffile
import zarr

from gpu_extract.errors import GpuExtractError, LibraryError, SourceError
from gpu_extract.sources import open_image
from gpu_extract.sources.files import translated


def message_of(error):
    with pytest.raises(GpuExtractError) as caught, translated("a.tif", "is a damaged TIFF"):
        raise error
    return type(caught.value), str(caught.value)


def test_a_damaged_file():
    assert message_of(ZeroDivisionError("by zero\nat 7")) == (
        SourceError,
        "a.tif is a damaged TIFF: by zero; check the file, or export it again",
    )
    seek = OSError(errno.EINVAL, "Invalid argument")
    assert message_of(seek)[1] == "a.tif is a damaged TIFF: Invalid argument; check the file, or export it again"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.EIO, errno.ENOENT, errno.ESTALE])
def test_errors_of_the_system_are_no_damage(number):
    assert message_of(OSError(number, os.strerror(number)))[1] == f"a.tif cannot be read: {os.strerror(number)}"


def test_a_lack_of_memory_is_no_damage():
    assert message_of(MemoryError("Unable to allocate 7 EiB"))[1] == (
        "a.tif cannot be read: not enough memory: Unable to allocate 7 EiB; free some, or check the file if it cannot "
        "be that large"
    )


def test_what_a_library_does_not_support_is_no_damage():
    assert message_of(NotImplementedError("Support for codec 'lzo' not built"))[1].startswith(
        "a.tif uses something that the library for it does not support: Support for codec 'lzo' not built; "
    )


def test_a_library_that_is_missing_or_broken_is_no_damage(tmp_path, monkeypatch):
    missing = r"^a.tif cannot be read: no_such is not installed .*pip install 'no_such'$"
    with pytest.raises(LibraryError, match=missing), translated("a.tif", "is a damaged TIFF"):
        import no_such  # noqa: F401
    (tmp_path / "broken.py").write_text("import json\njson.no_such_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    unusable = r"^a.tif cannot be read: broken .*no_such_name"
    with pytest.raises(LibraryError, match=unusable), translated("a.tif", "is a damaged TIFF"):
        import broken  # noqa: F401


@pytest.mark.parametrize("name", ["a.tif", "a.zarr"])
def test_a_library_that_another_one_needs(monkeypatch, name):
    """As fsspec says it when aiohttp is missing."""
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    for module in [module for module in sys.modules if module.startswith("fsspec.implementations.http")]:
        monkeypatch.delitem(sys.modules, module)
    match = rf"^image https://localhost:9/{name} cannot be read: .*aiohttp.*pip install"
    with pytest.raises(LibraryError, match=match) as caught:
        open_image(f"https://localhost:9/{name}")
    assert "check the address" not in str(caught.value)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("name", ["a.zarr", "a.zarr/inside"])
def test_a_codec_that_is_not_installed(tmp_path, zarr_format, name):
    path = tmp_path / name
    if "inside" in name:
        zarr.create_group(path.parent, zarr_format=zarr_format)
    zarr.create_array(path, shape=(8, 8), dtype="u2", chunks=(8, 8), zarr_format=zarr_format)[:] = 1
    file = path / (".zarray" if zarr_format == 2 else "zarr.json")
    settings = json.loads(file.read_text())
    if zarr_format == 2:
        settings["compressor"] = {"id": "mine"}
    else:
        settings["codecs"][-1] = {"name": "mine", "configuration": {}}
    file.write_text(json.dumps(settings))
    with pytest.raises(SourceError, match=r"is compressed with a codec that is not installed: .*mine.*; install its"):
        open_image(path)


def test_a_codec_that_imagecodecs_lacks(tmp_path, monkeypatch):
    monkeypatch.setattr(tifffile.TIFF, "DECOMPRESSORS", {})
    tifffile.imwrite(tmp_path / "a.tif", np.ones((8, 8), np.uint16))
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as tif:
        tif.pages[0].tags["Compression"].overwrite(34887)  # LERC
    with pytest.raises(
        SourceError, match=r"compression that cannot be read: .*; pip install --upgrade imagecodecs, or "
    ):
        open_image(tmp_path / "a.tif")
