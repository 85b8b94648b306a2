"""The fixture of all tests on a GPU; they have the marker ``gpu``."""

import os

import pytest

from gpu_extract.backends import choose, why_not


@pytest.fixture
def gpu():
    """Return the cuda backend; skip the test without a GPU, or fail it with GPU_EXTRACT_REQUIRE_GPU=1."""
    require(why_not("cuda"))
    return choose("cuda")


@pytest.fixture
def cucim(gpu):
    """Return `cucim.skimage`, on a GPU."""
    from gpu_extract.backends.cuda import backend as cuda

    require(None if cuda.cucim_version() else "cuCIM is not installed; pip install cucim-cu13")
    return cuda.cucim_skimage()


def require(problem):
    if problem and os.environ.get("GPU_EXTRACT_REQUIRE_GPU") == "1":
        pytest.fail(problem)
    if problem:
        pytest.skip(f"needs a GPU: {problem}")


def pytest_collection_modifyitems(items):
    for item in items:
        if "gpu" in getattr(item, "fixturenames", ()):
            item.add_marker("gpu")
