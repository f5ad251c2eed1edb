"""What a sample of an image says of it, and what the image is measured to be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from sapnet_cli.engine.statistics import (
    MeasuringPool,
    SamplePool,
    calibrate,
    representative,
    residual_change,
)
from sapnet_cli.engine.tiles import Tile, plan_tiles
from sapnet_cli.model import compiled


def vector(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def rows(*values: list[float]) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def test_a_sample_pools_to_its_own_mean() -> None:
    """Of which larger windows are more."""
    areas = vector(10, 30)
    pool = SamplePool()
    first, second = rows([1, 2], [3, 4]), rows([5, 0], [5, 8])
    assert pool(first, areas).tolist() == [2.5, 3.5]
    assert pool(second, areas).tolist() == [5, 6]
    assert [each.tolist() for each in pool.vectors] == [[2.5, 3.5], [5, 6]]
    assert [id(each) for each in pool.windows] == [id(first), id(second)]


def test_a_sample_changes_as_the_image_does() -> None:
    """From what was found of the image, by as much as the windows' values changed; nothing found is as zero."""
    areas = vector(1, 1)
    before = [(rows([1], [1]), vector(2)), (rows([4], [4]), vector(3))]
    pool = SamplePool(before)
    assert [float(pool(rows([9], [11]), areas)[0]) for _ in range(3)] == pytest.approx([11, 9, 10])


def test_windows_that_the_image_has_more_of_weigh_more() -> None:
    """Half of the sample is sky, but only a fifth of the image: what is to come is told by that."""
    random = np.random.default_rng(0)
    sky = np.tile(vector(0, 1), 8)[:, None]
    before = sky * vector(2, 1, 0) + random.uniform(0, 0.01, (16, 3)).astype(np.float32)
    image = np.float32(0.2) * vector(2, 1, 0) + np.float32(0.005)
    areas = np.ones(16, np.float32)
    weights = calibrate([(before, image)], areas)
    assert float(weights.sum()) == pytest.approx(1)
    assert float((weights @ sky)[0]) == pytest.approx(0.2, abs=0.05)
    after = sky * vector(1, 5, 3)
    expected = image + 0.2 * vector(1, 5, 3) - 0.2 * vector(2, 1, 0)
    found = SamplePool([(before, image)])(after, areas)
    plain = image + (after - before).mean(axis=0)
    assert np.linalg.norm(found - expected) < 0.2 * np.linalg.norm(plain - expected)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("found", [9.0, float("nan"), float("inf")])
def test_windows_that_tell_nothing_weigh_what_their_areas_do(count: int, found: float) -> None:
    areas = np.arange(1, 1 + count, dtype=np.float32)
    weights = calibrate([(np.ones((count, 5), np.float32), vector(*5 * [found]))], areas)
    np.testing.assert_allclose(weights, areas / areas.sum(), rtol=1e-6)


def test_the_image_is_measured_by_area() -> None:
    pool = MeasuringPool([vector(1, 1), vector(0, 5)])
    for area, means in ((30, (vector(2, 0), vector(1, 5))), (10, (vector(6, 4), vector(5, 9)))):
        assert [pool(mean[None], vector(area)).tolist() for mean in means] == [[1, 1], [0, 5]]
    assert [mean.tolist() for mean in pool.means] == [[3, 1], [2, 6]]
    both = MeasuringPool([vector(1, 1), vector(0, 5)])
    for each in (vector(7, 5), vector(6, 6)):
        both(each[None], vector(40))
    both.add(pool)
    assert [mean.tolist() for mean in both.means] == [[5, 3], [4, 6]]


def test_a_sample_has_smooth_and_textured_parts() -> None:
    image = np.zeros((64, 256, 3), np.uint8)
    for column in range(8):
        image[:, 32 * column : 32 * (column + 1) : 2] = 20 * (7 - column)  # the left is the most textured
    plan = plan_tiles(64, 256, 32, 0)
    sample = representative(image, plan, 4)
    assert {tile.columns.start // 64 for tile in sample} == {0, 1, 2, 3}
    assert sorted(map(id, representative(image, plan, 99))) == sorted(map(id, plan.tiles))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_sample_looks_like_the_image(dtype: str) -> None:
    """In colour, brightness and texture; better than one that only has the same shares of smooth and textured parts."""
    random = np.random.default_rng(0)
    smooth, rough = random.uniform(0, 0.7, (24, 1, 32, 1, 3)), random.uniform(0, 0.3, (24, 1, 32, 1, 1))
    image = (smooth + rough * random.uniform(size=(24, 16, 32, 16, 1))).reshape(24 * 16, 32 * 16, 3)
    pixels = (image * {"uint8": 255, "uint16": 65535, "float32": 1}[dtype]).astype(dtype)
    plan = plan_tiles(*image.shape[:2], 16, 0)

    def moments(tiles: Sequence[Tile]) -> NDArray[np.float64]:
        seen = np.stack([image[tile.core] for tile in tiles])
        return np.array([*seen.mean(axis=(0, 1, 2)), (seen[..., 1] < 0.4).mean(), np.abs(np.diff(seen, axis=1)).mean()])

    def error(tiles: Sequence[Tile]) -> float:
        return float(np.abs(moments(tiles) / moments(plan.tiles) - 1).max())

    by_texture = sorted(plan.tiles, key=lambda tile: float(np.abs(np.diff(image[tile.core], axis=0)).mean()))
    assert error(representative(pixels, plan, 24)) < 0.05 < 0.1 < error(by_texture[16::32])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("in_bytes", [False, True])
@pytest.mark.parametrize("in_c", [False, True])
def test_a_change_of_residuals_is_found_and_repeated(
    channels: int, in_bytes: bool, in_c: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of grey pictures, whose channels do not tell themselves apart, and where nothing is compiled."""
    if not in_c:
        monkeypatch.setattr(compiled, "find_program", lambda: None)
    random = np.random.default_rng(0)
    shape = 2, 40, 7, 3

    def grey_or_colours() -> NDArray[np.float32]:
        return np.broadcast_to(random.random((*shape[:3], channels), np.float32), shape).copy()

    colours = grey_or_colours()
    rainy = (colours * 255).astype(np.uint8) if in_bytes else colours
    before = grey_or_colours() - np.float32(0.5)
    seen = rainy.astype(np.float32) / (255 if in_bytes else 1)
    after = before * 0.9 + before[..., ::-1] * 0.05 + seen * 0.1 + vector(0.01, 0.02, 0.03)
    after = after.astype(np.float32)
    change = residual_change(rainy, before, after)
    assert change is not None
    mended = before.copy()
    change.add_to(mended, rainy)
    np.testing.assert_allclose(mended, after, rtol=0, atol=1e-5)
    far = before + np.float32(100)  # of what no window has
    change.add_to(far, rainy)
    most = np.abs(after - before).max(axis=(0, 1, 2))
    np.testing.assert_allclose(np.abs(far - before - 100).max(axis=(0, 1, 2)), most, rtol=0, atol=1e-4)
    assert residual_change(rainy, before, after * np.float32("inf")) is None
