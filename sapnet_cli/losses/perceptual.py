"""Losses in the space of VGG-16: perceptual contrast (PCL) and learned perceptual similarity (LPIPS)."""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import vgg16

from sapnet_cli.errors import CheckpointError
from sapnet_cli.losses.backbone import IMAGENET_MEAN, IMAGENET_STD, read_backbone
from sapnet_cli.model.released import unpickle

STAGE_ENDS = (4, 9, 16, 23, 30)
"""Layers of torchvision's VGG-16 behind which lie relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3."""

CONTRAST_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4)
CONTRAST_EPSILON = 1e-7


class VGGFeatures(nn.Module):
    """VGG-16's convolutions with ImageNet weights, frozen; gives relu1_2, 2_2, 3_3, 4_3 and, if wanted, 5_3."""

    mean: Tensor
    std: Tensor

    def __init__(self, weights: Path, stages: int = 5) -> None:
        """Reads `features.N.weight` and `.bias` as torchvision and timm name them.

        Raises:
            CheckpointError: the file is missing, damaged, or of another network.
        """
        super().__init__()
        self.layers = vgg16(weights=None).features[: STAGE_ENDS[stages - 1]]
        wanted = {f"features.{name}": tensor.shape for name, tensor in self.layers.state_dict().items()}
        state = read_backbone(weights, wanted)
        self.layers.load_state_dict({name.removeprefix("features."): tensor for name, tensor in state.items()})
        for layer in self.layers:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False  # its input's gradient is needed
        self._ends = STAGE_ENDS[:stages]
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features of (B, 3, H, W) RGB in [0, 1], normalised here: one (B, C, H / 2^k, W / 2^k) for each stage."""
        features = (images - self.mean) / self.std
        stages = []
        for index, layer in enumerate(self.layers, start=1):
            features = layer(features)
            if index in self._ends:
                stages.append(features)
        return stages


def perceptual_contrastive_loss(out: Sequence[Tensor], clean: Sequence[Tensor], rainy: Sequence[Tensor]) -> Tensor:
    """Pulls the output to the clean picture and away from the rainy one (paper, PCL).

    `sum_k w_k L1(phi_k(out), phi_k(clean)) / (L1(phi_k(out), phi_k(rainy)) + 1e-7)` for each picture of the batch,
    and the mean over them, so that the loss of a crop does not depend on the crops beside it.

    Args:
        out: features of the output, stage by stage, as from `VGGFeatures`; stages beyond the fourth are not looked at.
        clean: those of the ground truth, the positive.
        rainy: those of the input, the negative.

    Returns:
        A scalar of 0 or more.
    """
    total = torch.zeros((), device=out[0].device)
    for weight, output, positive, negative in zip(CONTRAST_WEIGHTS, out, clean, rainy):
        near, far = _distance(output, positive), _distance(output, negative)
        total = total + weight * (near / (far + CONTRAST_EPSILON)).mean()
    return total


class LPIPSHeads(nn.Module):
    """The learned weights of LPIPS 0.1 on VGG-16 (Zhang et al., CVPR 2018), one non-negative number a channel.

    They come with torchmetrics; the trunk is `VGGFeatures`, whose normalisation is the one that LPIPS uses.
    """

    def __init__(self) -> None:
        """Reads them off the installed package.

        Raises:
            CheckpointError: they are not where torchmetrics keeps them.
        """
        super().__init__()
        package = importlib.util.find_spec("torchmetrics")
        folder = Path(package.origin).parent if package is not None and package.origin else Path()
        path = folder / "functional" / "image" / "lpips_models" / "vgg.pth"
        try:
            state = unpickle(path)
        except pickle.UnpicklingError as error:
            raise CheckpointError(f"{path}: the weights of LPIPS are missing; pip install torchmetrics") from error
        self.heads = nn.ParameterList(state[f"lin{stage}.model.1.weight"] for stage in range(len(STAGE_ENDS)))
        self.eval().requires_grad_(False)

    def forward(self, out: Sequence[Tensor], clean: Sequence[Tensor]) -> Tensor:
        """Mean LPIPS over a batch.

        Args:
            out: features of the output, all five stages.
            clean: those of the ground truth.

        Returns:
            A scalar, 0 for equal pictures.
        """
        total = torch.zeros((), device=out[0].device)
        for head, first, second in zip(self.heads, out, clean):
            difference = (_unit(first.float()) - _unit(second.float())).square()
            total = total + functional.conv2d(difference, head).mean()
        return total


def _distance(first: Tensor, second: Tensor) -> Tensor:
    """Mean absolute difference for each picture, (B,), in float32."""
    return (first.float() - second.float()).abs().flatten(1).mean(dim=1)


def _unit(features: Tensor) -> Tensor:
    """Each pixel's vector of channels at length one; the root is kept off zero, where it has no gradient."""
    length = (features.square().sum(dim=1, keepdim=True) + 1e-20).sqrt()
    return features / (length + 1e-10)
