"""Convolutions by AMX, and by its emulation, so that they are tested wherever there is AVX512 and a compiler."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from conftest import (
    check_on_one_thread,
    check_options,
    features,
    first,
    last,
    means_of,
    plane,
    random_model,
    random_pixels,
    stepped,
)
from torch import Tensor
from torch.nn import functional

from sapnet_cli.engine.config import EngineConfig
from sapnet_cli.engine.engine import Engine
from sapnet_cli.engine.hardware import choose_device, choose_precision
from sapnet_cli.model import compiled, gradients, matrices, native
from sapnet_cli.model.convolution import turn
from sapnet_cli.model.native import lay_for_means
from sapnet_cli.model.sapnet import SAPNet
from sapnet_cli.training.learner import choose_training_precision

EMULATION = Path(__file__).with_name("emulated_amx.h")
SHORT = torch.bfloat16
EPS = torch.finfo(SHORT).eps

real_program = compiled.find_program()


@pytest.fixture(scope="session")
def emulated_program(tmp_path_factory: pytest.TempPathFactory) -> compiled.Program:
    """What multiplies matrices, compiled for AVX512 alone."""
    if not torch.cpu._is_avx512_supported() or shutil.which("cc") is None or not compiled.is_available():
        pytest.skip("needs AVX512 and a C compiler")
    out = str(tmp_path_factory.mktemp("emulated") / "amx.so")
    sources = sorted(str(source) for source in compiled.SOURCES.glob("*.c"))
    command = [
        "cc",
        "-O2",
        "-shared",
        "-fPIC",
        "-mavx512f",
        "-mavx512bw",
        "-include",
        str(EMULATION),
        "-o",
        out,
        *sources,
    ]
    subprocess.run(command, check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "compiled_name", lambda instructions: out)
        return cast(compiled.Program, compiled.load_program("amx"))


@pytest.fixture(params=["AMX", "its emulation"], autouse=True)
def program(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> compiled.Program:
    """What multiplies matrices."""
    if request.param == "AMX":
        if real_program is None or not real_program.multiplies_matrices:
            pytest.skip("this CPU has no AMX, or nothing was compiled for it")
        found = real_program
    else:
        found = request.getfixturevalue("emulated_program")
    assert found.multiplies_matrices
    monkeypatch.setattr(compiled, "find_program", lambda: found)
    return found


def kernel(outputs: int, inputs: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """A kernel as it is laid, and what it is after rounding, in float64."""
    weight = features(outputs, inputs, 3, 3, seed=seed) / (9 * inputs) ** 0.5
    return matrices.lay(weight), matrices.round_taps(weight).double().view(weight.shape)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (17, 23), (5, 32), (33, 33), (9, 70), (40, 131)])
@pytest.mark.parametrize("dilation", [1, 2, 5, 16])
@pytest.mark.parametrize(("inputs", "outputs"), [(32, 32), (64, 32), (32, 96)])
def test_it_is_the_convolution(size: tuple[int, int], dilation: int, inputs: int, outputs: int) -> None:
    """At any size, also where the kernel reaches beyond the picture on all sides; rounded once, where it is stored."""
    seen, bias = plane(2, *size, inputs).to(SHORT), torch.randn(outputs)
    laid, rounded = kernel(outputs, inputs)
    expected = functional.conv2d(first(seen).double(), rounded, bias.double(), padding=dilation, dilation=dilation)
    given = native.convolve(seen, laid, torch.ones(outputs), bias, dilation)
    assert given.dtype == SHORT
    assert given.is_contiguous()
    assert torch.allclose(given.double(), last(expected), rtol=0.51 * EPS, atol=2e-5)


def test_large_planes_are_computed_alike() -> None:
    """By more columns at a time, each the same as in a plane of its own."""
    seen, (laid, _) = plane(1, 20, 26_300, 32).to(SHORT), kernel(32, 32)
    cores, following = torch.tensor([[0, 20, 0, 26_300]]), lay_for_means(features(32, 32, 3, 3, seed=2) / 17)
    known = native.Pooled(torch.empty(1, 32), cores, following, torch.zeros(32), 1)
    given = native.convolve(seen, laid, torch.ones(32), torch.zeros(32), 5, pooled=known)
    assert torch.equal(given, native.convolve(seen, laid, torch.ones(32), torch.zeros(32), 5))
    for left in (0, 3_000, 25_800):
        part = native.convolve(seen[:, :, left : left + 500].contiguous(), laid, torch.ones(32), torch.zeros(32), 5)
        inside = slice(0 if left == 0 else 5, 500 if left == 25_800 else 495)
        assert torch.equal(given[:, :, left : left + 500][:, :, inside], part[:, :, inside])


def test_its_options() -> None:
    seen, bias, scale = plane(1, 21, 75, 32).to(SHORT), torch.randn(64), torch.linspace(0, 2, 64)
    laid, rounded = kernel(64, 32)
    plain = last(functional.conv2d(first(seen).double(), rounded, None, padding=2, dilation=2)) * scale + bias
    skip = plane(*plain.shape, seed=3).to(SHORT)
    check_options(seen, laid, scale, bias, plain, skip, rtol=0.51 * EPS, atol=2e-5)
    activated = torch.empty_like(skip)
    given = native.convolve(seen, laid, scale, bias, 2, True, skip, activated=activated)
    assert torch.allclose(activated.double(), plain.relu(), rtol=0.51 * EPS, atol=2e-5)
    assert torch.equal(given, native.convolve(seen, laid, scale, bias, 2, True, skip))


@pytest.mark.parametrize("size", [(3, 2), (17, 23), (90, 70)])
@pytest.mark.parametrize("following", [1, 4, 16])
def test_the_means_that_attention_pools(size: tuple[int, int], following: int) -> None:
    """Of what is not yet rounded; the same each time, whichever thread comes first."""
    seen, (laid, _) = plane(3, *size, 32).to(SHORT), kernel(32, 32)
    height, width = size
    cores = torch.tensor(
        [[0, height, 0, width], [1, height, 0, width - 1], [height // 3, height // 2 + 1, width // 2, width]]
    )
    next_kernel, bias = features(64, 32, 3, 3, seed=2) / 17, torch.randn(64)
    known = [native.Pooled(torch.empty(3, 64), cores, lay_for_means(next_kernel), bias, following) for _ in range(2)]
    given = native.convolve(seen, laid, torch.ones(32), torch.zeros(32), 2, True, pooled=known[0])
    assert torch.equal(given, native.convolve(seen, laid, torch.ones(32), torch.zeros(32), 2, True, pooled=known[1]))
    assert torch.equal(given, native.convolve(seen, laid, torch.ones(32), torch.zeros(32), 2, True))
    assert torch.equal(known[0].means, known[1].means)
    assert torch.allclose(known[0].means, means_of(given, next_kernel, bias, cores, following), atol=2 * EPS)


@pytest.mark.parametrize("is_first", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (29, 40), (6, 133)])
@pytest.mark.parametrize("channels", [32, 64])
def test_its_lstm(is_first: bool, size: tuple[int, int], channels: int) -> None:
    """Of features and state that lie apart; the first step has no state, but the same kernel."""
    seen, state, cell = (plane(2, *size, channels, seed=seed).to(SHORT) for seed in range(3))
    weight, bias = features(4 * channels, 2 * channels, 3, 3, seed=5) / 24, torch.randn(4 * channels)
    rounded = matrices.round_taps(weight).double().view(weight.shape)
    read = torch.cat((seen, torch.zeros_like(state) if is_first else state), dim=3)
    gates = last(functional.conv2d(first(read).double(), rounded, bias.double(), padding=1))
    expected = stepped(gates[..., : (3 if is_first else 4) * channels], None if is_first else cell)
    before, laid = None if is_first else (state, cell), matrices.lay_gates(weight)
    hidden, after, again = (torch.empty_like(cell) for _ in range(3))
    kept = torch.empty(2, *size, (3 if is_first else 4) * channels, dtype=SHORT)
    native.recur(seen, before, laid, bias, hidden, after, gates=kept)
    assert torch.allclose(kept.double(), gates[..., : kept.shape[3]], rtol=0.51 * EPS, atol=2e-5)
    for given, exact in zip((after, hidden), expected):
        assert torch.allclose(given.double(), exact, rtol=0.51 * EPS, atol=2e-4)
    following, cores = features(32, channels, 3, 3, seed=7) / 9, torch.tensor([[0, size[0], 0, size[1]]] * 2)
    known = native.Pooled(torch.empty(2, 32), cores, lay_for_means(following), torch.ones(32), 2)
    native.recur(seen, before, laid, bias, again, cell, known)  # over the cell state before
    assert torch.equal(cell, after)
    assert torch.equal(again, hidden)
    assert torch.allclose(known.means, means_of(hidden, following, known.bias, cores, 2), atol=2 * EPS)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (17, 23), (40, 131)])
@pytest.mark.parametrize("inputs", [32, 64])
def test_it_is_the_convolution_to_an_image(size: tuple[int, int], inputs: int) -> None:
    """By the kernel as it was: what is lost in rounding is a kernel, too."""
    seen, weight = plane(2, *size, inputs).to(SHORT), features(3, inputs, 3, 3, seed=1) / (9 * inputs) ** 0.5
    out, bias = torch.full((2, *size, 3), float("nan")), torch.tensor([-1.0, 0.0, 2.0])
    native.project(seen, matrices.lay_image(weight), bias, out)
    exact = functional.conv2d(first(seen).double(), weight.double(), bias.double(), padding=1)
    assert torch.allclose(out.double(), last(exact), atol=1e-4)
    for source, place in ((seen[..., :16].contiguous(), out), (seen.half(), out), (seen, out[:1]), (seen, out.half())):
        with pytest.raises(ValueError, match=r"what is to be|no multiple|cannot be multiplied"):
            native.project(source, matrices.lay_image(weight), bias, place)


@pytest.mark.parametrize("is_first", [False, True])
def test_its_lstm_at_any_value(is_first: bool) -> None:
    bias = 30 * features(4 * 32, 1, 1, 1).view(-1)
    bias[:4], bias[4] = torch.tensor([-1e4, 1e4, 0, 1e-6]), float("nan")
    cell, hidden = plane(1, 5, 7, 32, seed=1).to(SHORT), torch.empty(1, 5, 7, 32, dtype=SHORT)
    gates = bias[: (3 if is_first else 4) * 32]
    expected = stepped(gates.expand(1, 5, 7, -1), None if is_first else cell)
    before = None if is_first else (torch.zeros_like(hidden), cell)
    nothing = matrices.lay_gates(torch.zeros(128, 64, 3, 3))
    native.recur(plane(1, 5, 7, 32).to(SHORT), before, nothing, bias, hidden, cell)
    for given, exact in zip((cell, hidden), expected):
        assert torch.allclose(given.double(), exact, rtol=0.51 * EPS, atol=2e-4, equal_nan=True)
    assert torch.isnan(hidden[..., 4]).all()


def test_what_is_no_number_is_not_hidden() -> None:
    """Weights that give such values are found out by them."""
    seen, (laid, _) = plane(1, 9, 40, 32).to(SHORT), kernel(32, 32)
    seen[0, 4, 35, 3] = float("nan")
    for skip in (None, torch.zeros(1, 9, 40, 32, dtype=SHORT)):
        given = native.convolve(seen, laid, torch.ones(32), torch.zeros(32), 1, True, skip)
        assert torch.isnan(given[0, 3:6, 34:37]).all()
        assert int(torch.isnan(given[..., 0]).sum()) == 9


def test_it_writes_nowhere_else() -> None:
    seen, (laid, _) = plane(1, 9, 9, 32).to(SHORT), kernel(32, 32)
    vectors = torch.ones(32), torch.zeros(32), 1
    for wrong in (seen.half(), seen.float()):
        with pytest.raises(ValueError, match="cannot be multiplied"):
            native.convolve(wrong, laid, *vectors)
    for source, weights in (
        (plane(1, 9, 9, 64).to(SHORT), laid),
        (seen, kernel(64, 32)[0]),
        (seen, laid[:, :8]),
        (seen, laid.transpose(-1, -2)),
    ):
        with pytest.raises(ValueError, match="what is to be"):
            native.convolve(source, weights, *vectors)
    with pytest.raises(ValueError, match="48 channels are no multiple of 32"):
        native.convolve(plane(1, 9, 9, 48).to(SHORT), laid, *vectors)
    gates, bias = matrices.lay_gates(features(128, 64, 3, 3)), torch.zeros(128)
    state, cell, hidden = (torch.empty(1, 9, 9, 32, dtype=SHORT) for _ in range(3))
    for kept in (torch.empty(1, 9, 9, 96), torch.empty(1, 9, 9, 128, dtype=SHORT)):
        with pytest.raises(ValueError, match="what is to be"):
            native.recur(seen, None, gates, bias, hidden, cell, gates=kept)
    with pytest.raises(ValueError, match="where there is a skip"):
        native.convolve(seen, laid, *vectors, relu=True, activated=cell)
    with pytest.raises(ValueError, match="what is to be"):
        native.convolve(seen, laid, *vectors, relu=True, skip=seen, activated=cell.float())
    with pytest.raises(ValueError, match="what is to be"):
        native.recur(seen, (state, cell), laid, bias, hidden, cell)
    with pytest.raises(ValueError, match="24 channels are no multiple of 16"):
        native.recur(seen, None, gates, bias[:96], hidden, cell)


def near(given: Tensor, exact: Tensor, bound: float) -> bool:
    """By the largest value."""
    assert given.shape == exact.shape
    return float((given - exact).detach().abs().max()) <= bound * float(exact.abs().max())


def of_kernel(read: Tensor, wanted: Tensor, dilation: int) -> Tensor:
    """The gradient of the kernel of a convolution, by that of what it gave."""
    weight = torch.zeros(wanted.shape[3], read.shape[3], 3, 3, dtype=torch.float64, requires_grad=True)
    result = functional.conv2d(first(read).double(), weight, padding=dilation, dilation=dilation)
    return torch.autograd.grad((last(result) * wanted.double()).sum(), weight)[0]


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (19, 26), (7, 64), (40, 67)])
@pytest.mark.parametrize("dilation", [1, 2, 3, 16, 33])
@pytest.mark.parametrize(("inputs", "besides", "outputs"), [(32, 0, 32), (32, 32, 128), (64, 0, 96)])
def test_the_gradient_of_a_kernel(
    size: tuple[int, int], dilation: int, inputs: int, besides: int, outputs: int
) -> None:
    """Exact but for sums in float32."""
    seen, state, wanted = (plane(2, *size, number, seed=number).to(SHORT) for number in (inputs, besides, outputs))
    given = gradients.kernel_gradient(seen, wanted, dilation, state if besides else None)
    assert near(given, of_kernel(torch.cat((seen, state), dim=3), wanted, dilation), 1e-5)


@pytest.mark.parametrize("size", [(1, 1), (9, 7), (40, 67)])
@pytest.mark.parametrize("dilation", [1, 4])
@pytest.mark.parametrize("has_skip", [False, True])
def test_the_gradient_of_a_layer(size: tuple[int, int], dilation: int, has_skip: bool) -> None:
    """Of a convolution, attention and ReLUs, and then of its kernel; rounded where it is stored."""
    seen, gradient = (plane(3, *size, 32, seed=seed).to(SHORT) for seed in range(2))
    inner = plane(3, *size, 32, seed=2).relu().to(SHORT)
    scale, shift = torch.rand(3, 32), torch.randn(3, 32)
    exact = gradient.double() * (inner > 0 if has_skip else 1) * scale[:, None, None] + shift[:, None, None]
    through = gradients.Through(inner, inner) if has_skip else None
    for out in (None, torch.empty_like(gradient), gradient.clone()):
        given = gradient if out is None else out.copy_(gradient)
        attention = gradients.Attention(scale, shift, through, out)
        passed, of_weight = gradients.layer_gradient(seen, given, attention, dilation)
        assert out is None or passed is out
        assert torch.allclose(passed.double(), exact, rtol=0.51 * EPS, atol=1e-6)
        assert near(of_weight, of_kernel(seen, passed, dilation), 1e-5)


@pytest.mark.parametrize("size", [(1, 1), (9, 7), (40, 67)])
@pytest.mark.parametrize("dilation", [1, 4])
@pytest.mark.parametrize("has_skip", [False, True])
def test_a_gradient_goes_back(size: tuple[int, int], dilation: int, has_skip: bool) -> None:
    """Through a convolution and the ReLUs before it, with what goes past it."""
    wanted, more = plane(3, *size, 64, seed=1).to(SHORT), plane(3, *size, 32, seed=2).to(SHORT)
    weight = features(64, 32, 3, 3, seed=3) / 17
    laid, turned = matrices.lay(turn(weight)), matrices.round_taps(turn(weight)).double().view(32, 64, 3, 3)
    inner, skip = plane(3, *size, 32, seed=4).relu().to(SHORT), plane(3, *size, 32, seed=5).to(SHORT)
    after = (inner + skip).relu() if has_skip else inner
    whole = last(functional.conv2d(first(wanted).double(), turned, padding=dilation, dilation=dilation))
    rounded = {"rtol": 0.51 * EPS, "atol": 2e-5}
    bare, none = gradients.convolve_back(wanted, laid, dilation)
    assert none == ()
    assert torch.allclose(bare.double(), whole, **rounded)
    added, _ = gradients.convolve_back(wanted, laid, dilation, more.clone())
    assert torch.allclose(added.double(), whole + more, **rounded)
    for besides in (None, more.clone()):
        exact = (whole if besides is None else whole + more) * (after > 0)
        through = gradients.Through(after, inner if has_skip else None)
        passed, (sums, products) = gradients.convolve_back(wanted, laid, dilation, besides, through)
        assert besides is None or passed is besides
        assert torch.allclose(passed.double(), exact, **rounded)
        exact = exact * (inner > 0)
        assert near(sums, exact.sum(dim=(1, 2)), 1e-4)
        assert near(products, (exact * inner).sum(dim=(1, 2)), 1e-4)


def gradients_of(model: SAPNet, rainy: Tensor, precision: torch.dtype, **options: bool) -> Tensor:
    """Of all parameters of a step, one after the other."""
    with torch.autocast("cpu", SHORT, enabled=precision is SHORT):
        images = model.stage_images(rainy, **options)  # type: ignore[arg-type]
    assert all(image.dtype == rainy.dtype for image in images)
    loss = torch.stack([(image - rainy / 2).square().mean() for image in images]).sum()
    return torch.cat([each.flatten() for each in torch.autograd.grad(loss, list(model.parameters()))])


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("shape", [(1, 3, 5, 7), (2, 3, 40, 52)])
def test_a_step_of_training(attention: bool, shape: tuple[int, ...], program: compiled.Program) -> None:
    """Its gradients are nearer to those in float64 than PyTorch's in bfloat16, and the same each time."""
    model = random_model(stages=3, channels=32, dilations=(1, 4), reduction=4, attention=attention)
    model.requires_grad_(True)
    torch.manual_seed(1)
    rainy, calls = torch.rand(shape), set()

    def run(function: str, job: int) -> None:
        calls.add(function)
        program.run(function, job)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "find_program", lambda: replace(program, run=run))
        ours, again = gradients_of(model, rainy, SHORT), gradients_of(model, rainy, SHORT, recompute=True)
    assert {"sapnet_multiply", "sapnet_multiply_gradient", "sapnet_step_back"} <= calls
    assert not {"sapnet_convolve", "sapnet_kernel_gradient"} & calls
    assert torch.equal(ours, again)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "find_program", lambda: None)
        theirs = gradients_of(model, rainy, SHORT)
        exact = gradients_of(model.double(), rainy.double(), torch.float64)
    assert float((ours - exact).norm()) < 0.05 * float(exact.norm())
    assert float((ours - exact).norm()) < float((theirs - exact).norm())


