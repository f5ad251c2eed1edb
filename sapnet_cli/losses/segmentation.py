"""Unsupervised background segmentation (UBS): the output should be easy to segment, whatever the segments are."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from sapnet_cli.losses.backbone import load_resnet

CLASSES = 21
LATERAL_WIDTH, SMOOTH_WIDTH = 256, 128
STAGE_WIDTHS = (256, 512, 1024, 2048)
HEAD_DEVIATION = 0.01
FOCUS = 2.0
"""Exponent gamma of the focal loss."""


class SegmentationNetwork(nn.Module):
    """A feature pyramid on an ImageNet ResNet (paper, UBS), frozen; its own layers are random and stay so.

    1x1 laterals of 256 channels are summed from the coarsest stage up; each sum goes through a 3x3 convolution to 128
    channels, all are enlarged to the finest, concatenated, and classified by a 3x3 convolution into 21 classes.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, weights: Path, depth: int, seed: int) -> None:
        """Reads the ResNet and draws the pyramid from N(0, 0.01), once, by a generator of its own.

        Args:
            weights: safetensors with torchvision's names; torchvision's, timm's and Keras's kinds are told apart.
            depth: 50 or 101.
            seed: of the pyramid.

        Raises:
            CheckpointError: the file is missing, damaged, or of another network.
        """
        super().__init__()
        trunk, mean, std = load_resnet(weights, depth, classifies=False)
        self.stem = nn.Sequential(trunk.conv1, trunk.bn1, nn.ReLU(), trunk.maxpool)
        self.stages = nn.ModuleList([trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4])
        for module in self.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False
        self.laterals = nn.ModuleList(nn.Conv2d(width, LATERAL_WIDTH, 1) for width in STAGE_WIDTHS)
        self.smooths = nn.ModuleList(nn.Conv2d(LATERAL_WIDTH, SMOOTH_WIDTH, 3, padding=1) for _ in STAGE_WIDTHS)
        self.classifier = nn.Conv2d(len(STAGE_WIDTHS) * SMOOTH_WIDTH, CLASSES, 3, padding=1)
        generator = torch.Generator().manual_seed(seed)
        for layer in (*self.laterals, *self.smooths, self.classifier):
            nn.init.normal_(layer.weight, std=HEAD_DEVIATION, generator=generator)
            nn.init.zeros_(layer.bias)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> SegmentationNetwork:
        """Stays in evaluation mode: batch norm must not learn from derained crops."""
        super().train(False)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB in [0, 1] to logits (B, 21, H / 4, W / 4)."""
        features = self.stem((images - self.mean) / self.std)
        levels = []
        for stage in self.stages:
            features = stage(features)
            levels.append(features)
        merged: Tensor | None = None
        branches: list[Tensor] = []
        for level, lateral, smooth in zip(reversed(levels), reversed(self.laterals), reversed(self.smooths)):
            sideways = lateral(level)
            merged = sideways if merged is None else sideways + _enlarge(merged, sideways)
            branches.append(smooth(merged))
        finest = branches[-1]
        logits: Tensor = self.classifier(torch.cat([_enlarge(branch, finest) for branch in branches], dim=1))
        return logits


def background_segmentation_loss(logits: Tensor) -> Tensor:
    """Focal loss (Lin et al., ICCV 2017, gamma 2) against the network's own argmax: no labels (paper, UBS).

    Args:
        logits: (B, 21, H, W) of the output.

    Returns:
        The mean over all pixels, a scalar of 0 or more. The target has no gradient; the network is frozen, so that
        the gradient reaches the derained image only.
    """
    log_probability = functional.log_softmax(logits.float(), dim=1).amax(dim=1)  # that of the argmax
    return (-((1 - log_probability.exp()) ** FOCUS) * log_probability).mean()


def _enlarge(features: Tensor, like: Tensor) -> Tensor:
    return functional.interpolate(features, size=like.shape[2:], mode="bilinear", align_corners=False)
