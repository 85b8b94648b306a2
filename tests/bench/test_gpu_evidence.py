"""Tests of `bench/gpu_evidence.py` as far as possible without a GPU: on the CPU shim, with the smallest sizes."""

import json
import subprocess
import sys
import time
from pathlib import Path

import gpu_checks
import gpu_evidence
import gpu_sanitizer
import gpu_timings
import numpy as np
import pytest
import synthetic
from agreement import GPU_RTOL, assert_agrees
from cuda_on_cpu.device import ShimGpu

from gpu_extract import backends
from gpu_extract.backends import Backend
from gpu_extract.backends.cpu import backend as cpu
from gpu_extract.backends.cuda import backend as cuda
from gpu_extract.backends.cuda.batches import DeviceExtraction
from gpu_extract.backends.reference import HOST
from gpu_extract.model import BatchSize, CellImages

BENCH = Path(__file__).parents[2] / "bench"


class ShimEvidence:
    """The methods of `gpu_evidence.Gpu` on the CPU."""

    libraries = HOST

    def __init__(self):
        self._gpu = ShimGpu()
        self.device = self._gpu.stream()

    def open_stream(self):
        return self._gpu.stream()

    def open_backend(self):
        extraction = DeviceExtraction([self._gpu.stream() for _ in range(2)], print)
        return Backend("shim", extraction.extract, BatchSize(5), streams=2)

    def upload(self, array):
        copy = self.device.to_device(np.ascontiguousarray(array))
        self.device.synchronize()
        return copy

    def to_host(self, array):
        self.device.synchronize()
        return array

    def seconds(self, work, repeats, warm_up=1):
        times = []
        for _ in range(warm_up + 1):
            start = time.perf_counter()
            work()
            self.device.synchronize()
            times.append(time.perf_counter() - start)
        return times[warm_up:]

    def free_nbytes(self):
        return 8 << 30

    def release(self):
        pass

    def kernel_facts(self, kernel, shared_nbytes):
        return {"dynamic_shared_bytes": shared_nbytes}

    def facts(self):
        return {"name": "shim", "driver": None, "cupy": None}