def test_what_learns_so_and_what_does_not() -> None:
    cpu = torch.device("cpu")
    for channels, chosen in ((32, SHORT), (64, SHORT), (48, torch.float32), (12, torch.float32)):
        model = random_model(channels=channels)
        assert choose_training_precision("auto", cpu, model.config) == chosen
        assert choose_training_precision("fp32", cpu, model.config) == torch.float32


def test_gradients_are_written_nowhere_else() -> None:
    seen, wanted, kernel = plane(1, 9, 9, 32).to(SHORT), plane(1, 9, 9, 64).to(SHORT), torch.zeros(64, 32, 3, 3)
    laid, scale = matrices.lay(turn(kernel)), torch.ones(1, 64)
    for wrong in (plane(1, 8, 9, 64).to(SHORT), plane(1, 9, 9, 64), plane(1, 9, 9, 128).to(SHORT)[..., ::2]):
        with pytest.raises(ValueError, match="what is to be"):
            gradients.kernel_gradient(seen, wrong)
        for gradient, through, out in (
            (wrong, wanted, None),
            (wanted, wrong, None),
            (wanted, wanted, wrong),
        ):
            attention = gradients.Attention(scale, scale, gradients.Through(wanted, through), out)
            with pytest.raises(ValueError, match="what is to be"):
                gradients.layer_gradient(seen, gradient, attention, 1)
        with pytest.raises(ValueError, match="what is to be"):
            gradients.convolve_back(wrong, laid, through=gradients.Through(seen))
    with pytest.raises(ValueError, match="what is to be"):
        gradients.layer_gradient(plane(1, 9, 8, 32).to(SHORT), wanted, gradients.Attention(scale, scale), 1)
    for through in (gradients.Through(wanted), gradients.Through(seen, wanted), gradients.Through(seen.float())):
        with pytest.raises(ValueError, match="what is to be"):
            gradients.convolve_back(wanted, laid, through=through)
    with pytest.raises(ValueError, match="48 channels are no multiple of 32"):
        gradients.kernel_gradient(plane(1, 9, 9, 48).to(SHORT), wanted)
    floats = native.transform(turn(kernel), 4)
    with pytest.raises(ValueError, match="what is to be"):
        gradients.convolve_back(wanted, floats, through=gradients.Through(seen))


