"""Tests of `bench/gpu_evidence.py` as far as possible without a GPU: on the CPU shim, with the smallest sizes."""

import contextlib
import dataclasses
import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import gpu_baselines
import gpu_checks
import gpu_device
import gpu_evidence
import gpu_predictions
import gpu_record
import gpu_smoke
import gpu_stages
import gpu_timings
import gpu_tools
import numpy as np
import pytest
import scipy.ndimage
import synthetic
from agreement import GPU_RTOL, assert_agrees
from cuda_on_cpu import numpy_cupy
from cuda_on_cpu.evidence import ShimEvidence
from gpu_record import Record, Step, run_steps

from gpu_extract import backends
from gpu_extract.backends import reference
from gpu_extract.backends.cpu import backend as cpu
from gpu_extract.backends.cuda import backend as cuda
from gpu_extract.backends.cuda import source as cuda_source
from gpu_extract.backends.cuda.registry import all_kernels
from gpu_extract.model import CellImages

BENCH = Path(__file__).parents[2] / "bench"

# Deprecated in scikit-image, which stands in for cuCIM; see tests/backends/cuda/test_cucim.py.
pytestmark = pytest.mark.filterwarnings("ignore:`binary_dilation` is deprecated:FutureWarning")


def evidence_files():
    found = sorted((BENCH / "results").glob("gpu-*.json"))
    found = [path for path in found if "stages" in json.loads(path.read_text(encoding="utf-8"))]
    return found or [pytest.param(None, id="none")]


@pytest.mark.parametrize("path", evidence_files(), ids=lambda path: path.name)
def test_the_evidence_is_for_these_kernels(path):
    if path is None:
        pytest.skip("there is no GPU evidence yet: run bench/gpu_evidence.py on a machine with a GPU")
    evidence = json.loads(path.read_text(encoding="utf-8"))
    assert evidence["ok"], evidence["failed"]
    if evidence["sources"] != gpu_evidence.sources():
        pytest.skip(f"the GPU evidence in {path.name} is for older kernels: run bench/gpu_evidence.py again")


# The whole script


def evidence_of(*arguments):
    command = [sys.executable, str(BENCH / "gpu_evidence.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_without_a_gpu_the_script_fails_with_one_line(tmp_path):
    if backends.why_not("cuda") is None:
        pytest.skip("there is a GPU")
    done = evidence_of("--out", tmp_path, "--seed", 3)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines()[:2] == ["seed 3", "facts ..."]
    [line] = done.stderr.splitlines()[2:]
    assert line.startswith("no evidence without a GPU: DeviceError: ")


def test_a_dry_run_of_some_stages(tmp_path):
    assert evidence_of("--prepare", tmp_path / "tiles", "--dry-run").returncode == 0
    stages = "--stages", "smoke,checks", "--prepared", tmp_path / "tiles"
    done = evidence_of("--dry-run", "--out", tmp_path / "out", "--seed", 5, *stages)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "ok"
    evidence = json.loads((tmp_path / "out/gpu-shim.json").read_text(encoding="utf-8"))
    assert list(evidence["stages"]) == ["facts", "smoke", "checks"]
    assert (evidence["run"]["seed"], evidence["run"]["dry_run"]) == (5, True)
    assert all(entry["prepared"] for entry in evidence["stages"]["smoke"]["entries"])
    assert len(evidence["stages"]["checks"]["entries"]) == len(gpu_checks.few_checks())
    files = sorted(path.name for path in (tmp_path / "out").glob("*.json"))
    assert files == ["00-facts.json", "02-smoke.json", *(f"07-checks-{k}.json" for k in range(4)), "gpu-shim.json"]


def processes_of(folder):
    """Return the processes that have a folder in their command lines."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def test_an_interrupted_run_leaves_no_processes(tmp_path):
    command = [
        sys.executable,
        str(BENCH / "gpu_evidence.py"),
        "--dry-run",
        "--out",
        str(tmp_path),
        "--stages",
        "kernels",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as run:
        while run.stderr.readline().strip() != "kernels ...":
            pass
        while len(processes_of(tmp_path)) < 2:
            time.sleep(0.01)
        run.terminate()
        assert run.wait(30) == 143
    assert processes_of(tmp_path) == []
    assert json.loads((tmp_path / "gpu-shim.json").read_text(encoding="utf-8"))["ok"]  # the facts are kept


@pytest.mark.slow
def test_a_dry_run_of_all_stages(tmp_path):
    done = evidence_of("--dry-run", "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    evidence = json.loads((tmp_path / "gpu-shim.json").read_text(encoding="utf-8"))
    assert list(evidence["stages"]) == [stage.name for stage in gpu_evidence.STAGES]
    assert not evidence["skipped"]
    by_hand = [e for e in evidence["stages"]["baselines"]["entries"] if e["name"].startswith("CuPy and cuCIM")]
    assert all(entry["ratio"] > 0 for entry in by_hand)  # the rate of the kernel comes from another process


def test_the_limits_add_up_to_less_than_five_minutes():
    assert sum(stage.seconds for stage in gpu_evidence.STAGES) + gpu_evidence.WHEELS_SECONDS <= 300
    assert [stage.name for stage in gpu_evidence.STAGES] == list(gpu_stages.STAGES)


def test_the_parent_imports_neither_cuda_nor_the_package():
    code = "import sys, gpu_evidence; print(sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=BENCH, check=True)
    assert not {"cupy", "numpy", "gpu_extract"} & set(done.stdout.replace("'", " ").replace(",", " ").split())


def test_an_unknown_stage_is_an_error(capsys):
    assert gpu_evidence.main(["--stages", "kernels,lables"]) == 1
    assert capsys.readouterr().err.startswith("--stages has 'lables'; it must be of facts, compile, smoke")
    assert [stage.name for stage in gpu_evidence.chosen("labels,smoke")] == ["facts", "smoke", "labels"]


def test_the_hashes_are_those_of_the_files_that_run():
    found = gpu_evidence.sources()
    assert found["kernels"] == cuda_source.fingerprint()
    assert set(found["launchers"]) >= {f"cuda/{name}.py" for name in ("backend", "device", "extract", "registry")}


# Processes


def part_of(tmp_path, body):
    """Return a part whose process runs some lines with a record ``r``."""
    lines = "import os, subprocess, sys, time", "from gpu_record import *", "r = Record(Path(sys.argv[1]))"
    record = tmp_path / "00-facts.json"
    command = [sys.executable, "-c", "\n".join([*lines, body]), str(record)]
    return gpu_evidence.Part(command, record, tmp_path / "00-facts.log")


def supervised(tmp_path, body, seconds=30.0):
    part = part_of(tmp_path, body)
    gpu_evidence.supervise([part], {"PYTHONPATH": str(BENCH)}, time.time() + seconds)
    return part.outcome, Record(part.record)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_process_that_hangs_is_killed_with_what_it_has_started(tmp_path):
    body = f"""
r.end("before", [{{"name": "before", "ok": True}}])
r.begin("hangs")
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], process_group=0)
Path({str(tmp_path / "pid")!r}).write_text(str(child.pid))
time.sleep(600)"""
    start = time.monotonic()
    outcome, record = supervised(tmp_path, body, seconds=1.5)
    assert time.monotonic() - start < 10
    assert outcome == "killed at the limit of time"
    assert [entry["name"] for entry in record.entries if entry["ok"]] == ["before"]
    assert record.entries[1] == {"name": "hangs", "ok": False, "error": "killed at the limit of time"}
    pid = int((tmp_path / "pid").read_text())
    end = time.monotonic() + 5
    while is_running(pid) and time.monotonic() < end:
        time.sleep(0.01)
    assert not is_running(pid)


def test_after_a_crash_the_other_steps_go_on(tmp_path):
    body = """
