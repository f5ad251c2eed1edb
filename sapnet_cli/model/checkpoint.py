"""Files of weights: our own safetensors, and the `.pth` files that the authors of SAPNet and PReNet released.

Nothing is ever unpickled beyond plain tensors, and hyper-parameters are read off the tensors' shapes.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sapnet_cli.errors import CheckpointError
from sapnet_cli.files import write_atomically
from sapnet_cli.model.sapnet import PRENET, SAPNET, SAPNet, SAPNetConfig

CONFIG_KEY = "sapnet_config"
"""Entry of a safetensors file's metadata that holds the configuration as JSON."""

RAIN_MEANS = "rain_means"
"""The tensor of a safetensors file that is no parameter: see `SAPNet`."""

RELEASED_PREFIX = "module."

MAX_BYTES = 256 * 1024**2
"""No network of this family comes near; a larger file is something else and is not read into memory."""


def load_checkpoint(path: Path) -> SAPNet:
    """Builds the network that a file of weights describes, on the CPU, in float32, ready for inference.

    Args:
        path: `.safetensors` as written by `save_checkpoint`, or a released PyTorch file; told apart by content.

    Raises:
        CheckpointError: the file is missing, damaged, holds pickled code, or its tensors are missing, foreign,
            misshaped or not finite.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read weights: {error.strerror or error}") from error
    if size == 0:
        raise CheckpointError(f"{path}: the file of weights is empty; fetch or copy it again")
    if size > MAX_BYTES:
        raise CheckpointError(f"{path}: {size // 1024**2} MB is too large for SAPNet weights, which take about 1 MB")
    # a PyTorch file is a zip archive or, before 1.6, begins with a pickle opcode
    if head[:2] in (b"PK", b"\x80\x02"):
        state, config = _read_released(path), None
    else:
        state, config = _read_safetensors(path)
    return _build(state, config, path)


def save_checkpoint(model: SAPNet, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes weights and configuration as safetensors, beside the target first and then renamed over it.

    Raises:
        OSError: the folder can't be written.
    """
    state = {name: tensor.detach().float().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if model.rain_means is not None:
        state[RAIN_MEANS] = model.rain_means.float().cpu().contiguous()
    config = asdict(model.config)
    if not config["upright"]:
        del config["upright"]  # as it was before there was such a field: equal weights are equal files
    write_atomically(path, save(state, {**(metadata or {}), CONFIG_KEY: json.dumps(config)}))


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], SAPNetConfig | None]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except (SafetensorError, OSError) as error:
        reason = "damaged, or neither safetensors nor a PyTorch file"
        raise CheckpointError(f"{path}: {reason} ({error}); fetch or copy it again") from error
    if CONFIG_KEY not in metadata:
        return state, None
    try:
        fields = json.loads(metadata[CONFIG_KEY])
        config = SAPNetConfig(**{**fields, "dilations": tuple(fields["dilations"])})
        numbers = (config.stages, config.channels, config.reduction, *config.dilations)
        if not all(type(number) is int and 1 <= number <= 1024 for number in numbers):
            raise ValueError("a number is out of range")
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{path}: its {CONFIG_KEY} makes no sense ({error}); the file was tampered with"
        ) from error
    return state, config


