"""What a unit leaves to the next one waits on the disk, and no tile overwrites what another still looks at."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_model, random_pixels
from torch import Tensor

from sapnet_cli.engine.config import EngineConfig
from sapnet_cli.engine.engine import Engine
from sapnet_cli.engine.fused import FusedForward
from sapnet_cli.engine.kernels import FusedWeights
from sapnet_cli.engine.tiled import CarriedState, Ring
from sapnet_cli.engine.tiles import Tile, TilePlan, plan_tiles
from sapnet_cli.errors import OutOfMemoryError
from sapnet_cli.model import compiled

CPU = torch.device("cpu")


def window(weights: FusedWeights, plan: TilePlan) -> FusedForward:
    return FusedForward(weights, torch.zeros(1, *plan.window, 3, dtype=torch.uint8))


def picture(generation: int, channel: int) -> Tensor:
    """What one plane carries of a picture of 70x90; exact in half precision."""
    rows, columns = torch.arange(70).view(-1, 1, 1), torch.arange(90).view(1, -1, 1)
    return ((rows * 7 + columns * 3 + generation * 31 + channel) % 512).float()


def expect(forward: FusedForward, plan: TilePlan, tile: Tile, generation: int) -> None:
    for index, plane in enumerate(forward.carried):
        assert plane[0].equal(picture(generation, index)[plan.seen(tile)].expand(*plan.window, plane.shape[3]))


@pytest.mark.parametrize("channels", [32, 5])
@pytest.mark.parametrize("in_c", [True, False])
def test_units_do_not_overwrite_what_is_still_read(channels: int, in_c: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not in_c:
        monkeypatch.setattr(compiled, "is_available", lambda: False)
    weights = FusedWeights(random_model(channels=channels, reduction=1), torch.float32, CPU)
    plan = plan_tiles(70, 90, 40, 8)
    assert len({tile.rows for tile in plan.tiles}) > 2
    with CarriedState(plan) as carried:
        for generation in range(7):
            for tile in plan.tiles:
                forward = window(weights, plan)
                if generation:
                    carried.read(forward, plan, [tile])
                    expect(forward, plan, tile, generation - 1)
                for index, plane in enumerate(forward.carried):
                    plane.fill_(-1)  # what is not the core is not to be taken
                    plane[0][tile.core_in_window] = picture(generation, index)[tile.core]
                carried.write(forward, [tile])
            carried.next_unit()


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


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted by Linux")
@pytest.mark.parametrize("in_c", [True, False])
def test_threads_that_wait_for_the_disk_start_no_others(in_c: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """More threads than cores, and all of OpenMP's sleep whenever they wait for each other."""
    if in_c and not compiled.is_available():
        pytest.skip("not compiled, or no x86 CPU with AVX2")
    monkeypatch.setattr(compiled, "is_available", lambda: in_c)
    ring, lines = Ring(300, 400, torch.zeros(1, 1, 1, 32)), torch.rand(300, 400, 32)

    def threads_after(work: Callable[[], object]) -> int:
        work()
        return len(list(Path("/proc/self/task").iterdir()))

    def round_trip() -> None:
        ring.write(0, 0, lines)
        ring.read(0, 0, read)

    read = torch.zeros_like(lines)
    with ThreadPoolExecutor(1) as pool, ring.file:
        before, after, shared_out = (
            pool.submit(threads_after, work).result() for work in (bool, round_trip, lambda: lines.half())
        )
    assert after == before
    assert shared_out > before or torch.get_num_threads() == 1
    assert read.equal(lines.half().float())


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="room on the disk is not asked for here")
def test_a_full_disk_is_told_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr("sapnet_cli.engine.budget.CPU_BUDGET", 0)
    engine = Engine(random_model(), EngineConfig(device="cpu", precision="fp32", tile=48, overlap=8))
    with pytest.raises(OutOfMemoryError, match="No space left on device; point TMPDIR to a larger disk"):
        engine.derain(random_pixels(60, 90))
