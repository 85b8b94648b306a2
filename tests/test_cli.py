import json
import os
import re
import subprocess
import sys

import h5py
import numpy as np
import pytest
import tifffile
from made.cells import make_contents, make_slide, write
from made.slides import small_slide

import gpu_extract as gx

SLIDE = ["image.tif", "--nucleus", "nucleus.tif", "--cytosol", "cytosol.tif"]
RUN = ["run", *SLIDE, "-o", "cells.h5sc", "--size", "24"]


def test_run_writes_the_cells_and_prints_a_report(files, call):
    code, out, err = call(*RUN)
    assert code == 0
    n_cells = int(re.search(r"^cells.h5sc: (\d+) cells", out, re.MULTILINE)[1])
    assert "dropped" in out
    assert "device cpu" in out
    assert f"{n_cells} of {n_cells} cells" in err
    with gx.open_cells("cells.h5sc") as cells:
        assert len(cells) == n_cells
    assert sorted(os.listdir()) == ["cells.h5sc", "cytosol.tif", "image.tif", "nucleus.tif"]


def test_home_is_expanded_in_all_paths(files, call, monkeypatch):
    monkeypatch.setenv("HOME", str(files))
    (files / "ids.csv").write_text("1\n2\n3\n4\n5\n6\n")
    (files / "mine.toml").write_text("tile_size = 24\nborder = 'keep'\n")
    slide = ["~/image.tif", "--nucleus=~/nucleus.tif", "--cytosol=~/cytosol.tif"]
    monkeypatch.chdir("/")
    more = ["--ids=~/ids.csv", "--recipe=~/mine.toml", "--output=~/new/cells.h5sc"]
    code, out, _ = call("run", *slide, *more)
    assert (code, out.splitlines()[0].split(",")[0]) == (0, f"{files}/new/cells.h5sc: 6 cells")
    assert call("verify", "~/new/cells.h5sc")[0] == 0
    assert call("info", "~/new/cells.h5sc")[0] == 0
    assert call("gallery", "~/new/cells.h5sc", "-o", "~/new/a/b.png")[:2] == (0, f"{files}/new/a/b.png\n")
    pattern = ["--slides", "~/im*.tif;~/im*.tif", "--nucleus", "~/nucleus.tif"]
    (files / "slides.csv").write_text("image,nucleus\nimage.tif,nucleus.tif\n")
    assert call("plan", "--slides", "~/slides.csv", "--size", "24")[0] == 0
    assert str(files) in call("plan", *pattern)[2]


def test_missing_folders_are_made_and_plan_makes_none(files, call):
    arguments = [*SLIDE, "-o", "a/b/cells.h5sc", "--size", "24"]
    assert call("plan", *arguments)[0] == 0
    assert call("run", *arguments, "--border", "sideways")[0] == 1
    assert not (files / "a").exists()
    assert call("run", *arguments)[0] == 0
    assert os.listdir("a/b") == ["cells.h5sc"]


def test_raw_windows(files, call):
    image = tifffile.imread("image.tif")
    assert call(*RUN, "--raw", "--recipe", "sparcspy", "--channel-names", "DNA,pH3,actin")[0] == 0
    with gx.open_cells("cells.h5sc") as cells:
        assert cells.channel_planes == ("DNA", "pH3", "actin")
        assert cells.dtype == image.dtype
        y, x = (int(cells.obs[f"center_{axis}"].iloc[0]) - 12 for axis in "yx")
        np.testing.assert_array_equal(cells.read(rows=[0])[0, 2:], image[:, y : y + 24, x : x + 24])


def test_recipe_parameters_are_set(files, call):
    more = ["--no-masks", "--range", "100,900", "--set", "cytosol_dilation=4", "--set", "output_dtype=float32"]
    assert call(*RUN, *more)[0] == 0
    with gx.open_cells("cells.h5sc") as cells:
        recipe = cells.info["recipe"]
        assert cells.dtype == np.float32
    for line in ("apply_masks = false", 'normalization = "range"', "cytosol_dilation = 4"):
        assert line in recipe


