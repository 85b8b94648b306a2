"""Tests of `bench/gpu_instructions.py`, on two cells."""

import json

import pytest
from sass.building import why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"machine code cannot be run: {why_not()}")


@pytest.fixture
def few_cells(monkeypatch, tmp_path):
    """Measure two cells of one recipe, and write the table of counts to a temporary file."""
    from sass import recipes

    monkeypatch.setattr(recipes, "N_CELLS", 2)
    monkeypatch.setattr(recipes, "PRESETS", ("scportrait",))
    monkeypatch.setattr(recipes, "TABLE", tmp_path / "counts.json")
    return tmp_path


def test_the_figures_of_a_recipe(few_cells, capsys):
    import gpu_instructions
    from sass import recipes

    assert gpu_instructions.main(["--json", str(few_cells / "found.json")]) == 0
    found = json.loads((few_cells / "found.json").read_text())
    recipe = found["recipes"]["scportrait"]
    assert found["nvrtc"].startswith(recipes.compiler())
    assert sorted(found["sources"])[0] == "bits.cuh"
    stages = recipe["stages"]
    assert "select_labels" in stages
    assert "make_tile_planes / process_channels" in stages
    for name, total in recipe["per_cell"].items():
        if name not in ("cycles", "lanes_per_instruction"):
            assert sum(stage[name] for stage in stages.values()) == pytest.approx(total, abs=len(stages))
    assert recipe["per_cell"]["barriers"] > 20
    assert 0.5 < sum(recipe["instructions"].values()) < 1  # the most frequent ones
    assert recipe["cells_per_s_by_the_model"] > 0
    assert recipe["kernels"][0]["spills"] == 0
    printed = capsys.readouterr().out
    assert printed.startswith("scportrait: ")
    assert "| select_labels |" in printed
    assert not (few_cells / "counts.json").exists()


def test_the_table_is_written_only_on_request(few_cells, capsys):
    import gpu_instructions
    from sass import recipes

    assert gpu_instructions.main(["--json", str(few_cells / "found.json"), "--update"]) == 0
    counted = json.loads((few_cells / "found.json").read_text())["recipes"]["scportrait"]["per_cell"]
    assert recipes.read_table()["warp_instructions_per_cell"] == {"scportrait": counted["warp_instructions"]}
    assert recipes.read_table()["nvrtc"] == recipes.compiler()


def test_without_a_disassembler_the_script_fails_with_one_line(monkeypatch, capsys):
    import gpu_instructions

    monkeypatch.setattr(gpu_instructions, "why_not", lambda: "nvdisasm is missing")
    assert gpu_instructions.main([]) == 1
    assert capsys.readouterr().err == "machine code cannot be run: nvdisasm is missing\n"