def crash(): os.abort()
steps = [Step("one", dict), Step("two", crash), Step("three", dict)]
run_steps(r, steps, float("inf"))"""
    outcome, record = supervised(tmp_path, body)
    assert outcome == "ok"
    assert sorted(record.done) == ["one", "three", "two"]
    assert {entry["name"]: entry["ok"] for entry in record.entries} == {"one": True, "two": False, "three": True}
    assert record.deaths == ["the process died of SIGABRT; while running: two"]


def test_of_several_steps_the_one_that_crashes_is_found(tmp_path):
    body = """
def crash():
    time.sleep(0.2)
    os.abort()
def waits():
    time.sleep(0.0 if r.careful else 30)
    return {}
steps = [Step("one", waits), Step("two", crash), Step("three", waits)]
run_steps(r, steps, float("inf"), threads=3)"""
    outcome, record = supervised(tmp_path, body)
    assert outcome == "ok"
    assert {entry["name"]: entry["ok"] for entry in record.entries} == {"one": True, "two": False, "three": True}
    assert len(record.deaths) == 2


def test_a_lost_context_ends_the_process_but_not_the_stage(tmp_path):
    body = """
lost = []
def illegal():
    lost.append(1)
    raise RuntimeError("cudaErrorIllegalAddress:\\nan illegal memory access")