def test_quiet_shows_no_progress(files, call):
    code, _, err = call(*RUN, "--quiet", "--border", "keep", "--size", "64")
    assert (code, err) == (0, "")


def test_plan_as_json(files, call):
    code, out, _ = call("plan", *SLIDE, "--size", "24", "--json", "--quiet")
    survey = json.loads(out)
    assert code == 0
    assert survey["n_cells"] == len(
        gx.plan("image.tif", nucleus="nucleus.tif", cytosol="cytosol.tif", tile_size=24).cells
    )
    assert survey["tile_size"] == 24


def test_plan_reports_what_is_an_error_in_a_run(bad_files, call):
    code, out, _ = call("plan", "nan.tif", "--nucleus", "nucleus.tif")
    assert code == 0
    assert "1 NaN or infinite (an error in a run; nonfinite" in out


def test_match_overlap_pairs_cells_by_overlap(files, call):
    nucleus = tifffile.imread("nucleus.tif")
    tifffile.imwrite("other_ids.tif", np.where(nucleus, nucleus + 1000, 0).astype(np.uint16))
    by_id = call("plan", *SLIDE, "--size", "24")[1]
    labels = ("--nucleus", "other_ids.tif", "--cytosol", "cytosol.tif")
    assert call("plan", "image.tif", *labels)[0] == 1
    by_overlap = call("plan", "image.tif", *labels, "--size", "24", "--match", "overlap", "--pieces", "all")[1]
    assert by_overlap.splitlines()[0] == by_id.splitlines()[0]


def test_plan_writes_nothing(files, call):
    code, out, _ = call("plan", *SLIDE, "-o", "cells.h5sc", "--size", "24")
    assert code == 0
    assert re.search(r"^\d+ cells of one slide$", out, re.MULTILINE)
    assert "of memory on device cpu with" in out
    assert "mask touches the slide's border" in out
    assert "99 % need" in out
    assert sorted(os.listdir()) == ["cytosol.tif", "image.tif", "nucleus.tif"]


def test_a_subset_by_list_and_at_random(files, call):
    with_ids = gx.plan("image.tif", nucleus="nucleus.tif").cells.ids[:3]
    (files / "ids.csv").write_text("".join(f"{i}\n" for i in with_ids))
    code, out, _ = call("run", "image.tif", "--nucleus", "nucleus.tif", "-o", "a.h5sc", "--ids", "ids.csv")
    assert (code, out.splitlines()[0].split(",")[0]) == (0, "a.h5sc: 3 cells")
    code, out, _ = call("run", "image.tif", "--nucleus", "nucleus.tif", "-o", "b.h5sc", "--n-cells", 2, "--seed", 5)
    assert (code, out.splitlines()[0].split(",")[0]) == (0, "b.h5sc: 2 cells")


def test_info_verify_and_gallery_read_the_file(files, call):
    call(*RUN)
    code, out, _ = call("info", "cells.h5sc")
    assert code == 0
    for text in ("seg_all_nucleus, seg_all_cytosol, ch0, ch1, ch2", "24 x 24 float16", "tile_size = 24", "image.tif"):
        assert text in out
    code, out, _ = call("verify", "cells.h5sc")
    assert (code, "sound" in out) == (0, True)
    code, out, _ = call("gallery", "cells.h5sc", "-o", "some.png", "--n-cells", 3)
    assert (code, out) == (0, "some.png\n")
    assert (files / "some.png").read_bytes().startswith(b"\x89PNG")
    code, _, err = call("gallery", "cells.h5sc", "-o", "some.png")
    assert (code, "exists" in err) == (1, True)


