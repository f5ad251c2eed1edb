"""The network against a plain transcription of the equations in the paper, one convolution a gate."""

from __future__ import annotations

import pytest
import torch
from conftest import random_model
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from sapnet_cli.model import convolution
from sapnet_cli.model.config import PRENET, SAPNET, SAPNetConfig
from sapnet_cli.model.sapnet import SAPNet


def plain_forward(state: dict[str, Tensor], y: Tensor, config: SAPNetConfig) -> list[Tensor]:
    """The unit exactly as the paper writes it, from the zero state on."""
    width = config.channels
    zeros = torch.zeros(y.shape[0], width, *y.shape[2:])
    h, c, x = zeros, zeros, y
    names = {"i": 0, "g": 1, "o": 2, "f": 3}
    images = []

    def conv(name: str, z: Tensor, dilation: int = 1) -> Tensor:
        return F.conv2d(z, state[f"{name}.weight"], state[f"{name}.bias"], padding=dilation, dilation=dilation)

    def gate(name: str, z: Tensor) -> Tensor:
        rows = slice(names[name] * width, (names[name] + 1) * width)
        return F.conv2d(z, state["gates.weight"][rows], state["gates.bias"][rows], padding=1)

    def attend(name: str, z: Tensor) -> Tensor:
        if not config.attention:
            return z
        p = z.mean(dim=(2, 3))
        a, d1, d2 = (state[f"{name}.{part}.weight"][:, :, 0, 0] for part in ("direct", "squeeze", "expand"))
        return z * torch.sigmoid(p @ a.T + torch.relu(p @ d1.T) @ d2.T)[:, :, None, None]

    for _ in range(config.stages):
        f = torch.relu(conv("embed", torch.cat((y, x), dim=1)))
        z = torch.cat((f, h), dim=1)
        i, forget, o = (torch.sigmoid(gate(name, z)) for name in "ifo")
        c = forget * c + i * torch.tanh(gate("g", z))
        h = o * torch.tanh(c)
        z = h
        for index, dilation in enumerate(config.dilations):
            block = f"blocks.{index}"
            inner = torch.relu(attend(f"{block}.attention1", conv(f"{block}.conv1", z, dilation)))
            inner = torch.relu(attend(f"{block}.attention2", conv(f"{block}.conv2", inner, dilation)))
            z = torch.relu(z + inner)
        x = conv("project", z) + y
        images.append(x)
    return images


@pytest.mark.parametrize("config", [SAPNET, PRENET, SAPNetConfig(stages=3, channels=16, dilations=(1, 3), reduction=2)])
def test_equals_the_equations(config: SAPNetConfig) -> None:
    torch.manual_seed(1)
    model = SAPNet(config).eval()
    rainy = torch.rand(2, 3, 21, 34)
    with torch.no_grad():
        images = model.stage_images(rainy)
        expected = plain_forward(model.state_dict(), rainy, config)
    assert len(images) == config.stages
    for image, plain in zip(images, expected):
        torch.testing.assert_close(image, plain, rtol=0, atol=2e-5)


def test_parameters_are_as_many_as_published() -> None:
    def count(config: SAPNetConfig) -> int:
        return sum(parameter.numel() for parameter in SAPNet(config).parameters())

    assert count(SAPNET) == 180_483
    assert count(PRENET) == 168_963


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (5, 2), (16, 33)])
def test_any_size_and_batch(height: int, width: int) -> None:
    model, rainy = random_model(), torch.rand(3, 3, height, width)
    derained = model(rainy)
    assert derained.shape == rainy.shape
    assert derained.min() >= 0
    assert derained.max() <= 1
    torch.testing.assert_close(derained[1:2], model(rainy[1:2]))


def test_fewer_stages_are_a_prefix() -> None:
    model, rainy = random_model(stages=4), torch.rand(1, 3, 12, 12)
    images = model.stage_images(rainy)
    assert torch.equal(model(rainy, stages=2), images[1].clamp(0, 1))
    assert not torch.equal(images[1], images[3])


def test_gradient_reaches_every_parameter() -> None:
    torch.manual_seed(0)
    model = SAPNet(SAPNetConfig(stages=2, reduction=2))  # with two channels, attention's ReLU may start dead
    model(torch.rand(2, 3, 24, 24)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(("size", "strip"), [((2, 3), 4096), ((20, 27), 4096), ((20, 27), 60)])
def test_gradients_are_those_of_the_equations(
    size: tuple[int, int], strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolution, "STRIP_PIXELS", strip)
    config = SAPNetConfig(stages=2, channels=8, dilations=(1, 16), reduction=2)
    model, rainy = random_model(**vars(config)), torch.rand(2, 3, *size)
    model.requires_grad_(True)
    parameters = dict(model.named_parameters())
    found, expected = (
        torch.autograd.grad(sum(image.square().mean() for image in images), list(parameters.values()))
        for images in (model.stage_images(rainy), plain_forward(parameters, rainy, config))
    )
    for name, one, other in zip(parameters, found, expected):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("channels", [4, 32])
def test_a_compiled_step_has_the_same_gradients(channels: int) -> None:
    """What `torch.compile` makes of the convolutions' own gradient, of networks that else learn in C, too: traced, not
    run through a compiler."""
    model, rainy = random_model(stages=2, channels=channels, dilations=(2,), reduction=2), torch.rand(1, 3, 12, 12)
    model.requires_grad_(True)
    parameters = list(model.parameters())
    compiled = torch.compile(model.stage_images, backend="aot_eager", dynamic=False)
    found, expected = (
        torch.autograd.grad(images(rainy)[-1].square().mean(), parameters) for images in (compiled, model.stage_images)
    )
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other)
