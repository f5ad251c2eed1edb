"""How fast a training step is, next to the authors' own, on the same crops, losses and machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sapnet_cli.engine.hardware import synchronize
from sapnet_cli.losses.fidelity import ssim
from sapnet_cli.losses.joint import JointLoss
from sapnet_cli.losses.perceptual import VGGFeatures, perceptual_contrastive_loss
from sapnet_cli.losses.segmentation import SegmentationNetwork, background_segmentation_loss
from sapnet_cli.model.sapnet import ChannelResidualAttention
from sapnet_cli.training.config import TrainingConfig
from sapnet_cli.training.learner import Learner
from sapnet_cli.training.processes import Processes

ROUNDS, STEPS = 5, 2
"""The two take turns, so many steps each, so that whatever else the machine does slows both."""

ALL_PROGRESS = 1.0
"""Position in the budget at which every loss has joined."""


@dataclass(frozen=True)
class Timing:
    """Median seconds of one step of `batch` crops, ours and the authors', and ours in what precision."""

    ours: float
    authors: float
    precision: str


class ReleasedNetwork(nn.Module):
    """SAPNet as its authors wrote it: four convolutions for the gates, zero states at the first unit, plain layout."""

    def __init__(self, stages: int = 6, channels: int = 32) -> None:
        super().__init__()
        self.stages, self.channels = stages, channels
        self.embed = nn.Conv2d(6, channels, 3, padding=1)
        self.gates = nn.ModuleList(nn.Conv2d(2 * channels, channels, 3, padding=1) for _ in range(4))
        dilations = [2**index for index in range(5) for _ in range(2)]
        self.convolutions = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=d, dilation=d) for d in dilations)
        self.attentions = nn.ModuleList(ChannelResidualAttention(channels, 16) for _ in dilations)
        self.project = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, rainy: Tensor) -> Tensor:
        """The last unit's image, (B, 3, H, W)."""
        size = (rainy.shape[0], self.channels, *rainy.shape[2:])
        estimate, hidden, cell = rainy, rainy.new_zeros(size), rainy.new_zeros(size)
        for _ in range(self.stages):
            features = functional.relu(self.embed(torch.cat((rainy, estimate), 1)))
            joined = torch.cat((features, hidden), 1)
            gate_in, forget, gate_out = (torch.sigmoid(gate(joined)) for gate in self.gates[:3])
            cell = forget * cell + gate_in * torch.tanh(self.gates[3](joined))
            hidden = gate_out * torch.tanh(cell)
            features = hidden
            for index in range(0, len(self.convolutions), 2):
                inner = features
                for layer in (index, index + 1):
                    inner = self.convolutions[layer](inner)
                    inner = functional.relu(inner * self.attentions[layer](functional.adaptive_avg_pool2d(inner, 1)))
                features = functional.relu(features + inner)
            estimate = self.project(features) + rainy
        return estimate


def time_steps(
    config: TrainingConfig,
    loss: JointLoss,
    processes: Processes,
    precision: torch.dtype,
    compiled: bool,
    build_segmentation: Callable[[], SegmentationNetwork] | None,
    build_features: Callable[[], VGGFeatures] | None,
) -> Timing:
    """Times our step and the authors' in turns, all losses that have a weight switched on.

    Args:
        config: of the run whose last phase's step is timed.
        loss: ours.
        processes: where to compute; one process.
        precision: of ours.
        compiled: whether ours goes through `torch.compile`.
        build_segmentation: makes the segmentation network, as the authors do at every step; None without that loss.
        build_features: makes VGG-16 for the authors' loss; None without it.

    Raises:
        OutOfMemoryError: our step does not fit into memory.
    """
    learner = Learner(config, loss, processes, precision, compiled)
    random = np.random.default_rng(config.seed)
    size = (config.batch, config.patch, config.patch, 3)
    rainy, clean = (random.integers(0, 256, size, dtype=np.uint8) for _ in range(2))
    released = _released_steps(config, processes.device, rainy, clean, build_segmentation, build_features)

    def ours() -> None:
        learner.learn(rainy, clean, config.model.stages, ALL_PROGRESS)

    def authors() -> None:
        next(released)

    times: dict[Callable[[], None], list[float]] = {ours: [], authors: []}
    for work in times:
        work()  # compiles, and allocates
    for _ in range(ROUNDS):
        for work, seconds in times.items():
            synchronize(processes.device)
            start = time.perf_counter()
            for _ in range(STEPS):
                work()
            synchronize(processes.device)
            seconds.append((time.perf_counter() - start) / STEPS)
    return Timing(statistics.median(times[ours]), statistics.median(times[authors]), learner.precision_name)


def _released_steps(
    config: TrainingConfig,
    device: torch.device,
    rainy: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
    clean: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
    build_segmentation: Callable[[], SegmentationNetwork] | None,
    build_features: Callable[[], VGGFeatures] | None,
) -> Iterator[None]:
    """The authors' loop, with their network and losses, faults included."""
    weights = config.losses
    torch.manual_seed(config.seed)
    network = ReleasedNetwork(config.model.stages, config.model.channels).to(device)
    optimizer = torch.optim.Adam(network.parameters(), config.learning_rate)
    features = build_features().to(device) if build_features is not None else None
    while True:
        crops = (torch.from_numpy(each).permute(0, 3, 1, 2).float().contiguous() for each in (rainy, clean))
        inputs, targets = (each.to(device) / 255 for each in crops)
        optimizer.zero_grad()
        out = network(inputs)
        total = -weights.ssim * ssim(out, targets)
        if features is not None and weights.pcl:
            stages = [features(each) for each in (out, targets, inputs)]
            total = total + weights.pcl * perceptual_contrastive_loss(*stages)
        if features is not None and weights.lpips:
            # theirs goes through float(), so it has no gradient, and stops after the first crop
            with torch.no_grad():
                first, second = (features(1 - each[:1]) for each in (out, targets))
            difference = sum((a - b).square().mean() for a, b in zip(first, second))
            total = total + weights.lpips * float(difference)
        if build_segmentation is not None:
            total = total + weights.ubs * background_segmentation_loss(build_segmentation().to(device)(out))
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        yield
