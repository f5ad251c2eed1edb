"""Networks that were trained on ImageNet, read from safetensors files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sapnet_cli.errors import CheckpointError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of RGB in [0, 1]: what torchvision's and timm's weights expect their input to be normalised by."""


def read_backbone(path: Path, wanted: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Reads named tensors; others in the file, such as a classifier's, are left alone.

    Args:
        path: a safetensors file.
        wanted: names and shapes.

    Raises:
        CheckpointError: the file is missing or damaged, or a tensor is missing, misshaped or not finite.
    """
    try:
        with safe_open(path, framework="pt") as file:
            there = set(file.keys())
            state = {name: file.get_tensor(name) for name in wanted if name in there}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged, or not a safetensors file ({error}); fetch it again") from error
    for name, shape in wanted.items():
        if name not in state:
            raise CheckpointError(f"{path}: the tensor {name} is missing; this is another network")
        if state[name].shape != shape:
            found = tuple(state[name].shape)
            raise CheckpointError(f"{path}: the tensor {name} has shape {found} instead of {tuple(shape)}")
        if not bool(torch.isfinite(state[name]).all()):
            raise CheckpointError(f"{path}: the tensor {name} holds values that are not finite")
    return state
