"""What is in C is what PyTorch computes, and what was not compiled is not missed."""

from __future__ import annotations

import platform
import shutil
import sys

import pytest
import torch
from conftest import random_model, random_pixels
from torch import Tensor
from torch.nn import functional

from sapnet_cli.engine.config import EngineConfig
from sapnet_cli.engine.engine import Engine
from sapnet_cli.engine.hardware import choose_precision
from sapnet_cli.model import native
from sapnet_cli.model.convolution import Convolution

needs_native = pytest.mark.skipif(not native.is_available(), reason="not compiled, or no x86 CPU with AVX2")
CHANNELS_LAST = torch.channels_last


def features(*shape: int, seed: int = 0) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.contiguous(memory_format=CHANNELS_LAST)


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="for Linux on x86")
def test_it_is_compiled_wherever_it_can_be() -> None:
    if shutil.which("cc") is None or not torch.cpu._is_avx2_supported():
        pytest.skip("no compiler, or no AVX2")
    assert native.is_available(), "pip install . compiles native.c, and so it must be run again when that changes"


@needs_native
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (4, 4), (17, 23), (40, 70)])
@pytest.mark.parametrize("dilation", [1, 2, 5, 16])
@pytest.mark.parametrize("channels", [(8, 16), (32, 32), (64, 96)])
def test_it_is_the_convolution(size: tuple[int, int], dilation: int, channels: tuple[int, int]) -> None:
    """At any size, also where the kernel reaches beyond the picture on all sides."""
    inputs, outputs = channels
    seen = features(2, inputs, *size)
    weight, bias = (
        features(outputs, inputs, 3, 3, seed=1) / (9 * inputs) ** 0.5,
        features(outputs, 1, 1, 1, seed=2).view(-1),
    )
    expected = functional.conv2d(seen.double(), weight.double(), bias.double(), padding=dilation, dilation=dilation)
    around = (dilation, dilation, dilation)
    given = native.convolve(seen, native.transform(weight), torch.ones(outputs), bias, around, dilation)
    assert given.shape == expected.shape
    assert given.is_contiguous(memory_format=CHANNELS_LAST)
    assert float((given - expected).abs().max()) < 2e-5


@needs_native
@pytest.mark.parametrize("padding", [(0, 0, 0), (0, 0, 2), (2, 2, 0), (3, 3, 5), (0, 2, 1), (5, 1, 2)])
def test_its_options(padding: tuple[int, int, int]) -> None:
    seen, weight, bias = features(1, 16, 21, 30), features(32, 16, 3, 3, seed=1) / 12, features(32, 1, 1, 1).view(-1)
    scale = torch.linspace(0, 2, 32)
    above, below, beside = padding
    around = functional.pad(seen, (beside, beside, above, below))
    plain = functional.conv2d(around, weight, None, dilation=2) * scale.view(-1, 1, 1)
    plain = plain + bias.view(-1, 1, 1)
    skip = features(*plain.shape, seed=3)
    for relu, added in ((False, None), (True, None), (False, skip), (True, skip)):
        expected = (plain.relu() if relu else plain) + (0 if added is None else added)
        expected = expected.relu() if relu else expected
        given = native.convolve(seen, native.transform(weight), scale, bias, padding, 2, relu, added)
        assert torch.allclose(given, expected, atol=2e-5)
        place = torch.empty_like(given.permute(0, 2, 3, 1))
        native.convolve(seen, native.transform(weight), scale, bias, padding, 2, relu, added, place)
        assert torch.equal(place, given.permute(0, 2, 3, 1))
    in_rows = seen.contiguous(memory_format=torch.contiguous_format)
    again = native.convolve(in_rows, native.transform(weight), scale, bias, padding, 2, True, skip)
    assert torch.equal(again, given)


@needs_native
@pytest.mark.parametrize("size", [(3, 2), (17, 23), (90, 70)])
@pytest.mark.parametrize("dilation", [1, 5])
def test_its_sums_over_rows(size: tuple[int, int], dilation: int) -> None:
    """Of each picture and column, and the same each time, whichever thread comes first."""
    seen, weight = features(3, 8, *size), native.transform(features(32, 8, 3, 3, seed=1))
    kernel = weight, torch.ones(32), torch.zeros(32), (dilation, dilation, dilation), dilation, True
    sums, again = torch.empty(2, 3, size[1], 32)
    given = native.convolve(seen, *kernel, sums=sums)
    assert torch.equal(given, native.convolve(seen, *kernel, sums=again))
    assert torch.equal(given, native.convolve(seen, *kernel))
    assert torch.allclose(sums, given.sum(dim=2).permute(0, 2, 1), rtol=1e-5, atol=1e-4)
    assert torch.equal(sums, again)