def test_without_a_gpu_the_script_fails_with_one_line():
    if backends.why_not("cuda") is None:
        pytest.skip("there is a GPU")
    command = [sys.executable, str(BENCH / "gpu_evidence.py"), "--json", "/nowhere/at/all.json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("no evidence without a GPU: ")


def evidence_files():
    found = sorted((BENCH / "results").glob("gpu-*.json"))
    return found or [pytest.param(None, id="none")]


@pytest.mark.parametrize("path", evidence_files(), ids=lambda path: path.name)
def test_the_evidence_is_for_these_kernels(path):
    if path is None:
        pytest.skip("there is no GPU evidence yet: run bench/gpu_evidence.py on a machine with a GPU")
    evidence = json.loads(path.read_text(encoding="utf-8"))
    assert evidence["ok"], evidence["failed"]
    if evidence["sources"] != gpu_evidence.sources():
        pytest.skip(f"the GPU evidence in {path.name} is for older kernels: run bench/gpu_evidence.py again")


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


def test_one_ulp_is_reported_as_one():
    _, _, program, cells = batch_and_cells()
    images = cells.images.copy()
    at = tuple(np.argwhere(images[:, 2:] > 0.1)[0] + (0, 2, 0, 0))
    images.view(np.uint16)[at] += 1
    figures = gpu_checks.agreement(changed(cells, images=images), cells, program)
    assert figures["max_ulp"] == 1
    assert figures["equal"] == pytest.approx(1 - 1 / images.size)


@pytest.mark.parametrize(
    "check",
    [
        gpu_checks.extraction("HT29", lambda: gpu_checks.first_cells(gpu_checks.ht29("scportrait", 31), 4)),
        gpu_checks.extraction("scratch", lambda: gpu_checks.first_cells(gpu_checks.small(1), 4), shared_nbytes=0),
        gpu_checks.Check("labels", lambda gpu: gpu_checks.check_labels(lambda: np.arange(600).reshape(20, 30), gpu)),
        gpu_checks.Check("ops", lambda gpu: gpu_checks.check_ops(31, gpu)),
    ],
    ids=lambda check: check.name,
)
def test_checks_pass(check):
    [result] = gpu_checks.run_checks(ShimEvidence(), [check], float("inf"))
    assert result["ok"], result
    assert result["name"] == check.name


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
    [result] = gpu_checks.run_checks(Forgetful(), [check], float("inf"))
    assert not result["ok"]
    assert "not every element is written" in result["error"]


def test_failed_and_skipped_checks_are_distinguished():
    def wrong(gpu):
        raise gpu_checks.CheckError("off by one")

    def lacks_a_package(gpu):
        raise ModuleNotFoundError("No module named 'anndata'")

    some = [gpu_checks.Check("wrong", wrong), gpu_checks.Check("lacks", lacks_a_package)]
    one, other = gpu_checks.run_checks(None, some, float("inf"))
    assert (one["ok"], one["error"]) == (False, "CheckError: off by one")
    assert other["skipped"] == "No module named 'anndata'"
    late = gpu_checks.run_checks(None, some, time.monotonic() - 1)
    assert [result["skipped"] for result in late] == ["no time left"] * 2


def test_names_of_checks_are_unique():
    for some in (gpu_checks.checks(), gpu_checks.checks(quick=True), gpu_checks.sanitizer_checks()):
        names = [check.name for check in some]
        assert len(set(names)) == len(names) > 10


# Timings


def test_a_repeated_slide_has_unique_ids_and_all_cells():
    base = synthetic.make_slide(256)
    slide = gpu_timings.repeated(base, 3)
    assert slide.image.shape == (3, 768, 768)
    for plane, original in ((slide.nucleus, base.nucleus), (slide.cytosol, base.cytosol)):
        assert plane.dtype == original.dtype
        ids, counts = np.unique(plane[plane > 0], return_counts=True)
        assert len(ids) == 9 * len(np.unique(original[original > 0]))
        assert counts.sum() == 9 * np.count_nonzero(original)
    at = slide.nucleus > 0
    assert (slide.nucleus[at] == slide.cytosol[at]).all()
    assert (slide.image[:, 512:, 256:512] == base.image).all()


def test_a_slide_that_does_not_fit_has_fewer_repeats():
    large = 1 << 40
    assert gpu_timings.fitting_repeats(4096, 4, large, large) == 4
    assert gpu_timings.fitting_repeats(4096, 4, 6 << 30, large) == 2
    assert gpu_timings.fitting_repeats(4096, 4, large, 1 << 30) == 1


@pytest.fixture(scope="module")
def bench():
    return gpu_timings.Bench(ShimEvidence(), 160, 2, tile_size=24, device="cpu")


def test_every_timing_runs(bench, monkeypatch):
    monkeypatch.setattr(gpu_timings, "CELLS_PER_LAUNCH", 20)
    monkeypatch.setattr(gpu_timings, "REFERENCE_CELLS", 3)
    monkeypatch.setattr(gpu_timings, "TIMINGS", [t for t in gpu_timings.TIMINGS if t is not gpu_timings.start_up])
    entries = gpu_timings.run_timings(bench, float("inf"))
    assert not [entry for entry in entries if "targets" not in entry], entries
    json.dumps(entries)
    by_name = {entry["name"]: entry for entry in entries}
    fused = by_name["fused kernel, standard"]
    assert fused["bytes_per_cell"] == 24 * 24 * (2 * 4 + 3 * 2 + 5 * 2)
    assert fused["GB_per_s"] == pytest.approx(fused["cells_per_s"] * fused["bytes_per_cell"] / 1e9)
    assert [target["figure"] for target in fused["targets"]] == ["cells_per_s", "share_of_copy"]
    slow = by_name["CuPy reference, sparcspy"]
    assert slow["ratio"] == pytest.approx(by_name["fused kernel, sparcspy"]["cells_per_s"] / slow["cells_per_s"])
    assert len(by_name) == 3 + 3 + 1 + 3 + 1 + 3 + 3


def test_the_issue_counts_the_same_bytes(bench):
    program = bench.plan_of("standard").program
    assert gpu_timings.tiles_nbytes(program, 4, 2) * (128 / 24) ** 2 == pytest.approx(393_216)


def test_failed_and_skipped_timings_are_distinguished(bench, monkeypatch):
    def broken(bench):
        raise ValueError("no")

    monkeypatch.setattr(gpu_timings, "TIMINGS", [broken])
    [result] = gpu_timings.run_timings(bench, float("inf"))
    assert (result["ok"], result["error"]) == (False, "ValueError: no")
    [result] = gpu_timings.run_timings(bench, time.monotonic() - 1)
    assert result["skipped"] == "no time left"


def test_targets():
    entry = gpu_timings.entry("x", {"a": 2.0, "b": None}, *(gpu_timings.Target(f, least=1.0) for f in "ab"))
    assert [target["met"] for target in entry["targets"]] == [True, None]
    slow = gpu_timings.entry("x", {"a": 2.0}, gpu_timings.Target("a", most=1.0))
    assert slow["targets"] == [{"figure": "a", "at_most": 1.0, "measured": 2.0, "met": False}]


def test_start_up_is_measured_in_new_processes(bench, monkeypatch):
    calls = []

    def run(command, env, **options):
        calls.append((command[-1], env["CUPY_CACHE_DIR"]))
        line = json.dumps({"first_batch_seconds": 3.0, "second_batch_seconds": 0.1})
        return subprocess.CompletedProcess(command, 0, f"{line}\n", "")

    monkeypatch.setattr(gpu_timings.subprocess, "run", run)
    cold, warm = gpu_timings.start_up(bench)
    assert calls[0] == calls[1]
    assert cold["targets"][0]["met"]
    assert not warm["targets"][0]["met"]


def test_start_up_itself(monkeypatch):
    monkeypatch.setattr(cuda, "reference_libraries", lambda: HOST)
    monkeypatch.setattr(backends, "choose", lambda name: ShimEvidence().open_backend())
    figures = gpu_evidence.start_up()
    assert figures["second_batch_seconds"] > 0
    assert figures["first_batch_seconds"] > 0


# compute-sanitizer


def fake_sanitizer(folder, body):
    program = folder / "compute-sanitizer"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    return str(program)


def test_the_output_of_the_sanitizer_is_kept(tmp_path):
    body = 'if [ "$2" = memcheck ]; then echo "========= ERROR SUMMARY: 0 errors"; exit 0; fi\n'
    body += 'echo "========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)"; exit $4'
    good, bad = gpu_sanitizer.run_sanitizer(time.monotonic() + 60, fake_sanitizer(tmp_path, body))
    assert (good["ok"], good["lines"]) == (True, ["ERROR SUMMARY: 0 errors"])
    assert (bad["ok"], bad["exit_code"]) == (False, gpu_sanitizer.FOUND)
    assert bad["lines"] == ["RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)"]


def test_a_silent_missing_or_slow_sanitizer_does_not_pass(tmp_path, monkeypatch):
    silent = gpu_sanitizer.run_sanitizer(time.monotonic() + 60, fake_sanitizer(tmp_path, "exit 0"))
    assert [result["ok"] for result in silent] == [False, False]
    slow = gpu_sanitizer.run_sanitizer(time.monotonic() - 1, fake_sanitizer(tmp_path, "exec sleep 9"))
    assert [result["skipped"] for result in slow] == ["no time left"] * 2
    monkeypatch.setattr(gpu_sanitizer, "find_sanitizer", lambda: None)
    missing = gpu_sanitizer.run_sanitizer(time.monotonic() + 60)
    assert all("neither on PATH" in result["skipped"] for result in missing)


# What is written


def test_evidence_and_table():
    targets = [gpu_timings.Target("cells_per_s", least=1e6)]
    sections = {
        "checks": [{"name": "one", "ok": True, "max_ulp": 1.0}, {"name": "two", "ok": False, "error": "E: no"}],
        "timings": [gpu_timings.entry("fused", {"cells_per_s": 9e5}, *targets), {"name": "x", "skipped": "why"}],
        "sanitizer": [{"name": "memcheck", "ok": True, "lines": ["ERROR SUMMARY: 0 errors"]}],
    }
    facts = {"gpu": {"name": "NVIDIA H200", "driver": "580", "cupy": "14"}, "seconds": 3}
    evidence = json.loads(json.dumps(gpu_evidence.assemble(facts, sections, ["a note"])))
    assert (evidence["ok"], evidence["failed"], evidence["missed"]) == (False, ["two"], ["fused"])
    assert evidence["skipped"] == ["x: why"]
    assert set(evidence["sources"]["kernels"]) >= {"extract.cu"}
    assert set(evidence["sources"]["launchers"]) >= {
        "cuda/backend.py",
        "cuda/batches.py",
        "cuda/extract.py",
        "cuda/registry.py",
        "cuda/device.py",
    }
    text = gpu_evidence.table(evidence)
    assert "900,000 cells/s; cells_per_s 9e+05 (>= 1e+06 MISSED)" in text
    assert "checks: 1 of 2 passed, 0 skipped" in text
    assert text.endswith("FAILED: two")
    sections["checks"].pop()
    assert gpu_evidence.table(gpu_evidence.assemble(facts, sections, [])).endswith("ok")


def test_all_sections_run_in_order(bench, monkeypatch):
    check = gpu_checks.Check("one", lambda gpu: {"max_ulp": 0.0})
    monkeypatch.setattr(gpu_evidence, "checks", lambda quick: [check])
    monkeypatch.setattr(gpu_evidence, "Bench", lambda gpu, size, repeats: bench)
    monkeypatch.setattr(gpu_timings, "TIMINGS", [gpu_timings.copy_bandwidth])
    monkeypatch.setattr(gpu_evidence, "run_sanitizer", lambda deadline: [{"name": "memcheck", "skipped": "none"}])
    evidence = json.loads(json.dumps(gpu_evidence.gather(ShimEvidence(), quick=True)))
    assert evidence["ok"]
    assert evidence["notes"][0].startswith("slide 320 x 320, 3 uint16 channels")
    assert [len(evidence[section]) for section in ("checks", "timings", "sanitizer")] == [1, 3, 1]

    def no_memory(gpu, size, repeats):
        raise MemoryError("3 GB")

    monkeypatch.setattr(gpu_evidence, "Bench", no_memory)
    evidence = gpu_evidence.gather(ShimEvidence(), quick=True)
    assert evidence["failed"] == ["the slide"]
    assert "MemoryError: 3 GB" in gpu_evidence.table(evidence)


def test_file_names_of_gpus():
    assert gpu_evidence.slug("NVIDIA H200") == "h200"
    assert gpu_evidence.slug("NVIDIA GeForce RTX 4090") == "geforce-rtx-4090"


def test_the_facts_of_this_machine():
    facts = gpu_evidence.facts_of_the_host()
    assert facts["cores"] > 0
    json.dumps(facts)
