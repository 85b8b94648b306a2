"""How many threads a run uses by default: the fewest that any limit on this process allows."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

__all__ = ["default_threads", "thread_limits"]

# What schedulers and numerical libraries set, in the order in which they are reported.
VARIABLES = ("SLURM_CPUS_PER_TASK", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS")
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def default_threads() -> int:
    """Return the smallest of `thread_limits`."""
    return min(thread_limits().values())


def thread_limits(environment: Mapping[str, str] = os.environ) -> dict[str, int]:
    """Return the number of threads that each limit on this process allows, by the name of the limit.

    The cores that the process may run on are always there; the CPU quota of a container (cgroup), and the variables
    ``SLURM_CPUS_PER_TASK``, ``OMP_NUM_THREADS`` and ``NUMBA_NUM_THREADS``, only where they are set.
    """
    limits = {"cores": _cores()}
    quota = _cgroup_quota()
    if quota is not None:
        limits["cgroup CPU quota"] = quota
    for name in VARIABLES:
        # OMP_NUM_THREADS may list a number for each level of nesting.
        first = re.match(r"\s*(\d+)", environment.get(name, ""))
        if first and int(first[1]):
            limits[name] = int(first[1])
    return limits


def _cores() -> int:
    """Return the cores that this process may run on; macOS and Windows have no affinity."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cgroup_quota() -> int | None:
    """Return the CPUs that the control groups of this process allow, rounded up; None if they set no quota."""
    quotas = [quota for folder in _cgroup_folders() if (quota := _quota(folder)) is not None]
    return max(1, math.ceil(min(quotas))) if quotas else None


def _cgroup_folders() -> Iterator[Path]:
    """Yield the folders of the process's control groups and of all groups that they are in, versions 1 and 2."""
    try:
        lines = OWN_CGROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = CGROUPS / controllers if controllers else CGROUPS
        own = root / path.lstrip("/")
        # Within a container the path is often that of the host, and only the root is there.
        yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(root))


def _quota(folder: Path) -> float | None:
    """Return the CPUs that a control group's own quota allows, None if it has none."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((folder / name).read_text() for name in names).split()
            if quota not in ("max", "-1"):
                return int(quota) / int(period)
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return None
