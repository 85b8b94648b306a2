import hashlib

import pytest

from gpu_extract import DeviceError
from gpu_extract.backends.cuda import source as cuda_source
from gpu_extract.backends.cuda.source import fingerprint, kernel_files, kernel_source

FILES = {
    "one.cu": '#include <cuda_fp16.h>\n#include "a.cuh"\n#include "b.cuh"\nint one;\n',
    "a.cuh": '#pragma once\n  #  include "b.cuh"\nint a;\n',
    "b.cuh": '#pragma once\n#include "a.cuh"\nint b;',
    "notes.md": "no CUDA",
}


@pytest.fixture
def folders(tmp_path, monkeypatch):
    installed, checkout = tmp_path / "installed", tmp_path / "checkout"
    installed.mkdir()
    checkout.mkdir()
    monkeypatch.setattr(cuda_source, "FOLDERS", (installed, checkout))
    return installed, checkout


@pytest.fixture
def files(folders):
    for name, text in FILES.items():
        (folders[1] / name).write_text(text)


@pytest.mark.usefixtures("files")
def test_includes_are_inserted_once_and_lines_keep_their_numbers():
    assert kernel_source("one").splitlines() == [
        '#line 1 "one.cu"',
        "#include <cuda_fp16.h>",
        '#line 1 "a.cuh"',
        "",
        '#line 1 "b.cuh"',
        "",
        "",
        "int b;",
        '#line 3 "a.cuh"',
        "int a;",
        '#line 3 "one.cu"',
        "",
        "int one;",
    ]


@pytest.mark.usefixtures("files")
def test_fingerprint_covers_the_cuda_files_only():
    assert [path.name for path in kernel_files()] == ["a.cuh", "b.cuh", "one.cu"]
    assert fingerprint() == {
        name: hashlib.sha256(FILES[name].encode()).hexdigest() for name in ("a.cuh", "b.cuh", "one.cu")
    }


@pytest.mark.usefixtures("files")
def test_a_missing_kernel_is_named():
    with pytest.raises(FileNotFoundError, match=r"two\.cu"):
        kernel_source("two")


@pytest.mark.usefixtures("files")
def test_the_installed_folder_comes_first(folders):
    (folders[0] / "one.cu").write_text("int installed;\n")
    assert kernel_source("one") == '#line 1 "one.cu"\nint installed;\n'


def test_a_folder_of_another_project_is_ignored(folders):
    (folders[1] / "__init__.py").touch()
    with pytest.raises(DeviceError, match="install gpu-extract again"):
        kernel_source("one")
