"""What is in C is what PyTorch computes, and what was not compiled is not missed."""

from __future__ import annotations

import platform
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from conftest import (
    check_on_one_thread,
    check_options,
    features,
    first,
    last,
    means_of,
    needs_native,
    plane,
    random_model,
    random_pixels,
    stepped,
)
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sapnet_cli.engine import rows
from sapnet_cli.engine.config import EngineConfig
from sapnet_cli.engine.engine import Engine
from sapnet_cli.engine.hardware import choose_precision
from sapnet_cli.engine.native import lay_attention
from sapnet_cli.model import compiled, native
from sapnet_cli.model.arrays import as_array
from sapnet_cli.model.native import lay_for_means
from sapnet_cli.model.sapnet import ChannelResidualAttention

pytestmark = pytest.mark.usefixtures("instructions")
SHORT = torch.float16, torch.bfloat16
find_program = compiled.find_program


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="for Linux on x86")
def test_it_is_compiled_wherever_it_can_be() -> None:
    if shutil.which("cc") is None or not torch.cpu._is_avx2_supported():
        pytest.skip("no compiler, or no AVX2")
    assert compiled.is_available(), "pip install . compiles what is in C, and so it must be run again when that changes"


@needs_native
def test_it_takes_the_best_instructions(instructions: str) -> None:
    assert compiled.program().lanes == {"amx": 16, "avx512": 16, "avx2": 8, "neon": 4}[instructions]
    best = next(name for name, are_here in compiled.SETS.items() if are_here())
    assert cast(compiled.Program, find_program()).lanes == cast(compiled.Program, compiled.load_program(best)).lanes


@needs_native
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (4, 4), (17, 23), (40, 70)])
@pytest.mark.parametrize("dilation", [1, 2, 5, 16])
@pytest.mark.parametrize("times", [(1, 1), (4, 2), (8, 6)])
@pytest.mark.parametrize(("side", "bound"), [(native.SMALL, 2e-5), (native.LARGE, 1e-4)])
def test_it_is_the_convolution(
    size: tuple[int, int], dilation: int, times: tuple[int, int], side: int, bound: float
) -> None:
    """At any size, also where the kernel reaches beyond the picture on all sides."""
    inputs, outputs = times[0] * compiled.program().lanes, times[1] * native.outputs_together()
    seen = plane(2, *size, inputs)
    weight, bias = (
        features(outputs, inputs, 3, 3, seed=1) / (9 * inputs) ** 0.5,
        features(outputs, 1, 1, 1, seed=2).view(-1),
    )
    exact = first(seen).double(), weight.double(), bias.double()
    expected = last(functional.conv2d(*exact, padding=dilation, dilation=dilation))
    given = native.convolve(seen, native.transform(weight, side), torch.ones(outputs), bias, dilation)
    assert given.shape == expected.shape
    assert given.is_contiguous()
    assert float((given - expected).abs().max()) < bound
    assert float((given - expected).square().mean().sqrt()) < bound / 10


@pytest.mark.parametrize("dilation", [1, 2, 16])
def test_tiles_are_as_large_as_pays(dilation: int) -> None:
    """Large ones, unless too much of them lies beyond the picture."""
    assert native.choose_side(1000, 1000, dilation) == native.LARGE
    assert native.choose_side(4 * dilation, 4 * dilation, dilation) == native.SMALL
    assert native.choose_side(6 * dilation, 6 * dilation, dilation) == native.LARGE
    assert native.choose_side(7 * dilation, 7 * dilation, dilation) == native.SMALL


@needs_native
@pytest.mark.parametrize(("side", "bound"), [(native.SMALL, 2e-5), (native.LARGE, 1e-4)])
def test_its_options(side: int, bound: float) -> None:
    seen, weight, bias = plane(1, 21, 30, 16), features(32, 16, 3, 3, seed=1) / 12, features(32, 1, 1, 1).view(-1)
    scale = torch.linspace(0, 2, 32)
    transformed = native.transform(weight, side)
    plain = last(functional.conv2d(first(seen), weight, None, padding=2, dilation=2)) * scale + bias
    skip = plane(*plain.shape, seed=3)
    check_options(seen, transformed, scale, bias, plain, skip, rtol=1e-5, atol=bound)


