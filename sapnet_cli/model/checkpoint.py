"""Files of weights: our own safetensors, and the `.pth` files that the authors of SAPNet and PReNet released.

Nothing is ever unpickled beyond plain tensors, and hyper-parameters are read off the tensors' shapes.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sapnet_cli.errors import CheckpointError
from sapnet_cli.model.sapnet import PRENET, SAPNET, SAPNet, SAPNetConfig

CONFIG_KEY = "sapnet_config"
"""Entry of a safetensors file's metadata that holds the configuration as JSON."""

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
    data = save(state, {**(metadata or {}), CONFIG_KEY: json.dumps(asdict(model.config))})
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


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


def _read_released(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if any(phrase in str(error) for phrase in ("GLOBAL", "Unsupported class", "unrecognized function")):
            raise CheckpointError(
                f"{path}: holds pickled code besides tensors and is not loaded; ask for a safetensors file"
            ) from error
        raise CheckpointError(f"{path}: damaged PyTorch file; fetch or copy it again") from error
    except (RuntimeError, EOFError, KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: damaged PyTorch file; fetch or copy it again") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: not a plain table of tensors; pass the network's state_dict")
    state = {str(name).removeprefix("module."): tensor for name, tensor in content.items()}
    return _rename_released(state) if "conv0.0.weight" in state else state


def _rename_released(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Translates the released names to ours and fuses the gates, leaving what it does not know under its own name."""
    renamed: dict[str, Tensor] = {}
    gates: dict[str, dict[str, Tensor]] = {"weight": {}, "bias": {}}
    layers = {"0": "conv1", "3": "conv2", "1": "attention1", "4": "attention2"}
    if not any(".conv_1_1." in name for name in state):  # PReNet: no attention between the convolutions
        layers = {"0": "conv1", "2": "conv2"}
    parts = {"conv_1_1": "direct", "conv_du.0": "squeeze", "conv_du.2": "expand"}
    for name, tensor in state.items():
        if match := re.fullmatch(r"conv0\.0\.(weight|bias)", name):
            renamed[f"embed.{match[1]}"] = tensor
        elif match := re.fullmatch(r"conv\.0\.(weight|bias)", name):
            renamed[f"project.{match[1]}"] = tensor
        elif match := re.fullmatch(r"conv_([ifgo])\.0\.(weight|bias)", name):
            gates[match[2]][match[1]] = tensor
        elif (match := re.fullmatch(r"res_conv(\d+)\.(\d)\.(weight|bias)", name)) and match[2] in layers:
            renamed[f"blocks.{int(match[1]) - 1}.{layers[match[2]]}.{match[3]}"] = tensor
        elif (match := re.fullmatch(r"res_conv(\d+)\.(\d)\.(conv_1_1|conv_du\.[02])\.weight", name)) and match[
            2
        ] in layers:
            renamed[f"blocks.{int(match[1]) - 1}.{layers[match[2]]}.{parts[match[3]]}.weight"] = tensor
        else:
            renamed[name] = tensor
    for kind, tensors in gates.items():
        shapes = {tuple(tensor.shape) for tensor in tensors.values()}
        if len(tensors) == 4 and len(shapes) == 1:
            renamed[f"gates.{kind}"] = torch.cat([tensors[gate] for gate in "igof"])
        elif len(tensors) == 4:
            raise CheckpointError(f"conv_i, conv_f, conv_g and conv_o differ in the shape of their {kind}")
    return renamed


def _infer_config(state: Mapping[str, Tensor], path: Path) -> SAPNetConfig:
    embed = state.get("embed.weight")
    if embed is None or embed.dim() != 4 or embed.shape[1:] != (6, 3, 3):
        raise CheckpointError(f"{path}: not weights of SAPNet or PReNet (no 6-channel 3x3 convolution at their start)")
    channels = embed.shape[0]
    blocks = {int(match[1]) for name in state if (match := re.match(r"blocks\.(\d+)\.", name))}
    squeeze = state.get("blocks.0.attention1.squeeze.weight")
    base = PRENET if squeeze is None else SAPNET
    count = len(blocks) or len(base.dilations)
    # a convolution's shape does not tell its dilation: the published ones are 1, 2, 4, ... with attention, 1 without
    dilations = tuple(2**index if squeeze is not None else 1 for index in range(min(count, 16)))
    reduction = channels // max(1, squeeze.shape[0]) if squeeze is not None and squeeze.dim() else base.reduction
    return SAPNetConfig(base.stages, channels, dilations, squeeze is not None, max(1, reduction))


def _build(state: dict[str, Tensor], config: SAPNetConfig | None, path: Path) -> SAPNet:
    config = config or _infer_config(state, path)
    with torch.device("meta"):
        model = SAPNet(config)
    expected = model.state_dict()
    for name in expected.keys() - state.keys():
        raise CheckpointError(f"{path}: the tensor {name} is missing")
    for name in state.keys() - expected.keys():
        raise CheckpointError(f"{path}: the tensor {name} does not belong to SAPNet")
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            shapes = f"{tuple(tensor.shape)} instead of {tuple(expected[name].shape)}"
            raise CheckpointError(f"{path}: the tensor {name} has shape {shapes}")
        if not tensor.is_floating_point():
            raise CheckpointError(f"{path}: the tensor {name} holds {tensor.dtype}, not floating point")
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{path}: the tensor {name} holds values that are not finite")
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    return model.eval().requires_grad_(False)
