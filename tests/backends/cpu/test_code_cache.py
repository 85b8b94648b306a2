"""Compiled code on disk: where it goes, and what damage or a missing folder costs."""

import os
import subprocess
import sys

import numpy as np
import pytest

from gpu_extract.backends.cpu import code_cache

# The folder's name makes each test's function another one, so that no earlier code of it is found elsewhere.
SOURCE = """
from gpu_extract.backends.cpu.compiling import compiled


@compiled
def twice(values):  # {folder}
    return 2 * values.sum()
"""
SCRIPT = """
import numpy as np
from gpu_extract.backends.cpu import code_cache
from function import twice

print(int(twice(np.arange(4))), sum(twice.stats.cache_hits.values()), code_cache.folder())
print(*code_cache.warnings, sep="\\n")
"""


def run(folder):
    """(hits, folder, warnings) of a function that a fresh process compiles or loads."""
    (folder / "function.py").write_text(SOURCE.format(folder=folder))
    given = {**os.environ, "GPU_EXTRACT_CACHE": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=given, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, *warnings = done.stdout.splitlines()
    value, hits, place = first.split(" ", 2)
    assert value == "12"
    return int(hits), place, [line for line in warnings if line]


@pytest.fixture
def only(tmp_path):
    """A cache folder, and the one file of compiled code in it."""
    hits, place, warnings = run(tmp_path)
    assert (hits, warnings) == (0, [])
    (path,) = (tmp_path / f"uid-{os.getuid()}").glob("twice-*.gxc")
    assert place == str(path.parent)
    return tmp_path, path


def test_code_is_loaded_from_the_given_folder(only):
    folder, path = only
    assert path.stat().st_mode & 0o77 == 0
    assert path.parent.stat().st_mode & 0o77 == 0
    assert run(folder)[0] == 1


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "another pickle"])
def test_damaged_code_is_compiled_again_with_one_warning(only, damage):
    folder, path = only
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 4
    new = {"empty": b"", "cut": content[:-100], "flipped": content, "another pickle": b"\x80\x04N."}[damage]
    path.write_bytes(new)
    hits, _, (warning,) = run(folder)
    assert hits == 0
    assert "is damaged" in warning
    assert run(folder)[0::2] == (1, [])  # it was replaced


def test_a_folder_of_somebody_else_is_not_trusted(only):
    folder, path = only
    path.parent.chmod(0o777)
    _, place, _ = run(folder)
    assert place != str(path.parent)


def test_a_folder_that_is_a_link_is_not_trusted(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"uid-{os.getuid()}").symlink_to("elsewhere")
    assert run(tmp_path)[1] != str(tmp_path / f"uid-{os.getuid()}")


def test_without_any_folder_code_is_compiled_and_not_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(code_cache, "warnings", [])
    monkeypatch.setattr(code_cache, "_candidates", lambda: iter([tmp_path / "file" / "a"]))
    (tmp_path / "file").touch()
    code_cache.folder.cache_clear()
    code_cache._readable.cache_clear()
    try:
        assert code_cache.folder() is None
        assert code_cache.folder() is None
        (warning,) = code_cache.warnings
        assert "set GPU_EXTRACT_CACHE to a folder" in warning

        from gpu_extract.backends.cpu.compiling import compiled

        @compiled
        def double(values):
            return 2 * values.sum()

        assert double(np.arange(4)) == 12
    finally:
        code_cache.folder.cache_clear()
        code_cache._readable.cache_clear()


def test_a_full_disk_is_a_warning(monkeypatch, tmp_path):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(code_cache, "warnings", [])
    monkeypatch.setattr(code_cache, "_write", full)

    from gpu_extract.backends.cpu.compiling import compiled

    @compiled
    def triple(values):
        return 3 * values.sum()

    assert triple(np.arange(4)) == 18
    (warning,) = code_cache.warnings
    assert "No space left on device" in warning


def test_nothing_is_left_of_a_file_that_cannot_be_written(monkeypatch, tmp_path):
    def refuse(old, new):
        raise OSError(13, "Permission denied")

    monkeypatch.setattr(code_cache.os, "replace", refuse)
    with pytest.raises(OSError, match="Permission"):
        code_cache._write(tmp_path / "a.gxc", b"x")
    assert list(tmp_path.iterdir()) == []
