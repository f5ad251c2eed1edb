"""Networks that others trained, on ImageNet or COCO, read from files."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torchvision.models import ResNet, resnet50, resnet101

from sapnet_cli.errors import CheckpointError
from sapnet_cli.model.released import unpickle

Network = TypeVar("Network", bound=nn.Module)

Triple = tuple[float, float, float]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of RGB in [0, 1]: what torchvision's and timm's weights expect their input to be normalised by."""

CAFFE_MEAN = (123.68, 116.779, 103.939)
CAFFE_VARIANCE = 100.0
"""Mean running variance behind the first convolution, above which weights were trained on pixels from 0 to 255: it is
about one for normalised input and thousands for Caffe's and Keras's, which also stride in the first 1x1 convolution."""


def load_resnet(path: Path, depth: int, classifies: bool) -> tuple[ResNet, Triple, Triple]:
    """A ResNet with ImageNet weights; torchvision's, timm's and Keras's kinds are told apart by their statistics.

    Args:
        path: safetensors with torchvision's names.
        depth: 50 or 101.
        classifies: whether with its classifier of 1000 classes; without, its last layer does nothing.

    Returns:
        The network, and the mean and deviation that RGB in [0, 1] is to be normalised by.

    Raises:
        CheckpointError: the file is missing, damaged, or of another network.
    """
    network: ResNet = {50: resnet50, 101: resnet101}[depth](weights=None)
    if not classifies:
        network.fc = nn.Identity()
    wanted = {name: tensor.shape for name, tensor in network.state_dict().items() if "num_batches" not in name}
    state = read_backbone(path, wanted)
    network.load_state_dict(state, strict=False)
    if float(state["bn1.running_var"].mean()) <= CAFFE_VARIANCE:
        return network, IMAGENET_MEAN, IMAGENET_STD
    for stage in (network.layer2, network.layer3, network.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    return network, (CAFFE_MEAN[0] / 255, CAFFE_MEAN[1] / 255, CAFFE_MEAN[2] / 255), (1 / 255, 1 / 255, 1 / 255)


def load_torchvision(network: Network, path: Path) -> Network:
    """Reads torchvision's weights into one of its networks.

    Args:
        network: gets them.
        path: safetensors, or torchvision's own `.pth`.

    Raises:
        CheckpointError: the file is missing, damaged, or of another network.
    """
    wanted = {name: tensor.shape for name, tensor in network.state_dict().items() if "num_batches" not in name}
    if path.suffix == ".safetensors":
        network.load_state_dict(read_backbone(path, wanted), strict=False)
        return network
    try:
        network.load_state_dict(unpickle(path))
    except (pickle.UnpicklingError, RuntimeError, LookupError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged, or of another network; fetch it again") from error
    return network


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
