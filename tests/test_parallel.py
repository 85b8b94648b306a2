import threading

import pytest

from gpu_extract.parallel import worker_threads


@pytest.mark.parametrize(("error", "waits"), [(KeyboardInterrupt, False), (ValueError, True)])
def test_only_an_interrupt_does_not_wait_for_calls(error, waits):
    started, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def work():
        started.set()
        go_on.wait()
        done.set()

    with pytest.raises(error), worker_threads(1, "test") as workers:  # noqa: PT012 - the second call must be queued
        workers.submit(work)
        queued = workers.submit(work)
        started.wait()
        if waits:
            go_on.set()
        raise error
    assert done.is_set() == waits
    assert queued.cancelled() != waits
    go_on.set()