def test_info_is_short_and_its_json_is_complete(tmp_path, call):
    names = [f"A{n:03}" for n in range(300)]
    file = write(tmp_path / "cells.h5sc", make_contents(900, [make_slide(name, {"well": name}) for name in names]))
    code, out, err = call("info", file)
    assert (code, err) == (0, "")
    assert "slides: 300 (A000, A001, A002, ...)" in out.splitlines()
    assert len(out.splitlines()) < 20
    code, out, err = call("info", file, "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert (found["file"], found["n_cells"]) == (str(file), 900)
    assert [(slide["name"], slide["metadata"]) for slide in found["slides"]] == [
        (name, {"well": name}) for name in names
    ]
    assert 'base = "standard"' in found["recipe"]


def test_verify_names_a_damaged_cell(files, call):
    call(*RUN)
    data = bytearray((files / "cells.h5sc").read_bytes())
    with gx.open_cells("cells.h5sc") as cells:
        n = len(cells)
    import h5py

    with h5py.File("cells.h5sc") as file:
        info = file["obsm/single_cell_images"].id.get_chunk_info(n // 2)
    data[info.byte_offset + info.size // 2] ^= 255
    (files / "damaged.h5sc").write_bytes(data)
    code, out, err = call("verify", "damaged.h5sc")
    assert (code, out) == (1, "")
    assert f"row {n // 2}" in err
    assert len(err.splitlines()) == 1


def test_verify_checks_all_files_and_names_the_bad_ones(files, call):
    call(*RUN)
    (files / "text.h5sc").write_text("hello")
    code, out, err = call("verify", "text.h5sc", "cells.h5sc", "missing.h5sc", "--threads", "1", "-q")
    assert code == 1
    assert [line.split(",")[0] for line in out.splitlines()] == ["cells.h5sc: sound"]
    assert [line.split()[:2] for line in err.splitlines()] == [
        ["gpu-extract:", "text.h5sc"],
        ["gpu-extract:", "missing.h5sc"],
    ]
    code, out, _ = call("verify", "text.h5sc", "cells.h5sc", "--json")
    bad, good = json.loads(out)
    assert code == 1
    assert (bad["file"], bad["is_sound"], good["file"], good["is_sound"]) == ("text.h5sc", False, "cells.h5sc", True)
    assert "not a file of cells" in bad["problem"]
    assert (good["tile_size"], good["dtype"], good["is_own"]) == (24, "float16", True)


def test_verify_shows_progress_unless_it_is_quiet(files, call):
    call(*RUN)
    with gx.open_cells("cells.h5sc") as cells:
        n = len(cells)
    assert call("verify", "cells.h5sc")[2] == f"{n} of {n} cells\n"
    assert call("verify", "cells.h5sc", "--quiet")[2] == ""
    assert call("verify", "cells.h5sc", "--threads", "0")[::2] == (
        1,
        "gpu-extract: threads is 0; it must be 1 or more\n",
    )


def test_demo_twice(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        code, out, _ = call("demo", "-o", "here")
        assert code == 0
        assert "265 cells" in out
    assert sorted(os.listdir("here")) == ["cells.h5sc", "gallery.png"]
    with gx.open_cells("here/cells.h5sc") as cells:
        assert cells.planes[2:] == ("DNA", "pH3", "actin")


def test_a_stopped_demo_goes_on(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("gpu_extract.store.CellStore.finish", stop)
        assert call("demo")[0] == 3
    code, out, _ = call("demo")
    assert (code, "of them were written before" in out) == (0, True)


def stop(*values):
    raise KeyboardInterrupt


def test_demo_replaces_only_its_own_file(files, call):
    call(*RUN)
    before = (files / "cells.h5sc").read_bytes()
    code, _, err = call("demo", "-o", ".")
    assert (code, "exists" in err) == (1, True)
    assert (files / "cells.h5sc").read_bytes() == before


def test_doctor_shows_which_devices_work(call):
    code, out, _ = call("doctor")
    assert code == 0
    assert re.search(r"cpu +works", out)
    assert re.search(r"cuda +(works|no: .*;)", out)
    assert "numba" in out
    assert re.search(r"compiled code: /.+", out)


def test_a_stopped_demo_leaves_no_folder(tmp_path, monkeypatch, call):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gpu_extract.api.extract", stop)
    assert call("demo", "-o", "a/b")[0] == 3
    assert list(tmp_path.iterdir()) == []


def test_doctor_shows_the_version_of_cucim_or_how_to_install_it(call, monkeypatch):
    monkeypatch.setattr("gpu_extract.backends.cucim_version", lambda: "26.10.0")
    assert "  cucim        26.10.0\n" in call("doctor")[1]
    monkeypatch.setattr("gpu_extract.backends.cucim_version", lambda: None)
    assert re.search(r"  cucim        not installed; .*pip install cucim-cu13", call("doctor")[1])


def test_doctor_says_which_limit_decides_the_threads(call, monkeypatch):
    monkeypatch.setattr("gpu_extract.cpus.thread_limits", lambda: {"cores": 8, "SLURM_CPUS_PER_TASK": 3})
    out = call("doctor")[1]
    assert "threads: 3, by SLURM_CPUS_PER_TASK (cores: 8, SLURM_CPUS_PER_TASK: 3)" in out


def test_doctor_runs_what_it_says_works(call, monkeypatch):
    def fails(*arguments, **named):
        raise ImportError("numba needs NumPy 9\nor less")

    monkeypatch.setattr("gpu_extract.backends.cpu.compiling.compile_tiny", fails)
    monkeypatch.setattr("gpu_extract.backends.reference.extract", fails)
    code, out, _ = call("doctor")
    reason = "no: it fails with ImportError: numba needs NumPy 9; pip install --force-reinstall "
    assert code == 0
    assert re.search(rf"  cpu +{reason}numba llvmlite\n", out)
    assert re.search(rf"  reference +{reason}numpy scipy\n", out)


def test_the_classic_layout(files, call):
    assert call(*RUN, "--layout", "sparcspy")[0] == 0
    code, out, _ = call("info", "cells.h5sc")
    assert (code, "planes: seg_all_nucleus" in out, "recipe:" in out) == (0, True, True)
    assert call("verify", "cells.h5sc")[1].startswith("cells.h5sc: sound")
    assert call("gallery", "cells.h5sc", "-o", "classic.png")[0] == 0
    with h5py.File("cells.h5sc") as file:
        assert sorted(file) == ["single_cell_data", "single_cell_index"]


def test_a_command_of_a_later_version_is_an_error(files, call):
    code, out, err = call("report", "cells.h5sc", "-o", "report.html")
    assert (code, out) == (1, "")
    assert "later version" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments", [["run"], ["run", "image.tif"], ["run", "-o", "x"], ["fly"], [*RUN, "--size", "x"]]
)
def test_wrong_usage_is_exit_code_2(files, call, arguments):
    assert call(*arguments)[0] == 2
    assert not (files / "cells.h5sc").exists()


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_the_help_of_run_is_in_groups_with_examples(call, option):
    code, out, err = call("run", option)
    assert (code, err) == (0, "")
    titles = re.findall(r"^\W*(Arguments|Options|Input|Cells|Tiles|Channels|Output|Device) ", out, re.MULTILINE)
    assert titles == ["Arguments", "Options", "Input", "Cells", "Tiles", "Channels", "Output", "Device"]
    sections = dict(zip(titles, re.split(r"╭─ ", out)[1:], strict=True))
    for title, options in {
        "Input": ["--nucleus", "--slides", "--pixel-size", "[stop|skip]"],
        "Cells": ["--border", "[mask|window|keep]", "--ids"],
        "Tiles": ["--size", "--raw", "--set", "[quantile|range|dtype|none]"],
        "Channels": ["--channel-names", "--nuclear-channel"],
        "Output": ["--output", "-o", "--overwrite", "[gzip|lzf|lz4|zstd|none]", "[h5sc|sparcspy]"],
        "Device": ["--device", "--threads"],
    }.items():
        for one in options:
            assert one in sections[title], (title, one)
    assert len(re.findall(r"^ *gpu-extract run .* -o", out, re.MULTILINE)) == 2


def test_version_and_the_module(call, tmp_path):
    assert call("--version")[:2] == (0, f"gpu-extract {gx.__version__}\n")
    module = [sys.executable, "-m", "gpu_extract"]
    done = subprocess.run([*module, "--version"], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == f"gpu-extract {gx.__version__}\n"
    done = subprocess.run([*module, "info", "no.h5sc"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "gpu-extract: no.h5sc does not exist\n")


def test_a_shell_completes_the_choices_of_an_option(tmp_path):
    words = {"COMP_WORDS": "gpu-extract run --border ", "COMP_CWORD": "3"}
    environment = {**os.environ, **words, "_GPU_EXTRACT_COMPLETE": "complete_bash"}
    script = "import sys; sys.argv = ['gpu-extract']; from gpu_extract.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.split() == ["mask", "window", "keep"]


def bad_inputs():
    def bad(name, message, *arguments):
        return pytest.param(arguments, message, id=name)

    nucleus = ["--nucleus", "nucleus.tif"]
    return [
        bad("other shape", "they must be equal", "image.tif", "--nucleus", "small.tif"),
        bad("transposed", "transposed", "image.tif", "--nucleus", "transposed.tif"),
        bad("float labels", "which is not a whole number", "image.tif", "--nucleus", "float.tif"),
        bad("negative labels", "negative", "image.tif", "--nucleus", "negative.tif"),
        bad("empty labels", "every pixel is 0", "image.tif", "--nucleus", "empty.tif"),
        bad("no labels", "no label plane was given", "image.tif"),
        bad("text named tif", "text", "text.tif", *nucleus),
        bad("truncated tif", "truncated", "truncated.tif", *nucleus),
        bad("truncated labels", "truncated", "image.tif", "--nucleus", "truncated.tif"),
        bad("missing image", "does not exist", "missing.tif", *nucleus),
        bad("missing labels", "does not exist", "image.tif", "--nucleus", "missing.tif"),
        bad("pickle", "pickle", "pickled.npy", *nucleus),
        bad("nan", "NaN or infinite (1 in channel ch1, the first at y 20, x 30)", "nan.tif", *nucleus),
        bad("complex", "complex64", "complex.npy", *nucleus),
        bad("size 0", "tile_size is 0", *SLIDE, "--size", "0"),
        bad("two sizes", "were both given (--size, --size-um)", *SLIDE, "--size", "24", "--size-um", "12"),
        bad("size 4097", "tile_size is 4097", *SLIDE, "--size", "4097"),
        bad("recipe", "unknown recipe 'best'", *SLIDE, "--recipe", "best"),
        bad("recipe file", "cannot be read", *SLIDE, "--recipe", "missing.toml"),
        bad("recipe key", "unknown recipe parameter 'colour'", *SLIDE, "--recipe", "key.toml"),
        bad("raw", "--raw and --normalize quantile contradict", *SLIDE, "--raw", "--normalize", "quantile"),
        bad("set", "did you mean tile_size?", *SLIDE, "--set", "tile_sise=3"),
        bad("range", "it must be two numbers", *SLIDE, "--range", "5"),
        bad("normalize", "normalization is 'best'", *SLIDE, "--normalize", "best"),
        bad("no range", "needs value_range", *SLIDE, "--normalize", "range"),
        bad("channel names", "2 channel names for an image of 3", *SLIDE, "--channel-names", "DNA,actin"),
        bad("border", "border is 'none'", *SLIDE, "--border", "none"),
        bad("device", "unknown device 'gpu'", *SLIDE, "--device", "gpu"),
        bad("cuda", "does not work here", *SLIDE, "--device", "cuda:99"),
        bad("compression", "compression", *SLIDE, "--compression", "zip"),
        bad("ids", "must hold one whole number per line", *SLIDE, "--ids", "key.toml"),
        bad("no ids", "cannot be read", *SLIDE, "--ids", "missing.csv"),
        bad("unknown ids", "not in the labels", *SLIDE, "--ids", "ids.csv"),
        bad("all dropped", "no cell is left", *SLIDE, "--recipe", "scportrait", "--size", "100"),
        bad("exists", "exists", *SLIDE, "-o", "taken.h5sc"),
        bad("suffix", "has the suffix .zarr; layout 'h5sc' is HDF5", *SLIDE, "-o", "nowhere/cells.zarr"),
        bad("folder is a file", "not a folder", *SLIDE, "-o", "key.toml/cells.h5sc"),
        bad("output is a folder", "is a folder", *SLIDE, "-o", "."),
        bad("output is an input", "one of the inputs", *SLIDE, "-o", "image.tif", "--overwrite"),
    ]


@pytest.fixture
def bad_files(files):
    image, nucleus, _ = small_slide(4)
    tifffile.imwrite("small.tif", nucleus[:-7])
    tifffile.imwrite("transposed.tif", nucleus.T.copy())
    tifffile.imwrite("float.tif", nucleus.astype(np.float32) / 2)
    tifffile.imwrite("negative.tif", np.where(nucleus == 3, -3, nucleus.astype(np.int32)))
    tifffile.imwrite("empty.tif", np.zeros_like(nucleus))
    (files / "text.tif").write_text("this is not a picture\n")
    (files / "truncated.tif").write_bytes((files / "image.tif").read_bytes()[:30000])
    np.save("pickled.npy", np.array([{"a": 1}], object), allow_pickle=True)
    nan = image.astype(np.float32)
    nan[1, 20, 30] = np.nan
    tifffile.imwrite("nan.tif", nan, photometric="minisblack")
    np.save("complex.npy", image.astype(np.complex64))
    (files / "key.toml").write_text("colour = 'blue'\n")
    (files / "ids.csv").write_text("1\n99999\n")
    (files / "taken.h5sc").write_text("mine")
    return files


# `plan` only counts these pixels.
RUN_ONLY = {"nan"}


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        pytest.param(command, *bad.values, id=f"{command}-{bad.id}")
        for command in ("run", "plan")
        for bad in bad_inputs()
        if command == "run" or bad.id not in RUN_ONLY
    ],
)
def test_bad_input_is_an_error_of_one_line_and_writes_nothing(bad_files, call, command, arguments, message):
    before = {path: path.read_bytes() for path in bad_files.iterdir()}
    output = [] if "-o" in arguments else ["-o", "cells.h5sc"]
    code, out, err = call(command, *arguments, *output)
    assert (code, out) == (1, "")
    assert err.startswith("gpu-extract: ")
    assert message in err
    assert len(err.splitlines()) == 1
    assert {path: path.read_bytes() for path in bad_files.iterdir()} == before


def test_an_unwritable_folder(files, call):
    if not os.path.isdir("/proc/self"):
        pytest.skip("needs /proc, where not even root can make a file")
    code, _, err = call("run", *SLIDE, "-o", "/proc/self/cells.h5sc")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "cannot be written" in err


@pytest.mark.parametrize("signal_name", ["SIGINT", "SIGTERM"])
def test_a_stopped_run_exits_with_3_and_keeps_its_cells(files, signal_name):
    """The run signals itself after its first batch, so that it always stops before the end."""
    script = f"""
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent such as nohup may ignore it
from contextlib import nullcontext
from gpu_extract import __main__, api, pipeline, planning
from gpu_extract.model import BatchSize
pipeline.batches = lambda plan, batch_size, chunk_cells: planning.batches(plan, BatchSize(2), chunk_cells)
def stop(n_written, total):
    if n_written > 4:
        os.kill(os.getpid(), signal.{signal_name})
api.shown = lambda progress: nullcontext(stop)
__main__.main()
"""
    done = subprocess.run([sys.executable, "-c", script, *RUN], capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "are kept in cells.h5sc.partial" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (files / "cells.h5sc").exists()
    assert (files / "cells.h5sc.partial").exists()


def test_a_run_after_a_stopped_one_needs_overwrite(files, call, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("gpu_extract.store.CellStore.finish", stop)
        assert call(*RUN)[0] == 3
    code, _, err = call(*RUN)
    assert (code, "cells of an unfinished run; go on with --resume" in err) == (1, True)
    assert call(*RUN, "--overwrite")[0] == 0
    assert not (files / "cells.h5sc.partial").exists()
