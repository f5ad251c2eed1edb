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
from sapnet_cli.model import compiled, matrices, native
from sapnet_cli.model.convolution import lay_for_means

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
    command = ["cc", "-O2", "-shared", "-fPIC", "-mavx512f", "-include", str(EMULATION), "-o", out, *sources]
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
    native.recur(seen, before, laid, bias, hidden, after)
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
    with pytest.raises(ValueError, match="gates are not kept"):
        native.recur(seen, None, gates, bias, hidden, cell, gates=torch.empty(1, 9, 9, 128))
    with pytest.raises(ValueError, match="what is to be"):
        native.recur(seen, (state, cell), laid, bias, hidden, cell)
    with pytest.raises(ValueError, match="24 channels are no multiple of 16"):
        native.recur(seen, None, gates, bias[:96], hidden, cell)


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
        assert choose_precision("auto", cpu, channels) == (SHORT if multiplied else torch.float16)
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
