"""Functions whose compiled code is kept on disk, as the files change that they are made of."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gpu_extract.backends.cpu import compiling

CALLER = """
from package import kernels
from package.compiling import compiled

times = kernels.times


@compiled
def entry(numbers):
    return times(numbers)


print(entry(kernels.{name}(4)))
print(sum(entry.stats.cache_hits.values()))
"""
KERNELS = """
from typing import NamedTuple

from package.compiling import inner


class {name}(NamedTuple):
    x: int


@inner
def times(numbers):
    return {factor} * numbers.x
"""


@pytest.fixture
def run(tmp_path):
    """A folder with compiling.py of its own, a function that Python calls, and one that is called from there."""
    folder = tmp_path / "package"
    folder.mkdir()
    shutil.copy(compiling.__file__, folder / "compiling.py")
    (folder / "__init__.py").touch()

    def run(name, factor):
        (folder / "kernels.py").write_text(KERNELS.format(name=name, factor=factor))
        (folder / "caller.py").write_text(CALLER.format(name="Numbers"))
        # The caller's own file stays the same: it knows the type by one name.
        script = f"from package import kernels; kernels.Numbers = kernels.{name}; import package.caller"
        told = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
        return [int(line) for line in told.stdout.split()]

    return run


def test_what_is_called_may_change_and_its_types_may_go(run):
    assert run("Numbers", 2) == [8, 0]
    assert run("Numbers", 2) == [8, 1]  # not compiled again
    assert run("Numbers", 3) == [12, 0]
    # What numba has kept of before names a type that is no more.
    assert run("Figures", 3) == [12, 0]


def test_compiled_code_is_made_of_this_folder_alone():
    """Code from elsewhere in the package could change without a new digest."""
    folder = Path(compiling.__file__).parent
    checked = 0
    for path in folder.glob("*.py"):
        tree = ast.parse(path.read_text())
        decorators = {
            name.id
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef)
            for decorator in node.decorator_list
            for name in ast.walk(decorator)
            if isinstance(name, ast.Name)
        }
        if not decorators & {"compiled", "inner", "njit", "intrinsic"} or path.name == "labels.py":
            continue  # labels.py calls the package from Python only
        checked += 1
        modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        ours = [name for name in modules if name.startswith("gpu_extract")]
        assert all(name.startswith("gpu_extract.backends.cpu") for name in ours), path.name
    assert checked >= 8
