"""The progress of a run: rates and lines."""

import pytest

from gpu_extract import progress
from gpu_extract.progress import RecentRate, progress_on_stderr


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


def test_log_lines_tell_the_remaining_time_at_the_recent_rate(monkeypatch, capsys):
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: False)
    monkeypatch.setattr(RecentRate.__init__, "__defaults__", (20.0, clock))
    with progress_on_stderr(quiet=False) as show:
        clock.now += 30
        show(64, 10064)
        for n in range(1, 11):
            clock.now += 1
            show(64 + 500 * n, 10064)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "64 of 10,064 cells"
    assert second == "5,064 of 10,064 cells, 500 cells/s, 10 s left"


def test_quiet_shows_nothing(capsys):
    with progress_on_stderr(quiet=True) as show:
        show(1, 2)
    assert capsys.readouterr().err == ""
