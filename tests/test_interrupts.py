import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from gpu_extract import interrupts

SLIDE = ["image.tif", "--nucleus", "nucleus.tif", "--cytosol", "cytosol.tif", "--size", "24", "--quiet"]
RUN = ["run", *SLIDE, "-o", "cells.h5sc"]

# A parent such as nohup may ignore SIGINT; the console script calls `main` as this does.
START = """
import os, signal, threading
signal.signal(signal.SIGINT, signal.{handler})
from gpu_extract.__main__ import main
"""
CONSOLE_SCRIPT = START.format(handler="default_int_handler")

# Stands for a library whose import takes long, and that swallows what is raised meanwhile.
SLOW_LIBRARY = """
import sys
print("importing", flush=True)
try:
    sys.stdin.read()
except BaseException:
    pass
print("imported")
sys.exit(0)
"""


def start(*arguments, **more):
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, *arguments], text=True, **(pipes | more))


def stopped(*arguments):
    """Run a script that stops itself; return its exit code and the lines on stderr."""
    done = subprocess.run([sys.executable, "-c", *arguments], capture_output=True, text=True, check=False, timeout=100)
    return done.returncode, done.stderr.splitlines()


def test_the_console_script_handles_signals_before_it_imports():
    project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"gpu-extract": "gpu_extract.__main__:main"}


@pytest.fixture
def slow_import(tmp_path, monkeypatch):
    """Put a library that is slow to import in the place of typer."""
    (tmp_path / "typer.py").write_text(SLOW_LIBRARY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)


@pytest.mark.parametrize(
    ("entry", "number"),
    [
        (("-c", CONSOLE_SCRIPT + "main()"), signal.SIGINT),
        (("-c", CONSOLE_SCRIPT + "main()"), signal.SIGTERM),
        (("-m", "gpu_extract"), signal.SIGTERM),
    ],
    ids=["SIGINT", "SIGTERM", "module"],
)
def test_a_signal_during_an_import(slow_import, entry, number):
    with start(*entry, "--version") as process:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=100)
    assert (process.returncode, out, err) == (3, "", "gpu-extract: stopped\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_the_parent_ignores_stays_ignored(slow_import, number):
    with start("-c", START.format(handler="SIG_IGN") + f"signal.signal({number:d}, signal.SIG_IGN)\nmain()") as process:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=100)
    assert (process.returncode, out, err) == (0, "imported\n", "")


STOP = "os.kill(os.getpid(), signal.SIGINT)"


def test_a_stopped_plan_removes_its_temporary_files(files, monkeypatch):
    (files / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(files / "temporary"))
    code = f"from gpu_extract import pipeline\ndef run(*_): {STOP}; threading.Event().wait()\npipeline.run = run\n"
    assert stopped(CONSOLE_SCRIPT + code + "main()", "plan", *SLIDE, "-q") == (3, ["gpu-extract: stopped"])
    assert os.listdir("temporary") == []


def test_a_stopped_run_does_not_wait_for_the_compiler(files):
    """The thread that computes sends the signal, and then never returns."""
    code = f"from gpu_extract import pipeline\ndef join(*_): {STOP}; threading.Event().wait()\n"
    code += "pipeline.as_single_part = lambda extract: join\n"
    before = sorted(os.listdir())
    assert stopped(CONSOLE_SCRIPT + code + "main()", *RUN, "-q", "--device", "reference") == (
        3,
        ["gpu-extract: stopped before any cell was written"],
    )
    assert sorted(os.listdir()) == before


def test_a_second_signal_ends_a_run_that_is_stopping():
    code = f"""
from gpu_extract import interrupts
interrupts.install()
with interrupts.raised():
    try:
        {STOP}
        threading.Event().wait()
    except KeyboardInterrupt:
        {STOP}
        threading.Event().wait()
"""
    assert stopped(CONSOLE_SCRIPT + code) == (3, ["gpu-extract: stopped"])


def test_the_cursor_of_a_terminal_is_shown_again():
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    code = f"from gpu_extract import interrupts\ninterrupts.install()\n{STOP}\nthreading.Event().wait()"
    with start("-c", CONSOLE_SCRIPT + code, stderr=theirs) as process:
        process.wait(timeout=100)
    os.close(theirs)
    assert os.read(ours, 100) == b"\r\x1b[?25hgpu-extract: stopped\r\n"
    os.close(ours)


def test_outside_the_block_no_signal_is_raised():
    with interrupts.raised():
        assert interrupts._is_raised
    assert not interrupts._is_raised
