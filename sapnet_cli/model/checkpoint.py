"""Networks from files of weights (`weights.py`), and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save

from sapnet_cli.files import write_atomically
from sapnet_cli.model.sapnet import SAPNet
from sapnet_cli.model.weights import CONFIG_KEY, RAIN_MEANS, Weights, read_weights


def load_checkpoint(path: Path) -> SAPNet:
    """Builds the network that a file of weights describes, as `build` does; raises what `read_weights` raises."""
    return build(read_weights(path))


def build(weights: Weights) -> SAPNet:
    """A network of weights of its own, on the CPU, in float32, ready for inference."""
    with torch.device("meta"):
        model = SAPNet(weights.config)
    state = {name: torch.from_numpy(values.copy()) for name, values in weights.parameters.items()}
    model.load_state_dict(state, assign=True)
    if weights.rain_means is not None:
        model.rain_means = torch.from_numpy(weights.rain_means.copy())
    return model.eval().requires_grad_(False)


def weights_of(model: SAPNet) -> Weights:
    """A network's weights as they are now."""
    parameters = {name: tensor.detach().float().cpu().numpy().copy() for name, tensor in model.state_dict().items()}
    means = model.rain_means
    return Weights(model.config, parameters, None if means is None else means.float().cpu().numpy().copy())


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