@needs_native
@pytest.mark.parametrize("size", [(3, 2), (17, 23), (90, 70)])
@pytest.mark.parametrize("dilation", [1, 5])
@pytest.mark.parametrize("side", native.POINTS)
@pytest.mark.parametrize("following", [1, 4, 16])
def test_the_means_that_attention_pools(size: tuple[int, int], dilation: int, side: int, following: int) -> None:
    """Those of what the next convolution gives, over the cores; the same each time, whichever thread comes first."""
    seen, weight = plane(3, *size, 16), native.transform(features(32, 16, 3, 3, seed=1), side)
    kernel = weight, torch.ones(32), torch.zeros(32), dilation, True
    height, width = size
    cores = torch.tensor(
        [[0, height, 0, width], [1, height, 0, width - 1], [height // 3, height // 2 + 1, width // 2, width]]
    )
    next_kernel, bias = features(64, 32, 3, 3, seed=2) / 17, torch.randn(64)
    known = [native.Pooled(torch.empty(3, 64), cores, lay_for_means(next_kernel), bias, following) for _ in range(2)]
    given = native.convolve(seen, *kernel, pooled=known[0])
    assert torch.equal(given, native.convolve(seen, *kernel, pooled=known[1]))
    assert torch.equal(given, native.convolve(seen, *kernel))
    expected = means_of(given, next_kernel, bias, cores, following)
    assert torch.allclose(known[0].means, expected, rtol=1e-5, atol=1e-5 * float(given.abs().mean()) + 1e-5)
    assert torch.equal(known[0].means, known[1].means)


@needs_native
@pytest.mark.parametrize(("channels", "reduction"), [(32, 16), (64, 4), (32, 32), (32, 1)])
def test_it_is_attention(channels: int, reduction: int) -> None:
    torch.manual_seed(0)
    attention = ChannelResidualAttention(channels, reduction).requires_grad_(False)
    layers = [layer.weight.numpy() for layer in (attention.direct, attention.squeeze, attention.expand)]
    laid = lay_attention(*layers)
    assert laid is not None
    for size in (0.1, 1, 30):
        pooled, bias = size * torch.randn(channels), torch.randn(channels)
        scale, scaled_bias = native.attend(pooled, *laid, bias)
        expected = attention.double()(pooled.double().view(1, -1, 1, 1)).view(-1)
        attention.float()
        assert torch.allclose(scale.double(), expected, rtol=1e-5, atol=1e-7)
        assert torch.allclose(scaled_bias.double(), expected * bias, rtol=1e-5, atol=1e-7)
    pooled[3] = float("nan")
    assert torch.isnan(native.attend(pooled, *laid, bias)[0]).all()
    for wrong in (pooled[1:], pooled.double()):
        with pytest.raises(ValueError, match=r"is to be|no multiple"):
            native.attend(wrong, *laid, bias)
    for index in range(3):
        matrices = list(laid)
        matrices[index] = matrices[index][:, 1:]
        with pytest.raises(ValueError, match="what is to be"):
            native.attend(pooled, *matrices, bias)


@needs_native
@pytest.mark.parametrize("side", native.POINTS)
def test_what_is_no_number_is_not_hidden(side: int) -> None:
    """Weights that give such values are found out by them."""
    seen, weight = plane(1, 9, 9, 16), native.transform(features(32, 16, 3, 3, seed=1), side)
    seen[0, 4, 4, 3] = float("nan")
    for skip in (None, torch.zeros(1, 9, 9, 32)):
        given = native.convolve(seen, weight, torch.ones(32), torch.zeros(32), 1, True, skip)
        assert torch.isnan(given[0, 3:6, 3:6]).all()


@needs_native
def test_it_writes_nowhere_else() -> None:
    seen, weight = plane(1, 9, 9, 16), native.transform(features(32, 16, 3, 3), native.LARGE)
    kernel = weight, torch.ones(32), torch.zeros(32), 1
    for place in (plane(1, 8, 9, 32), plane(1, 9, 9, 64)[..., ::2], plane(1, 9, 9, 32).half()):
        with pytest.raises(ValueError, match="what is to be"):
            native.convolve(seen, *kernel, out=place)
        with pytest.raises(ValueError, match="what is to be"):
            native.convolve(seen, *kernel, skip=place)
    with pytest.raises(ValueError, match="in pieces"):
        native.convolve(plane(1, 9, 9, 32)[..., ::2], *kernel)
    for kind in (torch.float64, torch.int16):
        with pytest.raises(ValueError, match="a plane is of"):
            native.convolve(seen.to(kind), *kernel)
    right = {
        "means": torch.empty(1, 32),
        "cores": torch.tensor([[0, 9, 0, 9]]),
        "kernel": torch.zeros(9 * 32, 32),
        "bias": torch.zeros(32),
    }
    for wrong in (
        {"means": torch.empty(1, 16)},
        {"cores": right["cores"].int()},
        {"cores": right["cores"][:, :3]},
        {"kernel": torch.zeros(9 * 16, 32)},
        {"bias": torch.zeros(16)},
        {"means": torch.empty(1, 3), "kernel": torch.zeros(9 * 32, 3), "bias": torch.zeros(3)},
    ):
        with pytest.raises(ValueError, match=r"what is to be|no multiple"):
            native.convolve(seen, *kernel, pooled=native.Pooled(**{**right, **wrong}, dilation=1))
    gates = native.transform(features(64, 32, 3, 3), native.LARGE), torch.zeros(64)
    good, bad = torch.empty(1, 9, 9, 16), torch.empty(1, 9, 8, 16)
    for wrong_at in range(5):
        before, cell_before, hidden, cell, kept = (bad if at == wrong_at else good for at in range(5))
        kept = kept.repeat(1, 1, 1, 4)
        with pytest.raises(ValueError, match="what is to be"):
            native.recur(seen, (before, cell_before), *gates, hidden, cell, gates=kept)
    for scale, bias in ((torch.ones(2, 32), torch.zeros(2, 32)), (torch.ones(1, 32), torch.zeros(32))):
        with pytest.raises(ValueError, match="what is to be"):
            native.convolve(seen, kernel[0], scale, bias, 1)


@needs_native
@pytest.mark.parametrize("channels", [4, 8, 16, 32])
def test_networks_of_any_width(channels: int) -> None:
    """C takes what it can of them: a vector is never wider than what it is written into."""
    model, image = random_model(channels=channels), random_pixels(40, 50, "float32")
    given = Engine(model, EngineConfig(device="cpu", precision="fp32")).derain(image)
    with torch.inference_mode():
        expected = model.eval()(torch.from_numpy(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    assert abs(given - expected.numpy()).max() < 1e-5
    half = compiled.program().lanes // 2
    place = torch.zeros(1, 5, 7, half)
    with pytest.raises(ValueError, match="no multiple"):
        native.recur(plane(1, 5, 7, 2 * half), (place, place), torch.zeros(36, 1), torch.zeros(4 * half), place, place)


@needs_native
@pytest.mark.parametrize("side", native.POINTS)
def test_on_one_thread_it_gives_the_same(side: int) -> None:
    check_on_one_thread(plane(1, 90, 70, 32), native.transform(features(32, 32, 3, 3, seed=1), side))


@needs_native
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (17, 23), (40, 68)])
def test_it_is_the_convolution_to_an_image(size: tuple[int, int]) -> None:
    seen, weight, bias = plane(2, *size, 32), features(3, 32, 3, 3, seed=1) / 17, torch.tensor([-1.0, 0.0, 2.0])
    out = torch.empty(2, *size, 3)
    kernel = weight.permute(2, 3, 0, 1).contiguous()
    native.project(seen, kernel, bias, out)
    exact = first(seen).double(), weight.double(), bias.double()
    assert torch.allclose(out.double(), last(functional.conv2d(*exact, padding=1)), atol=1e-5)
    wrong = [(seen[..., :16], out), (seen, out[:, 1:]), (seen, out.double())]
    for given, place in wrong:
        with pytest.raises(ValueError, match="what is to be"):
            native.project(given, kernel, bias, place)


@needs_native
@pytest.mark.parametrize("kind", [torch.float32, *SHORT])
@pytest.mark.parametrize("rainy", [torch.uint8, torch.float32])
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (8, 12), (17, 31)])
def test_it_is_the_convolution_from_images(size: tuple[int, int], rainy: torch.dtype, kind: torch.dtype) -> None:
    width = 2 * native.outputs_together()
    images = plane(2, *size, 6)
    seen, residual = images[..., :3].abs().clamp(max=1), images[..., 3:].contiguous()
    seen = (255 * seen).round().to(rainy) if rainy == torch.uint8 else seen.contiguous()
    kernel, bias = features(width, 6, 3, 3, seed=1), features(width, 1, 1, 1, seed=2).view(-1)
    kernel[:, :3] /= 255
    out, laid = torch.empty(2, *size, width, dtype=kind), lay_for_means(kernel)
    native.embed(seen, residual, laid, bias, out)
    both = first(torch.cat((seen * (1 if rainy == torch.uint8 else 255), residual), dim=3))
    expected = last(functional.conv2d(both.double(), kernel.double(), bias.double(), padding=1).relu())
    assert torch.allclose(out.double(), expected, rtol=max(1e-5, 0.6 * torch.finfo(kind).eps), atol=2e-5)
    for change in (
        {"rainy": seen[:, :, :-1]},
        {"rainy": seen.double()},
        {"residual": residual[..., :2]},
        {"kernel": laid[1:]},
        {"bias": bias[1:]},
        {"out": out.double()},
        {"out": out[..., ::2]},
    ):
        places = {"rainy": seen, "residual": residual, "kernel": laid, "bias": bias, "out": out, **change}
        with pytest.raises(ValueError, match=r"what is to be|a plane is of|no multiple of"):
            native.embed(**places)


