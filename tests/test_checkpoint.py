"""Weights load from every kind of file that there is, and anything else is refused in one line that names it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_model
from safetensors.torch import save_file
from torch import Tensor

from sapnet_cli.errors import CheckpointError
from sapnet_cli.model.checkpoint import load_checkpoint, save_checkpoint
from sapnet_cli.model.config import PRENET, SAPNET, SAPNetConfig
from sapnet_cli.model.sapnet import SAPNet
from sapnet_cli.model.weights import CONFIG_KEY, parameter_shapes

State = dict[str, Tensor]


def released_names(model: SAPNet) -> State:
    """Our tensors under the names that the authors gave theirs, gates apart."""
    layers = {"conv1": "0", "attention1": "1", "conv2": "3", "attention2": "4"}
    if not model.config.attention:
        layers = {"conv1": "0", "conv2": "2"}
    parts = {"direct": "conv_1_1", "squeeze": "conv_du.0", "expand": "conv_du.2"}
    state: State = {}
    for name, tensor in model.state_dict().items():
        first, *rest = name.split(".")
        if first == "gates":
            for gate, rows in zip("igof", tensor.chunk(4)):
                state[f"module.conv_{gate}.0.{rest[0]}"] = rows.clone()
        elif first == "blocks":
            index, layer, *tail = rest
            tail = [parts.get(part, part) for part in tail]
            state[".".join(["module", f"res_conv{int(index) + 1}", layers[layer], *tail])] = tensor
        else:
            state[f"module.{'conv0' if first == 'embed' else 'conv'}.0.{rest[0]}"] = tensor
    return state


@pytest.mark.parametrize("config", [SAPNET, PRENET])
def test_released_layout(config: object, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = SAPNet(config).eval()  # type: ignore[arg-type]
    torch.save(released_names(model), tmp_path / "net.pth")
    loaded = load_checkpoint(tmp_path / "net.pth")
    assert loaded.config == config
    rainy = torch.rand(1, 3, 9, 9)
    with torch.no_grad():
        assert torch.equal(loaded(rainy), model(rainy))


@pytest.mark.parametrize("name", ["sapnet_official_rain100h", "prenet_official_rain100h", "prenet_official_rain100l"])
def test_the_peers_files_as_they_are(name: str, shared: Path) -> None:
    model = load_checkpoint(shared / "peers" / f"{name}.pth")
    assert model.config == (SAPNET if name.startswith("sapnet") else PRENET)


def test_round_trip_keeps_config_and_values(tmp_path: Path) -> None:
    model = random_model(dilations=(3, 1), stages=3)
    save_checkpoint(model, tmp_path / "net.safetensors", {"made by": "a test"})
    loaded = load_checkpoint(tmp_path / "net.safetensors")
    assert loaded.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]


def test_what_rain_is_to_attention_comes_along(tmp_path: Path) -> None:
    """Beside the parameters, and only of the network's own shape."""
    model, path = random_model(), tmp_path / "net.safetensors"
    save_checkpoint(model, path)
    assert load_checkpoint(path).rain_means is None
    model.rain_means = torch.rand(2, 2, 4, 8)
    save_checkpoint(model, path)
    loaded = load_checkpoint(path)
    assert loaded.rain_means is not None
    assert torch.equal(loaded.rain_means, model.rain_means)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    model.rain_means = torch.rand(2, 3, 4, 8)
    save_checkpoint(model, path)
    with pytest.raises(CheckpointError, match=r"rain_means has shape \(2, 3, 4, 8\) instead of \(2, 2, 4, 8\)"):
        load_checkpoint(path)
    plain = random_model(attention=False)
    plain.rain_means = torch.rand(2, 2, 4, 8)
    save_checkpoint(plain, path)
    with pytest.raises(CheckpointError, match="rain_means does not belong"):
        load_checkpoint(path)


def test_half_precision_loads_as_float32(tmp_path: Path) -> None:
    state = {name: tensor.half() for name, tensor in SAPNet().state_dict().items()}
    save_file(state, tmp_path / "half.safetensors")
    assert load_checkpoint(tmp_path / "half.safetensors").embed.weight.dtype == torch.float32


def drop(state: State) -> None:
    del state["gates.bias"]


def add(state: State) -> None:
    state["head.weight"] = torch.zeros(3)


def reshape(state: State) -> None:
    state["blocks.0.conv1.weight"] = torch.zeros(8, 8, 5, 5)


def poison(state: State) -> None:
    state["project.bias"][1] = float("nan")


