"""What a container's limits leave of the machine, and manners where cores are shared."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
CPUS = Path("/sys/devices/system/cpu")

SPIN_COUNT = "30000"
"""How often a waiting thread looks before it sleeps: for about half a millisecond."""


def container_limits(*files: tuple[str, str], cgroup: Path = CGROUP) -> Iterator[tuple[int, int]]:
    """The first number of one and the last of another file of the control group, for each pair that has them."""
    for first, second in files:
        try:
            numbers = int((cgroup / first).read_text().split()[0]), int((cgroup / second).read_text().split()[-1])
        except (OSError, ValueError, IndexError):  # no container, or "max"
            continue
        yield numbers


def usable_cores(cgroup: Path = CGROUP) -> int:
    """How many cores this process can keep busy: those that it may run on, or a container's quota of their time.

    A quota (`docker run --cpus`, limits of Kubernetes) leaves all cores of the machine in sight, but as many threads as
    there are would stand still for most of each period.
    """
    cores = _visible_cores()
    files = ("cpu.max", "cpu.max"), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")
    for quota, period in container_limits(*files, cgroup=cgroup):
        if quota > 0 and period > 0:
            cores = min(cores, math.ceil(quota / period))
    return cores


@cache
def computing_cores() -> int:
    """On how many threads to compute: what OpenMP is told, or as PyTorch does, one for each core that can be kept busy.

    Of two threads that a core may run at once each would get half of it.
    """
    told = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if told.isdigit() and int(told):
        return int(told)
    return max(1, min(usable_cores(), len({_core_of(each) for each in _visible_cpus()})))


def _core_of(cpu: int) -> tuple[str, ...]:
    """What tells a core from others: its package and its number there; or the CPU's own number, where nobody says."""
    topology = CPUS / f"cpu{cpu}" / "topology"
    try:
        return tuple((topology / name).read_text().strip() for name in ("physical_package_id", "core_id"))
    except OSError:
        return (str(cpu),)


def share_cores() -> None:
    """Tells GNU's OpenMP, which listens when it is loaded, what the user has not told it by the environment.

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
    return len(_visible_cpus())


def _visible_cpus() -> Collection[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