steps = [Step("one", illegal), Step("two", dict)]
run_steps(r, steps, float("inf"), is_lost=lambda: bool(lost))"""
    outcome, record = supervised(tmp_path, body)
    assert outcome == "ok"
    assert [entry["name"] for entry in record.entries if entry["ok"]] == ["two"]
    assert "CUDA's context was lost: RuntimeError: cudaErrorIllegalAddress: an illegal" in record.entries[0]["error"]


def test_a_process_that_does_not_start_is_not_started_again(tmp_path):
    outcome, record = supervised(tmp_path, "raise ValueError('no slide')")
    assert outcome == "the process ended with exit code 1: ValueError: no slide"
    assert len(record.deaths) == 1
    assert not record.entries


def test_a_death_is_a_failure_even_if_nothing_is_to_blame():
    stage = {"seconds": 1, "outcomes": ["ok"], "deaths": ["the process died of SIGSEGV"], "entries": []}
    facts = {"seconds": 1, "outcomes": ["ok"], "deaths": [], "entries": []}
    evidence = gpu_evidence.assemble({}, {"facts": facts, "checks": stage})
    assert (evidence["ok"], evidence["failed"]) == (False, ["checks: the process died of SIGSEGV"])


def test_failed_and_skipped_steps_are_distinguished(tmp_path):
    def wrong():
        raise gpu_checks.CheckError("off by one")

    def lacks_a_package():
        raise ModuleNotFoundError("No module named 'anndata'")

    record = Record(tmp_path / "00-x.json")
    run_steps(record, [Step("wrong", wrong), Step("lacks", lacks_a_package)], time.time() + 60)
    assert (record.entries[0]["ok"], record.entries[0]["error"]) == (False, "CheckError: off by one")
    assert record.entries[1]["skipped"] == "No module named 'anndata'"
    run_steps(record, [Step("late", wrong)], time.time() - 1)
    assert record.entries[2]["skipped"] == "no time left"
    assert Record(tmp_path / "00-x.json").entries == record.entries


def test_numpy_numbers_are_written(tmp_path):
    record = Record(tmp_path / "00-x.json")
    run_steps(record, [Step("x", lambda: {"n": np.int64(3), "f": np.float32(0.5)})], time.time() + 60)
    assert json.loads((tmp_path / "00-x.json").read_text())["entries"][0]["f"] == 0.5


# Wheels


def wheel(folder, name):
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}.py", "")
        info = f"{name}-1.0.dist-info"
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: absent\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")


def test_wheels_are_unpacked_without_a_network(tmp_path):
    wheel(tmp_path, "some_wheel")
    found = gpu_evidence.install(tmp_path, tmp_path / "packages", time.time() + 60)
    assert found["ok"], found
    assert (tmp_path / "packages/some_wheel.py").exists()
    assert gpu_evidence.install(tmp_path / "none", tmp_path, time.time() + 60)["error"].startswith(
        "there are no wheels"
    )


# Checks


def batch_and_cells():
    window, batch, program = gpu_checks.first_cells(gpu_checks.ht29("standard", 31), 6)
    return window, batch, program, cpu.extract(window, batch, program)


def changed(cells, **changes):
    return CellImages(**{name: changes.get(name, getattr(cells, name)) for name in ("rows", "ids", "images", "limits")})


def test_agreement_is_that_of_the_tests():
    window, batch, program, cells = batch_and_cells()
    M = len(program.stored)
    one_up, two_up, unequal, nan, mask = (cells.images.copy() for _ in range(5))
    channels = np.argwhere((cells.images > 0.1) & (np.arange(cells.images.shape[1])[:, None, None] >= M))
    first = tuple(channels[0])
    one_up.view(np.uint16)[first] += 1
    two_up.view(np.uint16)[first] += 2
    unequal.view(np.uint16)[tuple(channels[:500].T)] += 1
    nan[first] = np.nan
    mask[0, 0, 0, 0] = 1
    cases = {
        "as it is": (cells, True),
        "one step": (changed(cells, images=one_up), True),
        "two steps": (changed(cells, images=two_up), False),
        "many steps": (changed(cells, images=unequal), False),
        "NaN": (changed(cells, images=nan), False),
        "a mask pixel": (changed(cells, images=mask), False),
        "limits": (changed(cells, limits=cells.limits * (1 + 1e-4)), False),
        "ids": (changed(cells, ids=cells.ids + np.uint64(1)), False),
    }
    for name, (found, good) in cases.items():
        if good:
            assert_agrees(found, window, batch, program, rtol=GPU_RTOL)
            assert gpu_checks.agreement(found, cells, program)["cells"] == 6, name
        else:
            with pytest.raises(AssertionError):
                assert_agrees(found, window, batch, program, rtol=GPU_RTOL)
            with pytest.raises(gpu_checks.CheckError):
                gpu_checks.agreement(found, cells, program)


def test_products_with_a_soft_mask_between_close_limits_may_be_off_as_in_the_tests():
    """Scaling magnifies the rounding of the mask by lo / (hi - lo)."""
    task = gpu_checks.small(2, preset="scportrait", ground=60000, apply_masks=True)
    window, batch, program = gpu_checks.first_cells(task, 3)
    expected = reference.extract(window, batch, program)
    M = len(program.stored)
    uncertain = gpu_checks.cancellation(expected.limits, program, GPU_RTOL)
    assert uncertain[:, M:].max() > 0
    images = expected.images.astype(np.float64)
    images[:, M:] = np.clip(images[:, M:] + 0.9 * uncertain[:, M:], 0, 1)
    near = changed(expected, images=images.astype(np.float16))
    assert_agrees(near, window, batch, program, rtol=GPU_RTOL)
    assert gpu_checks.agreement(near, expected, program)["max_ulp"] <= 1
    images[:, M:] = np.clip(images[:, M:] + 3 * uncertain[:, M:] + 0.01, 0, 1)
    far = changed(expected, images=images.astype(np.float16))
    with pytest.raises(AssertionError):
        assert_agrees(far, window, batch, program, rtol=GPU_RTOL)
    with pytest.raises(gpu_checks.CheckError):
        gpu_checks.agreement(far, expected, program)


def test_one_ulp_is_reported_as_one():
    _, _, program, cells = batch_and_cells()
    images = cells.images.copy()
    at = tuple(np.argwhere(images[:, 2:] > 0.1)[0] + (0, 2, 0, 0))
    images.view(np.uint16)[at] += 1
    figures = gpu_checks.agreement(changed(cells, images=images), cells, program)
    assert figures["max_ulp"] == 1
    assert figures["equal"] == pytest.approx(1 - 1 / images.size)


def test_the_seed_chooses_the_random_cells():
    one, same, other = (gpu_checks.random_cells("standard", seed, n=5)[1].ids for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()


@pytest.mark.parametrize("check", gpu_checks.few_checks(), ids=lambda check: check.name)
def test_checks_pass(check):
    assert check.run(ShimEvidence())


def test_an_unwritten_element_is_found():
    class Forgetful(ShimEvidence):
        def open_stream(self):
            stream = super().open_stream()
            to_host = stream.to_host

            def forget_the_last(array, out):
                to_host(array.reshape(-1)[:-1], out.reshape(-1)[:-1])

            stream.to_host = forget_the_last
            return stream

    check = gpu_checks.extraction("HT29", lambda: gpu_checks.first_cells(gpu_checks.ht29("scportrait", 31), 2))
    with pytest.raises(gpu_checks.CheckError, match="not every element is written"):
        check.run(Forgetful())


def test_names_of_checks_are_unique():
    for some in (gpu_checks.checks(0), gpu_checks.few_checks(), gpu_checks.sanitizer_checks()):
        names = [check.name for check in some]
        assert len(set(names)) == len(names) > 5


def test_prepared_tiles_are_refused_if_the_sources_changed(tmp_path, monkeypatch):
    gpu_smoke.prepare(tmp_path, small=True)
    smoke = gpu_smoke.smoke_steps(ShimEvidence(), tmp_path, small=True)[0].run
    assert smoke()["prepared"]
    monkeypatch.setattr(gpu_smoke, "digest", lambda: "other")
    with pytest.raises(gpu_checks.CheckError, match="run --prepare again"):
        smoke()


# Timings


def test_a_repeated_slide_has_unique_ids_and_all_cells():
    base = synthetic.make_slide(256)
    planes = gpu_timings.repeated(np, np.stack([base.nucleus, base.cytosol]), 3)
    for plane, original in zip(planes, (base.nucleus, base.cytosol), strict=True):
        assert plane.dtype == original.dtype
        ids, counts = np.unique(plane[plane > 0], return_counts=True)
        assert len(ids) == 9 * len(np.unique(original[original > 0]))
        assert counts.sum() == 9 * np.count_nonzero(original)
    at = planes[0] > 0
    assert (planes[0][at] == planes[1][at]).all()


def test_the_cells_of_a_repeated_slide_are_those_of_a_plan(bench):
    from made.slides import as_slide

    from gpu_extract import Recipe, planning

    plan = planning.make_plan([as_slide(*bench.on_host)], Recipe(tile_size=24, border="window"))
    order = np.argsort(bench.ids)
    assert (bench.ids[order] == plan.cells.ids).all()
    assert (bench.corners[order] == plan.cells.centers - 12).all()


def test_cells_are_processed_in_the_order_of_the_pipeline(bench):
    from made.slides import as_slide

    from gpu_extract import Recipe, planning
    from gpu_extract.model import BatchSize

    plan = planning.make_plan([as_slide(*bench.on_host)], Recipe(tile_size=24, border="window"))
    batches = planning.batches(plan, BatchSize(backends.GPU_CELLS, 1 << 40))
    assert (bench.ids == np.concatenate([batch.ids for batch in batches])).all()


def test_a_slide_that_does_not_fit_has_fewer_repeats():
    large = 1 << 40
    assert gpu_timings.fitting_repeats(4096, 4, large, large) == 4
    assert gpu_timings.fitting_repeats(4096, 4, 12 << 30, large) == 2
    assert gpu_timings.fitting_repeats(4096, 4, large, 1 << 30) == 1


@pytest.fixture(scope="module")
def bench():
    return gpu_timings.Bench(ShimEvidence(), synthetic.make_slide(110), gpu_timings.SMALL)


def entries_of(steps):
    entries = []
    for step in steps:
        found = step.run()
        entries += found
    json.dumps(entries)
    return {entry["name"]: entry for entry in entries}


def test_copies_and_kernels_are_timed(bench):
    by_name = entries_of(gpu_timings.kernel_steps(bench, lambda: bench))
    fused = by_name["fused kernel, standard"]
    assert fused["bytes_per_cell"] == 24 * 24 * (2 * 4 + 3 * 2 + 5 * 2)
    assert fused["GB_per_s"] == pytest.approx(fused["cells_per_s"] * fused["bytes_per_cell"] / 1e9)
    assert [target["figure"] for target in fused["targets"]] == ["cells_per_s", "equal"]
    assert fused["equal"] == 1
    assert by_name["fused kernel, standard, tile 16"]["bytes_per_cell"] == 16 * 16 * (2 * 4 + 3 * 2 + 5 * 2)
    kinds = 1 + 1 + 3 + 1 + hasattr(gpu_timings.cuda_extract, "is_fast")
    assert len(by_name) == 1 + 3 + 3 * kinds
    assert gpu_evidence.in_words(by_name["slide"]).startswith("220 x 220 pixels, 3 uint16 channels, 2 label planes, ")
    later = gpu_timings.Bench(bench.gpu, bench.base, bench.size, known=list(by_name.values()))
    assert later.fused == bench.fused
    assert later.bandwidth == pytest.approx(bench.bandwidth)


def test_the_kernels_are_those_that_are_launched(bench):
    launches = gpu_timings.Launches(bench, bench.program("standard"))
    kernel, shared_nbytes = launches.kernels()[0]
    assert kernel in all_kernels()
    assert shared_nbytes > 0
    boxes = bench.boxes
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    centers = bench.corners + bench.tile_size // 2
    assert ((boxes[:, :2] <= centers) & (centers < boxes[:, 2:])).all()


def test_the_general_kernel_is_timed_alone_if_there_is_a_fast_one(bench, monkeypatch):
    chosen = []

    def is_fast(*arguments):
        return True

    def timed(bench, preset, name):
        chosen.append((name, gpu_timings.cuda_extract.is_fast("program", 4)))
        return []

    monkeypatch.setattr(gpu_timings.cuda_extract, "is_fast", is_fast, raising=False)
    monkeypatch.setattr(gpu_timings, "fused_kernel", timed)
    for step in gpu_timings.kernel_steps(bench, None):
        if "general" in step.name:
            step.run()
    assert chosen == [(f"fused kernel, {preset}, general kernel only", False) for preset in gpu_checks.PRESETS]
    assert gpu_timings.cuda_extract.is_fast is is_fast


def test_wrong_tiles_are_not_timed(bench, monkeypatch):
    def launch(device, program, arrays, image, planes, ids, corners, images, used):
        images[...] = 0.25
        used[...] = 0

    monkeypatch.setattr(gpu_timings, "launch_extract", launch)
    with pytest.raises(gpu_checks.CheckError):
        gpu_timings.fused_kernel(bench, "standard")


def test_label_statistics_are_timed(bench):
    resident, from_host = entries_of(gpu_timings.label_steps(bench)).values()
    assert resident["nbytes"] == 220 * 220 * 4
    assert from_host["labels"] > 10


def test_wrong_label_statistics_are_not_timed(bench, monkeypatch):
    def wrong(raster, device):
        found = gpu_timings.labels.label_statistics(raster)
        return dataclasses.replace(found, counts=found.counts + 1)

    monkeypatch.setattr(gpu_timings.cuda_labels, "label_statistics", wrong)
    with pytest.raises(ValueError, match="counts differ"):
        gpu_timings.label_statistics_from_host(bench)


def test_a_slide_with_fewer_repeats_is_said(bench):
    short = gpu_timings.Bench(bench.gpu, bench.base, bench.size._replace(repeats=3))
    short.repeats = 2
    assert short.about()[0]["about"].endswith("; 2, not 3 repeats, because memory is short")


def test_the_pipeline_is_timed(bench):
    found = gpu_timings.host_to_host(bench, "scportrait")
    assert (found["name"], len(found["seconds"])) == ("host to host, scportrait", 3)
    assert found["n_cells"] == len(bench.ids)
    choose = backends.choose
    found = gpu_timings.host_to_file(bench, "in memory", None)
    assert found["n_cells"] == len(bench.ids)
    assert backends.choose is choose


def test_a_folder_in_memory_that_is_too_small_is_not_timed(bench, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_timings, "MEMORY_FOLDER", tmp_path / "none")
    [found] = gpu_timings.host_to_file_in_memory(bench)
    assert found["skipped"].endswith("none has 0.0 GB free, not 0.0")
    monkeypatch.setattr(gpu_timings, "MEMORY_FOLDER", tmp_path)
    [found] = gpu_timings.host_to_file_in_memory(bench)
    assert [target["at_least"] for target in found["targets"]] == [150_000]


def test_baselines_are_timed(bench):
    by_name = entries_of([step for step in gpu_baselines.baseline_steps(bench) if step.name != "start-up"])
    assert len(by_name) == 6
    assert all(entry["share_far_off"] <= 1e-3 for name, entry in by_name.items() if "by hand" in name)


def test_the_ratio_is_that_of_the_rates(bench):
    bench.fused["sparcspy"] = 1e6
    slow = gpu_baselines.reference_on_device(bench, "sparcspy")
    assert slow["ratio"] == pytest.approx(1e6 / slow["cells_per_s"])


def test_without_cucim_the_version_by_hand_is_skipped(bench, monkeypatch):
    def absent():
        raise ModuleNotFoundError("cuCIM is not installed: pip install cucim-cu13")

    monkeypatch.setattr(bench.gpu, "skimage", absent)
    with pytest.raises(ModuleNotFoundError, match="cuCIM"):
        gpu_baselines.by_hand(bench, "standard")


def test_holes_of_many_tiles_are_filled_independently():
    dice = np.random.default_rng(0)
    masks = dice.random((40, 9, 9)) < 0.6
    masks[0, :, -1] = masks[1, 0] = True
    expected = np.stack([scipy.ndimage.binary_fill_holes(mask) for mask in masks])
    assert (gpu_baselines.without_holes(masks, reference.HOST) == expected).all()


def test_the_issue_counts_the_same_bytes(bench):
    assert gpu_timings.tiles_nbytes(bench.program("standard"), 4, 2) * (128 / 24) ** 2 == pytest.approx(393_216)


def test_targets():
    entry = gpu_timings.entry("x", {"a": 2.0, "b": None}, *(gpu_timings.Target(f, least=1.0) for f in "ab"))
    assert [target["met"] for target in entry["targets"]] == [True, None]
    slow = gpu_timings.entry("x", {"a": 2.0}, gpu_timings.Target("a", most=1.0))
    assert slow["targets"] == [{"figure": "a", "at_most": 1.0, "measured": 2.0, "met": False}]


def test_start_up_is_measured_in_new_processes(monkeypatch):
    calls = []

    def run(command, env, **options):
        calls.append((command[-2:], env["CUPY_CACHE_DIR"]))
        line = json.dumps({"first_batch_seconds": 3.0, "second_batch_seconds": 0.1})
        return subprocess.CompletedProcess(command, 0, f"{line}\n", "")

    monkeypatch.setattr(gpu_baselines.subprocess, "run", run)
    cold, warm = gpu_baselines.start_up(type("Gpu", (), {"name": "cuda"}))
    assert calls[0] == calls[1]
    assert calls[0][0] == ["--case", "start-up"]
    assert cold["targets"][0]["met"]
    assert not warm["targets"][0]["met"]


def test_start_up_itself(tmp_path, capsys):
    assert gpu_stages.start_up(gpu_stages.Run(tmp_path, shim=True)) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["second_batch_seconds"] > 0
    assert figures["first_batch_seconds"] > 0


# The GPU itself, as far as CuPy is not needed


def gpu_with(cupy):
    gpu = object.__new__(gpu_device.Gpu)
    gpu._cp = cupy
    return gpu


def test_a_lost_context_is_noticed():
    class CUDARuntimeError(RuntimeError):
        pass

    def lost():
        raise CUDARuntimeError("cudaErrorIllegalAddress")

    def runtime(synchronize):
        names = SimpleNamespace(CUDARuntimeError=CUDARuntimeError, deviceSynchronize=synchronize)
        return SimpleNamespace(cuda=SimpleNamespace(runtime=names))

    assert gpu_with(runtime(lost)).is_broken()
    assert not gpu_with(runtime(lambda: None)).is_broken()


def test_a_field_that_nvidia_smi_does_not_know_does_not_cost_the_others(tmp_path, monkeypatch):
    body = 'case "$3" in *mig*) exit 2;; *,*) exit 2;; *gen*) echo 5;; *) echo " 1980 MHz";; esac'
    fake_program(tmp_path, "nvidia-smi", body)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    found = gpu_with(None).smi()
    assert found["clocks.max.sm"] == "1980 MHz"
    assert found["pcie.link.gen.current"] == "5"
    assert "mig.mode.current" not in found
    fake_program(tmp_path, "nvidia-smi", "echo 1, 2, 3")
    assert dict(list(gpu_with(None).smi().items())[:2]) == {"driver_version": "1", "vbios_version": "2"}
    monkeypatch.setenv("PATH", "/nowhere")
    assert gpu_with(None).smi() == {}


@pytest.fixture
def gpu(monkeypatch):
    """Return `Gpu` itself, on a CuPy made of NumPy."""
    numpy_cupy.install(monkeypatch)
    monkeypatch.setattr(cuda, "_functions", {})
    monkeypatch.setattr(cuda, "cucim_version", lambda: "26.10.0")
    skimage = ShimEvidence().skimage()
    table = skimage.measure.regionprops_table  # does not take subclasses of NumPy's arrays
    monkeypatch.setattr(skimage.measure, "regionprops_table", lambda plane, **names: table(np.array(plane), **names))
    monkeypatch.setattr(cuda, "cucim_skimage", lambda: skimage)
    cuda._attributes.cache_clear()
    yield gpu_device.Gpu()
    cuda._attributes.cache_clear()


@pytest.mark.parametrize("check", gpu_checks.few_checks(), ids=lambda check: check.name)
def test_checks_pass_with_the_code_for_a_gpu(gpu, check):
    assert check.run(gpu)


def test_timings_run_with_the_code_for_a_gpu(gpu):
    bench = gpu_timings.Bench(gpu, synthetic.make_slide(110), gpu_timings.SMALL)
    names = "copies", "fused kernel, standard", "fused kernel, standard, 100 % shared memory"
    steps = [step for step in gpu_timings.kernel_steps(bench, lambda: bench) if step.name in names]
    by_name = entries_of(steps)
    facts = by_name["fused kernel, standard"]["kernels"][0]
    assert (facts["registers"], facts["blocks_per_multiprocessor"]) == (80, 2)
    assert len(by_name[names[-1]]["seconds"]) == 5
    entries_of(gpu_timings.label_steps(bench))
    assert gpu_timings.host_to_host(bench, "standard")["n_cells"] == len(bench.ids)
    assert gpu_baselines.by_hand(bench, "sparcspy")["share_far_off"] <= 1e-3
    gpu_baselines.reference_on_device(bench, "standard")
    gpu.release()


def test_facts_and_start_up_with_the_code_for_a_gpu(gpu, tmp_path, capsys):
    facts = gpu.facts()
    assert (facts["gpu"], facts["compute_capability"], facts["nvrtc"]) == ("NVIDIA NumPy", "9.0", "13.0")
    assert not gpu.is_broken()
    assert gpu_stages.start_up(gpu_stages.Run(tmp_path)) == 0
    assert json.loads(capsys.readouterr().out)["first_batch_seconds"] > 0


def test_cases_for_tools_run_with_the_code_for_a_gpu(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_stages.Run, "size", gpu_timings.SMALL)
    assert gpu_stages.profile_case(gpu_stages.Run(tmp_path)) == 0
    cases = json.loads((tmp_path / "profile-case.json").read_text())
    assert [case["preset"] for case in cases] == [*gpu_checks.PRESETS] * 2
    assert [case["n_cells"] for case in cases[:3]] == [gpu_predictions.N_CELLS] * 3
    assert all(case["kernels"] for case in cases)
    monkeypatch.setattr(gpu_checks, "sanitizer_checks", lambda: gpu_checks.few_checks()[:1])
    assert gpu_stages.sanitizer_case(gpu_stages.Run(tmp_path)) == 0


def test_arrays_without_a_pool_can_run_out_of_memory():
    gpu_device._NoPool(None).free_all_blocks()  # `CudaDevice.empty` calls it before it tries again


# compute-sanitizer and ncu


def fake_program(folder, name, body):
    program = folder / name
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    return str(program)


def test_the_output_of_the_sanitizer_is_kept(tmp_path):
    body = '[ "$3$4" = --report-api-errorsno ] || exit 3\n'
    body += 'if [ "$2" = memcheck ]; then echo "========= ERROR SUMMARY: 0 errors"; exit 0; fi\n'
    body += 'echo "========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)"; exit $6'
    program = fake_program(tmp_path, "compute-sanitizer", body)
    good, bad = (gpu_tools.sanitize(program, tool, ["true"], 60) for tool in ("memcheck", "racecheck"))
    assert good == {"ok": True, "lines": ["ERROR SUMMARY: 0 errors"]}
    summary = "RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)"
    assert (bad["ok"], bad["error"]) == (False, f"exit code {gpu_tools.FOUND}, {summary}")


def test_a_silent_missing_or_slow_sanitizer_does_not_pass(tmp_path, monkeypatch):
    silent = gpu_tools.sanitize(fake_program(tmp_path, "silent", "exit 0"), "memcheck", [], 60)
    assert (silent["ok"], silent["error"]) == (False, "exit code 0, no summary")
    slow = gpu_tools.sanitize(fake_program(tmp_path, "slow", "exec sleep 9"), "memcheck", [], 0.1)
    assert slow == {"skipped": "not finished after 0 s", "tail": []}
    monkeypatch.setattr(gpu_tools, "find", lambda program: None)
    steps = gpu_stages.sanitizers(gpu_stages.Run(tmp_path))
    assert [step.name for step in steps] == list(gpu_tools.SANITIZERS)
    for step in (*steps, *gpu_stages.profile(gpu_stages.Run(tmp_path))):
        with pytest.raises(ModuleNotFoundError, match="neither on PATH"):
            step.run()


def test_a_tool_is_killed_with_the_program_that_it_runs(tmp_path):
    program = fake_program(tmp_path, "tool", f"sh -c 'echo $$ > {tmp_path}/pid; sleep 600'\necho never")
    start = time.monotonic()
    assert gpu_tools.run_for([program], 1.0) == (None, "")
    assert time.monotonic() - start < 10
    assert not is_running(int((tmp_path / "pid").read_text()))


def test_programs_of_the_toolkit_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    (tmp_path / "nsight-compute-2025.3").mkdir()
    program = fake_program(tmp_path / "nsight-compute-2025.3", "ncu", "")
    assert gpu_tools.find("ncu") == program


CSV = """==PROF== Connected to process 1
==PROF== Profiling "extract" - 0: 0%....100% - 9 passes
"ID","Process ID","Kernel Name","Block Size","smsp__inst_executed.sum","gpu__time_duration.sum","device__name"
"","","","","inst","nsecond",""
"0","1","void extract<u16, __half>(...)","(256, 1, 1)","120,000","5000.5","NVIDIA H200"
"1","1","void extract<u16, __half>(...)","(256, 1, 1)","480000","n/a","NVIDIA H200"
==PROF== Disconnected
"""


def test_the_metrics_of_ncu_are_numbers():
    first, second = gpu_tools.launches_of(CSV)
    assert first["kernel"].startswith("void extract")
    assert first["metrics"] == {"smsp__inst_executed.sum": 120000.0, "gpu__time_duration.sum": 5000.5}
    assert second["metrics"] == {"smsp__inst_executed.sum": 480000.0}
    assert gpu_tools.launches_of("==ERROR== ERR_NVGPUCTRPERM") == []


def test_ncu_is_asked_for_less_if_it_refuses(tmp_path):
    (tmp_path / "csv").write_text(CSV)
    body = f"""case "$*" in *--section*) echo "==ERROR== no such section"; exit 1;; esac
