"""No more threads than a container's quota keeps busy, and none that keeps others from running."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sapnet_cli import cores
from sapnet_cli.cores import computing_cores, share_cores, usable_cores


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "6400000 100000"}, 8),
        ({"cpu.max": ""}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
    ],
)
def test_a_quota_is_what_counts(
    files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "_visible_cores", lambda: 8)
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n")
    assert usable_cores(tmp_path) == expected


def test_no_more_cores_than_this_process_may_run_on(tmp_path: Path) -> None:
    assert 1 <= usable_cores(tmp_path) <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("visible", "said", "expected"),
    [
        (64, {}, {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": cores.SPIN_COUNT}),
        (2, {}, {"GOMP_SPINCOUNT": cores.SPIN_COUNT}),
        (64, {"OMP_NUM_THREADS": "5", "OMP_WAIT_POLICY": "ACTIVE"}, {}),
        (2, {"GOMP_SPINCOUNT": "0"}, {}),
    ],
)
def test_what_the_user_says_stays(
    visible: int, said: dict[str, str], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = dict(said)
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(cores, "usable_cores", lambda: 2)
    monkeypatch.setattr(cores, "_visible_cores", lambda: visible)
    share_cores()
    assert environment == {**said, **expected}


@pytest.mark.parametrize(
    ("told", "visible", "quota", "expected"),
    [
        (None, {0, 1, 2, 3}, 8, 2),  # two threads a core
        (None, {0, 2}, 8, 1),
        (None, {0, 1, 2, 3}, 1, 1),
        (None, {7, 8, 9}, 8, 3),  # of which the system says nothing
        ("3", {0, 1, 2, 3}, 8, 3),
        ("4,2", {0, 1}, 1, 4),
        ("none", {0, 1}, 8, 2),
    ],
)
def test_a_core_computes_on_one_thread(
    told: str | None, visible: set[int], quota: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cpu in range(4):
        topology = tmp_path / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "physical_package_id").write_text("0\n")
        (topology / "core_id").write_text(f"{cpu % 2}\n")
    monkeypatch.setattr(cores, "CPUS", tmp_path)
    monkeypatch.setattr(cores, "usable_cores", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: visible, raising=False)
    monkeypatch.setattr(os, "environ", {} if told is None else {"OMP_NUM_THREADS": told})
    assert computing_cores.__wrapped__() == expected
