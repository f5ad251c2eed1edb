"""What a unit leaves to the next one waits on the disk, and no tile overwrites what another still looks at."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from conftest import needs_native, random_model, random_pixels
from numpy.typing import NDArray

from sapnet_cli.engine import tiled
from sapnet_cli.engine.budget import Budget
from sapnet_cli.engine.config import EngineConfig
from sapnet_cli.engine.engine import Engine
from sapnet_cli.engine.progress import Report, work_beside
from sapnet_cli.engine.statistics import ResidualChange
from sapnet_cli.engine.tiled import CarriedState, TiledForward
from sapnet_cli.engine.tiles import plan_tiles
from sapnet_cli.errors import OutOfMemoryError
from sapnet_cli.model import compiled
from sapnet_cli.model.arrays import KINDS

SIZES = 70, 90


def picture(generation: int, channels: int) -> NDArray[np.float32]:
    """What one plane carries of a picture; exact in half precision."""
    rows, columns, channel = np.ogrid[: SIZES[0], : SIZES[1], :channels]
    return ((rows * 7 + columns * 3 + generation * 31 + channel) % 512).astype(np.float32)


@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("in_c", [True, False])
def test_units_do_not_overwrite_what_is_still_read(kind: str, in_c: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not in_c:
        monkeypatch.setattr(compiled, "is_available", lambda: False)
    plan = plan_tiles(*SIZES, 40, 8)
    assert len({tile.rows for tile in plan.tiles}) > 2
    kinds = (KINDS[kind], 32), (KINDS[kind], 5), (KINDS["fp32"], 3)
    with CarriedState(plan) as carried:
        for generation in range(7):
            for tile in plan.tiles:
                planes = tuple(np.zeros((1, *plan.window, channels), dtype) for dtype, channels in kinds)
                if generation:
                    carried.read(planes, plan, [tile])
                for plane in planes:
                    if generation:
                        expected = picture(generation - 1, plane.shape[3])[plan.seen(tile)]
                        assert np.array_equal(plane[0].astype(np.float32), expected)
                    plane.fill(9)  # what is not the core is not to be taken
                    plane[0][tile.core_in_window] = picture(generation, plane.shape[3])[tile.core]
                carried.write(planes, [tile])
            carried.next_unit()


@needs_native
@pytest.mark.parametrize("beside", [2, 3])
def test_tiles_at_the_same_time_give_what_one_by_one_do(beside: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, whichever is done first."""
    image = random_pixels(150, 170)
    config = EngineConfig(device="cpu", precision="fp16", tile=64, overlap=12, insist=1.0)
    model = random_model(channels=32, stages=3)
    model.rain_means = torch.rand(2, 3, 4, 32, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(compiled, "threads", lambda: 3)
    monkeypatch.setattr("sapnet_cli.engine.budget.CPU_BUDGET", 0)
    results, most = [], []

    def work(works: Sequence[Callable[[Report], None]], number: int, report: Report) -> None:
        most.append(number)
        work_beside(works, number, report)

    monkeypatch.setattr(tiled, "work_beside", work)
    for number in (1, beside):
        monkeypatch.setattr(Budget, "tiles_beside", lambda *arguments, number=number: number)
        results.append(Engine(model, config).derain(image))
    assert set(most) == {1, beside}
    assert np.array_equal(*results)


@pytest.mark.parametrize(
    ("off", "times"),
    [
        ([0, 0, 0, 0], [1, 1, 1, 1]),
        ([0.1, 0.1, 0.1, 0.1], [1, 1, 1, 1]),
        ([0.3, 0, 0, 0, 0, 0], [2, 2, 1, 1]),  # and once it was right it is trusted again
        ([0.3, 0, 0.2, 0, 0.05, 0, 0], [2, 2, 2, 1]),
        ([0, 0, 0.2, 0.2, 0], [1, 1, 1, 2]),
        ([0.3, 0.03, 0.01, 0.1, 0, 0, 0], [3, 2, 1, 1]),  # still a little off
        ([0.3] * 9, [3, 2, 2, 2]),
    ],
)
def test_where_the_sample_is_off_tiles_pass_units_again(
    off: list[float], times: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next unit first only to be measured; the first itself, which counts at once. By levels that residuals change
    by."""
    monkeypatch.setattr("sapnet_cli.engine.budget.CPU_BUDGET", 0)
    monkeypatch.setattr("sapnet_cli.engine.statistics.ENOUGH_PIXELS", 0)
    changes, passes = iter(off), []
    none, most = np.zeros((7, 3), np.float32), np.zeros(3, np.float32)
    monkeypatch.setattr(tiled, "residual_change", lambda *images: ResidualChange(none, most, next(changes) / 255))
    real = TiledForward._pass

    def counted(forward: TiledForward, unit: int, vectors: Any, carried: Any, planes: slice, report: Report) -> Any:
        passes.append((unit, planes != tiled.NOTHING))
        return real(forward, unit, vectors, carried, planes, report)

    monkeypatch.setattr(TiledForward, "_pass", counted)
    progress: list[float] = []
    Engine(random_model(stages=4), EngineConfig(device="cpu", precision="fp32", tile=48, overlap=8)).derain_batch(
        [random_pixels(70, 90)], progress.append
    )
    assert passes == [
        (unit, unit == 0 or turn == passed) for unit, passed in enumerate(times) for turn in range(1, passed + 1)
    ]
    assert progress == sorted(progress)
    assert max(progress) <= 1
    assert max(np.diff([0, *progress, 1])) <= 0.05  # no leap over passes that were not needed
    assert next(changes, None) is None


@needs_native
def test_a_tile_that_fails_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "threads", lambda: 2)
    monkeypatch.setattr("sapnet_cli.engine.budget.CPU_BUDGET", 0)
    monkeypatch.setattr(Budget, "tiles_beside", lambda *arguments: 2)
    calls = count()
    real = CarriedState.write

    def write(carried: CarriedState, *arguments: Any) -> None:
        if next(calls) == 3:
            raise OutOfMemoryError("the disk is full")
        real(carried, *arguments)

    monkeypatch.setattr(CarriedState, "write", write)
    engine = Engine(random_model(channels=32), EngineConfig(device="cpu", precision="fp32", tile=48, overlap=8))
    with pytest.raises(OutOfMemoryError, match="the disk is full"):
        engine.derain(random_pixels(200, 200))
    assert next(calls) < 10


def test_without_attention_tiles_are_the_whole() -> None:
    """No sample, and more context than a unit looks at."""
    model = random_model(attention=False, dilations=(1, 2), stages=4)
    image = random_pixels(80, 110, "float32")
    whole = Engine(model, EngineConfig(device="cpu", precision="fp32", tile=0)).derain(image)
    for batch in (1, 3):
        config = EngineConfig(device="cpu", precision="fp32", tile=48, overlap=12, batch_size=batch)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sapnet_cli.engine.budget.CPU_BUDGET", 0)
            assert float(np.abs(Engine(model, config).derain(image) - whole).max()) < 2e-3


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="room on the disk is not asked for here")
def test_a_full_disk_is_told_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr("sapnet_cli.engine.budget.CPU_BUDGET", 0)
    engine = Engine(random_model(), EngineConfig(device="cpu", precision="fp32", tile=48, overlap=8))
    with pytest.raises(OutOfMemoryError, match="No space left on device; point TMPDIR to a larger disk"):
        engine.derain(random_pixels(60, 90))
