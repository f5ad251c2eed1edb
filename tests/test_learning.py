"""The gradients in C are those of the same equations in PyTorch, in float64."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from conftest import first, last, needs_native, plane, random_model
from torch import Tensor
from torch.nn import functional

from sapnet_cli.model import compiled, gradients, learning, native
from sapnet_cli.model.convolution import turn
from sapnet_cli.model.sapnet import SAPNet, global_average_pool
from sapnet_cli.training.config import Budget, TrainingConfig
from sapnet_cli.training.trainer import compiling_pays

pytestmark = [needs_native, pytest.mark.usefixtures("instructions")]


def near(given: Sequence[Tensor | None], exact: Sequence[Tensor | None], bound: float = 1e-4) -> None:
    """Each is as near as rounding lets it be, by the largest value of it."""
    for ours, theirs in zip(given, exact, strict=True):
        assert ours is not None
        assert theirs is not None
        assert ours.shape == theirs.shape
        assert float((ours - theirs).detach().abs().max()) <= bound * float(theirs.abs().max())


def exactly(*tensors: Tensor) -> list[Tensor]:
    return [each.double().requires_grad_() for each in tensors]


@pytest.mark.parametrize("size", [(1, 1), (19, 26), (40, 67)])
@pytest.mark.parametrize("dilation", [1, 4])
@pytest.mark.parametrize("side", native.POINTS)
@pytest.mark.parametrize("state", [False, True])
def test_the_gradient_of_a_kernel(
    size: tuple[int, int], dilation: int, side: int, state: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "choose_side", lambda *_: side)
    seen, besides, wanted = (plane(2, *size, channels, seed=channels) for channels in (32, 16, 64))
    given = gradients.kernel_gradient(seen, wanted, dilation, besides if state else None)
    read = torch.cat((seen, besides), dim=3) if state else seen
    (weight,) = exactly(torch.zeros(64, read.shape[3], 3, 3))
    result = functional.conv2d(first(read).double(), weight, padding=dilation, dilation=dilation)
    near([given], torch.autograd.grad((last(result) * wanted).sum(), weight))


@pytest.mark.parametrize("size", [(1, 1), (9, 7), (40, 67)])
@pytest.mark.parametrize("dilation", [1, 4])
@pytest.mark.parametrize("side", native.POINTS)
@pytest.mark.parametrize("skipped", [False, True])
def test_the_gradient_of_attention(
    size: tuple[int, int], dilation: int, side: int, skipped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of the convolution that comes after it."""
    torch.manual_seed(0)  # near to where a ReLU begins, floats may decide otherwise: one of a few thousand draws is
    monkeypatch.setattr(native, "choose_side", lambda *_: side)
    x, skip, more, wanted = (plane(3, *size, channels, seed=seed) for seed, channels in enumerate((32, 32, 32, 64)))
    scale, weight = torch.rand(3, 32), torch.randn(64, 32, 3, 3) / 17
    exact = exactly(x, scale, skip)
    result = (exact[0] * exact[1][:, None, None]).relu()
    if skipped:
        result = (exact[2] + result).relu()
    given = last(functional.conv2d(first(result), weight.double(), padding=dilation, dilation=dilation))
    total = (given * wanted).sum() + (result * more).sum()
    of_x, of_scale, *of_skip = torch.autograd.grad(total, exact[: 3 if skipped else 2])

    kernel = native.transform(turn(weight), native.choose_side(*size, dilation))
    (plain,) = exactly(torch.zeros_like(x))
    convolved = last(functional.conv2d(first(plain), weight.double(), padding=dilation, dilation=dilation))
    whole = torch.autograd.grad((convolved * wanted).sum(), plain)[0]
    bare, none = gradients.convolve_back(wanted, kernel, dilation)
    assert none == ()
    near([bare], [whole])
    near([gradients.convolve_back(wanted, kernel, dilation, more.clone())[0]], [whole + more])

    through = gradients.Through(result.detach().float(), skip if skipped else None)
    place = more.clone()
    passed, sums = gradients.convolve_back(wanted, kernel, dilation, place, through)
    assert passed is place
    near([passed], of_skip or [(whole + more) * (result > 0)])
    near([sums[1] / scale, scale * sums[0]], [of_scale, of_x.sum(dim=(1, 2))], bound=1e-3)
    shift = torch.randn(3, 32)
    attention = gradients.Attention(scale, shift, through if skipped else None, None if skipped else passed)
    inner = gradients.pass_attention(passed, attention)
    assert (inner is passed) != skipped
    near([inner], [of_x + shift[:, None, None]])
    alone, _ = gradients.convolve_back(wanted, kernel, dilation, through=through)
    near([alone], [whole * (result > 0)])


