"""How many threads a run uses by default."""

import os

import pytest

from gpu_extract import cpus


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine of 64 cores without control groups; gives a function that writes their files."""
    monkeypatch.setattr(cpus, "_cores", lambda: 64)
    monkeypatch.setattr(cpus, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cpus, "OWN_CGROUPS", tmp_path / "own")

    def write(own, **files):
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            path = tmp_path / "cgroup" / name.replace("__", "/").replace("cpu_", "cpu.")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


def test_cores_alone(machine):
    assert cpus.thread_limits({}) == {"cores": 64}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"job__a__cpu_max": "250000 100000\n"}, 3),
        ({"job__cpu_max": "800000 100000\n", "job__a__cpu_max": "max 100000\n"}, 8),
        ({"cpu_max": "50000 100000\n"}, 1),  # in a container only the root is there
        ({"job__a__cpu_max": "max 100000\n"}, None),
        ({"job__a__cpu_max": "nonsense"}, None),
        ({}, None),
    ],
)
def test_quota_of_version_2(machine, files, expected):
    machine("0::/job/a\n", **files)
    assert cpus.thread_limits({}).get("cgroup CPU quota") == expected


@pytest.mark.parametrize(("quota", "expected"), [("400000", 4), ("-1", None)])
def test_quota_of_version_1(machine, quota, expected):
    own = "7:memory:/x\n4:cpu,cpuacct:/job\n"
    machine(own, **{"cpu,cpuacct__job__cpu_cfs_quota_us": quota, "cpu,cpuacct__job__cpu_cfs_period_us": "100000"})
    assert cpus.thread_limits({}).get("cgroup CPU quota") == expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"SLURM_CPUS_PER_TASK": "6"}, {"SLURM_CPUS_PER_TASK": 6}),
        ({"OMP_NUM_THREADS": "4,2", "NUMBA_NUM_THREADS": "5"}, {"OMP_NUM_THREADS": 4, "NUMBA_NUM_THREADS": 5}),
        ({"OMP_NUM_THREADS": "0"}, {}),
        ({"OMP_NUM_THREADS": "all"}, {}),
        ({"OMP_NUM_THREADS": ""}, {}),
    ],
)
def test_variables(machine, environment, expected):
    assert cpus.thread_limits(environment) == {"cores": 64, **expected}


def test_the_fewest_decide(machine, monkeypatch):
    machine("0::/\n", cpu_max="1200000 100000")
    for name in cpus.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert cpus.default_threads() == 12
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert cpus.default_threads() == 3


def test_without_affinity_all_cores_count(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert cpus._cores() == os.cpu_count()
