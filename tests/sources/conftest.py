"""What holds for the tests of sources."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from operator import methodcaller

import pytest


@pytest.fixture(scope="session")
def elsewhere():
    """Read boxes of slides in another process: one that was spawned, and knows nothing of this one."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:

        def read(slides, box):
            return list(process.map(methodcaller("read", box), slides))

        yield read