def integers(state: State) -> None:
    state["project.bias"] = torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop, "gates.bias is missing"),
        (add, "head.weight does not belong"),
        (reshape, r"blocks.0.conv1.weight has shape \(8, 8, 5, 5\) instead of \(8, 8, 3, 3\)"),
        (poison, "project.bias holds values that are not finite"),
        (integers, "project.bias holds int64"),
    ],
)
def test_spoilt_tensors_are_named(spoil: Callable[[State], None], message: str, tmp_path: Path) -> None:
    model, path = random_model(), tmp_path / "net.safetensors"
    save_checkpoint(model, path)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    spoil(state)
    config = {"stages": 2, "channels": 8, "dilations": [1, 2], "attention": True, "reduction": 4}
    save_file(state, path, {CONFIG_KEY: json.dumps(config)})
    with pytest.raises(CheckpointError, match=message) as raised:
        load_checkpoint(path)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("pwned",)


def test_pickled_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"conv0.0.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="holds pickled code"):
        load_checkpoint(tmp_path / "evil.pth")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("conv_f.0.weight", None, "conv_f.0.weight is missing"),
        ("res_conv3.4.conv_du.0.weight", None, "res_conv3.4.conv_du.0.weight is missing"),
        ("conv_f.0.weight", torch.zeros(32, 60, 3, 3), r"conv_f.0.weight has shape \(32, 60, 3, 3\)"),
        ("conv_o.0.bias", torch.full((32,), float("inf")), "conv_o.0.bias holds values that are not finite"),
        ("res_conv1.2.weight", torch.zeros(1), "res_conv1.2.weight does not belong"),
    ],
)
def test_spoilt_released_tensors_are_named_as_released(
    name: str, tensor: Tensor | None, message: str, tmp_path: Path
) -> None:
    state = released_names(SAPNet())
    state.pop(f"module.{name}", None)
    if tensor is not None:
        state[f"module.{name}"] = tensor
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "net.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"just some text, no weights at all", "damaged"),
        (b"PK\x03\x04 but no archive", "damaged"),
        (b"\x80\x02 no pickle", "damaged"),
    ],
)
def test_other_files(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


def saved(model: SAPNet, folder: Path, ending: str) -> Path:
    """A file of weights, ours or as the authors released theirs."""
    path = folder / f"net.{ending}"
    if ending == "pth":
        torch.save(released_names(model), path)
    else:
        save_checkpoint(model, path)
    return path


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_truncated_files(ending: str, tmp_path: Path) -> None:
    path = saved(SAPNet(), tmp_path, ending)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_tampered_files(ending: str, tmp_path: Path) -> None:
    """Whatever damaged data comes to while it is read, it is one error or weights."""
    path, random = saved(random_model(), tmp_path, ending), np.random.default_rng(0)
    whole, refused = path.read_bytes(), 0
    for _ in range(400):
        data = bytearray(whole)
        for position in random.integers(8, 2500, random.integers(1, 6)):
            data[position] = random.integers(256)
        path.write_bytes(data)
        try:
            load_checkpoint(path)
        except CheckpointError:
            refused += 1
    assert refused > 100


def test_other_networks_are_refused(tmp_path: Path) -> None:
    save_file({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "vgg.safetensors")
    with pytest.raises(CheckpointError, match="not weights of SAPNet"):
        load_checkpoint(tmp_path / "vgg.safetensors")
    with pytest.raises(CheckpointError, match="No such file"):
        load_checkpoint(tmp_path / "none.safetensors")


@pytest.mark.parametrize("config", ['{"stages": 6}', "nonsense", '{"dilations": [0], "channels": 8}', "[]"])
def test_tampered_config(config: str, tmp_path: Path) -> None:
    save_file(random_model().state_dict(), tmp_path / "net.safetensors", {CONFIG_KEY: config})
    with pytest.raises(CheckpointError, match="tampered"):
        load_checkpoint(tmp_path / "net.safetensors")


@pytest.mark.parametrize("config", [SAPNET, PRENET])
def test_the_shapes_of_parameters_are_known_without_a_network(config: SAPNetConfig) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in SAPNet(config).state_dict().items()}
    assert list(parameter_shapes(config).items()) == list(expected.items())


def test_weights_in_bfloat16_are_read(tmp_path: Path) -> None:
    """NumPy does not know them."""
    model = random_model()
    state = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    save_file(state, tmp_path / "half.safetensors", {CONFIG_KEY: json.dumps(asdict(model.config))})
    read = load_checkpoint(tmp_path / "half.safetensors").state_dict()
    assert all(torch.equal(read[name], tensor.float()) for name, tensor in state.items())
