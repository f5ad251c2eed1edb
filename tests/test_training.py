"""The loss agrees with others' code, and the loop learns, stops and goes on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_pixels
from PIL import Image
from skimage.metrics import structural_similarity

from sapnet_cli.data.crops import CropSampler, PairedPictures, Variety, read_pairs
from sapnet_cli.data.pairs import find_pairs, find_side_by_side
from sapnet_cli.losses.ssim import ssim
from sapnet_cli.model.checkpoint import load_checkpoint
from sapnet_cli.model.sapnet import SAPNetConfig
from sapnet_cli.training.loop import Phase, Trainer, TrainingConfig
from sapnet_cli.training.muon import orthogonalise

LAYOUTS = [
    ("input/1.png", "target/1.png"),
    ("rainy/1.png", "gt/1.png"),
    ("rain/1.png", "norain/1.png"),
    ("rainy/rain-001.png", "norain-001.png"),
    ("rain-1.png", "norain-1.png"),
]


def test_ssim_agrees_with_scikit_image() -> None:
    first, second = random_pixels(40, 52) / 255, random_pixels(40, 52, seed=1) / 255
    second = 0.7 * first + 0.3 * second
    expected = structural_similarity(
        first,
        second,
        data_range=1,
        channel_axis=2,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        win_size=11,
    )
    tensors = [torch.tensor(image, dtype=torch.float32).permute(2, 0, 1)[None] for image in (first, second)]
    # scikit-image crops by the half window that it says it has, which is the 'valid' region
    assert float(ssim(*tensors)) == pytest.approx(expected, abs=2e-4)
    assert float(ssim(tensors[0], tensors[0])) == pytest.approx(1)


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((32, 288), (128, 32)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert float(values.min()) > 0.5
        assert float(values.max()) < 1.5


@pytest.mark.parametrize(("rainy", "clean"), LAYOUTS)
def test_layouts_of_pairs(rainy: str, clean: str, tmp_path: Path) -> None:
    for name in (rainy, clean, rainy.replace("1.", "2."), clean.replace("1.", "2."), rainy.replace("1.", "10.")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(random_pixels(8, 8)).save(tmp_path / name)
    pairs = find_pairs(tmp_path)
    assert [(pair.rainy, pair.clean) for pair in pairs] == [
        (tmp_path / rainy.replace("1.", f"{n}."), tmp_path / clean.replace("1.", f"{n}.")) for n in (1, 2)
    ]


@pytest.mark.parametrize("clean_left", [True, False])
def test_pairs_side_by_side(clean_left: bool, tmp_path: Path) -> None:
    left, right = random_pixels(8, 10), random_pixels(8, 10, seed=1)
    for name in ("10.png", "2.png"):
        Image.fromarray(np.concatenate((left, right), axis=1)).save(tmp_path / name)
    pairs = find_side_by_side(tmp_path, clean_left)
    assert [pair.rainy.name for pair in pairs] == ["2.png", "10.png"]
    rainy, clean = read_pairs(pairs).pictures[0]
    assert np.array_equal(clean, left if clean_left else right)
    assert np.array_equal(rainy, right if clean_left else left)
    with pytest.raises(FileNotFoundError, match="no pictures"):
        find_side_by_side(tmp_path / "none", clean_left)


def test_no_pairs_and_unequal_pairs(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no rainy and clean pairs"):
        find_pairs(tmp_path)
    Image.fromarray(random_pixels(8, 8)).save(tmp_path / "rain-1.png")
    Image.fromarray(random_pixels(8, 9)).save(tmp_path / "norain-1.png")
    with pytest.raises(ValueError, match=r"rain-1.png is \(8, 8\)"):
        read_pairs(find_pairs(tmp_path))


def rainy_set() -> PairedPictures:
    pictures = []
    for seed in range(4):
        clean = random_pixels(64, 80, seed=seed)
        streaks = np.random.default_rng(seed).random((64, 80, 1)) > 0.95
        pictures.append((np.where(streaks, 255, clean).astype(np.uint8), clean))
    return PairedPictures(tuple(pictures))


def test_crops_of_a_pair_stay_together() -> None:
    rainy, clean = CropSampler([rainy_set()], [1], seed=0).draw(batch=16, patch=24)
    assert rainy.shape == clean.shape == (16, 24, 24, 3)
    touched = (rainy != clean).any(axis=3)
    assert 0.01 < touched.mean() < 0.1
    assert (rainy[touched] == 255).all()


def test_variety_dims_and_refines_the_rain_and_nothing_else() -> None:
    def strength(variety: Variety) -> float:
        rainy, clean = CropSampler([rainy_set()], [1], 0, variety).draw(64, 24)
        assert rainy.shape == clean.shape == (64, 24, 24, 3)
        assert rainy.dtype == clean.dtype == np.uint8
        return float(np.abs(rainy.astype(int) - clean).max(axis=(1, 2, 3)).mean())

    plain = strength(Variety())
    assert strength(Variety(faint=1)) < 0.75 * plain
    assert strength(Variety(fine=1)) < plain


def config(minutes: float) -> TrainingConfig:
    small = SAPNetConfig(stages=2, channels=8, dilations=(1, 2), reduction=4)
    phases = (Phase(0.5, 1, 24, 4), Phase(0.5, 2, 32, 2))
    return TrainingConfig(minutes, phases, ema=0.9, compiled=False, model=small)


def test_it_learns_and_goes_on(tmp_path: Path) -> None:
    paired = rainy_set()
    trainer = Trainer(config(0.1), CropSampler([paired], [1], seed=0), tmp_path)
    for index in range(250):
        trainer.step(index / 250)
    trainer.seconds = 60 * trainer.config.minutes - 1e-3  # one step is left of the budget, on any machine
    trainer.run({"seen": paired})
    first, last = trainer.iteration, json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    rainy_psnr = np.mean([-10 * np.log10(np.square((a / 255.0) - b / 255.0).mean()) for a, b in paired.pictures])
    assert last["seen"][-1] > rainy_psnr + 1
    assert load_checkpoint(tmp_path / "final.safetensors").config == config(1).model

    resumed = Trainer(config(0.12), CropSampler([paired], [1], seed=0), tmp_path)
    assert resumed.iteration == first
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor)
    losses = [each.step(0.9) for each in (trainer, resumed)]
    assert losses[0] == losses[1], "the order of crops, the optimisers' state or the weights were not restored"
    losses = [each.step(0.9) for each in (trainer, resumed)]
    assert losses[0] == losses[1]