@needs_native
@pytest.mark.parametrize("side", native.POINTS)
@pytest.mark.parametrize("dilation", [1, 5])
@pytest.mark.parametrize("kind", SHORT)
def test_short_features_are_computed_in_floats(side: int, dilation: int, kind: torch.dtype) -> None:
    """What comes out is what comes of the same values in floats, and is rounded once, where it is stored."""
    seen, skip = plane(2, 31, 26, 32).to(kind), plane(2, 31, 26, 32, seed=1).to(kind)
    kernel = (
        native.transform(features(32, 32, 3, 3, seed=2) / 17, side),
        torch.rand(32),
        torch.randn(32),
        dilation,
        True,
    )
    means, cores = torch.empty(2, 2, 32), torch.tensor([[0, 31, 0, 26], [3, 9, 5, 26]])
    known = [native.Pooled(each, cores, torch.randn(9 * 32, 32) / 17, torch.zeros(32), 4) for each in means]
    known[1] = replace(known[1], kernel=known[0].kernel)
    given = native.convolve(seen, *kernel, skip, pooled=known[0])
    expected = native.convolve(seen.float(), *kernel, skip.float(), pooled=known[1])
    assert torch.equal(given, expected.to(kind))
    assert torch.allclose(*means, rtol=torch.finfo(kind).eps, atol=torch.finfo(kind).eps)

    images = torch.empty(2, 2, 31, 26, 3)
    for source, image in zip((given, given.float()), images):
        native.project(source, plane(3, 3, 3, 32), torch.zeros(3), image)
    assert torch.equal(*images)