@pytest.mark.parametrize("size", [(1, 1), (9, 7), (40, 67)])
@pytest.mark.parametrize("is_first", [False, True])
@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 4e-3)])
def test_the_gradient_of_a_step(
    size: tuple[int, int], is_first: bool, is_last: bool, dtype: torch.dtype, bound: float
) -> None:
    """The last step's cell state is for nothing."""
    number = 3 if is_first else 4
    gates, before, of_hidden, of_cell = (plane(2, *size, 16 * each, seed=each).to(dtype) for each in (number, 1, 1, 1))
    exact = exactly(gates, before)
    gate_in, candidate, gate_out, *forget = exact[0].split(16, dim=3)
    cell = gate_in.sigmoid() * candidate.tanh()
    if not is_first:
        cell = cell + forget[0].sigmoid() * exact[1]
    total = (gate_out.sigmoid() * cell.tanh() * of_hidden).sum() + (0 if is_last else (cell * of_cell).sum())
    found = torch.autograd.grad(total, exact[: 1 if is_first else 2])
    given = gradients.step_back(gates, None if is_first else before, of_hidden, None if is_last else of_cell)
    near([given[0]], [found[0]], bound)
    near([given[2]], [found[0].sum(dim=(0, 1, 2))])
    assert given[2].dtype is torch.float32
    if is_first:
        assert given[1] is None
    else:
        near([given[1]], [found[1]], bound)


def test_gates_at_any_value() -> None:
    """Where exponentials end gradients are zero, and what is no number is not hidden."""
    gates = torch.tensor([-1e4, 1e4, 0.0, float("nan")]).repeat(16).expand(1, 2, 2, 64).contiguous()
    one = torch.ones(1, 2, 2, 16)
    of_gates, of_cell, of_bias = gradients.step_back(gates, one, one, one)
    assert of_cell is not None
    for given in (of_gates[0, 0, 0], of_bias, of_cell[0, 0, 0]):
        assert torch.isfinite(given.view(-1, 4)[:, :3]).all()
        assert torch.isnan(given.view(-1, 4)[:, 3]).all()


def test_they_write_nowhere_else() -> None:
    good, scale, kernel = plane(1, 9, 9, 32), torch.ones(1, 32), native.transform(torch.zeros(32, 32, 3, 3), 4)
    for bad in (plane(1, 8, 9, 32), plane(1, 9, 9, 64), plane(1, 9, 9, 64)[..., ::2], good.half(), good.double()):
        for gradient, through, place in (
            (bad, (good, good), good),
            (good, (bad, good), good),
            (good, (good, bad), good),
            (good, (good, good), bad),
        ):
            attention = gradients.Attention(scale, scale, gradients.Through(*through), place)
            with pytest.raises(ValueError, match="what is to be"):
                gradients.pass_attention(gradient, attention)
            with pytest.raises(ValueError, match="what is to be"):
                gradients.convolve_back(gradient, kernel, 1, place, gradients.Through(*through))
            if place is good:
                with pytest.raises(ValueError, match="what is to be"):
                    gradients.step_back(good.repeat(1, 1, 1, 4), through[0], gradient, through[1])
        with pytest.raises(ValueError, match="what is to be"):
            gradients.step_back(bad, good, good, good)
    for bad in (torch.ones(32), torch.ones(2, 32), torch.ones(1, 64)):
        for pair in ((bad, scale), (scale, bad)):
            with pytest.raises(ValueError, match="what is to be"):
                gradients.pass_attention(good, gradients.Attention(*pair))
    wanted = plane(1, 9, 9, 64)
    for seen, gradient, state in (
        (plane(1, 8, 9, 32), wanted, None),
        (plane(1, 9, 9, 32).half(), wanted, None),
        (good, wanted, plane(1, 9, 8, 16)),
    ):
        with pytest.raises(ValueError, match="what is to be"):
            gradients.kernel_gradient(seen, gradient, state=state)
    for seen, gradient in ((plane(1, 9, 9, 18), wanted), (good, plane(1, 9, 9, 36))):
        with pytest.raises(ValueError, match="multiple"):
            gradients.kernel_gradient(seen, gradient)


