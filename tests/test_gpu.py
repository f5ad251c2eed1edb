"""What runs on a GPU keeps its tensors there, on one that is pretended: see `pretended_gpu.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_model, random_pixels
from pretended_gpu import GPU, OnGPU, pretended_gpu
from safetensors.torch import load_file
from test_graphs import Recorder
from test_pairs import write_pairs
from test_training import config, trainer
from torch import Tensor

from sapnet_cli import Derainer
from sapnet_cli.engine import network
from sapnet_cli.engine.config import EngineConfig
from sapnet_cli.engine.engine import Engine
from sapnet_cli.engine.graphs import ReplayedForward
from sapnet_cli.losses.joint import JointLoss, LossWeights
from sapnet_cli.losses.perceptual import VGGFeatures
from sapnet_cli.losses.segmentation import SegmentationNetwork
from sapnet_cli.model.checkpoint import save_checkpoint
from sapnet_cli.training.processes import Processes

SMALL, LARGE = (40, 56), (150, 170)
TILED = {"tile": 96, "overlap": 32}


def test_what_lies_on_two_devices_is_refused() -> None:
    with pretended_gpu():
        there = torch.ones(3).to("cuda")
        assert (there + 1).device == GPU
        assert (there + torch.tensor(1.0)).cpu().tolist() == [2, 2, 2]
        with pytest.raises(RuntimeError, match="two devices"):
            there + torch.ones(3)
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
    assert not torch.cuda.is_available() or torch.ones(1).to("cuda").is_cuda


@pytest.mark.parametrize(
    ("options", "size", "dtype"),
    [
        ({}, SMALL, "uint8"),
        ({}, SMALL, "uint16"),
        ({}, SMALL, "float32"),
        ({"batch_size": 2}, SMALL, "uint8"),
        ({"precision": "fp16"}, SMALL, "uint8"),
        ({"precision": "bf16"}, LARGE, "uint8"),
        ({"tta": True}, SMALL, "uint8"),
        ({"pyramid": 2}, SMALL, "uint8"),
        ({"insist": 1.5}, SMALL, "uint8"),
        ({"insist": "auto"}, SMALL, "uint8"),
        (TILED, LARGE, "uint8"),
        ({**TILED, "precision": "fp16"}, LARGE, "uint16"),
        ({**TILED, "insist": 1.5, "pyramid": 2}, LARGE, "uint8"),
        ({**TILED, "tile_statistics": "exact"}, LARGE, "uint8"),
    ],
)
def test_the_engine_stays_on_its_device(
    options: dict[str, Any], size: tuple[int, int], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model()
    model.rain_means = torch.rand(2, 2, 4, 8, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(network, "ReplayedForward", lambda forward: ReplayedForward(forward, Recorder()))
    images: list[Any] = [random_pixels(*size, dtype, seed=seed) for seed in (0, 0, 1)]
    with pretended_gpu():
        results = Engine(model, EngineConfig(device="cuda", **{"precision": "fp32", **options})).derain_batch(images)
    expected = Engine(model, EngineConfig(device="cpu", **{**options, "precision": "fp32"})).derain_batch(images)
    white = 1.0 if dtype == "float32" else float(np.iinfo(dtype).max)
    most = {"fp32": 1, "fp16": 2, "bf16": 5}[options.get("precision", "fp32")]
    for result, same in zip(results, expected):
        assert np.abs(result.astype(np.float64) - same.astype(np.float64)).max() / white <= most / 255 + 1e-6


def test_a_tensor_comes_back_where_it_was(tmp_path: Path) -> None:
    save_checkpoint(random_model(), tmp_path / "weights.safetensors")
    image = torch.rand(3, 32, 40)
    with pretended_gpu():
        there = Derainer(tmp_path / "weights.safetensors", device="cuda", precision="fp32").derain(image.to("cuda"))
    assert isinstance(there, OnGPU)
    here = Derainer(tmp_path / "weights.safetensors", device="cpu", precision="fp32").derain(image)
    assert torch.allclose(there.values, here, atol=1e-5)


def test_training_stays_on_its_device(tmp_path: Path, backbones: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all losses, a validation, an end, and from a checkpoint; it comes to what it comes to on a CPU."""
    losses = LossWeights(ssim=1, l1=1, psnr=0.01, pcl=0.4, lpips=1, ubs=0.1, stages=0.3, luma=0.5, ubs_from=0)
    settings = config(2, losses=losses, patch=40, batch=2, clip=1.0)
    pairs = write_pairs(tmp_path / "pairs", 8)

    def joint_loss(weights: LossWeights) -> JointLoss:
        features = VGGFeatures(backbones / "vgg16.safetensors")
        return JointLoss(weights, features, SegmentationNetwork(backbones / "resnet50.safetensors", 50, seed=0))

    def train(name: str, device: torch.device) -> dict[str, Tensor]:
        monkeypatch.setattr("test_training.ALONE", Processes(0, 1, device))
        monkeypatch.setattr("test_training.JointLoss", joint_loss)
        begun = trainer(settings, pairs, tmp_path / name)
        assert not begun.run(lambda report: None, lambda progress: False)
        resumed = trainer(settings, pairs, tmp_path / name)
        resumed.resume(resumed.folder.load())
        assert resumed.run(lambda report: None)
        return load_file(tmp_path / name / "final.safetensors")

    with pretended_gpu():
        there = train("there", GPU)
    here = train("here", torch.device("cpu"))
    for name, values in here.items():
        assert torch.allclose(there[name], values, atol=1e-3), name