@needs_native
@pytest.mark.parametrize("kind", SHORT)
def test_short_features_are_rounded_as_by_pytorch(kind: torch.dtype) -> None:
    bias = torch.randn(32) * torch.logspace(-3, 3, 32)
    half_way = 1 + torch.finfo(kind).eps * torch.tensor([0.5, 1.5, 2.5])
    bias[:9] = torch.tensor([float("nan"), float("inf"), -float("inf"), 0, -1e-3, 3e38, *half_way])
    nothing = native.transform(torch.zeros(32, 16, 3, 3), native.SMALL)
    given = native.convolve(torch.zeros(1, 5, 5, 16, dtype=kind), nothing, torch.ones(32), bias, 1)
    assert torch.equal(given[0, 2, 2].nan_to_num(nan=7), bias.to(kind).nan_to_num(nan=7))


@needs_native
@pytest.mark.parametrize("is_first", [False, True])
@pytest.mark.parametrize("short", SHORT)
def test_its_lstm_of_short_features(is_first: bool, short: torch.dtype) -> None:
    width, gates = 2 * compiled.program().lanes, 3 if is_first else 4
    kernel = native.transform(features(gates * width, (1 if is_first else 2) * width, 3, 3) / 17, native.LARGE)
    seen, state, cell = (plane(1, 19, 23, width, seed=seed).to(short) for seed in range(1, 4))
    results, bias = [], torch.full((gates * width,), 0.1)
    for kind in (short, torch.float32):
        before, after, hidden = state.to(kind), cell.to(kind, copy=True), torch.empty_like(cell, dtype=kind)
        native.recur(seen.to(kind), None if is_first else (before, after), kernel, bias, hidden, after)
        results.append((after.to(short), hidden.to(short)))
    assert all(torch.equal(*each) for each in zip(*results))
    with pytest.raises(ValueError, match="what is to be"):
        native.recur(seen, None if is_first else (before, after), kernel, bias, hidden, after)


