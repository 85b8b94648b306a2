"""The progress of a run: rates and lines."""

import io
import sys
import threading
import types

import pytest

from gpu_extract import progress
from gpu_extract.messages import announce
from gpu_extract.progress import RecentRate, progress_on_stderr, shown


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_the_rate_leaves_out_what_came_before_the_first_cells():
    clock = Clock()
    rate = RecentRate(20.0, clock)
    clock.now += 30  # compilation
    assert rate.update(64) is None
    clock.now += 1
    assert rate.update(1064) == pytest.approx(1000)


def test_the_rate_is_that_of_the_last_seconds():
    clock = Clock()
    rate = RecentRate(20.0, clock)
    n_cells = 0
    for speed in [10] * 100 + [500] * 25:
        n_cells += speed
        clock.now += 1
        found = rate.update(n_cells)
    assert found == pytest.approx(500)


def test_two_records_at_one_time_have_no_rate():
    rate = RecentRate(20.0, Clock())
    assert (rate.update(1), rate.update(2)) == (None, None)


@pytest.fixture
def clock(monkeypatch):
    """Make a clock that the test moves."""
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    monkeypatch.setattr(RecentRate.__init__, "__defaults__", (20.0, clock))
    return clock


def test_log_lines_tell_the_remaining_time_at_the_recent_rate(clock, capsys):
    log = progress._Log()
    clock.now += 30
    log.update(64, 10064)
    log.tick()
    for n in range(1, 21):
        clock.now += 1
        log.update(64 + 500 * n, 10064)
        log.tick()
    first, second, last = capsys.readouterr().err.splitlines()
    assert first == "64 of 10,064 cells"
    assert second == "5,064 of 10,064 cells, 500 cells/s, 10 s left"
    assert last == "10,064 of 10,064 cells, 500 cells/s"


def test_a_log_has_each_phase_that_lasts_and_its_counts_every_ten_seconds(clock, capsys):
    log = progress._Log()
    log.announce("opening", "opening")
    for number in range(1, 101):
        log.announce("reading slide %d of 100", f"reading slide {number} of 100")
        clock.now += 0.5
        log.tick()
    log.announce("planning", "planning")
    log.announce("extracting", "extracting")
    for _ in range(100):
        clock.now += 1
        log.tick()
    expected = [f"reading slide {number} of 100" for number in (1, 21, 41, 61, 81)]
    assert capsys.readouterr().err.splitlines() == [*expected, "extracting"]


def test_a_log_shows_a_phase_while_it_lasts(monkeypatch, capsys):
    shown = threading.Event()
    monkeypatch.setattr(progress, "TICK", 0.001)
    monkeypatch.setattr(progress, "print", lambda *line, **where: (print(*line, **where), shown.set()), raising=False)
    with progress_on_stderr(quiet=False):
        announce("planning")
        assert shown.wait(60)
    announce("extracting %s cells", "1,000")
    assert capsys.readouterr().err == "planning\n"


def test_quiet_shows_nothing(capsys):
    with progress_on_stderr(quiet=True) as show:
        announce("planning")
        show(1, 2)
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_a_bar_with_the_phase_and_the_cells(monkeypatch, capsys):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    with progress_on_stderr(quiet=False, doing="verifying") as show:
        announce("opening input %d of %d", 1, 2)
        show(5, 10)
        show(10, 10)
    err = capsys.readouterr().err
    assert "verifying" in err
    assert "10 of 10 cells" in err
    assert err.count("\n") <= err.count("\x1b[1A")  # nothing of it stays


def test_a_notebook_shows_a_bar_of_tqdm(monkeypatch, capsys):
    class Bar(io.StringIO):
        """What tqdm's bar offers here."""

        def __init__(self, desc, unit):
            super().__init__()
            self.n, self.total, self.shown = 0, None, [desc]
            bars.append(self)

        def set_description(self, text, refresh=True):
            self.shown.append(text)

        def reset(self, total):
            self.total = total

        def update(self, n):
            self.n += n

    bars = []
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: False)
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    auto = types.ModuleType("tqdm.auto")
    auto.tqdm = Bar
    monkeypatch.setitem(sys.modules, "tqdm", types.ModuleType("tqdm"))
    monkeypatch.setitem(sys.modules, "tqdm.auto", auto)
    monkeypatch.setattr(progress, "find_spec", lambda name: name == "tqdm")
    with progress_on_stderr(quiet=False) as show:
        announce("planning")
        show(3, 10)
        show(10, 10)
    assert [(bar.n, bar.total, bar.shown) for bar in bars] == [
        (10, 10, ["starting", "planning", "extracting", "extracting"])
    ]
    assert capsys.readouterr().err == ""


def test_a_progress_parameter_is_a_switch_or_a_callable(capsys):
    calls = []
    with shown(lambda n_done, total: calls.append((n_done, total))) as show:
        show(1, 2)
    assert calls == [(1, 2)]
    for silent in (None, False):
        with shown(silent) as show:
            show(1, 2)
    assert capsys.readouterr().err == ""
    with shown(True) as show:
        show(2, 2)
    assert capsys.readouterr().err == "2 of 2 cells\n"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), BrokenPipeError(), ValueError("closed")])
def test_a_log_that_cannot_be_written_stops_nothing(monkeypatch, error):
    class Full(io.StringIO):
        def write(self, text):
            raise error

    monkeypatch.setattr(sys, "stderr", Full())
    with progress_on_stderr(quiet=False) as show:
        show(2, 2)


class Closed(io.StringIO):
    """A stream that was closed."""

    def __init__(self):
        super().__init__()
        self.close()


@pytest.mark.parametrize("stream", [None, object(), Closed()])
def test_no_stderr_is_no_error(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_on_stderr(quiet=False) as show:
        announce("planning")
        show(2, 2)


def test_a_terminal_that_goes_away_stops_nothing(monkeypatch):
    def gone(console):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    with progress_on_stderr(quiet=False) as show:
        monkeypatch.setattr("rich.console.Console._check_buffer", gone)
        show(2, 2)