def gradients_of(model: SAPNet, rainy: Tensor, **options: object) -> list[Tensor]:
    """Of all parameters, by all images of a step."""
    model.requires_grad_(True)
    images = model.stage_images(rainy, **options)  # type: ignore[arg-type]
    loss = sum((number + 1) * (image - rainy / 2).square().mean() for number, image in enumerate(images))
    return list(torch.autograd.grad(loss, list(model.parameters())))  # type: ignore[arg-type]


def is_in_c(model: SAPNet, rainy: Tensor, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether a step of training is computed so."""
    units = []
    with monkeypatch.context() as patch:
        patch.setattr(learning, "LearningUnit", lambda *given: units.append(given) or model.unit)
        patch.setattr(model, "unit", lambda *given, **named: (rainy, (rainy, rainy)))
        model.stage_images(rainy)
    return bool(units)


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("shape", [(1, 3, 5, 7), (2, 3, 40, 52), (3, 3, 64, 64)])
def test_a_step_of_training(attention: bool, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """The network's own equations, which are tested by themselves, in float64, tell."""
    model = random_model(stages=3, channels=32, dilations=(1, 4), reduction=4, attention=attention)
    torch.manual_seed(1)
    rainy = torch.rand(shape)
    given, again = gradients_of(model, rainy), gradients_of(model, rainy, recompute=True)
    assert is_in_c(model, rainy, monkeypatch)
    near(given, gradients_of(model.double(), rainy.double()), bound=1e-3)
    assert all(torch.equal(*each) for each in zip(given, again, strict=True))


def test_images_of_a_step_are_those_without_gradients() -> None:
    model, rainy = random_model(channels=32), torch.rand(2, 3, 33, 47)
    with torch.no_grad():
        expected = model.stage_images(rainy)
    model.requires_grad_(True)
    near(model.stage_images(rainy), expected, bound=1e-5)
    (image,) = model.stage_images(rainy, stages=1)  # whose states nobody asks for
    near([image], expected[:1], bound=1e-5)
    image.sum().backward()


def test_only_what_can_be_is_in_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other networks, devices, precisions and pools, and pictures that learn, too, go the way of PyTorch."""
    model, rainy = random_model(channels=32), torch.rand(1, 3, 12, 12)
    assert not is_in_c(model, rainy, monkeypatch)
    model.requires_grad_(True)
    assert is_in_c(model, rainy, monkeypatch)
    with torch.no_grad():
        assert not is_in_c(model, rainy, monkeypatch)
    with torch.autocast("cpu", torch.bfloat16):
        assert is_in_c(model, rainy, monkeypatch) == compiled.program().multiplies_matrices
    with torch.autocast("cpu", torch.float16):
        assert not is_in_c(model, rainy, monkeypatch)
    narrow = random_model(channels=12).requires_grad_(True)
    assert not is_in_c(narrow, rainy, monkeypatch)
    picture = rainy.clone().requires_grad_()
    model.stage_images(picture)[-1].sum().backward()
    assert picture.grad is not None
    pools = []
    model.stage_images(rainy, pool=lambda features: pools.append(features) or global_average_pool(features))
    assert pools


def test_compiling_does_not_pay_where_it_is_in_c() -> None:
    config, here = TrainingConfig(Budget(10**6, "iterations"), precision="fp32"), torch.device("cpu")
    narrow = replace(config, model=random_model(channels=12).config)
    pays = [compiling_pays(each, 10**6, here, torch.float32) for each in (config, narrow)]
    assert pays == [False, shutil.which("g++") is not None]
