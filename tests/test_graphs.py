"""Forwards that are recorded for shapes that come back: which, when, how many, and, on a GPU, with the same results."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import random_model, random_pixels
from torch import Tensor

from sapnet_cli.engine.config import EngineConfig
from sapnet_cli.engine.engine import Engine
from sapnet_cli.engine.graphs import MOST_SHAPES, Forward, ReplayedForward
from sapnet_cli.engine.hardware import CPU
from sapnet_cli.engine.network import TorchNetwork
from sapnet_cli.model.checkpoint import weights_of


class Recorder:
    """Stands in for CUDA graphs: replays read from a fixed place and write to a fixed place, as graphs do."""

    def __init__(self) -> None:
        self.recorded: list[tuple[int, ...]] = []

    def __call__(self, forward: Forward, pictures: Tensor) -> Forward:
        self.recorded.append(tuple(pictures.shape))
        read, written = torch.zeros_like(pictures), forward(pictures)

        def replay(pictures: Tensor) -> Tensor:
            read.copy_(pictures)
            return written.copy_(forward(read))

        return replay


def pictures(height: int, seed: int = 0, count: int = 1) -> Tensor:
    return torch.from_numpy(np.stack([random_pixels(height, 8, seed=seed + each) for each in range(count)]))


def test_what_comes_back_is_recorded_once() -> None:
    recorder = Recorder()
    run = ReplayedForward(lambda values: values.float() * 2, recorder)
    for seed, height in enumerate((4, 5, 4, 4, 4, 6)):
        values = pictures(height, seed)
        assert torch.equal(run(values), values.float() * 2)
    assert recorder.recorded == [(1, 4, 8, 3)]
    assert run(pictures(4).float()).shape == (1, 4, 8, 3)  # of another kind, so not by the recording of bytes
    assert len(recorder.recorded) == 1


def test_few_recordings_are_kept() -> None:
    recorder = Recorder()
    run = ReplayedForward(lambda values: values.float(), recorder)
    for height in range(1, MOST_SHAPES + 2):
        run(pictures(height))
        run(pictures(height))
    assert len(recorder.recorded) == MOST_SHAPES + 1
    run(pictures(1))  # forgotten, so it counts as new
    assert len(recorder.recorded) == MOST_SHAPES + 1
    run(pictures(MOST_SHAPES + 1))  # kept
    assert len(recorder.recorded) == MOST_SHAPES + 1


def test_what_cannot_be_recorded_still_runs() -> None:
    calls = []

    def record(forward: Forward, values: Tensor) -> Forward:
        calls.append(1)
        raise RuntimeError("operation not permitted when stream is capturing")

    run = ReplayedForward(lambda values: values.float() + 1, record)
    for seed in range(4):
        assert torch.equal(run(pictures(4, seed)), pictures(4, seed).float() + 1)
    assert len(calls) == 1

    def exhausted(forward: Forward, values: Tensor) -> Forward:
        raise torch.OutOfMemoryError("out of memory")

    run = ReplayedForward(lambda values: values.float(), exhausted)
    run(pictures(4))
    with pytest.raises(torch.OutOfMemoryError):  # the engine takes smaller tiles then
        run(pictures(4))


def test_engine_results_do_not_alias_a_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a replay overwrites the last result; what the engine has returned stays as it was."""
    network = TorchNetwork(weights_of(random_model()), 2, CPU)
    replayed = ReplayedForward(network.plain("fp32"), Recorder())
    monkeypatch.setattr(network, "plain", lambda precision: replayed)
    for dtype in ("uint8", "uint16", "float32"):
        images = [random_pixels(12, 17, dtype, seed=seed) for seed in range(6)]
        alone = Engine(random_model(), EngineConfig(device="cpu", precision="fp32"))
        pairs = [images[start : start + 2] for start in range(0, len(images), 2)]
        results = [result for pair in pairs for result in network.derain_plain("fp32", pair)]
        for result, image in zip(results, images):
            expected = alone.derain(image)
            scale = 1.0 if dtype == "float32" else float(np.iinfo(dtype).max)
            assert np.abs(result.astype(np.float64) - expected.astype(np.float64)).max() / scale < 1 / 255 + 1e-6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda_graph_is_the_network() -> None:
    model = random_model()
    for precision, tolerance in (("fp32", 1), ("fp16", 2)):
        engine = Engine(model, EngineConfig(device="cuda", precision=precision))
        reference = Engine(model, EngineConfig(device="cpu", precision="fp32"))
        images = [random_pixels(40, 60, seed=seed) for seed in range(4)]
        results = [engine.derain(image) for image in images]  # eager, recorded, replayed, replayed
        for result, image in zip(results, images):
            assert np.abs(result.astype(int) - reference.derain(image)).max() <= tolerance
