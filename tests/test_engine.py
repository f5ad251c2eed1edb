"""The engine: the same picture whole, in tiles, in batches, in half precision, and with too little memory."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from conftest import EXAMPLES, random_model, random_pixels
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sapnet_cli.engine import budget, fused, hardware, planes, statistics
from sapnet_cli.engine import engine as engine_module
from sapnet_cli.engine import tiled as tiled_module
from sapnet_cli.engine.config import EngineConfig
from sapnet_cli.engine.engine import Engine
from sapnet_cli.engine.fused import FusedForward
from sapnet_cli.engine.hardware import choose_device, choose_precision
from sapnet_cli.engine.kernels import FusedWeights, Kernel, residual_blocks
from sapnet_cli.engine.pixels import mean_change
from sapnet_cli.engine.pyramid import add_enlarged, shrink
from sapnet_cli.engine.quantized import Bytes, QuantizedForward, QuantizedWeights, pack
from sapnet_cli.errors import ImageError, OutOfMemoryError, UsageError
from sapnet_cli.hub import locate_weights
from sapnet_cli.model import compiled
from sapnet_cli.model.checkpoint import load_checkpoint
from sapnet_cli.model.config import SAPNetConfig
from sapnet_cli.model.sapnet import SAPNet
from sapnet_cli.training.learner import choose_training_precision

CPU = EngineConfig(device="cpu", precision="fp32")


needs_bytes = pytest.mark.skipif(
    not hasattr(torch.ops.onednn, "qconv2d_pointwise") or platform.machine() not in ("x86_64", "AMD64"),
    reason="this PyTorch has no convolutions of bytes",
)


def mosaic() -> NDArray[np.uint8]:
    """Differing scenes side by side, which is hard for tiles: each would see another whole."""
    china, rocket = (np.asarray(Image.open(EXAMPLES / name)) for name in ("china.jpg", "rocket.jpg"))
    return np.concatenate((china[:300, :300], rocket[40:340, :260]), axis=1)


def difference(first: NDArray[np.generic], second: NDArray[np.generic]) -> float:
    return float(np.abs(first.astype(np.float64) - second.astype(np.float64)).max())


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_dtype_and_size_stay(dtype: str) -> None:
    image = random_pixels(37, 51, dtype)
    before = image.copy()
    derained = Engine(random_model(), CPU).derain(image)
    assert derained.dtype == image.dtype
    assert derained.shape == image.shape
    assert np.array_equal(image, before)


def test_equals_the_network_rounded_to_nearest() -> None:
    model, image = random_model(), random_pixels(24, 31)
    rainy = torch.tensor(image).permute(2, 0, 1)[None] / 255
    expected = (model(rainy) * 255).round().to(torch.uint8)[0].permute(1, 2, 0).numpy()
    assert difference(Engine(model, CPU).derain(image), expected) <= 1  # at most a tie, rounded the other way


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 3)])
def test_tiny_pictures(size: tuple[int, int]) -> None:
    config = EngineConfig(device="cpu", precision="fp32", tile=96, overlap=16)
    assert Engine(random_model(), config).derain(random_pixels(*size)).shape == (*size, 3)


def test_batch_equals_one_by_one() -> None:
    images = [random_pixels(20, 30, seed=seed) for seed in range(5)] + [
        random_pixels(20, 31),
        random_pixels(9, 9, "uint16"),
    ]
    engine = Engine(random_model(), EngineConfig(device="cpu", precision="fp32", batch_size=3))
    for together, image in zip(engine.derain_batch(images), images):
        assert together.dtype == image.dtype
        assert difference(together, engine.derain(image)) <= 1


@pytest.fixture(scope="module")
def whole(default_model: SAPNet) -> NDArray[np.float32]:
    image = mosaic().astype(np.float32) / 255
    return Engine(default_model, EngineConfig(device="cpu", precision="fp32", tile=0)).derain(image)


@pytest.mark.parametrize(
    ("precision", "tile", "batch"), [("fp32", 256, 4), ("fp32", 320, "auto"), ("fp16", 320, "auto")]
)
def test_tiles_look_like_the_whole(
    default_model: SAPNet,
    whole: NDArray[np.float32],
    precision: str,
    tile: int,
    batch: int | str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(budget, "CPU_BUDGET", 0)  # as if the picture were too large to store its features
    config = EngineConfig(device="cpu", precision=precision, tile=tile, batch_size=batch)
    tiled = Engine(default_model, config).derain(mosaic().astype(np.float32) / 255)
    assert 255 * difference(tiled, whole) <= 1
    assert 255 * np.abs(tiled - whole).mean() < 0.02


def test_a_sample_alone_is_near(
    default_model: SAPNet, whole: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What large pictures get: nothing is measured before it counts. Here with a sample as small as a tile."""
    monkeypatch.setattr(budget, "CPU_BUDGET", 0)
    monkeypatch.setattr(statistics, "ENOUGH_PIXELS", 0)
    config, image = EngineConfig(device="cpu", precision="fp32", tile=320), mosaic().astype(np.float32) / 255

    def off() -> float:
        return 255 * float(np.abs(Engine(default_model, config).derain(image) - whole).mean())

    as_shipped = off()
    monkeypatch.setattr(tiled_module, "LARGE_CHANGE", 1)
    monkeypatch.setattr(tiled_module, "SOME_CHANGE", 1)
    mended = off()
    monkeypatch.setattr(tiled_module, "residual_change", lambda rainy, before, after: None)
    assert as_shipped < 0.04
    assert as_shipped < mended < off()