while [ "$1" != --log-file ]; do shift; done
cat {tmp_path}/csv > $2"""
    program = fake_program(tmp_path, "ncu", body)
    assert len(gpu_tools.profile(program, ["true"], tmp_path / "log", 60)) == 2
    refusing = fake_program(tmp_path, "refusing", 'echo "==ERROR== ERR_NVGPUCTRPERM"; exit 1')
    with pytest.raises(RuntimeError, match=r"ncu failed: exit code 1: ==ERROR== ERR_NVGPUCTRPERM"):
        gpu_tools.profile(refusing, ["true"], tmp_path / "log2", 60)


def counts(tmp_path):
    path = tmp_path / "instructions.json"
    per_cell = {"warp_instructions": 60, "sectors_read": 5}
    found = {"standard": {"per_cell": per_cell, "cells_per_s_by_the_model": 4e6}}
    table = {"arch": "sm_90", "nvrtc": "13.5", "sources": cuda_source.fingerprint(), "recipes": found}
    path.write_text(json.dumps(table))
    return path


def test_what_was_counted_is_found(tmp_path):
    found = gpu_predictions.predicted("standard", counts(tmp_path))
    assert (found["warp_instructions"], found["cells_per_s"], found["for_these_kernels"]) == (60, 4e6, True)
    assert gpu_predictions.predicted("sparcspy", counts(tmp_path)) is None
    assert gpu_predictions.predicted("standard", tmp_path / "none.json") is None
    (tmp_path / "other.json").write_text("{}")
    assert gpu_predictions.predicted("standard", tmp_path / "other.json") is None


def test_the_profiled_cells_are_those_that_were_counted():
    recipes = pytest.importorskip("sass.recipes")
    for found, expected in zip(gpu_predictions.counted_cells("sparcspy"), recipes._task("sparcspy"), strict=True):
        for name in ("ids", "corners", "image"):
            assert np.array_equal(getattr(found, name, 0), getattr(expected, name, 0))


def case(preset, cells, *kernels):
    return {"preset": preset, "cells": cells, "n_cells": 2000, "kernels": kernels or ["extract"]}


def test_instructions_are_predicted_beside_measured(tmp_path, monkeypatch):
    path = counts(tmp_path)
    monkeypatch.setattr(gpu_stages, "predicted", lambda preset: gpu_predictions.predicted(preset, path))
    launches = gpu_tools.launches_of(CSV)
    cases = [case("standard", gpu_stages.COUNTED), case("sparcspy", gpu_stages.COUNTED)]
    one, other = gpu_stages.profile_entries(launches, cases)
    assert (one["name"], one["warp_instructions"]) == ("ncu, standard, counted cells", 60.0)
    assert one["measured_by_predicted"] == 1.0
    assert (other["warp_instructions"], other["predicted"]) == (240.0, None)
    assert gpu_evidence.in_words(one) == "60 warp instructions per cell; 1.000 of the prediction"
    assert "predicted" not in gpu_stages.profile_entries(launches, [case("standard", "all cells")])[0]
    with pytest.raises(ValueError, match="ncu saw 1 launches"):
        gpu_stages.profile_entries(launches[:1], cases)
    [one] = gpu_stages.profile_entries(launches, [case("standard", "all cells", "extract_fast", "extract")])
    assert (one["warp_instructions"], len(one["launches"])) == (300.0, 2)


def test_rates_are_predicted_beside_measured(bench, tmp_path, monkeypatch):
    path = counts(tmp_path)
    monkeypatch.setattr(gpu_timings, "predicted", lambda preset: gpu_predictions.predicted(preset, path))
    [found] = gpu_timings.fused_kernel(bench, "standard")
    assert found["measured_by_predicted"] == pytest.approx(found["cells_per_s"] / 4e6)
    assert "of the prediction" in gpu_evidence.in_words(found)


# What is written


def test_evidence_and_table():
    targets = [gpu_timings.Target("cells_per_s", least=1e6)]
    gpu = {"name": "properties", "gpu": "NVIDIA H200", "cupy": "14.2.0", "cucim": "26.10", "ok": True}

    def stage(*entries, outcome="ok"):
        return {"seconds": 1, "outcomes": [outcome], "deaths": [], "entries": list(entries)}

    results = {
        "facts": stage(gpu),
        "kernels": stage(gpu_timings.entry("fused", {"cells_per_s": 9e5}, *targets)),
        "host": stage({"name": "x", "skipped": "why"}, outcome="killed at the limit of time"),
        "checks": stage({"name": "one", "ok": True, "max_ulp": 1.0}, {"name": "two", "ok": False, "error": "E: no"}),
    }
    evidence = json.loads(json.dumps(gpu_evidence.assemble({"seconds": 3}, results)))
    assert evidence["facts"]["gpu"] == "NVIDIA H200"
    assert (evidence["ok"], evidence["missed"]) == (False, ["fused"])
    assert evidence["failed"] == ["host: killed at the limit of time", "checks: two"]
    assert evidence["skipped"] == ["host: x: why"]
    assert set(evidence["sources"]["kernels"]) >= {"extract.cu", "extract_fast.cu"}
    assert set(evidence["sources"]["launchers"]) >= {"cuda/backend.py", "cuda/batches.py", "cuda/extract.py"}
    text = gpu_evidence.table(evidence)
    assert "900,000 cells/s; cells_per_s 9e+05 (>= 1e+06 MISSED)" in text
    assert "checks: ok; 1 done, 1 failed, 0 skipped" in text
    assert text.endswith("FAILED: host: killed at the limit of time, checks: two")
    del results["checks"], results["host"]
    assert gpu_evidence.table(gpu_evidence.assemble({"seconds": 3}, results)).endswith("ok")


def test_only_a_gpu_that_cannot_be_opened_stops_everything():
    def facts(*entries):
        return {"outcomes": ["killed at the limit of time"], "entries": entries}

    opened, closed = {"name": "GPU", "ok": True}, {"name": "GPU", "ok": False, "error": "E: no driver"}
    unread = {"name": "properties", "ok": False, "error": "KeyError: 'name'"}
    assert gpu_evidence.why_no_gpu(facts(opened, unread)) is None
    assert gpu_evidence.why_no_gpu(facts(closed, unread)) == "E: no driver"
    assert gpu_evidence.why_no_gpu(facts()) == "killed at the limit of time"


def test_file_names_of_gpus():
    assert gpu_evidence.slug("NVIDIA H200") == "h200"
    assert gpu_evidence.slug("NVIDIA GeForce RTX 4090") == "geforce-rtx-4090"


def test_the_facts_of_this_machine():
    facts = gpu_stages.host_facts()
    assert facts["cores"] > 0
    json.dumps(facts)
    assert set(gpu_evidence.checkout()) == {"commit", "changed_since"}


def test_the_base_slide_is_made_once(tmp_path, monkeypatch):
    first = gpu_stages.base_slide(tmp_path, 120, 40)
    monkeypatch.setattr(synthetic, "make_slide", None)
    again = gpu_stages.base_slide(tmp_path, 120, 40)
    assert all((one == other).all() for one, other in zip(first, again, strict=True))


def test_the_record_is_complete_at_any_time(tmp_path):
    record = Record(tmp_path / "00-x.json")
    record.begin("one")
    assert Record(tmp_path / "00-x.json").running == ["one"]
    assert not list(tmp_path.glob("*.part"))
    assert gpu_record.CONTEXT_LOST not in (0, 1)
