"""The cache of compiled code on disk, when the source files change."""

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
    """Return a function that runs a folder with a copy of compiling.py, a compiled function and one that it calls."""
    folder = tmp_path / "package"
    folder.mkdir()
    shutil.copy(compiling.__file__, folder / "compiling.py")
    (folder / "__init__.py").touch()

    def run(name, factor):
        # The comment makes each test's code another one than that which an earlier test has kept.
        (folder / "kernels.py").write_text(KERNELS.format(name=name, factor=factor) + f"# {tmp_path}")
        (folder / "caller.py").write_text(CALLER.format(name="Numbers"))
        # The caller's file does not change: it uses the same name for the type.
        script = f"from package import kernels; kernels.Numbers = kernels.{name}; import package.caller"
        done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
        return [int(line) for line in done.stdout.split()]

    return run


def test_a_change_of_a_called_function_or_type_recompiles(run):
    assert run("Numbers", 2) == [8, 0]
    assert run("Numbers", 2) == [8, 1]  # from the cache
    assert run("Numbers", 3) == [12, 0]
    # The cache contains a type that no longer exists.
    assert run("Figures", 3) == [12, 0]


DECORATORS = {"compiled", "inner", "inner_allocating", "njit", "intrinsic"}


def names_in(node):
    return {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}


def is_compiled(node):
    return any(names_in(decorator) & DECORATORS for decorator in node.decorator_list)


def names_from_elsewhere(tree):
    """Return the names that a module imports from other folders of the package."""
    return {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("gpu_extract")
        for alias in node.names
        if not f"{node.module}.{alias.name}".startswith("gpu_extract.backends.cpu.")
    }


def test_compiled_code_is_made_of_this_folder_alone():
    """Code from other folders of the package could change without a new digest."""
    n_compiled = 0
    for path in Path(compiling.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text())
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import) and "gpu_extract" in ast.dump(node)]
        elsewhere = names_from_elsewhere(tree)
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and is_compiled(node):
                n_compiled += 1
                assert not names_in(node) & elsewhere, f"{path.name}: {node.name}"
            elif isinstance(node, ast.Assign):  # compiled code contains constants
                assert not names_in(node.value) & elsewhere, f"{path.name}: {ast.unparse(node)}"
    assert n_compiled > 50


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from gpu_extract import labels", {"labels"}),
        ("from gpu_extract.model import Window as W, Batch", {"W", "Batch"}),
        ("from gpu_extract.backends import reference", {"reference"}),
        ("from gpu_extract.backends.cpu import planes", set()),
        ("from gpu_extract.backends.cpu.masks import grow", set()),
        ("from numba import njit", set()),
    ],
)
def test_names_from_elsewhere(source, found):
    assert names_from_elsewhere(ast.parse(source)) == found
