"""From what the user asked for to a trainer that is ready, for a new run and for one that is taken up."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from sapnet_cli.data.sets import DataConfig, TrainingData
from sapnet_cli.errors import CheckpointError, UsageError
from sapnet_cli.hub import locate_weights
from sapnet_cli.hub.backbones import locate_backbone
from sapnet_cli.losses.joint import JointLoss
from sapnet_cli.losses.perceptual import VGGFeatures
from sapnet_cli.losses.segmentation import SegmentationNetwork
from sapnet_cli.model.checkpoint import load_checkpoint
from sapnet_cli.training.config import RECIPES, Budget, TrainingConfig, from_json
from sapnet_cli.training.processes import Processes
from sapnet_cli.training.run_folder import RunFolder
from sapnet_cli.training.trainer import Runtime, Trainer

SEGMENTATION_DEPTHS = {"resnet101": 101, "resnet50": 50}

MINUTES_PER_VALIDATION = 2.0
"""Short runs are validated less often than long ones, which would cost them too much of their time."""

DEFAULT_BUDGETS = {
    "default": Budget(60, "minutes"),
    "perceptual": Budget(60, "minutes"),
    "paper": Budget(100, "epochs"),
}


@dataclass(frozen=True)
class Plan:
    """Everything that decides a run.

    Attributes:
        data: what to learn from.
        training: how.
        start: weights to begin with, a registered name or a path; None for random ones.
        backbones: folder of the ImageNet networks; None for the environment's, the cache or the Hub.
    """

    data: DataConfig
    training: TrainingConfig
    start: str | None = None
    backbones: str | None = None


@dataclass(frozen=True)
class Changes:
    """What the user asked for, without what is left to the recipe or to the run that is taken up.

    Attributes:
        recipe: of `RECIPES`, or None.
        data: fields of `DataConfig`.
        training: fields of `TrainingConfig`; those of its nested parts as mappings of their own.
        start: see `Plan`.
        backbones: see `Plan`.
    """

    recipe: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    start: str | None = None
    backbones: str | None = None


def plan_run(changes: Changes, needs_data: bool = True) -> Plan:
    """A new run: a recipe, and what the user wants otherwise.

    Raises:
        UsageError: there is nothing to learn from, or values make no sense.
        CheckpointError: the weights to begin with are missing or damaged.
    """
    if needs_data and not (changes.data.get("data") or changes.data.get("clean")):
        raise UsageError("nothing to learn from: name folders of pairs with --data, or of clean photos with --clean")
    recipe = changes.recipe or "default"
    base = TrainingConfig(**{"budget": DEFAULT_BUDGETS[recipe], **RECIPES[recipe]})
    if changes.start is not None:
        base = replace(base, model=load_checkpoint(locate_weights(changes.start)).config)
    plan = _apply(Plan(DataConfig(), base), changes)
    model = replace(plan.training.model, upright=not plan.training.augmentation.turn)
    plan = replace(plan, training=replace(plan.training, model=model))
    budget = plan.training.budget
    if budget.unit == "minutes" and "validations" not in changes.training:
        few = max(1, int(budget.amount / MINUTES_PER_VALIDATION))
        plan = replace(plan, training=replace(plan.training, validations=min(few, plan.training.validations)))
    return plan


def plan_resumed(folder: RunFolder, changes: Changes) -> Plan:
    """A run that is taken up, as it was written down when it began, but for its budget, which may be another.

    Raises:
        UsageError: the user asks for something else than the run began with.
        CheckpointError: what was written down is damaged.
    """
    record = folder.read_config()
    try:
        plan = Plan(
            from_json(DataConfig, record["data"]),
            from_json(TrainingConfig, record["training"]),
            record["start"],
            record["backbones"],
        )
        asked = _apply(plan, changes)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder.path}: its config.json makes no sense ({error}); begin another run") from error
    recipe = changes.recipe or plan.training.recipe
    training = replace(plan.training, budget=asked.training.budget)
    for part, now, then in (
        ("data", _without_places(asked.data), _without_places(plan.data)),
        ("training", {**asdict(asked.training), "recipe": recipe}, asdict(training)),
        ("start", {"weights": asked.start}, {"weights": plan.start}),
    ):
        for name in then:
            if now[name] != then[name]:
                raise UsageError(
                    f"{folder.path}: this run began with {part} {name} = {then[name]}, which cannot become "
                    f"{now[name]}; leave the option out, or begin another run, from these weights with --weights"
                )
    return replace(plan, data=asked.data, training=training, backbones=asked.backbones)


def build_loss(plan: Plan) -> JointLoss:
    """The joint loss with the frozen networks that its terms need.

    Raises:
        CheckpointError: a network is not to be had; its text says what to do.
    """
    weights = plan.training.losses
    features = build_features(plan) if weights.pcl or weights.lpips else None
    return JointLoss(weights, features, build_segmentation(plan) if weights.ubs else None)


def build_features(plan: Plan) -> VGGFeatures:
    """VGG-16, as deep as the losses look into it. Raises as `build_loss`."""
    _, path = locate_backbone(("vgg16",), _folder(plan))
    return VGGFeatures(path, stages=5 if plan.training.losses.lpips else 4)


def build_segmentation(plan: Plan) -> SegmentationNetwork:
    """The segmentation network, the same for the same seed. Raises as `build_loss`."""
    name, path = locate_backbone(tuple(SEGMENTATION_DEPTHS), _folder(plan))
    return SegmentationNetwork(path, SEGMENTATION_DEPTHS[name], plan.training.seed)


def build_trainer(
    plan: Plan,
    data: TrainingData,
    loss: JointLoss,
    folder: RunFolder,
    processes: Processes,
    runtime: Runtime,
    state: Mapping[str, Any] | None = None,
) -> Trainer:
    """A trainer at the beginning of its run, or where a checkpoint left it.

    Raises:
        UsageError: the pictures are not those of the run that is taken up.
        CheckpointError: the checkpoint, or the weights to begin with, are damaged.
    """
    start = load_checkpoint(locate_weights(plan.start)) if plan.start is not None and state is None else None
    trainer = Trainer(plan.training, data, loss, folder, processes, runtime, start)
    if state is not None:
        trainer.resume(state)
    if processes.first:  # where it goes on, too: its budget or the places of its data may have changed
        folder.begin(asdict(plan))
    return trainer


def _without_places(data: DataConfig) -> dict[str, Any]:
    """What must not change while a run goes on: folders may have moved, and the pictures are compared anyway."""
    fields = asdict(data)
    for name in ("data", "clean"):
        fields[name] = tuple(weight for _, weight in fields[name])
    for name in ("rain_layers", "validation"):
        fields[name] = len(fields[name])
    return fields


def _folder(plan: Plan) -> Path | None:
    return Path(plan.backbones) if plan.backbones else None


def _numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Budget):
            yield value.unit, value.amount
        elif isinstance(value, Mapping):
            yield from _numbers(value)
        elif isinstance(value, float):
            yield name, value


def _apply(plan: Plan, changes: Changes) -> Plan:
    """A plan with what the user asked for.

    Raises:
        UsageError: a number is not finite, or values make no sense together.
    """
    training = plan.training
    values: dict[str, Any] = {}
    for name, value in _numbers({**changes.data, **changes.training}):
        if not math.isfinite(value):
            raise UsageError(f"{name} of {value} makes no sense")
    for name, value in changes.training.items():
        values[name] = replace(getattr(training, name), **value) if isinstance(value, Mapping) else value
    return Plan(
        replace(plan.data, **changes.data),
        replace(training, **values),
        changes.start or plan.start,
        changes.backbones or plan.backbones,
    )
