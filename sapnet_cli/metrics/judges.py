"""Measures that look through ImageNet networks: LPIPS, and whether a classifier still sees the same thing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sapnet_cli.losses.backbone import load_resnet
from sapnet_cli.losses.perceptual import LPIPSHeads, VGGFeatures

CLASSIFIER_SIDE, CLASSIFIER_CROP = 256, 224


class LPIPS:
    """LPIPS 0.1 with VGG-16 of RGB pictures in [0, 1], as its own package computes it; 0 for equal ones."""

    label = "LPIPS"

    def __init__(self, vgg16: Path, device: torch.device) -> None:
        """Reads VGG-16; raises `CheckpointError` if the file is missing, damaged or of another network."""
        self._features, self._heads = VGGFeatures(vgg16).to(device), LPIPSHeads().to(device)
        self._device = device

    def __call__(self, image: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
        """Distance of two pictures, (H, W, 3) uint8 each, both sides at least 16."""
        with torch.inference_mode():
            return float(self._heads(*(self._features(_to_tensor(each, self._device)) for each in (image, truth))))


class Classifier:
    """ResNet-50 on the middle of a picture, shrunk to 256 on its shorter side and cut to 224, as it was trained."""

    label = "top-1"

    def __init__(self, resnet50: Path, device: torch.device) -> None:
        """Reads ResNet-50; raises `CheckpointError` if the file is missing, damaged or of another network."""
        self._network, self._mean, self._std = load_resnet(resnet50, 50, classifies=True)
        self._network = self._network.to(device).eval()
        self._device = device

    def classify(self, image: NDArray[np.uint8]) -> int:
        """The likeliest of the 1000 classes of ImageNet for (H, W, 3) uint8."""
        height, width = image.shape[:2]
        scale = CLASSIFIER_SIDE / min(height, width)
        size = (max(CLASSIFIER_SIDE, round(height * scale)), max(CLASSIFIER_SIDE, round(width * scale)))
        pixels = functional.interpolate(
            _to_tensor(image, self._device), size=size, mode="bilinear", antialias=True, align_corners=False
        )
        top, left = ((side - CLASSIFIER_CROP) // 2 for side in size)
        pixels = pixels[:, :, top : top + CLASSIFIER_CROP, left : left + CLASSIFIER_CROP]
        mean, std = (torch.tensor(each, device=self._device).view(1, 3, 1, 1) for each in (self._mean, self._std))
        with torch.inference_mode():
            return int(self._network((pixels - mean) / std).argmax())

    def __call__(self, image: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
        """1 if both pictures are taken for the same thing, else 0."""
        return float(self.classify(image) == self.classify(truth))


def _to_tensor(image: NDArray[np.uint8], device: torch.device) -> Tensor:
    return torch.tensor(image, device=device).permute(2, 0, 1)[None].float() / 255
