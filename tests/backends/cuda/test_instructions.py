"""How many instructions the recipes take on sm_90, compared with the table tests/sass/counts.json."""

import tomllib
from pathlib import Path

import pytest
from gpu_checks import agreement
from sass.building import why_not

from gpu_extract.backends import reference

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"machine code cannot be run: {why_not()}")

ROOT = Path(__file__).parents[3]
# Small changes of a kernel move instructions about.
TOLERANCE = 0.03
UPDATE = "if that is intended, run 'python bench/gpu_instructions.py --update' and commit tests/sass/counts.json"
PRESETS = ("standard", "scportrait", "sparcspy")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_recipe_takes_the_instructions_of_the_table(preset):
    from sass import recipes

    table = recipes.read_table()
    if recipes.compiler() != table["nvrtc"]:
        pytest.skip(
            f"the counts are those of NVRTC {table['nvrtc']}, but {recipes.compiler()} is installed; "
            "pip install '.[test]' installs the version of the counts"
        )
    measured = recipes.measure(preset)
    window, batch, program = measured.task
    agreement(measured.cells, reference.extract(window, batch, program), program)
    found, expected = recipes.warp_instructions(measured), table["warp_instructions_per_cell"][preset]
    change = found / expected - 1
    takes = f"{preset} takes {found:,.0f} warp instructions per cell, {change:+.1%} from {expected:,} in the table"
    assert abs(change) <= TOLERANCE, f"{takes}; {UPDATE}"


def test_the_table_has_all_recipes():
    from sass import recipes

    assert sorted(recipes.read_table()["warp_instructions_per_cell"]) == sorted(PRESETS) == sorted(recipes.PRESETS)


def test_the_test_extra_installs_the_compiler_of_the_table():
    from sass import recipes

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    pin = f"=={recipes.read_table()['nvrtc']}.*"
    for package in ("nvidia-cuda-nvrtc", "nvidia-cuda-runtime"):
        assert package + pin in extras["test"], f"the counts are those of {pin}; {UPDATE}"


def test_functions_are_found_by_line():
    from sass.source_functions import functions_in

    text = """// comment
#include "a.cuh"
constexpr int A = 1;
struct Box {
    int y;
};
template <typename T> __device__ __forceinline__ T twice(T x) { return x + x; }
template <> __device__ __forceinline__ float twice<float>(float x) { return x + x; }

__device__ void blur(const u32 *mask,  // (S, W)
                     int S) {          // pixels
    if (S) {
        f(mask);
    }
}

template <typename Pixel>
__global__ void __launch_bounds__(THREADS, BLOCKS<Pixel>)
extract(int n) {
    blur(0, n);
}
"""
    found = functions_in(text)
    assert found == {
        **dict.fromkeys(range(4, 7), "Box"),
        **dict.fromkeys((7, 8), "twice"),
        **dict.fromkeys(range(10, 16), "blur"),
        **dict.fromkeys(range(17, 22), "extract"),
    }