@needs_native
@pytest.mark.parametrize("is_first", [False, True])
@pytest.mark.parametrize("side", native.POINTS)
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (29, 40)])
def test_its_lstm(is_first: bool, side: int, size: tuple[int, int]) -> None:
    """Of features and state that lie apart, which its convolution reads as if they lay side by side."""
    lanes, width = compiled.program().lanes, native.outputs_together()
    inputs, outputs = lanes + (0 if is_first else width), width * (3 if is_first else 4)
    seen = plane(2, *size, lanes)
    state, cell, hidden, again = (plane(2, *size, width, seed=seed) for seed in range(1, 5))
    weight, bias = features(outputs, inputs, 3, 3, seed=5) / 9, features(outputs, 1, 1, 1, seed=6).view(-1)
    read = seen if is_first else torch.cat((seen, state), dim=3)
    gates = last(functional.conv2d(first(read).double(), weight.double(), bias.double(), padding=1))
    expected = stepped(gates, None if is_first else cell)
    before, kernel = None if is_first else (state, cell), (native.transform(weight, side), bias)
    after, kept = torch.empty_like(cell), torch.empty(2, *size, outputs)
    native.recur(seen, before, *kernel, hidden, after, gates=kept)
    assert all(torch.allclose(given.double(), exact, atol=1e-4) for given, exact in zip((after, hidden), expected))
    assert float((kept - gates).abs().max()) < 1e-4 * float(gates.abs().max())
    following, cores = features(lanes, width, 3, 3, seed=7) / 9, torch.tensor([[0, size[0], 0, size[1]]] * 2)
    known = native.Pooled(torch.empty(2, lanes), cores, lay_for_means(following), torch.ones(lanes), 2)
    native.recur(seen, before, *kernel, again, cell, known)  # over the cell state before
    assert torch.equal(cell, after)
    assert torch.equal(again, hidden)
    exact = means_of(hidden, following, known.bias, cores, 2)
    assert torch.allclose(known.means, exact, rtol=1e-5, atol=1e-5)


@needs_native
@pytest.mark.parametrize("is_first", [False, True])
def test_its_lstm_at_any_value(is_first: bool) -> None:
    """To the last bits, also where exponentials end; what is no number is not hidden."""
    lanes, width = compiled.program().lanes, native.outputs_together()
    bias = 30 * features(width * (3 if is_first else 4), 1, 1, 1).view(-1)
    bias[:4], bias[4] = torch.tensor([-1e4, 1e4, 0, 1e-6]), float("nan")
    cell, hidden = plane(1, 5, 7, width, seed=1), torch.empty(1, 5, 7, width)
    expected = stepped(bias.expand(1, 5, 7, -1), None if is_first else cell)
    inputs = lanes + (0 if is_first else width)
    kernel = native.transform(torch.zeros(len(bias), inputs, 3, 3), native.SMALL)
    before = None if is_first else (torch.zeros_like(hidden), cell)
    native.recur(plane(1, 5, 7, lanes), before, kernel, bias, hidden, cell)
    for given, exact in zip((cell, hidden), expected):
        assert torch.allclose(given.double(), exact, rtol=1e-5, atol=3e-7, equal_nan=True)
    assert torch.isnan(hidden[..., 4]).all()


@needs_native
@pytest.mark.parametrize("channels", [3, 16, 32])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.uint8])
def test_its_rows_in_a_file(channels: int, kind: torch.dtype) -> None:
    """In float32 those halves that PyTorch rounds to, also where rows end in less than a vector, else as they are."""
    values = 300 * features(1, channels, 7, 13)[0].permute(1, 2, 0)
    values[0, 0, 0], values[1, 2, 1], values[6, 12, 2] = 1e6, -1e-7, -float("inf")
    values, stored = values.abs().clamp(max=255).to(kind) if kind == torch.uint8 else values.to(kind), kind
    if kind == torch.float32:
        values[2, 3, 0], stored = float("nan"), torch.float16
    pixel = channels * stored.itemsize

    def new(fill: float, *shape: int) -> tuple[Tensor, NDArray[Any]]:
        """The same values as both."""
        tensor = torch.full((*shape, channels), fill).to(kind)
        return tensor, as_array(tensor)

    with tempfile.TemporaryFile(buffering=0) as file:
        lines = rows.Lines(file.fileno(), 9, 20 * pixel)
        beside, written = new(5, 9, 20)
        rows.write_rows(written, lines, 0, 0)
        rows.write_rows(as_array(values)[:, 2:10], lines, 5, 4 * pixel)
        given, read = new(0, 9, 20)
        rows.read_rows(read, lines, 0, 0)
        beside[torch.tensor([5, 6, 7, 8, 0, 1, 2]), 4:12] = values[:, 2:10]
        assert torch.equal(given.to(stored).view(torch.uint8), beside.to(stored).view(torch.uint8))
        part, read = new(0, 3, 30)
        rows.read_rows(read[:, 5:13], lines, 13, 4 * pixel)
        assert torch.equal(part[:, 5:13], given[4:7, 4:12])
        assert not part[:, :5].any()
        assert not part[:, 13:].any()
        beyond, read = new(1, 2, 20)
        rows.read_rows(read, rows.Lines(file.fileno(), 100, 20 * pixel), 8, 0)
        assert torch.equal(beyond[0], given[8])
        assert not beyond[1].any()


