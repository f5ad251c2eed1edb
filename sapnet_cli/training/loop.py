"""The loop that made the shipped weights: phases of growing depth, EMA, cosine decay, checkpoints that resume."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sapnet_cli.data.crops import CropSampler, PairedPictures
from sapnet_cli.losses.ssim import ssim
from sapnet_cli.model.checkpoint import save_checkpoint
from sapnet_cli.model.sapnet import SAPNET, SAPNet, SAPNetConfig
from sapnet_cli.training.muon import Muon

log = logging.getLogger(__name__)

COMPILE_SECONDS = 20.0
"""No step is charged more than this to the budget: the first of each phase compiles."""


@dataclass(frozen=True)
class Phase:
    """A part of the budget with its own shape of batch.

    Attributes:
        share: fraction of the time budget.
        stages: units that are run and supervised.
        patch: side of the square crops, in pixels.
        batch: crops a step.
    """

    share: float
    stages: int
    patch: int
    batch: int


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides a run besides its data.

    Attributes:
        minutes: wall-clock budget, over which the schedule is stretched; a resumed run goes on with what is left.
        phases: parts of the budget; few units first, since they cost less and share the weights of all.
        learning_rate: peak of Muon, for the 3x3 convolutions inside the network.
        adam_learning_rate: peak of Adam, for all other parameters.
        warmup: fraction of the budget; a cosine then leads down to a hundredth of the peak.
        ema: decay of the averaged weights, which are what is validated and shipped.
        clip: largest norm of the gradient.
        stage_weight: weight of the earlier units' mean L1 beside the last one's loss.
        seed: of the initial weights and of the order of crops.
        validate_every: minutes.
        compiled: whether the step goes through torch.compile.
        model: the network.
    """

    minutes: float
    phases: tuple[Phase, ...] = (Phase(0.35, 3, 64, 8), Phase(0.45, 6, 64, 8), Phase(0.20, 6, 128, 2))
    learning_rate: float = 0.02
    adam_learning_rate: float = 2e-3
    warmup: float = 0.01
    ema: float = 0.999
    clip: float = 1.0
    stage_weight: float = 0.3
    seed: int = 0
    validate_every: float = 10.0
    compiled: bool = True
    model: SAPNetConfig = SAPNET


def joint_loss(images: Sequence[Tensor], clean: Tensor, stage_weight: float) -> Tensor:
    """`1 - SSIM + L1` of the last unit's image, and the mean L1 of the others' times `stage_weight`.

    Args:
        images: each unit's estimate, (B, 3, H, W).
        clean: ground truth, the same shape, in [0, 1].
        stage_weight: see `TrainingConfig`.
    """
    *earlier, last = (image.float() for image in images)
    loss = 1 - ssim(last, clean) + (last - clean).abs().mean()
    if earlier:
        loss = loss + stage_weight * torch.stack([(image - clean).abs().mean() for image in earlier]).mean()
    return loss


