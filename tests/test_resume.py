"""`resume=True` and ``--resume``: from any end to the file of an uninterrupted run, or an error that says why not."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress

import h5py
import numpy as np
import pytest
import tifffile
from made.comparing import logical_content
from made.slides import small_slide

import gpu_extract as gx
from gpu_extract import pipeline, planning
from gpu_extract.model import BatchSize, Slide
from gpu_extract.sources import retries
from gpu_extract.store import chunk_log

IDS = list(range(1, 60))
OPTIONS = {"tile_size": 16, "border": "keep", "device": "cpu", "threads": 2}
RUN = ["run", "image.tif", "--nucleus", "nucleus.tif", "--cytosol", "cytosol.tif", "-o", "cells.h5sc"]


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    """Read few cells at a time, and make every batch durable at once."""
    monkeypatch.setattr(
        pipeline, "batches", lambda plan, batch_size, chunk_cells: planning.batches(plan, BatchSize(4), chunk_cells)
    )
    monkeypatch.setattr(chunk_log, "CHECKPOINT_NBYTES", 1)


@pytest.fixture
def slides(tmp_path):
    """Two slides: arrays, and files with metadata; a channel is flat in both."""
    found = []
    for seed in (1, 2):
        image, nucleus, cytosol = small_slide(seed, size=(200, 230), ids=IDS)
        image[2] = 7
        found.append({"image": image, "nucleus": nucleus, "cytosol": cytosol, "dose": str(seed)})
    tifffile.imwrite(tmp_path / "image.tif", found[1]["image"], photometric="minisblack")
    np.save(tmp_path / "nucleus.npy", found[1]["nucleus"])
    return [found[0], found[1] | {"image": tmp_path / "image.tif", "nucleus": tmp_path / "nucleus.npy"}]


def stop_at(n):
    def progress(n_cells, total):
        if n_cells >= n:
            raise KeyboardInterrupt

    return progress


def stopped(slides, output, n=40, **options):
    with pytest.raises(KeyboardInterrupt, match=r"go on with --resume \(resume=True\)$"):
        gx.extract_many(slides, output=output, progress=stop_at(n), **OPTIONS | options)


@pytest.mark.parametrize(
    ("n", "options"),
    [
        (4, {}),
        (70, {"compression": "none"}),
        (70, {"compression": "lz4", "layout": "sparcspy"}),
        (40, {"chunk_cells": 5}),
        (70, {"quantile_scope": "dataset", "unique_ids": True}),
        (4, {"quantile_scope": "slide", "layout": "sparcspy", "planes": [0, 2, 3], "compression": "none"}),
        (40, {"device": "reference"}),
    ],
)
def test_a_resumed_file_is_that_of_an_uninterrupted_run(slides, tmp_path, options, n):
    whole = gx.extract_many(slides, output=tmp_path / "whole.h5sc", **OPTIONS | options)
    output = tmp_path / "cells.h5sc"
    stopped(slides, output, n, **options)
    counts = []
    report = gx.extract_many(
        slides,
        output=output,
        resume=True,
        progress=lambda *each: counts.append(each),
        **OPTIONS | {"threads": 3} | options,
    )
    assert 0 < n <= report.resumed < report.n_cells == whole.n_cells
    assert counts[0][0] > report.resumed
    assert counts[-1] == (report.n_cells, report.n_cells)
    assert report.warnings == whole.warnings
    assert any("is flat" in line for line in report.warnings)
    assert logical_content(output) == logical_content(tmp_path / "whole.h5sc")
    assert not list(tmp_path.glob("cells.h5sc.*"))


def test_only_cells_that_are_not_durable_are_read_again(slides, tmp_path, monkeypatch):
    stopped(slides, tmp_path / "cells.h5sc", 70, quantile_scope="slide")
    read = []
    original = Slide.read
    monkeypatch.setattr(Slide, "read", lambda slide, box: read.append(slide.name) or original(slide, box))
    monkeypatch.setattr("gpu_extract.inputs.announce", lambda *values: None)
    monkeypatch.setattr("gpu_extract.planning.with_checked_images", lambda plan, trust, statistics: plan)
    report = gx.extract_many(slides, output=tmp_path / "cells.h5sc", resume=True, quantile_scope="slide", **OPTIONS)
    assert len(read) <= -(-(report.n_cells - report.resumed) // 4) + 16  # bands end with smaller batches
    assert set(read) == {"image"}


def test_without_remains_a_run_begins(slides, tmp_path):
    report = gx.extract_many(slides, output=tmp_path / "cells.h5sc", resume=True, **OPTIONS)
    assert report.resumed == 0


def test_a_finished_file_is_reported_and_left_alone(files, call):
    options = ("--size", "16", "--border", "keep", "--resume")
    assert call(*RUN, *options)[0] == 0
    before = written_at(files / "cells.h5sc")
    code, out, _ = call(*RUN, *options)
    assert code == 0
    assert re.fullmatch(r"cells.h5sc: 23 cells, .* MB; complete before, nothing was left to do\n", out)
    assert written_at(files / "cells.h5sc") == before
    assert not list(files.glob("cells.h5sc.*"))
    code, out, err = call(*RUN, *options, "--compression", "lzf")
    assert (code, out) == (1, "")
    assert "cells.h5sc was made from other inputs or in another way (compression: lzf now, gzip then)" in err
    assert written_at(files / "cells.h5sc") == before


def written_at(path):
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def test_a_stopped_command_line_goes_on(files, call, monkeypatch):
    options = ("--size", "16", "--border", "keep")
    with monkeypatch.context() as patch:
        patch.setattr("gpu_extract.progress._Log.update", stop_for_terminal)
        code, _, err = call(*RUN, *options)
    assert code == 3
    assert re.search(r"stopped at \d+ of 23 cells, which are kept in cells.h5sc.partial; go on with --resume", err)
    code, _, err = call(*RUN, *options)
    assert code == 1
    assert re.search(
        r"cells.h5sc.partial holds \d+ of 23 cells of an unfinished run; go on with --resume \(resume=True\), or start "
        r"again with --overwrite \(overwrite=True\)\n$",
        err,
    )
    code, out, err = call(*RUN, *options, "--resume", "--overwrite")
    assert (code, out) == (1, "")
    assert "resume and overwrite were both given" in err
    code, out, _ = call(*RUN, *options, "--resume")
    assert code == 0
    assert re.match(r"cells.h5sc: 23 cells, .* MB; \d+ of them were written before\n", out)


def stop_for_terminal(self, n_done, total):
    if n_done >= 8:
        raise KeyboardInterrupt


@pytest.fixture
def refused(slides, tmp_path):
    """A stopped run; a function checks that another one is refused with a difference, and touches nothing."""
    output = tmp_path / "cells.h5sc"
    stopped(slides, output)
    before = {entry.name: entry.read_bytes()[256:] for entry in tmp_path.glob("cells*")}

    def check(difference, changed=None, **options):
        with pytest.raises(gx.OutputError, match=difference) as error:
            gx.extract_many(changed or slides, output=output, resume=True, **OPTIONS | options)
        assert "\n" not in str(error.value)
        assert {entry.name: entry.read_bytes()[256:] for entry in tmp_path.glob("cells*")} == before

    return check


def test_other_options_are_refused_by_name(refused, slides):
    refused("recipe nucleus_dilation: 3 now, 2 then", nucleus_dilation=3)
    refused("compression: zstd now, gzip then", compression="zstd")
    refused("device: reference now, cpu then", device="reference")
    refused("number of cells: ", n_cells=30)
    refused("slide slide metadata dose: 9 now, 1 then", [slides[0] | {"dose": "9"}, slides[1]])
    refused("slide image ", slides[:1])


def test_a_changed_byte_in_the_middle_of_an_image_is_refused(refused, tmp_path):
    image = tmp_path / "image.tif"
    status = image.stat()
    with open(image, "r+b") as file:
        file.seek(status.st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    refused(r"input of image image .*image\.tif modified: 20.* UTC now, 20.* UTC then")
    with open(image, "r+b") as file:  # the same time, and another beginning
        file.seek(status.st_size // 2)
        file.write(bytes([byte]))
        file.seek(-1, os.SEEK_END)
        file.write(b"?")
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    refused(r"image\.tif sample: ")


def test_another_array_is_refused(refused, slides):
    refused("input of slide image sample", [slides[0] | {"image": slides[0]["image"] + 1}, slides[1]])


def test_the_file_says_what_it_was_made_from(slides, tmp_path):
    gx.extract_many(slides, output=tmp_path / "cells.h5sc", **OPTIONS)
    with gx.open_cells(tmp_path / "cells.h5sc") as cells:
        inputs = json.loads(cells.info["inputs"])
        assert cells.info["device"] == "cpu"
    assert inputs["slide"]["image"].keys() == {"shape", "dtype", "sample"}
    assert inputs["image"]["image"][str(tmp_path / "image.tif")]["bytes"] == (tmp_path / "image.tif").stat().st_size


def failing_read(monkeypatch, n, error, times=1000):
    """Make the n-th read of a window fail with an error of the system, some times."""
    calls = iter(range(n + times))
    original = Slide.read

    def read(slide, box):
        if next(calls, -1) >= n:
            try:
                raise OSError(error, os.strerror(error))
            except OSError as cause:
                raise gx.SourceError("image a.tif cannot be read: it fails") from cause
        return original(slide, box)

    monkeypatch.setattr(Slide, "read", read)
    monkeypatch.setattr(retries, "PAUSES", (0, 0, 0))
    monkeypatch.setattr("gpu_extract.planning.with_checked_images", lambda plan, trust, statistics: plan)
    return calls


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENOMEM])
def test_a_failure_that_passes_is_not_noticed(slides, tmp_path, monkeypatch, error):
    calls = failing_read(monkeypatch, 10, error, times=3)
    report = gx.extract_many(slides, output=tmp_path / "cells.h5sc", **OPTIONS)
    assert report.n_cells > 70
    assert next(calls, None) is None


def test_a_failure_that_lasts_keeps_all_that_is_durable(slides, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        failing_read(patch, 15, errno.EIO)
        with pytest.raises(gx.RunStoppedError) as error:
            gx.extract_many(slides, output=tmp_path / "cells.h5sc", **OPTIONS)
    assert re.fullmatch(
        r"slide slide: image a.tif cannot be read: it fails; \d+ of \d+ cells are kept in .*cells.h5sc.partial; go on "
        r"with --resume \(resume=True\)",
        str(error.value),
    )
    assert isinstance(error.value.__cause__, gx.SourceError)
    report = gx.extract_many(slides, output=tmp_path / "cells.h5sc", resume=True, **OPTIONS)
    assert report.resumed > 0


@pytest.mark.parametrize("n", [0, 3])
def test_damage_in_mid_run_ends_with_exit_code_3_if_anything_is_kept(files, call, monkeypatch, n):
    failing_read(monkeypatch, n, errno.ENOENT)
    code, _, err = call(*RUN, "--size", "16", "--border", "keep")
    assert code == (3 if n else 1)
    assert len(list(files.glob("cells*"))) == (2 if n else 0)
    assert ("go on with --resume" in err) == bool(n)


# Runs until it has reported some cells, and kills itself.
KILLED = """
import os, signal, sys
import gpu_extract as gx
from gpu_extract import pipeline, planning
from gpu_extract.model import BatchSize
from gpu_extract.store import chunk_log