@needs_native
@pytest.mark.parametrize("in_bytes", [False, True])
def test_its_change_of_residuals(in_bytes: bool) -> None:
    """Over more pixels than a thread takes at once; up to its bounds, and what is no number stays none."""
    rainy = plane(2, 70, 61, 3, seed=1).abs().clamp(max=1)
    rainy = (255 * rainy).to(torch.uint8) if in_bytes else rainy
    residual, linear = plane(2, 70, 61, 3), plane(7, 3, seed=2)
    residual[0, 0, 0, 0] = float("nan")
    most = torch.tensor([0.5, 1, 4])
    seen = torch.cat((rainy / 255 if in_bytes else rainy, residual, torch.ones(2, 70, 61, 1)), dim=3).double()
    change = seen @ linear.double()
    assert (change[0].abs() > most).any()
    assert (change[0].abs() < most).any()
    expected = residual + torch.minimum(torch.maximum(change, -most), most)
    native.change(residual, rainy, linear, most)
    assert torch.isnan(residual[0, 0, 0]).all()
    assert torch.allclose(residual.double(), expected, atol=1e-5, equal_nan=True)
    for wrong in (rainy[:1], rainy.double(), rainy.permute(0, 2, 1, 3)):
        with pytest.raises(ValueError, match="in pieces"):
            native.change(residual, wrong, linear, most)


@needs_native
def test_files_that_fail_are_said() -> None:
    values = np.ones((2, 4, 8), np.float32)
    with Path("/dev/full").open("wb", buffering=0) as full, pytest.raises(OSError, match="No space left"):
        rows.write_rows(values, rows.Lines(full.fileno(), 2, 64), 0, 0)
    with Path(__file__).open("rb") as only_read, pytest.raises(OSError, match="Bad file descriptor"):
        rows.write_rows(values, rows.Lines(only_read.fileno(), 2, 64), 0, 0)
    with tempfile.TemporaryFile() as file, pytest.raises(ValueError, match="rows are in pieces"):
        rows.write_rows(values.transpose(0, 2, 1), rows.Lines(file.fileno(), 2, 64), 0, 0)


@needs_native
def test_memory_that_ends_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(function: str, address: int) -> None:
        native.Convolution.from_address(address).failed = 1

    program = replace(compiled.program(), run=fail)
    monkeypatch.setattr(compiled, "find_program", lambda: program)
    kernel = native.transform(features(32, 16, 3, 3), native.SMALL)
    with pytest.raises(MemoryError):
        native.convolve(plane(1, 4, 4, 16), kernel, *torch.ones(2, 32), 1)


@pytest.mark.parametrize("missing", ["the compiled file", "OpenMP", "instructions"])
def test_without_it_all_is_as_before(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = random_model(channels=32), random_pixels(40, 50, "float32")
    configs = [EngineConfig(device="cpu", precision=precision) for precision in ("fp32", "fp16")]
    before = [Engine(model, config).derain(image) for config in configs]
    find_program.cache_clear()
    monkeypatch.setattr(compiled, "find_program", find_program)
    if missing == "instructions":
        monkeypatch.setattr(compiled, "SETS", {name: lambda: False for name in compiled.SETS})
    elif missing == "the compiled file":
        monkeypatch.setattr(compiled, "compiled_name", lambda instructions: "none.so")
    else:
        load = compiled.ctypes.CDLL
        monkeypatch.setattr(compiled.ctypes, "CDLL", lambda name: object() if name == torch._C.__file__ else load(name))
    try:
        assert not compiled.is_available()
        after = [Engine(model, config).derain(image) for config in configs]
        chosen = choose_precision("auto", torch.device("cpu"))
    finally:
        find_program.cache_clear()
    assert all(abs(new - old).max() < most for new, old, most in zip(after, before, (1e-5, 1e-3)))
    assert chosen not in native.PLANES or not torch.cpu._is_avx2_supported()
