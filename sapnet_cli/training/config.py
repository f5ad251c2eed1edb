"""Everything that decides a training run besides its data, and the recipes to start from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal, TypeVar, cast, get_type_hints

from sapnet_cli.data.crops import Augmentation
from sapnet_cli.errors import UsageError
from sapnet_cli.losses.joint import LossWeights
from sapnet_cli.model.config import SAPNET, SAPNetConfig

Unit = Literal["epochs", "iterations", "minutes"]
Config = TypeVar("Config")


@dataclass(frozen=True)
class Budget:
    """How long to train; the schedule is stretched over it.

    Attributes:
        amount: of the unit.
        unit: `epochs` (crops that cover the training pictures once), `iterations` or `minutes` of wall-clock time.
            The first two make runs that can be repeated to the bit; a clock cannot.
    """

    amount: float
    unit: Unit


@dataclass(frozen=True)
class Phase:
    """A part of the budget with its own shape of batch.

    Attributes:
        share: fraction of the budget.
        depth: fraction of the network's units that are run and supervised.
        scale: factor on the side of the crops; there are fewer of them in turn, so that a step's pixels stay.
    """

    share: float
    depth: float = 1.0
    scale: int = 1


@dataclass(frozen=True)
class StepShape:
    """What one step works on: units, side of the crops in pixels, crops for each process."""

    stages: int
    patch: int
    batch: int


@dataclass(frozen=True)
class TrainingConfig:
    """One run.

    Attributes:
        budget: how long.
        recipe: what the other values come from, for people.
        patch: side of the square crops, in pixels.
        batch: crops a step, for each process.
        phases: parts of the budget; few units first, since they cost less and share the weights of all.
        losses: weight of each term.
        augmentation: how crops are changed.
        optimizer: `muon` for the 3x3 convolutions beside Adam for the rest, or `adamw` or `adam` for all.
        learning_rate: peak of Adam.
        muon_learning_rate: peak of Muon.
        weight_decay: of AdamW.
        schedule: `cosine` down to a hundredth, or the paper's `multistep`.
        milestones: parts of the budget at which `multistep` multiplies by `gamma`.
        gamma: see `milestones`.
        warmup: part of the budget over which the rate rises from zero.
        clip: largest norm of the gradient; 0 leaves it.
        ema: decay of the averaged weights, which are what is validated and written; 0 takes the weights themselves.
        precision: `auto`, `fp32`, `bf16` or `fp16`, of the forward and backward pass; the weights are fp32.
        recompute: whether units are computed again in the backward pass to save memory; None where memory asks for it.
        validations: how many times over the run the averaged weights are validated.
        seed: of the weights, the crops and the segmentation network.
        model: the network.
    """

    budget: Budget
    recipe: str = "default"
    patch: int = 64
    batch: int = 8
    phases: tuple[Phase, ...] = (Phase(1.0),)
    losses: LossWeights = field(default_factory=LossWeights)
    augmentation: Augmentation = field(default_factory=Augmentation)
    optimizer: Literal["muon", "adamw", "adam"] = "adam"
    learning_rate: float = 1e-3
    muon_learning_rate: float = 0.02
    weight_decay: float = 1e-4
    schedule: Literal["cosine", "multistep"] = "cosine"
    milestones: tuple[float, ...] = (0.3, 0.5, 0.8)
    gamma: float = 0.2
    warmup: float = 0.0
    clip: float = 0.0
    ema: float = 0.0
    precision: str = "auto"
    recompute: bool | None = None
    validations: int = 10
    seed: int = 0
    model: SAPNetConfig = SAPNET

    def __post_init__(self) -> None:
        """Refuses values that make no sense, with a `UsageError`."""
        weights = self.losses
        if self.budget.amount <= 0:
            raise UsageError(f"a budget of {self.budget.amount:g} {self.budget.unit} leaves nothing to train")
        if self.patch < 16 or self.batch < 1:
            raise UsageError(f"crops of {self.patch} pixels, {self.batch} a step: at least 16 and 1 are needed")
        compared = (weights.ssim, weights.l1, weights.psnr, weights.pcl, weights.lpips)
        if min(*compared, weights.ubs, weights.stages, weights.halfway) < 0:
            raise UsageError("the weight of a loss cannot be negative; 0 switches it off")
        if not 0 <= weights.luma <= 1:
            raise UsageError(f"a share of {weights.luma:g} cannot be of Y; it is from 0 to 1")
        if not any(compared):
            raise UsageError("all losses that compare with the clean picture are off; nothing could be learnt")

    def phase(self, progress: float) -> Phase:
        """The part of the budget that a position in it, 0 to 1, falls into."""
        end = 0.0
        for phase in self.phases:
            end += phase.share
            if progress < end - 1e-9:
                return phase
        return self.phases[-1]

    def shape(self, progress: float) -> StepShape:
        """What a step at a position in the budget, 0 to 1, works on."""
        return self._shape(self.phase(progress))

    def shapes(self) -> tuple[StepShape, ...]:
        """What the steps of each part of the budget work on."""
        return tuple(self._shape(phase) for phase in self.phases)

    def _shape(self, phase: Phase) -> StepShape:
        return StepShape(
            math.ceil(phase.depth * self.model.stages),
            self.patch * phase.scale,
            max(1, self.batch // phase.scale**2),
        )

    def rate(self, progress: float) -> float:
        """Factor on the learning rates at a position in the budget, 0 to 1."""
        if self.schedule == "multistep":
            factor = self.gamma ** sum(progress >= milestone for milestone in self.milestones)
        else:
            factor = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        return factor * min(1.0, (progress + 1e-4) / self.warmup) if self.warmup else factor


PAPER: Mapping[str, Any] = {
    "recipe": "paper",
    "patch": 100,
    "batch": 8,
    "losses": LossWeights(ssim=1.0, pcl=0.4, lpips=1.0, ubs=0.1),
    "augmentation": Augmentation(flip=False, turn=False),
    "optimizer": "adam",
    "learning_rate": 1e-3,
    "schedule": "multistep",
}
"""The published recipe with the released code's weights (`-SSIM + 0.1 * 4 PCL + 0.1 * 10 LPIPS + 0.1 UBS`) and the
smallest of its batches, which are 8 to 18."""

DEFAULT: Mapping[str, Any] = {
    "recipe": "default",
    "phases": (Phase(0.55, depth=0.5), Phase(0.25, depth=0.5, scale=2), Phase(0.20, scale=2)),
    "losses": LossWeights(ssim=1.0, l1=1.0, stages=0.3),
    "augmentation": Augmentation(faint=0.1, fine=0.1),
    "optimizer": "muon",
    "learning_rate": 2e-3,
    "schedule": "cosine",
    "warmup": 0.01,
    "clip": 1.0,
    "ema": 0.999,
}
"""What works best here; the README shows why."""

PERCEPTUAL: Mapping[str, Any] = {
    **DEFAULT,
    "recipe": "perceptual",
    "losses": LossWeights(ssim=1.0, l1=1.0, pcl=0.4, lpips=1.0, ubs=0.1, stages=0.3),
}
"""The same with all losses of the paper, where looks count more than PSNR."""

RECIPES: Mapping[str, Mapping[str, Any]] = {"default": DEFAULT, "perceptual": PERCEPTUAL, "paper": PAPER}


def from_json(kind: type[Config], record: Mapping[str, Any]) -> Config:
    """A frozen dataclass from what `json` made of its `dataclasses.asdict`: lists are tuples again.

    Raises:
        KeyError, TypeError, ValueError: the record is of something else.
    """
    hints = get_type_hints(kind)
    known = {each.name for each in fields(cast(Any, kind))}
    return kind(**{name: _typed(hints[name], value) for name, value in record.items() if name in known})


def _typed(hint: Any, value: Any) -> Any:
    if is_dataclass(hint) and isinstance(value, Mapping):
        return from_json(cast(type[Any], hint), value)
    if isinstance(value, list):
        inner = getattr(hint, "__args__", (Any,))[0]
        return tuple(_typed(inner, each) for each in value)
    return value
