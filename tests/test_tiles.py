"""Tiles share out the image, see enough around their cores, and have one size."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sapnet_cli.engine.tiles import TilePlan, fit_tiles, plan_tiles

SIZES = [(1, 1), (255, 257), (256, 256), (300, 1000), (1443, 963), (129, 4000)]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(("tile", "overlap"), [(256, 64), (256, 0), (192, 64), (130, 64), (512, 32)])
def test_cores_share_out_the_image(height: int, width: int, tile: int, overlap: int) -> None:
    plan = plan_tiles(height, width, tile, overlap)
    check(plan, height, width, overlap)
    assert max(plan.window) <= tile


def check(plan: TilePlan, height: int, width: int, overlap: int) -> None:
    times = np.zeros((height, width), int)
    for piece in plan.tiles:
        times[piece.core] += 1
        seen = plan.seen(piece)
        assert times[seen].shape == plan.window
        for axis, length in enumerate((height, width)):
            core, window, inside = piece.core[axis], seen[axis], piece.core_in_window[axis]
            assert core.start - window.start == inside.start
            assert core.stop - core.start == inside.stop - inside.start > 0
            assert window.start == 0 or core.start - window.start >= overlap
            assert window.stop == length or window.stop - core.stop >= overlap
    assert (times == 1).all()


def test_zero_is_the_whole_image() -> None:
    assert len(plan_tiles(5000, 7000, 0, 0).tiles) == 1


def test_no_more_tiles_than_needed() -> None:
    assert len(plan_tiles(256, 256, 256, 64).tiles) == 1
    assert len(plan_tiles(256, 384, 256, 64).tiles) == 2
    assert len(plan_tiles(256, 385, 256, 64).tiles) == 3


def test_windows_are_no_larger_than_needed() -> None:
    plan = plan_tiles(4000, 6000, 1632, 64)
    assert len(plan.tiles) == 3 * 4
    assert plan.window == ((4000 + 2 * 2 * 64 + 2) // 3, (6000 + 3 * 2 * 64) // 4)


def test_overlap_must_leave_a_core() -> None:
    with pytest.raises(ValueError, match="less than half"):
        plan_tiles(1000, 1000, 128, 64)


def computed(plan: TilePlan, together: int) -> int:
    """Pixels, tiles that are missing at the end among them."""
    return math.ceil(len(plan.tiles) / together) * together * math.prod(plan.window)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("together", [1, 2, 5])
@pytest.mark.parametrize(("side", "overlap"), [(256, 64), (256, 0), (192, 64), (130, 64), (512, 32)])
def test_windows_that_need_not_be_squares_are_at_least_as_good(
    height: int, width: int, together: int, side: int, overlap: int
) -> None:
    plan = fit_tiles(height, width, side**2, overlap, together)
    check(plan, height, width, overlap)
    assert math.prod(plan.window) <= side**2
    assert computed(plan, together) <= computed(plan_tiles(height, width, side, overlap), together)


def test_two_cores_share_out_a_photo_of_24_megapixels() -> None:
    plan = fit_tiles(4284, 5712, 2_240_000, 40, together=2)
    assert len(plan.tiles) == 12
    assert plan.window == (1482, 1488)
    assert len(fit_tiles(4284, 5712, 1_700_000, 40, together=2).tiles) == 16, "none of 15 would wait for another"


def test_what_fits_is_one_tile() -> None:
    assert len(fit_tiles(200, 1000, 200_000, 40).tiles) == 1


def test_context_must_leave_something_of_the_pixels() -> None:
    with pytest.raises(ValueError, match="leaves nothing"):
        fit_tiles(1000, 1000, 128**2, 64)