def test_what_is_mended_by_less_than_a_level_is_not_rounded_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "CPU_BUDGET", 0)
    engine = Engine(random_model(), EngineConfig(device="cpu", precision="fp32", tile=96, overlap=16, stages=1))
    image = random_pixels(120, 150) // 2 + 64
    means = []
    for levels in (0.0, 0.3):
        linear, most = torch.zeros(7, 3), torch.ones(3)
        linear[6] = levels / 255
        change = statistics.ResidualChange(linear, most, 0.0)
        monkeypatch.setattr(tiled_module, "residual_change", lambda *images, change=change: change)
        means.append(engine.derain(image).mean())
    assert abs(means[1] - means[0] - 0.3) < 0.02


def test_independent_tiles_would_show(default_model: SAPNet, whole: NDArray[np.float32]) -> None:
    """The test above can fail: without shared statistics the same tiles are off."""
    image = mosaic().astype(np.float32) / 255
    left = Engine(default_model, CPU).derain(np.ascontiguousarray(image[:256, :256]))
    assert 255 * difference(left[:192, :192], whole[:192, :192]) > 2


@pytest.mark.parametrize("on_disk", [False, True])
def test_exact_statistics(
    default_model: SAPNet, whole: NDArray[np.float32], on_disk: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if on_disk:
        monkeypatch.setattr(planes, "free_memory", lambda device: 0)
    in_strips(monkeypatch, 560 * 47, channels=32)
    config = EngineConfig(device="cpu", precision="fp32", tile=256, tile_statistics="exact")
    exact = Engine(default_model, config).derain(mosaic().astype(np.float32) / 255)
    assert 255 * difference(exact, whole) < 0.01


@pytest.mark.parametrize("statistics", ["shared", "exact"])
def test_without_a_folder_for_temporary_files(
    statistics: Literal["shared", "exact"], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unusable() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    if statistics == "exact":
        monkeypatch.setattr(planes, "free_memory", lambda device: 0)
    monkeypatch.setattr("sapnet_cli.engine.budget.CPU_BUDGET", 0)
    monkeypatch.setattr("tempfile.gettempdir", unusable)
    config = EngineConfig(device="cpu", precision="fp32", tile=32, overlap=8, tile_statistics=statistics)
    with pytest.raises(OutOfMemoryError, match="point TMPDIR to one"):
        Engine(random_model(), config).derain(random_pixels(60, 90))


def in_strips(monkeypatch: pytest.MonkeyPatch, pixels: int, channels: int = 8) -> None:
    """Of float32."""
    monkeypatch.setitem(fused.WHOLE_BYTES, "cpu", 0)
    monkeypatch.setitem(fused.STRIP_BYTES, "cpu", 4 * channels * pixels)
    monkeypatch.setitem(fused.LSTM_BYTES, "cpu", 2 * channels * pixels)


@pytest.mark.parametrize("size", [(1, 1), (2, 40), (40, 3), (33, 47), (70, 60)])
@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("strips", [False, True])
def test_folded_attention_is_the_network(
    size: tuple[int, int], attention: bool, strips: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dilations reach beyond small pictures, and strips are lower than dilations."""
    if strips:
        in_strips(monkeypatch, 5 * size[1])
    model = random_model(dilations=(1, 4, 16), attention=attention, stages=3)
    rainy = torch.tensor(random_pixels(*size)[None]).float() / 255
    with torch.inference_mode():
        expected = model.stage_images(rainy.permute(0, 3, 1, 2))[-1]
        forward = FusedForward(FusedWeights(model, torch.float32, torch.device("cpu")), rainy)
        assert float((forward.run(3) - expected).abs().max()) < 1e-5
    assert forward.whole != strips


def pool_to(vectors: Sequence[Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """One after the other, whatever windows say."""
    following = iter(list(vectors))
    return lambda means, areas: next(following)


@pytest.mark.parametrize("strips", [False, True])
@pytest.mark.parametrize("channels", [8, 32], ids=["by PyTorch", "in C"])
def test_windows_share_what_they_pool(channels: int, strips: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two windows give the mean of each one's pooled vectors, over their cores, and run alike by given ones."""
    if strips:
        in_strips(monkeypatch, 48 * 7, channels)
    model = random_model(channels=channels, dilations=(1, 4, 16))
    weights = FusedWeights(model, torch.float32, torch.device("cpu"))
    windows = torch.tensor(np.stack([random_pixels(40, 48, seed=seed) for seed in (1, 2)]))
    pooled: list[Tensor] = []

    def pool(features: Tensor) -> Tensor:
        pooled.append(features[:, :, 5:-5, 5:-5].mean(dim=(0, 2, 3)))
        return pooled[-1].view(1, -1, 1, 1)

    with torch.inference_mode():
        expected = model.stage_images(windows.permute(0, 3, 1, 2) / 255, pool=pool)[-1]
        together = FusedForward(weights, windows, cores=[(slice(5, -5 + 40), slice(5, -5 + 48))] * 2)
        assert float((together.run(2) - expected).abs().max()) < 1e-5
        assert torch.allclose(torch.stack(together.pooled), torch.stack(pooled), atol=1e-5)
        second = FusedForward(weights, windows[1:], pool=pool_to(together.pooled)).run(2)
    assert float((second - expected[1:]).abs().max()) < 1e-5


def insisting(model: SAPNet) -> SAPNet:
    """That knows what rain is to it; here, anything."""
    dry, way = torch.randn(2, model.config.stages, 2 * len(model.config.dilations), model.config.channels)
    way[1:] *= 30
    model.rain_means = torch.stack([dry, dry + way])
    return model


def rain_by_definition(model: SAPNet, image: NDArray[np.float32]) -> float:
    """How far the first unit's vectors are on the way from dry to rainy."""
    assert model.rain_means is not None
    dry, rainy = model.rain_means[:, 0].flatten(1)
    vectors: list[Tensor] = []

    def pool(features: Tensor) -> Tensor:
        vectors.append(features.mean(dim=(2, 3), keepdim=True))
        return vectors[-1]

    with torch.inference_mode():
        model(torch.from_numpy(image).permute(2, 0, 1)[None], stages=1, pool=pool)
    way = rainy - dry
    return float((torch.cat(vectors).flatten() - dry) @ way / (way @ way))


def by_definition(
    model: SAPNet, image: NDArray[np.float32], insist: float, known: float = -np.inf
) -> NDArray[np.float32]:
    """From the second unit on, attention's vectors with what is missing along what rain adds."""
    assert model.rain_means is not None
    dry, rainy = model.rain_means
    missing = max(0, insist - max(known, rain_by_definition(model, image)))
    added = iter([torch.zeros_like(vector) for vector in dry[0]] + list(missing * (rainy - dry)[1:].flatten(0, 1)))

    def pool(features: Tensor) -> Tensor:
        return features.mean(dim=(2, 3), keepdim=True) + next(added).view(1, -1, 1, 1)

    with torch.inference_mode():
        derained = model(torch.from_numpy(image).permute(2, 0, 1)[None], pool=pool)
    return derained[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("channels", [8, 32], ids=["by PyTorch", "in C"])
@pytest.mark.parametrize("insist", [0.4, 2.0])
def test_a_picture_is_taken_to_have_more_rain(channels: int, insist: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, beside another, in strips, and in tiles whose statistics are estimated."""
    model, image = insisting(random_model(channels=channels, dilations=(1, 4))), random_pixels(120, 90, "float32")
    expected, config = by_definition(model, image, insist), replace(CPU, insist=insist)
    assert difference(expected, by_definition(model, image, 0)) > 0.01
    assert difference(Engine(model, config).derain(image), expected) < 1e-5
    together = Engine(model, replace(config, batch_size=2)).derain_batch([image, image])
    assert max(difference(each, expected) for each in together) < 1e-5
    in_strips(monkeypatch, 90 * 7, channels)
    assert difference(Engine(model, config).derain(image), expected) < 1e-5
    monkeypatch.setattr(budget, "CPU_BUDGET", 0)
    tiled = Engine(model, replace(config, tile=80, overlap=24)).derain(image)
    assert 255 * difference(tiled, expected) <= 1


@pytest.mark.parametrize("enlarged", [1, 4])
def test_a_coarser_level_knows_of_the_rain_that_finer_ones_took_off(enlarged: int) -> None:
    """Streaks that one level or the other sees, by weights that what it knows makes a difference to in both."""
    model = load_checkpoint(locate_weights("sapnet-heavy"))
    with Image.open(EXAMPLES / "rocket.jpg") as example:
        rainy = example.convert("RGB").crop((0, 0, 128, 128))
    image = np.asarray(rainy.resize((128 * enlarged,) * 2, Image.Resampling.BICUBIC), np.float32) / 255
    seen = [rain_by_definition(model, picture) for picture in (image, shrink(image))]
    expected = by_definition(model, image, insist=1.5)
    left = shrink(expected)
    alone, known = by_definition(model, left, insist=1.5), by_definition(model, left, insist=1.5, known=max(seen))
    assert difference(alone, known) > 0.01
    add_enlarged(expected, known - left)
    derained = Engine(model, replace(CPU, insist=1.5, pyramid=2)).derain(image)
    assert difference(derained, expected.clip(0, 1)) < 1e-4


def test_windows_tell_how_much_rain_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model, image, dry = random_model(), mosaic(), np.zeros((8, 8, 3), np.uint8)
    model.rain_means = torch.from_numpy(Engine(model, CPU).rain_means([(image, dry)]))
    engine = Engine(model, replace(CPU, insist=1))
    assert engine._rain(image, image.size // 3) == pytest.approx(1, abs=1e-4)
    monkeypatch.setattr(budget, "CPU_BUDGET", 2**24 / budget.TORCH_SHARE)
    assert 1e-4 < abs(engine._rain(image, image.size // 3) - 1) < 0.02


@needs_bytes
def test_int8_insists_as_well() -> None:
    model, image = insisting(random_model(dilations=(1, 4), stages=3)), random_pixels(60, 50, "float32")
    expected, own = (by_definition(model, image, insist) for insist in (0.7, 0))
    given = Engine(model, replace(CPU, precision="int8", insist=0.7)).derain(image)
    assert np.square(given - expected).mean() < 0.02 * np.square(own - expected).mean()


def test_what_rain_is_to_attention_is_measured() -> None:
    model, images = random_model(stages=3), [random_pixels(40, 50, seed=seed) for seed in (1, 2, 3, 4)]
    pooled: list[Tensor] = []

    def pool(features: Tensor) -> Tensor:
        pooled.append(features.mean(dim=(2, 3), keepdim=True))
        return pooled[-1]

    with torch.inference_mode():
        model(torch.tensor(np.stack(images)).permute(0, 3, 1, 2) / 255, pool=pool)
    rainy, clean = (torch.stack([means[start::2].mean(dim=0).flatten() for means in pooled]) for start in (0, 1))
    given = Engine(model, CPU).rain_means([(images[0], images[1]), (images[2], images[3])])
    assert np.allclose(given, torch.stack([clean, rainy]).view(2, 3, 4, 8), atol=1e-5)


def test_what_sees_enough_rain_is_left_alone() -> None:
    model, rainy, clean = random_model(stages=3), random_pixels(40, 50, seed=1), random_pixels(40, 50, seed=2)
    dry, wet = torch.from_numpy(Engine(model, CPU).rain_means([(rainy, clean)]))
    wet[1:] += 1000 * (wet - dry)[1:]
    model.rain_means = torch.stack([dry, wet])
    for picture, enough in ((rainy, True), (clean, False)):
        floats = picture / np.float32(255)
        own, more = (Engine(model, replace(CPU, insist=insist)).derain(floats) for insist in (0, 1))
        assert (difference(own, more) < 1e-5) == enough


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_auto_insists_on_what_hardly_changes(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = insisting(random_model(channels=8, dilations=(1, 4)))
    images = [random_pixels(40, 50, dtype, seed=seed) for seed in (1, 2)]
    images.append((images[0] * 0.5).astype(images[0].dtype))
    own, more, auto = (Engine(model, replace(CPU, insist=insist)) for insist in (0.0, 1.5, "auto"))
    plain, insisted = own.derain_batch(images), more.derain_batch(images)
    white = 1 if dtype == "float32" else np.iinfo(dtype).max
    changes = [255 * np.abs(a.astype(np.float64) - b).mean() / white for a, b in zip(images, plain)]
    assert changes == pytest.approx([mean_change(a, b) for a, b in zip(images, plain)])
    monkeypatch.setattr(engine_module, "HARDLY_CHANGED", sum(sorted(changes)[:2]) / 2)
    least = int(np.argmin(changes))
    expected = [insisted[index] if index == least else plain[index] for index in range(3)]
    progress: list[float] = []
    for given, wanted in zip(auto.derain_batch(images, progress.append), expected):
        assert np.array_equal(given, wanted)
    assert progress == sorted(progress)
    again = [[index + 0.5 < 3 * done < index + 1 for done in progress].count(True) for index in range(3)]
    assert [bool(count) for count in again] == [index == least for index in range(3)]
    assert not np.array_equal(plain[least], insisted[least])


def test_what_cannot_be_insisted_on() -> None:
    for insist in (-0.1, 2.5, float("nan")):
        with pytest.raises(UsageError, match="neither auto nor from 0 to 2"):
            EngineConfig(insist=insist)
    with pytest.raises(UsageError, match="do not say what rain is"):
        Engine(random_model(), EngineConfig(device="cpu", insist="auto"))
    with pytest.raises(UsageError, match="first unit only looks"):
        Engine(insisting(random_model()), EngineConfig(device="cpu", insist=0.5, stages=1))


def test_exact_statistics_without_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    in_strips(monkeypatch, 90 * 7)
    model, image = random_model(attention=False), random_pixels(60, 90, "float32")
    config = EngineConfig(device="cpu", precision="fp32", tile=48, overlap=8, tile_statistics="exact")
    assert difference(Engine(model, config).derain(image), Engine(model, CPU).derain(image)) < 1e-5


@needs_bytes
@pytest.mark.parametrize("zero", [0, 128])
def test_byte_convolution(zero: int) -> None:
    """Exact but for the rounding of the kernel, which is known; beyond the edges lies what stands for zero."""
    generator = torch.Generator().manual_seed(1)
    values = torch.randint(0, 256, (1, 8, 9, 13), dtype=torch.uint8, generator=generator)
    weight, bias = torch.randn(4, 8, 3, 3, generator=generator), torch.randn(4, generator=generator)
    kernel = pack(weight, bias, dilation=2)
    assert float((kernel.lost.abs().amax(dim=(1, 2, 3)) / kernel.steps).max()) <= 0.501
    source = Bytes(values.to(memory_format=torch.channels_last), 0.02, zero)
    scale = torch.tensor([0.5, 1.0, 0.1, 2.0])
    seen, rounded = (values.float() - zero) * 0.02, (weight - kernel.lost) * scale.view(-1, 1, 1, 1)
    expected = torch.nn.functional.conv2d(seen, rounded, bias * scale, padding=2, dilation=2)
    scaled = kernel.scaled(scale)
    assert torch.allclose(scaled.convolve(source, (2, 2, 2), torch.float32), expected, atol=1e-3)
    in_bytes = scaled.convolve_to_bytes(source, (2, 2, 2), 0.1).float()
    assert float((in_bytes - (expected / 0.1).clamp(0, 255)).abs().max()) <= 0.51


@needs_bytes
def test_sums_of_large_bytes_are_not_cut() -> None:
    weight = torch.ones(8, 32, 3, 3)
    weight[:, 5] = 2
    weight[1::2] *= -1
    features = torch.full((1, 32, 6, 6), 255, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    summed = pack(weight, torch.zeros(8)).convolve(Bytes(features, 1.0), (0, 0, 0), torch.float32)
    assert torch.allclose(summed, torch.nn.functional.conv2d(features.float(), weight), rtol=0.01)


@needs_bytes
@pytest.mark.parametrize("size", [(1, 1), (2, 40), (40, 3), (70, 60)])
@pytest.mark.parametrize("attention", [True, False])
def test_int8_in_strips_and_close_to_the_network(
    size: tuple[int, int], attention: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(dilations=(1, 4, 16), attention=attention, stages=3)
    rainy = torch.tensor(random_pixels(*size)[None])
    weights = QuantizedWeights(model, torch.float32, torch.device("cpu"))
    with torch.inference_mode():
        expected = FusedForward(FusedWeights(model, torch.float32, torch.device("cpu")), rainy).run(3)
        whole = QuantizedForward(weights, rainy).run(3)
        in_strips(monkeypatch, 5 * size[1])
        strips = QuantizedForward(weights, rainy).run(3)
    added = expected - rainy.permute(0, 3, 1, 2) / 255
    assert float((whole - expected).square().mean() / added.square().mean()) < 1e-3
    assert float((strips - whole).square().mean() / added.square().mean()) < 1e-4


@needs_bytes
def test_int8_ranges_of_windows_are_those_of_the_picture() -> None:
    """What lies at the edge of a window, beside zeros, is no part of the picture."""
    weights = QuantizedWeights(random_model(), torch.float32, torch.device("cpu"))
    picture = torch.full((1, 40, 64, 3), 250, dtype=torch.uint8)

    def embedded(windows: Tensor, cores: list[tuple[slice, slice]] | None, pooled: list[Tensor]) -> Tensor:
        with torch.inference_mode():
            forward = QuantizedForward(weights, windows, cores, pool_to(pooled) if pooled else None)
            forward.unit(0)
            forward.ranging.next_unit()
            pooled += forward.pooled
            return forward.ranging.current.embedded

    pooled: list[Tensor] = []
    whole = embedded(picture, None, pooled)
    windows = torch.cat((picture[:, :, :40], picture[:, :, 24:]))
    halves = [(slice(0, 40), slice(0, 32)), (slice(0, 40), slice(8, 40))]
    assert embedded(windows, halves, pooled).equal(whole)
    inner = picture[:, 8:32, 8:32]
    alone = embedded(inner, [(slice(1, 23), slice(1, 23))], pooled)
    assert bool((alone <= whole).all())
    assert not alone.equal(embedded(inner, None, pooled))


@needs_bytes
def test_int8_windows_by_given_vectors() -> None:
    model = random_model(dilations=(1, 4))
    weights = QuantizedWeights(model, torch.float32, torch.device("cpu"))
    windows = torch.tensor(np.stack([random_pixels(40, 48, seed=seed) for seed in (1, 2)]))
    with torch.inference_mode():
        together = QuantizedForward(weights, windows)
        both = together.run(2)
        second = QuantizedForward(weights, windows[1:], pool=pool_to(together.pooled)).run(2)
    assert float((second - both[1:]).abs().max()) < 0.02


@needs_bytes
def test_int8_ranges_grow_past_what_they_cut() -> None:
    weights = QuantizedWeights(random_model(), torch.float32, torch.device("cpu"))
    honest = weights.ranges
    weights.ranges = replace(honest, features=honest.features / 100)
    with torch.inference_mode():
        forward = QuantizedForward(weights, torch.tensor(random_pixels(40, 48)[None]))
        forward.run(2)
    assert forward.ranging.current.features > honest.features / 20


@pytest.mark.parametrize(
    ("precision", "least"), [("fp16", 85), ("bf16", 50), pytest.param("int8", 50, marks=needs_bytes)]
)
def test_fast_precisions_are_close_to_fp32(
    default_model: SAPNet, precision: str, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "multiplies_bytes", lambda: True)
    image = mosaic().astype(np.float32) / 255
    in_c = compiled.is_available()
    if precision == "bf16" and not in_c and hardware.fast_float() != "bf16":  # which takes ten times as long
        image = np.ascontiguousarray(image[60:220, 220:380])  # of both scenes
    exact, fast = (
        Engine(default_model, EngineConfig(device="cpu", precision=each)).derain(image) for each in ("fp32", precision)
    )
    assert 10 * np.log10(1 / np.square(exact - fast).mean()) > least


@pytest.mark.parametrize("upright", [False, True])
def test_self_ensemble_is_the_mean_over_flips_and_turns(upright: bool) -> None:
    image, model = random_pixels(24, 40, "float32"), random_model(upright=upright)
    engine = Engine(model, CPU)
    results = []
    for flip in (lambda each: each, lambda each: each[:, ::-1]):
        for turns in (0, 2) if upright else range(4):
            view = np.ascontiguousarray(np.rot90(flip(image), turns))
            results.append(flip(np.rot90(engine.derain(view), -turns)))
    turned = Engine(model, EngineConfig(device="cpu", precision="fp32", tta=True))
    assert difference(turned.derain(image), np.mean(results, axis=0)) < 1e-6
    assert difference(results[0], np.mean(results, axis=0)) > 1e-4
    for dtype in ("uint8", "uint16"):
        pixels = random_pixels(9, 7, dtype)
        assert turned.derain(pixels).dtype == pixels.dtype
        assert difference(turned.derain(pixels), engine.derain(pixels)) < 0.2 * np.iinfo(pixels.dtype).max


def test_fewer_stages_differ() -> None:
    image = random_pixels(32, 32)
    model = random_model(stages=4)
    two = Engine(model, EngineConfig(device="cpu", precision="fp32", stages=2)).derain(image)
    assert difference(two, Engine(model, CPU).derain(image)) > 0


@pytest.mark.parametrize("tile", [0, 96])
def test_not_finite_is_computed_again_in_fp32(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a real overflow in half precision is."""
    put = FusedWeights.put

    def overflow(self: FusedWeights, weight: Tensor, bias: Tensor, dilation: int = 1) -> Kernel:
        return put(self, weight, bias if self.dtype == torch.float32 else bias * float("nan"), dilation)

    monkeypatch.setattr(FusedWeights, "put", overflow)
    monkeypatch.setattr(budget, "CPU_BUDGET", 0)
    model, image = random_model(), random_pixels(100, 130)
    half, full = (
        Engine(model, EngineConfig(device="cpu", precision=precision, tile=tile, overlap=16)).derain(image)
        for precision in ("bf16", "fp32")
    )
    assert difference(half, full) <= 1


def test_features_too_large_for_halves_are_computed_again() -> None:
    model, image = random_model(channels=32), random_pixels(60, 50)
    block = residual_blocks(model)[0]
    block.conv1.weight *= 1e7
    block.conv1.bias *= 1e7
    block.conv2.weight /= 1e7
    half, full = (
        Engine(model, EngineConfig(device="cpu", precision=precision)).derain(image) for precision in ("fp16", "fp32")
    )
    assert np.array_equal(half, full)
    assert difference(full, image) > 0


def limit_memory(monkeypatch: pytest.MonkeyPatch, pixels: int) -> None:
    """Lets a forward over more pixels run out of memory."""
    begin = FusedForward.__init__

    def limited(self: FusedForward, weights: FusedWeights, rainy: Tensor, *arguments: object, **named: object) -> None:
        if rainy.shape[:3].numel() > pixels:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")
        begin(self, weights, rainy, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(FusedForward, "__init__", limited)


def test_out_of_memory_halves_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "CPU_BUDGET", 0)
    model, image = random_model(), random_pixels(200, 300)
    whole = Engine(model, CPU).derain(image)
    config = EngineConfig(device="cpu", precision="fp32", tile=256, overlap=32, batch_size=4)
    with monkeypatch.context() as limited:
        limit_memory(limited, 130 * 130)
        assert difference(Engine(model, config).derain(image), whole) <= 2
    limit_memory(monkeypatch, 10)
    with pytest.raises(OutOfMemoryError, match="not even a small tile"):
        Engine(model, config).derain(image)


def test_other_errors_are_not_taken_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(FusedForward, "unit", fail)
    with pytest.raises(RuntimeError, match="something else"):
        Engine(random_model(), CPU).derain(random_pixels(8, 8))


def test_auto_tiles_a_large_picture_only() -> None:
    engine = Engine(SAPNet(), CPU)
    assert engine._budget.plan(300, 300, 300 * 300)[0] == 0
    tile, batch = engine._budget.plan(5000, 6000, 5000 * 6000)
    assert 192 <= tile <= 2048
    assert batch == 1
    assert 192 <= engine._budget.plan(1500, 1500, 24000 * 24000)[0] <= 1024, "a level of a large one is as careful"


def test_the_coarse_level_of_a_photo_is_no_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of its tiles would be the sample, and what the finest took is free by then, where there is memory at all."""
    budget = Engine(SAPNet(), EngineConfig(device="cpu", precision="fp32"))._budget
    for free, exact in ((8 * 2**30, True), (2 * 2**30, False)):
        monkeypatch.setattr("sapnet_cli.engine.budget.free_memory", lambda device, free=free: free)
        assert budget.plan(4284, 5712, 4284 * 5712)[0]
        assert (budget.plan(1071, 1428, 4284 * 5712 * 3 // 2)[0] == 0) == exact
        assert budget.plan(1536, 2048, 6144 * 8192 * 3 // 2)[0]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4), np.uint8), r"\(height, width, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), r"\(height, width, 3\)"),
        (np.zeros((4, 4, 3), np.int32), "int32"),
        (np.full((4, 4, 3), np.nan, np.float32), "not finite"),
    ],
)
def test_senseless_pictures(image: NDArray[np.generic], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        Engine(random_model(), CPU).derain(image)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 128, "overlap": 64}, "more than twice the overlap"),
        ({"tile": -1}, "tile -1"),
        ({"overlap": -1}, "overlap -1"),
        ({"batch_size": 0}, "batch size 0"),
        ({"tile": "large"}, "tile 'large'"),
        ({"tile_statistics": "none"}, "neither"),
        ({"stages": 3}, "1 to 2"),
        ({"stages": 0}, "1 to 2"),
        ({"device": "tpu"}, "not one of"),
        ({"device": "meta"}, "not one of"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"precision": "fp8"}, "not one of"),
    ],
)
def test_senseless_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Engine(random_model(), EngineConfig(**options))  # type: ignore[arg-type]


def test_auto_precision_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = choose_device("cpu")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for bytes_too, exactly, in_c, has_bf16, expected in (
        (True, True, True, True, "fp16"),
        (True, True, True, False, "fp16"),
        (True, True, False, True, "int8"),
        (True, True, False, False, "int8"),
        (True, False, False, False, "int8"),
        (True, False, True, False, "fp16"),
        (False, False, False, True, "bf16"),
        (False, False, False, False, "fp32"),
    ):
        monkeypatch.setattr(hardware, "multiplies_bytes", lambda bytes_too=bytes_too: bytes_too)
        monkeypatch.setattr(hardware, "sums_bytes_exactly", lambda exactly=exactly: exactly)
        monkeypatch.setattr(compiled, "is_available", lambda in_c=in_c: in_c)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has_bf16=has_bf16: has_bf16)
        assert choose_precision("auto", cpu) == expected
        learns_in = torch.bfloat16 if has_bf16 and not in_c else torch.float32
        assert choose_training_precision("auto", cpu, SAPNetConfig(channels=8)) == learns_in


@pytest.mark.parametrize(("file", "asks"), [("null", True), ("no-such-file*", False)])
def test_pytorch_is_asked_for_a_gpu_where_there_may_be_one(
    file: str, asks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anywhere but under Linux, and where it is loaded, as it is here."""
    assert hardware.may_have_gpu()
    monkeypatch.setattr(hardware, "GPU_FILES", (file,))
    with monkeypatch.context() as unloaded:
        unloaded.delitem(sys.modules, "torch")
        assert hardware.may_have_gpu() == (asks or sys.platform != "linux")


def test_a_precision_that_is_slow_here_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what is in C, which computes bf16 in fp32."""
    said: list[str] = []
    monkeypatch.setattr("sapnet_cli.engine.engine.log.warning", said.append)
    monkeypatch.setattr("sapnet_cli.training.learner.log.warning", said.append)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for has_bf16, in_c, engine_is_slow in ((True, False, False), (False, False, True), (False, True, False)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has_bf16=has_bf16: has_bf16)
        monkeypatch.setattr("sapnet_cli.engine.engine.is_native", lambda *_, in_c=in_c: in_c)
        said.clear()
        for name in ("fp32", "bf16", "fp16"):
            Engine(random_model(), EngineConfig(device="cpu", precision=name))
        assert said == [hardware.SLOW] * engine_is_slow
        said.clear()
        model = random_model()
        model.rain_means = torch.rand(2, model.config.stages, 10, model.config.channels)
        Engine(model, EngineConfig(device="cpu", precision="bf16", insist="auto"))
        assert said == [hardware.SLOW] * engine_is_slow, "once, though there are two"
        said.clear()
        for name in ("fp32", "bf16"):
            choose_training_precision(name, choose_device("cpu"), SAPNetConfig(channels=8))
        assert said == [hardware.SLOW] * (not has_bf16)


def test_a_program_computes_fp32_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    hardware.prepare_process()
    assert not torch.backends.cudnn.allow_tf32


def test_int8_is_refused_where_it_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "multiplies_bytes", lambda: False)
    with pytest.raises(UsageError, match="AVX2"):
        Engine(random_model(), EngineConfig(device="cpu", precision="int8"))
    with pytest.raises(UsageError, match="does not train"):
        choose_training_precision("int8", choose_device("cpu"), SAPNetConfig())