append = chunk_log.ChunkLog.append
chunk_log.ChunkLog.append = lambda log, encoded: (append(log, encoded), log.checkpoint())
pipeline.batches = lambda plan, size, chunk_cells: planning.batches(plan, BatchSize(4), chunk_cells)

def progress(n_cells, total):
    if n_cells >= int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)

if int(sys.argv[1]) < 0:
    chunk_log.ChunkLog.sync = lambda self: os.kill(os.getpid(), signal.SIGKILL)  # in the finish
    progress = None
gx.extract("image.tif", nucleus="nucleus.tif", cytosol="cytosol.tif", output="cells.h5sc", tile_size=16, border="keep",
           device="cpu", compression=sys.argv[2], progress=progress)
"""


def killed_and_resumed(folder, n, compression):
    options = {"tile_size": 16, "border": "keep", "device": "cpu", "compression": compression}
    slide = {"image": "image.tif", "nucleus": "nucleus.tif", "cytosol": "cytosol.tif"}
    gx.extract(slide.pop("image"), **slide, output="whole.h5sc", **options)
    command = [sys.executable, "-c", KILLED, str(n), compression]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (folder / "cells.h5sc").exists()
    report = gx.extract("image.tif", **slide, output="cells.h5sc", resume=True, **options)
    assert logical_content("cells.h5sc") == logical_content("whole.h5sc")
    assert not list(folder.glob("cells.h5sc.*"))
    return report.resumed


def test_a_killed_process_is_resumed(files):
    assert killed_and_resumed(files, 12, "gzip") == 12


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["gzip", "none"])
@pytest.mark.parametrize("n", [*range(1, 24, 2), -1])
def test_a_killed_process_is_resumed_many_times(files, n, compression):
    resumed = killed_and_resumed(files, n, compression)
    assert resumed >= (23 if n < 0 else n)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_the_command_killed_at_random_moments_is_resumed(tmp_path, seed):
    y, x = np.mgrid[:2400, :2400]
    cells = np.where((y % 24 > 4) & (x % 24 > 4), y // 24 * 100 + x // 24 + 1, 0)
    np.save(tmp_path / "nucleus.npy", cells)
    np.save(tmp_path / "image.npy", np.random.default_rng(seed).integers(0, 60_000, (3, *cells.shape), np.uint16))
    options = ["--size", "64", "--device", "cpu", "--compression", ("gzip", "none")[seed % 2], "--quiet"]
    command = [sys.executable, "-m", "gpu_extract", "run", "image.npy", "--nucleus", "nucleus.npy", *options]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

    def start(output):
        return subprocess.Popen([*command, "-o", output, "--resume"], cwd=tmp_path, env=environment)

    assert start("whole.h5sc").wait() == 0
    whole, moments = logical_content(tmp_path / "whole.h5sc"), np.random.default_rng(seed).uniform(1, 6, 8)
    for seconds in moments:
        child = start("cells.h5sc")
        with suppress(subprocess.TimeoutExpired):
            assert child.wait(seconds) == 0
        child.kill()
        child.wait()
        if (tmp_path / "cells.h5sc").exists():
            assert logical_content(tmp_path / "cells.h5sc") == whole
    assert start("cells.h5sc").wait() == 0
    assert logical_content(tmp_path / "cells.h5sc") == whole
    assert not list(tmp_path.glob("cells.h5sc.*"))


def test_a_dead_run_that_was_planning_is_in_nobodys_way(slides, tmp_path):
    from gpu_extract.store import claim_output

    claim = claim_output(tmp_path / "cells.h5sc")
    with pytest.raises(gx.OutputError, match=rf"another run is writing .*process {os.getpid()} on "):
        gx.extract_many(slides, output=tmp_path / "cells.h5sc", **OPTIONS)
    os.close(claim.journal)  # as a kill does
    assert (tmp_path / "cells.h5sc.journal").exists()
    gx.extract_many(slides, output=tmp_path / "cells.h5sc", **OPTIONS)
    assert not list(tmp_path.glob("cells.h5sc.*"))


def test_a_second_run_is_refused_before_it_reads_anything(slides, tmp_path, monkeypatch):
    from gpu_extract.store import claim_output

    monkeypatch.setattr("gpu_extract.api.plan_slides", None)
    with claim_output(tmp_path / "cells.h5sc"), pytest.raises(gx.OutputError, match="another run is writing"):
        gx.extract_many(slides, output=tmp_path / "cells.h5sc", **OPTIONS)


def test_a_run_that_cannot_be_planned_leaves_nothing(slides, tmp_path):
    with pytest.raises(gx.InputError):
        gx.extract_many(slides, output=tmp_path / "a" / "cells.h5sc", **OPTIONS | {"ids": [999]})
    assert not (tmp_path / "a").exists()


def test_a_file_without_cells_is_resumed(tmp_path):
    empty = {"image": np.ones((1, 30, 30), "u1"), "nucleus": np.zeros((30, 30), "u1")}
    for _ in range(2):
        report = gx.extract_many([empty], output=tmp_path / "cells.h5sc", allow_empty=True, resume=True, **OPTIONS)
        assert (report.n_cells, report.resumed) == (0, 0)
    with h5py.File(tmp_path / "cells.h5sc") as file:
        assert len(file["obsm/single_cell_images"]) == 0


def test_slides_in_another_order_are_refused(slides, tmp_path):
    """Their cells have the same ids and places, as those of one field in two rounds of staining."""
    first = slides[0]
    second = first | {"image": first["image"][:, ::-1, ::-1].copy()}
    rounds = [
        gx.SlideInput(each["image"], each["nucleus"], each["cytosol"], name=name)
        for each, name in ((first, "A"), (second, "B"))
    ]
    output = tmp_path / "cells.h5sc"
    stopped(rounds, output, trust="placement")
    with pytest.raises(gx.OutputError, match=r'order of slides: \["B", "A"\] now, \["A", "B"\] then'):
        gx.extract_many(rounds[::-1], output=output, resume=True, trust="placement", **OPTIONS)
    gx.extract_many(rounds, output=output, resume=True, trust="placement", **OPTIONS)
    with pytest.raises(gx.OutputError, match="order of slides"):
        gx.extract_many(rounds[::-1], output=output, resume=True, trust="placement", **OPTIONS)


@pytest.mark.parametrize("scope", ["cell", "slide", "dataset"])
def test_only_the_finish_may_be_left(slides, tmp_path, scope):
    n_cells = len(gx.plan_many(slides, tile_size=16, border="keep").cells)
    stopped(slides, tmp_path / "cells.h5sc", n_cells, quantile_scope=scope)
    report = gx.extract_many(slides, output=tmp_path / "cells.h5sc", resume=True, quantile_scope=scope, **OPTIONS)
    assert report.resumed == report.n_cells == n_cells


@pytest.mark.parametrize("is_there", [True, False])
def test_cells_that_were_lost_are_told(slides, tmp_path, is_there):
    output = tmp_path / "cells.h5sc"
    stopped(slides, output)
    partial = tmp_path / "cells.h5sc.partial"
    if is_there:
        os.truncate(partial, partial.stat().st_size - 20)
    else:
        partial.unlink()
    with pytest.warns(gx.ExtractionWarning, match=r"\d+ cells that .*journal lists are .*; they are extracted again"):
        report = gx.extract_many(slides, output=output, resume=True, **OPTIONS)
    assert report.resumed < 40