class Trainer:
    """One run: its network, optimisers, averaged weights, position in the budget and order of crops."""

    def __init__(self, config: TrainingConfig, sampler: CropSampler, output: Path) -> None:
        """Starts a run, or takes up the one whose `last.ckpt` lies in `output`."""
        torch.manual_seed(config.seed)
        output.mkdir(parents=True, exist_ok=True)
        self.config, self.sampler, self.output = config, sampler, output
        self.model = SAPNet(config.model).to(memory_format=torch.channels_last)
        self.averaged = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        names = {name for name, tensor in self.averaged.items() if tensor.dim() == 4 and tensor.shape[-1] == 3}
        names.discard("project.weight")  # three rows: nothing to orthogonalise
        parameters = dict(self.model.named_parameters())
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Adam([parameters[name] for name in parameters if name not in names], config.adam_learning_rate),
            Muon([parameters[name] for name in parameters if name in names], config.learning_rate),
        )
        self.peaks = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        self.seconds, self.iteration = 0.0, 0
        if self._checkpoint.exists():
            self._resume()
        self._loss: Callable[[Tensor, Tensor, int], Tensor] = self._compute_loss
        if config.compiled:
            self._loss = torch.compile(self._compute_loss, dynamic=False)

    @property
    def _checkpoint(self) -> Path:
        return self.output / "last.ckpt"

    def run(self, validation: Mapping[str, PairedPictures]) -> None:
        """Trains until the budget is spent; writes `last.ckpt`, `metrics.jsonl` and `final.safetensors`."""
        budget = 60 * self.config.minutes
        saved = validated = self.seconds
        losses: list[float] = []
        while self.seconds < budget:
            start = time.monotonic()
            losses.append(self.step(self.seconds / budget))
            self.seconds += min(time.monotonic() - start, COMPILE_SECONDS)
            if self.iteration % 100 == 0:
                mean, minutes = float(np.mean(losses[-100:])), self.seconds / 60
                log.info("%.1f min, iteration %d, loss %.5f", minutes, self.iteration, mean)
            if self.seconds - saved > 120 or self.seconds >= budget:
                saved = self.seconds
                self._save()
            if self.seconds - validated > 60 * self.config.validate_every or self.seconds >= budget:
                validated = self.seconds
                self._validate(validation, float(np.mean(losses[-300:])))
        save_checkpoint(self.averaged_model(), self.output / "final.safetensors")

    def step(self, progress: float) -> float:
        """One optimisation step at a position in the budget, 0 to 1; returns the loss."""
        config = self.config
        ends = list(accumulate(phase.share for phase in config.phases))
        phase = next((phase for phase, end in zip(config.phases, ends) if progress < end), config.phases[-1])
        decay = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))
        factor = min(1.0, (progress + 1e-4) / config.warmup) * decay
        for optimizer, peak in zip(self.optimizers, self.peaks):
            optimizer.param_groups[0]["lr"] = peak * factor
            optimizer.zero_grad(set_to_none=True)
        rainy, clean = self.sampler.draw(phase.batch, phase.patch)
        loss = self._loss(to_tensor(rainy), to_tensor(clean), phase.stages)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        if bool(torch.isfinite(norm)):
            for optimizer in self.optimizers:
                optimizer.step()
        keep = min(config.ema, (1 + self.iteration) / (10 + self.iteration))
        with torch.no_grad():
            for name, tensor in self.model.state_dict().items():
                self.averaged[name].lerp_(tensor, 1 - keep)
        self.iteration += 1
        return loss.item()

    def averaged_model(self) -> SAPNet:
        """The network with the averaged weights."""
        model = SAPNet(self.config.model)
        model.load_state_dict(self.averaged)
        return model.to(memory_format=torch.channels_last).eval().requires_grad_(False)

    def _compute_loss(self, rainy: Tensor, clean: Tensor, stages: int) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            images = self.model.stage_images(rainy, stages)
        return joint_loss(images, clean, self.config.stage_weight)

    def _validate(self, validation: Mapping[str, PairedPictures], loss: float) -> None:
        """RGB PSNR after each unit, averaged over each set's pictures."""
        model = self.averaged_model()
        record: dict[str, Any] = {"minutes": self.seconds / 60, "iteration": self.iteration, "loss": loss}
        for name, paired in validation.items():
            scores = []
            for rainy, clean in paired.pictures:
                with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                    images = model.stage_images(to_tensor(rainy[None]))
                errors = [(image.float().clamp(0, 1) - to_tensor(clean[None])).square().mean() for image in images]
                scores.append([-10 * math.log10(float(error)) for error in errors])
            record[name] = [round(float(score), 3) for score in np.mean(scores, axis=0)]
        line = json.dumps(record)
        log.info("%s", line)
        with (self.output / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "averaged": self.averaged,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "seconds": self.seconds,
            "iteration": self.iteration,
            "sampler": self.sampler.random.bit_generator.state,
            "config": asdict(self.config),
        }
        temporary = self._checkpoint.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(self._checkpoint)

    def _resume(self) -> None:
        state = torch.load(self._checkpoint, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.averaged = state["averaged"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        self.seconds, self.iteration = state["seconds"], state["iteration"]
        self.sampler.random.bit_generator.state = state["sampler"]
        log.info("going on at iteration %d, %.1f minutes", self.iteration, self.seconds / 60)


def to_tensor(crops: NDArray[np.uint8]) -> Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) in [0, 1], channels last in memory."""
    return torch.tensor(crops).permute(0, 3, 1, 2).float() / 255
