"""Files of weights, and what is in them: our own safetensors, and the `.pth` files of the authors (`released.py`).

Nothing is ever unpickled beyond plain tensors, and hyper-parameters are read off the tensors' shapes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from sapnet_cli.errors import CheckpointError
from sapnet_cli.model.config import PRENET, SAPNET, SAPNetConfig

CONFIG_KEY = "sapnet_config"
"""Entry of a safetensors file's metadata that holds the configuration as JSON."""

RAIN_MEANS = "rain_means"
"""The tensor of a safetensors file that is no parameter: see `SAPNet`."""

MAX_BYTES = 256 * 1024**2
"""No network of this family comes near; a larger file is something else and is not read into memory."""


@dataclass(frozen=True)
class Weights:
    """A network, as arrays.

    Attributes:
        config: its hyper-parameters.
        parameters: by the names of `parameter_shapes`, in float32.
        rain_means: see `SAPNet`.
    """

    config: SAPNetConfig
    parameters: Mapping[str, NDArray[np.float32]]
    rain_means: NDArray[np.float32] | None = None


def parameter_shapes(config: SAPNetConfig) -> dict[str, tuple[int, ...]]:
    """Of each parameter of a network, by its name, in the order of `SAPNet`'s."""
    width, squeezed = config.channels, config.channels // config.reduction
    attention = {"direct": (width, width, 1, 1), "squeeze": (squeezed, width, 1, 1), "expand": (width, squeezed, 1, 1)}
    convolutions = {"embed": (width, 6), "gates": (4 * width, 2 * width)}
    shapes: dict[str, tuple[int, ...]] = {}
    for index in range(len(config.dilations)):
        convolutions |= {f"blocks.{index}.conv{each}": (width, width) for each in (1, 2)}
    convolutions["project"] = (3, width)
    for name, size in convolutions.items():
        shapes |= {f"{name}.weight": (*size, 3, 3), f"{name}.bias": size[:1]}
        if config.attention and name.endswith(".conv2"):
            block = name.removesuffix(".conv2")
            for each in (1, 2):
                shapes |= {f"{block}.attention{each}.{part}.weight": shape for part, shape in attention.items()}
    return shapes


def read_weights(path: Path) -> Weights:
    """What a file of weights holds.

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
        from sapnet_cli.model.released import read_released

        return _build(read_released(path), None, path)
    return _build(*_read_safetensors(path), path)


def _read_safetensors(path: Path) -> tuple[dict[str, NDArray[Any]], SAPNetConfig | None]:
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            names = list(file.keys())
            kinds = {file.get_slice(name).get_dtype() for name in names}
            state = {} if "BF16" in kinds else {name: file.get_tensor(name) for name in names}
        if not state:
            state = _read_by_torch(path, names)
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


def _read_by_torch(path: Path, names: list[str]) -> dict[str, NDArray[Any]]:
    """Also what NumPy has no kind for."""
    from sapnet_cli.model.released import to_numpy

    with safe_open(path, framework="pt") as file:
        return {name: to_numpy(file.get_tensor(name)) for name in names}


def _infer_config(state: Mapping[str, NDArray[Any]], path: Path) -> SAPNetConfig:
    """The configuration that the tensors' shapes tell, under our names or the released ones."""
    embed = state.get("embed.weight", state.get("conv0.0.weight"))
    if embed is None or embed.ndim != 4 or embed.shape[1:] != (6, 3, 3):
        raise CheckpointError(f"{path}: not weights of SAPNet or PReNet (no 6-channel 3x3 convolution at their start)")
    channels = embed.shape[0]
    blocks = {match[1] for name in state if (match := re.match(r"(?:blocks\.|res_conv)(\d+)\.", name))}
    squeezes = [tensor for name, tensor in state.items() if name.endswith((".squeeze.weight", ".conv_du.0.weight"))]
    base = SAPNET if squeezes else PRENET
    count = min(len(blocks), 16) or len(base.dilations)
    # a convolution's shape does not tell its dilation: the published ones are 1, 2, 4, ... with attention, 1 without
    dilations = tuple(2**index if base.attention else 1 for index in range(count))
    bottleneck = squeezes[0].shape[0] if squeezes and squeezes[0].ndim else 0
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


def _build(state: Mapping[str, NDArray[Any]], config: SAPNetConfig | None, path: Path) -> Weights:
    config = config or _infer_config(state, path)
    released = "conv0.0.weight" in state
    shapes = parameter_shapes(config)
    names = {name: _released_names(name, config) if released else (name,) for name in shapes}
    parameters: dict[str, NDArray[np.float32]] = {}
    for name, pieces in names.items():
        shape = (shapes[name][0] // len(pieces), *shapes[name][1:])
        parts = [_checked(state, piece, shape, path) for piece in pieces]
        parameters[name] = np.concatenate(parts).astype(np.float32, copy=False)
    further = state.keys() - {piece for pieces in names.values() for piece in pieces}
    for name in further - ({RAIN_MEANS} if config.attention else set()):
        raise CheckpointError(f"{path}: the tensor {name} does not belong to SAPNet")
    if not further:
        return Weights(config, parameters)
    shape = (2, config.stages, 2 * len(config.dilations), config.channels)
    return Weights(config, parameters, _checked(state, RAIN_MEANS, shape, path).astype(np.float32, copy=False))


def _checked(state: Mapping[str, NDArray[Any]], name: str, shape: tuple[int, ...], path: Path) -> NDArray[Any]:
    tensor = state.get(name)
    if tensor is None:
        raise CheckpointError(f"{path}: the tensor {name} is missing")
    if tensor.shape != shape:
        raise CheckpointError(f"{path}: the tensor {name} has shape {tensor.shape} instead of {shape}")
    if not np.issubdtype(tensor.dtype, np.floating):
        raise CheckpointError(f"{path}: the tensor {name} holds {tensor.dtype}, not floating point")
    if not np.isfinite(tensor).all():
        raise CheckpointError(f"{path}: the tensor {name} holds values that are not finite")
    return tensor
