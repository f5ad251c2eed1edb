"""No more threads than a container's quota keeps busy, and none that keeps others from running."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sapnet_cli import cores
from sapnet_cli.cores import share_cores, usable_cores


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
