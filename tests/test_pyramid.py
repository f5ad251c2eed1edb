"""Wide streaks of large pictures: derained again at a quarter of the size, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from conftest import random_model, random_pixels
from PIL import Image
from torch.nn import functional

from sapnet_cli import Derainer
from sapnet_cli.engine.config import EngineConfig
from sapnet_cli.engine.engine import Engine
from sapnet_cli.engine.pyramid import add_enlarged, count_levels, shrink
from sapnet_cli.errors import UsageError

EXAMPLE = sorted((Path(__file__).parents[1] / "examples" / "rainy").iterdir())[0]


def engine(levels: int | Literal["auto"], tta: bool = False) -> Engine:
    config = EngineConfig(device="cpu", precision="fp32", batch_size=2, tta=tta, pyramid=levels)
    return Engine(random_model(), config)


@pytest.mark.parametrize(
    ("width", "height", "levels"),
    [(1, 1, 1), (481, 321, 1), (1280, 720, 1), (1920, 1080, 2), (4000, 3000, 2), (8192, 6144, 3)],
)
def test_levels_go_down_to_the_size_of_the_public_sets(width: int, height: int, levels: int) -> None:
    assert count_levels(width * height) == levels


@pytest.mark.parametrize(("dtype", "white"), [(np.uint8, 255), (np.uint16, 65535), (np.float32, 1)])
def test_a_level_holds_means_of_squares(dtype: type[np.generic], white: float) -> None:
    image = (np.random.default_rng(0).random((538, 27, 3)) * white).astype(dtype)
    coarse = shrink(image)
    assert coarse.shape == (135, 7, 3)
    assert coarse.dtype == np.float32
    squares = np.pad(image, ((0, 2), (0, 1), (0, 0)), mode="edge").astype(np.float64) / white
    assert np.abs(coarse - squares.reshape(135, 4, 7, 4, 3).mean(axis=(1, 3))).max() < 1e-6


@pytest.mark.parametrize(("dtype", "white"), [(np.uint8, 255), (np.uint16, 65535), (np.float32, 1)])
def test_changes_are_enlarged_without_seams(dtype: type[np.generic], white: float) -> None:
    image = (np.random.default_rng(0).random((538, 27, 3)) * white).astype(dtype)
    change = np.random.default_rng(1).uniform(-1, 1, (135, 7, 3)).astype(np.float32)
    whole = functional.interpolate(torch.from_numpy(change).permute(2, 0, 1)[None], scale_factor=4, mode="bicubic")
    expected = image / np.float64(white) + whole[0].permute(1, 2, 0).numpy()[:538, :27]
    add_enlarged(image, change)
    assert image.dtype == dtype
    assert np.abs(image / np.float64(white) - expected.clip(0, 1)).max() <= 0.5 / max(white, 255) + 1e-5


@pytest.mark.parametrize("tta", [False, True])
def test_what_is_left_is_taken_off_at_a_quarter_of_the_size(tta: bool) -> None:
    images = [random_pixels(50, 71, seed=seed) for seed in (0, 1)]
    one, two, three = (engine(levels, tta) for levels in (1, 2, 3))
    for image, result in zip(images, three.derain_batch(images)):
        expected = one.derain(image)
        coarse = shrink(expected)
        add_enlarged(expected, two.derain(coarse) - coarse)
        assert np.abs(result.astype(int) - expected).max() <= 1
        assert not np.array_equal(result, one.derain(image))


def test_there_are_no_more_levels_than_pixels() -> None:
    image = random_pixels(5, 17)
    more, many, three = (engine(levels).derain(image) for levels in (10**20, 10_000, 3))
    assert np.array_equal(many, three)
    assert np.array_equal(more, three)


def test_small_pictures_are_left_at_one_level() -> None:
    image = random_pixels(50, 71)
    auto, alone = (engine(levels).derain(image) for levels in ("auto", 1))
    assert np.array_equal(auto, alone)
    with pytest.raises(UsageError, match="pyramid 0 is neither auto nor at least 1 level"):
        EngineConfig(pyramid=0)


def test_streaks_four_times_as_wide_go() -> None:
    with Image.open(EXAMPLE) as example:
        rainy = example.convert("RGB").crop((60, 20, 188, 148))
    dry = Derainer(precision="fp32").derain(rainy)
    large = rainy.resize((512, 512), Image.Resampling.BICUBIC)
    truth = np.asarray(dry.resize((512, 512), Image.Resampling.BICUBIC), np.float64)

    def error(picture: Image.Image) -> float:
        return float(np.square(np.asarray(picture) - truth).mean())

    alone, pyramid = (error(Derainer(precision="fp32", pyramid=levels).derain(large)) for levels in (1, 2))
    assert error(large) > 50, "there is rain"
    assert alone > 0.5 * error(large), "too wide"
    assert pyramid < 0.1 * error(large)