@needs_native
def test_what_is_no_number_is_not_hidden() -> None:
    """Weights that give such values are found out by them."""
    seen, weight = features(1, 8, 9, 9), native.transform(features(16, 8, 3, 3, seed=1))
    seen[0, 3, 4, 4] = float("nan")
    for skip in (None, torch.zeros(1, 16, 9, 9)):
        given = native.convolve(seen, weight, torch.ones(16), torch.zeros(16), (1, 1, 1), 1, True, skip)
        assert torch.isnan(given[0, :, 3:6, 3:6]).all()


@needs_native
def test_it_writes_nowhere_else() -> None:
    seen, kernel = features(1, 8, 9, 9), (native.transform(features(16, 8, 3, 3)), torch.ones(16), torch.zeros(16))
    for place in (torch.empty(1, 8, 9, 16), torch.empty(1, 9, 9, 32)[..., ::2], torch.empty(1, 9, 9, 16).double()):
        with pytest.raises(ValueError, match="a place for"):
            native.convolve(seen, *kernel, (1, 1, 1), 1, out=place)
    with pytest.raises(ValueError, match="a place for"):
        native.recur(torch.empty(1, 5, 7, 32), torch.empty(1, 5, 7, 8), torch.empty(1, 5, 6, 8), first=False)


@needs_native
def test_on_one_thread_it_gives_the_same() -> None:
    seen, weight, bias = features(1, 32, 90, 70), native.transform(features(32, 32, 3, 3, seed=1)), torch.zeros(32)
    both = [native.convolve(seen, weight, torch.ones(32), bias, (4, 4, 4), 4)]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        both.append(native.convolve(seen, weight, torch.ones(32), bias, (4, 4, 4), 4))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*both)


@needs_native
@pytest.mark.parametrize("dilation", [1, 4])
def test_its_gradients(dilation: int) -> None:
    torch.manual_seed(0)
    layer = Convolution(32, 64, dilation)
    seen, wanted = features(2, 32, 19, 26).requires_grad_(), features(2, 64, 19, 26, seed=1)
    assert native.suits(64, 32, layer.weight.device, layer.weight.dtype)
    given = torch.autograd.grad((layer(seen) * wanted).sum(), (seen, layer.weight, layer.bias))
    exact = [each.detach().double().requires_grad_() for each in (seen, layer.weight, layer.bias)]
    result = functional.conv2d(*exact, padding=dilation, dilation=dilation)
    expected = torch.autograd.grad((result * wanted).sum(), exact)
    for ours, theirs in zip(given, expected):
        assert torch.allclose(ours.double(), theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


@needs_native
@pytest.mark.parametrize("first", [False, True])
def test_its_lstm(first: bool) -> None:
    """To the last bits at any value, also where exponentials end; what is no number is not hidden."""
    gates = 30 * features(1, 5, 7, 24 if first else 32)
    gates[0, 0, 0, :4], gates[0, 0, 1, :4] = torch.tensor([-1e4, 1e4, 0, 1e-6]), float("nan")
    cell, hidden = features(1, 5, 7, 8, seed=1).contiguous(), torch.empty(1, 5, 7, 8)
    gate_in, candidate, gate_out, *forget = gates.double().split(8, dim=3)
    expected = gate_in.sigmoid() * candidate.tanh()
    if not first:
        expected += forget[0].sigmoid() * cell.double()
    native.recur(gates.contiguous(), cell, hidden, first)
    for given, exact in ((cell, expected), (hidden, gate_out.sigmoid() * expected.tanh())):
        assert torch.allclose(given.double(), exact, rtol=1e-5, atol=3e-7, equal_nan=True)
    assert torch.isnan(hidden[0, 0, 1, :4]).all()


@needs_native
def test_memory_that_ends_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(function: str, address: int) -> None:
        native.Convolution.from_address(address).failed = 1

    monkeypatch.setattr(native, "_runner", lambda: fail)
    with pytest.raises(MemoryError):
        native.convolve(features(1, 8, 4, 4), native.transform(features(16, 8, 3, 3)), *torch.ones(2, 16), (1, 1, 1), 1)


@pytest.mark.parametrize("missing", ["the compiled file", "OpenMP", "AVX2"])
def test_without_it_all_is_as_before(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = random_model(channels=32), random_pixels(40, 50, "float32")
    config = EngineConfig(device="cpu", precision="fp32")
    before = Engine(model, config).derain(image)
    native._runner.cache_clear()
    if missing == "AVX2":
        monkeypatch.setattr(torch.cpu, "_is_avx2_supported", lambda: False)
    elif missing == "the compiled file":
        monkeypatch.setattr(native, "compiled_name", lambda: "none.so")
    else:
        load = native.ctypes.CDLL
        monkeypatch.setattr(native.ctypes, "CDLL", lambda name: load(name) if name else object())
    try:
        assert not native.is_available()
        after = Engine(model, config).derain(image)
        chosen = choose_precision("auto", torch.device("cpu"))
    finally:
        native._runner.cache_clear()
    assert abs(after - before).max() < 1e-5
    assert chosen != torch.float32 or missing == "AVX2" or not torch.cpu._is_avx2_supported()