def unpickle(path: Path) -> Any:
    """Plain data and tensors that PyTorch pickled, on the CPU.

    Raises:
        pickle.UnpicklingError: the file is missing or damaged, or holds code, which is not run.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch wonders about what is refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # damaged data may come to anything
        raise pickle.UnpicklingError(str(error)) from error


def _read_released(path: Path) -> dict[str, Tensor]:
    try:
        content = unpickle(path)
    except pickle.UnpicklingError as error:
        if any(phrase in str(error) for phrase in ("GLOBAL", "Unsupported class", "unrecognized function")):
            raise CheckpointError(
                f"{path}: holds pickled code besides tensors and is not loaded; ask for a safetensors file"
            ) from error
        raise CheckpointError(f"{path}: damaged PyTorch file; fetch or copy it again") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: not a plain table of tensors; pass the network's state_dict")
    return {str(name).removeprefix(RELEASED_PREFIX): tensor for name, tensor in content.items()}


def _infer_config(state: Mapping[str, Tensor], path: Path) -> SAPNetConfig:
    """The configuration that the tensors' shapes tell, under our names or the released ones."""
    embed = state.get("embed.weight", state.get("conv0.0.weight"))
    if embed is None or embed.dim() != 4 or embed.shape[1:] != (6, 3, 3):
        raise CheckpointError(f"{path}: not weights of SAPNet or PReNet (no 6-channel 3x3 convolution at their start)")
    channels = embed.shape[0]
    blocks = {match[1] for name in state if (match := re.match(r"(?:blocks\.|res_conv)(\d+)\.", name))}
    squeezes = [tensor for name, tensor in state.items() if name.endswith((".squeeze.weight", ".conv_du.0.weight"))]
    base = SAPNET if squeezes else PRENET
    count = min(len(blocks), 16) or len(base.dilations)
    # a convolution's shape does not tell its dilation: the published ones are 1, 2, 4, ... with attention, 1 without
    dilations = tuple(2**index if base.attention else 1 for index in range(count))
    bottleneck = squeezes[0].shape[0] if squeezes and squeezes[0].dim() else 0
    reduction = channels // bottleneck if 0 < bottleneck <= channels else base.reduction
    return SAPNetConfig(base.stages, channels, dilations, base.attention, reduction)


def _released_names(name: str, config: SAPNetConfig) -> tuple[str, ...]:
    """What the authors called one of our tensors; the gates were four convolutions then."""
    first, *rest = name.split(".")
    if first == "gates":
        return tuple(f"conv_{gate}.0.{rest[0]}" for gate in "igof")
    if first != "blocks":
        return (f"{ {'embed': 'conv0', 'project': 'conv'}[first] }.0.{rest[0]}",)
    index, layer, *tail = rest
    layers = (
        {"conv1": 0, "attention1": 1, "conv2": 3, "attention2": 4} if config.attention else {"conv1": 0, "conv2": 2}
    )
    parts = {"direct": "conv_1_1", "squeeze": "conv_du.0", "expand": "conv_du.2"}
    return (".".join([f"res_conv{int(index) + 1}", str(layers[layer]), *(parts.get(part, part) for part in tail)]),)


def _build(state: Mapping[str, Tensor], config: SAPNetConfig | None, path: Path) -> SAPNet:
    config = config or _infer_config(state, path)
    with torch.device("meta"):
        model = SAPNet(config)
    expected = model.state_dict()
    released = "conv0.0.weight" in state
    names = {name: _released_names(name, config) if released else (name,) for name in expected}
    tensors: dict[str, Tensor] = {}
    for name, pieces in names.items():
        shape = (expected[name].shape[0] // len(pieces), *expected[name].shape[1:])
        tensors[name] = torch.cat([_checked(state, piece, shape, path) for piece in pieces]).float()
    further = state.keys() - {piece for pieces in names.values() for piece in pieces}
    for name in further - ({RAIN_MEANS} if config.attention else set()):
        raise CheckpointError(f"{path}: the tensor {name} does not belong to SAPNet")
    model.load_state_dict(tensors, assign=True)
    if further:
        shape = (2, config.stages, 2 * len(config.dilations), config.channels)
        model.rain_means = _checked(state, RAIN_MEANS, shape, path).float()
    return model.eval().requires_grad_(False)


def _checked(state: Mapping[str, Tensor], name: str, shape: tuple[int, ...], path: Path) -> Tensor:
    tensor = state.get(name)
    if tensor is None:
        raise CheckpointError(f"{path}: the tensor {name} is missing")
    if tensor.shape != shape:
        raise CheckpointError(f"{path}: the tensor {name} has shape {tuple(tensor.shape)} instead of {shape}")
    if not tensor.is_floating_point():
        raise CheckpointError(f"{path}: the tensor {name} holds {tensor.dtype}, not floating point")
    if not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(f"{path}: the tensor {name} holds values that are not finite")
    return tensor
