"""Functions that are kept compiled from one process to the next, as the files change that they are made of."""

import subprocess
import sys

import pytest

CALLER = """
import kernels
from gpu_extract.backends.cpu_bits import compiled

times = kernels.times


@compiled(kernels)
def entry(numbers):
    return times(numbers)


print(entry(kernels.{name}(4)))
print(sum(entry.stats.cache_hits.values()))
"""
KERNELS = """
from typing import NamedTuple

from gpu_extract.backends.cpu_bits import inner


class {name}(NamedTuple):
    x: int


@inner
def times(numbers):
    return {factor} * numbers.x
"""


@pytest.fixture
def run(tmp_path):
    def run(name, factor):
        (tmp_path / "kernels.py").write_text(KERNELS.format(name=name, factor=factor))
        (tmp_path / "caller.py").write_text(CALLER.format(name="Numbers"))
        script = f"import kernels; kernels.Numbers = kernels.{name}; import caller"
        told = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
        return [int(line) for line in told.stdout.split()]

    return run


def test_what_is_called_may_change_and_its_types_may_go(run):
    assert run("Numbers", 2) == [8, 0]
    assert run("Numbers", 2) == [8, 1]  # not compiled again
    assert run("Numbers", 3) == [12, 0]
    # What numba has kept of before names a type that is no more.
    assert run("Figures", 3) == [12, 0]
