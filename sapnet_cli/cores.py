"""The cores that this process may use, and manners where it shares them."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")

SPIN_COUNT = "30000"
"""How often a waiting thread looks before it sleeps: for about half a millisecond."""


def usable_cores(cgroup: Path = CGROUP) -> int:
    """How many cores this process can keep busy: those that it may run on, or a container's quota of their time.

    A quota (`docker run --cpus`, limits of Kubernetes) leaves all cores of the machine in sight, but as many threads as
    there are would stand still for most of each period.
    """
    cores = _visible_cores()
    for quota_file, period_file in (
        (cgroup / "cpu.max", cgroup / "cpu.max"),
        (cgroup / "cpu/cpu.cfs_quota_us", cgroup / "cpu/cpu.cfs_period_us"),
    ):
        try:
            quota, period = int(quota_file.read_text().split()[0]), int(period_file.read_text().split()[-1])
        except (OSError, ValueError, IndexError):  # no container, or "max"
            continue
        if quota > 0 and period > 0:
            cores = min(cores, math.ceil(quota / period))
    return cores


def share_cores() -> None:
    """Tells GNU's OpenMP, which listens when PyTorch is imported, what the user has not told it by the environment.

    It is to have no more threads than a container's quota keeps busy, and they are to sleep soon where they wait for
    each other. By default they spin for several milliseconds; where other work runs on the same cores, what they wait
    for often does not run because they do.
    """
    cores = usable_cores()
    if cores < _visible_cores():
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def _visible_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