def test_on_one_thread_it_gives_the_same() -> None:
    check_on_one_thread(plane(1, 90, 70, 32).to(SHORT), kernel(32, 32)[0])


def test_kernels_are_rounded_so_that_they_add_up() -> None:
    """To within what one value may be off; each is the number below or above."""
    weight = features(32, 32, 3, 3)
    rounded = matrices.round_taps(weight).view(weight.shape)
    off = rounded.double() - weight.double()
    plain = weight.to(SHORT).double() - weight.double()
    most = EPS * weight.abs().amax(dim=(2, 3))
    assert (off.sum(dim=(2, 3)).abs() <= most).all()
    assert float(off.sum(dim=(2, 3)).square().mean()) < float(plain.sum(dim=(2, 3)).square().mean()) / 3
    assert (off.abs() <= 2 * EPS * weight.abs().amax(dim=(2, 3), keepdim=True)).all()
    assert torch.equal(matrices.round_taps(rounded.float()).view(weight.shape), rounded)


def test_networks_of_32_channels_are_computed_so_and_others_as_before(program: compiled.Program) -> None:
    """Where precision is to be chosen, it is chosen for the network."""
    image, cpu, calls = random_pixels(40, 50, "float32"), choose_device("cpu"), set()

    def run(function: str, job: int) -> None:
        calls.add(function)
        program.run(function, job)

    watched = replace(program, run=run)
    for channels, multiplied in ((32, True), (64, True), (48, False), (16, False)):
        assert choose_precision("auto", cpu, channels) == ("bf16" if multiplied else "fp16")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compiled, "find_program", lambda: watched)
            model = random_model(channels=channels)
            exact, given = (
                Engine(model, EngineConfig(device="cpu", precision=precision)).derain(image)
                for precision in ("fp32", "bf16")
            )
        assert ("sapnet_multiply" in calls) == multiplied
        assert abs(given - exact).max() < 0.02
        calls.clear()
